"""Exporters: an epoch's rows as files that a trainer reads, every column and value as in the dataset."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from p3select import index, plugins
from p3select.dataset import take, unchanged
from p3select.errors import InputError, MismatchError
from p3select.run import Run

if TYPE_CHECKING:
    import pyarrow as pa

BUILTIN = {
    "axolotl": ("p3select.exporters.axolotl:write", ""),
    "jsonl": ("p3select.exporters.jsonl:write", ""),
    "llamafactory": ("p3select.exporters.llamafactory:write", ""),
    "parquet": ("p3select.exporters.parquet:write", ""),
    "trl": ("p3select.exporters.trl:write", ""),
}
# How the file of an exporter ends; the others write folders.
SUFFIXES = {"jsonl": ".jsonl", "parquet": ".parquet"}


class Exporter(Protocol):
    """What writes rows in a trainer's format.

    One that has a parameter ``columns`` is given the dataset's: role → column name, such as
    {"prompt": "question", "completion": "answer"}. One that has ``source`` is given where the rows are: the dataset's
    files, in their order, and int64 (k,), the rows' 0-based numbers over all of them.
    """

    def __call__(self, rows: pa.RecordBatchReader, out: Path) -> None:
        """Write the rows, in the order given, to a file or folder; one that is there is replaced.

        Args:
            rows: A stream, to be read once: iterating gives ``pyarrow.RecordBatch``, ``rows.schema`` is known before,
                and ``rows.read_all()`` is the whole table, in memory.
            out: The file or folder.
        """
        ...


def export(run: Run | str | Path, *, epoch: int, to: str, out: str | Path, overwrite: bool = False) -> dict[str, Any]:
    """Write the rows of an epoch's index for a trainer, in the order picked.

    Some of the rows at a time are in memory, never all of them.

    Args:
        run: The run folder.
        epoch: From 1.
        to: ``jsonl``, ``parquet``, ``trl`` (a folder for ``datasets.load_dataset``), ``axolotl`` (a folder, with the
            entry for its ``datasets``), ``llamafactory`` (a folder for its ``dataset_dir``), or another one's name.
        out: The file or folder to write. With a slash at its end, or where it is a folder and ``to`` writes a file,
            it is a folder for many epochs, and what is written there is called ``epoch-001``, with the file's ending.
        overwrite: Replace what is there.

    Returns:
        A summary: rows, columns, out.

    Raises:
        InputError: No such index or exporter, or ``out`` is there already.
        MismatchError: The data changed since, or the index belongs to other data.
    """
    run = run if isinstance(run, Run) else Run(run)
    write = cast("Exporter", plugins.find("exporter", to, BUILTIN))
    out = _place(out, epoch, SUFFIXES.get(to))
    selection = index.read(run.index(epoch))
    known = run.info()["dataset"]
    if selection.metadata["dataset_fingerprint"] != known["fingerprint"]:
        raise MismatchError(f"{run.index(epoch)} belongs to other data than {run.path}; select this epoch again")
    if out.exists() and not overwrite:
        raise InputError(f"{out}: is there already; give --overwrite to replace it")
    if not unchanged(known["paths"], known["columns"], known["fingerprint"]):
        run.dataset()  # says what is wrong
    rows = take(known["paths"], selection.rows)
    given = {"columns": known["columns"], "source": (known["paths"], selection.rows)}
    options = {name: value for name, value in given.items() if name in inspect.signature(write).parameters}
    try:
        write(rows, out, **options)
    except IsADirectoryError:
        raise InputError(f"{out}: a folder, and {to} writes a file; give a file's path") from None
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{out}: a file, and {to} writes a folder; give a folder's path") from None
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {error}") from None
    return {"rows": len(selection), "columns": rows.schema.names, "out": str(out)}


def _place(out: str | Path, epoch: int, suffix: str | None) -> Path:
    """The file or folder of an epoch."""
    many = str(out).endswith(("/", os.sep)) or (suffix is not None and Path(out).is_dir())
    return Path(out) / f"epoch-{epoch:03d}{suffix or ''}" if many else Path(out)
