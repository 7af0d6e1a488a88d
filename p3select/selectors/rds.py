"""RDS+: the rows most like those of a query set, the queries taking turns.

Ivison et al., "Large-scale data selection for instruction tuning" (2025, arXiv 2503.01807): cosines between rows and
queries, and rounds in which every query takes the row nearest to it of those that are left. There a row's vector is a
weighted mean of the trained model's hidden states; here it is a sentence embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from p3select import kernel, limits
from p3select.errors import InputError
from p3select.selectors import embedded

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from p3select.limits import Limits


def rds(
    embeddings: ArrayLike | None,
    quality: ArrayLike,
    k: int,
    *,
    queries: ArrayLike,
    keep: ArrayLike | None = None,
    limits: Limits | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """In turn each query's nearest row of those that are left. Memory O(m n).

    Args:
        embeddings: (n, d) of norm 1.
        quality: (n,); only its length counts.
        k: 1 ≤ k ≤ n.
        queries: (m, d) of norm 1, by the same encoder.
        keep: (j,) places of rows that come first, j ≤ k.
        limits: What may be taken of groups of rows; see :mod:`p3select.limits`.

    Returns:
        (rows, gains): (k,) int64, ties to the lower row, and (k,) float64: 1 for rows to keep; for others the lowest
        (1 + cosine to its query) / 2 so far, so that they never rise; fewer than k where limits let no more in.

    Raises:
        InputError: As :func:`p3select.selectors.embedded`, queries of another dimension or none, or limits or rows to
            keep that cannot be kept.
    """
    x, q, k = embedded("rds", embeddings, quality, k)
    unit, asked = kernel.unit_rows(x, np.float32), kernel.unit_rows(queries, np.float32)
    if not len(asked) or asked.shape[1] != unit.shape[1]:
        raise InputError(f"queries of shape {asked.shape}, where rows have {unit.shape[1]} dimensions")
    cosines = asked @ unit.T
    return _rounds(cosines, np.argsort(-cosines, axis=1, kind="stable"), len(q), k, keep, limits)


def _rounds(
    cosines: NDArray[np.float32],
    order: NDArray[np.int64],
    n: int,
    k: int,
    keep: ArrayLike | None,
    given: Limits | None,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    kept = np.asarray([] if keep is None else keep, np.int64)
    left = limits.checked(given, n, kept, k)
    open_ = np.ones(n, np.bool_)
    open_[kept] = False
    picked, gains = kept.tolist(), [1.0] * len(kept)
    place = np.zeros(len(order), np.int64)
    while len(picked) < k:
        if len(left.room):
            open_ &= limits.fitting(left)
        if not open_.any():
            break
        turn = (len(picked) - len(kept)) % len(order)
        while not open_[order[turn, place[turn]]]:
            place[turn] += 1
        row = int(order[turn, place[turn]])
        open_[row] = False
        limits.take(left, row)
        picked.append(row)
        gains.append(min(gains[-1] if gains else 1.0, (1.0 + min(float(cosines[turn, row]), 1.0)) / 2.0))
    return np.array(picked, np.int64), np.array(gains, np.float64)
