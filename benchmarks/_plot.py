"""What picking costs, drawn against the number of rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.ticker import FuncFormatter, NullFormatter

if TYPE_CHECKING:
    from pathlib import Path

HIGHLIGHTED = {"dpp": "#c1121f", "dpp-local": "#e85d04", "dpp-local-wide": "#f4a300"}
OTHERS = ["#1f77b4", "#2ca02c", "#9467bd", "#8c564b", "#17becf", "#555555", "#e377c2", "#8c9a00", "#000000"]
MARKS = "osD^vP*X<>hd8p"
LEFT_OUT = ("top", "random")


def costs(cases: list[dict[str, Any]], file: Path) -> None:
    """Wall seconds and memory against n, of the input and k with the most sizes.

    Args:
        cases: As ``benchmarks.dpp.case`` returns them.
        file: A PNG.
    """
    series: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for found in cases:
        series.setdefault((found["input"], found["k"]), []).append(found)
    (name, k), chosen = max(series.items(), key=lambda item: len(item[1]))
    chosen.sort(key=lambda found: found["n"])
    peers = [peer for peer in chosen[0]["methods"] if peer not in LEFT_OUT]
    figure, panels = pyplot.subplots(1, 2, figsize=(12, 5.2), constrained_layout=True)
    for panel, key, label in zip(panels, ("wall", "peak_gb"), ("wall seconds", "peak memory, GB"), strict=True):
        colours = iter(OTHERS)
        for peer, mark in zip(peers, MARKS, strict=False):
            done = [case for case in chosen if "failed" not in case["methods"][peer]]
            points = [(case["n"], case["methods"][peer][key]) for case in done]
            if points:
                ours = peer in HIGHLIGHTED
                colour = HIGHLIGHTED[peer] if ours else next(colours)
                panel.plot(
                    *zip(*points, strict=True),
                    marker=mark,
                    label=peer,
                    color=colour,
                    linewidth=2.6 if ours else 1.3,
                    zorder=3 if ours else 2,
                )
        panel.set(xscale="log", yscale="log", xlabel="rows n", ylabel=label)
        panel.set_xticks([case["n"] for case in chosen], [f"{case['n']:,}" for case in chosen])
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.grid(which="major", alpha=0.4)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    figure.suptitle(f"Picking {k:,} of n rows ({name}, d = {chosen[0]['d']}); a line ends where a method failed")
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
