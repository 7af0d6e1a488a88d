"""The run folder: where everything of one dataset and one training run lies."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from p3select.dataset import Dataset, load
from p3select.errors import InputError, MismatchError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

FORMAT = 1
# Seconds after which a temporary file is nobody's, where its process is not to be seen.
STALE = 86_400


class Run:
    """A run folder: ``run.json``, ``embeddings/``, ``tokens/``, ``scores/epoch-001/``, ``index/epoch-001.parquet``.

    Args:
        path: The folder; it is made when something is first written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def absolute(self) -> Run:
        """The same folder, wherever a process stands."""
        return Run(self.path.absolute())

    @property
    def embeddings(self) -> Path:
        """The embeddings' array, float32 (n, d), readable with ``numpy.load(..., mmap_mode="r")``."""
        return self.path / "embeddings" / "embeddings.npy"

    def scores(self, epoch: int) -> Path:
        """The folder of an epoch's score shards."""
        return self.path / "scores" / f"epoch-{_checked(epoch):03d}"

    def tokens(self, key: str) -> Path:
        """The folder of tokenised rows that were made in one way."""
        return self.path / "tokens" / key

    def index(self, epoch: int) -> Path:
        """The index file of an epoch."""
        return self.path / "index" / f"epoch-{_checked(epoch):03d}.parquet"

    def cost(self, step: str, epoch: int) -> Path:
        """The file of the seconds that a step (score, embed, select, train) took; embedding is epoch 0's."""
        return self.path / "costs" / f"{step}-{epoch:03d}.json"

    def spend(self, step: str, epoch: int, seconds: float) -> None:
        """Add the seconds of a call that has ended to those of the step.

        What was done never fails by this: a file that is damaged, or cannot be written, stays, and the report says so.
        """
        file = self.cost(step, epoch)
        with suppress(InputError, OSError, LookupError, TypeError):
            before = read_json(file)["seconds"] if file.is_file() else 0.0
            write_json(file, {"seconds": before + seconds})

    def info(self) -> dict[str, Any]:
        """What ``run.json`` says.

        Raises:
            InputError: The folder is no run folder, or of another format.
        """
        file = self.path / "run.json"
        if not file.is_file():
            raise InputError(f"{self.path}: no run folder (run.json is missing); 'p3select score' makes one")
        info: dict[str, Any] = read_json(file)
        if info.get("format") != FORMAT:
            raise InputError(f"{file}: format {info.get('format')!r}; this version of p3select reads format {FORMAT}")
        if not {"paths", "fingerprint", "columns", "rows"} <= set(info.get("dataset") or ()):
            raise InputError(f"{file}: damaged (it names no dataset); remove it, and score or embed the data again")
        return info

    def bind(self, dataset: Dataset) -> None:
        """Make the folder the dataset's, or check that it is; what killed processes left half written is removed.

        Raises:
            MismatchError: The folder belongs to other rows.
        """
        self.check(dataset)
        _clear(self.path)
        described = {
            "paths": list(dataset.paths),
            "fingerprint": dataset.fingerprint,
            "columns": dict(dataset.columns),
            "rows": len(dataset),
        }
        file = self.path / "run.json"
        if not file.is_file() or self.info()["dataset"] != described:
            write_json(file, {"format": FORMAT, "dataset": described})

    def check(self, dataset: Dataset) -> None:
        """Find that the folder is not another dataset's; nothing is written.

        Raises:
            InputError: It is no folder.
            MismatchError: It belongs to other rows.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path}: a file, where the run folder should be; give another --run")
        if (self.path / "run.json").is_file():
            known = self.info()["dataset"]
            if known["fingerprint"] != dataset.fingerprint:
                raise MismatchError(
                    f"{self.path} belongs to other data: {known['rows']} rows of {known['paths'][0]} "
                    f"(fingerprint {known['fingerprint'][:12]}), not the {len(dataset)} rows of {dataset.paths[0]} "
                    f"({dataset.fingerprint[:12]}); use another --run folder for these rows"
                )

    def dataset(self) -> Dataset:
        """The dataset, read from where it was.

        Raises:
            InputError: Its files are gone.
            MismatchError: They hold other rows than before.
        """
        known = self.info()["dataset"]
        gone = [path for path in known["paths"] if not Path(path).is_file()]
        if gone:
            raise InputError(
                f"{gone[0]}: gone, and {self.path / 'run.json'} says that the rows are there; give 'p3select score' or "
                "'embed' the path where they are now, with the same --run: it notes it"
            )
        dataset = load(known["paths"], known["columns"])
        if dataset.fingerprint != known["fingerprint"]:
            raise MismatchError(
                f"{', '.join(known['paths'])}: changed since {self.path} was made (fingerprint "
                f"{known['fingerprint'][:12]}, now {dataset.fingerprint[:12]}); use a new --run folder"
            )
        return dataset


class Lent(Run):
    """A run folder that has the embeddings of another, and its scores if need be.

    So that a strategy's selections have a folder of their own, from which they can be exported, and nothing is copied.
    """

    def __init__(self, path: Path, lender: Run, *, scored: bool) -> None:
        super().__init__(path)
        self._lender, self._scored = lender, scored

    @property
    def embeddings(self) -> Path:
        """The lender's."""
        return self._lender.embeddings

    def scores(self, epoch: int) -> Path:
        """The lender's, if they are lent."""
        return self._lender.scores(epoch) if self._scored else super().scores(epoch)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file so that it is there whole or not at all, also when the process is killed.

    Args:
        path: The file.
        write: Called with the temporary path to write to, in the same folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Several machines may write to one folder, and processes have the same numbers on each.
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _clear(folder: Path) -> None:
    """Remove the temporary files of processes that ran on this machine and are no more."""
    name = re.compile(rf"\..+\.{re.escape(socket.gethostname())}\.(\d{{1,9}})\.tmp")
    # A walk: another process may remove a folder meanwhile.
    for place, _, names in os.walk(folder):
        for temporary in filter(None, map(name.fullmatch, names)):
            file = Path(place, temporary[0])
            with suppress(OSError):  # another user's, or gone meanwhile
                if time.time() - file.stat().st_mtime < STALE:
                    continue  # perhaps of another container that has this machine's name
                try:
                    os.kill(int(temporary[1]), 0)
                except ProcessLookupError:
                    file.unlink(missing_ok=True)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON for people and machines, whole or not at all."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that p3select wrote.

    Raises:
        InputError: It is no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("no JSON object")
    except ValueError as error:
        raise InputError(f"{path}: damaged ({error}); remove it and give the command that made it again") from None
    return value


def _checked(epoch: int) -> int:
    if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 1:
        raise InputError(f"epoch {epoch!r}: epochs count from 1")
    return epoch
