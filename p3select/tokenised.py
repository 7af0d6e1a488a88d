"""Tokenised rows on disk: made once for a tokenizer, a template and a rule of actions, and used in every epoch."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from p3select import fingerprints, shards
from p3select.tokens import TokenRow

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from p3select.run import Run
    from p3select.shards import Shard

SCORED = ("ok", "truncated")
"""The statuses of rows that are scored."""

# What of a scoring's settings the tokens depend on; they are made anew where one of these is new.
SETTINGS = ("dataset", "tokenizer", "template", "actions", "max_length", "truncate", "shard_rows", "p3select")

FORM = 2
"""Of the files; those of another form are made anew."""

_COUNTS = ("id_count", "scored_count")


class Plan(NamedTuple):
    """What there is to score."""

    tokens: int
    """Tokens of the rows to score."""
    scored_tokens: int
    """Those of them that are scored."""


def folder(run: Run, settings: dict[str, Any], rows: int) -> Path:
    """Where the tokens of these settings lie in a run folder, with their manifest written.

    Args:
        run: The run folder.
        settings: A scoring's settings, those of ``SETTINGS`` among them.
        rows: How many rows there will be.
    """
    own = {name: settings[name] for name in SETTINGS} | {"form": FORM}
    path = run.tokens(fingerprints.of_json(own)[:16])
    known = shards.manifest(path)
    if known is None or known["rows"] < rows:
        shards.claim(path, own, rows)
    return path


def rules(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the settings that :func:`p3select.tokens.encode` takes."""
    return {name: settings[name] for name in ("actions", "max_length", "truncate")}


def write(path: Path, shard: Shard, encoded: list[TokenRow], ids: pa.ChunkedArray | None) -> None:
    """Write a shard of token rows.

    Args:
        path: What :func:`folder` gave.
        shard: Which rows of the dataset these are.
        encoded: What :func:`p3select.tokens.encode` gave for them.
        ids: The dataset's ids of them, where it has any.
    """
    columns: dict[str, Any] = {} if ids is None else {"id": ids}
    columns |= {name: _lists([getattr(row, name) for row in encoded]) for name in ("ids", "scored", "actions")}
    # Beside the lists, so that work can be counted without reading them.
    columns |= dict(zip(_COUNTS, map(pa.array, counts(encoded)), strict=True))
    columns["status"] = pa.array([row.status for row in encoded], pa.string())
    columns["shift"] = pa.array([row.shift for row in encoded], pa.int32())
    columns["hash"] = pa.array([hashed(row) for row in encoded], pa.binary(16))
    shards.write(path, shard, pa.table(columns))


def read(path: Path, shard: Shard) -> tuple[list[TokenRow], dict[str, pa.ChunkedArray]]:
    """A shard's rows as :func:`p3select.tokens.encode` gives them, and what else is known of them.

    Returns:
        The rows; and the columns ``hash`` (of what is scored: ids, positions, actions) and, where the dataset has it,
        ``id``.
    """
    table = shards.read(path, [shard])
    ids, scored, actions = (_arrays(table.column(name)) for name in ("ids", "scored", "actions"))
    status, shift = table.column("status").to_pylist(), table.column("shift").to_pylist()
    rows = [TokenRow(*row) for row in zip(ids, scored, actions, status, shift, strict=True)]
    return rows, {name: table.column(name) for name in ("id", "hash") if name in table.column_names}


def plan(
    path: Path, shard: Shard, known: Sequence[int] = (), second: Sequence[int] | None = None, before: int = 0
) -> Plan:
    """What there is to score in a shard that is tokenised.

    Args:
        path: What :func:`folder` gave.
        shard: Which rows.
        known: Rows of the shard, by their number in it, that need not be scored.
        second: Rows whose target is scored a second time, by itself; None for none.
        before: Tokens that the target then comes after.
    """
    table = shards.read(path, [shard], [*_COUNTS])
    ids, scored = (table.column(name).to_numpy() for name in _COUNTS)
    return work(ids, scored, known, second, before)


def sizes(path: Path, parts: Sequence[Shard]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Of every row of some shards (n,) each: its tokens, those of them that are scored, and its actions.

    Args:
        path: What :func:`folder` gave.
        parts: Which rows, all tokenised.
    """
    found = []
    for shard in parts:
        table = shards.read(path, [shard], [*_COUNTS, "actions"])
        # A row's actions are numbered from 0, without gaps.
        actions = [0 if len(row) == 0 else int(row[-1]) + 1 for row in _arrays(table.column("actions"))]
        found.append([*(table.column(name).to_numpy() for name in _COUNTS), np.array(actions)])
    tokens, scored, actions_ = (np.concatenate(column).astype(np.int64) for column in zip(*found, strict=True))
    return tokens, scored, actions_


def counts(rows: Sequence[TokenRow]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Tokens of each row, and those of them scored; none of a row that is not scored."""
    return np.array([len(row.ids) for row in rows], np.int32), np.array([len(row.scored) for row in rows], np.int32)


def work(
    ids: NDArray[np.int32],
    scored: NDArray[np.int32],
    known: Sequence[int] = (),
    second: Sequence[int] | None = None,
    before: int = 0,
) -> Plan:
    """What there is to score in rows of so many tokens, and scored ones: :func:`counts`. The rest is as for `plan`."""
    again = alone(scored[list(second or ())], before)
    rest = np.setdiff1d(np.arange(len(ids)), known).astype(np.int64)
    return Plan(int(ids[rest].sum()) + again.tokens, int(scored[rest].sum()) + again.scored_tokens)


def alone(lengths: NDArray[np.int32], before: int) -> Plan:
    """What there is to score in targets by themselves.

    Args:
        lengths: (n,) their tokens.
        before: Tokens that a target comes after. The first token of all has no probability, so that a target of one
            token after none is left out.
    """
    rows = (lengths > 0) & (lengths + before > 1)
    tokens = int(lengths[rows].sum()) + before * int(rows.sum())
    return Plan(tokens, tokens - int(rows.sum()))


def hashed(row: TokenRow) -> bytes:
    """Rows of the same hash have the same log-probabilities under the same weights."""
    digest = hashlib.sha256(repr([len(part) for part in row[:3]]).encode())
    for part in row[:3]:
        digest.update(part.astype("<i4").tobytes())
    return digest.digest()[:16]


def _lists(arrays: Sequence[NDArray[np.int32]]) -> pa.Array:
    offsets = np.concatenate([[0], np.cumsum([len(array) for array in arrays])]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, np.concatenate(arrays))


def _arrays(column: pa.ChunkedArray) -> list[NDArray[np.int32]]:
    lists = column.combine_chunks()
    lists = lists.chunk(0) if isinstance(lists, pa.ChunkedArray) else lists
    cuts = np.cumsum(lists.value_lengths().to_numpy(zero_copy_only=False))
    # A copy: Arrow's memory is read-only, which torch warns of.
    return np.split(lists.flatten().to_numpy().copy(), cuts[:-1])
