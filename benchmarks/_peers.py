"""A peer's environment, and one measurement in a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.peers import PEERS

ROOT = Path(__file__).parents[1]
INSTALL_SECONDS = 900


def measured(name: str, folder: Path, k: int, h: float, out: Path, cache: Path, timeout: float) -> dict[str, Any]:
    """What ``benchmarks.peers`` found, or ``{"failed": why}``. One that is there already is not made again.

    Args:
        name: Of ``PEERS``.
        folder: With the input.
        k: Rows to pick.
        h: The scale.
        out: Where the result is kept; without an ending.
        cache: For the environments.
        timeout: Seconds for the whole process.
    """
    file = out.with_suffix(".json")
    if not file.is_file():
        python = _python(PEERS[name].requirements, cache)
        if isinstance(python, Path):
            failed = _run(
                [python, "-m", "benchmarks.peers", name, folder, str(k), repr(float(h)), out], timeout=timeout
            )
        else:
            failed = python
        if failed:
            file.write_text(json.dumps({"failed": failed}))
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def versions() -> dict[str, str]:
    """What each peer's environment is asked to have."""
    return {
        peer.requirements: (ROOT / "benchmarks" / "peers" / f"{peer.requirements}.txt").read_text().split()[-1]
        for peer in PEERS.values()
        if peer.requirements
    }


def _python(requirements: str, cache: Path) -> Path | str:
    """The interpreter with the requirements, made where it is not there yet; or why it cannot be made."""
    if not requirements:
        return Path(sys.executable)
    folder = cache / "envs" / requirements
    python, state = folder / "bin" / "python", folder / "installed.txt"
    file = ROOT / "benchmarks" / "peers" / f"{requirements}.txt"
    if state.is_file() and state.read_text() == file.read_text():
        return python
    failed = _run([sys.executable, "-m", "venv", "--clear", folder], timeout=INSTALL_SECONDS) or _run(
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", file], timeout=INSTALL_SECONDS
    )
    if failed:
        return f"not installed: {failed}"
    state.write_text(file.read_text())
    return python


def _run(command: list[Any], timeout: float) -> str:
    """Run to the end; what went wrong, or nothing."""
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    process = subprocess.Popen(
        [str(part) for part in command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return f"not done after {timeout:g} s"
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    if process.returncode == 0:
        return ""
    # A library may have drawn a progress bar there.
    lines = [line.strip() for line in errors.splitlines() if re.match(r"\s*[\w.]*(Error|Exception|error)\b", line)]
    ended = f"ended by signal {-process.returncode}" if process.returncode < 0 else f"exit code {process.returncode}"
    return lines[-1][:300] if lines else ended
