"""What L is: the kernel of the determinantal point process, ``L = diag(q) S diag(q)``.

Quality and similarity as in Kulesza & Taskar (arXiv 1207.6083, §3.1). With unit-norm embeddings x and a scale h,

    S_ij = exp((cos(x_i, x_j) − 1) / h) = exp(−‖x_i − x_j‖² / (2h))

is the Gaussian kernel on the sphere. It has full rank over distinct rows, whatever their dimension, where the
linear kernel of the paper, ``S_ij = cos(x_i, x_j)``, can tell at most d rows apart. n × n is never formed:
:func:`similarity` gives one row of S.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from p3select.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

DIRECTIONS = ("harder", "easier", "none")

NORM_TOLERANCE = 1e-3
"""How far a row's norm may be from 1: float16 rounding passes, an embedding that was never normalised does not."""

SCALE_ROWS = 2_000
"""Rows among which :func:`scale` measures."""

COPY_DISTANCE = 1e-6
"""Cosine distance below which :func:`scale` takes two rows for copies."""


def quality(
    difficulty: ArrayLike, direction: str = "harder", weight: float = 1.0, kind: str = "p3"
) -> NDArray[np.float64]:
    """Quality of every row, from its difficulty.

    Difficulty is first brought to u in [0, 1]: u = difficulty for ``p3``, u = 1 − exp(−difficulty) for ``nll``
    (the same quantity, 1 minus a geometric mean probability, with the row as a single action). Then

    - ``harder`` (the paper's): q = u^weight;
    - ``easier``: q = (1 − u)^weight;
    - ``none``: q = 1, diversity alone.

    Args:
        difficulty: (n,) as :func:`p3select.difficulty` gives it.
        direction: ``harder``, ``easier`` or ``none``.
        weight: ≥ 0. The larger, the more quality counts against diversity; 0 leaves diversity alone.
        kind: Of difficulty, ``p3`` or ``nll``.

    Returns:
        (n,) float64 in [0, 1].

    Raises:
        InputError: An unknown direction or kind; a weight that is negative, not finite, or given with ``none``,
            where it would have no effect; a difficulty outside its range (the message names the row).
    """
    u = np.asarray(difficulty, dtype=np.float64)
    if u.ndim != 1:
        raise InputError(f"difficulty must be 1-D, got shape {u.shape}")
    if kind not in ("p3", "nll"):
        raise InputError(f"no quality is defined for difficulty {kind!r}: choose p3 or nll")
    top = 1.0 if kind == "p3" else np.finfo(np.float64).max
    bad = np.flatnonzero(~((u >= 0) & (u <= top)))
    if bad.size:
        raise InputError(f"row {bad[0]} has difficulty {u[bad[0]]}, which {kind} cannot be")
    if not (weight >= 0 and math.isfinite(weight)):
        raise InputError(f"quality weight {weight} must be ≥ 0 and finite")
    match direction:
        case "harder":
            return np.power(u if kind == "p3" else -np.expm1(-u), weight)
        case "easier":
            return np.power(1.0 - u if kind == "p3" else np.exp(-u), weight)
        case "none":
            if weight != 1.0:
                raise InputError(f"quality 'none' takes no weight, got {weight}")
            return np.ones(u.size)
    raise InputError(f"unknown quality {direction!r}: choose one of {', '.join(DIRECTIONS)}")


def unit_rows(embeddings: ArrayLike) -> NDArray[np.float64]:
    """Embeddings checked, as float64 with norms exactly 1 up to rounding.

    Args:
        embeddings: (n, d) of norm 1 within ``NORM_TOLERANCE``.

    Returns:
        (n, d) float64, a copy.

    Raises:
        InputError: Not 2-D, no column, or a row that is not finite or not of norm 1 (the message names it).
    """
    rows = np.array(embeddings, dtype=np.float64, order="C")
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise InputError(f"embeddings must be 2-D (rows, dimensions), got shape {rows.shape}")
    norms = np.sqrt(np.einsum("nd,nd->n", rows, rows))
    bad = np.flatnonzero(~(np.abs(norms - 1.0) <= NORM_TOLERANCE))
    if bad.size:
        row = bad[0]
        if not np.isfinite(rows[row]).all():
            raise InputError(f"row {row} of the embeddings is not finite: embed that row again or leave it out")
        raise InputError(f"row {row} of the embeddings has norm {norms[row]:g}: divide rows by their norms first")
    rows /= norms[:, None]
    return rows


def scale(embeddings: ArrayLike) -> float:
    """The scale h of the similarity, from the data: the median cosine distance between two rows.

    This is the median heuristic for Gaussian kernels: two rows at the typical distance have S = 1/e. The median
    is over all pairs of at most ``SCALE_ROWS`` rows, evenly spaced over the array, without the pairs that are
    copies (distance below ``COPY_DISTANCE``). It does not shrink as rows are added, so that one epoch's pool
    and another's get the same kernel. Deterministic; for up to ``SCALE_ROWS`` rows independent of their order.

    Args:
        embeddings: (n, d) of norm 1.

    Returns:
        h > 0. Where no two rows differ (n ≤ 1, or all copies) S is all ones whatever h, and h is 1.0.

    Raises:
        InputError: As :func:`unit_rows`.
    """
    array = np.asarray(embeddings)
    count = min(len(array), SCALE_ROWS) if array.ndim else 0
    sample = unit_rows(array[np.arange(count) * len(array) // count] if count else array)
    distance = 1.0 - (sample @ sample.T)[np.triu_indices(len(sample), 1)]
    distance = distance[distance > COPY_DISTANCE]
    return float(np.median(distance)) if distance.size else 1.0


def similarity(unit: NDArray[np.float64], row: int, h: float) -> NDArray[np.float64]:
    """One row of S.

    Args:
        unit: (n, d) from :func:`unit_rows`; not checked again.
        row: 0 ≤ row < n.
        h: The scale, > 0.

    Returns:
        (n,) float64 in [0, 1], exactly 1 at ``row``.
    """
    s: NDArray[np.float64] = unit @ unit[row]
    s -= 1.0
    np.minimum(s, 0.0, out=s)  # rounding can bring a copy's cosine above 1
    s /= h
    np.exp(s, out=s)
    s[row] = 1.0
    return s
