"""`p3select loop` around a script of plain PyTorch, examples/train_pytorch.py.

Two epochs of SmolLM2-135M-Instruct on 6 of 24 rows of GSM8K, two to three minutes on a CPU:

    make models
    python examples/loop_pytorch.py

Given again, it has nothing left to do: remove runs/loop-pytorch to begin anew.
"""

import sys
from pathlib import Path

import polars as pl

import p3select

ROOT = Path(__file__).parents[1]
OUT = ROOT / "runs" / "loop-pytorch"

# The data: any Parquet file with columns prompt and completion (or messages, …).
OUT.mkdir(parents=True, exist_ok=True)
pl.read_parquet(ROOT / "examples" / "gsm8k.parquet").head(24).write_parquet(OUT / "train.parquet")

# An epoch's training: {model} is the policy so far, {data} the selected rows, {out} where the weights must be. (Two
# braces each, as this string is formatted before the loop fills the places.)
TRAIN = f"'{sys.executable}' '{ROOT}/examples/train_pytorch.py' {{model}} {{data}} {{out}}"

p3select.loop(
    OUT / "train.parquet",
    OUT / "run",
    ROOT / "models" / "SmolLM2-135M-Instruct",
    encoder=ROOT / "models" / "all-MiniLM-L6-v2",
    epochs=2,
    budget=6,
    to="jsonl",
    train=TRAIN,
    show_progress=True,
)
