"""TRL: a folder that ``datasets.load_dataset(folder, split="train")`` and the TRL command line read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p3select.errors import InputError
from p3select.exporters import parquet

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

# What load_dataset takes for data.
SUFFIXES = (".parquet", ".arrow", ".json", ".jsonl", ".csv", ".tsv", ".txt", ".zip", ".gz")


def write(rows: pa.RecordBatchReader, out: Path) -> None:
    """Write the folder.

    Raises:
        InputError: Other data files are in it, which ``load_dataset`` would read too.
    """
    others = [file.name for file in sorted(out.glob("*")) if file.suffix in SUFFIXES and file.name != "train.parquet"]
    if others:
        raise InputError(f"{out}: holds {others[0]}, which load_dataset would read too; give another folder")
    # datasets takes the split's name from the file's.
    parquet.write(rows, out / "train.parquet")
