"""TRL: a folder that ``datasets.load_dataset(folder, split="train")`` and the TRL command line read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p3select.exporters import parquet

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa


def write(table: pa.Table, out: Path) -> None:
    """Write the folder."""
    # datasets takes the split's name from the file's.
    parquet.write(table, out / "train.parquet")
