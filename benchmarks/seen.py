"""Log-probabilities that a trainer computes anyway: could they stand for a re-score of the rows just trained on?

They are of the weights before the row's step, so of as many policies as an epoch has steps. Of trainings by
``python -m benchmarks training`` (train.py writes what it sees): the difficulty p3 by them, beside the one before the
epoch and the one of the full re-score after it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

import p3select
from benchmarks._machine import machine
from p3select import scores
from p3select.run import Run


def main(arguments: list[str]) -> None:
    """Compare, print a table, write JSON.

    Args:
        arguments: See ``--help``.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks seen", description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, help="run folder of a training, scored whole in each epoch")
    parser.add_argument("--out", type=Path, help="a .json file")
    options = parser.parse_args(arguments)
    run = Run(options.run)
    epochs: list[dict[str, Any]] = []
    while run.scores(len(epochs) + 2).is_dir():
        epochs.append(compared(run, len(epochs) + 1))
    print("epoch  rows  ρ with the re-score: seen, before  in its second half  seen − re-score: first step, last step")
    for one in epochs:
        print(
            f"{one['epoch']:5}  {len(one['rows']):4}  {one['seen']:24.3f}, {one['before']:.3f}   "
            f"{one['seen late']:.3f}, {one['before late']:.3f}        {one['bias'][0]:.3f}, {one['bias'][-1]:.3f}"
        )
    if options.out:
        about = {"version": p3select.__version__, "machine": machine(), "run": "/".join(options.run.parts[-2:])}
        options.out.write_text(json.dumps({**about, "epochs": epochs}, indent=1) + "\n")


def compared(run: Run, epoch: int) -> dict[str, Any]:
    """Of the rows trained on in an epoch.

    Returns:
        ``rows``: of each ``id``, ``step``, and the difficulties ``seen``, ``before`` and ``after``; Spearman's ρ with
        ``after`` of ``seen`` and ``before``, over all and (``late``) over the second half of the steps; ``bias``,
        the mean of seen − after by step.
    """
    before, after = (
        pl.from_arrow(scores.read(run, one, ["id", "difficulty", "action_tokens"])) for one in (epoch, epoch + 1)
    )
    assert isinstance(before, pl.DataFrame)
    assert isinstance(after, pl.DataFrame)
    seen = json.loads((run.path / "loop" / f"epoch-{epoch:03d}" / "seen.json").read_text())
    place = {name: row for row, name in enumerate(before["id"])}
    rows = []
    for one in seen:
        row = place[one["id"]]
        cut = before["action_tokens"][row].to_numpy()
        if cut.sum() != len(one["logprobs"]):
            raise SystemExit(f"{one['id']}: {len(one['logprobs'])} targets are trained on, {cut.sum()} scored")
        sums = np.add.reduceat(np.array(one["logprobs"]), np.cumsum(cut) - cut)
        values = {"seen": p3select.difficulty([np.minimum(sums, 0.0)], [cut])[0]}
        values |= {"before": before["difficulty"][row], "after": after["difficulty"][row]}
        rows.append({"id": one["id"], "step": one["step"], **{name: float(value) for name, value in values.items()}})
    known = {name: np.array([one[name] for one in rows]) for name in ("step", "seen", "before", "after")}
    late = known["step"] > known["step"].max() / 2
    return {
        "epoch": epoch,
        **{
            name + what: float(stats.spearmanr(known[name][some], known["after"][some]).statistic)
            for name in ("seen", "before")
            for what, some in (("", slice(None)), (" late", late))
        },
        "bias": [
            float((known["seen"] - known["after"])[known["step"] == step].mean()) for step in np.unique(known["step"])
        ],
        "rows": rows,
    }
