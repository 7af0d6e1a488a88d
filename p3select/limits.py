"""Limits: what a greedy selection may take of each group of rows, and the rows that it has to take first.

At most N rows for each value of a column, shares of a budget for values of a column, and a budget in tokens are one
thing: groups of rows, each with room, of which a row that is picked takes its cost. With every row of cost 1 that is
a partition matroid (Fisher, Nemhauser & Wolsey, Math. Prog. Study 8, 1978), with one group of all rows a knapsack
(Sviridenko, Oper. Res. Lett. 32, 2004); a selection may be under several. A greedy step takes the best row that still
fits. Room only shrinks, so that a row that does not fit is out for good.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from p3select import kernel
from p3select.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike, NDArray

FIRST = 1e12
"""How many times the squared quality of all others the rows to keep get: more than any ratio of two variances."""


class Limits(NamedTuple):
    """What may be taken of each group of rows, for each of c limits.

    Attributes:
        group: int32 (c, n): a row's group.
        cost: int64 (c, n): what a row takes of its group's room.
        room: int64 (c, groups): what may be taken of a group.
    """

    group: NDArray[np.int32]
    cost: NDArray[np.int64]
    room: NDArray[np.int64]


def at_most(count: int, groups: ArrayLike) -> Limits:
    """At most so many rows of each group.

    Args:
        count: ≥ 1.
        groups: (n,) a row's group: numbers, text, anything that :func:`numpy.unique` takes.

    Raises:
        InputError: A count below 1.
    """
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
        raise InputError(f"at most {count!r} rows of a group: give a whole number from 1")
    values, group = np.unique(np.asarray(groups), return_inverse=True)
    room = np.full((1, len(values)), min(int(count), len(group)), np.int64)
    return Limits(group.astype(np.int32)[None], np.ones((1, len(group)), np.int64), room)


def shares(parts: Mapping[Any, float], groups: ArrayLike, total: int, costs: ArrayLike | None = None) -> Limits:
    """A share of the total for each of some groups; all other rows together may have the rest.

    Args:
        parts: Group → its share, from 0 to 1.
        groups: (n,) a row's group.
        total: Rows, or what ``costs`` are counted in.
        costs: int (n,); None: every row counts 1.

    Returns:
        The limit. The largest shares take up what rounding leaves, so that the rooms sum to the total.

    Raises:
        InputError: Shares out of their range or above 1 in all, a group that no row has, a group whose rows are
            fewer than its share, or shares so small that no row fits.
    """
    given = np.asarray(groups)
    cost = np.ones(len(given), np.int64) if costs is None else np.asarray(costs, np.int64)
    names, wanted = list(parts), np.array(list(parts.values()), np.float64)
    for name, share in parts.items():
        if not 0 <= share <= 1:
            raise InputError(f"share {name}: {share:.4%}: from 0% to 100%")
    rest = 1.0 - wanted.sum()
    if rest < -1e-9:
        raise InputError(f"shares {', '.join(map(str, names))}: {wanted.sum():.4%} together; at most 100%")
    group = np.full(len(given), len(names), np.int32)
    for number, name in enumerate(names):
        group[given == name] = number
    exact = np.append(wanted, rest if rest > 1e-9 else 0.0) * total
    room = np.floor(exact + 1e-9).astype(np.int64)
    left = np.argsort(room - exact, kind="stable")
    room[left[: total - int(room.sum())]] += 1
    labels = [*names, "all other values"]
    for number, name in enumerate(labels):
        there = int(cost[group == number].sum())
        if there < room[number]:
            unit = "rows" if costs is None else "tokens"
            raise InputError(
                f"share {name}: {exact[number] / total:.4g} of {total:,} {unit} is {room[number]:,}, and the rows to "
                f"choose from have {there:,}; give a smaller budget, another share or a later pace"
            )
    if not (cost <= room[group]).any():
        sizes = (f"{labels[i]}: {room[i]:,}, its shortest row {cost[group == i].min():,}" for i in np.unique(group))
        raise InputError(f"shares of {total:,} tokens: no row fits ({'; '.join(sizes)}); give a larger budget")
    return Limits(group[None], cost[None], room[None])


def budget(costs: ArrayLike, total: int) -> Limits:
    """A total that the costs of the rows picked may not go above.

    Args:
        costs: int (n,) > 0.
        total: In the same unit.

    Raises:
        InputError: A cost below 1.
    """
    cost = np.asarray(costs, np.int64)
    bad = np.flatnonzero(cost < 1)
    if bad.size:
        raise InputError(f"row {bad[0]} has cost {cost[bad[0]]}: a cost is a whole number from 1")
    return Limits(np.zeros((1, len(cost)), np.int32), cost[None], np.array([[total]], np.int64))


def together(*some: Limits) -> Limits:
    """All of some limits at once."""
    groups = max(one.room.shape[1] for one in some)
    room = [np.pad(one.room, ((0, 0), (0, groups - one.room.shape[1]))) for one in some]
    return Limits(np.vstack([one.group for one in some]), np.vstack([one.cost for one in some]), np.vstack(room))


def crossed(limits: Limits, keep: ArrayLike | None, picked: ArrayLike | None) -> tuple[Limits, NDArray[np.bool_]]:
    """One limit in the place of two, under which all that takes what fits ends with as many rows as there can be.

    Under two limits a row that is taken may bar two others. Here each pair of a group of the one and a group of the
    other is a group of its own, with room for as many rows as a largest flow from the second limit's groups to the
    first's has there: that of the rows picked, and augmenting paths (Ford & Fulkerson, Canad. J. Math. 8, 1956), by
    which no group of either limit gets fewer rows. Rows to keep stay.

    Args:
        limits: Two, of rows that cost 1.
        keep: (m,) places of rows to keep.
        picked: (k,) places of rows that were picked under the limits, or None.

    Returns:
        (limit, short): the limit, and bool (groups of the second limit,) which of them cannot be filled together,
        whatever the others are given; none where all can.

    Raises:
        InputError: As :func:`checked`.
    """
    from scipy.sparse import csr_array  # slow to load, and seldom needed
    from scipy.sparse.csgraph import breadth_first_order, maximum_flow

    n = limits.group.shape[1]
    most, wanted = np.minimum(checked(limits, n, keep, n).room, n)  # scipy counts in 32 bits
    into, out_of = limits.group.astype(np.int64)
    pairs, pair = np.unique(out_of * len(most) + into, return_inverse=True)
    kept, taken = np.zeros((2, n), np.bool_)
    kept[_places(keep, n)] = taken[_places(picked, n)] = True
    there, held, flow = (np.bincount(pair[rows], minlength=len(pairs)) for rows in (~kept, kept, taken & ~kept))
    # Nodes: the source, the second limit's groups, the first one's, the sink. What flows already may be sent back.
    sink = 1 + len(wanted) + len(most)
    second, first = np.arange(1, 1 + len(wanted)), np.arange(1 + len(wanted), sink)
    one, other = second[pairs // len(most)], first[pairs % len(most)]
    tails = np.concatenate([np.zeros(len(second), np.int64), one, other, first])
    heads = np.concatenate([second, other, one, np.full(len(first), sink)])
    unfilled = wanted - np.bincount(one, flow, sink)[second]
    unused = most - np.bincount(other, flow, sink)[first]
    room = np.concatenate([unfilled, there - flow, flow, unused]).astype(np.int32)
    network = csr_array((room, (tails, heads)), (sink + 1, sink + 1))
    more = maximum_flow(network, 0, sink).flow.tocoo()
    between = np.isin(more.row, second) & np.isin(more.col, first)
    at = (more.row[between] - second[0]).astype(np.int64) * len(most) + more.col[between] - first[0]
    flow[np.searchsorted(pairs, at)] += more.data[between]
    rest = network - more.tocsr()
    rest.eliminate_zeros()
    reached = breadth_first_order(rest, 0, return_predecessors=False)
    limit = Limits(pair.astype(np.int32)[None], np.ones((1, n), np.int64), (flow + held)[None])
    return limit, np.isin(second, reached)


def checked(limits: Limits | None, n: int, keep: ArrayLike | None, k: int) -> Limits:
    """The limits with rooms of their own, to be used up, of which the rows to keep have taken theirs.

    Args:
        limits: None: there are none.
        n: Rows.
        keep: Places of the rows to keep, or None.
        k: Rows to pick.

    Raises:
        InputError: They are of another number of rows; there is no such place, or it is given twice; or the rows to
            keep do not fit, or are more than k.
    """
    kept = _places(keep, n)
    if len(kept) > k:
        raise InputError(f"{len(kept):,} rows to keep, and k = {k:,}: choose a larger budget, or keep fewer")
    if limits is None:
        return Limits(np.zeros((0, n), np.int32), np.zeros((0, n), np.int64), np.zeros((0, 0), np.int64))
    if limits.group.shape[1:] != (n,) or limits.cost.shape != limits.group.shape:
        raise InputError(f"limits of {limits.group.shape[1:]} rows, where there are {n}")
    room, cost = limits.room.copy(), limits.cost.copy() if kept.size else limits.cost
    for group, own, left in zip(limits.group, cost, room, strict=True):
        np.subtract.at(left, group[kept], own[kept])
        own[kept] = 0
        if (left < 0).any():
            over = int(np.argmin(left))
            row = kept[group[kept] == over][0]
            raise InputError(f"the rows to keep, such as row {row}, take {-left[over]:,} more than their limit allows")
    return Limits(limits.group, cost, room)


def first(quality: NDArray[np.float64], keep: ArrayLike | None) -> NDArray[np.float64]:
    """The quality by which the rows to keep come before all others, whatever the similarity says.

    Args:
        quality: (n,) ≥ 0.
        keep: Places of the rows to keep, or None.

    Raises:
        InputError: As :func:`checked`.
    """
    kept = _places(keep, len(quality))
    if not kept.size:
        return quality
    top = np.delete(quality, kept).max(initial=0.0)
    priority = quality / top if top else np.zeros(len(quality))
    priority[kept] = math.sqrt(FIRST)
    return priority


def part(limits: Limits, rows: NDArray[np.int64]) -> Limits:
    """The limits of some of the rows."""
    return Limits(limits.group[:, rows], limits.cost[:, rows], limits.room)


def fitting(limits: Limits, rows: NDArray[np.int64] | slice = slice(None)) -> NDArray[np.bool_]:
    """Which rows still fit."""
    group, cost = limits.group[:, rows], limits.cost[:, rows]
    found = np.ones(group.shape[1], np.bool_)
    for some, own, left in zip(group, cost, limits.room, strict=True):
        found &= own <= left[some]
    return found


def beside(limits: Limits, picked: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which rows still fit beside those picked, (n,)."""
    some = limits._replace(room=limits.room.copy())
    for group, own, left in zip(*some, strict=True):
        np.subtract.at(left, group[picked], own[picked])
    found = fitting(some)
    found[picked] = False
    return found


def _places(keep: ArrayLike | None, n: int) -> NDArray[np.int64]:
    rows = np.asarray([] if keep is None else keep)
    if rows.ndim != 1 or (rows.size and not np.issubdtype(rows.dtype, np.integer)):
        raise InputError(f"keep: give the places of rows, (m,) integers, not {rows.dtype} {rows.shape}")
    outside = rows[(rows < 0) | (rows >= n)]
    if outside.size or len(np.unique(rows)) < len(rows):
        raise InputError(f"keep: {f'row {outside[0]} is not there' if outside.size else 'a row is given twice'}")
    return rows.astype(np.int64)


@kernel.compiled
def fits(limits: Limits, row: int) -> bool:
    """Whether a row still fits."""
    for one in range(limits.group.shape[0]):
        if limits.cost[one, row] > limits.room[one, limits.group[one, row]]:
            return False
    return True


@kernel.compiled
def take(limits: Limits, row: int) -> None:
    """Use up a row's room."""
    for one in range(limits.group.shape[0]):
        limits.room[one, limits.group[one, row]] -= limits.cost[one, row]


@kernel.compiled
def in_order(limits: Limits, order: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    """The first k rows of an order, of those that fit when it is their turn."""
    taken = np.empty(k, np.int64)
    count = 0
    for row in order:
        if count == k:
            break
        if fits(limits, row):
            take(limits, row)
            taken[count] = row
            count += 1
    return taken[:count]
