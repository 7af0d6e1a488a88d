"""axolotl: a folder with the rows and the ``datasets`` entry of its YAML that reads them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pyarrow as pa

from p3select.errors import InputError
from p3select.exporters import trl
from p3select.run import write_whole

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def write(rows: pa.RecordBatchReader, out: Path, *, columns: Mapping[str, str]) -> None:
    """Write ``train.parquet``, every column as it is, and ``axolotl.yml``.

    The entry has axolotl tokenise the rows as :mod:`p3select.tokens` does: no template around texts, the tokenizer's
    own around messages.

    Args:
        rows: The rows.
        out: The folder.
        columns: Role → column name.

    Raises:
        InputError: Rows of a kind that axolotl does not read, or other data files in the folder.
    """
    lines = entry(rows.schema, columns)
    trl.write(rows, out)
    path = json.dumps(str((out / "train.parquet").resolve()), ensure_ascii=False)
    text = (
        "# For the configuration of axolotl. To train the rows in their order, add\n"
        "#     shuffle_merged_datasets: false\n"
        "#     curriculum_sampling: true\n"
        f"datasets:\n  - path: {path}\n    ds_type: parquet\n" + "".join(f"    {line}\n" for line in lines)
    )
    write_whole(out / "axolotl.yml", lambda temporary: temporary.write_text(text, encoding="utf-8"))


def entry(schema: pa.Schema, columns: Mapping[str, str]) -> list[str]:
    """The lines of YAML that say what the rows are like.

    Args:
        schema: Of the rows.
        columns: Role → column name, as of :class:`p3select.Dataset`.

    Raises:
        InputError: Rows of a kind that axolotl does not read.
    """
    for role in ("messages", "conversations"):
        if role in columns:
            return _messages(schema, columns[role])
    first, second = ("prompt", "completion") if "prompt" in columns else ("instruction", "output")
    for role in (first, second):
        kind = schema.field(columns[role]).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise InputError(
                f"column {columns[role]!r}: {kind}, and axolotl wants text there; put conversations into one column of "
                "messages"
            )
    return [
        "type:",
        f"  field_instruction: {_quoted(columns[first])}",
        # An empty name is no column's: axolotl would else look for columns called input and system.
        f"  field_input: {_quoted(columns.get('input', ''))}",
        f"  field_output: {_quoted(columns[second])}",
        '  field_system: ""',
        '  format: "{instruction}\\n{input}"',
        '  no_input_format: "{instruction}"',
    ]


def _messages(schema: pa.Schema, name: str) -> list[str]:
    kind = schema.field(name).type
    turn = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else None
    keys = {field.name for field in turn} if turn is not None and pa.types.is_struct(turn) else set()
    role, content = ("from", "value") if {"from", "value"} <= keys else ("role", "content")
    if not {role, content} <= keys:
        raise InputError(f"column {name!r}: {kind}, and axolotl wants a list of messages there")
    return [
        "type: chat_template",
        f"field_messages: {_quoted(name)}",
        "message_property_mappings:",
        f"  role: {role}",
        f"  content: {content}",
    ]


def _quoted(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)
