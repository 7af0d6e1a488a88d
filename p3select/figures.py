"""Figures of a run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import pyarrow.compute as pc
from matplotlib.figure import Figure

from p3select import index, scores
from p3select.errors import InputError
from p3select.validation import named

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from p3select.run import Run

BINS = 40
# Of a line.
PANELS = 5
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    # Names come from the data: dollars in them enclose no formula.
    "text.parse_math": False,
}
COMPARED = {
    "difficulty": "mean difficulty",
    "length": "mean length, tokens",
    "cells": "share of cells hit",
    "distance": "distance to the nearest",
}
"""What is drawn of each strategy's selection; dotted lines are all rows, or the model before training."""
OTHERS, ALL, CHOSEN, THRESHOLD = "#e3e6ea", "#9fb3cf", "#d1495b", "#22313f"


def figure(run: Run, out: Path) -> None:
    """Draw, for each epoch with an index, the difficulties of all rows, λ and the selected rows, as a PNG.

    Args:
        run: The run folder.
        out: The image file; its ending gives the format (png, svg, pdf).

    Raises:
        InputError: No epoch has an index.
    """
    epochs = [int(path.stem.removeprefix("epoch-")) for path in sorted((run.path / "index").glob("epoch-*.parquet"))]
    if not epochs:
        raise InputError(f"{run.path}: no index to draw; run 'p3select select' first")
    with mpl.rc_context(STYLE):
        drawing = Figure(figsize=(9, 0.6 + 2.6 * len(epochs)), layout="constrained")
        panels = drawing.subplots(len(epochs), 1, sharex=True, squeeze=False)[:, 0]
        values = [
            scores.read(run, epoch, ["difficulty"]).column("difficulty").drop_null().to_numpy() for epoch in epochs
        ]
        guessed = [
            pc.sum(pc.equal(scores.read(run, epoch, ["status"]).column("status"), scores.PREDICTED)).as_py()
            for epoch in epochs
        ]
        edges = np.histogram_bin_edges(np.concatenate(values), BINS)
        for panel, epoch, difficulty, predicted in zip(panels, epochs, values, guessed, strict=True):
            selection = index.read(run.index(epoch))
            lam = selection.metadata["lam"]
            # A bin ends at λ: what is not eligible is on its right, and nothing else.
            eligible = difficulty[difficulty <= lam]
            cut = np.unique([*edges[edges < lam], lam, *edges[edges > lam]])
            panel.hist(
                difficulty[difficulty > lam], cut, color=OTHERS, label=f"{len(difficulty) - len(eligible):,} above λ"
            )
            panel.hist(np.minimum(eligible, np.nextafter(lam, -1)), cut, color=ALL, label=f"{len(eligible):,} eligible")
            chosen = np.minimum(selection.difficulty, np.nextafter(lam, -1))
            panel.hist(chosen, cut, color=CHOSEN, label=f"{len(selection):,} selected")
            panel.axvline(lam, color=THRESHOLD, linewidth=1.5, linestyle="--")
            panel.annotate(
                f" λ = {lam:.3f} (percentile {selection.metadata['percentile']:g})",
                (lam, 1.0),
                xycoords=("data", "axes fraction"),
                va="top",
                color=THRESHOLD,
            )
            part = f", {predicted:,} rows predicted" if predicted else ""
            panel.set_title(f"epoch {epoch} of {selection.metadata['epochs']}{part}", loc="left", fontweight="bold")
            panel.set_ylabel("rows")
            panel.yaxis.get_major_locator().set_params(integer=True)
            panel.legend(loc="upper left", frameon=False)
        panels[-1].set_xlabel(
            "difficulty under the policy that enters the epoch (p3: 1 − mean probability of an action)"
        )
        out.parent.mkdir(parents=True, exist_ok=True)
        drawing.savefig(out, dpi=150)


def validation(found: Mapping[str, Any], out: Path) -> None:
    """Draw what :func:`p3select.validate` found: agreement with its intervals; means by level, else how rows spread.

    Args:
        found: Its result.
        out: The image file; its ending gives the format (png, svg, pdf).
    """
    agreement = found.get("agreement", [])
    lines = math.ceil(len(found["spread"]) / PANELS)
    columns = math.ceil(len(found["spread"]) / lines)
    widths = [6.3] * bool(agreement) + [3.6] * columns
    height = 1.6 + max(0.3 * len(agreement), 3.0 * lines - 0.8)
    with mpl.rc_context(STYLE):
        drawing = Figure(figsize=(sum(widths), height), layout="constrained")
        grid = drawing.add_gridspec(lines, len(widths), width_ratios=widths)
        cells = [(number // columns, number % columns + bool(agreement)) for number in range(len(found["spread"]))]
        panels = [drawing.add_subplot(grid[cell]) for cell in cells]
        title = f"{found['rows']:,} rows, epoch {found['epoch']}"
        if "p3" in found["spread"]:
            title += f", actions: {found['scores']['actions']}"
        drawing.suptitle(title if found["against"] is None else f"{found['against']}, {title}", fontweight="bold")
        if agreement:
            _agreement(drawing.add_subplot(grid[:, 0]), agreement)
        for panel, measure in zip(panels, found["spread"], strict=True):
            unit = " in tokens" if measure == "length" else ""
            if "levels" not in found:
                spread = found["spread"][measure]
                panel.stairs(spread["counts"], spread["edges"], fill=True, color=ALL)
                panel.axvline(spread["quantiles"][2], color=THRESHOLD, linewidth=1)
                panel.set_title(f"{measure}{unit}: rows, median", loc="left")
                continue
            levels = [*dict.fromkeys(one["level"] for one in found["levels"])]
            groups = [*dict.fromkeys(one["group"] for one in found["levels"])]
            for number, group in enumerate(groups):
                ones = [one for one in found["levels"] if one["group"] == group]
                places = [levels.index(one["level"]) + 0.6 * number / len(groups) for one in ones]
                mean, low, high = np.array([one[measure] for one in ones], np.float64).T
                # The colours of the groups are Matplotlib's own, one after the other.
                color = None if number else CHOSEN
                panel.errorbar(
                    places, mean, _arms(mean, low, high), fmt="o", color=color, label=named(group), capsize=3
                )
            if len(groups) > 1 and panel is panels[columns - 1]:
                panel.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
            panel.set_xticks(range(len(levels)), [f"{one:g}" if found["ordered"] else one for one in levels])
            panel.set_xlabel(found["against"])
            panel.set_title(f"mean {measure}{unit}", loc="left")
        out.parent.mkdir(parents=True, exist_ok=True)
        drawing.savefig(out, dpi=150)


def comparison(found: Mapping[str, Any], out: Path) -> None:
    """Draw what :func:`p3select.compare` found: what selections are like, the rows they share, what was learned.

    Args:
        found: Its result; of several epochs the last one is drawn.
        out: The image file; its ending gives the format (png, svg, pdf).
    """
    everything, shared = found["all"][-1], np.array(found["jaccard"][-1]["values"])
    ones = [one for one in found["selections"] if one["epoch"] == everything["epoch"]]
    learned = found["trained"]["before"] if "trained" in found else {}
    names = [one["strategy"] for one in ones]
    widths = [2.6] * len(COMPARED) + [1.4 + 0.4 * len(ones)] + [3.4] * len(learned)
    with mpl.rc_context(STYLE):
        drawing = Figure(figsize=(1.8 + sum(widths), 1.9 + 0.36 * len(ones)), layout="constrained")
        panels = drawing.subplots(1, len(widths), squeeze=False, sharey=True, width_ratios=widths)[0]
        drawing.suptitle(
            f"epoch {everything['epoch']} of {found['epochs']}, {found['budget']} of {everything['rows']:,} rows",
            fontweight="bold",
        )
        for panel, (key, title) in zip(panels, COMPARED.items(), strict=False):
            panel.barh(names, [one.get(key, np.nan) for one in ones], color=ALL, height=0.6)
            if key in everything:
                panel.axvline(everything[key], color=THRESHOLD, linewidth=1, linestyle=":")
            panel.set_title(title, loc="left", fontsize=10)
        panel = panels[len(COMPARED)]
        # It also lets the first row be on top, in all panels.
        panel.imshow(shared, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
        for (a, b), value in np.ndenumerate(shared):
            panel.text(b, a, f"{100 * value:.0f}", ha="center", va="center", color="white" if value > 0.6 else "black")
        panel.set_xticks(range(len(names)), names, rotation=90)
        panel.set_title("rows in common, %", loc="left", fontsize=10)
        for panel, (key, before) in zip(panels[len(COMPARED) + 1 :], learned.items(), strict=True):
            for place, one in enumerate(found["trained"]["strategies"]):
                result = one["results"][key]
                panel.plot(result["values"], [place] * len(result["values"]), "o", color=ALL, markersize=4)
                panel.errorbar(result["mean"], place, xerr=result["half"], fmt="D", color=CHOSEN, capsize=3)
            # Where it was before training is often so far off that the strategies would lie on each other.
            low, high = panel.get_xlim()
            if low <= before <= high:
                panel.axvline(before, color=THRESHOLD, linewidth=1, linestyle=":")
            panel.set_title(f"{key}: seeds, mean, 95 % (before: {before:.4g})", loc="left", fontsize=10)
        out.parent.mkdir(parents=True, exist_ok=True)
        drawing.savefig(out, dpi=150)


def _agreement(panel: Any, entries: Sequence[Mapping[str, Any]]) -> None:
    """Both correlations of every group and measure, a line each, and what is left of ρ given length."""
    several = len({one["group"] for one in entries}) > 1
    names = [f"{named(one['group'])}: {one['measure']}" if several else one["measure"] for one in entries]
    for key, color, shift, label in (
        ("spearman", CHOSEN, -0.22, "Spearman's ρ"),
        ("kendall", ALL, 0.0, "Kendall's τ"),
        ("given_length", THRESHOLD, 0.22, "ρ given length"),
    ):
        lines = [(place, one[key]) for place, one in enumerate(entries) if key in one]
        if lines:
            places = np.array([place for place, _ in lines]) + shift
            value, low, high = np.array([found for _, found in lines], np.float64).T
            arms = _arms(value, low, high)
            panel.errorbar(value, places, xerr=arms, fmt="o", color=color, label=label, capsize=3)
    panel.axvline(0.0, color=ALL, linewidth=1)
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(len(names) - 0.5, -0.5)
    panel.set_title("agreement, with 95 % intervals", loc="left")
    panel.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3)


def _arms(value: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far intervals reach below and above; of few resamples one may end short of the value."""
    return np.maximum([value - low, high - value], 0.0)
