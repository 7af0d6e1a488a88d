"""Workers: scoring with two workers on Ray against scoring here, the same rows, model and files.

On a machine with few cores this shows what Ray costs, not what it gains: one scorer keeps all cores busy already.
Starting workers and loading the model in each is counted apart: ``start`` is a run that finds everything done.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import p3select
from benchmarks import _folders
from benchmarks._folders import ROOT
from benchmarks._machine import machine


def main(arguments: list[str]) -> None:
    """Measure, print a table, write ``results/distributed.json``.

    Args:
        arguments: See ``--help``.

    Raises:
        AssertionError: The two do not write the same scores.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks distributed", description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--shard-rows", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    _folders.model(parser)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "distributed.json")
    options = parser.parse_args(arguments)

    engines = {"local": {}, "ray": {"engine": "ray", "workers": options.workers}}
    seconds: dict[str, dict[str, list[float]]] = {name: {"whole": [], "start": []} for name in engines}
    for _ in range(options.repeats):
        written = []
        for name, how in engines.items():
            folder = Path(tempfile.mkdtemp())
            for part in ("whole", "start"):
                clock = time.monotonic()
                p3select.score(
                    ROOT / "examples" / "gsm8k.parquet",
                    folder,
                    options.model,
                    scorer="transformers",
                    limit=options.rows,
                    shard_rows=options.shard_rows,
                    **how,
                )
                seconds[name][part].append(time.monotonic() - clock)
            written.append([file.read_bytes() for file in sorted(folder.glob("scores/*/*.parquet"))])
            shutil.rmtree(folder)
        assert written[0] == written[1], "the files differ"
    result = {
        "machine": machine(),
        "load": os.getloadavg()[0],
        "rows": options.rows,
        "shard_rows": options.shard_rows,
        "workers": options.workers,
        "seconds": seconds,
        "work": {name: statistics.median(map(float.__sub__, s["whole"], s["start"])) for name, s in seconds.items()},
    }
    result["ratio"] = statistics.median(
        (one - before) / (other - start)
        for one, before, other, start in zip(*seconds["local"].values(), *seconds["ray"].values(), strict=True)
    )
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    for name, times in seconds.items():
        print(f"{name:6} start {statistics.median(times['start']):6.1f} s   work {result['work'][name]:6.1f} s")
    print(f"{options.workers} workers are {result['ratio']:.2f} × as fast as scoring here, starting not counted")
