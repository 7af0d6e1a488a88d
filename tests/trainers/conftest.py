"""What was shown for which trainer: ``@pytest.mark.cell("axolotl", "2 processes")`` and ``pytest --cells FILE``.

A run with ``--cells`` is one of all tests of a trainer: what it does not show is no longer said of it, as code and
tests may have changed since.
"""

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import polars as pl
import pytest

PACKAGES = ("p3select", "torch", "transformers", "accelerate", "datasets")
# The worst result of a cell's tests is the cell's.
RESULTS = ("passed", "skipped", "failed")


def pytest_addoption(parser):
    parser.addoption("--cells", metavar="FILE", type=Path, help="write what was shown per trainer and cell, as JSON")


def pytest_configure(config):
    config.addinivalue_line("markers", "cell(trainer, cell): the cell of the table in docs/trainers.md that it shows")
    file = config.getoption("cells", None)
    some = config.option.keyword or config.option.markexpr or config.option.maxfail
    if file is not None and (some or any("::" in one for one in config.args)):
        raise pytest.UsageError("--cells: for all tests of a trainer; leave -k, -m, -x, --maxfail and :: out")
    config.pluginmanager.register(Cells(file))


def pytest_collection_modifyitems(items):
    for item in items:
        for mark in item.iter_markers("cell"):
            item.user_properties.append(("cell", list(mark.args)))


class Cells:
    def __init__(self, file):
        self.file, self.found = file, {}

    def pytest_runtest_logreport(self, report):
        if report.when != "call" and report.passed:
            return
        for name, value in report.user_properties:
            if name == "cell":
                trainer, cell = value
                cells = self.found.setdefault(trainer, {})
                cells[cell] = max(report.outcome, cells.get(cell, "passed"), key=RESULTS.index)

    def pytest_sessionfinish(self, session, exitstatus):
        ended = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
        if self.file is None or not ended or hasattr(session.config, "workerinput"):
            return
        whole = json.loads(self.file.read_text()) if self.file.exists() else {}
        for trainer, cells in self.found.items():
            versions = {"python": platform.python_version(), **installed({*PACKAGES, trainer})}
            whole[trainer] = {"versions": versions, "cells": dict(sorted(cells.items()))}
        self.file.write_text(json.dumps(dict(sorted(whole.items())), indent=2) + "\n")


def installed(names):
    found = {}
    for name in sorted(names):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@pytest.fixture(scope="session")
def data(gsm8k, tmp_path_factory):
    """The shortest rows of GSM8K."""
    from tests.trainers.tiny import ROWS

    path = tmp_path_factory.mktemp("data") / "rows.parquet"
    table = pl.read_parquet(gsm8k)
    length = table["prompt"].str.len_chars() + table["completion"].str.len_chars()
    table[length.arg_sort()[:ROWS].sort()].write_parquet(path)
    return path


@pytest.fixture(scope="session")
def tokenizer(smollm2, data):
    """SmolLM2's, with a vocabulary learned from the rows: most of a tiny model's time is its vocabulary."""
    from transformers import AutoTokenizer

    from tests.trainers.tiny import VOCABULARY

    table = pl.read_parquet(data)
    whole = AutoTokenizer.from_pretrained(smollm2)
    return whole.train_new_from_iterator([*table["prompt"], *table["completion"]], VOCABULARY)
