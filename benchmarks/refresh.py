"""Partial re-scoring on a run that was scored whole: what it predicts, beside what was measured, at some costs.

Nothing is scored. The second epoch and later ones are hidden, and rows are measured by looking their stored difficulty
up; a later epoch goes on from what was predicted for the one before, as a training would. Printed for each epoch and
share of the tokens, as the mean over seeds: Spearman's ρ with the difficulties of the full re-score, over all rows and
over those that are predicted; the Jaccard index of the eligible rows; the error, and the one that is claimed. Beside
them: a share of 0, which is to go on with the first epoch's scores.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
from matplotlib.figure import Figure
from scipy import stats

from benchmarks._machine import machine
from p3select import __version__, embeddings, index, paces, refreshing, scores, shards, tokenised
from p3select.errors import InputError
from p3select.run import Run

if TYPE_CHECKING:
    from numpy.typing import NDArray

GOALS = {"spearman": 0.97, "jaccard": 0.90}
GOAL_SHARE = 0.25


def main(arguments: list[str]) -> None:
    """Measure, print a table, write JSON and a figure.

    Args:
        arguments: See ``--help``.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks refresh", description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, help="a run folder with two or more epochs that were scored whole")
    parser.add_argument("--shares", default="10%,25%,50%", help="of the tokens")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--pace", help="where no index tells it, or instead of it")
    parser.add_argument("--epochs", type=int, help="with --pace; as many as there are, if it is left out")
    parser.add_argument("--out", type=Path, help="a .json file; the figure goes beside it as .png")
    options = parser.parse_args(arguments)
    run, epoch = Run(options.run), 1
    tables = []
    while run.scores(epoch).is_dir():
        if "refresh" in scores.settings(run, epoch):
            raise SystemExit(f"{run.scores(epoch)}: was itself predicted in part; give a run that was scored whole")
        tables.append(scores.read(run, epoch, ["difficulty"]))
        epoch += 1
    if len(tables) < 2:
        raise SystemExit(f"{run.path}: {len(tables)} epochs are scored, and two are needed")
    sizes, cost = lengths(run)
    cases = [
        case(run, tables, sizes, refreshing.fraction(share), seed, options.pace, options.epochs or len(tables))
        for share in options.shares.split(",")
        for seed in range(options.seeds)
    ]
    means = averaged([one for case_ in cases for one in case_])
    print(
        f"{run.path.name}: {tables[0].num_rows:,} rows, {len(tables)} epochs, shares of {cost}, "
        f"mean of {options.seeds} seeds"
    )
    print("epoch  share  ρ      ρ predicted  Jaccard  error   claimed")
    for one in means:
        names = ("spearman", "spearman_predicted", "jaccard", "rmse", "claimed")
        values = [f"{_shown(one[name]):{width}}" for name, width in zip(names, (5, 11, 7, 6, 7), strict=True)]
        print(f"{one['epoch']:5}  {one['share']:5.0%}  {'  '.join(values)}  {one.get('failed', '')}".rstrip())
    for name, goal in GOALS.items():
        reached = [one[name] for one in means if one["share"] == GOAL_SHARE]
        print(f"goal at {GOAL_SHARE:.0%}: {name} ≥ {goal}: {', '.join(map(_shown, reached)) or 'not measured'}")
    if options.out:
        found = {"version": __version__, "machine": machine(), "run": run.path.name, "rows": tables[0].num_rows}
        options.out.write_text(
            json.dumps({**found, "cost": cost, "seeds": options.seeds, "results": means}, indent=2) + "\n"
        )
        draw(means, options.out.with_suffix(".png"))


def lengths(run: Run) -> tuple[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]], str]:
    """Tokens, scored tokens and actions of each row (n,), and which tokens count as cost.

    Those of whole rows, where the run folder still has its tokens; else the scored ones.
    """
    settings, table = scores.settings(run, 1), scores.read(run, 1, ["tokens", "action_tokens"])
    parts = shards.ranges(table.num_rows, settings["shard_rows"])
    own = {name: settings[name] for name in tokenised.SETTINGS} | {"form": tokenised.FORM}
    for folder in (run.path / "tokens").glob("*"):
        known = shards.manifest(folder)
        if known is not None and known["settings"] == own and not shards.missing(folder, parts):
            return tokenised.sizes(folder, parts), "tokens"
    scored = table.column("tokens").to_numpy().astype(np.int64)
    actions = pc.fill_null(pc.list_value_length(table.column("action_tokens")), 0).to_numpy().astype(np.int64)
    return (scored, scored, actions), "scored tokens (the tokens of whole rows are gone)"


def case(
    run: Run,
    tables: list[Any],
    sizes: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
    share: float,
    seed: int,
    pace: str | None,
    epochs: int,
) -> list[dict[str, Any]]:
    """Refresh one epoch after the other.

    Args:
        run: The run folder.
        tables: The difficulties of its epochs.
        sizes: As :func:`lengths` gives them.
        share: Of the tokens.
        seed: Of the draw.
        pace: The schedule of the threshold; None for the indices' own.
        epochs: With a pace.

    Returns:
        For each epoch from 2: epoch, share, and the measures; ``failed`` where there are too few rows.
    """
    vectors = embeddings.read(run)[0] if run.embeddings.is_file() else None
    first = tables[0].column("difficulty").to_numpy()
    # What would be known of the last epochs, and in which epoch each row was measured.
    chain, measured = [first], np.ones(len(first), np.int64)
    found: list[dict[str, Any]] = []
    for epoch in range(2, len(tables) + 1):
        past, _ = refreshing.past(run, epoch, tables[epoch - 2 :: -1][:2])
        before = chain[-2] if epoch > 2 else past.before
        percentile = past.percentile if pace is None else paces.pace(epoch, max(epochs, epoch), pace)
        if percentile is None and run.index(epoch).is_file():
            percentile = index.read(run.index(epoch)).metadata["percentile"]
        past = past._replace(difficulty=chain[-1], before=before, measured=measured, percentile=percentile)
        now = tables[epoch - 1].column("difficulty").to_numpy()
        found.append({"epoch": epoch, "share": 0.0, **measures(first, now, np.isfinite(now), percentile)})
        try:
            got = refreshing.refreshed(past, epoch, sizes, vectors, share, seed, partial(_looked_up, now))
        except InputError as error:
            return [*found, {"epoch": epoch, "share": share, "failed": str(error)}]
        guessed = np.isfinite(got.error)
        measured = np.where(guessed, measured, epoch)
        claimed = float(np.sqrt(np.mean(got.error[guessed] ** 2)))
        about = {
            "claimed": claimed,
            "held_back_rmse": got.about["held_back_rmse"],
            "tokens": got.about["share_of_tokens"],
        }
        found.append({"epoch": epoch, "share": share, **measures(got.difficulty, now, guessed, percentile), **about})
        chain.append(got.difficulty)
    return found


def _looked_up(now: NDArray[np.float64], _: str, rows: NDArray[np.bool_]) -> NDArray[np.float64]:
    """In a scorer's place."""
    return np.where(rows, now, np.nan)


def measures(
    found: NDArray[np.float64], now: NDArray[np.float64], guessed: NDArray[np.bool_], percentile: float | None
) -> dict[str, float | None]:
    """How near difficulties are to those of the full re-score.

    Args:
        found: (n,) NaN for rows without a score.
        now: (n,) of the full re-score.
        guessed: (n,) rows that were not measured.
        percentile: Of the threshold; None where it is not known.
    """
    scored = np.isfinite(now)
    jaccard = None
    if percentile is not None:
        one, other = (values[scored] <= np.percentile(values[scored], percentile) for values in (found, now))
        jaccard = float((one & other).sum() / (one | other).sum())
    return {
        "spearman": float(stats.spearmanr(found[scored], now[scored]).statistic),
        "spearman_predicted": float(stats.spearmanr(found[guessed], now[guessed]).statistic),
        "jaccard": jaccard,
        "rmse": float(np.sqrt(np.mean((found - now)[guessed] ** 2))),
    }


def averaged(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The means over seeds of what :func:`case` gave, and the spread of the two goals' measures."""
    found = []
    for epoch, share in sorted({(one["epoch"], one["share"]) for one in cases}):
        ones = [one for one in cases if (one["epoch"], one["share"]) == (epoch, share)]
        mean: dict[str, Any] = {"epoch": epoch, "share": share}
        if failed := [one["failed"] for one in ones if "failed" in one]:
            mean["failed"] = failed[0]
        for name in ("spearman", "spearman_predicted", "jaccard", "rmse", "claimed", "held_back_rmse", "tokens"):
            values = [one[name] for one in ones if one.get(name) is not None]
            mean[name] = float(np.mean(values)) if values else None
            if name in GOALS and values:
                mean[f"{name}_range"] = [min(values), max(values)]
        found.append(mean)
    return found


def draw(means: list[dict[str, Any]], file: Path) -> None:
    """Draw what is reached against the share of the tokens.

    Args:
        means: As :func:`averaged` gives them.
        file: An image.
    """
    figure = Figure(figsize=(9, 4), layout="constrained")
    labels = {"spearman": "Spearman's ρ with the full re-score", "jaccard": "Jaccard index of the eligible rows"}
    for panel, (name, goal) in zip(figure.subplots(1, 2), GOALS.items(), strict=True):
        for epoch in sorted({one["epoch"] for one in means}):
            ones = [one for one in means if one["epoch"] == epoch and one[name] is not None]
            x, y = [one["share"] * 100 for one in ones], np.array([one[name] for one in ones])
            low, high = np.array([one[f"{name}_range"] for one in ones]).reshape(-1, 2).T
            panel.errorbar(x, y, np.maximum([y - low, high - y], 0), marker="o", capsize=3, label=f"epoch {epoch}")
        panel.axhline(goal, color="#22313f", linestyle="--", linewidth=1, label=f"goal at {GOAL_SHARE:.0%}: {goal}")
        panel.set(xlabel="scored tokens, % (0: the first epoch's scores)", title=labels[name])
        panel.grid(alpha=0.4)
        panel.legend(frameon=False)
    figure.savefig(file, dpi=110)


def _shown(value: float | None) -> str:
    return "–    " if value is None else f"{value:.3f}"
