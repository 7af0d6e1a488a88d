"""JSON Lines: one object per row, keys in the order of the columns; lines of JSON Lines as they are."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from p3select import dataset
from p3select.errors import InputError
from p3select.run import write_whole

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow as pa
    from numpy.typing import NDArray


def write(rows: pa.RecordBatchReader, out: Path, *, source: tuple[Sequence[str], NDArray[np.int64]]) -> None:
    """Write a JSON Lines file.

    Where the rows come from JSON Lines, their lines are copied: a table knows one type for a column, 1 beside 2.5 as
    1.0, and null for a key that is not there. ``datasets.load_dataset`` reads rows of different keys, with null for
    those that a row lacks; but not a file in which a key comes first after 10 MB, its block of reading: export that to
    parquet or trl, where the columns are known before.

    Args:
        rows: The rows.
        out: The file.
        source: The files that they are in, and their numbers.

    Raises:
        InputError: A value has no JSON form.
    """
    copied = all(Path(path).suffix in dataset.JSON_LINES for path in source[0])

    def lines(path: Path) -> None:
        with path.open("wb") as file:
            file.writelines(_copied(*source) if copied else _written(rows, out))

    write_whole(out, lines)


def _copied(paths: Sequence[str], numbers: NDArray[np.int64]) -> Iterator[bytes]:
    """The lines of rows, one at a time."""
    starts = [dataset.places(Path(path))[0] for path in paths]
    ends = np.cumsum([len(one) for one in starts])
    for number, at in zip(numbers, np.searchsorted(ends, numbers, side="right"), strict=True):
        with Path(paths[at]).open("rb") as file:
            file.seek(starts[at][number - ends[at]])  # from the end
            yield file.readline().removeprefix(codecs.BOM_UTF8).rstrip(b"\r\n") + b"\n"


def _written(rows: pa.RecordBatchReader, out: Path) -> Iterator[bytes]:
    number = 0
    for batch in rows:
        for row in batch.to_pylist():
            number += 1
            try:
                yield json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"
            except (TypeError, ValueError) as error:
                raise InputError(f"{out}, line {number}: {error}; export to parquet instead") from None
