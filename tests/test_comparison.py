"""Strategies at an equal budget: measures by brute force, trainings by commands that train nothing."""

import hashlib
import json
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import stats

import p3select
from p3select import cli, comparison, kernel, selection, trainings
from p3select.errors import InputError, MismatchError, P3Error
from tests.fakes import FakeEncoder, FakeScorer
from tests.test_scores import Wrong

ROWS, BUDGET = 120, 24
TWINS = (3, 4)


@lru_cache(maxsize=1)
def tokenizer(path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)


class Trained(FakeScorer):
    """By name: the log-probabilities depend on what the policy was trained on."""

    def __init__(self, model, *, adapter: str | None = None):
        state = Path(model) / "state.txt"
        known = hashlib.sha256(state.read_bytes()).hexdigest() if state.is_file() else "first"
        super().__init__(tokenizer(Path(__file__).parents[1] / "models" / "SmolLM2-135M-Instruct"), model=known)


@pytest.fixture(scope="module")
def data(tmp_path_factory, gsm8k):
    """Three sources of different sizes, and two rows that are alike."""
    rows = pl.read_parquet(gsm8k)[:ROWS]
    source = pl.Series("source", ["a"] * 80 + ["b"] * 34 + ["c"] * 6).shuffle(seed=1)
    prompts = rows["prompt"].to_list()
    prompts[TWINS[1]] = prompts[TWINS[0]]
    path = tmp_path_factory.mktemp("data") / "rows.parquet"
    rows.with_columns(source, pl.Series("prompt", prompts)).write_parquet(path)
    return path


def scored(data, folder, smollm2, epochs=2, kind=FakeScorer, **options):
    run = p3select.Run(folder)
    for epoch in range(1, epochs + 1):
        scorer = kind(tokenizer(smollm2), model=f"fake-{epoch}")
        p3select.score(data, run, scorer=scorer, epoch=epoch, **options)
    p3select.embed(data, run, FakeEncoder())
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory, data, smollm2):
    return scored(data, tmp_path_factory.mktemp("run"), smollm2)


@pytest.fixture(scope="module")
def found(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return out, p3select.compare(run, budget=BUDGET, epochs=4, out=out, columns=["source", "level"], seed=3)


def table(run, epoch):
    return pl.read_parquet(run.scores(epoch) / "*.parquet").sort("row")


def picked(out, strategy, epoch):
    return pl.read_parquet(out / "selections" / strategy / "index" / f"epoch-{epoch:03d}.parquet")["row"].to_numpy()


def one(found, epoch, strategy):
    (it,) = (it for it in found["selections"] if (it["epoch"], it["strategy"]) == (epoch, strategy))
    return it


def test_all_strategies_that_there_can_be(found):
    names = [*found[1]["strategies"]]
    assert {"ifd", "el2n", "rds"} == set(found[1]["left_out"])
    assert found[1]["left_out"]["el2n"] == "the rows were scored without --el2n: score them again with it"
    assert names == [
        "p3",
        "pace-only",
        "dpp-only",
        "reversed",
        "static",
        "uniform",
        "uniform+per=source",
        "longest",
        "nll-high",
        "nll-middle",
        "nll-low",
        "kcenter",
        "facility",
        "d2",
        "deita",
        "full",
    ]
    assert [(it["epoch"], it["strategy"]) for it in found[1]["selections"]] == [(e, s) for e in (1, 2) for s in names]
    assert {it["rows"] for it in found[1]["selections"] if it["strategy"] != "full"} == {BUDGET}


def test_a_strategy_is_what_select_does(found, run):
    chosen = p3select.select(run, epoch=2, epochs=4, budget=BUDGET, seed=3)
    try:
        assert picked(found[0], "p3", 2).tolist() == chosen.rows.tolist()
    finally:
        run.index(2).unlink()
    first, second = (table(run, epoch) for epoch in (1, 2))
    nll = -second["logprob"] / second["tokens"]
    order = nll.arg_sort().to_list()
    assert set(picked(found[0], "nll-high", 2)) == set(order[-BUDGET:])
    assert set(picked(found[0], "nll-low", 2)) == set(order[:BUDGET])
    middle = (ROWS - BUDGET) // 2
    assert set(picked(found[0], "nll-middle", 2)) == set(order[middle : middle + BUDGET])
    longest = sorted(range(ROWS), key=lambda row: (-second["tokens"][row], row))[:BUDGET]
    assert picked(found[0], "longest", 2).tolist() == longest
    assert set(picked(found[0], "full", 1)) == set(range(ROWS))
    # Scored once: the first epoch's scores, this epoch's percentile.
    percentile = p3select.pace(2, 4)
    lam = np.percentile(first["difficulty"], percentile)
    assert first["difficulty"].to_numpy()[picked(found[0], "static", 2)].max() <= lam
    assert picked(found[0], "static", 1).tolist() == picked(found[0], "p3", 1).tolist()
    assert picked(found[0], "static", 2).tolist() != picked(found[0], "p3", 2).tolist()
    assert picked(found[0], "uniform", 1).tolist() != picked(found[0], "uniform", 2).tolist()
    assert one(found[1], 1, "uniform+per=source")["counts"]["source"] == {"a": 9, "b": 9, "c": 6}


def test_scores_of_another_epoch(run, tmp_path):
    own = p3select.Run(tmp_path)
    for name in ("run.json", "embeddings", "scores/epoch-001"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(run.path / name)
    chosen = p3select.select(own, epoch=3, epochs=4, budget=BUDGET, scores_of=1, selector="topk")
    first = p3select.select(own, epoch=1, epochs=4, budget=BUDGET, selector="topk")
    assert chosen.metadata["scores_of"] == 1
    assert "scores_of" not in first.metadata
    for name in ("scores_fingerprint", "policy", "scores"):
        assert chosen.metadata[name] == first.metadata[name]
    assert chosen.metadata["lam"] == np.percentile(table(run, 1)["difficulty"], p3select.pace(3, 4))
    with pytest.raises(InputError, match="not scored yet"):
        p3select.select(own, epoch=1, epochs=4, budget=BUDGET, scores_of=2)


def test_measures_are_those_of_brute_force(found, run, data):
    values, vectors = table(run, 2), np.load(run.embeddings)
    frame = pl.read_parquet(data)
    h = kernel.scale(vectors)
    for name in ("p3", "uniform", "deita", "full"):
        rows = np.sort(picked(found[0], name, 2))
        it = one(found[1], 2, name)
        assert it["tokens"] == values["tokens"].to_numpy()[rows].sum()
        assert it["length"] == pytest.approx(it["tokens"] / len(rows))
        assert it["difficulty"] == pytest.approx(values["difficulty"].to_numpy()[rows].mean())
        cosines = vectors[rows] @ vectors[rows].T - 2 * np.eye(len(rows))
        assert it["near_duplicates"] == (cosines.max(axis=1) > 0.95).sum()
        counts = frame["source"].gather(rows).value_counts()
        assert it["counts"]["source"] == dict(counts.sort("source").iter_rows())
        shares = [
            np.array([(some == value).mean() for value in "abc"]) for some in (frame["source"][rows], frame["source"])
        ]
        assert it["shift"]["source"] == pytest.approx(np.abs(shares[0] - shares[1]).sum() / 2)
        if name != "full":
            expected = selection.diversity(vectors[rows], h)
            assert (it["log_det"], it["distance"]) == pytest.approx((expected["log_det"], expected["distance"]))
            assert 0 < it["cells"] <= BUDGET / (ROWS // comparison.CELL_ROWS)
    everything = one(found[1], 2, "full")
    assert everything["cells"] == 1.0
    assert everything["near_duplicates"] >= 2
    assert everything["shift"] == {"source": 0.0, "level": 0.0}
    assert found[1]["all"][1] | {"epoch": 2} == {name: everything[name] for name in found[1]["all"][1]}
    names = [*found[1]["strategies"]]
    sets = [set(picked(found[0], name.replace(":", "-"), 2)) for name in names]
    expected = [[len(a & b) / len(a | b) for b in sets] for a in sets]
    np.testing.assert_allclose(found[1]["jaccard"][1]["values"], expected, rtol=1e-6)
    for name in ("p3", "uniform"):
        union = {*picked(found[0], name, 1), *picked(found[0], name, 2)}
        assert found[1]["distinct"][name] == len(union)


def test_the_same_call_gives_the_same_bytes_and_leaves_the_run_alone(found, run, tmp_path):
    p3select.compare(run, budget=BUDGET, epochs=4, out=tmp_path, columns=["source", "level"], seed=3)
    files = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    files = [path for path in files if "costs" not in path.parts]
    assert len([path for path in files if path.suffix == ".parquet"]) == 32
    for path in files:
        assert (tmp_path / path).read_bytes() == (found[0] / path).read_bytes(), path
    assert not (run.path / "index").exists() or not list((run.path / "index").iterdir())
    other = p3select.compare(run, budget=BUDGET, epochs=4, out=tmp_path, strategies=["uniform", "p3"], seed=4)
    assert not np.array_equal(picked(tmp_path, "uniform", 1), picked(found[0], "uniform", 1))
    assert [*other["strategies"]] == ["uniform", "p3"]


def test_a_refused_call_leaves_the_selections_of_the_one_before(run, tmp_path):
    options = {"epochs": 4, "epoch": 2, "out": tmp_path}
    p3select.compare(run, budget=BUDGET, strategies=["p3", "uniform"], **options)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for wrong in ({"budget": "5tok"}, {"budget": BUDGET, "strategies": ["p3", "p3+scale=-1"]}):
        with pytest.raises(InputError, match="strategy p3"):
            p3select.compare(run, **({"strategies": ["p3"]} | wrong), **options)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files
        assert not (tmp_path / ".selections").exists()
    p3select.compare(run, budget=BUDGET, strategies=["longest"], **options)
    assert [path.name for path in (tmp_path / "selections").iterdir()] == ["longest"]


def test_the_default_selector_takes_a_budget_in_tokens_by_its_name_too(run, tmp_path):
    names = ["p3", "p3+selector=auto"]
    p3select.compare(run, budget="2ktok", epochs=4, epoch=2, out=tmp_path, strategies=names)
    assert picked(tmp_path, names[0], 2).tolist() == picked(tmp_path, names[1], 2).tolist()


def test_strategies_of_one_folder_are_refused(run, tmp_path):
    names = ["p3+pace=linear:50:95", "p3+pace=linear-50-95"]
    with pytest.raises(InputError, match=r"pace=linear:50:95 and p3.pace=linear-50-95: they would have one folder"):
        p3select.compare(run, budget=BUDGET, epochs=4, epoch=2, out=tmp_path / "out", strategies=names)


def test_selections_can_be_exported(found, tmp_path):
    p3select.export(found[0] / "selections" / "p3", epoch=1, to="jsonl", out=tmp_path / "p3.jsonl")
    assert len((tmp_path / "p3.jsonl").read_text().splitlines()) == BUDGET


def test_options_change_a_strategy(run, tmp_path):
    changed = ["p3+pace=constant:80", "p3+quality_weight=0+selector=dpp", "p3+whiten=true", "p3+share=source=a:50%"]
    found = p3select.compare(run, budget=10, epochs=4, epoch=2, out=tmp_path, strategies=changed)
    assert found["strategies"][changed[0]] == {"pace": "constant:80"}
    assert found["strategies"][changed[1]] == {"quality_weight": 0, "selector": "dpp"}
    assert one(found, 2, changed[3])["counts"] == {}
    rows = picked(tmp_path, "p3+pace=constant-80", 2)
    values = table(run, 2)["difficulty"].to_numpy()
    assert values[rows].max() <= np.percentile(values, 80)
    assert {it["epoch"] for it in found["selections"]} == {2}


@pytest.mark.parametrize("budget", ["3ktok", "700tok"])
def test_a_budget_in_tokens(run, tmp_path, budget):
    found = p3select.compare(run, budget=budget, epochs=4, epoch=1, out=tmp_path, columns=["source"])
    total = 3_000 if budget == "3ktok" else 700
    for it in found["selections"]:
        if it["strategy"] != "full":
            assert 0.8 * total < it["tokens"] <= total, it["strategy"]
    for name, why in found["left_out"].items():
        assert name in ("static", "ifd", "el2n", "rds"), why
    tokens = table(run, 1)["tokens"].to_numpy()
    longest, left, expected = np.argsort(-tokens, kind="stable"), total, []
    for row in longest:
        if tokens[row] <= left:
            expected.append(row)
            left -= tokens[row]
    assert picked(tmp_path, "longest", 1).tolist() == expected


def test_ifd_needs_the_second_pass(run, data, smollm2, tmp_path):
    with pytest.raises(InputError, match=r"strategy ifd: the rows were scored without --ifd"):
        p3select.compare(run, budget=10, epochs=1, out=tmp_path / "out", strategies=["ifd"])
    with_ifd = scored(data, tmp_path / "run", smollm2, epochs=1, ifd=True)
    found = p3select.compare(with_ifd, budget=10, epochs=1, out=tmp_path / "out")
    assert {*found["left_out"]} == {"static", "el2n", "rds"}
    values = table(with_ifd, 1)
    ratio = np.exp(-values["logprob"] / values["tokens"] + values["alone_logprob"] / values["alone_tokens"]).to_numpy()
    below = np.where(ratio < 1, ratio, -1)
    assert picked(tmp_path / "out", "ifd", 1).tolist() == np.argsort(-below, kind="stable")[:10].tolist()


def test_the_filter_of_ifd_holds_whatever_the_quality(data, smollm2, tmp_path):
    run = scored(data, tmp_path / "run", smollm2, epochs=2, ifd=True)
    values = table(run, 2)
    ratio = np.exp(-values["logprob"] / values["tokens"] + values["alone_logprob"] / values["alone_tokens"]).to_numpy()
    assert 20 < (ratio < 1).sum() < len(ratio)
    options = {"epoch": 2, "epochs": 2, "pace": "constant:100", "difficulty": "ifd", "selector": "ifd"}
    p3select.select(run, budget=10, **options | {"epoch": 1})
    for more in ({"quality_weight": 3.0}, {"fresh": 0.9}, {"quality": "easier"}):
        rows = p3select.select(run, budget=10, overwrite=True, **options, **more).rows
        assert (ratio[rows] < 1).all()
    with pytest.raises(InputError, match="selector 'ifd' goes by the difficulty ifd"):
        p3select.select(run, budget=10, **options | {"difficulty": "p3"})


def test_the_longest_of_each_epoch_s_rows(data, smollm2, tmp_path):
    run = p3select.Run(tmp_path / "run")
    p3select.embed(data, run, FakeEncoder())
    for epoch, limit in ((1, 60), (2, 50)):
        p3select.score(data, run, epoch=epoch, scorer=FakeScorer(tokenizer(smollm2), model=f"m{epoch}"), limit=limit)
    out = tmp_path / "out"
    p3select.compare(run, budget=9, epochs=2, out=out, strategies=["longest", "longest+pace=linear:50:95"])
    for epoch, limit in ((1, 60), (2, 50)):
        tokens = table(run, epoch)["tokens"].to_numpy()
        assert len(tokens) == limit
        assert picked(out, "longest", epoch).tolist() == np.argsort(-tokens, kind="stable")[:9].tolist()


def test_what_goes_by_more_than_p3_is_left_out_of_epochs_scored_in_part(data, smollm2, tmp_path):
    run = scored(data, tmp_path / "run", smollm2, epochs=1)
    p3select.score(data, run, epoch=2, scorer=FakeScorer(tokenizer(smollm2), model="m2"), refresh=0.7)
    found = p3select.compare(run, budget=9, epochs=2, out=tmp_path / "out")
    assert {*found["left_out"]} >= {"nll-high", "nll-middle", "nll-low"}
    assert "epoch 2 was scored in part" in found["left_out"]["nll-high"]
    assert {"p3", "static", "uniform"} <= {*found["strategies"]}
    with pytest.raises(InputError, match="strategy nll-low: epoch 2 was scored in part"):
        p3select.compare(run, budget=9, epochs=2, out=tmp_path / "out", strategies=["nll-low"])


def test_fresh_goes_by_the_same_call_alone(run, tmp_path):
    options = {"epochs": 2, "strategies": ["p3+fresh=1"]}
    p3select.compare(run, budget=60, out=tmp_path / "used", **options)
    for out in ("used", "new"):
        p3select.compare(run, budget=30, epoch=2, out=tmp_path / out, **options)
    rows = [picked(tmp_path / out, "p3+fresh=1", 2).tolist() for out in ("used", "new")]
    assert rows[0] == rows[1]
    assert not set(rows[0]) & set(picked(tmp_path / "new", "p3+fresh=1", 1))


def test_el2n_takes_the_highest(run, data, smollm2, tmp_path):
    with pytest.raises(InputError, match=r"strategy el2n: the rows were scored without --el2n"):
        p3select.compare(run, budget=10, epochs=1, out=tmp_path / "out", strategies=["el2n"])
    with_el2n = scored(data, tmp_path / "run", smollm2, epochs=1, kind=Wrong, el2n=True)
    found = p3select.compare(with_el2n, budget=10, epochs=1, out=tmp_path / "out")
    assert {*found["left_out"]} == {"static", "ifd", "rds"}
    values = table(with_el2n, 1)["el2n"].to_numpy()
    assert picked(tmp_path / "out", "el2n", 1).tolist() == np.argsort(-values, kind="stable")[:10].tolist()
    plan = trainings.Plan(with_el2n, with_el2n.dataset(), tmp_path, {}, [0], {}, {})
    assert trainings._scoring(plan, "el2n")["el2n"] is True
    # What others do not go by is not paid for.
    assert trainings._scoring(plan, None)["el2n"] is False
    # Nor are its seconds those of a pass for the others.
    assert with_el2n.cost("score", 1).is_file()
    assert trainings._first_pass(with_el2n) is None


def test_rds_goes_by_a_query_set(run, data, smollm2, tmp_path):
    options = {"budget": 12, "epochs": 1, "strategies": ["rds"], "out": tmp_path / "out"}
    p3select.compare(run, queries="source=c", **options)
    queries = np.flatnonzero((pl.read_parquet(data)["source"] == "c").to_numpy())
    rows = picked(tmp_path / "out", "rds", 1)
    assert not set(rows) & set(queries)
    vectors = np.load(run.embeddings)
    cosines = vectors[queries] @ vectors.T
    cosines[:, queries] = -2
    assert rows[0] == cosines[0].argmax()
    with pytest.raises(InputError, match="queries: none of these strategies goes by them; name rds"):
        p3select.compare(run, queries="source=c", **options | {"strategies": ["uniform", "longest"]})
    # Rows that somebody leaves out stay out.
    also = {"strategies": [f"rds+exclude=[{rows[0]},{rows[1]}]"], "out": tmp_path / "less"}
    p3select.compare(run, queries="source=c", **options | also)
    less = picked(tmp_path / "less", f"rds+exclude=-{rows[0]},{rows[1]}-", 1)
    assert not set(less) & {*queries, rows[0], rows[1]}
    # The same query set from a run folder of its own.
    pl.read_parquet(data)[queries.tolist()].write_parquet(tmp_path / "queries.parquet")
    p3select.embed(tmp_path / "queries.parquet", tmp_path / "queries", FakeEncoder())
    found = p3select.compare(run, queries=tmp_path / "queries", **options)
    assert set(picked(tmp_path / "out", "rds", 1)[:6]) == set(queries)
    assert "exclude" not in found["strategies"]["rds"]
    p3select.embed(tmp_path / "queries.parquet", tmp_path / "other", FakeEncoder(name="another"))
    for given, error, message in (
        (tmp_path / "other", MismatchError, r"differs in encoder"),
        ("source=z", InputError, "no row has 'z' in column 'source'"),
        ("nowhere", InputError, "no run folder, nor COLUMN=VALUE"),
        (None, InputError, "strategy rds: it needs a query set"),
    ):
        with pytest.raises(error, match=message):
            p3select.compare(run, queries=given, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategies": ["best"]}, "no strategy 'best'; there are p3, pace-only"),
        ({"strategies": ["p3+budget=5"]}, r"'budget=5' should be OPTION=VALUE, with one of scores_of, pace"),
        ({"strategies": ["p3+pace"]}, "'pace' should be OPTION=VALUE"),
        ({"strategies": ["p3+pace=fast"]}, "strategy p3\\+pace=fast, epoch 1: unknown pace 'fast'"),
        ({"strategies": ["static+scores_of=3"]}, "epoch 3 is not scored"),
        ({"strategies": []}, "name some of p3, pace-only"),
        ({"columns": ["topic"]}, "no column 'topic'"),
        ({"epoch": 3}, "not scored yet"),
        ({"discard": True}, "no weights without train"),
        ({"epochs": 0}, "epochs 0"),
        ({"seed": -1}, "seed -1: a whole number from 0"),
        ({"budget": "none"}, "budget 'none'"),
        ({"train": "t {data} {out}"}, "train and evaluate go together"),
        ({"train": "t {data} {out}", "evaluate": "e {model} {out}", "model": "m"}, "to train, name the strategies"),
        ({"train": "t {data}", "evaluate": "e {model} {out}", "strategies": ["p3"]}, r"it needs \{out\}"),
        (
            {"train": "t {data} {out}", "evaluate": "e {model}", "strategies": ["p3"]},
            r"evaluate .*needs \{model\}, and \{out\}",
        ),
        (
            {"train": "t {data} {out}", "evaluate": "e {model} {out} {x}", "strategies": ["p3"]},
            r"evaluate .*no place \{x\}",
        ),
        (
            {"train": "t {data} {out}", "evaluate": "e {model} {out}", "strategies": ["p3"]},
            "scored by an object, which has no name; give the model",
        ),
    ],
)
def test_bad_input_is_refused(run, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        p3select.compare(run, **{"budget": 5, "epochs": 4, "out": tmp_path} | options)


def test_embeddings_are_needed(data, smollm2, tmp_path):
    p3select.score(data, tmp_path / "bare", scorer=FakeScorer(tokenizer(smollm2)))
    with pytest.raises(InputError, match="run 'p3select embed"):
        p3select.compare(tmp_path / "bare", budget=5, epochs=1, out=tmp_path / "out")


def test_a_mean_has_the_interval_of_students_t():
    values = [1.0, 2.0, 4.0]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    found = trainings.mean(values)
    assert found["mean"] - found["half"] == pytest.approx(low)
    assert found["mean"] + found["half"] == pytest.approx(high)
    assert trainings.mean([3.0]) == {"mean": 3.0, "half": None, "values": [3.0]}


def test_on_the_command_line(run, tmp_path, capsys):
    words = ["compare", "--run", run.path, "--epochs", "4", "--budget", "20%", "--out", tmp_path / "out"]
    words += ["--strategies", "p3,uniform", "--columns", "source"]
    cli.main([str(word) for word in words])
    shown = capsys.readouterr()
    assert "epoch 2 of 4, budget 20%\nall 120 rows: " in shown.out
    assert "Δ source" in shown.out
    assert "epoch 1, p3: 24 rows in" in shown.err
    cli.main([str(word) for word in [*words, "--json"]])
    told = json.loads(capsys.readouterr().out)
    del told["seconds"]
    assert told == json.loads((tmp_path / "out" / "compare.json").read_text())
    cli.main([str(word) for word in [*words, "--plot", tmp_path / "compared.png"]])
    assert (tmp_path / "compared.png").stat().st_size > 10_000


TRAIN = """
import json, pathlib, shutil, sys
model, data, out, seed = sys.argv[1:]
out, broken = pathlib.Path(out), pathlib.Path(__file__).with_name("broken.txt")
if broken.exists() and broken.read_text() in str(out):
    sys.exit(3)
old = pathlib.Path(model) / "state.txt"
rows = [json.loads(line)["id"] for line in open(data)]
shutil.copytree(model, out, ignore=shutil.ignore_patterns("*.safetensors"))
(out / "state.txt").write_text((old.read_text() if old.exists() else "") + " ".join([seed, *rows]) + "\\n")
"""

EVALUATE = """
import hashlib, json, pathlib, sys
model, out, wanted = sys.argv[1:]
state = pathlib.Path(model) / "state.txt"
lines = state.read_text().splitlines() if state.exists() else []
values = {"loss": int(hashlib.sha256("".join(lines).encode()).hexdigest()[:6], 16) / 2**24, "epochs": len(lines)}
log = pathlib.Path(__file__).with_name("evaluations.txt")
log.write_text((log.read_text() if log.exists() else "") + model + "\\n")
if wanted == "fail" and lines:
    sys.exit(4)
if wanted == "text":
    values["loss"] = "low"
if wanted != "nothing":
    pathlib.Path(out).write_text(json.dumps(values))
"""


@pytest.fixture
def commands(tmp_path):
    for name, text in (("train.py", TRAIN), ("evaluate.py", EVALUATE)):
        (tmp_path / name).write_text(text)

    def make(wanted="all", also=""):
        return {
            "train": f"{sys.executable} {tmp_path}/train.py {{model}} {{data}} {{out}} {{seed}}{also}",
            "evaluate": f"{sys.executable} {tmp_path}/evaluate.py {{model}} {{out}} {wanted}",
        }

    return make


@pytest.fixture
def base(tmp_path, data, smollm2):
    run = p3select.Run(tmp_path / "base")
    p3select.score(data, run, smollm2, scorer="tests.test_comparison:Trained", limit=40)
    p3select.embed(data, run, FakeEncoder())
    return run


TRAINED = {"budget": 8, "epochs": 2, "strategies": ["p3", "uniform", "static"], "seeds": [0, 5]}
SCORING = {"scorer": "tests.test_comparison:Trained"}


def states(out, strategy, seed):
    return (out / "training" / strategy / f"seed-{seed}" / "loop" / "epoch-002" / "weights" / "state.txt").read_text()


@pytest.mark.slow
def test_trainings_and_their_evaluations(base, smollm2, tmp_path, commands):
    out = tmp_path / "out"
    found = p3select.compare(base, out=out, scoring=SCORING, **commands(), **TRAINED)["trained"]
    assert json.loads((out / "trained.json").read_text()) == found
    assert [it["strategy"] for it in found["strategies"]] == TRAINED["strategies"]
    assert found["before"]["epochs"] == 0
    for it in found["strategies"]:
        losses = [
            int(hashlib.sha256("".join(states(out, it["strategy"], s).splitlines()).encode()).hexdigest()[:6], 16)
            / 2**24
            for s in (0, 5)
        ]
        loss = dict(it["results"]["loss"])
        above = [a - b for a, b in zip(losses, found["strategies"][0]["results"]["loss"]["values"], strict=True)]
        assert loss.pop("difference") == trainings.mean(above)
        assert loss == trainings.mean(losses)
        assert it["results"]["epochs"]["values"] == [2, 2]
        assert it["rows"] == 16
        assert it["seconds_training"] > 0
    # Rows are those of the indexes, and the loop of a strategy is that of p3select loop.
    own = p3select.Run(tmp_path / "own")
    p3select.embed(base.info()["dataset"]["paths"][0], own, FakeEncoder())
    scoring = {**SCORING, "limit": 40}
    p3select.loop(
        base.info()["dataset"]["paths"][0], own, smollm2, epochs=2, budget=8, seed=5, scoring=scoring,
        train=commands()["train"],
    )  # fmt: skip
    assert (own.path / "loop" / "epoch-002" / "weights" / "state.txt").read_text() == states(out, "p3", 5)
    first, second = (line.split()[1:] for line in states(out, "static", 0).splitlines())
    assert first == states(out, "p3", 0).splitlines()[0].split()[1:]
    assert second != states(out, "p3", 0).splitlines()[1].split()[1:]
    # The first epoch's scores are the run's own; of each arm only what the strategy goes by is counted.
    one_, other = (
        pl.read_parquet(run.scores(1) / "*.parquet") for run in (base, p3select.Run(out / "training/p3/seed-0"))
    )
    assert one_.equals(other)
    lengths = pl.read_parquet(base.path / "tokens" / "*" / "*.parquet")["ids"].list.len().sum()
    assert found["tokens_a_pass"] == lengths
    assert [it["passes"] for it in found["strategies"]] == [2, 0, 1]
    scored = {it: len(list(out.glob(f"training/{it}/seed-0/scores/epoch-*"))) for it in TRAINED["strategies"]}
    assert scored == {"p3": 2, "uniform": 1, "static": 1}
    assert [it["tokens_scored"] for it in found["strategies"]] == [2 * lengths, 0, lengths]
    assert found["strategies"][0]["seconds_scoring"] == pytest.approx(2 * found["seconds_a_pass"])
    # Again: nothing is left to do, and the result is the same.
    before = (out / "trained.json").read_bytes(), (tmp_path / "evaluations.txt").read_text()
    p3select.compare(base, out=out, scoring=SCORING, **commands(), **TRAINED)
    assert ((out / "trained.json").read_bytes(), (tmp_path / "evaluations.txt").read_text()) == before
    assert found["targets_a_pass"] == one_["tokens"].sum()
    # What is refused replaces nothing.
    compared = (out / "compare.json").read_bytes()
    with pytest.raises(P3Error, match=r"p3.seed-0: made otherwise \(differs in train\)"):
        p3select.compare(base, out=out, scoring=SCORING, **commands(also=" "), **TRAINED)
    with pytest.raises(P3Error, match=r"p3.seed-0: made otherwise \(differs in budget\)"):
        p3select.compare(base, out=out, scoring=SCORING, **commands(), **(TRAINED | {"budget": 9}))
    with pytest.raises(InputError, match="refresh: strategies are compared on scores of all rows"):
        p3select.compare(base, out=out, scoring={**SCORING, "refresh": "50%"}, **commands(), **TRAINED)
    assert (out / "compare.json").read_bytes() == compared
    for changed in ({"budget": 9}, {"train": None, "evaluate": None, "budget": 9}):
        with pytest.raises(P3Error, match=r"has trainings of another comparison \(differs in budget\)"):
            p3select.compare(base, out=out, **(commands() | TRAINED | {"strategies": ["longest"]} | changed))
    learned = json.loads((out / "trained.json").read_text())
    (out / "trained.json").write_text(json.dumps(learned | {"dataset_fingerprint": "another"}))
    with pytest.raises(P3Error, match=r"differs in dataset_fingerprint"):
        p3select.compare(base, out=out, **{key: TRAINED[key] for key in ("budget", "epochs")})
    (out / "trained.json").write_text("[]")
    with pytest.raises(InputError, match=r"trained.json: damaged \(no JSON object\)"):
        p3select.compare(base, out=out, **{key: TRAINED[key] for key in ("budget", "epochs")})
    (out / "trained.json").write_bytes(before[0])
    # Without trainings what was learned stays beside the same selections.
    p3select.compare(base, out=out, **{key: TRAINED[key] for key in ("budget", "epochs", "strategies")})
    assert ((out / "trained.json").read_bytes(), (out / "compare.json").read_bytes()) == (before[0], compared)
    # Nor is a training of other selections taken for one of these.
    p3select.embed(base.info()["dataset"]["paths"][0], base, FakeEncoder(), text="both", overwrite=True)
    with pytest.raises(P3Error, match=r"p3.seed-0: made otherwise \(differs in embeddings\)"):
        p3select.compare(base, out=out, scoring=SCORING, **commands(), **TRAINED)
    with pytest.raises(P3Error, match=r"has trainings of another comparison \(differs in embeddings_fingerprint\)"):
        p3select.compare(base, out=out, **{key: TRAINED[key] for key in ("budget", "epochs", "strategies")})


@pytest.mark.slow
def test_what_failed_is_said_and_what_was_done_stays(base, tmp_path, commands, capsys):
    out = tmp_path / "out"
    options = {
        "out": out,
        "scoring": SCORING,
        "budget": 8,
        "epochs": 2,
        "strategies": ["uniform", "full"],
        "seeds": [1],
    }
    with pytest.raises(
        P3Error, match=r"strategy uniform, seed 1: the evaluation ended with 4: .*what is trained stays"
    ):
        p3select.compare(base, **options, **commands(wanted="fail"))
    marks = {path: path.stat().st_mtime_ns for path in out.glob("training/*/seed-*/loop/epoch-*/done.json")}
    assert len(marks) == 2
    with pytest.raises(InputError, match="'loss' is no finite number"):
        p3select.compare(base, **options, **commands(wanted="text"))
    with pytest.raises(InputError, match="no object of numbers; the evaluation has to write such as"):
        p3select.compare(base, **options, **(commands() | {"evaluate": "echo loss of {model} > {out}"}))
    with pytest.raises(InputError, match=r"evaluation.json: not there, after the command"):
        p3select.compare(base, **options, **commands(wanted="nothing"))
    found = p3select.compare(base, **options, **commands())["trained"]
    assert {path: path.stat().st_mtime_ns for path in marks} == marks
    assert [it["results"]["loss"]["half"] for it in found["strategies"]] == [None, None]
    assert found["strategies"][1]["rows"] == 80
    words = ["--budget", 8, "--epochs", 2, "--strategies", "uniform,full", "--seeds", 1, "--scorer", SCORING["scorer"]]
    words += ["--train", commands()["train"], "--eval", commands()["evaluate"], "--run", base.path, "--out", out]
    cli.main([str(word) for word in ["compare", *words]])
    assert "trained for 2 epochs, seeds 1" in capsys.readouterr().out
    only = options | {"strategies": ["p3"]}
    (tmp_path / "broken.txt").write_text("p3/seed-1/loop/epoch-002")
    with pytest.raises(P3Error, match=r"strategy p3, seed 1: epoch 2: the command ended with 3"):
        p3select.compare(base, **only, **commands())
    mark = out / "training/p3/seed-1/loop/epoch-001/done.json"
    trained = mark.stat().st_mtime_ns
    (tmp_path / "broken.txt").unlink()
    found = p3select.compare(base, **only, **commands())["trained"]
    assert found["strategies"][0]["results"]["epochs"]["values"] == [2]
    assert mark.stat().st_mtime_ns == trained
    p3select.compare(base, **only, **commands(), discard=True)
    assert not list(out.glob("training/p3/seed-1/loop/epoch-*/weights"))
    assert len(list(out.glob("training/uniform/seed-1/loop/epoch-*/weights"))) == 2
    assert p3select.compare(base, **only, **commands(), discard=True)["trained"] == found
    with pytest.raises(P3Error, match="weights: discarded, and evaluated by another command"):
        p3select.compare(base, **only, **commands(wanted="other"))
    with pytest.raises(InputError, match="each once"):
        p3select.compare(base, **options | {"seeds": [1, 1]}, **commands())
