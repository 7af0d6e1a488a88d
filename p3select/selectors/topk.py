"""The k rows of highest quality: what a DPP would choose if no two rows were alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from p3select.selectors import checked

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def topk(
    embeddings: ArrayLike | None,  # noqa: ARG001 (every selector takes them)
    quality: ArrayLike,
    k: int,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The k rows of highest quality, highest first; ties go to the lower row.

    Args:
        embeddings: Not used.
        quality: (n,) ≥ 0.
        k: 1 ≤ k ≤ n.

    Returns:
        (rows, gains): (k,) int64, and (k,) float64 q², the determinant ratios of L = diag(q)².

    Raises:
        InputError: As :func:`p3select.selectors.checked`.
    """
    q, k = checked(quality, k)
    rows = np.argsort(-q, kind="stable")[:k].astype(np.int64)
    return rows, np.square(q[rows])
