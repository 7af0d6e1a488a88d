"""The rows of the highest instruction-following difficulty below 1.

Li et al., "From quantity to quality" (NAACL 2024, arXiv 2308.12032), and with ratios of perplexities "Superfiltering"
(ACL 2024, arXiv 2402.00530): a row above 1, whose prompt makes its target less likely, is taken for misaligned and left
out; of the others those of the highest difficulty are selected.
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

ALIGNED = 1.0
"""The difficulty of rows whose prompt makes no difference."""


def ifd(
    embeddings: ArrayLike | None,  # noqa: ARG001 (every selector takes them)
    quality: ArrayLike,
    k: int,
    *,
    ifd: ArrayLike,
    keep: ArrayLike | None = None,
    limits: Limits | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The rows of highest quality among those below ``ALIGNED``, highest first; ties go to the lower row.

    Args:
        embeddings: Not used.
        quality: (n,) ≥ 0.
        k: 1 ≤ k ≤ n.
        ifd: (n,) the rows' difficulty ``ifd``.
        keep: (m,) places of rows that come first, m ≤ k.
        limits: What may be taken of groups of rows; see :mod:`p3select.limits`.

    Returns:
        (rows, gains): (k,) int64, and (k,) float64 q². Where fewer than k rows are below, those that are not follow,
        of lowest difficulty first, with gain 0; fewer than k where limits let no more in.

    Raises:
        InputError: As :func:`p3select.selectors.checked`, or difficulties of another number of rows.
    """
    q, k = checked(quality, k)
    ratio = kernel.real("ifd", ifd).astype(np.float64)
    if ratio.shape != q.shape:
        raise InputError(f"ifd of shape {ratio.shape}, but {q.size} rows")
    below = ratio < ALIGNED
    rows = in_order(np.lexsort((np.where(below, -q, ratio), ~below)), k, keep, limits)
    return rows, np.where(below, np.square(q), 0.0)[rows]
