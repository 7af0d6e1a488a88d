"""What ``dpp`` and ``dpp-local`` are to reach, measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Case = dict[str, Any]

INPUT = "near-duplicates"


def goals(measure: Callable[[str, int, int, Sequence[str]], Case], inputs: Sequence[str]) -> list[dict[str, Any]]:
    """Measure all.

    Args:
        measure: (input, n, k, methods) → the case, as ``benchmarks.dpp.case``.
        inputs: All that there are, for the goal that holds on each.

    Returns:
        One entry for each goal: work, goal, reached (text), met.
    """
    found: list[dict[str, Any]] = []

    def add(work: str, goal: str, reached: str, met: bool) -> None:
        found.append({"work": work, "goal": goal, "reached": reached, "met": met})

    def timed(work: str, of: Case, peer: str, most: float) -> None:
        figures = of["methods"][peer]
        reached = figures.get("failed") or f"{figures['wall']:.2f} s, {figures['peak_gb']:.2f} GB"
        add(work, f"≤ {most:g} s", reached, figures.get("wall", most + 1) <= most)

    small = measure(INPUT, 10_000, 1_000, ["dpp", "dpp-local", "plain-64", "fast-map", "hemmi", "submodlib", "random"])
    for peer, least in (("fast-map", 15), ("hemmi", 13), ("submodlib", 60)):
        add(
            f"10K rows, k = 1K, dpp against {peer}{' (ours, not the C++)' if peer == 'hemmi' else ''}",
            f"≥ {least} ×",
            *_against(small, peer, least),
        )
    _identical(add, "10K, 1K", small)
    middle = measure(INPUT, 100_000, 1_000, ["dpp", "dpp-local", "plain", "plain-64", "random"])
    add("100K, 1K, dpp against plain", "≥ 12 ×", *_against(middle, "plain", 12))
    _identical(add, "100K, 1K", middle)
    large = measure(INPUT, 100_000, 10_000, ["dpp", "dpp-local", "dpp-local-wide", "random"])
    timed("100K, 10K, dpp", large, "dpp", 30)
    for peer, most, share in (("dpp-local", 4, 0.01), ("dpp-local-wide", 10, 0.003)):
        timed(f"100K, 10K, {peer}", large, peer, most)
        lost = large["methods"][peer].get("lost")
        add(
            f"100K, 10K, {peer}, lost",
            f"≤ {share:.1%}",
            "no figure" if lost is None else f"{lost:.2%}",
            _most(lost, share),
        )
    million = measure(INPUT, 1_000_000, 10_000, ["dpp-local"])
    timed("1M, 10K, dpp-local", million, "dpp-local", 15)
    embeddings = 4e-9 * million["n"] * million["d"]
    peak = million["methods"]["dpp-local"].get("peak_gb")
    times = "no figure" if peak is None else f"{peak / embeddings:.2f} × (peak of the whole process)"
    add("1M, 10K, dpp-local, memory", "≤ 2 × the embeddings", times, _most(peak, 2 * embeddings))
    timed("1M, 100K, dpp-local", measure(INPUT, 1_000_000, 100_000, ["dpp-local"]), "dpp-local", 35)
    tiny = measure(INPUT, 10_000, 100, ["dpp-local"])
    for less, more in ((tiny, middle), (middle, million)):
        walls = [one["methods"]["dpp-local"].get("wall") for one in (less, more)]
        ratio = walls[1] / walls[0] if None not in walls else None
        reached = "no figure" if ratio is None else f"{ratio:.1f} × ({walls[0]:.2f} s, {walls[1]:.2f} s)"
        add(f"dpp-local, k = n/100, {less['n']:,} to {more['n']:,}", "≤ 12 ×", reached, _most(ratio, 12))
    for name in inputs:
        one = small if name == INPUT else measure(name, 10_000, 1_000, ["dpp", "dpp-local"])
        for peer in ("dpp", "dpp-local"):
            twins = one["methods"][peer].get("twins")
            add(f"{peer}, {name}, 10K, 1K, picks with a twin above 0.95", "0", str(twins), twins == 0)
    return found


def _against(of: Case, peer: str, least: float) -> tuple[str, bool]:
    figures = of["methods"][peer]
    if "failed" in figures or "wall_of_dpp" not in figures:
        return figures.get("failed", "no figure"), False
    return f"{figures['wall_of_dpp']:.1f} × wall, {figures['cpu_of_dpp']:.1f} × CPU", figures["wall_of_dpp"] >= least


def _identical(add: Callable[[str, str, str, bool], None], work: str, of: Case) -> None:
    figures = of["methods"]["dpp"]
    same = bool(figures.get("identical"))
    reached = "identical" if same else f"{figures.get('in_common', 0):.2%} in common"
    add(f"{work}, dpp's picks and the plain greedy's", "identical", reached, same)


def _most(value: float | None, most: float) -> bool:
    return value is not None and value <= most
