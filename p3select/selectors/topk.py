"""The k rows of highest quality: what a DPP would choose if no two rows were alike.

By el2n, and in image classification, Paul, Ganguli & Dziugaite, "Deep learning on a data diet" (NeurIPS 2021, arXiv
2107.07075); by perplexity Marion et al. (see :mod:`p3select.selectors.middle`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from p3select.selectors import checked, in_order

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from p3select.limits import Limits


def topk(
    embeddings: ArrayLike | None,  # noqa: ARG001 (every selector takes them)
    quality: ArrayLike,
    k: int,
    *,
    keep: ArrayLike | None = None,
    limits: Limits | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The k rows of highest quality, highest first; ties go to the lower row.

    Args:
        embeddings: Not used.
        quality: (n,) ≥ 0.
        k: 1 ≤ k ≤ n.
        keep: (m,) places of rows that come first, m ≤ k.
        limits: What may be taken of groups of rows; see :mod:`p3select.limits`.

    Returns:
        (rows, gains): (k,) int64, and (k,) float64 q², the determinant ratios of L = diag(q)²; fewer than k where
        limits let no more in.

    Raises:
        InputError: As :func:`p3select.selectors.checked`.
    """
    q, k = checked(quality, k)
    rows = in_order(np.argsort(-q, kind="stable"), k, keep, limits)
    return rows, np.square(q[rows])
