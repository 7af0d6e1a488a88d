"""Selecting in parts: RandGreeDi by its definition, here and on a real Ray."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

import p3select
from p3select import index, kernel, limits, neighbors, partition
from p3select.cli import cli
from p3select.errors import InputError
from tests.fakes import FakeEncoder, FakeScorer

ALL = {"epoch": 1, "epochs": 1, "pace": "constant:100", "budget": 30, "overwrite": True}
ROOT = str(Path(__file__).parents[1])


@pytest.fixture(scope="module")
def run(tmp_path_factory, smollm2, gsm8k):
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("parts")
    pl.read_parquet(gsm8k).with_columns(source=pl.int_range(pl.len()) % 4).write_parquet(folder / "rows.parquet")
    run = p3select.Run(folder / "run")
    p3select.score(folder / "rows.parquet", run, scorer=FakeScorer(AutoTokenizer.from_pretrained(smollm2)))
    p3select.embed(folder / "rows.parquet", run, FakeEncoder())
    return run


def log_det(x, q, rows, h):
    s = np.exp((np.minimum(x[rows] @ x[rows].T, 1) - 1) / h) * np.outer(q[rows], q[rows])
    return np.linalg.slogdet(s).logabsdet


def test_it_is_the_greedy_of_the_union_of_what_the_parts_give(run):
    whole = p3select.select(run, **ALL, selector="dpp")
    chosen = p3select.select(run, **ALL, selector="dpp", parts=3, seed=5)
    assert chosen.metadata["parts"] == 3
    x = np.load(run.embeddings)
    q = pl.read_parquet(run.scores(1) / "*.parquet").sort("row")["difficulty"].to_numpy()
    h = whole.metadata["scale"]
    part = np.random.default_rng((5, 1)).permutation(np.arange(200) % 3)
    own = [np.flatnonzero(part == number) for number in range(3)]
    picked = [rows[p3select.dpp(x[rows], q[rows], 30, scale=h)[0]] for rows in own]
    union = np.unique(np.concatenate(picked))
    merged = union[p3select.dpp(x[union], q[union], 30, scale=h)[0]]
    best = max([merged, *picked], key=lambda rows: log_det(x.astype(float), q, rows, h))
    assert chosen.rows.tolist() == best.tolist()
    # Worse than the whole, better than the parts alone, near the whole.
    values = [log_det(x.astype(float), q, rows, h) for rows in (whole.rows, chosen.rows, *picked)]
    assert values[0] >= values[1] >= max(values[2:])
    assert not list(run.path.glob("parts*"))


def test_rows_to_keep_and_limits_hold_over_the_parts(run):
    options = {"selector": "dpp", "parts": 4, "include": [7, 150], "share": "source=0:50%,3:50%", "whiten": True}
    with pytest.raises(InputError, match=r"row 1, '1' in column 'source', .* lets in 0"):
        p3select.select(run, **ALL, **{**options, "include": [1]})
    chosen = p3select.select(run, **ALL, **{**options, "include": [7, 152]})
    assert set(chosen.rows[:2].tolist()) == {7, 152}
    assert np.bincount(chosen.rows % 4, minlength=4).tolist() == [15, 0, 0, 15]
    tokens = p3select.select(run, **{**ALL, "budget": "2ktok"}, selector="dpp-local", parts=2)
    assert 1_900 < tokens.metadata["tokens"] <= 2_000


def test_no_more_than_a_part_or_the_union_is_held(run, monkeypatch):
    """Of the embeddings, whitened or not, which may be more than the memory holds."""
    taken, asked = kernel.taken, []

    def counted(vectors, rows, white=None):
        assert isinstance(vectors, np.memmap)
        asked.append(len(rows))
        return taken(vectors, rows, white)

    monkeypatch.setattr(kernel, "SCALE_ROWS", 50)
    monkeypatch.setattr(kernel, "taken", counted)
    for whiten in (False, True):
        p3select.select(run, **ALL, selector="dpp", parts=4, whiten=whiten)
    assert max(asked) <= 4 * 30
    assert asked.count(50) >= 8  # the parts


def test_calls_at_once_do_not_share_a_folder(run, monkeypatch):
    alone = p3select.select(run, **ALL, selector="dpp", parts=3)
    pick, inside = partition.Worker.pick, []

    def meanwhile(self, folder, number, options, advance):
        if not inside:
            inside.append(folder)
            p3select.select(run, **{**ALL, "budget": 12}, selector="dpp", parts=2)
        inside.append(folder)
        pick(self, folder, number, options, advance)

    monkeypatch.setattr(partition.Worker, "pick", meanwhile)
    assert p3select.select(run, **ALL, selector="dpp", parts=3).rows.tolist() == alone.rows.tolist()
    assert len(set(inside)) == 2
    assert not list(run.path.glob("parts*"))


def test_parameters_of_dpp_local_are_recorded_and_for_it_alone(run):
    plain = p3select.select(run, **ALL, selector="dpp-local")
    names = ("cells", "probes", "neighbours", "cells_on")
    assert [plain.metadata[name] for name in names] == [1, 1, 24, neighbors.device()]
    given = p3select.select(run, **ALL, selector="dpp-local", cells=5, probes=2, neighbours=3)
    assert [given.metadata[name] for name in names[:3]] == [5, 2, 3]
    assert (given.gains != plain.gains).any()
    parts = p3select.select(run, **ALL, selector="dpp-local", parts=2, neighbours=3)
    assert [parts.metadata[name] for name in names[:3]] == [None, None, 3]
    assert "cells" not in p3select.select(run, **ALL, selector="dpp").metadata
    for selector in ("auto", "dpp", "topk"):
        with pytest.raises(InputError, match=f"probes 2: is for dpp-local, asked for by name; not for '{selector}'"):
            p3select.select(run, **ALL, selector=selector, probes=2)
    command = ["select", "--run", str(run.path), "--epoch", "1", "--epochs", "1", "--budget", "30", "--overwrite"]
    options = [
        "--pace",
        "constant:100",
        "--selector",
        "dpp-local",
        "--cells",
        "5",
        "--probes",
        "2",
        "--neighbours",
        "3",
    ]
    done = CliRunner().invoke(cli, [*command, *options, "--json"])
    assert json.loads(done.stdout)["cells"] == 5
    assert index.read(run.index(1)).rows.tolist() == given.rows.tolist()


def test_parts_of_limits():
    one = limits.at_most(2, np.arange(10) % 3)
    some = limits.part(one, np.array([9, 1, 4]))
    assert some.group.tolist() == [[0, 1, 1]]
    assert some.room.tolist() == [[2, 2, 2]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": 1}, "parts 1: from 2 to the 200"),
        ({"parts": 201}, "parts 201"),
        ({"parts": 2, "selector": "topk"}, "not 'topk'"),
        ({"parts": 2, "selector": "kdpp"}, "not 'kdpp'"),
        ({"workers": 2}, "workers 2: is for engine 'ray'"),
        ({"engine": "spark"}, "engine 'spark'"),
    ],
)
def test_what_cannot_be_parted_is_refused(run, options, message):
    with pytest.raises(InputError, match=message):
        p3select.select(run, **ALL, **options)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_on_ray_the_index_is_the_same_byte_for_byte(run, monkeypatch):
    ray = pytest.importorskip("ray")
    p3select.select(run, **ALL, selector="dpp", parts=8, include=[3])
    here = run.index(1).read_bytes()
    env = {"env_vars": {"PYTHONPATH": ROOT}}
    ray.init(address="local", include_dashboard=False, log_to_driver=False, runtime_env=env)
    try:
        for workers in (1, 2):
            p3select.select(run, **ALL, selector="dpp", include=[3], engine="ray", workers=workers)
            assert run.index(1).read_bytes() == here
    finally:
        ray.shutdown()
