"""LLaMA-Factory: a folder for ``dataset_dir``, with the rows and their entry in ``dataset_info.json``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from p3select.dataset import SPEAKERS
from p3select.errors import InputError
from p3select.exporters import parquet
from p3select.run import read_json, write_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

# What ``dataset`` of a configuration is to be.
NAME = "p3select"
# Roles → LLaMA-Factory's names of the tags, and of the columns.
TAGS = {"user": "user_tag", "assistant": "assistant_tag", "tool": "observation_tag", "system": "system_tag"}
COLUMNS = {
    "prompt": "prompt",
    "completion": "response",
    "instruction": "prompt",
    "input": "query",
    "output": "response",
    "messages": "messages",
    "conversations": "messages",
    "tools": "tools",
}
# What no row that LLaMA-Factory keeps has two of in a row.
_ODD = ("user", "tool")


def write(rows: pa.RecordBatchReader, out: Path, *, columns: Mapping[str, str]) -> None:
    """Write the folder: ``p3select.parquet``, and the entry ``p3select`` beside others of ``dataset_info.json``.

    Args:
        rows: The rows.
        out: The folder.
        columns: Role → column name.

    Raises:
        InputError: LLaMA-Factory would drop a row, or cannot read rows of this kind.
    """
    info = out / "dataset_info.json"
    others = read_json(info) if info.is_file() else {}
    tags: dict[str, str] = {}
    checked = pa.RecordBatchReader.from_batches(rows.schema, _checked(rows, columns, tags))
    parquet.write(checked, out / f"{NAME}.parquet")
    write_json(info, {**others, NAME: {"file_name": f"{NAME}.parquet", **entry(columns, tags)}})


def entry(columns: Mapping[str, str], tags: Mapping[str, str]) -> dict[str, Any]:
    """What ``dataset_info.json`` says of rows, but for where they are.

    Args:
        columns: Role → column name, as of :class:`p3select.Dataset`.
        tags: What :func:`turns` found in them; empty for rows without messages.
    """
    kind = {"formatting": "sharegpt", "tags": complete(tags)} if tags else {}
    return {**kind, "columns": {COLUMNS[role]: name for role, name in columns.items() if role in COLUMNS}}


def turns(values: Any) -> tuple[list[dict[str, str]], dict[str, str]]:
    """A row's messages as LLaMA-Factory takes them, and what its tags have to be.

    Args:
        values: The messages: ``role`` and ``content``, or ``from`` and ``value``.

    Returns:
        The turns, with ``role`` (user, assistant, tool, system) and ``content``; and tag → what stands for it.

    Raises:
        InputError: It would drop the row, or not read it.
    """
    if not isinstance(values, list) or not all(isinstance(turn, dict) for turn in values):
        raise InputError("no list of turns")
    who, what = ("from", "value") if all({"from", "value"} <= turn.keys() for turn in values) else ("role", "content")
    speakers = [SPEAKERS.get(turn.get(who), turn.get(who)) for turn in values]
    said = speakers[1:] if speakers[:1] == ["system"] else speakers
    fits = [speaker in _ODD if place % 2 == 0 else speaker == "assistant" for place, speaker in enumerate(said)]
    if not said or len(said) % 2 or not all(fits):
        raise InputError(
            f"turns of {', '.join(map(str, speakers)) or 'nobody'}, and LLaMA-Factory drops rows whose user and "
            "assistant do not take turns, the user first"
        )
    if not all(isinstance(turn.get(what), str) for turn in values):
        raise InputError(f"a turn whose {what} is no text, which LLaMA-Factory cannot read")
    tags = {TAGS[speaker]: turn[who] for speaker, turn in zip(speakers, values, strict=True)}
    plain = [{"role": speaker, "content": turn[what]} for speaker, turn in zip(speakers, values, strict=True)]
    return plain, {"role_tag": who, "content_tag": what, **tags}


def note(found: Mapping[str, str], tags: dict[str, str]) -> None:
    """Add a row's tags to those of the rows before.

    Raises:
        InputError: They differ.
    """
    for tag, name in found.items():
        if tags.setdefault(tag, name) != name:
            raise InputError(
                f"{name!r} where rows before have {tags[tag]!r}, and LLaMA-Factory knows one name for each: write the "
                "same in all rows"
            )


def complete(tags: Mapping[str, str]) -> dict[str, str]:
    """All tags, as LLaMA-Factory takes none of its own beside given ones."""
    defaults = ("human", "gpt", "observation", "system") if tags["role_tag"] == "from" else TAGS
    return {**dict(zip(TAGS.values(), defaults, strict=True)), "function_tag": "function_call", **tags}


def _checked(rows: pa.RecordBatchReader, columns: Mapping[str, str], tags: dict[str, str]) -> Iterator[pa.RecordBatch]:
    number = 0
    for batch in rows:
        for role in ("messages", "conversations"):
            if role in columns:
                for row, values in enumerate(batch.column(columns[role]).to_pylist(), number):
                    try:
                        note(turns(values)[1], tags)
                    except InputError as error:
                        raise InputError(f"row {row} of the selection: {error}; mend it, or leave it out") from None
        for role in ("prompt", "completion", "instruction", "output"):
            if role in columns:
                _texts(batch.column(columns[role]), columns[role], number)
        if "tools" in columns and not _is_text(batch.column(columns["tools"]).type):
            raise InputError(f"column {columns['tools']!r}: LLaMA-Factory wants the tools of a row as one text of JSON")
        number += len(batch)
        yield batch


def _texts(values: pa.Array, name: str, first: int) -> None:
    if not _is_text(values.type):
        raise InputError(
            f"column {name!r}: {values.type}, and LLaMA-Factory wants text there; put conversations into one column "
            "of messages"
        )
    if values.null_count:
        row = first + values.is_null().index(True).as_py()
        raise InputError(f"row {row} of the selection: no {name}; LLaMA-Factory drops such rows: leave it out")


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
