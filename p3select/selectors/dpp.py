"""Greedy MAP of a determinantal point process, exact, from the embeddings alone, without evaluating every row.

Each step picks the row that multiplies det L most (Chen, Zhang & Zhou, NeurIPS 2018, arXiv 1709.05135, algorithm 1).
The Cholesky factor kept is that of S, not of L = diag(q) S diag(q), so that rounding does not depend on quality: row i
has the gain q_i² c_i, where c_i is its variance given the rows picked: 1 at the start, 0 for a copy of a picked row.

c_i never rises, so a value that is out of date is an upper bound (Minoux 1978; for determinants Hemmi et al., NeurIPS
2022, arXiv 2206.09074), and most rows are never brought up to date at all. There are three levels:

- all rows have a bound; the rows of the highest bounds are brought up to date together by matrix products, in float32;
- those that then are on top, the finalists, are computed in float64;
- among the finalists, and against the bounds of all others, picks are made (:func:`_climb`) until another row's bound
  is on top. A row of the middle level is brought up to date by single picks as far as that is needed to rule it out.

float32 only rules out: a bound from it is raised by a margin, eight times the largest error seen in any row that was
computed both ways. Every pick, tie and gain is decided in float64, so that the picks are those of the plain greedy.
"""

from __future__ import annotations

import math
import mmap
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from p3select import kernel, machine
from p3select import limits as bounded
from p3select.errors import InputError
from p3select.selectors import embedded

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

    from p3select.limits import Limits

METHODS = ("auto", "dpp", "dpp-local", "dpp-torch")

VARIANCE_FLOOR = 1e-10
"""Conditional variance, relative to that before any pick, below which a row counts as a copy of those picked.

Above the rounding of float64 (about 1e-13) and of one text embedded twice in float32 (about 1e-12); two rows
with S = 1 − 1e-9 are still told apart.
"""

TIE = 1e-10
"""Gains that agree to this fraction are a tie: less than that is rounding, which depends on a row's position."""

MARGIN = 4e-6
"""By how much a variance in float32 is raised to make a bound of it, at first; times 1 + 1/h."""

AFFORDABLE = 2e13
"""n k (k + 2 d) up to which ``auto`` takes the exact greedy: about a minute or two on two cores."""

ON_DEVICE = (1e12, 1e15)
"""n k (k + 2 d) from which ``auto`` takes a CUDA device, if there is one, and up to which."""

BLOCK = 128
"""Picks whose columns are computed by one matrix product."""

UNFILTERED = 2_048
"""Rows up to which all is done in float64."""

FINALISTS = 128
"""Rows brought up to date in float64 at a time."""

FINALIST_BYTES = 2**28
"""Room for the columns and embeddings of finalists, of which there is room for ``UNFILTERED`` rows at least."""

REFRESHED = 512
"""Rows of one matrix product, which one thread does: at most so many, and"""

LEAST_REFRESHED = 32
"""at least so many, where there are. It does not depend on the number of threads, and so neither does rounding."""


def dpp(
    embeddings: ArrayLike,
    quality: ArrayLike,
    k: int,
    *,
    scale: float | None = None,
    similarity: str = "gaussian",
    keep: ArrayLike | None = None,
    limits: Limits | None = None,
    method: str = "auto",
    seed: int | Sequence[int] = 0,
    cells: int | None = None,
    probes: int | None = None,
    neighbours: int | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The rows that greedily maximise log det L_S, L_ij = q_i q_j S_ij, by default S_ij = exp((cos_ij − 1) / scale).

    Each step picks the row that multiplies the determinant most; ties go to the lower row. With gains that
    differ, the rows picked do not depend on the order of the input. The first k of k + m picks are those of k.

    **Past the rank.** When no row with q > 0 is left whose conditional variance is above ``VARIANCE_FLOOR``, a
    further pick would be decided by rounding. What is still missing is then filled with the remaining rows by
    quality, highest first, ties to the lower row, each with gain exactly 0: ``(gains == 0).sum()`` is the number
    of rows so filled. They are copies of picked rows, or rows with q = 0.

    **Rows to keep** come first, whatever their gain; all others are conditioned on them. **Under limits** a step takes
    the best row that still fits.

    Args:
        embeddings: (n, d) of norm 1.
        quality: (n,) ≥ 0; see :func:`p3select.kernel.quality`.
        k: 1 ≤ k ≤ n.
        scale: h of the similarity, > 0; the larger, the farther rows repel each other. None: the data's own, by
            :func:`p3select.kernel.scale`.
        similarity: ``gaussian``, ``cauchy``, or ``linear``, whose rank is at most d and which takes no scale; see
            :mod:`p3select.kernel`.
        keep: (m,) places of rows that have to be picked, m ≤ k.
        limits: What may be taken of groups of rows; see :mod:`p3select.limits`.
        method: ``dpp``, exact; ``dpp-torch``, the same on a CUDA device; ``dpp-local``, approximate, for any n: all
            said here holds for ``dpp``, and :func:`p3select.selectors.dpp_local.dpp_local` and
            :func:`p3select.selectors.dpp_torch.dpp_torch` say what holds for the others; ``auto``: :func:`choose`.
        seed: For ``dpp-local``. The exact greedy draws nothing.
        cells: For ``dpp-local``, asked for by name, like the next two; see there for what None means.
        probes: Nearest cells of a row in which its near picks are sought.
        neighbours: Picks that a row is conditioned on.

    Returns:
        (rows, gains): (k,) int64 in the order picked, and (k,) float64 det L_S after / before each pick, which
        never rise, rows to keep apart. The sum of their logarithms is log det L_S (−∞ once rows were filled). Fewer
        than k where limits let no more in.

        Memory is at most that of :func:`needed_bytes`: 0.4 GB for 20,000 rows, k = 1,000, d = 384 on two
        cores.

    Raises:
        InputError: Embeddings or quality that cannot be used (the message names the row), k outside 1…n, a scale
            that is not positive and finite or given with ``linear``, an unknown method or similarity, rows to keep that
            are not there or do not fit, options of another method, or more memory needed than there is left.
    """
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}: there are {', '.join(METHODS)}")
    local = {"cells": cells, "probes": probes, "neighbours": neighbours}
    local_alone(method, local)
    x, q, k = embedded("dpp", embeddings, quality, k)
    shape = x.shape
    if method == "auto" and len(shape) == 2:
        method, _ = choose(*shape, k, similarity)
    if method == "dpp-torch":
        from p3select.selectors.dpp_torch import dpp_torch  # it builds on this module

        return dpp_torch(x, q, k, scale=scale, similarity=similarity, keep=keep, limits=limits)
    if method == "dpp-local":
        from p3select.selectors.dpp_local import dpp_local  # it builds on this module

        return dpp_local(x, q, k, scale=scale, similarity=similarity, keep=keep, limits=limits, seed=seed, **local)
    most = rank(shape[-1], k, similarity)
    afford("dpp", needed_bytes(q.size, shape[-1], most), k, q.size, remedy(most, k))
    with kernel.unthreaded_blas(), ThreadPoolExecutor(machine.threads()) as pool:
        return exact(partial(_greedy, pool), x, q, k, scale, similarity, keep, limits)


def local_alone(method: str, given: Mapping[str, int | None]) -> None:
    """Refuse what only ``dpp-local`` takes, where another method or selector is asked for, ``auto`` too.

    Raises:
        InputError: One of those given is not None.
    """
    for name, value in given.items():
        if value is not None and method != "dpp-local":
            raise InputError(f"{name} {value}: is for dpp-local, asked for by name; not for {method!r}")


def exact(
    greedy: Callable[..., tuple[NDArray[np.int64], NDArray[np.float64], float]],
    x: NDArray[Any],
    q: NDArray[np.float64],
    k: int,
    scale: float | None,
    similarity: str,
    keep: ArrayLike | None,
    limits: Limits | None,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """What a greedy selects that rules out in float32, by a margin, and decides in float64.

    Args:
        greedy: A function of (embeddings in float32 or float64; the same in float32 of norm 1; q; k, or the rank where
            that is lower; similarity; limits; margin), which gives rows, gains, and 0 or a margin that would have been
            wide enough.
        x: (n, d) of norm 1.
        q: (n,).
        k: 1 ≤ k ≤ n.
        scale: As for :func:`dpp`, as are the next three.
        similarity: By name.
        keep: Places of rows to keep.
        limits: Not used up: the greedy has a copy.

    Raises:
        InputError: As :func:`dpp`.
    """
    if x.dtype != np.float32:
        x = x.astype(np.float64, copy=False)
    unit = kernel.unit_rows(x, np.float32)
    kind = checked_similarity(x, similarity, scale)
    priority, most = bounded.first(q, keep), rank(x.shape[1], k, similarity)
    margin = MARGIN * (1.0 + 1.0 / kind.h)
    while True:
        left = bounded.checked(limits, q.size, keep, k)
        rows, gains, wrong = greedy(x, unit, priority, most, kind, left, margin)
        if wrong <= 0:
            return completed(rows, gains, q, k, priority, keep, left)
        # A float32 value was off by more than its margin: what it ruled out may have been wrong.
        margin = wrong


def rank(d: int, k: int, similarity: str) -> int:
    """How many of k rows can be told apart, at most: those that a greedy has to pick, before the rest is filled in."""
    return min(k, d) if similarity == "linear" else k


def choose(n: int, d: int, k: int, similarity: str = "gaussian") -> tuple[str, str]:
    """What the method ``auto`` takes, and why: ``dpp`` where it fits the memory left and a minute or two.

    ``dpp-torch`` where there is more to do than it takes to start a CUDA device, and the device has room. For
    ``linear`` and k > d never ``dpp-local``, which refuses that.

    Args:
        n: Rows.
        d: Dimensions.
        k: Rows to pick.
        similarity: By name.

    Returns:
        (method, reason): ``dpp``, ``dpp-torch`` or ``dpp-local``, and a phrase for people.
    """
    most = rank(d, k, similarity)
    need, left, work = needed_bytes(n, d, most), machine.memory(), float(n) * most * (most + 2 * d)
    if ON_DEVICE[0] < work <= ON_DEVICE[1] and (there := _on_device(n, d, most)):
        return "dpp-torch", f"exact takes {there / 1e9:.1f} GB of the CUDA device"
    if most < k:
        return "dpp", f"exact takes at most {gigabytes(need)}, as 'linear' tells {d} rows apart"
    if left is not None and need > left:
        return "dpp-local", f"exact would take up to {need / 1e9:.1f} GB, and {left / 1e9:.1f} GB are available"
    if work > AFFORDABLE:
        return "dpp-local", f"exact would take about {work / AFFORDABLE:.1f} times as long as is deemed bearable"
    return "dpp", f"exact takes at most {gigabytes(need)}"


def gigabytes(count: int) -> str:
    """Bytes for people, rounded up: 0.1 GB at least."""
    return f"{-(-count // 10**8) / 10:.1f} GB"


class Similarity(NamedTuple):
    """Which similarity: its place in :data:`p3select.kernel.SIMILARITIES`, and its scale."""

    kind: int
    h: float


def checked_similarity(embeddings: ArrayLike, similarity: str, scale: float | None) -> Similarity:
    """The similarity of a name, with the scale given or that of the data; ``linear`` has the scale 1.

    Raises:
        InputError: There is none of that name; or the scale is not positive and finite, or given with ``linear``.
    """
    if similarity not in kernel.SIMILARITIES:
        raise InputError(f"unknown similarity {similarity!r}: there are {', '.join(kernel.SIMILARITIES)}")
    kind = kernel.SIMILARITIES.index(similarity)
    if similarity == "linear":
        if scale is not None:
            raise InputError(f"scale {scale}: similarity 'linear' takes none")
        return Similarity(kind, 1.0)
    h = kernel.scale(embeddings) if scale is None else scale
    if isinstance(h, bool) or not isinstance(h, int | float | np.number) or not (h > 0 and math.isfinite(h)):
        raise InputError(f"scale {h!r} must be a number > 0 and finite")
    return Similarity(kind, float(h))


def block(one: NDArray[Any], other: NDArray[Any], similarity: Similarity) -> NDArray[Any]:
    """A block of S; see :func:`p3select.kernel.similarities`."""
    return kernel.similarities(one, other, similarity.h, kernel.SIMILARITIES[similarity.kind])


@kernel.compiled
def similar(cosine: float, similarity: Similarity) -> float:
    """S of two rows by their cosine; the same as :func:`p3select.kernel.similarities`."""
    if similarity.kind == 2:
        return min(cosine, 1.0)
    distance = min(cosine - 1.0, 0.0) / similarity.h
    if similarity.kind == 0:
        return math.exp(distance)
    return 1.0 / (1.0 - distance)


class _Level(NamedTuple):
    """The Cholesky factor of S over the rows picked, and the columns of other rows, in one precision."""

    columns: NDArray[Any]  # (slots, k): row i holds C⁻¹ S_(picked, i) as far as it was computed
    seen: NDArray[np.int64]  # (slots,): how far
    variance: NDArray[np.float64]  # (slots,): 1 − the squares of the columns seen
    factor: NDArray[Any]  # (k, k): C, of which the lower triangle counts
    inverse: NDArray[Any]  # (k, BLOCK): the inverses of the blocks on the diagonal of C
    picked: NDArray[Any]  # (k, d): the rows picked


class _Room(NamedTuple):
    """What one matrix product after the other is written to: new memory for each would cost more than the product."""

    known: NDArray[Any]  # (REFRESHED, k): the columns of the rows in hand
    one: NDArray[Any]  # (REFRESHED · BLOCK,)
    other: NDArray[Any]  # (REFRESHED · BLOCK,)


def _rooms(rows: int, k: int, dtype: type) -> list[_Room]:
    """One for each thread that has work where so many rows are brought up to date."""
    size = _product_rows(rows)
    return [
        _Room(reserved(size, k, dtype), *(reserved(1, size * BLOCK, dtype)[0] for _ in range(2)))
        for _ in range(_products(rows))
    ]


def _product_rows(rows: int) -> int:
    """Rows of one matrix product, where so many are brought up to date."""
    return min(REFRESHED, max(LEAST_REFRESHED, -(-rows // 8)))


def _products(rows: int) -> int:
    """Matrix products that are done at a time, where at most so many rows are brought up to date."""
    return min(machine.threads(), -(-rows // _product_rows(rows)))


def _level(slots: int, k: int, d: int, dtype: type) -> _Level:
    return _Level(
        reserved(slots, k, dtype),
        np.zeros(slots, np.int64),
        np.ones(slots),
        reserved(k, k, dtype),
        np.zeros((-(-k // BLOCK) * BLOCK, BLOCK), dtype),
        np.empty((k, d), dtype),
    )


def reserved(rows: int, columns: int, dtype: type) -> NDArray[Any]:
    """An array of which only the pages written to take memory.

    Not ``np.empty``: numpy asks for huge pages, of which a few numbers here and there fill all.

    Raises:
        InputError: The system does not give it, although there was as much when it was asked beforehand.
    """
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    size = rows * columns * np.dtype(dtype).itemsize
    try:
        memory = mmap.mmap(-1, size, **private)
    except OSError:  # libraries and threads count in the address space that ulimit -v limits, too
        raise InputError(f"{gigabytes(size)} more memory cannot be had: choose a smaller k or fewer rows") from None
    return np.frombuffer(memory, dtype).reshape(rows, columns)


def _greedy(
    pool: ThreadPoolExecutor,
    x: NDArray[Any],
    unit: NDArray[np.float32],
    q: NDArray[np.float64],
    k: int,
    similarity: Similarity,
    limits: Limits,
    margin: float,
) -> tuple[NDArray[np.int64], NDArray[np.float64], float]:
    """Picks and gains up to k or the rank; and 0, or a margin that would have been enough where this one was not."""
    n, d = x.shape
    squared = np.square(q)
    limited = len(limits.room) > 0
    if not limited:  # under limits a copy may fit where the better one does not
        squared[kernel.second_copies(x, q)] = 0.0
    filtered = n > UNFILTERED
    coarse = _level(n if filtered else 1, k, d, np.float32)
    fine = _level(_slots(n, d, k), k, d, np.float64)
    room, room64 = _rooms(n, k, np.float32), _rooms(FINALISTS if filtered else n, k, np.float64)
    unit64 = np.empty((len(fine.seen), d))
    slot, owner = np.full(n, -1), np.full(len(fine.seen), -1)
    cap = np.ones(n)  # what float64 says of the variance
    rows, gains = np.empty(k, np.int64), np.zeros(k)

    def bounds(of: NDArray[np.int64] | slice) -> NDArray[np.float64]:
        return squared[of] * (np.minimum(cap[of], coarse.variance[of] + margin) if filtered else cap[of])

    t, batch = 0, 256
    while t < k:
        if limited:
            squared[~bounded.fitting(limits)] = 0.0
        top, beyond, lowest = highest(bounds(slice(None)), batch)
        if not top.size:
            break
        if filtered:
            stale = top[slot[top] < 0]
            _refresh(coarse, stale, unit, beyond / squared[stale] - margin, t, similarity, pool, room)
        before, missing = t, int(bounds(top).argmax())
        while missing >= 0 and t < k:
            wanted = bounds(top)
            wanted[missing] = np.inf
            chosen = top[highest(wanted, FINALISTS)[0]] if filtered else top
            new = _seat(chosen, slot, owner, squared * cap)
            unit64[slot[new]] = kernel.unit_rows(x[new])
            fine.seen[slot[new]], fine.variance[slot[new]] = 0, 1.0
            _refresh(fine, slot[chosen], unit64, np.zeros(len(chosen)), t, similarity, pool, room64)
            cap[chosen] = _alive(fine.variance[slot[chosen]])
            both = new[coarse.seen[new] == t] if filtered else new[:0]
            error = fine.variance[slot[both]] - coarse.variance[both]
            if (error > margin).any():
                return rows, gains, 8.0 * float(error.max())
            margin = max(margin, 8.0 * float(np.abs(error).max(initial=0.0)))
            now, missing = _climb(
                *(top, bounds(top), slot[top], squared[top], beyond, lowest, rows, gains, t, similarity, margin),
                *(unit, coarse, unit64, fine, limits),
            )
            if limited:
                squared[top[~bounded.fitting(limits, top)]] = 0.0
            seated = top[slot[top] >= 0]
            cap[seated] = _alive(fine.variance[slot[seated]])
            picked = rows[t:now]
            cap[picked] = 0.0
            owner[slot[picked]] = slot[picked] = -1
            _invert(fine, coarse, t, now)
            t = now
        batch = _next_batch(batch, t - before, n)
    return rows[:t], gains[:t], 0.0


def _alive(variance: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(variance > VARIANCE_FLOOR, variance, 0.0)


def _next_batch(batch: int, picks: int, n: int) -> int:
    """Rows of the next round: for 128 to 512 picks a round, so that matrix products are large enough."""
    if picks == 0:
        return 2 * batch
    if picks < 128:
        return max(batch, min(batch * 3 // 2, n // 3))
    return batch * 3 // 4 if picks >= 512 else batch


def highest(bound: NDArray[np.float64], count: int) -> tuple[NDArray[np.int64], float, int]:
    """The places of the highest bounds above 0, the lower place of equals first, and what is best beyond them.

    Returns:
        (places, beyond, lowest): at most ``count`` places, ascending; the highest bound at another place, and the
        lowest other place whose bound ties with it.
    """
    places = np.flatnonzero(bound > 0)
    if len(places) <= count:
        return places, 0.0, len(bound)
    values = bound[places]
    least = np.partition(values, len(values) - count)[len(values) - count]
    taken = values > least
    taken[np.flatnonzero(values == least)[: count - np.count_nonzero(taken)]] = True
    others = values[~taken]
    beyond = float(others.max())
    return places[taken], beyond, int(places[~taken][np.argmax(others >= beyond * (1.0 - 2.0 * TIE))])


def _seat(
    chosen: NDArray[np.int64], slot: NDArray[np.int64], owner: NDArray[np.int64], gain: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Give a slot to every chosen row that has none, taking it from the least promising rows where none is free."""
    new = chosen[slot[chosen] < 0]
    free = np.flatnonzero(owner < 0)
    if len(free) < len(new):
        worth = np.where(np.isin(owner, chosen), np.inf, np.where(owner < 0, -1.0, gain[owner]))
        free = np.argsort(worth, kind="stable")[: len(new)]
        gone = owner[free]
        slot[gone[gone >= 0]] = -1
    slot[new] = free[: len(new)]
    owner[slot[new]] = new
    return new


def _refresh(
    level: _Level,
    slots: NDArray[np.int64],
    unit: NDArray[Any],
    enough: NDArray[np.float64],
    t: int,
    similarity: Similarity,
    pool: ThreadPoolExecutor,
    room: list[_Room],
) -> None:
    """Compute the columns of some rows up to the pick t, or until a row's variance is below ``enough``."""
    order = np.argsort(level.seen[slots], kind="stable")
    order = order[level.seen[slots[order]] < t]
    size = _product_rows(len(order))

    def work(first: int) -> None:
        some, known = order[first : first + size], room.pop()
        _refresh_some(level, slots[some], unit[slots[some]], enough[some], t, similarity, known)
        room.append(known)

    for _ in pool.map(work, range(0, len(order), size)):
        pass


def _refresh_some(
    level: _Level,
    slots: NDArray[np.int64],
    unit: NDArray[Any],
    enough: NDArray[np.float64],
    t: int,
    s: Similarity,
    room: _Room,
) -> None:
    """The same of rows in the order in which they were seen."""
    known = room.known
    seen = level.seen[slots]
    _copy(level.columns, slots, seen[-1], known)
    stop = int(seen[0])
    while stop < t:
        start, stop = stop, min(stop // BLOCK * BLOCK + BLOCK, t)
        rows = int(np.searchsorted(seen, stop))  # those that lack a column of this block
        some, other = (array[: rows * (stop - start)].reshape(rows, stop - start) for array in (room.one, room.other))
        kernel.similarities(unit[:rows], level.picked[start:stop], s.h, kernel.SIMILARITIES[s.kind], out=some)
        if start:
            some -= np.matmul(known[:rows, :start], level.factor[start:stop, :start].T, out=other)
        inside = start % BLOCK
        np.matmul(some, level.inverse[start:stop, inside : inside + stop - start].T, out=other)
        _store(level, slots, known, other, seen, start)
        level.seen[slots[:rows]] = seen[:rows] = stop
        left = np.flatnonzero(level.variance[slots] >= enough)
        if not left.size:
            break
        if stop < t and 4 * np.searchsorted(left, rows) < 3 * rows:
            slots, unit, enough, seen = slots[left], unit[left], enough[left], seen[left]
            _copy(known, left, max(stop, seen[-1]), known)


@kernel.compiled
def _store(
    level: _Level,
    slots: NDArray[np.int64],
    known: NDArray[Any],
    some: NDArray[Any],
    seen: NDArray[np.int64],
    start: int,
) -> None:
    """Keep a block of columns, and take those that are new off the variances."""
    for place in range(len(some)):
        slot = slots[place]
        total = 0.0
        for i in range(some.shape[1]):
            known[place, start + i] = some[place, i]
            level.columns[slot, start + i] = some[place, i]
        for i in range(max(seen[place] - start, 0), some.shape[1]):
            total += np.float64(some[place, i]) * np.float64(some[place, i])
        level.variance[slot] -= total


@kernel.compiled
def _copy(columns: NDArray[Any], rows: NDArray[np.int64], count: int, to: NDArray[Any]) -> None:
    """The first columns of some rows, ascending where they are copied to the array that they are from."""
    for place in range(len(rows)):
        for i in range(count):
            to[place, i] = columns[rows[place], i]


def _invert(fine: _Level, coarse: _Level, before: int, t: int) -> None:
    """Bring the inverses of the diagonal blocks up to date with the picks from ``before`` to t."""
    for start in range(before // BLOCK * BLOCK, t, BLOCK):
        stop = min(start + BLOCK, t)
        triangle = np.tril(fine.factor[start:stop, start:stop])
        inverse = np.linalg.solve(triangle, np.eye(stop - start))
        fine.inverse[start:stop, : stop - start] = inverse
        coarse.inverse[start:stop, : stop - start] = inverse


@kernel.compiled
def dot(a: NDArray[Any], b: NDArray[Any]) -> Any:
    """The product of two vectors, summed in their own precision."""
    total = a.dtype.type(0)
    for i in range(len(a)):
        total += a[i] * b[i]
    return total


@kernel.compiled
def _extend(level: _Level, slot: int, unit: NDArray[Any], enough: float, t: int, similarity: Similarity) -> None:
    """At least one more column of a row, up to the pick t, or until its variance is below ``enough``."""
    columns, seen = level.columns[slot], level.seen[slot]
    while True:
        s = similar(dot(unit, level.picked[seen]), similarity)
        columns[seen] = (s - dot(columns[:seen], level.factor[seen, :seen])) / level.factor[seen, seen]
        level.variance[slot] -= columns[seen] * columns[seen]
        seen += 1
        if seen == t or level.variance[slot] < enough:
            break
    level.seen[slot] = seen


@kernel.compiled
def _append(coarse: _Level, fine: _Level, slot: int, unit: NDArray[np.float64], t: int) -> None:
    """Make a finalist the pick t of both factors."""
    fine.columns[slot, t] = math.sqrt(fine.variance[slot])
    for i in range(t + 1):
        fine.factor[t, i] = coarse.factor[t, i] = fine.columns[slot, i]
    for i in range(len(unit)):
        fine.picked[t, i] = coarse.picked[t, i] = unit[i]


@kernel.compiled
def peaks_of(bounds: NDArray[np.float64]) -> NDArray[np.float64]:
    """The highest bound of every 64 places: with them the best of all is found, and kept, without a look at each."""
    peaks = np.zeros((len(bounds) + 63) // 64)
    for place in range(len(bounds)):
        peaks[place // 64] = max(peaks[place // 64], bounds[place])
    return peaks


@kernel.compiled
def first(bounds: NDArray[np.float64], peaks: NDArray[np.float64], least: float) -> int:
    """The first place whose bound is at least that."""
    block = 0
    while peaks[block] < least:
        block += 1
    place = block * 64
    while bounds[place] < least:
        place += 1
    return place


@kernel.compiled
def lower(bounds: NDArray[np.float64], peaks: NDArray[np.float64], place: int, bound: float) -> None:
    """Give a place its new bound."""
    bounds[place] = bound
    block = place // 64
    peaks[block] = 0.0
    for other in range(block * 64, min(block * 64 + 64, len(bounds))):
        peaks[block] = max(peaks[block], bounds[other])


@kernel.compiled
def _climb(
    top: NDArray[np.int64],
    bounds: NDArray[np.float64],
    slot: NDArray[np.int64],
    squared: NDArray[np.float64],
    beyond: float,
    lowest: int,
    rows: NDArray[np.int64],
    gains: NDArray[np.float64],
    t: int,
    similarity: Similarity,
    margin: float,
    unit: NDArray[np.float32],
    coarse: _Level,
    unit64: NDArray[np.float64],
    fine: _Level,
    limits: Limits,
) -> tuple[int, int]:
    """Pick while it is certain which row is best.

    ``top`` are rows, ascending, each with its bound, its slot among the finalists (−1: none) and its squared quality;
    ``beyond`` is the highest bound of all other rows, ``lowest`` the first of those that reach it. Picks and gains
    are written from t on, and so are the factors.

    Returns:
        (t, missing): picks so far; and the place of the row that has to become a finalist before there can be more,
        or −1 where it is the other rows' bounds that are in the way.
    """
    peaks = peaks_of(bounds)
    lead = 0.0  # the highest gain known to be up to date
    while t < len(rows):
        best = 0.0
        for peak in peaks:
            best = max(best, peak)
        if best == 0.0 or beyond > best:
            return t, -1
        least = best
        place = first(bounds, peaks, least)
        if slot[place] >= 0 and fine.seen[slot[place]] == t:
            # It is the best; the lowest row that may tie with it goes first.
            least = best * (1.0 - TIE)
            place = first(bounds, peaks, least)
        row, seat, enough = top[place], slot[place], lead / squared[place]
        if not bounded.fits(limits, row):
            lower(bounds, peaks, place, 0.0)
        elif seat < 0:
            if coarse.seen[row] == t:
                return t, place
            _extend(coarse, row, unit[row], enough - margin, t, similarity)
            lower(bounds, peaks, place, min(bounds[place], squared[place] * (coarse.variance[row] + margin)))
        elif fine.seen[seat] < t:
            _extend(fine, seat, unit64[seat], enough, t, similarity)
            variance = fine.variance[seat] if fine.variance[seat] > VARIANCE_FLOOR else 0.0
            lower(bounds, peaks, place, squared[place] * variance)
            if fine.seen[seat] == t:
                lead = max(lead, bounds[place])
        elif beyond >= least and lowest < row:
            return t, -1
        else:
            rows[t], gains[t] = row, bounds[place]
            _append(coarse, fine, seat, unit64[seat], t)
            bounded.take(limits, row)
            lower(bounds, peaks, place, 0.0)
            t += 1
            lead = 0.0
    return t, -1


def completed(
    rows: NDArray[np.int64],
    gains: NDArray[np.float64],
    q: NDArray[np.float64],
    k: int,
    priority: NDArray[np.float64],
    keep: ArrayLike | None,
    limits: Limits,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The picks with gains of their quality, not their priority; what is still missing by quality, with gain 0.

    Rows to keep that are copies of others were never picked: they take the place of the last picks, which are the same
    as if there had been that many picks fewer.
    """
    if keep is not None:
        copies = np.setdiff1d(np.asarray(keep, np.int64), rows)
        rows, gains = rows[: k - len(copies)], gains[: k - len(copies)]
        gains = gains * np.square(q[rows] / priority[rows])
        rows, gains = np.concatenate([rows, copies]), np.concatenate([gains, np.zeros(len(copies))])
    left = np.ones(len(q), dtype=bool)
    left[rows] = False
    rest = np.flatnonzero(left)
    rest = rest[np.argsort(-q[rest], kind="stable")]
    rest = bounded.in_order(limits, rest, k - len(rows)) if len(limits.room) else rest[: k - len(rows)]
    return np.concatenate([rows, rest]), np.concatenate([gains, np.zeros(len(rest))])


def _slots(n: int, d: int, k: int) -> int:
    return min(n, max(UNFILTERED, FINALIST_BYTES // (8 * (k + d))))


def needed_bytes(n: int, d: int, k: int) -> int:
    """Memory that the exact greedy takes at most, in bytes, beside the embeddings in float32 or float64.

    The embeddings in float32, the columns of every row in float32, of the finalists in float64, the Cholesky factor in
    both, the rows that each core's matrix products work on, and some twelve numbers for each row. Of many picks usually
    less than half of it is used.
    """
    filtered = n > UNFILTERED
    rows = n * (4 * d + 4 * k * filtered + 100)
    finalists = _slots(n, d, k) * (8 * (k + d) + 24)
    products = 4 * filtered * _products(n) * _product_rows(n)
    products += 8 * _products(few := FINALISTS if filtered else n) * _product_rows(few)
    return rows + finalists + products * (k + 2 * d + 2 * BLOCK) + 12 * k * (k + d) + 12 * (k + BLOCK) * BLOCK


def _on_device(n: int, d: int, k: int) -> int:
    """Bytes that ``dpp-torch`` takes, or 0 where there is no CUDA device with room for it."""
    if find_spec("torch") is None:
        return 0
    import torch

    if not torch.cuda.is_available():
        return 0
    from p3select.selectors import dpp_torch

    need = dpp_torch.needed_bytes(n, d, k)
    return need if need <= dpp_torch.left_bytes() else 0


def remedy(most: int, k: int) -> str:
    """What to choose where the exact greedy, of which ``most`` of k rows can be told apart, does not fit."""
    return "selector dpp-local" if most == k else "similarity gaussian"


def afford(name: str, need: int, k: int, n: int, remedy: str) -> None:
    """Refuse what would not fit: an allocation that is too large may end the process without a message.

    Raises:
        InputError: More bytes are needed than are available.
    """
    left = machine.memory()
    if left is not None and need > left:
        raise InputError(
            f"{name} of k = {k} from {n} rows needs {need / 1e9:.1f} GB, and {left / 1e9:.1f} GB are available: "
            f"choose {remedy}, a smaller k or fewer rows"
        )
