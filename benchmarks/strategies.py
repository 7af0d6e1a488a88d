"""What strategies select of 7,500 rows of MATH, at an equal budget: p3select.compare on real scores, and its time.

The rows are scored with SmolLM2-135M-Instruct, with ``--el2n``, and embedded with MiniLM; ``rds`` goes by the test
split of Counting & Probability. Each strategy selects a fifth of the rows, and then of the completion tokens, for epoch
1 of 5. A killed run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import p3select
from benchmarks import _folders
from benchmarks._folders import ROOT
from benchmarks._machine import machine
from p3select import figures

SHARE = 5
EPOCHS = 5
COLUMNS = ("subject", "level")


def main(arguments: list[str]) -> None:
    """Score, embed, compare; write ``results/strategies-math.json`` and ``.png``.

    Args:
        arguments: See ``--help``.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks strategies", description=__doc__.partition("\n")[0])
    _folders.data(parser)
    _folders.model(parser)
    _folders.encoder(parser)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "strategies-math.json")
    options = parser.parse_args(arguments)
    data, run = options.data / "math_train.parquet", p3select.Run(options.runs / "math")
    scored = p3select.score(
        data, run, options.model, scorer="transformers", el2n=True, shard_rows=256, show_progress=True
    )
    embedded = p3select.embed(data, run, options.encoder, show_progress=True)
    queries = options.runs / "math-cp-test"
    p3select.embed(options.data / "math_cp_test.parquet", queries, options.encoder)
    found: dict[str, Any] = {
        "benchmark": "strategies",
        "data": data.name,
        "machine": machine(),
        "scorer": scored["scorer"],
        "near_duplicates": embedded["near_duplicates"],
        "compared": [],
    }
    for budget in (f"{100 // SHARE}%", f"{scored['scored_tokens'] // SHARE // 1_000}ktok"):
        start = time.monotonic()
        one = p3select.compare(
            run,
            budget=budget,
            epochs=EPOCHS,
            epoch=1,
            out=options.runs / f"compared-{budget}",
            columns=COLUMNS,
            queries=queries,
            show_progress=True,
        )
        found["compared"].append(one | {"queries": queries.name, "took": time.monotonic() - start})
    figures.comparison(found["compared"][0], options.out.with_suffix(".png"))
    options.out.write_text(json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
