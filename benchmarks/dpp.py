"""Picking k of n rows: ``dpp`` and ``dpp-local`` against other ways and other libraries, on the same rows, in one run.

Every measurement is a process of its own; a library from the registry has an environment of its own, made when it is
first needed (``benchmarks/peers``). The features lie in memory before the clock starts; all else that a method needs,
its n × n kernel or its cells, is in its time. Each is called once before on 400 rows, so that compiling is not.

In every repeat all methods take turns, so that another load of the machine meets all of them. Times are medians, and
a ratio is the median of the ratios within a repeat. A method that took longer than 30 s is not repeated; one that
fails, or is not done in time, is listed with the reason. Memory is the peak of the whole process: Python, libraries
and the input too.

``log det`` is that of L over the picks in float64 with 1e-6 on the diagonal of S, whatever the method itself went by;
``lost`` is (exact − it) / (exact − random) of that. ``distance`` is the mean of 1 − cos to the nearest other pick,
``twins`` are picks with another pick at a cosine above 0.95. ``identical`` compares the picks, in their order, with
those of ``plain-64``, the greedy without any short cut; otherwise the share of rows in common is given. A method that
failed on fewer rows of the same kind is not tried on more.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import faiss
import numba
import numpy as np
import scipy

import p3select
from benchmarks import _bounds, _goals, _inputs, _peers, _picks, _plot
from benchmarks._machine import machine
from benchmarks.peers import PEERS
from p3select import kernel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

RESULTS = Path(__file__).parent / "results"
LONG = 30.0
"""Seconds from which a method is not repeated."""

PLAN = [
    ("near-duplicates", 2_000, 200),
    *(("near-duplicates", n, 1_000) for n in (5_000, 10_000, 20_000, 50_000, 100_000)),
    ("clustered", 10_000, 1_000),
    ("power-law", 10_000, 1_000),
    (_inputs.REAL, _inputs.REAL_ROWS, 1_000),
]


def main(arguments: list[str]) -> None:
    """Measure, print, and write ``results/dpp.json`` and ``dpp.png``.

    Args:
        arguments: See ``--help``.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks dpp", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", choices=PEERS, default=list(PEERS), metavar="METHOD", help=", ".join(PEERS)
    )
    parser.add_argument("--inputs", nargs="+", choices=(*_inputs.MADE, _inputs.REAL), help="with --sizes")
    parser.add_argument("--sizes", nargs="+", metavar="N:K", help="in place of the plan, on each of --inputs")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--timeout", type=float, default=90.0, help="seconds for one measurement (default 90)")
    parser.add_argument("--scale", type=float, help="h of the similarity (default: the rule)")
    parser.add_argument("--data", type=Path, help=f"folder with {' and '.join(_inputs.REAL_FILES)}; none: not measured")
    parser.add_argument("--encoder", type=Path, default=_peers.ROOT / "models" / "all-MiniLM-L6-v2", help="folder")
    parser.add_argument(
        "--cache", type=Path, default=Path.home() / ".cache" / "p3select-benchmarks", help="inputs and environments"
    )
    parser.add_argument("--resume", action="store_true", help="keep what an earlier run of the same code has measured")
    parser.add_argument(
        "--goals", choices=("too", "only", "none"), default="too", help="measure what the goals ask for"
    )
    parser.add_argument("--out", type=Path, help="file (default: in benchmarks/results)")
    options = parser.parse_args(arguments)
    if bool(options.inputs) is not bool(options.sizes):
        parser.error("--inputs and --sizes go together")
    if not options.resume:
        shutil.rmtree(options.cache / "measured", ignore_errors=True)
    options.measured = options.cache / "measured" / _code(options.timeout)
    result: dict[str, Any] = {
        "benchmark": "dpp",
        "machine": machine(),
        "versions": {
            "python": platform.python_version(),
            **{module.__name__: module.__version__ for module in (p3select, np, scipy, numba, faiss)},
            **_peers.versions(),
        },
        "repeats": options.repeats,
        "timeout": options.timeout,
        "cases": [],
    }
    out = options.out or RESULTS / "dpp.json"
    failed: dict[str, tuple[int, int]] = {}
    seen: dict[tuple[str, int, int], dict[str, Any]] = {}

    def measure(name: str, n: int, k: int, peers: Sequence[str]) -> dict[str, Any]:
        known = seen.get((name, n, k))
        if known is not None and known["methods"].keys() >= set(peers):
            return known
        found = seen[name, n, k] = case(options, name, n, k, peers, failed)
        result["cases"].append(found)
        out.write_text(json.dumps(result, indent=1) + "\n")
        _show(found)
        return found

    sizes = [tuple(map(int, size.split(":"))) for size in options.sizes or ()]
    plan = [(name, *size) for name in options.inputs or () for size in sizes] or PLAN
    for name, n, k in plan if options.goals != "only" else ():
        if name != _inputs.REAL or options.data:
            measure(name, n, k, options.only)
    if options.goals != "none":
        inputs = [name for name in (*_inputs.MADE, _inputs.REAL) if name != _inputs.REAL or options.data]
        result["goals"] = _goals.goals(measure, inputs)
        result["bounds"] = _bounds.bounds(options.cache, options.encoder)
        out.write_text(json.dumps(result, indent=1) + "\n")
        for goal in result["goals"]:
            print(f"{goal['work']:62} {goal['goal']:>22}   {goal['reached']}   {'' if goal['met'] else 'NOT MET'}")
    if options.goals != "only":
        _plot.costs(result["cases"], out.with_suffix(".png"))


def _code(timeout: float) -> str:
    """What measurements depend on beside their input: this code, and the time they are given."""
    files = [
        path for folder in (Path(p3select.__file__).parent, Path(__file__).parent) for path in folder.rglob("*.py")
    ]
    digest = hashlib.sha256(f"{timeout}".encode())
    for path in sorted(files):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def case(
    options: argparse.Namespace,
    name: str,
    n: int,
    k: int,
    peers: Sequence[str],
    failed: dict[str, tuple[int, int]],
) -> dict[str, Any]:
    """Some methods on one input.

    Args:
        options: Of the command.
        name: Of the input.
        n: Rows.
        k: To pick.
        peers: Of ``PEERS``.
        failed: Method → (n, k) on which it failed, to which this adds.

    Returns:
        What is written to the results: input, n, k, scale, load, methods: each with its medians, or ``failed``.
    """
    folder = _inputs.stored(name, n, options.cache, options.data, options.encoder)
    x, q = np.load(folder / "x.npy"), np.load(folder / "q.npy")
    h = kernel.scale(x) if options.scale is None else options.scale

    def file(peer: str, repeat: int) -> Path:
        made: Path = options.measured / f"{name}-{n}-{k}-{round(1e6 * h)}-{peer}-{repeat}"
        return made

    file("", 0).parent.mkdir(parents=True, exist_ok=True)
    seen: dict[str, list[dict[str, float]]] = {peer: [] for peer in peers}
    load = machine()["load_before"]
    methods: dict[str, dict[str, Any]] = {
        peer: {"failed": f"not tried: failed on {failed[peer][0]:,} rows, k = {failed[peer][1]:,}"}
        for peer in peers
        if peer in failed and n >= failed[peer][0] and k >= failed[peer][1]
    }
    for repeat in range(options.repeats):
        for peer in peers:
            if peer in methods or (seen[peer] and seen[peer][0]["wall"] > LONG):
                continue
            print(f"{time.strftime('%H:%M:%S')} {file(peer, repeat).name}", file=sys.stderr)
            found = _peers.measured(peer, folder, k, h, file(peer, repeat), options.cache, options.timeout)
            if "failed" in found:
                methods[peer] = found
                failed.setdefault(peer, (n, k))
            else:
                seen[peer].append(found)
    picked = {peer: np.load(file(peer, 0).with_suffix(".npy")) for peer in peers if peer not in methods}
    for peer, rows in picked.items():
        medians = {key: statistics.median(one[key] for one in seen[peer]) for key in seen[peer][0]}
        methods[peer] = {**medians, "runs": len(seen[peer]), **_picks.value(x, q, rows, h)}
    _compare(methods, seen, picked)
    return {
        "input": name,
        "n": n,
        "k": k,
        "d": x.shape[1],
        "scale": round(h, 4),
        "load_before": load,
        "methods": {peer: _rounded(methods[peer]) for peer in peers},
    }


def _compare(
    methods: dict[str, dict[str, Any]], seen: dict[str, list[dict[str, float]]], picked: dict[str, NDArray[np.int64]]
) -> None:
    """Add to the methods how they stand to ``dpp``, to ``random`` and to the plain greedy."""
    greedy = picked.get("plain-64")
    ends = [methods[peer]["log_det"] for peer in ("dpp", "random") if peer in picked and "log_det" in methods[peer]]
    for peer, rows in picked.items():
        if "dpp" in picked:
            for key in ("wall", "cpu"):
                ratios = [a[key] / b[key] for a, b in zip(seen[peer], seen["dpp"], strict=False)]
                methods[peer][f"{key}_of_dpp"] = statistics.median(ratios)
        if len(ends) == 2:
            methods[peer]["lost"] = (ends[0] - methods[peer]["log_det"]) / (ends[0] - ends[1])
        if greedy is not None:
            methods[peer]["identical"] = bool(np.array_equal(rows, greedy))
            methods[peer]["in_common"] = len(np.intersect1d(rows, greedy)) / len(greedy)


def _rounded(figures: dict[str, Any]) -> dict[str, Any]:
    return {key: round(value, 5) if isinstance(value, float) else value for key, value in figures.items()}


def _show(found: dict[str, Any]) -> None:
    print(f"\n{found['input']}, {found['k']:,} of {found['n']:,} rows, d = {found['d']}, scale {found['scale']}")
    heads = ("wall s", "CPU s", "GB", "× dpp", "log det", "lost", "distance", "Σ q", "twins", "picks")
    print(f"{'':14}" + "".join(f"{head:>10}" for head in heads))
    for peer, figures in found["methods"].items():
        if "failed" in figures:
            print(f"{peer:14}  {figures['failed']}")
            continue
        cells = [f"{figures['wall']:.2f}", f"{figures['cpu']:.2f}", f"{figures['peak_gb']:.2f}"]
        cells += [f"{figures['wall_of_dpp']:.2f}" if "wall_of_dpp" in figures else ""]
        cells += [f"{figures['log_det']:.1f}" if "log_det" in figures else ""]
        cells += [f"{figures['lost']:.2%}" if "lost" in figures else ""]
        cells += [f"{figures['distance']:.4f}", f"{figures['quality']:.1f}", f"{figures['twins']}"]
        same = f"{figures['in_common']:.1%}" if "in_common" in figures else ""
        cells += ["identical" if figures.get("identical") else same]
        print(f"{peer:14}" + "".join(f"{cell:>10}" for cell in cells))
