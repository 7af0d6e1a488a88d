"""Exporters: an epoch's rows as files that a trainer reads, every column and value as in the dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from p3select import index, plugins
from p3select.dataset import take
from p3select.errors import InputError, MismatchError
from p3select.run import Run

if TYPE_CHECKING:
    import pyarrow as pa

BUILTIN = {
    "jsonl": ("p3select.exporters.jsonl:write", ""),
    "parquet": ("p3select.exporters.parquet:write", ""),
    "trl": ("p3select.exporters.trl:write", ""),
}


class Exporter(Protocol):
    """What writes a table in a trainer's format."""

    def __call__(self, table: pa.Table, out: Path) -> None:
        """Write the rows, in the order given, to a file or folder; one that is there is replaced."""
        ...


def export(run: Run | str | Path, *, epoch: int, to: str, out: str | Path, overwrite: bool = False) -> dict[str, Any]:
    """Write the rows of an epoch's index for a trainer, in the order picked.

    Args:
        run: The run folder.
        epoch: From 1.
        to: ``jsonl``, ``parquet``, ``trl`` (a folder for ``datasets.load_dataset``), or another exporter's name.
        out: The file or folder to write.
        overwrite: Replace what is there.

    Returns:
        A summary: rows, columns, out.

    Raises:
        InputError: No such index or exporter, or ``out`` is there already.
        MismatchError: The data changed since, or the index belongs to other data.
    """
    run = run if isinstance(run, Run) else Run(run)
    out = Path(out)
    write = cast("Exporter", plugins.find("exporter", to, BUILTIN))
    selection = index.read(run.index(epoch))
    dataset = run.dataset()
    if selection.metadata["dataset_fingerprint"] != dataset.fingerprint:
        raise MismatchError(f"{run.index(epoch)} belongs to other data than {run.path}; select this epoch again")
    if out.exists() and not overwrite:
        raise InputError(f"{out}: is there already; give --overwrite to replace it")
    table = take(dataset, selection.rows)
    try:
        write(table, out)
    except IsADirectoryError:
        raise InputError(f"{out}: a folder, and {to} writes a file; give a file's path") from None
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{out}: a file, and {to} writes a folder; give a folder's path") from None
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {error}") from None
    return {"rows": table.num_rows, "columns": table.column_names, "out": str(out)}
