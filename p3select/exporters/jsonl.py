"""JSON Lines: one object per row, keys in the order of the columns."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from p3select.errors import InputError
from p3select.run import write_whole

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa


def write(rows: pa.RecordBatchReader, out: Path) -> None:
    """Write a JSON Lines file.

    Raises:
        InputError: A value has no JSON form.
    """

    def lines(path: Path) -> None:
        number = 0
        with path.open("w", encoding="utf-8", newline="\n") as file:
            for batch in rows:
                for row in batch.to_pylist():
                    number += 1
                    try:
                        file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
                    except (TypeError, ValueError) as error:
                        raise InputError(f"{out}, line {number}: {error}; export to parquet instead") from None

    write_whole(out, lines)
