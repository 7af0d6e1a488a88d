"""The index: a Selection ↔ one Parquet file per epoch, with all that is needed to make it again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from p3select.errors import InputError
from p3select.run import write_whole

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

KEY = b"p3select"


@dataclass(frozen=True, eq=False)
class Selection:
    """The rows of one epoch, in the order picked.

    Attributes:
        rows: int64 (k,), 0-based row numbers in the dataset.
        ids: The dataset's ids of these rows (k,), or None where it has none.
        difficulty: float64 (k,).
        quality: float64 (k,), the q of L = diag(q) S diag(q).
        gains: float64 (k,): what each pick multiplied det L_S by (0 for rows added past the kernel's rank).
        metadata: Parameters, fingerprints and versions; the file's ``p3select`` metadata.
        summary: What the selection is like: counts, mean difficulties, diversity, overlaps. Not stored.
    """

    rows: NDArray[np.int64]
    ids: pa.Array | None
    difficulty: NDArray[np.float64]
    quality: NDArray[np.float64]
    gains: NDArray[np.float64]
    metadata: Mapping[str, Any]
    summary: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.rows)


def write(selection: Selection, path: Path) -> None:
    """Write an index file; the same selection gives the same bytes."""
    data: dict[str, Any] = {"row": pa.array(selection.rows, pa.int64())}
    if selection.ids is not None:
        data["id"] = selection.ids
    data |= {
        "rank": pa.array(np.arange(len(selection)), pa.int32()),
        "difficulty": pa.array(selection.difficulty, pa.float64()),
        "quality": pa.array(selection.quality, pa.float64()),
        "gain": pa.array(selection.gains, pa.float64()),
    }
    metadata = json.dumps(dict(selection.metadata), sort_keys=True, ensure_ascii=False).encode()
    table = pa.table(data).replace_schema_metadata({KEY: metadata})
    write_whole(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))


def is_index(path: Path) -> bool:
    """Whether a file is an index of p3select."""
    return path.suffix == ".parquet" and path.is_file() and KEY in (pq.read_schema(path).metadata or {})


def read(path: Path) -> Selection:
    """Read an index file.

    Raises:
        InputError: There is none, or it is not one of p3select's.
    """
    if not path.is_file():
        raise InputError(f"{path}: no index there; run 'p3select select' for this epoch first")
    try:
        table = pq.ParquetFile(path).read()
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: damaged ({error}); select this epoch again") from None
    found = (table.schema.metadata or {}).get(KEY)
    if found is None:
        raise InputError(f"{path}: not an index of p3select (its metadata has no 'p3select' key)")
    return Selection(
        rows=table.column("row").to_numpy(),
        ids=table.column("id").combine_chunks() if "id" in table.column_names else None,
        difficulty=table.column("difficulty").to_numpy(),
        quality=table.column("quality").to_numpy(),
        gains=table.column("gain").to_numpy(),
        metadata=json.loads(found),
        summary={},
    )
