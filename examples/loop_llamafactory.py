"""`p3select loop` with LLaMA-Factory's command line as the command that trains.

Two epochs of SmolLM2-135M-Instruct on 6 of 24 rows of GSM8K, two to three minutes on a CPU, in the environment of
requirements/llamafactory-cpu.txt:

    make models
    python examples/loop_llamafactory.py

Given again, it has nothing left to do: remove runs/loop-llamafactory to begin anew.
"""

import os
import subprocess
import sys
from pathlib import Path

import polars as pl

ROOT = Path(__file__).parents[1]
OUT = ROOT / "runs" / "loop-llamafactory"

# The data: any Parquet file with columns prompt and completion (or messages, …).
OUT.mkdir(parents=True, exist_ok=True)
pl.read_parquet(ROOT / "examples" / "gsm8k.parquet").head(24).write_parquet(OUT / "train.parquet")

# An epoch's training: {model} is the policy so far, {data} the folder with the selected rows and their entry in
# dataset_info.json, {out} where the weights must be.
TRAIN = (
    "llamafactory-cli train examples/loop_llamafactory.yml model_name_or_path={model} dataset_dir={data}"
    " output_dir={out} seed={seed}"
)
command = ["p3select", "loop", OUT / "train.parquet", "--run", OUT / "run", "--epochs", "2", "--budget", "6"]
command += ["--model", ROOT / "models" / "SmolLM2-135M-Instruct", "--encoder", ROOT / "models" / "all-MiniLM-L6-v2"]
command += ["--to", "llamafactory", "--train", TRAIN]
binaries = Path(sys.executable).parent
environment = {**os.environ, "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
subprocess.run(command, cwd=ROOT, env=environment, check=True)
