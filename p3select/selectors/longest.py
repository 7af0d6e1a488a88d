"""The longest targets: a baseline that is hard to beat for its price.

Zhao, Andriushchenko, Croce & Flammarion, "Long is more for alignment" (ICML 2024, arXiv 2402.04833): the rows whose
responses have the most tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from p3select import kernel
from p3select.errors import InputError
from p3select.selectors import checked, in_order

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from p3select.limits import Limits


def longest(
    embeddings: ArrayLike | None,  # noqa: ARG001 (every selector takes them)
    quality: ArrayLike,
    k: int,
    *,
    lengths: ArrayLike,
    keep: ArrayLike | None = None,
    limits: Limits | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The k rows of most tokens, longest first; ties go to the lower row.

    Args:
        embeddings: Not used.
        quality: (n,); only its length counts.
        k: 1 ≤ k ≤ n.
        lengths: (n,) tokens of the rows' targets, ≥ 0.
        keep: (m,) places of rows that come first, m ≤ k.
        limits: What may be taken of groups of rows; see :mod:`p3select.limits`.

    Returns:
        (rows, gains): (k,) int64, and (k,) float64 their lengths; fewer than k where limits let no more in.

    Raises:
        InputError: As :func:`p3select.selectors.checked`, or lengths of another number of rows.
    """
    q, k = checked(quality, k)
    tokens = kernel.real("lengths", lengths)
    if tokens.shape != q.shape:
        raise InputError(f"lengths of shape {tokens.shape}, but {q.size} rows")
    rows = in_order(np.argsort(-tokens.astype(np.float64), kind="stable"), k, keep, limits)
    return rows, tokens[rows].astype(np.float64)
