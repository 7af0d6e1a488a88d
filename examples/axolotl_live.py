"""axolotl, each epoch on the rows that p3select chooses with the model in training.

Two epochs of SmolLM2-135M-Instruct on 4 of 16 rows of GSM8K, one to three minutes on a CPU, in the environment of
requirements/axolotl-cpu.txt:

    make models
    python examples/axolotl_live.py

On a command line of your own it is `p3select embed DATA --run RUN --encoder E`, and `axolotl train CONFIG.yml`.
"""

import os
import subprocess
import sys
from pathlib import Path

import polars as pl

import p3select
from p3select.index import read

ROOT = Path(__file__).parents[1]
OUT = ROOT / "runs" / "axolotl-live"
EPOCHS = 2

# The data: any Parquet file with columns prompt and completion (or messages, …).
OUT.mkdir(parents=True, exist_ok=True)
data = OUT / "train.parquet"
pl.read_parquet(ROOT / "examples" / "gsm8k.parquet").head(16).write_parquet(data)

# Embeddings, once for the run: by them the selection tells alike from different.
run = p3select.Run(OUT / "run")
p3select.embed(data, run, ROOT / "models" / "all-MiniLM-L6-v2")

# axolotl as always; its configuration names the plugin and the run.
binaries = Path(sys.executable).parent
environment = {**os.environ, "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
command = [str(binaries / "axolotl"), "train", "examples/axolotl_live.yml", "--launcher", "python"]
subprocess.run(command, cwd=ROOT, env=environment, check=True)

for epoch in range(1, EPOCHS + 1):
    index = read(run.index(epoch))
    print(f"\nEpoch {epoch}: λ = {index.metadata['lam']:.3f}, {index.metadata['eligible']} rows eligible; trained on")
    for row, name, difficulty in zip(index.rows, index.ids.to_pylist(), index.difficulty, strict=True):
        print(f"  row {row:2d}  difficulty {difficulty:.3f}  {name}")
