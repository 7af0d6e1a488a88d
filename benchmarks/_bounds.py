"""What the exact greedy computes, and how long the machine would need for that alone."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import _inputs
from p3select import kernel
from p3select.selectors import dpp

if TYPE_CHECKING:
    from pathlib import Path

CASES = ((10_000, 1_000), (100_000, 1_000), (100_000, 10_000))


def bounds(cache: Path, encoder: Path) -> list[dict[str, Any]]:
    """Count the multiplications of ``dpp``, in runs that are not timed.

    Args:
        cache: Where the inputs are kept.
        encoder: Of the real rows, which are not used.

    Returns:
        For each case: ``n``, ``k``; ``columns``, the entries of the factor's columns that were computed, as a share of
        n k; ``gflop`` of the matrix products in float32 and in float64; and ``seconds``, what these take at the rates
        of one large matrix product each, with all threads.
    """
    rates = {real: _rate(real) for real in (np.float32, np.float64)}
    found = []
    for n, k in CASES:
        folder = _inputs.stored("near-duplicates", n, cache, None, encoder)
        x, q = np.load(folder / "x.npy"), np.load(folder / "q.npy")
        done = _counted(x, q, k)
        found.append(
            {
                "n": n,
                "k": k,
                "columns": round(done[np.float32][0] / (n * k), 4),
                "gflop_float32": round(done[np.float32][1] / 1e9, 2),
                "gflop_float64": round(done[np.float64][1] / 1e9, 2),
                "seconds": round(sum(done[real][1] / rates[real] for real in rates), 3),
                "gflops_float32": round(rates[np.float32] / 1e9, 1),
                "gflops_float64": round(rates[np.float64] / 1e9, 1),
            }
        )
    return found


def _counted(x: Any, q: Any, k: int) -> dict[Any, list[float]]:
    """Entries, and floating point operations, of the columns of either precision."""
    done: dict[Any, list[float]] = {np.float32: [0.0, 0.0], np.float64: [0.0, 0.0]}
    original = dpp._refresh_some

    def counting(level: Any, slots: Any, *rest: Any) -> None:
        before = level.seen[slots].astype(np.float64)
        original(level, slots, *rest)
        after = level.seen[slots].astype(np.float64)
        one: list[float] = done[level.columns.dtype.type]
        one[0] += float((after - before).sum())
        # A column costs a product over d for S and one over the columns before it.
        one[1] += float((2 * x.shape[1] * (after - before) + (after**2 - before**2)).sum())

    dpp._refresh_some = counting  # type: ignore[assignment]
    try:
        dpp.dpp(x, q, k, scale=kernel.scale(x), method="dpp")
    finally:
        dpp._refresh_some = original
    return done


def _rate(real: type) -> float:
    """Floating point operations a second of a matrix product, at best."""
    one: Any = np.random.default_rng(0).standard_normal((2_048, 2_048)).astype(real)
    best = np.inf
    for _ in range(5):
        clock = time.perf_counter()
        one @ one
        best = min(best, time.perf_counter() - clock)
    return float(2 * 2_048**3 / best)
