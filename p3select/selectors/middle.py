"""Rows of middling quality: neither what the policy knows nor what is beyond it, or noise.

Marion et al., "When less is more: investigating data pruning for pretraining LLMs at scale" (2023, arXiv 2309.04564):
of the subsets by perplexity, lowest, middle and highest, the middle one trained best.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from p3select.selectors import checked, in_order

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from p3select.limits import Limits


def middle(
    embeddings: ArrayLike | None,  # noqa: ARG001 (every selector takes them)
    quality: ArrayLike,
    k: int,
    *,
    keep: ArrayLike | None = None,
    limits: Limits | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The k rows around the median of quality, outwards from it.

    Args:
        embeddings: Not used.
        quality: (n,) ≥ 0; only its order counts, ties by row.
        k: 1 ≤ k ≤ n.
        keep: (m,) places of rows that come first, m ≤ k.
        limits: What may be taken of groups of rows; see :mod:`p3select.limits`.

    Returns:
        (rows, gains): (k,) int64, of two that are as far from the median the one of lower quality first; and (k,)
        float64, 1 at the median and falling to 0 at both ends; fewer than k where limits let no more in.

    Raises:
        InputError: As :func:`p3select.selectors.checked`.
    """
    q, k = checked(quality, k)
    ranked = np.argsort(q, kind="stable")
    # In halves, as whole numbers: of an even number of rows two are in the middle.
    away = np.abs(2 * np.arange(q.size) - (q.size - 1))
    near = np.empty(q.size)
    near[ranked] = 1.0 - away / max(q.size - 1, 1)
    rows = in_order(ranked[np.argsort(away, kind="stable")], k, keep, limits)
    return rows, near[rows]
