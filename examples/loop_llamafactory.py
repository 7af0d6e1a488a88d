"""`p3select loop` around LLaMA-Factory's command line.

Two epochs of SmolLM2-135M-Instruct on 6 of 24 rows of GSM8K, two to three minutes on a CPU, in the environment of
requirements/llamafactory-cpu.txt:

    make models
    python examples/loop_llamafactory.py

Given again, it has nothing left to do: remove runs/loop-llamafactory to begin anew.
"""

import os
import sys
from pathlib import Path

import polars as pl

import p3select

ROOT = Path(__file__).parents[1]
OUT = ROOT / "runs" / "loop-llamafactory"

# The data: any Parquet file with columns prompt and completion (or messages, …).
OUT.mkdir(parents=True, exist_ok=True)
pl.read_parquet(ROOT / "examples" / "gsm8k.parquet").head(24).write_parquet(OUT / "train.parquet")

# An epoch's training: {model} is the policy so far, {data} the folder with the selected rows and their entry in
# dataset_info.json, {out} where the weights must be.
TRAIN = (
    f"llamafactory-cli train '{ROOT}/examples/loop_llamafactory.yml'"
    " model_name_or_path={model} dataset_dir={data} output_dir={out} seed={seed}"
)
# llamafactory-cli is called by name, from the environment of this Python.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
os.environ["HF_HUB_OFFLINE"] = "1"

p3select.loop(
    OUT / "train.parquet",
    OUT / "run",
    ROOT / "models" / "SmolLM2-135M-Instruct",
    encoder=ROOT / "models" / "all-MiniLM-L6-v2",
    epochs=2,
    budget=6,
    to="llamafactory",
    train=TRAIN,
    show_progress=True,
)
