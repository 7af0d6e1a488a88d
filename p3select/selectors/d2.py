"""D2 pruning: quality is spread over the graph of nearest rows, and what is picked takes its share away again.

Maharana, Yadav & Bansal, "D2 Pruning: message passing for balancing diversity and difficulty in data pruning" (ICLR
2024, arXiv 2310.07931): forward x_i ← x_i + Σ_j e_ij x_j over the nearest rows j, e_ij = exp(−γ ‖x_i − x_j‖²); then, k
times, the row of the highest x is picked and x_j ← x_j − e_ij x_i for its nearest rows j.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from p3select import kernel
from p3select import limits as bounded
from p3select.embeddings import nearest
from p3select.selectors import embedded

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from p3select.limits import Limits

NEIGHBOURS = 10
"""Nearest rows of a row, without itself."""

GAMMA = 1.0
"""γ of both passes."""


def d2(
    embeddings: ArrayLike | None,
    quality: ArrayLike,
    k: int,
    *,
    keep: ArrayLike | None = None,
    limits: Limits | None = None,
    neighbours: int = NEIGHBOURS,
    gamma: float = GAMMA,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The rows of the highest quality with that of their neighbourhood, each pick lowering its neighbours'.

    Args:
        embeddings: (n, d) of norm 1. Nearest rows are found by :func:`p3select.embeddings.nearest`.
        quality: (n,) ≥ 0; the method's difficulty score.
        k: 1 ≤ k ≤ n.
        keep: (m,) places of rows that come first, m ≤ k.
        limits: What may be taken of groups of rows; see :mod:`p3select.limits`.
        neighbours: Nearest rows of a row.
        gamma: γ.

    Returns:
        (rows, gains): (k,) int64, ties to the lower row, and (k,) float64 the x of each when it was picked, 0 where it
        was below; fewer than k where limits let no more in.

    Raises:
        InputError: As :func:`p3select.selectors.embedded`, or limits or rows to keep that cannot be kept.
    """
    x, q, k = embedded("d2", embeddings, quality, k)
    unit = kernel.unit_rows(x, np.float32)
    cosines, rows = nearest(unit, min(neighbours + 1, len(q)))
    other = (rows >= 0) & (rows != np.arange(len(q))[:, None])
    other[:, -1] &= other.sum(axis=1) <= neighbours  # a copy may stand in the row's own place
    weight = np.where(other, np.exp(-gamma * (2.0 - 2.0 * np.minimum(cosines.astype(np.float64), 1.0))), 0.0)
    score = q + np.einsum("nm,nm->n", weight, q[np.maximum(rows, 0)])
    left = bounded.checked(limits, len(q), keep, k)
    kept = np.asarray([] if keep is None else keep, np.int64)
    picked, gains = np.empty(k, np.int64), np.empty(k)
    for t in range(k):
        if len(left.room):
            score[~bounded.fitting(left)] = -np.inf
        row = picked[t] = int(kept[t] if t < len(kept) else score.argmax())
        value, score[row] = score[row], -np.inf
        if value == -np.inf:
            return picked[:t], gains[:t]
        bounded.take(left, row)
        gains[t] = max(value, 0.0)
        np.subtract.at(score, rows[row][other[row]], weight[row][other[row]] * value)
    return picked, gains
