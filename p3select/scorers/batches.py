"""Which rows go through the model together, and which beginnings they share: plain arithmetic on token ids."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    Tokens = Sequence[NDArray[np.int32]]

# A beginning is computed once for several rows where it has this many tokens …
SHARED_TOKENS = 64
# … and where that spares this part of the tokens that the rows would cost otherwise. A pass on top of a cache has its
# own price (the cache is copied for every row, and attention needs a mask), which eats the gain of less than this.
SHARED_PART = 0.1
# A batch and the beginnings that it stands on hold at most this many times the tokens of a batch.
CACHED = 8


@dataclass(frozen=True, eq=False)
class Prefix:
    """Tokens ``start`` to ``stop`` of ``row``, which other rows have too, after those of ``parent``."""

    row: int
    start: int
    stop: int
    parent: Prefix | None


class Batch(NamedTuple):
    """Rows for one forward pass, the longest first, after the tokens that ``prefix`` holds."""

    rows: list[int]
    prefix: Prefix | None


class Limits(NamedTuple):
    """What a batch may hold; one row alone always may be a batch."""

    tokens: int
    """Rows × tokens of the longest, without the shared beginning."""
    logits: int
    """Rows of logits."""
    padding: float
    """The part of the tokens that is padding."""


def plan(ids: Tokens, logits: Sequence[int], free: Sequence[int] | None, limits: Limits) -> list[Batch]:
    """Batches over all rows; the same input gives the same batches.

    Args:
        ids: One array (length,) of token ids per row.
        logits: The rows of logits that each row needs.
        free: How many of each row's first tokens may be shared: those whose logits nobody needs. None: share
            nothing.
        limits: What a batch may hold.

    Returns:
        Every row in one batch. Batches on the same prefix follow each other, and then those on its children.
    """
    lengths = [len(row) for row in ids]
    owners: dict[Prefix | None, list[int]] = {None: list(range(len(ids)))}
    if free is not None:
        owners = _owners(ids, free)
    return [
        Batch(rows, prefix)
        for prefix, owned in owners.items()
        for rows in _batches(owned, lengths, logits, prefix.stop if prefix else 0, limits)
    ]


def _owners(ids: Tokens, free: Sequence[int]) -> dict[Prefix | None, list[int]]:
    """Prefix → its rows, a parent before its children.

    Rows are sorted by their tokens, so that those with a common beginning lie together, as runs within runs. A run
    becomes a Prefix where that is worth its while; either way it is taken apart into the runs that share more.
    """
    beginnings = [row[:count] for row, count in zip(ids, free, strict=True)]
    # Big-endian bytes sort as the token ids do.
    order = sorted(range(len(ids)), key=lambda row: (beginnings[row].astype(">u4").tobytes(), row))
    common = [0] + [_common(beginnings[a], beginnings[b]) for a, b in pairwise(order)]
    owners: dict[Prefix | None, list[int]] = {None: []}
    runs: list[tuple[int, int, int, Prefix | None]] = [(0, len(order), 0, None)]
    while runs:
        first, stop, start, owner = runs.pop()
        if stop - first < 2:
            owners[owner] += order[first:stop]
            continue
        depth = min(common[first + 1 : stop])
        spared = (stop - first - 1) * (depth - start)
        cost = sum(len(ids[row]) - start for row in order[first:stop])
        if depth - start >= SHARED_TOKENS and spared >= SHARED_PART * cost:
            owner, start = Prefix(order[first], start, depth, owner), depth
            owners[owner] = []
        least = max(start + SHARED_TOKENS, depth + 1)
        edges = [first, *(i for i in range(first + 1, stop) if common[i] < least), stop]
        # The last one in is the next one out: a prefix's rows and children are done before its neighbour begins.
        runs += [(a, b, start, owner) for a, b in pairwise(edges)][::-1]
    return owners


def _common(left: NDArray[np.int32], right: NDArray[np.int32]) -> int:
    count = min(len(left), len(right))
    differ = left[:count] != right[:count]
    return int(differ.argmax()) if differ.any() else count


def _batches(
    rows: list[int], lengths: Sequence[int], logits: Sequence[int], depth: int, limits: Limits
) -> list[list[int]]:
    """Rows cut into batches, the longest rows first."""
    batches: list[list[int]] = []
    longest = filled = wanted = 0
    for row in sorted(rows, key=lambda row: (-lengths[row], row)):
        length = lengths[row] - depth
        count = len(batches[-1]) + 1 if batches else 1
        fits = (
            count * longest <= limits.tokens
            and count * (depth + longest) <= CACHED * limits.tokens
            and wanted + logits[row] <= limits.logits
            and filled + length >= (1 - limits.padding) * count * longest
        )
        if batches and fits:
            batches[-1].append(row)
            filled += length
            wanted += logits[row]
        else:
            batches.append([row])
            longest = filled = length
            wanted = logits[row]
    return batches
