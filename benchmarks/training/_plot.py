"""What strategies learned, drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def draw(trained: Mapping[str, Any], file: Path) -> None:
    """Each number of the evaluation, by strategy: seeds, mean and 95 % interval, and the model before.

    Args:
        trained: What :func:`p3select.compare` tells of trainings.
        file: A PNG.
    """
    ones, names = trained["strategies"], list(trained["before"])
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        drawing = Figure(figsize=(5.2 * len(names), 1.4 + 0.42 * len(ones)), layout="constrained")
        panels = drawing.subplots(1, len(names), squeeze=False, sharey=True)[0]
        for panel, name in zip(panels, names, strict=True):
            for place, one in enumerate(ones):
                found = one["results"][name]
                panel.plot(found["values"], [place] * len(found["values"]), "o", color="#9fb3cf", markersize=5)
                panel.errorbar(found["mean"], place, xerr=found["half"], fmt="D", color="#d1495b", capsize=3)
            panel.axvline(trained["before"][name], color="#22313f", linewidth=1, linestyle=":")
            panel.set_title(f"{name} on rows held out (dotted: before training)", loc="left", fontsize=10)
        panels[0].set_yticks(range(len(ones)), [one["strategy"] for one in ones])
        panels[0].invert_yaxis()
        drawing.savefig(file, dpi=130)
