"""Score first, diversity aware: rows by quality, each kept unless one that is kept is too near.

Liu et al., "What makes good data for alignment?" (DEITA, ICLR 2024, arXiv 2312.15685), Repr Filter: a row is added
when its cosine to the nearest row *selected* is at most 0.9.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from p3select import kernel
from p3select import limits as bounded
from p3select.selectors import embedded

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from p3select.limits import Limits

THRESHOLD = 0.9
"""The paper's."""

BLOCK_ROWS = 512
"""Rows that are compared with those selected by one matrix product."""


def deita(
    embeddings: ArrayLike | None,
    quality: ArrayLike,
    k: int,
    *,
    keep: ArrayLike | None = None,
    limits: Limits | None = None,
    threshold: float = THRESHOLD,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The first k rows by quality, without those whose cosine to a row picked before is above the threshold.

    Args:
        embeddings: (n, d) of norm 1.
        quality: (n,) ≥ 0; ties go to the lower row.
        k: 1 ≤ k ≤ n.
        keep: (m,) places of rows that come first, m ≤ k.
        limits: What may be taken of groups of rows; see :mod:`p3select.limits`.
        threshold: On cosines.

    Returns:
        (rows, gains): (k,) int64, and (k,) float64 q². Where fewer than k rows pass, those passed over follow by
        quality, with gain 0; fewer than k where limits let no more in.

    Raises:
        InputError: As :func:`p3select.selectors.embedded`, or limits or rows to keep that cannot be kept.
    """
    x, q, k = embedded("deita", embeddings, quality, k)
    unit = kernel.unit_rows(x, np.float32)
    left = bounded.checked(limits, len(q), keep, k)
    picked: list[int] = [] if keep is None else np.asarray(keep).tolist()
    order = np.argsort(-q, kind="stable")
    order = order[~np.isin(order, picked)]
    for first in range(0, len(order), BLOCK_ROWS):
        block = order[first : first + BLOCK_ROWS]
        near = (unit[block] @ unit[picked].T > threshold).any(axis=1)
        among = unit[block] @ unit[block].T > threshold
        taken: list[int] = []
        for place in np.flatnonzero(~near):
            row = int(block[place])
            if len(picked) + len(taken) < k and not among[place, taken].any() and bounded.fits(left, row):
                bounded.take(left, row)
                taken.append(int(place))
        picked += block[taken].tolist()
        if len(picked) == k:
            break
    rest = bounded.in_order(left, order[~np.isin(order, picked)], k - len(picked))
    rows = np.concatenate([np.array(picked, np.int64), rest]).astype(np.int64)
    return rows, np.concatenate([np.square(q[picked]), np.zeros(len(rest))])
