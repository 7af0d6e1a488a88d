"""Farthest first: the greedy 2-approximation of k-center, weighted by quality.

Gonzalez, "Clustering to minimize the maximum intercluster distance" (Theor. Comput. Sci. 38, 1985); as a core-set for
deep learning Sener & Savarese (ICLR 2018, arXiv 1708.00489). With quality ``none`` it is theirs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from p3select import kernel, limits
from p3select.selectors import embedded

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from p3select.limits import Limits


def kcenter(
    embeddings: ArrayLike | None,
    quality: ArrayLike,
    k: int,
    *,
    keep: ArrayLike | None = None,
    limits: Limits | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The rows that are farthest from those picked before: each time the highest q × (1 − cosine to the nearest pick).

    The first row is the one of highest quality; ties go to the lower row. Time O(n k d), memory O(n).

    Args:
        embeddings: (n, d) of norm 1.
        quality: (n,) ≥ 0.
        k: 1 ≤ k ≤ n.
        keep: (m,) places of rows that come first, m ≤ k.
        limits: What may be taken of groups of rows; see :mod:`p3select.limits`.

    Returns:
        (rows, gains): (k,) int64, and (k,) float64 q × distance when it was picked (2 q for the first, as cosines are
        at least −1); fewer than k where limits let no more in.

    Raises:
        InputError: As :func:`p3select.selectors.embedded`, or limits or rows to keep that cannot be kept.
    """
    x, q, k = embedded("kcenter", embeddings, quality, k)
    unit = kernel.unit_rows(x, np.float32)
    return _farthest(unit, q, k, keep, limits)


def _farthest(
    unit: NDArray[np.float32], q: NDArray[np.float64], k: int, keep: ArrayLike | None, given: Limits | None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    left = limits.checked(given, len(q), keep, k)
    priority = limits.first(q, keep)
    distance = np.full(len(q), 2.0)
    open_ = np.ones(len(q), np.bool_)
    rows, gains = np.empty(k, np.int64), np.zeros(k)
    for t in range(k):
        if len(left.room):
            open_ &= limits.fitting(left)
            if not open_.any():
                return rows[:t], gains[:t]
        worth = np.where(open_, priority * distance, -1.0)
        row = rows[t] = int(worth.argmax())
        gains[t] = q[row] * distance[row]
        open_[row] = False
        limits.take(left, row)
        np.minimum(distance, np.maximum(1.0 - unit @ unit[row], 0.0), out=distance)
    return rows, gains
