"""One measurement: ``python -m benchmarks.peers NAME FOLDER K H OUT``, in the peer's environment.

FOLDER has ``x.npy`` (n, d) and ``q.npy`` (n,). The rows picked go to ``OUT.npy``, the figures to ``OUT.json``.
"""

from __future__ import annotations

import json
import os
import re
import resource
import sys
import time
from importlib import import_module
from pathlib import Path

import numpy as np

from benchmarks.peers import PEERS


def measure(name: str, folder: Path, k: int, h: float, out: Path) -> None:
    """Call the peer on a few rows first, so that what is compiled then is not counted.

    Args:
        name: Of ``PEERS``.
        folder: With the input.
        k: Rows to pick.
        h: The scale.
        out: Without an ending. ``OUT.json`` gets wall and CPU seconds of the call, peak memory of the process while it
            ran, and what of it was there before (libraries and the input), in GB.
    """
    module, _, function = PEERS[name].function.partition(":")
    pick = getattr(import_module(f"benchmarks.peers.{module}"), function)
    x, q = np.load(folder / "x.npy"), np.load(folder / "q.npy")
    clock = time.perf_counter()
    pick(x[:400], q[:400], 10, h)
    first = time.perf_counter() - clock
    # More than there is should fail with a message, not end other processes.
    limit = _memory("VmSize") + _available()
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    Path("/proc/self/clear_refs").write_text("5")
    before = _memory("VmRSS")
    wall, cpu = time.perf_counter(), sum(os.times()[:4])
    rows = pick(x, q, k, h)
    wall, cpu = time.perf_counter() - wall, sum(os.times()[:4]) - cpu
    figures = {"wall": wall, "cpu": cpu, "peak_gb": _memory("VmHWM") / 1e9, "before_gb": before / 1e9}
    np.save(out.with_suffix(".npy"), rows)
    out.with_suffix(".json").write_text(json.dumps({**figures, "first_call": first}))


def _memory(name: str) -> int:
    found = re.search(name + r":\s+(\d+)", Path("/proc/self/status").read_text())
    return 1024 * int(found[1]) if found else 0


def _available() -> int:
    found = re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())
    return 1024 * int(found[1]) if found else 0


if __name__ == "__main__":
    _, given, where, count, scale, to = sys.argv
    try:
        measure(given, Path(where), int(count), float(scale), Path(to))
    except Exception as error:
        print(f"{type(error).__name__}: {error}".splitlines()[0], file=sys.stderr)
        sys.exit(1)
