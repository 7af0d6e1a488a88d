"""What L is: the kernel of the determinantal point process, ``L = diag(q) S diag(q)``.

Quality and similarity as in Kulesza & Taskar (arXiv 1207.6083, §3.1). With unit-norm embeddings x and a scale h,

    S_ij = exp((cos(x_i, x_j) − 1) / h) = exp(−‖x_i − x_j‖² / (2h))

is the Gaussian kernel on the sphere. It has full rank over distinct rows, whatever their dimension, where the
linear kernel of the paper, ``S_ij = cos(x_i, x_j)``, can tell at most d rows apart. ``cauchy``, the rational quadratic
kernel S_ij = 1 / (1 + (1 − cos) / h), has full rank too and falls off slowly: rows repel each other from afar. n × n is
never formed: :func:`similarities` gives a block of S.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import numpy as np
from threadpoolctl import threadpool_limits

from p3select.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, DTypeLike, NDArray

    F = TypeVar("F", bound=Callable[..., Any])

DIRECTIONS = ("harder", "easier", "none")

SIMILARITIES = ("gaussian", "cauchy", "linear")

NORM_TOLERANCE = 1e-3
"""How far a row's norm may be from 1: float16 rounding passes, an embedding that was never normalised does not."""

SCALE_ROWS = 2_000
"""Rows among which :func:`scale` measures."""

WHITENING_ROWS = 50_000
"""Rows of which :func:`whitening` takes mean and covariance."""

BLOCK_ROWS = 1_024
"""Rows that are brought to norm 1 at a time."""

COPY_DISTANCE = 1e-6
"""Cosine distance below which :func:`scale` takes two rows for copies."""


def real(name: str, values: ArrayLike) -> NDArray[Any]:
    """Values as an array of real numbers, of their own type.

    Raises:
        InputError: They are none: text, complex numbers, or rows of different lengths.
    """
    try:
        array = np.asarray(values)
    except ValueError:
        raise InputError(f"{name} must be an array of numbers; its rows differ in length") from None
    if array.dtype.kind not in "fiub":
        raise InputError(f"{name} must be real numbers, got {array.dtype}")
    return array


def quality(
    difficulty: ArrayLike, direction: str = "harder", weight: float = 1.0, kind: str = "p3"
) -> NDArray[np.float64]:
    """Quality of every row, from its difficulty.

    Difficulty is first brought to u in [0, 1]: u = difficulty for ``p3``, u = 1 − exp(−difficulty) for ``nll``
    (the same quantity, 1 minus a geometric mean probability, with the row as a single action),
    u = difficulty / (1 + difficulty) for ``ifd``, u = difficulty / √2 for ``el2n``. Then

    - ``harder`` (the paper's): q = u^weight;
    - ``easier``: q = (1 − u)^weight;
    - ``none``: q = 1, diversity alone.

    Args:
        difficulty: (n,) as :func:`p3select.difficulty` gives it.
        direction: ``harder``, ``easier`` or ``none``.
        weight: ≥ 0. The larger, the more quality counts against diversity; 0 leaves diversity alone.
        kind: Of difficulty, ``p3``, ``nll``, ``ifd`` or ``el2n``.

    Returns:
        (n,) float64 in [0, 1].

    Raises:
        InputError: An unknown direction or kind; a weight that is negative, not finite, or given with ``none``,
            where it would have no effect; a difficulty outside its range (the message names the row).
    """
    u = np.asarray(difficulty, dtype=np.float64)
    if u.ndim != 1:
        raise InputError(f"difficulty must be 1-D, got shape {u.shape}")
    if kind not in ("p3", "nll", "ifd", "el2n"):
        raise InputError(f"no quality is defined for difficulty {kind!r}: choose p3, nll, ifd or el2n")
    top = {"p3": 1.0, "el2n": math.sqrt(2.0)}.get(kind, np.finfo(np.float64).max)
    bad = np.flatnonzero(~((u >= 0) & (u <= top)))
    if bad.size:
        raise InputError(f"row {bad[0]} has difficulty {u[bad[0]]}, which {kind} cannot be")
    if not (weight >= 0 and math.isfinite(weight)):
        raise InputError(f"quality weight {weight} must be ≥ 0 and finite")
    if kind == "ifd":
        u = u / (1.0 + u)
    if kind == "el2n":
        u = u / top
    match direction:
        case "harder":
            return _power(-np.expm1(-u) if kind == "nll" else u, weight)
        case "easier":
            return _power(np.exp(-u) if kind == "nll" else 1.0 - u, weight)
        case "none":
            if weight != 1.0:
                raise InputError(f"quality 'none' takes no weight, got {weight}")
            return np.ones(u.size)
    raise InputError(f"unknown quality {direction!r}: choose one of {', '.join(DIRECTIONS)}")


def _power(u: NDArray[np.float64], weight: float) -> NDArray[np.float64]:
    q: NDArray[np.float64] = np.power(u, weight)
    # L has q². Some rows may drop out of sight, but not all that count.
    top = q.max(initial=0.0)
    if top < 1e-150 and u.max(initial=0.0) > 0:
        raise InputError(
            f"quality weight {weight:g} is too large: the best row's quality, {u.max():.3g}, comes to {top:.3g}, and "
            "rows could no longer be told apart; the selector topk goes by quality alone"
        )
    return q


def unit_rows(embeddings: ArrayLike, dtype: DTypeLike = np.float64) -> NDArray[Any]:
    """Embeddings checked, with norms exactly 1 up to rounding.

    Args:
        embeddings: (n, d) of norm 1 within ``NORM_TOLERANCE``.
        dtype: Of the result. Norms are taken, and divided by, in float64 whatever it is.

    Returns:
        (n, d) of that dtype, a copy.

    Raises:
        InputError: As :func:`checked_norms`.
    """
    given = real("embeddings", embeddings)
    norms = checked_norms(given)
    unit = np.empty(given.shape, dtype)
    for first in range(0, len(given), BLOCK_ROWS):
        part = slice(first, first + BLOCK_ROWS)
        np.divide(given[part].astype(np.float64), norms[part, None], out=unit[part], casting="same_kind")
    return unit


def checked_norms(embeddings: ArrayLike) -> NDArray[np.float64]:
    """The rows' norms, (n,); no more than ``BLOCK_ROWS`` rows are held in float64.

    Raises:
        InputError: Not 2-D, no column, or a row that is not finite or not of norm 1 (the message names it).
    """
    given = real("embeddings", embeddings)
    if given.ndim != 2 or given.shape[1] == 0:
        raise InputError(f"embeddings must be 2-D (rows, dimensions), got shape {given.shape}")
    norms = np.empty(len(given))
    for first in range(0, len(given), BLOCK_ROWS):
        rows = given[first : first + BLOCK_ROWS].astype(np.float64, order="C")
        norms[first : first + BLOCK_ROWS] = np.sqrt(np.einsum("nd,nd->n", rows, rows))
    bad = np.flatnonzero(~(np.abs(norms - 1.0) <= NORM_TOLERANCE))
    if bad.size:
        row = bad[0]
        if not np.isfinite(given[row]).all():
            raise InputError(f"row {row} of the embeddings is not finite: embed that row again or leave it out")
        raise InputError(f"row {row} of the embeddings has norm {norms[row]:g}: divide rows by their norms first")
    return norms


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
    sample = unit_rows(array[spaced(len(array), SCALE_ROWS)] if array.ndim else array)
    with unthreaded_blas():
        distance = 1.0 - (sample @ sample.T)[np.triu_indices(len(sample), 1)]
    distance = distance[distance > COPY_DISTANCE]
    return float(np.median(distance)) if distance.size else 1.0


def spaced(n: int, count: int) -> NDArray[np.int64]:
    """At most so many of n rows, evenly spaced."""
    count = min(n, count)
    return np.arange(count, dtype=np.int64) * n // max(count, 1)


def unthreaded_blas() -> Any:
    """A context in which a matrix product keeps to the thread that asks for it.

    For work that is in threads already: those of BLAS meet after every product, and wait for each other at full load,
    which came to ten times the work itself where the cores had other work to do as well. And for results that are to
    be the same on any number of cores: how BLAS deals a sum out decides its last bits.
    """
    return threadpool_limits(1, "blas")


def similarities(
    one: NDArray[Any],
    other: NDArray[Any],
    h: float,
    similarity: str = "gaussian",
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """A block of S, in the precision of the rows given.

    Args:
        one: (m, d) unit rows; not checked again.
        other: (p, d) unit rows, of the same dtype.
        h: The scale, > 0; ``linear`` has none, and does not read it.
        similarity: ``gaussian``, ``cauchy`` or ``linear``.
        out: (m, p) to be written to, where one is at hand.

    Returns:
        (m, p), at most 1. A row's similarity to itself is 1 up to rounding.
    """
    s: NDArray[Any] = np.matmul(one, other.T, out=out)
    np.minimum(s, 1.0, out=s)  # rounding can bring a copy's cosine above 1
    if similarity == "linear":
        return s
    s -= 1.0
    s /= h
    if similarity == "gaussian":
        np.exp(s, out=s)
    else:
        np.reciprocal(np.subtract(1.0, s, out=s), out=s)
    return s


class Whitening(NamedTuple):
    """x ↦ (x − mean) spread, then of norm 1 again."""

    mean: NDArray[np.float64]  # (d,)
    spread: NDArray[np.float64]  # (d, d)


def whitening(embeddings: NDArray[Any], rows: int = WHITENING_ROWS) -> Whitening:
    """What takes the common direction out of embeddings and gives every direction the same variance.

    x ↦ (x − μ) W with W Wᵀ the inverse of the covariance (Su et al., "Whitening sentence representations", arXiv
    2103.15316). Sentence encoders put all texts into a narrow cone, where a common direction makes up most of every
    cosine; afterwards a typical pair has a cosine near 0. Directions of less than 1e-6 of the largest variance are
    left as they are small: they hold rounding.

    Args:
        embeddings: (n, d) of norm 1.
        rows: μ and W are those of as many rows at most, evenly spaced over the array.

    Raises:
        InputError: As :func:`unit_rows`; or all rows are alike.
    """
    given = np.asarray(embeddings)
    sample = unit_rows(given[spaced(len(given), rows)])
    mean = sample.mean(axis=0)
    sample -= mean
    with unthreaded_blas():
        values, vectors = np.linalg.eigh(sample.T @ sample / len(sample))
    if not values[-1] > 0:
        raise InputError("the embeddings are all alike: whitening leaves them no direction")
    return Whitening(mean, vectors / np.sqrt(np.maximum(values, 1e-6 * values[-1])))


def taken(embeddings: NDArray[Any], rows: NDArray[np.int64], white: Whitening | None = None) -> NDArray[np.float32]:
    """Some rows of embeddings, which may be memory-mapped: the others are not read.

    Args:
        embeddings: (n, d) float32 of norm 1.
        rows: (m,).
        white: To whiten them by; None leaves them as they are.

    Returns:
        (m, d) float32 of norm 1.

    Raises:
        InputError: A row lies at the mean (the message names it), where there is no direction.
    """
    if white is None:
        return np.asarray(embeddings[rows], np.float32)
    found = np.empty((len(rows), embeddings.shape[1]), np.float32)
    with unthreaded_blas():
        for first in range(0, len(rows), BLOCK_ROWS):
            part = rows[first : first + BLOCK_ROWS]
            some = (embeddings[part].astype(np.float64) - white.mean) @ white.spread
            norms = np.linalg.norm(some, axis=1)
            bad = np.flatnonzero(~(norms > COPY_DISTANCE))
            if bad.size:
                raise InputError(
                    f"row {part[bad[0]]} of the embeddings is their mean: whitening leaves it no direction"
                )
            found[first : first + BLOCK_ROWS] = some / norms[:, None]
    return found


def second_copies(embeddings: NDArray[Any], q: NDArray[np.float64]) -> NDArray[np.int64]:
    """Rows that are, number for number, copies of another with higher q, or with equal q and a lower place.

    Until that other row is picked it is at least as good, and afterwards its copies add nothing: a greedy selection
    can leave them out from the start.

    Args:
        embeddings: (n, d), float32 or float64.
        q: (n,).

    Returns:
        Their places.
    """
    words = np.ascontiguousarray(embeddings).view(np.uint32)
    odd = np.random.default_rng(0).integers(2**63, size=words.shape[1], dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    keys = np.empty(len(words), np.uint64)
    for first in range(0, len(words), BLOCK_ROWS):
        part = words[first : first + BLOCK_ROWS]
        keys[first : first + BLOCK_ROWS] = np.einsum("nd,d->n", part, odd, dtype=np.uint64, casting="unsafe")
    order: NDArray[np.int64] = np.lexsort((-q, keys))
    same = np.append(False, keys[order[1:]] == keys[order[:-1]])
    # The best of every run of equal keys, for all places of the run.
    best = order[np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))]
    later, best = order[same], best[same]
    equal = np.array([np.array_equal(words[one], words[other]) for one, other in zip(later, best, strict=True)], bool)
    copies: NDArray[np.int64] = later[equal]
    return copies


def compiled(function: F) -> F:
    """A function of numbers and arrays, compiled by numba when it is first called; it lets other threads run.

    The machine code is kept on disk, beside the module or in the user's cache; where neither can be written, it is
    made anew in every process.
    """
    import numba  # not at the top: this module is loaded by every command

    options: dict[str, Any] = {"nogil": True, "fastmath": {"contract", "reassoc"}}
    try:
        return cast("F", numba.njit(cache=True, **options)(function))
    except RuntimeError:  # no folder for the cache
        return cast("F", numba.njit(**options)(function))
