"""Figures of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from p3select import index, scores
from p3select.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from p3select.run import Run

BINS = 40
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
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        drawing = Figure(figsize=(9, 0.6 + 2.6 * len(epochs)), layout="constrained")
        panels = drawing.subplots(len(epochs), 1, sharex=True, squeeze=False)[:, 0]
        values = [
            scores.read(run, epoch, ["difficulty"]).column("difficulty").drop_null().to_numpy() for epoch in epochs
        ]
        edges = np.histogram_bin_edges(np.concatenate(values), BINS)
        for panel, epoch, difficulty in zip(panels, epochs, values, strict=True):
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
            panel.set_title(f"epoch {epoch} of {selection.metadata['epochs']}", loc="left", fontweight="bold")
            panel.set_ylabel("rows")
            panel.yaxis.get_major_locator().set_params(integer=True)
            panel.legend(loc="upper left", frameon=False)
        panels[-1].set_xlabel(
            "difficulty under the policy that enters the epoch (p3: 1 − mean probability of an action)"
        )
        out.parent.mkdir(parents=True, exist_ok=True)
        drawing.savefig(out, dpi=150)
