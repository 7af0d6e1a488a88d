"""Parquet: one file, the columns and types of the dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from p3select.run import write_whole

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa


def write(table: pa.Table, out: Path) -> None:
    """Write a Parquet file."""
    write_whole(out, lambda path: pq.write_table(table, path, compression="zstd"))
