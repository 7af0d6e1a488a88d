"""``p3select.dpp`` against the plain greedy MAP over a stored n × n kernel, on the same rows, in one run.

Both are exact and return the same rows. Times are medians of interleaved runs and include what each needs from the
embeddings on: the plain one its kernel, ours the check of its input. Peak memory is of a run of its own.
"""

from __future__ import annotations

import argparse
import statistics
import time
import tracemalloc
from typing import TYPE_CHECKING

import numpy as np

from p3select import dpp
from p3select.kernel import scale

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray


def stored(x: NDArray[np.float32], q: NDArray[np.float64], k: int, h: float) -> NDArray[np.int64]:
    """Chen, Zhang & Zhou (2018), algorithm 1, as usually written: L is formed, then reduced row by row."""
    cosine = x.astype(np.float64) @ x.T.astype(np.float64)
    matrix = np.exp((np.minimum(cosine, 1.0) - 1.0) / h) * q[:, None] * q
    gain = matrix.diagonal().copy()
    factor = np.zeros((k, len(q)))
    rows = np.empty(k, np.int64)
    for t in range(k):
        row = rows[t] = gain.argmax()
        factor[t] = (matrix[row] - factor[:t, row] @ factor[:t]) / np.sqrt(gain[row])
        gain -= factor[t] ** 2
        gain[row] = -np.inf
    return rows


def pool(n: int, d: int) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Rows in n / 30 groups, a tenth of them near-duplicates of others; quality as difficulties often lie."""
    rng = np.random.default_rng(n)
    x = rng.standard_normal((n // 30, d))[rng.integers(0, n // 30, n)] + rng.standard_normal((n, d))
    twins = rng.choice(n, n // 5, replace=False)
    x[twins[: n // 10]] = x[twins[n // 10 : n // 10 * 2]] + 0.1 * rng.standard_normal((n // 10, d))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), rng.beta(5, 2, n)


def timed(call: Callable[[], NDArray[np.int64]]) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def peak(call: Callable[[], NDArray[np.int64]]) -> tuple[NDArray[np.int64], float]:
    """What a call returns, and the GB it held at most."""
    tracemalloc.start()
    rows = call()
    held = tracemalloc.get_traced_memory()[1] / 1e9
    tracemalloc.stop()
    return rows, held


def main(argv: Sequence[str] | None = None) -> None:
    """Print one line for each size."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks dpp", description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[2_000, 5_000, 10_000], help="sizes n")
    parser.add_argument("--k", type=int, help="rows to pick (a tenth of n)")
    parser.add_argument("--dimensions", type=int, default=384)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--alone", action="store_true", help="p3select only, for sizes at which n × n does not fit")
    options = parser.parse_args(argv)
    print(f"{'n':>7} {'k':>6}   {'p3select':>16}   {'n × n kernel':>16}   {'ratio':>5}   same rows")
    for n in options.rows:
        k = options.k or n // 10
        x, q = pool(n, options.dimensions)
        h = scale(x)

        def ours(x: NDArray[np.float32] = x, q: NDArray[np.float64] = q, k: int = k, h: float = h) -> NDArray[np.int64]:
            return dpp(x, q, k, scale=h)[0]

        def plain(
            x: NDArray[np.float32] = x, q: NDArray[np.float64] = q, k: int = k, h: float = h
        ) -> NDArray[np.int64]:
            return stored(x, q, k, h)

        calls = [ours] if options.alone else [ours, plain]
        peaks = [peak(call) for call in calls]
        times = [[timed(call) for call in calls] for _ in range(options.repeats)]
        medians = [statistics.median(column) for column in zip(*times, strict=True)]
        figures = [f"{s:6.2f} s {gb:5.2f} GB" for s, (_, gb) in zip(medians, peaks, strict=True)]
        if options.alone:
            print(f"{n:>7} {k:>6}   {figures[0]}")
        else:
            same = np.array_equal(peaks[0][0], peaks[1][0])
            print(f"{n:>7} {k:>6}   {figures[0]}   {figures[1]}   {medians[1] / medians[0]:>4.1f}×   {same}")


if __name__ == "__main__":
    main()
