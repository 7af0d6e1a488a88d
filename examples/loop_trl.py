"""`p3select loop` around TRL's command line, `trl sft`.

Two epochs of SmolLM2-135M-Instruct on 6 of 24 rows of GSM8K, two to three minutes on a CPU:

    make models
    python examples/loop_trl.py

Given again, it has nothing left to do: remove runs/loop-trl to begin anew.
"""

import os
import sys
from pathlib import Path

import polars as pl

import p3select

ROOT = Path(__file__).parents[1]
OUT = ROOT / "runs" / "loop-trl"

# The data: any Parquet file with columns prompt and completion (or messages, …).
OUT.mkdir(parents=True, exist_ok=True)
pl.read_parquet(ROOT / "examples" / "gsm8k.parquet").head(24).write_parquet(OUT / "train.parquet")

# An epoch's training: {model} is the policy so far, {data} the folder of the selected rows, {out} where the weights
# must be. The schedule is constant, as each epoch is a training of its own.
TRAIN = (
    "trl sft --model_name_or_path {model} --dataset_name {data} --output_dir {out} --seed {seed}"
    " --num_train_epochs 1 --per_device_train_batch_size 3 --gradient_checkpointing false"
    " --learning_rate 2e-5 --lr_scheduler_type constant --warmup_steps 0"
    " --save_strategy no --logging_steps 1 --report_to none --use_cpu --bf16 false"
)
# trl is called by name, from the environment of this Python.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
os.environ["HF_HUB_OFFLINE"] = "1"

p3select.loop(
    OUT / "train.parquet",
    OUT / "run",
    ROOT / "models" / "SmolLM2-135M-Instruct",
    encoder=ROOT / "models" / "all-MiniLM-L6-v2",
    epochs=2,
    budget=6,
    to="trl",
    train=TRAIN,
    show_progress=True,
)
