"""Parquet: one file, the columns and types of the dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from p3select.run import write_whole

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa


def write(rows: pa.RecordBatchReader, out: Path) -> None:
    """Write a Parquet file."""

    def batches(path: Path) -> None:
        with pq.ParquetWriter(path, rows.schema, compression="zstd") as file:
            for batch in rows:
                file.write_batch(batch)

    write_whole(out, batches)
