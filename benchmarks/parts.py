"""What selecting in parts (RandGreeDi) loses against one machine: log det of the picks, one after the other.

``lost`` is (exact − it) / (exact − random) of log det L over the picks, in float64 with 1e-6 on the diagonal of S, as
in ``python -m benchmarks dpp``. Parts are selected from one after the other here: what many machines do side by side.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

import p3select
from benchmarks import _inputs, _picks
from benchmarks._machine import machine
from p3select import kernel
from p3select.partition import partitioned

if TYPE_CHECKING:
    from numpy.typing import NDArray

RESULTS = Path(__file__).parent / "results" / "parts.json"


def main(arguments: list[str]) -> None:
    """Measure, print, write ``results/parts.json``.

    Args:
        arguments: See ``--help``.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks parts", description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--k", type=int, default=1_000)
    parser.add_argument("--parts", type=int, nargs="+", default=[2, 8, 32])
    parser.add_argument("--seeds", type=int, default=3, help="deals of the rows to the parts")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    x, q = _inputs.made("near-duplicates", options.rows, _inputs.DIMENSIONS)
    h = kernel.scale(x)

    def log_det(rows: NDArray[np.int64]) -> float:
        return float(_picks.value(x, q, rows, h)["log_det"])

    result: dict[str, Any] = {
        "benchmark": "parts",
        "machine": machine(),
        "versions": {"p3select": p3select.__version__, "numpy": np.__version__},
        "input": "near-duplicates",
        "n": options.rows,
        "k": options.k,
        "d": _inputs.DIMENSIONS,
        "scale": round(h, 4),
        "seeds": options.seeds,
        "lost": [],
    }
    exact = log_det(p3select.dpp(x, q, options.k, scale=h, method="dpp")[0])
    drawn = log_det(np.random.default_rng(1).choice(len(x), options.k, replace=False))
    with tempfile.TemporaryDirectory() as folder:
        run = _run(Path(folder), x)
        for selector in ("dpp", "dpp-local"):
            for parts in (1, *options.parts):
                clock, values = time.perf_counter(), []
                for seed in range(options.seeds if parts > 1 else 1):
                    if parts == 1:
                        rows = p3select.dpp(x, q, options.k, scale=h, method=selector)[0]
                    else:
                        rows = _in_parts(run, (x, q, options.k, h), selector, parts, seed)
                    values.append((exact - log_det(rows)) / (exact - drawn))
                seconds = (time.perf_counter() - clock) / len(values)
                found = {"selector": selector, "parts": parts, "lost": [round(value, 6) for value in values]}
                result["lost"].append(found)
                lost = ", ".join(f"{value:.3%}" for value in values)
                print(f"{selector:10} {parts:3} parts   lost {lost}   {seconds:.1f} s")
    options.out.write_text(json.dumps(result, indent=1) + "\n")


def _run(folder: Path, x: NDArray[np.float32]) -> p3select.Run:
    """A run folder with the rows as its embeddings."""
    np.save(folder / "x.npy", x)
    names = [str(row) for row in range(len(x))]
    pl.DataFrame({"prompt": names, "completion": names}).write_parquet(folder / "rows.parquet")
    p3select.embed(folder / "rows.parquet", folder / "run", vectors=folder / "x.npy")
    return p3select.Run(folder / "run")


def _in_parts(
    run: p3select.Run,
    given: tuple[NDArray[np.float32], NDArray[np.float64], int, float],
    selector: str,
    parts: int,
    seed: int,
) -> NDArray[np.int64]:
    x, q, k, h = given
    options: dict[str, Any] = {"seed": seed} if selector == "dpp-local" else {"seed": seed, "method": selector}
    return partitioned(
        lambda places: x[places],
        q,
        k,
        run=run,
        pool=np.arange(len(x)),
        selector=selector,
        white=None,
        parts=parts,
        engine="local",
        workers=None,
        address=None,
        scale=h,
        similarity="gaussian",
        **options,
    )[0]
