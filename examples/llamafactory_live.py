"""LLaMA-Factory, each epoch on the rows that p3select chooses with the model in training.

Two epochs of SmolLM2-135M-Instruct on 6 of 24 rows of GSM8K, one to three minutes on a CPU, in the environment of
requirements/llamafactory-cpu.txt:

    make models
    python examples/llamafactory_live.py

On a command line of your own it is `p3select embed DATA --run RUN --encoder E`, and
`p3select-llamafactory-train CONFIG.yml` in the place of `llamafactory-cli train CONFIG.yml`.
"""

import os
import subprocess
import sys
from pathlib import Path

import polars as pl

import p3select
from p3select.index import read

ROOT = Path(__file__).parents[1]
OUT = ROOT / "runs" / "llamafactory-live"
EPOCHS = 2

# The data: messages, which LLaMA-Factory's template makes the same tokens of as the model's own.
OUT.mkdir(parents=True, exist_ok=True)
data = OUT / "train.parquet"
asked, answered = pl.read_parquet(ROOT / "examples" / "gsm8k.parquet").head(24)["prompt", "completion"]
chats = [
    [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    for question, answer in zip(asked, answered, strict=True)
]
pl.DataFrame({"messages": chats}).write_parquet(data)

# Embeddings, once for the run: by them the selection tells alike from different.
run = p3select.Run(OUT / "run")
p3select.embed(data, run, ROOT / "models" / "all-MiniLM-L6-v2")

# LLaMA-Factory as always; its configuration names the run.
environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
command = [sys.executable, "-m", "p3select.trainers.llamafactory", "examples/llamafactory_live.yml"]
subprocess.run(command, cwd=ROOT, env=environment, check=True)

for epoch in range(1, EPOCHS + 1):
    index = read(run.index(epoch))
    print(f"\nEpoch {epoch}: λ = {index.metadata['lam']:.3f}, {index.metadata['eligible']} rows eligible; trained on")
    for row, difficulty in zip(index.rows, index.difficulty, strict=True):
        print(f"  row {row:2d}  difficulty {difficulty:.3f}  {asked[int(row)][:60]}…")
