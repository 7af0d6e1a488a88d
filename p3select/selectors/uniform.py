"""k rows at random, all alike in chance: the baseline that data selection has to beat."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from p3select.selectors import checked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray


def uniform(
    embeddings: ArrayLike | None,  # noqa: ARG001 (every selector takes them)
    quality: ArrayLike,
    k: int,
    *,
    seed: int | Sequence[int] = 0,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Rows drawn without replacement, each set of k as likely as any other.

    Args:
        embeddings: Not used.
        quality: (n,); only its length counts.
        k: 1 ≤ k ≤ n.
        seed: Of :func:`numpy.random.default_rng`. The same seed and n give the same rows: for a new draw in each
            epoch put the epoch into it, such as ``(seed, epoch)``.

    Returns:
        (rows, gains): (k,) int64 in the order drawn, so that the first k of k + m drawn are those of k alone;
        and (k,) float64 ones, the determinant ratios of L = I.

    Raises:
        InputError: As :func:`p3select.selectors.checked`.
    """
    q, k = checked(quality, k)
    rows = np.random.default_rng(seed).permutation(q.size)[:k].astype(np.int64)
    return rows, np.ones(k)
