import math
import subprocess
import sys

import pytest

from p3select import machine


def test_memory_left_is_the_least_of_what_machine_and_control_groups_allow(tmp_path):
    def write(path, text):
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def group(path, limit, used, files, names=("memory.max", "memory.current", "inactive_file")):
        for name, text in zip((*names[:2], "memory.stat"), (limit, used, f"anon 1\n{names[2]} {files}"), strict=True):
            write(f"sys/fs/cgroup/{path}/{name}", f"{text}\n")

    write("proc/meminfo", "MemTotal:       2000 kB\nMemAvailable:   1000 kB\nHugePages_Total:       0\n")
    assert machine.memory(tmp_path) == 1_024_000
    write("proc/self/cgroup", "0::/user/job\n")
    group("user/job", "max", 50_000, 0)
    assert machine.memory(tmp_path) == 1_024_000
    group("user/job", 900_000, 400_000, 100_000)  # of which 100,000 hold files and are given up
    assert machine.memory(tmp_path) == 600_000
    group("user", 700_000, 300_000, 0)  # the one above has less
    assert machine.memory(tmp_path) == 400_000
    group("user", 700_000, 800_000, 0)
    assert machine.memory(tmp_path) == 0
    # A container's own group is at the top, whatever path it has outside.
    write("proc/self/cgroup", "5:cpu,cpuacct:/docker/a\n4:memory:/docker/a\n")
    group("memory", 800_000, 500_000, 0, ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"))
    assert machine.memory(tmp_path) == 300_000
    (tmp_path / "sys/fs/cgroup/memory/memory.stat").unlink()  # as in some sandboxes
    assert machine.memory(tmp_path) == 300_000


@pytest.mark.skipif(sys.platform != "linux", reason="a limit of Linux")
def test_memory_left_is_within_the_limit_of_the_process():
    code = (
        "import resource; from p3select import machine;"
        "taken = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize();"
        "resource.setrlimit(resource.RLIMIT_AS, (taken + 2**27, taken + 2**27)); print(machine.memory())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 2**26 < int(done.stdout) <= 2**27


def test_cores_are_those_that_control_groups_give_time_of(tmp_path, monkeypatch):
    assert machine._quota(tmp_path) == math.inf
    machine._quota.cache_clear()
    for path, text in (
        ("proc/self/cgroup", "0::/user/job\n"),
        ("sys/fs/cgroup/user/job/cpu.max", "max 100000\n"),
        ("sys/fs/cgroup/user/cpu.max", "150000 100000\n"),
    ):
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    folders = [path.relative_to(tmp_path).as_posix() for path in machine._control_groups("cpu", tmp_path)]
    assert folders == ["sys/fs/cgroup/user/job", "sys/fs/cgroup/user", "sys/fs/cgroup"]
    assert machine._quota(tmp_path) == 1.5
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(machine, "_quota", lambda: 1.5)
    assert machine.threads() == 2
