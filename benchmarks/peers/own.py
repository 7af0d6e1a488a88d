"""p3select, and the usual ways, written for this benchmark.

Each takes rows of norm 1 (n, d) float32, quality (n,) float64, k, and the scale h of S = exp((cos − 1) / h).
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any, cast

import faiss
import numba
import numpy as np

import p3select
from benchmarks.peers.squared import likelihood
from p3select.selectors.dpp_local import dpp_local, parameters

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Features = NDArray[np.float32]
    Quality = NDArray[np.float64]
    Rows = NDArray[np.int64]


def exact(x: Features, q: Quality, k: int, h: float) -> Rows:
    """``dpp``."""
    return p3select.dpp(x, q, k, scale=h, method="dpp")[0]


def local(x: Features, q: Quality, k: int, h: float) -> Rows:
    """``dpp-local``."""
    return p3select.dpp(x, q, k, scale=h, method="dpp-local")[0]


def local_wide(x: Features, q: Quality, k: int, h: float) -> Rows:
    """``dpp-local``, nearer to the exact greedy."""
    cells, _, _ = parameters(len(x), k)
    return dpp_local(x, q, k, scale=h, probes=min(16, cells), neighbours=96)[0]


def plain(x: Features, q: Quality, k: int, h: float) -> Rows:
    """Chen, Zhang & Zhou (2018), algorithm 1, with rows of S made when they are needed."""
    return _plain(x, q, k, h, np.float32)


def plain_64(x: Features, q: Quality, k: int, h: float) -> Rows:
    """The same in float64."""
    return _plain(x.astype(np.float64), q, k, h, np.float64)


def _plain(x: NDArray[Any], q: Quality, k: int, h: float, real: type[np.floating[Any]]) -> Rows:
    squared = (q * q).astype(real)
    variance = np.ones(len(q), real)
    factor = np.empty((k, len(q)), real)
    left = np.ones(len(q), bool)
    rows = np.empty(k, np.int64)
    for t in range(k):
        row = rows[t] = np.where(left, squared * variance, -1.0).argmax()
        left[row] = False
        factor[t] = np.exp((np.minimum(x @ x[row], 1.0) - 1.0) / real(h))
        factor[t] -= factor[:t, row] @ factor[:t]
        factor[t] /= np.sqrt(variance[row])
        variance -= factor[t] ** 2
    return rows


def fast_map(x: Features, q: Quality, k: int, h: float) -> Rows:
    """The same algorithm as usually written, over L."""
    matrix = likelihood(x, q, h)
    gain = matrix.diagonal().copy()
    factor = np.zeros((k, len(q)))
    rows = np.empty(k, np.int64)
    for t in range(k):
        row = rows[t] = gain.argmax()
        factor[t] = (matrix[row] - factor[:t, row] @ factor[:t]) / np.sqrt(gain[row])
        gain -= factor[t] ** 2
        gain[row] = -np.inf
    return rows


def hemmi(x: Features, q: Quality, k: int, h: float) -> Rows:
    """Hemmi et al. (2022): a heap of stale gains; a row is brought up to date when it is on top."""
    return cast("Rows", _lazy(likelihood(x, q, h), k))


@numba.njit(cache=True, fastmath={"contract", "reassoc"})  # type: ignore[untyped-decorator, unused-ignore]
def _lazy(matrix: NDArray[np.float64], k: int) -> Any:
    n = len(matrix)
    columns = np.empty((n, k))
    seen = np.zeros(n, np.int64)
    gain = np.diag(matrix).copy()
    heap = [(-gain[row], row) for row in range(n)]
    heapq.heapify(heap)
    rows = np.empty(k, np.int64)
    t = 0
    while t < k:
        _, row = heapq.heappop(heap)
        for pick in range(seen[row], t):
            value = matrix[row, rows[pick]]
            for one in range(pick):
                value -= columns[row, one] * columns[rows[pick], one]
            columns[row, pick] = value / columns[rows[pick], pick]
            gain[row] -= columns[row, pick] ** 2
        seen[row] = t
        if not heap or (-gain[row], row) < heap[0]:
            columns[row, t] = np.sqrt(gain[row])
            rows[t] = row
            t += 1
        else:
            heapq.heappush(heap, (-gain[row], row))
    return rows


def k_means(x: Features, q: Quality, k: int, h: float) -> Rows:  # noqa: ARG001
    """As faiss sets it: 20 iterations, at most 256 rows for a centre."""
    kmeans = faiss.Kmeans(x.shape[1], k, niter=20, spherical=True, seed=0)
    kmeans.train(x)
    cell = kmeans.index.search(x, 1)[1][:, 0]
    order = np.lexsort((-q, cell))
    first = np.append(True, cell[order[1:]] != cell[order[:-1]])
    return cast("Rows", order[first])


def k_center(x: Features, q: Quality, k: int, h: float) -> Rows:  # noqa: ARG001
    """Gonzalez (1985)."""
    rows = np.empty(k, np.int64)
    nearest = np.full(len(x), -np.inf, np.float32)
    rows[0] = q.argmax()
    for t in range(1, k):
        np.maximum(nearest, x @ x[rows[t - 1]], out=nearest)
        rows[t] = nearest.argmin()
    return rows


def top(x: Features, q: Quality, k: int, h: float) -> Rows:  # noqa: ARG001
    """By quality alone."""
    return np.argsort(-q, kind="stable")[:k]


def random(x: Features, q: Quality, k: int, h: float) -> Rows:  # noqa: ARG001
    """By nothing."""
    return np.random.default_rng(1).choice(len(x), k, replace=False)
