"""Partial re-scoring in a run folder: what :mod:`p3select.refreshing` asks for is measured, the rest is predicted."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from p3select import progress, refreshing, shards, tokenised
from p3select.errors import MismatchError
from p3select.reuse import hashes_of
from p3select.run import read_json, write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from p3select.scoring import Work
    from p3select.shards import Shard

PREDICTED = "predicted"
"""The status of rows that were not scored, and have a difficulty that was predicted from others and from before."""

# Where the rows that a partial re-scoring measures go until it is done, and what they are.
_STAGES = {"drawn": "drawn to learn from", "near": "near the threshold"}


class Rescoring(NamedTuple):
    """What a partial re-scoring goes by, and the work itself."""

    past: refreshing.Past
    """What earlier epochs say of the rows."""
    hashes: pa.ChunkedArray
    """Of the tokens of the epoch before."""
    epoch: int
    share: float
    seed: int
    vectors: NDArray[np.float32] | None
    """The embeddings, where there are any."""
    settings: dict[str, Any]
    """What its choices depend on."""

    def score(self, work: Work, claim: Callable[[], None]) -> dict[str, Any]:
        """Score some rows, predict the others; what it did. A call that was killed and is made again goes on.

        Args:
            work: The work.
            claim: Makes the folder its own.
        """
        folder, parts, scored = work.folder, work.parts, 0
        done, measured = folder / "refresh.json", [folder / f".{name}" for name in _STAGES]
        same = (shards.manifest(folder) or {}).get("settings") == work.settings
        if not same or shards.missing(folder, parts) or not done.is_file():
            self._compare(shards.read(work.there, parts, ["hash"]).column("hash"))

            def measure(name: str, wanted: NDArray[np.bool_]) -> NDArray[np.float64]:
                nonlocal scored
                # Not before: what is refused until here leaves the folder as it was.
                claim()
                values, now = self._measured(work, name, wanted)
                scored += now
                return values

            sizes = tokenised.sizes(work.there, parts)
            given = (self.past, self.epoch, sizes, self.vectors, self.share, self.seed)
            found = refreshing.refreshed(*given, measure)
            for part in shards.missing(folder, parts):
                self._write(folder, part, [path for path in measured if path.is_dir()], found)
            write_json(done, found.about)
        # Once all is there; hidden, as they are no part of the scores.
        for path in measured:
            shutil.rmtree(path, ignore_errors=True)
        about = read_json(done)
        reused = sum(count for name, count in about["parts"].items() if name != "predicted") - scored
        about = {name: value for name, value in about.items() if name not in ("share", "seed")}
        return {"reused": reused, "reused_first_pass": 0, **about, "notes": self.past.notes}

    def _compare(self, hashes: pa.ChunkedArray) -> None:
        """Refuse rows that are not those of the epoch before."""
        now, before = hashes_of(hashes), hashes_of(self.hashes)[: len(hashes)]
        other = np.flatnonzero(now != before)
        if other.size:
            raise MismatchError(
                f"refresh: row {other[0]} is tokenised otherwise than in epoch {self.epoch - 1} (another tokenizer or "
                "template, --actions, --max-length, --truncate?); score all rows, or as that epoch was scored"
            )

    def _measured(self, work: Work, name: str, wanted: NDArray[np.bool_]) -> tuple[NDArray[np.float64], int]:
        """The difficulties of rows, and how many were scored now; rows known besides are taken along, once."""
        folder = work.folder / f".{name}"
        shards.claim(folder, work.settings, len(wanted), overwrite=True)
        absent = shards.missing(folder, work.parts)
        free = [work.known.of(work.there, part) if name == "drawn" else None for part in absent]
        own = [wanted[part.first : part.stop] for part in absent]
        items = [(folder, work.there, part, *one) for part, *one in zip(absent, free, own, strict=True)]
        rows = sum(
            int(one.sum() - (0 if table is None else one[table.column("at").to_numpy()].sum()))
            for table, one in zip(free, own, strict=True)
        )
        if work.show and rows:
            progress.say(f"scoring {rows:,} of {len(wanted):,} rows, {_STAGES[name]}")
        with progress.track("scoring", rows, show=work.show) as advance:
            work.crew.each("score", items, advance)
        return shards.read(folder, work.parts, ["difficulty"]).column("difficulty").to_numpy(), rows

    def _write(self, folder: Path, part: Shard, measured: Sequence[Path], found: refreshing.Refreshed) -> None:
        """Write a shard of measured and predicted rows."""
        tables = [shards.read(path, [part]) for path in measured]
        table = pa.concat_tables(tables, promote_options="permissive")
        # Of each row the one that has values, or the first.
        valid = [one.column("logprob").is_valid().to_numpy() for one in tables]
        table = table.take(np.argmax(valid, axis=0) * part.rows + np.arange(part.rows))
        own = slice(part.first, part.stop)
        difficulty, error = found.difficulty[own], found.error[own]
        guessed = np.isfinite(difficulty) & ~np.any(valid, axis=0)
        status = np.where(guessed, PREDICTED, table.column("status").to_numpy(zero_copy_only=False))
        when = np.where(guessed, self.past.measured[own], self.epoch)
        columns = {
            "difficulty": pa.array(difficulty, pa.float64(), mask=np.isnan(difficulty)),
            "status": pa.array(status, pa.string()),
        }
        for name, column in columns.items():
            table = table.set_column(table.column_names.index(name), name, column)
        table = table.append_column("measured", pa.array(when, pa.int32(), mask=np.isnan(difficulty)))
        shards.write(folder, part, table.append_column("error", pa.array(error, pa.float64(), mask=np.isnan(error))))
