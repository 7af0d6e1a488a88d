"""Do difficulties keep their order while a policy learns? The same rows scored under several policies, one by one.

Data without a ground truth has nothing to validate a difficulty by; what can be seen is how far the order of its rows
depends on the policy. Rows are those of ``python -m benchmarks agreement``. A killed run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

import p3select
from benchmarks import _folders, agreement
from benchmarks._folders import ROOT
from benchmarks._machine import machine
from p3select import scores

QUANTILES = (0.05, 0.5, 0.95)


def main(arguments: list[str]) -> None:
    """Score under each policy; write ``results/stability-SET.json``: Spearman's ρ of p3 under every two policies.

    Args:
        arguments: See ``--help``.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks stability", description=__doc__.partition("\n")[0])
    parser.add_argument("policies", nargs="+", help="folders of weights, the untrained ones first")
    parser.add_argument("--names", required=True, help="of the policies, for people, with commas between")
    _folders.data(parser)
    parser.add_argument("--set", choices=agreement.SETS, default="dialogue")
    options = parser.parse_args(arguments)
    names = options.names.split(",")
    if len(names) != len(options.policies):
        raise SystemExit(f"{len(names)} names for {len(options.policies)} policies")
    about = agreement.SETS[options.set]
    rows = agreement.drawn(
        pl.read_parquet(options.data / f"{about['file']}.parquet"), about.get("rows"), about.get("parts")
    )
    run, data = p3select.Run(options.runs / options.set), options.runs / f"{options.set}.parquet"
    options.runs.mkdir(parents=True, exist_ok=True)
    rows.write_parquet(data)
    before, difficulties = machine(), {}
    for epoch, policy in enumerate(options.policies, 1):
        p3select.score(data, run, policy, epoch=epoch, scorer="transformers", show_progress=True)
        difficulties[names[epoch - 1]] = scores.read(run, epoch, ["difficulty"]).column("difficulty").to_numpy()
    found: dict[str, Any] = {
        "machine": before,
        "data": f"{about['file']}.parquet",
        "rows": rows.height,
        "scores": scores.settings(run, 1),
        "policies": [
            {"name": name, "mean": float(values.mean()), "quantiles": np.quantile(values, QUANTILES).tolist()}
            for name, values in difficulties.items()
        ],
        "spearman": [
            [float(stats.spearmanr(one, other).statistic) for other in difficulties.values()]
            for one in difficulties.values()
        ],
    }
    file = ROOT / "benchmarks" / "results" / f"stability-{options.set}.json"
    file.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    print(file)
