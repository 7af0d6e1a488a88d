"""What models learn by each strategy: p3select.compare with trainings of a real model, several seeds, held-out loss.

SmolLM2-135M-Instruct, whole, in float32, on rows of GSM8K or of MATH's Counting & Probability. Every strategy trains on
as many rows and takes as many steps, with one optimiser and one falling rate through all epochs (train.py); it is
evaluated on rows of the test split (evaluate.py), which nothing was chosen by. A killed run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from scipy import stats

import p3select
from benchmarks import _folders
from benchmarks._folders import ROOT
from benchmarks._machine import machine
from p3select import cli, embeddings, figures, index, kernel, selection, strategies

if TYPE_CHECKING:
    from numpy.typing import NDArray

HERE = Path(__file__).parent
FILES = {
    "gsm8k": ("gsm8k_train.parquet", "gsm8k_test.parquet"),
    "math-cp": ("math_cp_train.parquet", "math_cp_test.parquet"),
}
ARMS = "p3,pace-only,dpp-only,uniform,nll-high,longest,full"
SWEEPS = (
    "p3,p3+pace=linear:30:95,p3+pace=linear:45:85,p3+pace=constant:80,p3+pace=cosine:50:95,"
    "p3+quality_weight=0,p3+quality_weight=4,p3+quality_weight=0+fresh=1,p3+fresh=1"
)


def main(arguments: list[str]) -> None:
    """Train, evaluate; write ``results/training-NAME.json`` and ``.png``.

    Args:
        arguments: See ``--help``.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks training", description=__doc__.partition("\n")[0])
    _folders.data(parser)
    parser.add_argument("--on", choices=FILES, default="gsm8k")
    parser.add_argument("--strategies", default=ARMS, help=f"as of p3select compare; for the sweeps: {SWEEPS}")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--budget", type=int, default=50, help="rows of an epoch")
    parser.add_argument("--rate", type=float, default=5e-5, help="the learning rate at its top")
    parser.add_argument("--batch", type=int, default=5)
    parser.add_argument("--held-out", type=int, default=150, help="rows of the test split for the loss")
    parser.add_argument("--answers", type=int, default=60, help="of them, for exact match")
    parser.add_argument("--actions", default="line")
    _folders.model(parser)
    _folders.encoder(parser)
    parser.add_argument("--keep", action="store_true", help="keep the weights of all epochs, 0.5 GB each")
    parser.add_argument("--name", default=None, help="of the result [default: what --on names]")
    options = parser.parse_args(arguments)
    folder, arms = options.runs / options.on, re.split(cli.STRATEGY_ENDS, options.strategies)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{part}.parquet" for part in ("train", "test")]
    for file, source, count in zip(files, FILES[options.on], (options.rows, options.held_out), strict=True):
        if not file.is_file():
            rows = pl.read_parquet(options.data / source).select("id", "prompt", "completion")
            rows.sample(count, seed=0, shuffle=True).write_parquet(file)
        elif (there := pl.scan_parquet(file).select(pl.len()).collect().item()) != count:
            raise SystemExit(f"{file}: {there} rows, and {count} are asked for; give another --runs")
    before = machine()
    run = p3select.Run(folder / "first")
    second = any(arm.partition("+")[0] == "ifd" for arm in arms)
    p3select.score(
        files[0], run, options.model, scorer="transformers", actions=options.actions, ifd=second, show_progress=True
    )
    p3select.embed(files[0], run, options.encoder, show_progress=True)
    python = shlex.quote(sys.executable)
    train = (
        f"{python} {shlex.quote(str(HERE / 'train.py'))} {{model}} {{data}} {{out}} --epoch {{epoch}} "
        f"--epochs {{epochs}} --seed {{seed}} --rows {options.budget} --batch {options.batch} --rate {options.rate}"
    )
    evaluate = (
        f"{python} {shlex.quote(str(HERE / 'evaluate.py'))} {{model}} {shlex.quote(str(files[1].absolute()))} {{out}} "
        f"--answers {options.answers}"
    )
    found = p3select.compare(
        run,
        budget=options.budget,
        epochs=options.epochs,
        out=folder / "compared",
        strategies=arms,
        train=train,
        evaluate=evaluate,
        seeds=[int(seed) for seed in options.seeds.split(",")],
        model=options.model,
        scoring={"scorer": "transformers"},
        discard=not options.keep,
        show_progress=True,
    )
    settings = {name: value for name, value in vars(options).items() if name not in ("data", "runs", "name", "keep")}
    results: dict[str, Any] = {
        "machine": before,
        "settings": settings | {name: Path(settings[name]).name for name in ("model", "encoder")},
        "trained": {
            name: value for name, value in found["trained"].items() if name not in ("train", "evaluate", "model")
        },
    }
    vectors, trained = np.asarray(embeddings.read(run)[0]), folder / "compared" / "training"
    results["epochs"] = {
        f"{arm} {seed}": epochs(p3select.Run(trained / strategies.folder(arm) / f"seed-{seed}"), vectors)
        for arm in arms
        for seed in found["trained"]["seeds"]
    }
    file = ROOT / "benchmarks" / "results" / f"training-{options.name or options.on}.json"
    file.write_text(json.dumps(results, indent=1) + "\n")
    figures.comparison(found, file.with_suffix(".png"))
    print(file)


def epochs(run: p3select.Run, vectors: NDArray[np.float32]) -> list[dict[str, Any]]:
    """Of each epoch: what became of the difficulties of all rows, and what was selected.

    Args:
        run: Of a training.
        vectors: (n, d) the rows' embeddings.

    Returns:
        ``epoch``; ``length``, the mean of the selected rows, in scored tokens; ``again``, the share of them that an
        earlier epoch selected; ``log_det`` and ``distance`` of the selection (:func:`p3select.selection.diversity`). Of
        an epoch that was scored: ``difficulty``, the mean of all rows; ``by_length``, its Spearman's ρ with length, and
        ``before`` with the epoch before. Where the selection goes by p3: ``top``, the share of the selected rows that
        are among as many hardest eligible ones (1: diversity did nothing), and ``chance``, that of a random draw.
    """
    found: list[dict[str, Any]] = []
    before: Any = None
    ever: NDArray[np.int64] = np.zeros(0, np.int64)
    for file in sorted((run.path / "index").glob("epoch-*.parquet")):
        picked, epoch = index.read(file), int(file.stem[-3:])
        one = {"epoch": epoch, "length": picked.metadata["tokens"] / len(picked)}
        one["again"] = float(np.isin(picked.rows, ever).mean())
        ever = np.union1d(ever, picked.rows)
        one |= selection.diversity(vectors[picked.rows], kernel.scale(vectors))
        found.append(one)
        if not run.scores(epoch).is_dir():
            continue
        table = pl.read_parquet(run.scores(epoch) / "*.parquet", columns=["difficulty", "tokens"])
        now = table["difficulty"].to_numpy()
        one["difficulty"] = float(now.mean())
        one["by_length"] = float(stats.spearmanr(now, table["tokens"].to_numpy()).statistic)
        if before is not None:
            one["before"] = float(stats.spearmanr(now, before).statistic)
        before = now
        eligible = now <= picked.metadata["lam"]
        if picked.metadata["difficulty"] == "p3" and len(picked) < eligible.sum():
            hardest = np.argsort(-np.where(eligible, now, -1.0), kind="stable")[: len(picked)]
            one["top"] = float(np.isin(picked.rows, hardest).mean())
            one["chance"] = len(picked) / int(eligible.sum())
    return found
