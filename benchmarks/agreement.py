"""Does the difficulty agree with ground truths? p3select.validate on mathematics, code, inference and dialogue.

Rows are drawn by rule from a seed, in equal parts of what is named (subject and level, say), scored token by token with
SmolLM2-135M-Instruct and once more without their prompts, so that every difficulty and action rule comes of one run
folder per data set. A killed run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import p3select
from benchmarks import _folders
from benchmarks._folders import ROOT
from benchmarks._machine import machine
from p3select import figures

RULES = ("line", "sentence", "token", "whole")
SETS: dict[str, dict[str, Any]] = {
    "math": {"file": "math_train", "rows": 1_505, "parts": ["subject", "level"], "by": "subject"},
    "math-cp": {"file": "math_cp_train"},
    "apps": {"file": "apps_train150"},
    "mnli": {"file": "mnli_devm_bert100", "rows": 2_001, "parts": ["subject"], "by": "subject"},
    "mnli-chat": {"file": "mnli_devm_bert100", "rows": 2_001, "parts": ["subject"], "by": "subject", "chat": True},
    "gsm8k": {"file": "gsm8k_train", "rows": 750, "parts": []},
    "dialogue": {"file": "gpteacher_roleplay", "rows": 500, "parts": []},
}
"""Per data set: its file, how many rows, in equal parts of which columns, the groups looked at one by one, and whether
a row is a question and an answer in the model's own chat format in place of the plain texts, one after the other."""


def main(arguments: list[str]) -> None:
    """Draw, score, validate; write ``results/agreement/``: for each set NAME.json and two drawings.

    Args:
        arguments: See ``--help``.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks agreement", description=__doc__.partition("\n")[0])
    _folders.data(parser)
    parser.add_argument("--sets", default=",".join(SETS))
    _folders.model(parser)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "agreement")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.sets.split(","):
        about = SETS[name]
        run = p3select.Run(options.runs / name)
        rows = drawn(pl.read_parquet(options.data / f"{about['file']}.parquet"), about.get("rows"), about.get("parts"))
        data = options.runs / f"{name}.parquet"
        if not data.is_file():
            options.runs.mkdir(parents=True, exist_ok=True)
            (chats(rows) if about.get("chat") else rows).write_parquet(data)
        before = machine()
        scored = p3select.score(
            data,
            run,
            options.model,
            scorer="transformers",
            actions="token",
            ifd=True,
            shard_rows=64,
            show_progress=True,
        )
        found: dict[str, Any] = {
            "data": f"{about['file']}.parquet",
            "drawn": {"rows": rows.height, "in equal parts of": about.get("parts"), "seed": 0},
            "machine": before,
            "status": scored["status"],
        }
        against = "level" if rows["level"].null_count() < rows.height else None
        # One drawing of both would have 60 lines.
        for part, options_of in (
            ("difficulties", {"difficulty": ("nll", "ifd"), "actions": ("line",), "by": about.get("by")}),
            ("rules", {"difficulty": (), "actions": RULES}),
        ):
            one = p3select.validate(run, against=against, tokenizer=options.model, **options_of)
            found[part] = one | {"run": name, "policy": Path(options.model).name}
            figures.validation(found[part], options.out / f"{name}-{part}.png")
        (options.out / f"{name}.json").write_text(
            json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        )


def chats(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows as conversations of two turns."""
    turns = [
        pl.struct(pl.lit(role).alias("role"), pl.col(column).alias("content"))
        for role, column in (("user", "prompt"), ("assistant", "completion"))
    ]
    return rows.with_columns(pl.concat_list(turns).alias("messages")).drop("prompt", "completion")


def drawn(table: pl.DataFrame, rows: int | None, parts: list[str] | None) -> pl.DataFrame:
    """Rows with a level (where the file has levels): all, or as many of each part, in the file's order."""
    if table["level"].null_count() < table.height:
        table = table.filter(pl.col("level").is_not_null())
    if rows is None:
        return table
    order = table.with_row_index("place").with_columns(
        pl.Series("draw", np.random.default_rng(0).permutation(table.height))
    )
    if parts:
        # Rounds over the parts: each gives its next row; one that has none left is passed over.
        order = order.with_columns(pl.col("draw").rank("ordinal").over(parts).alias("round"))
        order = order.sort("round", "draw")
    else:
        order = order.sort("draw")
    return order.head(rows).sort("place").select(table.columns)
