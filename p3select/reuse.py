"""Rows that need not be scored again: found by their tokens' hash in scores that were made under the same weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from p3select import shards, tokenised
from p3select.run import Run
from p3select.tokenised import SCORED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from p3select.dataset import Dataset
    from p3select.shards import Shard
    from p3select.tokens import TokenRow

# What may differ between two scorings of which one takes over rows of the other: a row's hash covers its tokens.
# ``el2n``, which comes of the first pass, may differ too where it is not asked for.
_ELSEWHERE = (
    *("dataset", "max_length", "truncate", "actions", "shard_rows", "ifd"),
    *("refresh", "refresh_seed", "refresh_past"),
)

SECOND = {"alone_logprob": pa.float64(), "alone_tokens": pa.int32()}
"""The columns of the second pass, with ``ifd``."""


class Known:
    """Rows that were scored before under the same weights, found by the hash of their tokens."""

    def __init__(
        self, run: Run, settings: Mapping[str, Any], reuse: Run | None, target: Path, *, there: bool = True
    ) -> None:
        # By the hash not of the folder that is being written: a run that is killed and goes on would take over rows
        # that an uninterrupted one scores, and differ from it by rounding.
        self._target, self._settings = target if there else None, settings
        self.notes: list[str] = []
        sources = [folder for folder in self._sources(run, settings, reuse) if folder != target]
        found = [_hashed(sorted(folder.glob("part-*.parquet")), settings) for folder in sources]
        tables = [table for table in found if table is not None and table.num_rows]
        self._table = pa.concat_tables(tables) if tables else None
        if self._table is not None:
            hashes = hashes_of(self._table.column("hash"))
            # The first of equals, so that it does not matter how many there are.
            self._sorted, self._at = np.unique(hashes, return_index=True)

    def _sources(self, run: Run, settings: Mapping[str, Any], reuse: Run | None) -> list[Path]:
        """Folders of scores under the same weights; those with ``ifd`` first, as they have more."""
        if settings.get("verified") is False:
            if reuse is not None:
                self.notes.append(f"nothing of {reuse.path} was taken over: the scorer's weights are not verified")
            return []
        free = (*_ELSEWHERE, *(() if settings.get("el2n") else ("el2n",)))
        wanted = {name: value for name, value in settings.items() if name not in free}
        found = []
        for one in [run] if reuse is None else [run, reuse]:
            others = set()
            for folder in sorted((one.path / "scores").glob("epoch-*")):
                if (manifest := shards.manifest(folder)) is None:
                    continue
                there = {name: value for name, value in manifest["settings"].items() if name not in free}
                if there == wanted:
                    found.append((not manifest["settings"].get("ifd"), folder))
                else:
                    others |= {name for name in {*there, *wanted} if there.get(name) != wanted.get(name)}
            if one is reuse and not any(folder.parent.parent == one.path for _, folder in found):
                why = f"its scores differ in {', '.join(sorted(others))}" if others else "it has no scores"
                self.notes.append(f"nothing of {one.path} was taken over: {why}")
        return [folder for _, folder in sorted(found, key=lambda one: one[0])]

    def of(self, there: Path, shard: Shard) -> pa.Table | None:
        """What is known of a shard's rows: their values, and ``at``, their number in the shard; None for nothing.

        With ``ifd`` the values of the second pass are null where only the first is known.
        """
        tokens_ = shards.read(there, [shard], ["hash", "status"])
        return self.among(shard, hashes_of(tokens_.column("hash")), tokens_.column("status").to_numpy())

    def among(self, shard: Shard, hashes: NDArray[np.bytes_], status: NDArray[Any]) -> pa.Table | None:
        """The same, by the hashes and statuses of the shard's rows."""
        scored, places, found = np.isin(status, SCORED), [], []
        short = None if self._target is None else shards.file(self._target, shard)
        if short is not None and short.is_file() and (own := _hashed([short], self._settings)) is not None:
            # Cut short by a smaller limit: whole shards are not asked for.
            where = dict(zip(hashes_of(own.column("hash")).tolist(), range(own.num_rows), strict=True))
            with shards.opened(short) as reader:
                count = reader.metadata.num_rows
            at = np.array([i for i in range(count) if scored[i] and hashes[i] in where], np.int64)
            found.append(own.take(pa.array([where[hashes[i]] for i in at], pa.int64())))
            places.append(at)
        if self._table is not None:
            near = np.minimum(np.searchsorted(self._sorted, hashes), len(self._sorted) - 1)
            at = np.flatnonzero((self._sorted[near] == hashes) & scored)
            at = np.setdiff1d(at, np.concatenate([[], *places]))
            found.append(self._table.take(self._at[near[at]]))
            places.append(at)
        if not sum(map(len, places)):
            return None
        table = pa.concat_tables(found).drop_columns("hash")
        return table.append_column("at", pa.array(np.concatenate(places).astype(np.int64)))


class There:
    """What a scoring would find done."""

    def __init__(
        self,
        dataset: Dataset,
        run: Run | str | Path,
        epoch: int,
        reuse: Run | str | Path | None,
        settings: Mapping[str, Any],
        rows: int,
        overwrite: bool,
    ) -> None:
        run = run if isinstance(run, Run) else Run(run)
        run.check(dataset)
        self._folder, self._ifd = run.scores(epoch), bool(settings.get("ifd"))
        if not overwrite:
            shards.check(self._folder, {"refresh": None, "ifd": None, "el2n": None, **settings}, rows)
        manifest = shards.manifest(self._folder)
        # Otherwise it is removed, with all that might be taken over from it.
        self._same = manifest is not None and manifest["settings"] == settings and rows >= manifest["rows"]
        other = None if reuse is None else reuse if isinstance(reuse, Run) else Run(reuse)
        if other is not None:
            other.info()
        self._known = Known(run, settings, other, self._folder, there=self._same)

    def of(self, shard: Shard, encoded: Sequence[TokenRow]) -> tuple[list[int], list[int]]:
        """Rows of a shard of which the first pass is there, and those of which both are."""
        if self._same and shards.complete(self._folder, shard):
            return [*range(shard.rows)], [*range(shard.rows)]
        hashes = np.array([tokenised.hashed(row) for row in encoded], "S16")
        known = self._known.among(shard, hashes, np.array([row.status for row in encoded]))
        return [] if known is None else known.column("at").to_pylist(), whole(known, self._ifd)


def whole(known: pa.Table | None, ifd: bool) -> list[int]:
    """Which rows of a shard need no pass at all."""
    if known is None:
        return []
    found = known.filter(pc.is_valid(known.column("alone_tokens"))) if ifd else known
    places: list[int] = found.column("at").to_pylist()
    return places


def hashes_of(column: pa.ChunkedArray) -> NDArray[np.bytes_]:
    """Hashes of 16 bytes (n,), to be sorted and compared."""
    return np.array(column.to_pylist(), "S16")


def _hashed(files: Sequence[Path], settings: Mapping[str, Any]) -> pa.Table | None:
    """The values of the rows that are scored in shards, with their hashes; None where there are no shards."""
    ifd, tables = settings.get("ifd"), []
    names = ["hash", "logprob", "action_logprobs", "action_tokens", *(["el2n"] if settings.get("el2n") else [])]
    for file in files:  # of any size: a smaller limit may have cut the last one short
        with shards.opened(file) as reader:
            table = reader.read(names)
            second = reader.read([name for name in SECOND if ifd and name in reader.schema_arrow.names])
        for name, kind in SECOND.items() if ifd else ():
            null = pa.nulls(table.num_rows, kind)
            table = table.append_column(name, second.column(name) if name in second.column_names else null)
        tables.append(table.filter(pc.is_valid(table.column("logprob"))))
    return pa.concat_tables(tables) if tables else None
