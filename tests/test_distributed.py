"""The same work on Ray as here: equal files, whatever dies meanwhile. A real Ray of this machine's own."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

import p3select
from p3select import distributed, shards, tokenised
from p3select.errors import InputError, MismatchError, P3Error
from tests.test_scores import files

ray = pytest.importorskip("ray")
ROOT = str(Path(__file__).parents[1])
SCORER = "tests.fakes:Unlucky"
# Ray's own warnings, and sockets that it leaves to the garbage collector.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def cluster():
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": ROOT, "HF_HUB_OFFLINE": "1"}},
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def data(tmp_path_factory, gsm8k):
    """64 rows in row groups of 10, so that shards and groups do not fall together."""
    path = tmp_path_factory.mktemp("data") / "rows.parquet"
    pl.read_parquet(gsm8k)[:64].write_parquet(path, row_group_size=10)
    return path


@pytest.fixture(scope="module")
def here(tmp_path_factory, data, smollm2):
    run = p3select.Run(tmp_path_factory.mktemp("here") / "run")
    p3select.score(data, run, smollm2, scorer=SCORER, shard_rows=8)
    return files(run.path)


def on_ray(data, run, model, **options):
    return p3select.score(data, run, model, scorer=SCORER, shard_rows=8, engine="ray", **options)


def lengths(run):
    """Tokens of each row."""
    folder = next((run.path / "tokens").iterdir())
    rows = [tokenised.read(folder, part)[0] for part in shards.ranges(64, 8)]
    return [len(row.ids) for part in rows for row in part]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_same_files_with_any_number_of_workers(cluster, tmp_path, data, here, smollm2, workers):
    summary = on_ray(data, tmp_path / "run", smollm2, workers=workers)
    assert summary["rows"] == 64
    assert files(tmp_path / "run") == here


def test_a_worker_that_is_killed_is_replaced(cluster, tmp_path, data, here, smollm2):
    marker = tmp_path / "died"
    on_ray(data, tmp_path / "run", smollm2, workers=2, options={"once": str(marker)})
    assert marker.exists()
    assert files(tmp_path / "run") == here


def test_a_row_that_kills_every_worker_ends_the_run_and_loses_nothing(cluster, tmp_path, data, here, smollm2):
    run = p3select.Run(tmp_path / "run")
    whole = p3select.Run(tmp_path / "whole")
    p3select.score(data, whole, smollm2, scorer=SCORER, shard_rows=8)
    deadly = lengths(whole)[40]
    with pytest.raises(P3Error, match="a worker died 3 times"):
        on_ray(data, run, smollm2, workers=1, options={"deadly": deadly})
    first = lengths(whole).index(deadly) // 8
    done = sorted(path.name for path in run.scores(1).glob("part-*.parquet"))
    assert done == [f"part-{8 * number:09d}.parquet" for number in range(first)]
    assert on_ray(data, run, smollm2, workers=1)["reused"] == 8 * first
    assert files(run.path) == here


def test_what_a_worker_refuses_is_said_in_one_line(cluster, tmp_path, data, smollm2, here):
    run = p3select.Run(tmp_path / "run")
    p3select.score(data, run, smollm2, scorer=SCORER, shard_rows=8)
    refused = lengths(run)[20]
    with pytest.raises(InputError, match=r"rows \d+ to \d+ of the dataset: row \d+: not this one"):
        on_ray(data, tmp_path / "other", smollm2, workers=2, options={"refused": refused})
    with pytest.raises(InputError, match="no-model"):
        p3select.score(data, tmp_path / "third", "no-model", scorer="transformers", engine="ray")
    with pytest.raises(InputError, match="3 workers of a core at least: the cluster has 0 GPUs and 2 cores"):
        on_ray(data, tmp_path / "third", smollm2, workers=3)
    with pytest.raises(InputError, match="1 GPUs a worker: give a part of one or a whole number; the cluster has 0"):
        on_ray(data, tmp_path / "third", smollm2, gpus=1)


def test_a_fault_in_a_worker_is_said_in_one_line(cluster, tmp_path, data, smollm2):
    for fault, message in (
        ("in score", r"score of rows 0 to 7: RuntimeError: out of memory \(.*fakes.py, line \d+\)"),
        ("in init", r"RuntimeError: no driver \(.*fakes.py"),
    ):
        # Not what a user can mend.
        with pytest.raises(RuntimeError, match=message) as raised:
            on_ray(data, tmp_path / "run", smollm2, options={"fault": fault})
        assert "\n" not in str(raised.value)
    assert not list((tmp_path / "run").glob("scores/*/part-*"))


def test_an_engine_that_fails_is_started_again(cluster, tmp_path, data, here, smollm2, capsys):
    marker = tmp_path / "failed"
    on_ray(data, tmp_path / "run", smollm2, workers=2, options={"fault": "engine", "once": str(marker)})
    assert "the engine stopped; the worker is started again" in capsys.readouterr().err
    assert files(tmp_path / "run") == here


def test_a_worker_that_comes_back_with_other_weights_is_refused(cluster, tmp_path, data, smollm2):
    version, run = tmp_path / "version", p3select.Run(tmp_path / "run")
    version.write_text("weights")
    options = {"version": str(version), "once": str(tmp_path / "died")}
    with pytest.raises(MismatchError, match=r"the workers differ in model \(weights, other weights\)"):
        on_ray(data, run, smollm2, workers=1, options=options)
    assert not list(run.scores(1).glob("part-*"))


def test_workers_may_have_different_notes(cluster, tmp_path, data, smollm2):
    version = tmp_path / "version"
    version.write_text("weights")
    summary = on_ray(data, tmp_path / "run", smollm2, workers=2, options={"version": str(version)})
    assert len([note for note in summary["notes"] if note.startswith("process ")]) == 2


def test_rows_that_change_meanwhile_are_noticed(tmp_path, data):
    source = p3select.dataset.load(data).source(15, 25, here=False)
    assert source.read().rows() == p3select.dataset.load(data).rows(15, 25)
    other = tmp_path / "other.parquet"
    pl.read_parquet(data).reverse().write_parquet(other)
    with pytest.raises(p3select.MismatchError, match="rows 15 to 24 are not those"):
        p3select.dataset.Slice((str(other),), source.columns, source.schema, 15, 25, source.fingerprint).read()


def test_a_real_model_and_a_real_encoder(cluster, tmp_path, data, smollm2, minilm):
    local, distributed = p3select.Run(tmp_path / "local"), p3select.Run(tmp_path / "ray")
    options = {"limit": 12, "shard_rows": 4, "scorer": "transformers", "el2n": True}
    p3select.score(data, local, smollm2, **options)
    p3select.embed(data, local, minilm)
    p3select.score(data, distributed, smollm2, engine="ray", workers=2, **options)
    p3select.embed(data, distributed, minilm, engine="ray", workers=2)
    assert files(local.path) == files(distributed.path)


def test_a_killed_driver_goes_on_with_what_is_missing(tmp_path, data, here, smollm2):
    run = p3select.Run(tmp_path / "run")
    code = (
        "import sys, p3select; p3select.score(*sys.argv[1:4], scorer=sys.argv[4], engine='ray', workers=2, "
        "shard_rows=8, options={'delay': 1.5})"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(data), str(run.path), str(smollm2), SCORER],
        env={**os.environ, "PYTHONPATH": ROOT},
        start_new_session=True,
    )
    deadline = time.monotonic() + 240
    while len(list(run.path.glob("scores/*/part-*.parquet"))) < 2:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(1)  # for workers that still have their shard in hand
    done = len(list(run.path.glob("scores/*/part-*.parquet")))
    assert done < 8
    assert p3select.score(data, run, smollm2, scorer=SCORER, shard_rows=8)["reused"] >= 8 * done
    assert {name: data for name, data in files(run.path).items() if not name.endswith(".tmp")} == here
    # What is left of the Ray that the driver had started.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("workers", "nodes", "cores"),
    [(1, [2, 2], 2), (2, [2, 2], 2), (3, [2, 2], 1), (2, [2, 4], 2), (1, [2, 4], 4), (5, [2, 2], None), (3, [8], 2)],
)
def test_a_worker_has_its_cores_on_one_machine(workers, nodes, cores):
    assert distributed.cores_of_each(workers, nodes) == cores


def test_a_cluster_of_two_machines(tmp_path, data, here, smollm2):
    """Two Ray nodes of unequal size, in a process of their own; a worker fits on one of them."""
    code = (
        "import sys, p3select\n"
        "from ray.cluster_utils import Cluster\n"
        "nodes = Cluster(initialize_head=True, head_node_args={'num_cpus': 2, 'include_dashboard': False})\n"
        "nodes.add_node(num_cpus=1)\n"
        "for run, workers in ((sys.argv[2], None), (sys.argv[5], 3)):\n"
        "    p3select.score(sys.argv[1], run, sys.argv[3], scorer=sys.argv[4], engine='ray', workers=workers,"
        " shard_rows=8, address=nodes.address)\n"
        "nodes.shutdown()\n"
    )
    one, two = tmp_path / "one", tmp_path / "two"
    arguments = [sys.executable, "-c", code, str(data), str(one), str(smollm2), SCORER, str(two)]
    environment = {**os.environ, "PYTHONPATH": ROOT}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert files(one) == files(two) == here


@pytest.mark.parametrize(("held", "each", "workers"), [(2, 0.4, 4), (2, 0.6, 2), (8, 1, 8), (8, 3, 2), (1, 2, 0)])
def test_workers_of_a_gpu(held, each, workers):
    assert distributed._workers_on(held, each) == workers


def test_gpus_and_relative_paths(tmp_path, data, here, smollm2):
    """GPUs that Ray is told of and that are not there, and fewer cores than workers; workers stand elsewhere."""
    code = (
        "import os, sys, ray, p3select\n"
        "environment = {'env_vars': {'PYTHONPATH': sys.argv[4]}}\n"
        "ray.init(address='local', include_dashboard=False, num_cpus=1, num_gpus=2, runtime_env=environment)\n"
        "os.chdir(sys.argv[1])\n"
        "for gpus in (1.5, 3):\n"
        "    try:\n"
        "        p3select.score('rows.parquet', 'run', 'model', scorer=sys.argv[3], engine='ray', gpus=gpus)\n"
        "    except p3select.InputError as error:\n"
        "        print(error)\n"
        "p3select.score('rows.parquet', 'run', 'model', scorer=sys.argv[3], engine='ray', shard_rows=8)\n"
    )
    (tmp_path / "rows.parquet").symlink_to(data)
    (tmp_path / "model").symlink_to(smollm2.resolve())
    arguments = [sys.executable, "-c", code, str(tmp_path), str(smollm2), SCORER, ROOT]
    environment = {**os.environ, "PYTHONPATH": ROOT}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "1.5 GPUs a worker: give a part of one or a whole number" in done.stdout
    assert "3 GPUs a worker" in done.stdout
    scored = {name: content for name, content in files(tmp_path / "run").items() if name.endswith(".parquet")}
    assert scored == {name: content for name, content in here.items() if name.endswith(".parquet")}


def test_an_address_where_nothing_answers_is_refused_at_once(tmp_path, data, smollm2, monkeypatch):
    ray.shutdown()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    start = time.monotonic()
    refused = f"no Ray cluster at '127.0.0.1:{port}': nothing answers at .*'ray start --head'"
    with pytest.raises(InputError, match=refused):
        on_ray(data, tmp_path / "run", smollm2, address=f"127.0.0.1:{port}")
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    with pytest.raises(InputError, match=r"\(RAY_ADDRESS\): nothing answers"):
        on_ray(data, tmp_path / "run", smollm2)
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    with pytest.raises(InputError, match=r"at 'nonsense' \(RAY_ADDRESS\): Invalid address format"):
        on_ray(data, tmp_path / "run", smollm2)
    assert time.monotonic() - start < 30


def test_a_part_is_scored_and_the_rest_predicted_as_here(tmp_path, cluster, data, smollm2):
    (tmp_path / "version").write_text("first")
    runs = {"local": p3select.Run(tmp_path / "local"), "ray": p3select.Run(tmp_path / "ray")}
    for engine, run in runs.items():
        options = {"scorer": SCORER, "shard_rows": 8, "engine": engine, "options": {"version": tmp_path / "version"}}
        if engine == "ray":
            options["workers"] = 2
        p3select.score(data, run, smollm2, **options)
        p3select.select(run, epoch=1, epochs=2, budget=8, selector="topk")
        (tmp_path / "version").write_text("second")
        summary = p3select.score(data, run, smollm2, epoch=2, refresh="80%", **options)
        (tmp_path / "version").write_text("first")
        assert summary["parts"]["near"] > 0
        assert summary["parts"]["predicted"] > 0
    assert files(runs["ray"].path) == files(runs["local"].path)
