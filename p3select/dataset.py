"""Datasets: Parquet or JSON Lines files → rows, in file order, with a fingerprint of their content."""

from __future__ import annotations

import glob
import hashlib
import json
from array import array
from bisect import bisect_left
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from p3select.errors import InputError, MismatchError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

PARQUET = (".parquet", ".pq")
JSON_LINES = (".jsonl", ".ndjson", ".json")

# What makes a row trainable, in order of precedence, and what may come with it.
FORMATS = (
    ("prompt", "completion"),
    ("messages",),
    ("conversations",),
    ("instruction", "output"),
)
OPTIONAL = {"instruction": ("input",), "messages": ("tools",), "prompt": ("tools",)}
EXTRA = ("id", "chat_template_kwargs")

# ShareGPT's names of the speakers → roles of chat templates.
SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}

_HASHED_ROWS = 8192
# Rows read, and handed on, at a time; rows that are gathered in the first pass over the files, which says how large
# rows are, and bytes of them in each further one.
_BATCH_ROWS = 8192
_FIRST_ROWS = 256
_PASS_BYTES = 2**28


@dataclass(frozen=True, eq=False)
class Dataset:
    """Rows to choose from.

    Attributes:
        paths: The files, absolute, in the order in which rows are counted.
        columns: Role → column name, such as {"prompt": "question", "completion": "answer", "id": "id"}.
        table: The columns of these roles, named by role, one row per row.
        fingerprint: sha256 of these columns' content; the same rows give the same one in any file format.
        edges: (files + 1,) the row with which each file begins, and the number of rows.
    """

    paths: tuple[str, ...]
    columns: Mapping[str, str]
    table: pa.Table
    fingerprint: str
    edges: NDArray[np.int64]

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def ids(self) -> pa.ChunkedArray | None:
        """The ``id`` column (n,), or None where there is none."""
        return self.table.column("id") if "id" in self.columns else None

    def part(self, first: int, stop: int) -> Dataset:
        """Rows first to stop as a dataset."""
        return replace(self, table=self.table.slice(first, stop - first))

    def source(self, first: int, stop: int, *, here: bool) -> Dataset | Slice:
        """Rows first to stop themselves for work here, or where they are to be read for work elsewhere."""
        if here:
            return self.part(first, stop)
        part = self.table.slice(first, stop - first)
        # The files that hold these rows alone: else each shard would go over all those before it.
        start, end = int(np.searchsorted(self.edges, first, "right")) - 1, int(np.searchsorted(self.edges, stop))
        paths, before = self.paths[start:end], int(self.edges[start])
        return Slice(paths, self.columns, part.schema, first, stop, _fingerprint(part), before)

    def rows(self, start: int = 0, stop: int | None = None) -> list[dict[str, Any]]:
        """Rows start to stop as TRL takes them: ``prompt`` and ``completion``, or ``messages``.

        Alpaca rows become prompt (instruction, line break, input) and completion; ShareGPT rows become messages.
        Values that are not what they should be are passed on as they are: the row that has them gets its own
        status when it is tokenised.
        """
        stop = len(self) if stop is None else stop
        return [_trl(row) for row in self.table.slice(start, stop - start).to_pylist()]


@dataclass(frozen=True)
class Slice:
    """Rows of a dataset, to be read where they are wanted: in another process, or on another machine.

    Attributes:
        paths: Those of the dataset's files that hold the rows.
        columns: The dataset's roles and columns.
        schema: The types of these columns over all the files.
        first: The first row.
        stop: The row after the last one.
        fingerprint: That of these rows alone.
        before: How many rows of the dataset come before those of these files.
    """

    paths: tuple[str, ...]
    columns: Mapping[str, str]
    schema: pa.Schema
    first: int
    stop: int
    fingerprint: str
    before: int = 0

    def read(self) -> Dataset:
        """These rows; of Parquet files only the row groups that hold some of them are read, of JSON Lines only these.

        Raises:
            InputError: A file is gone or not readable.
            MismatchError: These are other rows than before.
        """
        typed = pa.schema([(name, self.schema.field(role).type) for role, name in self.columns.items()])
        tables, edges = [], [self.before]
        for path in map(Path, self.paths):
            first, count = edges[-1], _count(path)
            start, stop = max(self.first - first, 0), min(self.stop - first, count)
            if start < stop:
                tables.append(_rename(_read_rows(path, typed, start, stop), self.columns, path))
            edges.append(first + count)
        table = pa.concat_tables([table.cast(self.schema) for table in tables] or [self.schema.empty_table()])
        if _fingerprint(table) != self.fingerprint:
            raise MismatchError(
                f"{', '.join(self.paths)}: rows {self.first} to {self.stop - 1} are not those that they were when the "
                "work began; leave the files alone until it is done"
            )
        return Dataset(self.paths, self.columns, table, self.fingerprint, np.array(edges))


def load(data: str | Path | Sequence[str | Path] | Dataset, columns: Mapping[str, str] | None = None) -> Dataset:
    """Read a dataset.

    Args:
        data: A Parquet or JSON Lines file, several, a folder of them, or a glob pattern; or a Dataset.
        columns: Role → column name, where names are not those of the conventions: ``prompt`` and ``completion``,
            ``messages``, ``conversations``, ``instruction``, ``input`` and ``output``; also ``id``, ``tools``.

    Returns:
        The dataset; its rows are numbered from 0 over all the files.

    Raises:
        InputError: A file is missing, unreadable or empty, or no known columns are there.
    """
    if isinstance(data, Dataset):
        return data
    paths = _files(data)
    names = _column_names(paths[0])
    roles = _roles(names, dict(columns or {}), paths[0])
    wanted = list(roles.values())
    tables = [_rename(_read(path, wanted), roles, path) for path in paths]
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise InputError(f"{paths[0]} and its fellows differ in the types of {wanted}: {error}") from None
    if table.num_rows == 0:
        raise InputError(f"{', '.join(map(str, paths))}: no rows")
    edges = np.cumsum([0, *map(len, tables)])
    return Dataset(tuple(map(str, paths)), roles, table, _fingerprint(table), edges)


def unchanged(paths: Sequence[str], columns: Mapping[str, str], fingerprint: str) -> bool:
    """Whether files are there and hold the rows of a fingerprint; some of them at a time are in memory.

    Args:
        paths: As of a :class:`Dataset`.
        columns: As of a :class:`Dataset`.
        fingerprint: As of a :class:`Dataset`.
    """
    files = list(map(Path, paths))
    try:
        schema = _schema(files)
        parts = {role: pa.schema([schema.field(name)]) for role, name in columns.items()}
        found = _digest(list(parts), lambda role: _even(_pieces(files, parts[role])))
    except (InputError, KeyError):
        return False
    return found == fingerprint


def take(paths: Sequence[str], rows: NDArray[np.int64]) -> pa.RecordBatchReader:
    """Chosen rows with every column of the files, in the order given, some of them at a time.

    The rows are gathered in as many passes over the files as keeps each to about 256 MiB.

    Args:
        paths: The files, as of a :class:`Dataset`.
        rows: (k,) 0-based row numbers over all the files.

    Returns:
        A stream of k rows.

    Raises:
        InputError: A file is gone or not readable, or rows are missing; also while the stream is read.
    """
    files = list(map(Path, paths))
    schema = _schema(files)

    def batches() -> Iterator[pa.RecordBatch]:
        start, step = 0, _FIRST_ROWS
        while start < len(rows):
            part = rows[start : start + step]
            order = np.argsort(part, kind="stable")
            found = pa.concat_tables([schema.empty_table(), *_pieces(files, schema, part[order])]).combine_chunks()
            if len(found) < len(part):
                raise InputError(f"{', '.join(paths)}: fewer rows now than when they were selected")
            places = np.argsort(order)
            for at in range(0, len(part), _BATCH_ROWS):
                yield from found.take(pa.array(places[at : at + _BATCH_ROWS])).combine_chunks().to_batches()
            start += len(part)
            step = max(1, _PASS_BYTES * len(part) // max(1, found.nbytes))

    return pa.RecordBatchReader.from_batches(schema, batches())


def _schema(files: list[Path]) -> pa.Schema:
    """All columns of all files, with types that hold the values of each."""
    schemas = []
    for path in files:
        if path.suffix in PARQUET:
            schemas.append(_parquet(path).schema_arrow)
        else:
            schemas += [_table(path, lines).schema for _, lines in _blocks(path)]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive")
    except pa.ArrowException as error:
        raise InputError(f"{files[0]} and its fellows: values of a column must be of one type: {error}") from None


def _pieces(files: list[Path], schema: pa.Schema, wanted: NDArray[np.int64] | None = None) -> Iterator[pa.Table]:
    """Rows with the columns of a schema, in the files' order: all, or the wanted ones (ascending)."""
    first = 0
    for path in files:
        inside = None if wanted is None else wanted - first
        if path.suffix in PARQUET:
            file = _parquet(path)
            yield from (_as(piece, schema) for piece in _parquet_pieces(file, path, schema.names, inside))
            first += file.metadata.num_rows
        else:
            for at, lines in _blocks(path):
                chosen = lines if inside is None else [lines[row - at] for row in _within(inside, at, len(lines))]
                if chosen:
                    yield _as(_table(path, chosen, schema), schema)
                last = at + len(lines)
            first += last


def _as(piece: pa.Table, schema: pa.Schema) -> pa.Table:
    return pa.concat_tables([schema.empty_table(), piece], promote_options="permissive").select(schema.names)


def _within(rows: NDArray[np.int64], first: int, count: int) -> NDArray[np.int64]:
    start, stop = np.searchsorted(rows, [first, first + count])
    return rows[start:stop]


def _parquet(path: Path) -> pq.ParquetFile:
    if not path.is_file():
        raise InputError(f"{path}: the file is gone; give the path where it is now")
    try:
        # Buffered: else a row group's columns are in memory whole.
        return pq.ParquetFile(path, buffer_size=2**20)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not readable as Parquet: {error}") from None


def _parquet_pieces(
    file: pq.ParquetFile, path: Path, names: list[str], wanted: NDArray[np.int64] | None
) -> Iterator[pa.Table]:
    present = [name for name in names if name in file.schema_arrow.names]
    at = 0
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        if wanted is None or len(_within(wanted, at, count)):
            first = at
            try:
                for batch in file.iter_batches(_BATCH_ROWS, [group], present):
                    piece = pa.Table.from_batches([batch])
                    yield piece if wanted is None else piece.take(pa.array(_within(wanted, first, len(piece)) - first))
                    first += len(piece)
            except (pa.ArrowException, OSError) as error:
                raise InputError(f"{path}: not readable as Parquet: {error}") from None
        at += count


def _even(pieces: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in pieces of ``_HASHED_ROWS``, but for the last."""
    held: list[pa.Table] = []
    for piece in pieces:
        held.append(piece)
        while sum(map(len, held)) >= _HASHED_ROWS:
            whole = pa.concat_tables(held)
            yield whole.slice(0, _HASHED_ROWS)
            held = [whole.slice(_HASHED_ROWS)]
    if sum(map(len, held)):
        yield pa.concat_tables(held)


def column(dataset: Dataset, name: str) -> pa.ChunkedArray:
    """A column of the files, whatever its role: (n,).

    Args:
        dataset: The dataset; the column is read anew.
        name: As it is in the files.

    Raises:
        InputError: A file has no such column, is gone, or holds another number of rows than before.
    """
    tables = [_read(Path(path), [name]) for path in dataset.paths]
    for path, table in zip(dataset.paths, tables, strict=True):
        if name not in table.column_names:
            raise InputError(f"{path}: no column {name!r}; it has {', '.join(_column_names(Path(path)))}")
    found = pa.concat_tables(tables, promote_options="permissive").column(name)
    if len(found) != len(dataset):
        raise InputError(f"{', '.join(dataset.paths)}: {len(found)} rows now, {len(dataset)} when it was scored")
    return found


def text(column: pa.ChunkedArray) -> NDArray[Any]:
    """Values as text, to be compared and counted.

    Args:
        column: (n,) of any type.

    Returns:
        (n,) str: null as "null", a list or an object as JSON; equal values are one object in memory.

    Raises:
        InputError: Bytes that are no text.
    """
    if pa.types.is_nested(column.type):
        column = pa.chunked_array([[json.dumps(each, ensure_ascii=False, default=str) for each in column.to_pylist()]])
    try:
        values = column.cast(pa.large_string())
    except pa.ArrowInvalid as error:
        raise InputError(f"a column of type {column.type} that is no text cannot be counted: {error}") from None
    encoded = pc.fill_null(values, "null").combine_chunks().dictionary_encode()
    found: NDArray[Any] = np.array(encoded.dictionary.to_pylist(), object)[encoded.indices.to_numpy()]
    return found


def listed(path: str | Path, dataset: Dataset) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The rows that a file names.

    Args:
        path: A Parquet or JSON Lines file with a column ``row`` (0-based numbers, such as an index has) or ``id`` (of
            the dataset's ids; all rows of an id), or a text file (.txt) with a row number on every line.
        dataset: The dataset that they are rows of.

    Returns:
        (m,) distinct row numbers, ascending.

    Raises:
        InputError: No such file or column, or a row or id that the dataset has not.
    """
    path = Path(path)
    if path.suffix == ".txt" and path.is_file():
        values = path.read_text(encoding="utf-8").split()
        bad = next((value for value in values if not value.isdecimal()), None)
        if bad is not None:
            raise InputError(f"{path}: {bad!r} is no row number; give one 0-based number on a line")
        rows = np.array([int(value) for value in values], np.int64)
    elif path.suffix in PARQUET + JSON_LINES:
        table = _read(path, None)
        if "row" in table.column_names and pa.types.is_integer(table.column("row").type):
            rows = table.column("row").drop_null().to_numpy().astype(np.int64)
        elif "id" in table.column_names and dataset.ids is not None:
            # As text: 7 of a JSON file is 7 of a Parquet file, whatever their types.
            named, ids = (column.cast(pa.string()) for column in (table.column("id"), dataset.ids))
            unknown = np.flatnonzero(~pc.is_in(named, value_set=ids, skip_nulls=True).to_numpy())
            if unknown.size:
                raise InputError(
                    f"{path}, row {unknown[0]}: id {table.column('id')[int(unknown[0])]} is none of the dataset's"
                )
            rows = np.flatnonzero(pc.is_in(ids, value_set=named).to_numpy())
        else:
            raise InputError(f"{path}: no column 'row' of whole numbers, nor 'id' of a dataset that has ids")
    else:
        raise InputError(f"{path}: no such file of row numbers: .parquet or .jsonl with a column row or id, or .txt")
    outside = rows[(rows < 0) | (rows >= len(dataset))]
    if outside.size:
        raise InputError(f"{path}: row {outside[0]} is not there; the dataset has {len(dataset)} rows, from 0")
    return np.unique(rows)


def _files(data: str | Path | Sequence[str | Path]) -> list[Path]:
    given = [data] if isinstance(data, str | Path) else list(data)
    files: list[Path] = []
    for item in given:
        path = Path(item)
        if path.is_dir():
            found = sorted(file for file in path.iterdir() if file.suffix in PARQUET + JSON_LINES)
        elif path.is_file():
            found = [path]
        else:
            found = sorted(Path(match) for match in glob.glob(str(item), recursive=True))
        if not found:
            raise InputError(f"{item}: no such file, folder or pattern with {', '.join(PARQUET + JSON_LINES)} files")
        files += found
    for file in files:
        if file.suffix not in PARQUET + JSON_LINES:
            raise InputError(f"{file}: not a {', '.join(PARQUET + JSON_LINES)} file; convert it to one of these")
    whole = [file.resolve() for file in files]
    if len(set(whole)) < len(whole):
        raise InputError(f"{', '.join(map(str, files))}: a file is given twice")
    return whole


def _column_names(path: Path) -> list[str]:
    if path.suffix in PARQUET:
        try:
            return list(pq.read_schema(path).names)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path}: not readable as Parquet: {error}") from None
    return list(_read(path, None).column_names)


def _read(path: Path, columns: list[str] | None) -> pa.Table:
    """One file's columns (all where None), every Parquet problem said as an InputError."""
    if not path.is_file():
        raise InputError(f"{path}: the file is gone; give the path where it is now")
    if path.suffix in JSON_LINES:
        table = _read_json_lines(path)
        return table if columns is None else table.select([name for name in columns if name in table.column_names])
    try:
        present = set(pq.read_schema(path).names)
        # ParquetFile: folders called key=value add no columns.
        return pq.ParquetFile(path).read(None if columns is None else [name for name in columns if name in present])
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not readable as Parquet: {error}") from None


def _count(path: Path) -> int:
    if path.suffix in PARQUET:
        return int(_parquet(path).metadata.num_rows)
    return len(places(path)[0])


def _read_rows(path: Path, columns: pa.Schema, first: int, stop: int) -> pa.Table:
    if path.suffix not in PARQUET:
        starts, numbers = places(path)
        with path.open("rb") as lines:
            lines.seek(starts[first])
            own = [line for line in islice(lines, int(numbers[stop - 1] - numbers[first]) + 1) if line.strip()]
        # With the types of the whole dataset: some rows alone may have fewer keys.
        return _table(path, list(zip(numbers[first:stop].tolist(), own, strict=True)), columns)
    file = pq.ParquetFile(path)
    edges = np.cumsum([0, *(file.metadata.row_group(group).num_rows for group in range(file.num_row_groups))])
    groups = np.flatnonzero((edges[1:] > first) & (edges[:-1] < stop))
    present = [name for name in columns.names if name in file.schema_arrow.names]
    return file.read_row_groups(groups.tolist(), present).slice(first - int(edges[groups[0]]), stop - first)


def _read_json_lines(path: Path) -> pa.Table:
    return _table(path, list(_lines(path)))


def places(path: Path) -> tuple[np.ndarray[Any, np.dtype[np.int64]], np.ndarray[Any, np.dtype[np.int64]]]:
    """Where each line that is not blank begins, in bytes, and its number; the file is run over once in a process."""
    if not path.is_file():
        raise InputError(f"{path}: the file is gone; give the path where it is now")
    known = path.stat()
    return _places_of(path, known.st_size, known.st_mtime_ns)


@lru_cache(maxsize=64)
def _places_of(
    path: Path,
    size: int,  # noqa: ARG001 (a file that changed is another)
    changed: int,  # noqa: ARG001
) -> tuple[np.ndarray[Any, np.dtype[np.int64]], np.ndarray[Any, np.dtype[np.int64]]]:
    starts, numbers, start = array("q"), array("q"), 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                starts.append(start)
                numbers.append(number)
            start += len(line)
    return np.frombuffer(starts, np.int64), np.frombuffer(numbers, np.int64)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers, from 1."""
    if not path.is_file():
        raise InputError(f"{path}: the file is gone; give the path where it is now")
    some = False
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                some = True
                yield number, line
    if not some:
        raise InputError(f"{path}: no rows")


def _blocks(path: Path) -> Iterator[tuple[int, list[tuple[int, bytes]]]]:
    """The lines, some at a time, with the row number of the first."""
    first, lines = 0, _lines(path)
    while block := list(islice(lines, _BATCH_ROWS)):
        yield first, block
        first += len(block)


def _table(path: Path, numbered: list[tuple[int, bytes]], schema: pa.Schema | None = None) -> pa.Table:
    """Lines as a table: with the columns and types of a schema, or with those that they have."""
    rows: list[dict[str, Any]] = []
    for number, line in numbered:
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(
                f"{path}, line {number}: not JSON in UTF-8: {error}; a line must hold one whole object, such as "
                '{"prompt": "…", "completion": "…"}'
            ) from None
        if not isinstance(row, dict):
            raise InputError(
                f"{path}, line {number}: a {type(row).__name__} where an object should be; write one object a line"
            )
        rows.append(row)
    names = list(dict.fromkeys(name for row in rows for name in row)) if schema is None else schema.names
    arrays = []
    for name in names:
        kind = None if schema is None else schema.field(name).type
        try:
            name.encode()
            arrays.append(pa.array([row.get(name) for row in rows], kind))
        except (pa.ArrowException, UnicodeEncodeError, OverflowError):
            odd, reason = _fault(rows, name, kind)
            raise InputError(f"{path}, line {numbered[odd][0]}, column {name!r}: {reason}") from None
    return pa.table(dict(zip(names, arrays, strict=True)))


def _fault(rows: list[dict[str, Any]], name: str, kind: pa.DataType | None) -> tuple[int, str]:
    """Which of some rows keeps a column (of a type, where it is known) from being made, and why."""
    for number, row in enumerate(rows):
        try:
            # With its name, which may be at fault itself.
            pa.array([{name: row[name]}] if name in row else [])
        except UnicodeEncodeError as error:
            return number, f"{error.object[error.start]!r} is half of a character; mend the text or remove the line"
        except OverflowError:
            return number, "a whole number beyond 64 bits; write it as text, in quotes"
        except pa.ArrowException as error:
            return number, f"values of a list must be of one type: {error}"

    def wrong(last: int) -> str:
        try:
            pa.array([row.get(name) for row in rows[: last + 1]], kind)
        except pa.ArrowException as error:
            return str(error)
        return ""

    # The first row that does not go with those before it.
    odd = bisect_left(range(len(rows) - 1), True, key=lambda last: bool(wrong(last)))
    kinds = [type(row.get(name)).__name__ for row in rows[: odd + 1]]
    first = next(each for each in kinds if each != "NoneType")
    if kinds[odd] == first:
        return odd, f"values of a column must be of one type, as of the lines before: {wrong(odd)}"
    return odd, f"{kinds[odd]}, where lines before have {first}; values of a column must be of one type"


def _roles(names: list[str], given: dict[str, str], path: Path) -> dict[str, str]:
    """Role → column name, from the given ones and the conventions."""
    known = {role for format_ in FORMATS for role in format_} | {"input", "tools", *EXTRA}
    for role, name in given.items():
        if role not in known:
            raise InputError(f"unknown column role {role!r}; the roles are {', '.join(sorted(known))}")
        if name not in names:
            raise InputError(f"{path}: no column {name!r} for {role}; it has {', '.join(names)}")
    named = {role: given.get(role, role) for role in known}
    for format_ in sorted(FORMATS, key=lambda roles: not any(role in given for role in roles)):
        if all(named[role] in names for role in format_):
            optional = OPTIONAL.get(format_[0], ()) + EXTRA
            roles = (*format_, *(role for role in optional if named[role] in names))
            unused = set(given) - set(roles)
            if unused:
                raise InputError(f"column roles {', '.join(sorted(unused))} do not go with {', '.join(format_)}")
            return {role: named[role] for role in roles}
    for format_ in FORMATS:
        if set(format_) & set(given):
            lacking = next(role for role in format_ if named[role] not in names)
            raise InputError(
                f"{path}: no column for {lacking}; name it, --column {lacking}=NAME: there are {', '.join(names)}"
            )
    raise InputError(
        f"{path}: no columns to train on; wanted prompt + completion, messages, conversations, or instruction + "
        f"output; it has {', '.join(names)}. Name them: --column prompt=NAME --column completion=NAME"
    )


def _rename(table: pa.Table, roles: Mapping[str, str], path: Path) -> pa.Table:
    for role, name in roles.items():
        if name not in table.column_names:
            raise InputError(f"{path}: no column {name!r} ({role}), which the first file has")
    return pa.table({role: table.column(name) for role, name in roles.items()})


def _fingerprint(table: pa.Table) -> str:
    def blocks(name: str) -> Iterator[pa.Table]:
        for start in range(0, table.num_rows, _HASHED_ROWS):
            yield table.select([name]).slice(start, _HASHED_ROWS)

    return _digest(table.column_names, blocks)


def _digest(names: list[str], blocks: Callable[[str], Iterable[pa.Table]]) -> str:
    """The fingerprint of columns, each given in pieces of ``_HASHED_ROWS``: files and row groups leave no trace."""
    digest = hashlib.sha256(json.dumps(names).encode())
    for name in names:
        for block in blocks(name):
            chunks = block.column(0).combine_chunks()
            _hash(chunks if isinstance(chunks, pa.Array) else chunks.chunk(0), digest)
    return digest.hexdigest()


def _hash(array: pa.Array, digest: Any) -> None:
    """Feed values, not their layout: widths of offsets, validity padding and slicing do not count."""
    kind = array.type
    digest.update(np.packbits(pc.is_valid(array).to_numpy(zero_copy_only=False)).tobytes())
    if pa.types.is_null(kind):
        return
    if pa.types.is_dictionary(kind):
        _hash(array.dictionary_decode(), digest)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        lengths = pc.fill_null(pc.list_value_length(array), 0)
        digest.update(lengths.cast(pa.int64()).to_numpy(zero_copy_only=False).tobytes())
        _hash(pc.list_flatten(array), digest)
    elif pa.types.is_struct(kind):
        for number in range(kind.num_fields):
            digest.update(kind.field(number).name.encode())
            _hash(pc.struct_field(array, [number]), digest)
    else:
        text = array if pa.types.is_string(kind) or pa.types.is_large_string(kind) else array.cast(pa.string())
        filled = pc.fill_null(text.cast(pa.large_string()), "")
        digest.update(pc.binary_length(filled).cast(pa.int64()).to_numpy(zero_copy_only=False).tobytes())
        offsets = np.frombuffer(filled.buffers()[1], np.int64)[filled.offset : filled.offset + len(filled) + 1]
        if filled.buffers()[2] is not None and len(filled):
            digest.update(memoryview(filled.buffers()[2])[offsets[0] : offsets[-1]])


def _trl(row: dict[str, Any]) -> dict[str, Any]:
    """A row of roles as the row that TRL takes."""
    extra = {role: row[role] for role in ("tools", "chat_template_kwargs") if row.get(role) is not None}
    if "instruction" in row:
        prompt = row["instruction"]
        if isinstance(prompt, str) and isinstance(row.get("input"), str) and row["input"]:
            prompt = f"{prompt}\n{row['input']}"
        return {"prompt": prompt, "completion": row["output"], **extra}
    if "conversations" in row:
        return {"messages": _messages(row["conversations"]), **extra}
    if "messages" in row:
        return {"messages": _messages(row["messages"]), **extra}
    return {"prompt": _messages(row["prompt"]), "completion": _messages(row["completion"]), **extra}


def _messages(turns: Any) -> Any:
    """Chat turns with the keys of chat templates; anything else is left as it is."""
    if not isinstance(turns, list):
        return turns
    return [_message(turn) if isinstance(turn, dict) else turn for turn in turns]


def _message(turn: dict[str, Any]) -> dict[str, Any]:
    # Arrow fills the keys that a turn lacks with null.
    turn = {key: value for key, value in turn.items() if value is not None}
    if "from" in turn and "value" in turn:
        speaker = turn.pop("from")
        turn = {"role": SPEAKERS.get(speaker, speaker), "content": turn.pop("value"), **turn}
    return turn
