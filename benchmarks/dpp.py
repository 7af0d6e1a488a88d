"""``p3select.dpp``, exact and local, against two plain greedy MAPs on the same rows, in one run.

``plain`` keeps no kernel and brings every row up to date at every pick, in float32; ``stored`` forms the n × n kernel
in float64 first. Both are Chen, Zhang & Zhou (2018), algorithm 1, as usually written, on all cores. Times include what
each needs from the embeddings on: the kernel of ``stored``, the cells of ``dpp-local``, the checks of both of ours.
The variants run one after the other in every repeat, so that another load of the machine meets all of them; times
are medians, and a ratio is the median of the ratios within a repeat. Compilation is done before, and said by itself.
Memory is what a call adds to the process at its peak. ``lost`` is (exact − local) / (exact − random) in log det, in
float64 with 1e-6 on the diagonal.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numba
import numpy as np
import scipy
from scipy.linalg import cholesky

from benchmarks._machine import machine
from p3select import __version__, dpp, kernel
from p3select.selectors.dpp_local import accuracy, dpp_local

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Rows = NDArray[np.int64]
    Method = Callable[[NDArray[np.float32], NDArray[np.float64], int, float], Rows]

LARGEST_LOG_DET = 12_000


def stored(x: NDArray[np.float32], q: NDArray[np.float64], k: int, h: float) -> Rows:
    """The plain greedy over L, formed first."""
    cosine = x.astype(np.float64) @ x.T.astype(np.float64)
    matrix = np.exp((np.minimum(cosine, 1.0) - 1.0) / h) * q[:, None] * q
    gain = matrix.diagonal().copy()
    factor = np.zeros((k, len(q)))
    rows = np.empty(k, np.int64)
    for t in range(k):
        row = rows[t] = gain.argmax()
        factor[t] = (matrix[row] - factor[:t, row] @ factor[:t]) / np.sqrt(gain[row])
        gain -= factor[t] ** 2
        gain[row] = -np.inf
    return rows


def plain(x: NDArray[np.float32], q: NDArray[np.float64], k: int, h: float) -> Rows:
    """The plain greedy with rows of S made when they are needed."""
    squared = (q * q).astype(np.float32)
    variance = np.ones(len(q), np.float32)
    factor = np.empty((k, len(q)), np.float32)
    left = np.ones(len(q), bool)
    rows = np.empty(k, np.int64)
    for t in range(k):
        row = rows[t] = np.where(left, squared * variance, -1.0).argmax()
        left[row] = False
        factor[t] = kernel.similarities(x, x[row : row + 1], h)[:, 0]
        factor[t] -= factor[:t, row] @ factor[:t]
        factor[t] /= np.sqrt(variance[row])
        variance -= factor[t] ** 2
    return rows


METHODS: dict[str, Method] = {
    "dpp": lambda x, q, k, h: dpp(x, q, k, scale=h, method="dpp")[0],
    "dpp-local": lambda x, q, k, h: dpp(x, q, k, scale=h, method="dpp-local")[0],
    "plain": plain,
    "stored": stored,
}


def pool(n: int, d: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Rows in groups whose sizes fall as 1 / rank, each spread in 24 directions of its own around a centre.

    All have a direction in common, as sentence embeddings do (mean cosine 0.1). A tenth are near-duplicates of others
    (cosine about 0.98), a tenth of which exact copies. Quality is Beta(5, 2).
    """
    rng = np.random.default_rng(seed)
    groups, directions = (600 if n >= 1_000_000 else 300), 24
    share = 1 / np.arange(1, groups + 1)
    group = rng.choice(groups, n, p=share / share.sum())
    centre = rng.standard_normal((groups, d), np.float32) / np.float32(np.sqrt(d))
    common = 0.36 * rng.standard_normal(d, np.float32) / np.float32(np.sqrt(d))
    fall = (0.45 / np.sqrt(1 + np.arange(directions))).astype(np.float32)
    x = rng.standard_normal((n, d), np.float32)
    x *= 0.012
    for one in range(groups):
        rows = np.flatnonzero(group == one)
        basis = rng.standard_normal((directions, d), np.float32) / np.float32(np.sqrt(d))
        x[rows] += centre[one] + common + (rng.standard_normal((len(rows), directions), np.float32) * fall) @ basis
    twins, of = np.split(rng.permutation(n)[: n // 10 * 2], 2)
    exact = len(twins) // 10
    x[twins] = x[of]
    x[twins[exact:]] += 0.01 * rng.standard_normal((len(twins) - exact, d), np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x, rng.beta(5, 2, n)


def log_det(x: NDArray[np.float32], q: NDArray[np.float64], rows: Rows, h: float) -> float:
    """Of L over some rows, with 1e-6 on the diagonal of S."""
    unit = kernel.unit_rows(x[rows])
    s = kernel.similarities(unit, unit, h)
    s[np.diag_indices(len(s))] = 1.0 + 1e-6
    half = np.log(cholesky(s, lower=True, overwrite_a=True, check_finite=False).diagonal()).sum()
    return float(2.0 * half + 2.0 * np.log(q[rows]).sum())


def run(call: Callable[[], Rows]) -> tuple[Rows, dict[str, float]]:
    """What a call returns, and its wall and CPU seconds and peak memory in GB (0 where the system does not tell)."""
    before = _memory("VmRSS", forget=True)
    wall, cpu = time.perf_counter(), time.process_time()
    rows = call()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return rows, {"wall": wall, "cpu": cpu, "gigabytes": (_memory("VmHWM") - before) / 1e9}


def _memory(name: str, *, forget: bool = False) -> int:
    """Bytes that the process holds now (VmRSS), or held at most (VmHWM) since it was last told to forget that."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0
    if forget:
        Path("/proc/self/clear_refs").write_text("5")
    found = re.search(name + r":\s+(\d+)", status.read_text())
    return 1024 * int(found[1]) if found else 0


def measure(n: int, k: int, d: int, names: Sequence[str], repeats: int, h: float | None = None) -> dict[str, Any]:
    """All variants at one size.

    Args:
        n: Rows.
        k: To pick.
        d: Dimensions.
        names: Of ``METHODS``.
        repeats: How often each runs.
        h: The scale; None for the rule.

    Returns:
        What is written to the results for this size.
    """
    x, q = pool(n, d)
    h = kernel.scale(x) if h is None else h
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    picked: dict[str, Rows] = {}
    for _ in range(repeats):
        for name in names:
            picked[name], figures = run(lambda name=name: METHODS[name](x, q, k, h))  # type: ignore[misc]
            seen[name].append(figures)
    found: dict[str, Any] = {"n": n, "k": k, "d": d, "scale": round(h, 4), "methods": {}}
    for name in names:
        found["methods"][name] = {
            key: round(statistics.median(figures[key] for figures in seen[name]), 3) for key in seen[name][0]
        }
        if name != "dpp" and "dpp" in names:
            ratios = {
                key: [a[key] / b[key] for a, b in zip(seen[name], seen["dpp"], strict=True)] for key in ("wall", "cpu")
            }
            found["methods"][name] |= {f"{key}_of_dpp": round(statistics.median(v), 2) for key, v in ratios.items()}
            found["methods"][name]["same_rows"] = bool(np.array_equal(picked[name], picked["dpp"]))
            found["methods"][name]["rows_in_common"] = round(len(np.intersect1d(picked[name], picked["dpp"])) / k, 4)
    if k <= LARGEST_LOG_DET:
        values = {name: log_det(x, q, rows, h) for name, rows in picked.items()}
        values["random"] = log_det(x, q, np.random.default_rng(1).choice(n, k, replace=False), h)
        found["log_det"] = {name: round(value, 2) for name, value in values.items()}
        if "dpp" in values and "dpp-local" in values:
            lost = (values["dpp"] - values["dpp-local"]) / (values["dpp"] - values["random"])
            found["lost"] = round(lost, 5)
    elif "dpp-local" in names:
        rows, gains = dpp_local(x, q, k, scale=h)
        found["accuracy"] = accuracy(x, q, rows, gains, scale=h)
    return found


def _compile() -> float:
    """Seconds until the first call of each of ours is done, on a few rows; little where the code is on disk."""
    start = time.perf_counter()
    x, q = pool(2_500, 16)
    dpp(x, q, 20, method="dpp")
    dpp_local(x, q, 20, cells=4)
    return time.perf_counter() - start


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table and write ``results/dpp.json``."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks dpp", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sizes",
        nargs="+",
        default=["10000:1000", "100000:1000"],
        metavar="N:K",
        help="rows and picks (default 10000:1000 100000:1000)",
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["dpp", "dpp-local", "plain", "stored"])
    parser.add_argument("--largest-stored", type=int, default=20_000, help="n up to which stored runs (default 20000)")
    parser.add_argument("--dimensions", type=int, default=384)
    parser.add_argument("--scale", type=float, help="h of the similarity (default: the rule)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "dpp.json")
    options = parser.parse_args(argv)
    result: dict[str, Any] = {
        "benchmark": "dpp",
        "machine": machine(),
        "versions": {
            "python": platform.python_version(),
            "p3select": __version__,
            **{module.__name__: module.__version__ for module in (np, scipy, numba)},
        },
        "repeats": options.repeats,
        "compile_seconds": round(_compile(), 2),
        "sizes": [],
    }
    heads = ("n", "k", "method", "wall s", "CPU s", "GB", "× dpp", "same", "log det")
    print("".join(f"{head:>{width}}" for head, width in zip(heads, (8, 7, 11, 9, 9, 7, 8, 7, 12), strict=True)))
    for size in options.sizes:
        n, k = (int(number) for number in size.split(":"))
        names = [name for name in options.methods if name != "stored" or n <= options.largest_stored]
        found = measure(n, k, options.dimensions, names, options.repeats, options.scale)
        result["sizes"].append(found)
        for name, figures in found["methods"].items():
            ratio = f"{figures['wall_of_dpp']:.2f}" if "wall_of_dpp" in figures else ""
            same = f"{figures['rows_in_common']:.1%}" if "rows_in_common" in figures else ""
            value = f"{found['log_det'][name]:.1f}" if "log_det" in found else ""
            print(
                f"{n:>8} {k:>6} {name:>10} {figures['wall']:>8.2f} {figures['cpu']:>8.2f} {figures['gigabytes']:>6.2f} "
                f"{ratio:>7} {same:>6} {value:>11}"
            )
        if "lost" in found:
            print(f"{'':>26} dpp-local lost {found['lost']:.2%} of what dpp has over random rows in log det")
    options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
