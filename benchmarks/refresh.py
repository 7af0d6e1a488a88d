"""Partial re-scoring on runs that were scored whole: what it predicts, beside what was measured, at some costs.

Nothing is scored; see :mod:`p3select.tradeoff`. Printed for each epoch and share of the tokens, as the mean over draws
and runs: Spearman's ρ with the difficulties of the full re-score, over all rows and over those that are predicted; the
Jaccard index of the eligible rows; the error, and the one that is claimed. Beside them: a share of 0, which is to go on
with the scores of the last epoch that was scored whole.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks._machine import machine
from p3select import __version__
from p3select.run import Lent, Run
from p3select.tradeoff import averaged, tradeoff

GOALS = {"spearman": 0.97, "jaccard": 0.90}
GOAL_SHARE = 0.25


def main(arguments: list[str]) -> None:
    """Measure, print a table, write JSON and a figure.

    Args:
        arguments: See ``--help``.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks refresh", description=__doc__.partition("\n")[0])
    parser.add_argument("runs", type=Path, nargs="+", help="run folders with epochs that were scored whole")
    parser.add_argument("--embeddings", type=Path, help="the run folder that has theirs, as of trainings by compare")
    parser.add_argument("--shares", default="10%,25%,50%", help="of the tokens")
    parser.add_argument("--seeds", type=int, default=10, help="draws in each run")
    parser.add_argument("--pace", help="where no index tells it, or instead of it")
    parser.add_argument("--epochs", type=int, help="T of --pace, which goes with it")
    parser.add_argument("--out", type=Path, help="a .json file; the figure goes beside it as .png")
    options = parser.parse_args(arguments)
    found = [
        tradeoff(
            Run(run) if options.embeddings is None else Lent(run, Run(options.embeddings), scored=False),
            shares=options.shares.split(","),
            seeds=options.seeds,
            pace=options.pace,
            epochs=options.epochs,
        )
        for run in options.runs
    ]
    means = averaged([one for run in found for one in run["cases"]])
    print(
        f"{len(found)} run{'s' * (len(found) > 1)} of {found[0]['rows']:,} rows, {found[0]['epochs']} epochs, shares "
        f"of {found[0]['cost']}, {'with' if found[0]['embedded'] else 'no'} embeddings, mean of {options.seeds} draws"
    )
    names = ("spearman", "spearman_predicted", "jaccard", "rmse", "claimed")
    for whole in sorted({one["whole"] for one in means}):
        print(f"scored whole up to epoch {whole}; share 0%: its scores again")
        print("epoch  share  ρ      ρ predicted  Jaccard  error   claimed  draws")
        for one in means:
            if one["whole"] == whole:
                values = [f"{_shown(one[name]):{width}}" for name, width in zip(names, (5, 11, 7, 6, 7), strict=True)]
                line = f"{one['epoch']:5}  {one['share']:5.0%}  {'  '.join(values)}  {one['draws']:5}"
                print(f"{line}  {one.get('failed', '')}".rstrip())
    for name, goal in GOALS.items():
        reached = [(one["whole"], one["epoch"], one[name]) for one in means if one["share"] == GOAL_SHARE]
        shown = ", ".join(f"{epoch} after {whole} {_shown(value)}" for whole, epoch, value in reached)
        print(f"goal at {GOAL_SHARE:.0%}: {name} ≥ {goal}: {f'epoch {shown}' if shown else 'not measured'}")
    if options.out:
        about = {"version": __version__, "machine": machine(), "seeds": options.seeds}
        runs = [{"run": "/".join(run.parts[-2:]), **one} for run, one in zip(options.runs, found, strict=True)]
        for one in runs:
            del one["cases"]
        options.out.write_text(json.dumps({**about, "results": means, "runs": runs}, indent=1) + "\n")
        draw(means, options.out.with_suffix(".png"))


def draw(means: list[dict[str, Any]], file: Path) -> None:
    """Draw what is reached against the share of the tokens.

    Args:
        means: As :func:`p3select.tradeoff.averaged` gives them.
        file: An image.
    """
    figure = Figure(figsize=(9, 4), layout="constrained")
    labels = {"spearman": "Spearman's ρ with the full re-score", "jaccard": "Jaccard index of the eligible rows"}
    lines = sorted({(one["whole"], one["epoch"]) for one in means})
    for panel, (name, goal) in zip(figure.subplots(1, 2), GOALS.items(), strict=True):
        for whole, epoch in lines:
            ones = [one for one in means if (one["whole"], one["epoch"]) == (whole, epoch) and one[name] is not None]
            if not ones:
                continue
            x, y = [one["share"] * 100 for one in ones], np.array([one[name] for one in ones])
            low, high = np.array([one[f"{name}_range"] for one in ones]).reshape(-1, 2).T
            arms = np.maximum([y - low, high - y], 0)
            style = {"linestyle": ("-", "--", ":", "-.")[(epoch - whole - 1) % 4], "color": f"C{epoch - 2}"}
            label = f"epoch {epoch}, whole up to {whole}"
            panel.errorbar(x, y, arms, marker="o", capsize=3, label=label, **style)
        panel.axhline(goal, color="#22313f", linestyle="--", linewidth=1, label=f"goal at {GOAL_SHARE:.0%}: {goal}")
        panel.set(xlabel="scored tokens, %", title=labels[name])
        panel.grid(alpha=0.4)
    panel.legend(frameon=False, fontsize=8)
    figure.savefig(file, dpi=110)


def _shown(value: float | None) -> str:
    return "–    " if value is None else f"{value:.3f}"
