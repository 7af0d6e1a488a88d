"""Shards: ranges of rows, each in a Parquet file that is whole or absent, in a folder whose manifest says what made it.

What a kill can lose is the shard in hand; a call that is made again makes only what is missing.
"""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from p3select.errors import InputError, MismatchError
from p3select.run import read_json, write_json, write_whole

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


class Shard(NamedTuple):
    """Rows ``first`` to ``stop``."""

    first: int
    stop: int

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return self.stop - self.first


def ranges(rows: int, size: int) -> list[Shard]:
    """All rows, cut into shards of a size; the last one may be smaller.

    Raises:
        InputError: The size is below 1.
    """
    if size < 1:
        raise InputError(f"shard_rows {size}: at least 1")
    return [Shard(first, min(first + size, rows)) for first in range(0, rows, size)]


def file(folder: Path, shard: Shard) -> Path:
    """The file of a shard."""
    return folder / f"part-{shard.first:09d}.parquet"


def complete(folder: Path, shard: Shard) -> bool:
    """Whether a shard has all its rows, or more; one that a smaller limit cut short has not.

    Raises:
        InputError: The file is damaged.
    """
    path = file(folder, shard)
    if not path.is_file():
        return False
    with opened(path) as reader:
        return int(reader.metadata.num_rows) >= shard.rows


@contextmanager
def opened(path: Path) -> Iterator[pq.ParquetFile]:
    """A shard's file, to be read from.

    Raises:
        InputError: It is damaged.
    """
    try:
        with pq.ParquetFile(path) as reader:
            yield reader
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: damaged ({error}); remove it and give the same command again") from None


def missing(folder: Path, shards: list[Shard]) -> list[Shard]:
    """Those of the shards that are not complete."""
    return [shard for shard in shards if not complete(folder, shard)]


def write(folder: Path, shard: Shard, table: pa.Table) -> None:
    """Write a shard, whole or not at all."""
    write_whole(file(folder, shard), lambda temporary: pq.write_table(table, temporary, compression="zstd"))


def read(folder: Path, shards: list[Shard], columns: list[str] | None = None) -> pa.Table:
    """Shards as one table, in their order; each is complete.

    Raises:
        InputError: A file is damaged.
    """
    tables = []
    for shard in shards:
        with opened(file(folder, shard)) as reader:
            tables.append(reader.read(columns).slice(0, shard.rows))
    # Parts that were made from files of another kind may have ids of another width, or 7 in place of "7".
    kinds = {table.schema.field("id").type for table in tables if "id" in table.column_names}
    if len(kinds) > 1 and not all(map(pa.types.is_integer, kinds)):
        tables = [
            table.set_column(table.column_names.index("id"), "id", table.column("id").cast(pa.large_string()))
            for table in tables
        ]
    return pa.concat_tables(tables, promote_options="permissive")


def manifest(folder: Path) -> dict[str, Any] | None:
    """What a folder's shards were made with, as ``settings``, and of how many ``rows``; None where nothing is."""
    path = folder / "manifest.json"
    return read_json(path) if path.is_file() else None


def claim(
    folder: Path,
    settings: Mapping[str, Any],
    rows: int,
    *,
    overwrite: bool = False,
    about: Mapping[str, str] | None = None,
) -> None:
    """Write the manifest, or find that it says the same; more rows continue fewer.

    Args:
        folder: The shards' folder.
        settings: What the shards depend on.
        rows: How many rows there will be.
        overwrite: Remove shards that were made otherwise.
        about: Names for people, such as the model's path; stored, and not compared.

    Raises:
        MismatchError: The shards there were made otherwise; it names what differs.
    """
    known = manifest(folder)
    if known is None:
        _remove(folder)  # nobody knows what shards without a manifest were made with
    elif known["settings"] == dict(settings) and known["rows"] == rows:
        return
    elif known["settings"] != dict(settings) or rows < known["rows"]:
        if not overwrite:
            check(folder, {**dict.fromkeys(known["settings"]), **settings}, rows, about)
        _remove(folder)
    write_json(folder / "manifest.json", {"settings": dict(settings), "rows": rows, "about": dict(about or {})})


def _remove(folder: Path) -> None:
    """Remove a folder at once: a part of it that a kill leaves would be taken for another's."""
    gone = folder.with_name(f".{folder.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    if folder.exists():
        folder.rename(gone)
        shutil.rmtree(gone)


def check(folder: Path, settings: Mapping[str, Any], rows: int, about: Mapping[str, str] | None = None) -> None:
    """Find that the shards there, if any, were not made otherwise, as far as these settings go.

    Args:
        folder: The shards' folder.
        settings: Some or all of what the shards depend on.
        rows: How many rows there will be, at least as many as there are.
        about: Names for people.

    Raises:
        MismatchError: They were; it names what differs.
    """
    known = manifest(folder)
    if known is None:
        return
    before = {**known["settings"], "rows": known["rows"]}
    # More rows than before are no difference.
    now = {**settings, "rows": min(rows, known["rows"])}
    changed = sorted(key for key in now if before.get(key) != now[key])
    if changed:
        names = {"there": known.get("about", {}), "now": about or {}}
        details = "; ".join(
            f"{key}: {_short(before.get(key), names['there'].get(key))} there, "
            f"{_short(now[key], names['now'].get(key))} now"
            for key in changed
        )
        raise MismatchError(
            f"{folder} holds {folder.parent.name} made otherwise ({details}); give another --run (or --epoch), "
            "or --overwrite to make them anew"
        )


def _short(value: Any, name: str | None) -> str:
    text = str(value)
    return (text[:12] + "…" if len(text) > 48 else text) + (f" ({name})" if name else "")
