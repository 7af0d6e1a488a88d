"""Fingerprints: sha256 over content, never over paths or times."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from p3select.errors import InputError


def of_json(value: Any) -> str:
    """The sha256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def of_files(path: str | Path, suffixes: tuple[str, ...] = ()) -> str:
    """The sha256 over the content of a file, or of every file of a folder with its name in the folder.

    Args:
        path: A file or a folder. Hidden files and folders do not count.
        suffixes: In a folder, only files with one of these endings count; empty means all.

    Returns:
        64 hexadecimal digits. Equal content gives equal digits wherever it lies.

    Raises:
        InputError: Nothing is there to read.
    """
    root = Path(path)
    if root.is_file():
        files = [root]
    else:
        files = sorted(
            file
            for file in root.rglob("*")
            if file.is_file()
            and not any(part.startswith(".") for part in file.relative_to(root).parts)
            and (not suffixes or file.suffix in suffixes)
        )
    if not files:
        raise InputError(f"{root}: no file to read there")
    # hashlib lets go of the GIL, so large weight files are read side by side.
    with ThreadPoolExecutor(max_workers=8) as pool:
        digests = list(pool.map(_of_file, files))
    names = [file.relative_to(root).as_posix() if root.is_dir() else "" for file in files]
    return of_json(list(zip(names, digests, strict=True)))


def _of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
