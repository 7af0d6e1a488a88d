"""The table in docs/trainers.md says what one whole run of a trainer's tests has shown, and nothing else."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = """
import pytest

cell = pytest.mark.cell

@cell("trl", "shown")
@cell("trl", "shown in part")
def test_passes():
    pass

@cell("trl", "shown in part")
def test_fails():
    assert False

@cell("trl", "not run")
def test_is_skipped():
    pytest.skip("no")
"""


@pytest.mark.slow
def test_cells_are_those_of_one_whole_run(tmp_path):
    (tmp_path / "test_trl.py").write_text(TESTS)
    file = tmp_path / "cells.json"

    def run(*arguments):
        call = [sys.executable, "-m", "pytest", "-p", "tests.trainers.conftest", "-p", "no:cacheprovider"]
        call += ["--rootdir", str(tmp_path), "--cells", str(file), *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    done = run("test_trl.py")
    assert done.returncode == 1, done.stdout + done.stderr
    first = json.loads(file.read_text())
    shown = {"not run": "skipped", "shown": "passed", "shown in part": "failed"}
    assert first["trl"]["cells"] == shown
    # A cell that no test shows any more goes, though all versions are the same; other trainers' stay.
    first["trl"]["cells"] |= {"of a test that is gone": "passed", "not run": "passed"}
    first["axolotl"] = {"versions": {}, "cells": {"shuffle": "passed"}}
    file.write_text(json.dumps(first))
    run("test_trl.py")
    after = json.loads(file.read_text())
    assert after == first | {"trl": first["trl"] | {"cells": shown}}
    # What is no whole run says nothing.
    for some in (["-k", "passes"], ["-m", "cell"], ["-x"], ["test_trl.py::test_passes"]):
        done = run(*some)
        assert done.returncode == pytest.ExitCode.USAGE_ERROR
        assert "--cells: for all tests of a trainer" in done.stderr
    (tmp_path / "test_trl.py").write_text(f"{TESTS}\ndef test_is_ended():\n    raise KeyboardInterrupt\n")
    assert run("test_trl.py").returncode == pytest.ExitCode.INTERRUPTED
    assert json.loads(file.read_text()) == after


def test_what_tests_on_cpus_need_is_said(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("make_trainers", ROOT / "docs" / "make_trainers.py")
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    cell = "2 processes, resume in the middle of an epoch"
    results = {"trl": "passed", "axolotl": "passed", "llamafactory": "skipped"}
    monkeypatch.setattr(maker, "RESULTS", tmp_path / "results.json")
    maker.RESULTS.write_text(
        json.dumps({name: {"versions": {}, "cells": {cell: result}} for name, result in results.items()})
    )
    assert f"| {cell} | yes | yes¹ | not run |" in maker.table()
    assert "¹ " in maker.table().partition("Shown with")[2]
