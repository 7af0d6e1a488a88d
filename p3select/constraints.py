"""What users ask of a selection beside the best rows, from their words to arrays.

A budget in tokens, at most N rows for each value of a column, shares for values of a column, rows to keep and to leave
out. :mod:`p3select.limits` does the rest.
"""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from p3select import dataset as data
from p3select import fingerprints, index
from p3select.errors import InputError, MismatchError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from p3select.limits import Limits
    from p3select.run import Run

TOKENS = re.compile(r"(\d+(?:\.\d+)?)([kMG]?)tok")
UNITS = {"": 1, "k": 1_000, "M": 1_000_000, "G": 1_000_000_000}
SHARE = re.compile(r"(\d+(?:\.\d+)?) *%")
# Rows or tokens. More than there are anywhere, and sums of them are within int64.
MOST = 10**15


def budget_tokens(budget: int | str) -> int | None:
    """A budget in tokens as a count; None where it is in rows.

    Args:
        budget: Such as ``"2Mtok"``, ``"500ktok"``, ``"1500tok"``.

    Raises:
        InputError: It comes to less than one token, or to more than ``MOST``.
    """
    found = TOKENS.fullmatch(str(budget).strip())
    if not found:
        return None
    tokens = float(found[1]) * UNITS[found[2]]
    if not 1 <= tokens <= MOST:
        raise InputError(f"budget {budget!r}: comes to {tokens:.3g} tokens; give from 1tok to {MOST // UNITS['G']}Gtok")
    return round(tokens)


def budget_rows(budget: int | str, rows: int) -> int:
    """A budget in rows as a count.

    Args:
        budget: A count, or a share such as ``"20%"`` (rounded down).
        rows: Rows of the dataset.

    Raises:
        InputError: It is neither, or comes to less than one row, or to more than ``MOST``.
    """
    text = str(budget).strip()
    percent = SHARE.fullmatch(text)
    try:
        # Not a float: 0.57 % of 10,000 rows are 57, and as floats 56.99….
        share = Fraction(percent[1]) if percent else None
        wanted = int(text) if share is None else 0
    except ValueError:
        raise InputError(
            f"budget {budget!r}: give a count of rows such as 1000, a share such as 20%, or tokens such as 2Mtok"
            + ("; here rows are needed" if budget_tokens(budget) else "")
        ) from None
    if share is not None:
        if not 0 < share <= 100:
            raise InputError(f"budget {budget!r}: a share is above 0% and at most 100%")
        wanted = int(rows * share / 100)
    if wanted < 1:
        raise InputError(f"budget {budget!r}: comes to {wanted} of {rows} rows; give at least 1")
    if wanted > MOST:
        raise InputError(f"budget {budget!r}: {rows} rows are all that there are; give fewer than {MOST:,}")
    return wanted


def listed(name: str, given: str | Path | Sequence[int] | None, run: Run) -> NDArray[np.int64]:
    """The rows to keep, or to leave out, as row numbers of the dataset, ascending.

    Args:
        name: Of the option, for messages.
        given: A file (see :func:`p3select.dataset.listed`), row numbers, or None.
        run: The run folder.

    Raises:
        InputError: No such file, or a row that the dataset has not.
        MismatchError: The file is an index of other data.
    """
    if given is None:
        return np.zeros(0, np.int64)
    rows = int(run.info()["dataset"]["rows"])
    if not isinstance(given, str | Path):
        for row in given:
            if isinstance(row, bool) or not isinstance(row, int | np.integer):
                raise InputError(f"{name}: {row!r} is no row number; give whole numbers from 0")
            if not 0 <= row < rows:
                raise InputError(f"{name}: row {row} is not there; the dataset has {rows} rows, from 0")
        return np.unique(np.asarray(given, np.int64))
    dataset = run.dataset()
    if index.is_index(Path(given)) and index.read(Path(given)).metadata["dataset_fingerprint"] != dataset.fingerprint:
        raise MismatchError(f"{given}: an index of other data than {run.path}")
    return data.listed(given, dataset)


def described(rows: NDArray[np.int64]) -> dict[str, Any] | None:
    """Rows to keep or to leave out, as the index's metadata have them."""
    return {"rows": len(rows), "fingerprint": fingerprints.of_json(rows.tolist())} if len(rows) else None


def limits(
    run: Run,
    pool: NDArray[np.int64],
    budget: int,
    tokens: NDArray[np.int64] | None,
    at_most: int | None,
    per: str | None,
    share: str | None,
    keep: NDArray[np.int64],
) -> Limits | None:
    """The limits of a selection, a budget in tokens first; None where there are none.

    Args:
        run: The run folder.
        pool: (n,) the rows to choose from.
        budget: How much.
        tokens: With a budget in tokens: int (m,) those of the dataset's first rows, which the rows to choose from are
            among; 0 where they are not known.
        at_most: Rows for each value of the column ``per``.
        per: A column of the data.
        share: ``COLUMN=VALUE:40%,VALUE:60%``: shares of the budget; the other values together have the rest.
        keep: (m,) places in the pool of the rows to keep.

    Raises:
        InputError: Options that do not go together, no such column or value, or limits that no selection can keep, or
            not with the rows to keep.
    """
    total, costs = budget, None if tokens is None else tokens[pool]
    if (at_most is None) != (per is None):
        raise InputError("at_most and per go together, as in --at-most 1 --per prompt")
    if at_most is None and share is None and costs is None:
        return None
    from p3select import limits as bounded  # compiled; most selections do without

    some = []
    if costs is not None:
        _affordable(costs, total, keep)
        some.append(bounded.budget(costs, total))
    if at_most is not None and per is not None:
        values = data.text(data.column(run.dataset(), per))
        one = bounded.at_most(at_most, values[pool])
        _reachable(values, tokens, at_most, per, total)
        _keepable(one, pool, keep, (per, values), f"rows; at most {at_most} of a value lets in")
        some.append(one)
    if share is not None:
        column, parts = _shares(share)
        values = data.text(data.column(run.dataset(), column))
        for name in parts:
            if name not in values:
                known = ", ".join(map(str, np.unique(values)[:8]))
                raise InputError(f"share {share!r}: no row has {name!r} in column {column!r}; it has {known}, …")
        one = bounded.shares(parts, values[pool], total, costs)
        unit = "rows" if costs is None else "tokens"
        _keepable(one, pool, keep, (column, values), f"{unit}; share {share!r} lets in")
        some.append(one)
        if at_most is not None:
            both = bounded.together(*some[-2:])
            _fillable(both, keep, [*parts, "all other values"], f"at most {at_most} per {per!r}", unit)
    return bounded.together(*some)


def _costliest(costs: NDArray[np.int64], group: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Places of the rows, at most so many of each group, that cost most."""
    order = np.lexsort((-costs, group))
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    before = np.repeat(starts, np.diff(starts, append=len(order)))
    return order[np.arange(len(order)) - before < count]


def _reachable(values: NDArray[Any], tokens: NDArray[np.int64] | None, at_most: int, per: str, total: int) -> None:
    """Refuse a budget of which no choice of rows with so many of each value comes up to it, eligible or not."""
    names, group = np.unique(values, return_inverse=True)
    costs = np.ones(len(values), np.int64) if tokens is None else tokens
    most = int(costs[_costliest(costs, group[: len(costs)], at_most)].sum())
    if most < total:
        have, unit = ("are", "") if tokens is None else ("have", " tokens")
        raise InputError(
            f"at most {at_most} rows for each of the {len(names):,} values of {per!r} {have} {most:,}{unit}, fewer "
            f"than the budget of {total:,}; give a smaller budget, or allow more of a value"
        )


def _affordable(costs: NDArray[np.int64], total: int, keep: NDArray[np.int64]) -> None:
    """Refuse a budget in tokens into which the rows to keep do not fit, or no row at all."""
    least = int(costs[keep].sum()) if len(keep) else int(costs.min())
    if least > total:
        what = f"the {len(keep):,} rows to keep have" if len(keep) else "the shortest eligible row has"
        raise InputError(f"budget of {total:,} tokens: {what} {least:,}; give a larger budget")


def _keepable(
    limit: Limits, pool: NDArray[np.int64], keep: NDArray[np.int64], column: tuple[str, NDArray[Any]], lets: str
) -> None:
    """Refuse rows to keep of which a limit on values of a column lets in fewer."""
    group, cost, room = (part[0] for part in limit)
    taken = np.zeros_like(room)
    np.add.at(taken, group[keep], cost[keep])
    over = np.flatnonzero(taken[group[keep]] > room[group[keep]])
    if over.size:
        row, mine = pool[keep[over[0]]], group[keep[over[0]]]
        raise InputError(
            f"include: row {row}, {column[1][row]!r} in column {column[0]!r}, and its like take {taken[mine]:,} {lets} "
            f"{room[mine]:,}: leave some of them out"
        )


def _fillable(both: Limits, keep: NDArray[np.int64], names: Sequence[str], what: str, unit: str) -> None:
    """Refuse shares of which a limit on rows, the first of the two, lets in fewer: in tokens, each share by itself."""
    from p3select import limits as bounded

    wanted = both.room[1]
    if unit == "rows":
        limit, short = bounded.crossed(both, keep, None)
        most = int(limit.room.sum() - wanted[~short].sum())
    else:
        (per, of), costs = both.group.astype(np.int64), both.cost[1]
        first = _costliest(costs, of * both.room.shape[1] + per, int(both.room[0, 0]))
        held = np.zeros_like(wanted)
        np.add.at(held, of[first], costs[first])
        short = held < wanted
        most = int(held[short].sum())
    if short.any():
        lacking = ", ".join(name for name, lacks in zip(names, short, strict=False) if lacks)
        raise InputError(
            f"share {lacking}: {wanted[short].sum():,} of {wanted.sum():,} {unit}, and {what} lets in {most:,} of the "
            f"{unit} to choose from; give a smaller budget, another share or a later pace, or allow more of a value"
        )


def _shares(text: str) -> tuple[str, Mapping[str, float]]:
    column, equals, rest = text.partition("=")
    parts: dict[str, float] = {}
    for part in rest.split(","):
        name, _, share = part.rpartition(":")
        if not (equals and column and name and re.fullmatch(r"\d+(\.\d+)?%", share)) or name in parts:
            raise InputError(f"share {text!r}: give COLUMN=VALUE:40%,VALUE:60%, each value once")
        parts[name] = float(share[:-1]) / 100
    return column, parts
