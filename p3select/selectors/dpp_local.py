"""Greedy MAP of a determinantal point process from each row's nearest picks alone, for any number of rows.

The gain of row i is its squared quality times its variance given what is picked. Given only its m nearest picks, the
variance can only be larger, and it is nearly the same, since far picks tell little about a row (the approximation is
Vecchia's, J. R. Stat. Soc. B 50, 1988). So the value stays an upper bound, as lazy evaluation needs (see
:mod:`p3select.selectors.dpp`), and a row is out of date only once something was picked near it: a far
pick costs nothing.

- Near is what lies in the row's nearest cells (:func:`p3select.neighbors.cells`). Every row remembers its nearest picks
  and how far it has read the lists of its cells, and reads only what was added since.
- A row's picks are conditioned on one by one, the nearest first, and only until the row is ruled out: most rows are, by
  one or two.
- Rows on top of the bounds are evaluated by the batch, on all cores.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from p3select import kernel, machine, neighbors
from p3select import limits as bounded
from p3select.errors import InputError
from p3select.selectors import dpp, embedded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from p3select.limits import Limits
    from p3select.selectors.dpp import Similarity

JITTER = 1e-6
"""Added to the variance of every pick against the rounding of float32 cosines; times 1 + 1/h."""

VARIANCE_FLOOR = 4.0
"""Variance, in jitters, below which a row counts as a copy of those picked."""

DEPTH = 0.97
"""A row is evaluated until its bound is below this fraction of the highest bound of the rows not evaluated with it."""

SOLVED_BYTES = 2**27
"""Room for what was solved for rows evaluated lately."""

KNOWN_ROWS = 300
"""Nearest earlier picks that :func:`accuracy` takes for all of them."""

KNOWN_NEIGHBOURS = 6
"""How many times the neighbours that a row was conditioned on these are, as far as :data:`WHOLE_ROWS` allow."""

WHOLE_ROWS = 1_200
"""Picks that :func:`accuracy` solves whole: 35 MB."""


class _Rows(NamedTuple):
    """What is known of every row."""

    x: NDArray[np.float32]  # (n, d)
    inverse: NDArray[np.float32]  # (n,): 1 / norm
    squared: NDArray[np.float64]  # (n,): q²
    bound: NDArray[np.float64]  # (n,): of the gain
    cells: NDArray[np.int32]  # (n, probes), the nearest first
    read: NDArray[np.int32]  # (n, probes): the last pick read of each cell's list, or −1
    version: NDArray[
        np.int64
    ]  # (n,): the sum of the lengths of the lists when the bound was last that of all picks near
    near: NDArray[np.int32]  # (n, m): the nearest picks: those solved for, then the others, the nearest first
    cosine: NDArray[np.float32]  # (n, m): their cosines
    held: NDArray[np.int32]  # (n,): how many
    complete: NDArray[np.bool_]  # (n,): whether the bound is that of all of them


class _Solved(NamedTuple):
    """What was solved for the rows evaluated lately, to go on from there: each has a seat."""

    seat: NDArray[np.int32]  # (n,)
    owner: NDArray[np.int64]  # (seats,): the row whose seat it is, or −1
    clock: NDArray[np.int64]  # (2,): the batch, and the seat that is given away next
    batch: NDArray[np.int64]  # (seats,): the last batch that it was needed in, during which it is not given away
    known: NDArray[np.int32]  # (seats,): how many of the nearest picks are solved for
    factor: NDArray[np.float64]  # (seats, m (m + 1) / 2): the rows of the Cholesky factor of their similarities
    weight: NDArray[np.float64]  # (seats, m): the row's columns of it


class _Picks(NamedTuple):
    """What is picked: per cell a list, kept as a chain from its first pick to its last."""

    rows: NDArray[np.int64]  # (k,)
    gains: NDArray[np.float64]  # (k,)
    x: NDArray[np.float32]  # (k, d), of norm 1
    after: NDArray[np.int32]  # (k,): the next pick in the same cell
    first: NDArray[np.int32]  # (cells,)
    last: NDArray[np.int32]  # (cells,)
    length: NDArray[np.int32]  # (cells,)


def dpp_local(
    embeddings: ArrayLike,
    quality: ArrayLike,
    k: int,
    *,
    scale: float | None = None,
    similarity: str = "gaussian",
    keep: ArrayLike | None = None,
    limits: Limits | None = None,
    seed: int | Sequence[int] = 0,
    cells: int | None = None,
    probes: int | None = None,
    neighbours: int | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The rows that nearly maximise log det L_S, each judged by its nearest picks; see :func:`p3select.dpp`.

    Rows of equal bound are taken in their order. What is missing when all rows that can be told apart are picked is
    filled as by ``dpp``; here a row counts as a copy of those picked when its variance is below 4e-6 (1 + 1 / scale).
    A rank that is lower than that, as of ``linear``, is not seen from the nearest picks alone.

    Args:
        embeddings: (n, d) of norm 1. A C-contiguous float32 array is used as it is, without a copy.
        quality: (n,) ≥ 0.
        k: 1 ≤ k ≤ n.
        scale: As for ``dpp``.
        similarity: As for ``dpp``; ``linear`` up to k = d.
        keep: As for ``dpp``.
        limits: As for ``dpp``.
        seed: Draws the cells' first centres. The number of threads has no influence; whether FAISS finds a GPU has.
        cells: k-means cells; None: one for 40 picks, at most 2,048 and at most one for 100 rows.
        probes: Nearest cells of a row in which its near picks are sought; None: 16 below k = 2,500, 8 below 50,000,
            then 4.
        neighbours: Picks that a row is conditioned on, the nearest ones; None: 24 below k = 2,500, where more win
            nothing, 48 below 50,000, then 16.

    Returns:
        (rows, gains) as ``dpp``. The gains are those given the nearest picks, at least the true ones; they never
        rise, and the sum of their logarithms is **more** than log det L_S: :func:`accuracy` says by how much.

        Memory beside the embeddings is at most that of :func:`needed_bytes`: 0.7 GB for 1,000,000 rows, k = 10,000,
        d = 384.

    Raises:
        InputError: As ``dpp``; cells, probes or neighbours out of their range; or ``linear`` with k > d.
    """
    embeddings, q, k = embedded("dpp-local", embeddings, quality, k)
    x = np.ascontiguousarray(embeddings, np.float32)
    inverse = 1.0 / kernel.checked_norms(x)
    kind = dpp.checked_similarity(embeddings, similarity, scale)
    n, d = x.shape
    if dpp.rank(d, k, similarity) < k:
        raise InputError(
            f"dpp-local of k = {k}: similarity 'linear' of {d} dimensions tells {d} rows apart, which is not seen from "
            "the nearest picks: choose similarity gaussian, selector dpp, or a smaller k"
        )
    cells, probes, neighbours = parameters(n, k, cells, probes, neighbours)
    dpp.afford("dpp-local", needed_bytes(n, d, k, cells, probes, neighbours), k, n, "fewer neighbours")
    priority, left = bounded.first(q, keep), bounded.checked(limits, n, keep, k)
    squared = np.square(priority)
    if not len(left.room):  # under limits a copy may fit where the better one does not
        squared[kernel.second_copies(x, priority)] = 0.0
    rows = _Rows(
        *(x, inverse.astype(np.float32), squared, squared.copy()),
        neighbors.cells(x, cells, probes, seed),
        np.full((n, probes), -1, np.int32),
        np.zeros(n, np.int64),
        dpp.reserved(n, neighbours, np.int32),
        dpp.reserved(n, neighbours, np.float32),
        np.zeros(n, np.int32),
        np.ones(n, np.bool_),
    )
    picks = _Picks(
        *(np.empty(k, np.int64), np.zeros(k), np.empty((k, d), np.float32), np.empty(k, np.int32)),
        *(np.full(cells, -1, np.int32), np.full(cells, -1, np.int32), np.zeros(cells, np.int32)),
    )
    t = _select(rows, picks, kind, left)
    return dpp.completed(picks.rows[:t], picks.gains[:t], q, k, priority, keep, left)


def parameters(
    n: int, k: int, cells: int | None = None, probes: int | None = None, neighbours: int | None = None
) -> tuple[int, int, int]:
    """Cells, probes and neighbours: those given, and the rule of :func:`dpp_local` for the others.

    Raises:
        InputError: One that is given is no whole number, or out of its range.
    """
    for name, value in {"cells": cells, "probes": probes, "neighbours": neighbours}.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | np.integer)):
            raise InputError(f"{name} {value!r}: a whole number from 1")
    few, many = k < 2_500, k >= 50_000
    cells = max(1, min(k // 40, n // 100, 2_048)) if cells is None else cells
    if not 1 <= cells <= n:
        raise InputError(f"cells = {cells}: it must be from 1 to the {n} rows")
    probes = min(cells, 4 if many else 16 if few else 8) if probes is None else probes
    if not 1 <= probes <= cells:
        raise InputError(f"probes = {probes}: it must be from 1 to the {cells} cells")
    neighbours = (16 if many else 24 if few else 48) if neighbours is None else neighbours
    if neighbours < 1:
        raise InputError(f"neighbours = {neighbours}: it must be at least 1")
    return cells, probes, neighbours


def accuracy(
    embeddings: ArrayLike,
    quality: ArrayLike,
    rows: NDArray[np.int64],
    gains: NDArray[np.float64],
    *,
    scale: float | None,
    similarity: str = "gaussian",
    neighbours: int | None = None,
    picks: int = 64,
    seed: int | Sequence[int] = 0,
) -> dict[str, float | int | bool]:
    """How much the gains of ``dpp-local`` claim too much, on the data at hand.

    Up to ``WHOLE_ROWS`` picks log det is computed whole, in float64. Above, some picks are drawn, and for each the
    gain is computed given its ``KNOWN_ROWS`` nearest earlier picks, which is at least its true gain: what is claimed
    too much is at least what is told, and was a third more in a test with rows in clusters.

    Memory: the picks' embeddings, and for each core 24 bytes times the square of the nearest picks that are taken.

    Args:
        embeddings: (n, d) of norm 1.
        quality: (n,).
        rows: (k,), and
        gains: (k,), as :func:`dpp_local` returned them. Rows filled in with gain 0 are left out.
        scale: h of the similarity; None for ``linear``.
        similarity: As it was given there.
        neighbours: As they were given there, or None. Of many, ``KNOWN_NEIGHBOURS`` times as many nearest earlier picks
            are taken in place of ``KNOWN_ROWS``, up to ``WHOLE_ROWS``, and at least as many as were given.
        picks: To draw.
        seed: Draws them.

    Returns:
        ``claimed``, the mean logarithm of the gains (of those drawn), and ``log_gain``, what it should be, both in
        nats per pick; ``error``, the standard error of their difference, 0 where ``exact``; ``picks``, how many.
    """
    kind = dpp.checked_similarity(embeddings, similarity, scale)
    some = np.flatnonzero(gains > 0)
    x = np.asarray(embeddings)[rows[some]]
    q = np.asarray(quality, np.float64)[rows[some]]
    claimed = np.log(gains[some])
    near = neighbours or 0
    count = max(KNOWN_ROWS, min(KNOWN_NEIGHBOURS * near, WHOLE_ROWS), near)
    exact = len(some) <= WHOLE_ROWS
    with kernel.unthreaded_blas(), ThreadPoolExecutor(machine.threads()) as pool:
        if exact:
            known = 2.0 * np.log(q) + 2.0 * np.log(_factor(x, kind).diagonal())
        else:
            drawn = np.sort(np.random.default_rng(seed).choice(len(some), picks, replace=False))
            given = pool.map(lambda pick: _given(x[:pick], x[pick], count, kind), drawn)
            known = 2.0 * np.log(q[drawn]) + np.log(list(given))
            claimed = claimed[drawn]
    return {
        "claimed": float(claimed.mean()),
        "log_gain": float(known.mean()),
        "error": 0.0 if exact else float((claimed - known).std() / math.sqrt(len(known))),
        "picks": len(known),
        "exact": exact,
    }


def _given(earlier: NDArray[Any], pick: NDArray[Any], count: int, kind: Similarity) -> float:
    """The variance of a pick given its nearest earlier ones, at most so many."""
    if len(earlier) > count:
        earlier = earlier[np.argpartition(earlier @ pick, -count)[-count:]]
    # The pick comes last: what its row of the factor has on the diagonal is its variance given the others.
    return float(_factor(np.vstack([earlier, pick]), kind)[-1, -1] ** 2)


def _factor(x: NDArray[Any], kind: Similarity) -> NDArray[np.float64]:
    """The Cholesky factor of the similarity of some rows."""
    unit = kernel.unit_rows(x)
    s = dpp.block(unit, unit, kind)
    s[np.diag_indices(len(s))] = 1.0 + dpp.VARIANCE_FLOOR
    return np.linalg.cholesky(s)


def needed_bytes(n: int, d: int, k: int, cells: int, probes: int, neighbours: int) -> int:
    """Memory that the selection takes at most, in bytes, beside the embeddings in float32.

    Some numbers for each row, the picks, and the larger of what k-means works on and of what is solved for rows.
    """
    triangle = neighbours * (neighbours + 1) // 2
    seats = _seats(_batch(cells, probes), neighbours)
    training = 4 * min(n, neighbors.TRAIN_ROWS * cells) * 3 * d
    return (
        n * (8 * probes + 8 * neighbours + 128)
        + 4 * k * (d + 8)
        + 4 * cells * (2 * d + min(n, neighbors.BLOCK_ROWS * machine.threads()))
        + max(training, seats * (8 * (triangle + neighbours) + 20))
    )


def _batch(cells: int, probes: int) -> int:
    """Rows that are evaluated together.

    After a pick, probes / cells of all rows are out of date: many more than its inverse are evaluated for nothing.
    """
    return min(max(4 * cells // probes, 32), 1_024)


def _seats(batch: int, neighbours: int) -> int:
    """Rows for which what was solved is remembered."""
    return max(4 * batch, SOLVED_BYTES // (8 * (neighbours * (neighbours + 1) // 2 + neighbours)))


def _select(rows: _Rows, picks: _Picks, kind: Similarity, limits: Limits) -> int:
    """Pick until there are k, or no row is left that is not a copy; returns how many were picked."""
    n, m = rows.near.shape
    k, jitter = len(picks.rows), JITTER * (1.0 + 1.0 / kind.h)
    batch = _batch(len(picks.last), rows.cells.shape[1])
    todo, places = np.empty(batch, np.int64), np.empty(batch, np.int64)
    triangle = m * (m + 1) // 2
    seats = _seats(batch, m)
    solved = _Solved(
        *(np.zeros(n, np.int32), np.full(seats, -1, np.int64), np.zeros(2, np.int64), np.zeros(seats, np.int64)),
        np.zeros(seats, np.int32),
        *(dpp.reserved(seats, triangle, np.float64), dpp.reserved(seats, m, np.float64)),
    )
    t = 0
    with ThreadPoolExecutor(machine.threads()) as pool:
        while t < k:
            if len(limits.room):
                rows.bound[~bounded.fitting(limits)] = 0.0
            top, beyond, _ = dpp.highest(rows.bound, max(2_048, n // 64))
            if not top.size:
                break
            # First all that are out of date, cell by cell: rows of a cell share near picks, which stay in the cache.
            stale = top[picks.length[rows.cells[top]].sum(axis=1) != rows.version[top]]
            stale = stale[np.argsort(rows.cells[stale, 0], kind="stable")]
            for part in np.array_split(stale, -(-len(stale) // (seats // 2))) if stale.size else []:
                _seat_all(solved, part)
                work = partial(_evaluate, rows, picks, solved, part, beyond, kind, jitter)
                neighbors.in_threads(pool, work, len(part), 16)
            bounds = rows.bound[top]
            peaks = dpp.peaks_of(bounds)
            while t < k:
                t, count, rest = _advance(rows, picks, solved, top, bounds, peaks, beyond, t, todo, places, limits)
                if count == 0:
                    break
                work = partial(_evaluate, rows, picks, solved, todo, rest, kind, jitter)
                neighbors.in_threads(pool, work, count, 16)
                _settle(rows, top, bounds, peaks, places, count)
    return t


@kernel.compiled
def _seat(solved: _Solved, row: int) -> None:
    """See that a row has a seat."""
    seat = solved.seat[row]
    if solved.owner[seat] != row:
        seat = solved.clock[1]
        while solved.batch[seat] == solved.clock[0]:
            seat = (seat + 1) % len(solved.owner)
        solved.clock[1] = (seat + 1) % len(solved.owner)
        solved.owner[seat], solved.seat[row], solved.known[seat] = row, seat, 0
    solved.batch[seat] = solved.clock[0]


@kernel.compiled
def _seat_all(solved: _Solved, rows: NDArray[np.int64]) -> None:
    solved.clock[0] += 1
    for row in rows:
        _seat(solved, row)


@kernel.compiled
def _advance(
    rows: _Rows,
    picks: _Picks,
    solved: _Solved,
    top: NDArray[np.int64],
    bounds: NDArray[np.float64],
    peaks: NDArray[np.float64],
    beyond: float,
    t: int,
    todo: NDArray[np.int64],
    places: NDArray[np.int64],
    limits: Limits,
) -> tuple[int, int, float]:
    """Pick while the best row is up to date; then list the rows on top that are not."""
    solved.clock[0] += 1
    count = 0
    aside = np.empty(len(todo), np.int64)
    kept = 0
    rest = 0.0
    while count < len(todo) and kept < len(todo) and t < len(picks.rows):
        best = 0.0
        for peak in peaks:
            best = max(best, peak)
        rest = max(best, beyond)
        if best == 0.0 or beyond > best:
            break
        place = dpp.first(bounds, peaks, best)
        row = top[place]
        if not bounded.fits(limits, row):
            rows.bound[row] = 0.0
            dpp.lower(bounds, peaks, place, 0.0)
            continue
        total = 0
        for probe in range(rows.cells.shape[1]):
            total += picks.length[rows.cells[row, probe]]
        if rows.version[row] != total:
            _seat(solved, row)
            todo[count], places[count] = row, place
            count += 1
        elif count:
            aside[kept] = place
            kept += 1
        else:
            picks.rows[t], picks.gains[t] = row, best
            for i in range(rows.x.shape[1]):
                picks.x[t, i] = rows.x[row, i] * rows.inverse[row]
            cell = rows.cells[row, 0]
            if picks.length[cell]:
                picks.after[picks.last[cell]] = t
            else:
                picks.first[cell] = t
            picks.last[cell] = t
            picks.length[cell] += 1
            rows.bound[row] = 0.0
            bounded.take(limits, row)
            t += 1
        dpp.lower(bounds, peaks, place, 0.0)
    for i in range(kept):
        dpp.lower(bounds, peaks, aside[i], rows.bound[top[aside[i]]])
    return t, count, rest


@kernel.compiled
def _settle(
    rows: _Rows,
    top: NDArray[np.int64],
    bounds: NDArray[np.float64],
    peaks: NDArray[np.float64],
    todo: NDArray[np.int64],
    count: int,
) -> None:
    for place in todo[:count]:
        dpp.lower(bounds, peaks, place, rows.bound[top[place]])


@kernel.compiled
def _put(rows: _Rows, row: int, solved: int, end: int, pick: int, cosine: float) -> None:
    """Insert a pick among those not solved for yet, the nearest first; place ``end`` is free."""
    while end > solved and rows.cosine[row, end - 1] < cosine:
        rows.cosine[row, end] = rows.cosine[row, end - 1]
        rows.near[row, end] = rows.near[row, end - 1]
        end -= 1
    rows.cosine[row, end] = cosine
    rows.near[row, end] = pick


@kernel.compiled
def _farthest(rows: _Rows, row: int) -> int:
    place = 0
    for other in range(1, rows.held[row]):
        if rows.cosine[row, other] < rows.cosine[row, place]:
            place = other
    return place


@kernel.compiled
def _read(rows: _Rows, picks: _Picks, solved: _Solved, row: int, seat: int, probe: int, enough: float) -> Any:
    """Take what a cell's list got since it was last read into the row's nearest picks.

    Returns:
        The highest cosine read; it stops at one above ``enough``.
    """
    m = rows.near.shape[1]
    cell = rows.cells[row, probe]
    farthest = _farthest(rows, row) if rows.held[row] == m else 0
    highest = np.float32(-1.0)
    while rows.read[row, probe] != picks.last[cell] and highest <= enough:
        pick = rows.read[row, probe]
        pick = picks.first[cell] if pick < 0 else picks.after[pick]
        rows.read[row, probe] = pick
        cosine = min(dpp.dot(rows.x[row], picks.x[pick]) * rows.inverse[row], np.float32(1.0))
        highest = max(highest, cosine)
        if rows.held[row] < m:
            rows.complete[row] = False
            _put(rows, row, solved.known[seat], rows.held[row], pick, cosine)
            rows.held[row] += 1
            if rows.held[row] == m:
                farthest = _farthest(rows, row)
        elif cosine > rows.cosine[row, farthest]:
            for place in range(farthest, m - 1):
                rows.cosine[row, place] = rows.cosine[row, place + 1]
                rows.near[row, place] = rows.near[row, place + 1]
            solved.known[seat] = min(solved.known[seat], farthest)
            rows.complete[row] = False
            _put(rows, row, solved.known[seat], m - 1, pick, cosine)
            farthest = _farthest(rows, row)
    return highest


@kernel.compiled
def _condition(
    rows: _Rows, picks: _Picks, solved: _Solved, row: int, seat: int, enough: float, kind: Similarity, jitter: float
) -> Any:
    """The row's variance given its nearest picks, one after the other, or until it is below ``enough``."""
    factor, weight = solved.factor[seat], solved.weight[seat]
    variance = 1.0
    for a in range(rows.held[row]):
        if a >= solved.known[seat]:
            one = rows.near[row, a]
            value = dpp.similar(rows.cosine[row, a], kind)
            diagonal = 1.0 + jitter
            own = a * (a + 1) // 2
            for b in range(a):
                cosine = dpp.dot(picks.x[one], picks.x[rows.near[row, b]])
                s = dpp.similar(cosine, kind)
                other = b * (b + 1) // 2
                for e in range(b):
                    s -= factor[own + e] * factor[other + e]
                s /= factor[other + b]
                factor[own + b] = s
                diagonal -= s * s
                value -= s * weight[b]
            factor[own + a] = math.sqrt(max(diagonal, jitter))
            weight[a] = value / factor[own + a]
            solved.known[seat] = a + 1
        variance -= weight[a] * weight[a]
        if variance < enough:
            return variance
    rows.complete[row] = True
    return variance


@kernel.compiled
def _cosine(s: float, kind: Similarity) -> float:
    """The cosine at which the similarity is s > 0."""
    if kind.kind == 2:
        return s
    return 1.0 + kind.h * (math.log(s) if kind.kind == 0 else 1.0 - 1.0 / s)


@kernel.compiled
def _evaluate(
    rows: _Rows,
    picks: _Picks,
    solved: _Solved,
    todo: NDArray[np.int64],
    rest: float,
    kind: Similarity,
    jitter: float,
    first: int,
    last: int,
) -> None:
    """Bring rows up to date, or until their bound is well below ``rest``."""
    probes = rows.cells.shape[1]
    for row in todo[first:last]:
        seat = solved.seat[row]
        variance = rows.bound[row] / rows.squared[row]
        enough = DEPTH * rest / rows.squared[row]
        # The cosine of a single pick that rules the row out.
        # At a large scale, the least similarity that counts is below that of any two rows.
        alone = max(_cosine(math.sqrt(1.0 - enough), kind), -1.0) if enough < 1.0 else -1.0
        total = 0
        if solved.known[seat] == 0:
            for end in range(1, rows.held[row]):
                _put(rows, row, 0, end, rows.near[row, end], rows.cosine[row, end])
        for probe in range(probes):
            total += picks.length[rows.cells[row, probe]]
            highest = _read(rows, picks, solved, row, seat, probe, alone)
            if highest > alone:
                s = dpp.similar(highest, kind)
                variance = min(variance, 1.0 - s * s / (1.0 + jitter))
                break
            if probe == 0 or probe == probes - 1:
                if not rows.complete[row]:
                    variance = min(variance, _condition(rows, picks, solved, row, seat, enough, kind, jitter))
                if variance < enough:
                    break
        else:
            rows.version[row] = total
        if variance < VARIANCE_FLOOR * jitter:
            variance = 0.0
        rows.bound[row] = rows.squared[row] * variance
