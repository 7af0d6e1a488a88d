"""Datasets: Parquet or JSON Lines files → rows, in file order, with a fingerprint of their content."""

from __future__ import annotations

import glob
import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from p3select.errors import InputError, MismatchError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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

_HASHED_ROWS = 65536


@dataclass(frozen=True, eq=False)
class Dataset:
    """Rows to choose from.

    Attributes:
        paths: The files, absolute, in the order in which rows are counted.
        columns: Role → column name, such as {"prompt": "question", "completion": "answer", "id": "id"}.
        table: The columns of these roles, named by role, one row per row.
        fingerprint: sha256 of these columns' content; the same rows give the same one in any file format.
    """

    paths: tuple[str, ...]
    columns: Mapping[str, str]
    table: pa.Table
    fingerprint: str

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
        return Slice(self.paths, self.columns, part.schema, first, stop, _fingerprint(part))

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
        paths: The dataset's files.
        columns: The dataset's roles and columns.
        schema: The types of these columns over all the files.
        first: The first row.
        stop: The row after the last one.
        fingerprint: That of these rows alone.
    """

    paths: tuple[str, ...]
    columns: Mapping[str, str]
    schema: pa.Schema
    first: int
    stop: int
    fingerprint: str

    def read(self) -> Dataset:
        """These rows; of Parquet files, only the row groups that hold some of them are read.

        Raises:
            InputError: A file is gone or not readable.
            MismatchError: These are other rows than before.
        """
        tables, first = [], 0
        for path in map(Path, self.paths):
            if first >= self.stop:
                break
            count = _count(path)
            start, stop = max(self.first - first, 0), min(self.stop - first, count)
            if start < stop:
                tables.append(_rename(_read_rows(path, list(self.columns.values()), start, stop), self.columns, path))
            first += count
        table = pa.concat_tables([table.cast(self.schema) for table in tables] or [self.schema.empty_table()])
        if _fingerprint(table) != self.fingerprint:
            raise MismatchError(
                f"{', '.join(self.paths)}: rows {self.first} to {self.stop - 1} are not those that they were when the "
                "work began; leave the files alone until it is done"
            )
        return Dataset(self.paths, self.columns, table, self.fingerprint)


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
    return Dataset(tuple(map(str, paths)), roles, table, _fingerprint(table))


def take(dataset: Dataset, rows: np.ndarray[Any, np.dtype[np.int64]]) -> pa.Table:
    """Chosen rows with every column of the files, in the order given.

    Args:
        dataset: The dataset; its files are read anew, one at a time.
        rows: (k,) 0-based row numbers.

    Raises:
        InputError: A file is gone or holds another number of rows than before.
    """
    taken, positions, first = [], [], 0
    for path in dataset.paths:
        table = _read(Path(path), None)
        inside = np.flatnonzero((rows >= first) & (rows < first + table.num_rows))
        taken.append(table.take(pa.array(rows[inside] - first)))
        positions.append(inside)
        first += table.num_rows
    if first != len(dataset):
        raise InputError(f"{', '.join(dataset.paths)}: {first} rows now, {len(dataset)} when it was scored")
    order = np.argsort(np.concatenate(positions), kind="stable")
    return pa.concat_tables(taken, promote_options="permissive").take(pa.array(order))


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
    if path.suffix in PARQUET and path.is_file():
        return int(pq.read_metadata(path).num_rows)
    return int(_read(path, None).num_rows)


def _read_rows(path: Path, columns: list[str], first: int, stop: int) -> pa.Table:
    if path.suffix not in PARQUET:
        return _read(path, columns).slice(first, stop - first)
    file = pq.ParquetFile(path)
    edges = np.cumsum([0, *(file.metadata.row_group(group).num_rows for group in range(file.num_row_groups))])
    groups = np.flatnonzero((edges[1:] > first) & (edges[:-1] < stop))
    present = [name for name in columns if name in file.schema_arrow.names]
    return file.read_row_groups(groups.tolist(), present).slice(first - int(edges[groups[0]]), stop - first)


def _read_json_lines(path: Path) -> pa.Table:
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
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
            lines.append(number)
    if not rows:
        raise InputError(f"{path}: no rows")
    names = list(dict.fromkeys(name for row in rows for name in row))
    arrays = []
    for name in names:
        try:
            arrays.append(pa.array([row.get(name) for row in rows]))
        except pa.ArrowException:
            kinds = [type(row.get(name)).__name__ for row in rows]
            first = next(kind for kind in kinds if kind != "NoneType")
            odd = next((n for n, kind in enumerate(kinds) if kind not in (first, "NoneType")), len(rows) - 1)
            raise InputError(
                f"{path}, line {lines[odd]}, column {name!r}: {kinds[odd]}, where lines before have {first}; values of "
                "a column must be of one type"
            ) from None
    return pa.table(dict(zip(names, arrays, strict=True)))


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
    digest = hashlib.sha256(json.dumps(table.column_names).encode())
    for name in table.column_names:
        for start in range(0, table.num_rows, _HASHED_ROWS):
            # Chunks of a fixed size, so that files and row groups leave no trace.
            chunks = table.column(name).slice(start, _HASHED_ROWS).combine_chunks()
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
