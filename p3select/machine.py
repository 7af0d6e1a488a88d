"""What this process may use of the machine: memory and threads, as control groups (a container's, a job's) allow."""

from __future__ import annotations

import math
import os
from functools import cache
from pathlib import Path


def memory(root: Path = Path("/")) -> int | None:
    """Bytes that are available to this process (Linux), or in the machine (macOS); None where neither can be asked."""
    left = _allowed(root)
    meminfo = root / "proc/meminfo"
    if meminfo.is_file() and "MemAvailable:" in (fields := _fields(meminfo)):
        left.append(int(fields["MemAvailable:"]) * 1024)
    elif hasattr(os, "sysconf"):
        left.append(int(os.sysconf("SC_PAGE_SIZE")) * int(os.sysconf("SC_PHYS_PAGES")))
    return max(0, min(left)) if left else None


def threads() -> int:
    """Cores that this process may use, or the whole ones that its control groups (Linux) give it the time of."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, _quota())))


def _allowed(root: Path) -> list[int]:
    """Bytes left of each limit that control groups (a container's, say) and ``ulimit -v`` set, on Linux."""
    left = []
    for group in _control_groups("memory", root):
        for limit, used, kept in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            if (group / limit).is_file() and (most := (group / limit).read_text().strip()) != "max":
                free = int(most) - int((group / used).read_text())
                # What is kept of files that were read is given up when memory is asked for. Some sandboxes do not say.
                stat = group / "memory.stat"
                left.append(free + int(_fields(stat).get(kept, 0) if stat.is_file() else 0))
    statm = root / "proc/self/statm"
    if statm.is_file():
        import resource  # not on Windows

        space, _ = resource.getrlimit(resource.RLIMIT_AS)
        if space != resource.RLIM_INFINITY:
            left.append(space - int(statm.read_text().split()[0]) * resource.getpagesize())
    return left


@cache
def _quota(root: Path = Path("/")) -> float:
    """Cores' worth of time that control groups (version 2) allow; infinity where they set no limit."""
    shares = [math.inf]
    for group in _control_groups("cpu", root):
        file = group / "cpu.max"
        quota, period = file.read_text().split() if file.is_file() else ("max", "1")
        shares += [int(quota) / int(period)] if quota != "max" else []
    return min(shares)


def _control_groups(controller: str, root: Path) -> list[Path]:
    """Folders of the control groups (Linux) that this process is in, and of those above them; in a container, of its.

    Args:
        controller: ``memory`` or ``cpu``.
        root: Where ``proc`` and ``sys`` are.
    """
    listed, folders = root / "proc/self/cgroup", []
    for line in listed.read_text().splitlines() if listed.is_file() else []:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            top = root / "sys/fs/cgroup"
        elif controller in controllers.split(","):
            top = root / "sys/fs/cgroup" / controller
        else:
            continue
        own = top / path.strip("/")
        folders += [folder for folder in (own, *own.parents) if folder.is_relative_to(top)]
    return folders


def _fields(file: Path) -> dict[str, str]:
    """The first two words of every line."""
    return dict(line.split()[:2] for line in file.read_text().splitlines())
