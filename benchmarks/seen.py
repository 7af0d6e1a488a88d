"""Log-probabilities that a trainer computes anyway: could they stand for a re-score of the rows just trained on?

They are of the weights before the row's step, so of as many policies as an epoch has steps. Of a training by
``python -m benchmarks training`` (train.py writes what it sees): the difficulty p3 by them, beside the one before the
epoch and the one of the full re-score after it; and how well a partial re-scoring predicts with them and without.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import polars as pl
from scipy import stats
from scipy.special import logit

import p3select
from benchmarks._machine import machine
from p3select import refreshing, scores
from p3select.run import Run
from p3select.tradeoff import tradeoff

if TYPE_CHECKING:
    from p3select.refreshing import Past


def main(arguments: list[str]) -> None:
    """Compare, print a table, write JSON.

    Args:
        arguments: See ``--help``.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks seen", description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, help="run folder of a training, scored whole in each epoch")
    parser.add_argument("--shares", default="25%,50%", help="of the tokens, for predicting")
    parser.add_argument("--seeds", type=int, default=20, help="draws of the rows to score")
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
    predicting = predicted(run, epochs, options.shares.split(","), options.seeds)
    for one in predicting:
        print(
            f"epoch {one['epoch']} of {one['share']:.0%} of the tokens: ρ {one['without']:.3f} without what was seen, "
            f"{one['with']:.3f} with it"
        )
    if options.out:
        about: dict[str, Any] = {"version": p3select.__version__, "machine": machine()}
        about |= {"run": "/".join(options.run.parts[-2:])}
        about |= {"seeds": options.seeds, "epochs": epochs, "predicting": predicting}
        options.out.write_text(json.dumps(about, indent=1) + "\n")


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


def predicted(run: Run, epochs: list[dict[str, Any]], shares: list[str], seeds: int) -> list[dict[str, Any]]:
    """Spearman's ρ with the full re-score, ``without`` and ``with`` the values of :func:`compared` as predictors.

    By ``epoch`` after one that was scored whole, and ``share`` of the tokens; the mean over draws.
    """
    place = {name: row for row, name in enumerate(scores.read(run, 1, ["id"]).column("id").to_pylist())}
    seen = {}
    for one in epochs:
        values = np.full((2, len(place)), np.nan)
        for row in one["rows"]:
            values[:, place[row["id"]]] = row["seen"], row["step"]
        seen[one["epoch"] + 1] = values
    plain = refreshing._predictors

    def also(known: Past, epoch: int, rows: Any, *others: Any) -> Any:
        values, step = seen[epoch][:, rows]
        there = np.isfinite(values)
        change = np.where(there, logit(np.where(there, values, 0.5)) - logit(known.difficulty[rows]), 0.0)
        late = np.where(there, step / np.nanmax(step), 0.0)
        return np.column_stack([plain(known, epoch, rows, *others), change, change * late, late])

    means: dict[tuple[int, float], dict[str, float]] = {}
    for name, predictors in (("without", plain), ("with", also)):
        # An ablation, and no option: nobody should choose it.
        with mock.patch.object(refreshing, "_predictors", predictors):
            for one in tradeoff(run, shares=shares, seeds=seeds)["results"]:
                if one["share"] and one["epoch"] == one["whole"] + 1:
                    means.setdefault((one["epoch"], one["share"]), {})[name] = one["spearman"]
    return [{"epoch": epoch, "share": share, **found} for (epoch, share), found in means.items()]
