import json
import os
import signal
import socket
import subprocess
import sys

import polars as pl
import pytest

import p3select
from p3select.run import Run, write_whole

KILLED = """
import os, signal, sys
from pathlib import Path
from p3select.run import write_whole

def write(path):
    path.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)

write_whole(Path(sys.argv[1]), write)
"""


@pytest.fixture
def rows(tmp_path):
    pl.DataFrame({"prompt": ["a", "b"], "completion": ["1", "2"]}).write_parquet(tmp_path / "rows.parquet")
    return p3select.dataset.load(tmp_path / "rows.parquet")


def test_a_file_is_written_whole_under_a_name_of_machine_and_process(tmp_path, monkeypatch):
    names = []

    def write(path):
        names.append(path.name)
        path.write_text("whole")

    for host in ("one", "two.example"):
        monkeypatch.setattr(socket, "gethostname", lambda host=host: host)
        write_whole(tmp_path / "a" / "file.json", write)
    assert names == [f".file.json.{host}.{os.getpid()}.tmp" for host in ("one", "two.example")]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["file.json"]
    with pytest.raises(RuntimeError, match="disk"):
        write_whole(tmp_path / "a" / "file.json", lambda path: [path.write_text("half"), _fail()])
    assert [path.read_text() for path in (tmp_path / "a").iterdir()] == ["whole"]


def _fail():
    raise RuntimeError("disk")


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path, rows):
    run = Run(tmp_path / "run")
    ended = subprocess.run([sys.executable, "-c", KILLED, run.scores(1) / "part-000000000.parquet"], check=False)
    assert ended.returncode == -signal.SIGKILL
    (left,) = run.scores(1).iterdir()
    host, process = socket.gethostname(), left.name.split(".")[-2]
    other = [
        f".part-1.parquet.{host}.{os.getpid()}.tmp",  # being written
        f".part-1.parquet.{host}.1.tmp",  # another user's, mostly
        f".part-1.parquet.x{host}.{process}.tmp",  # another machine's
        f".part-1.parquet.{process}.tmp",
        f"part-1.parquet.{host}.{process}.tmp",
    ]
    for name in other:
        (run.scores(1) / name).write_text("half")
    run.bind(rows)
    assert left.exists()  # of today: another container may have this machine's name
    for file in run.scores(1).iterdir():
        os.utime(file, (0, 0))
    run.bind(rows)
    assert not left.exists()
    assert sorted(path.name for path in run.scores(1).iterdir()) == sorted(other)
    assert run.info()["dataset"]["rows"] == 2


@pytest.mark.parametrize("left", ["{", "{}", '{"seconds": null}', ""])
def test_what_a_step_took_never_fails_it(tmp_path, left):
    run = p3select.Run(tmp_path)
    run.spend("score", 1, 2.0)
    run.spend("score", 1, 3.0)
    assert json.loads(run.cost("score", 1).read_text()) == {"seconds": 5.0}
    run.cost("score", 1).write_text(left)
    run.spend("score", 1, 4.0)
    assert run.cost("score", 1).read_text() == left
