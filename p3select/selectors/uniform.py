"""k rows at random, all alike in chance: the baseline that data selection has to beat.

Drawn anew in each epoch it is RS2 (Okanovic et al., "Repeated random sampling for minimizing the time-to-accuracy of
learning", ICLR 2024, arXiv 2305.18424).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from p3select.selectors import checked, in_order

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from p3select.limits import Limits


def uniform(
    embeddings: ArrayLike | None,  # noqa: ARG001 (every selector takes them)
    quality: ArrayLike,
    k: int,
    *,
    keep: ArrayLike | None = None,
    limits: Limits | None = None,
    seed: int | Sequence[int] = 0,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Rows drawn without replacement, each set of k as likely as any other.

    Args:
        embeddings: Not used.
        quality: (n,); only its length counts.
        k: 1 ≤ k ≤ n.
        keep: (m,) places of rows that come first, m ≤ k.
        limits: What may be taken of groups of rows; see :mod:`p3select.limits`. Under limits sets are not all alike in
            chance: a row is taken that fits when it is drawn.
        seed: Of :func:`numpy.random.default_rng`. The same seed and n give the same rows: for a new draw in each
            epoch put the epoch into it, such as ``(seed, epoch)``.

    Returns:
        (rows, gains): (k,) int64 in the order drawn, so that the first k of k + m drawn are those of k alone;
        and (k,) float64 ones, the determinant ratios of L = I; fewer than k where limits let no more in.

    Raises:
        InputError: As :func:`p3select.selectors.checked`.
    """
    q, k = checked(quality, k)
    rows = in_order(np.random.default_rng(seed).permutation(q.size), k, keep, limits)
    return rows, np.ones(len(rows))
