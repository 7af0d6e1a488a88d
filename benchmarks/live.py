"""Live selection in TRL: three epochs of a real model, the rows trained on verified, and what selecting costs of it.

The rows are those whose tokens reach ``training_step``, found by their ids, and compared with the index of the epoch.
Selecting is what happens between an epoch's beginning and its first step: scoring all rows with the model in training,
and choosing. Embedding is once for the run, before, and stated apart.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import polars as pl
import torch
import transformers
import trl
from transformers import AutoModelForCausalLM, AutoTokenizer

import p3select
from benchmarks import _folders
from benchmarks._folders import ROOT
from benchmarks._machine import machine
from p3select import index
from p3select.trainers import hf


class _Clock(transformers.TrainerCallback):  # type: ignore[misc]
    """When an epoch begins: one before attach's callback, one after it."""

    def __init__(self) -> None:
        self.begun: list[float] = []

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Note the time."""
        self.begun.append(time.monotonic())


def main(arguments: list[str]) -> None:
    """Train, verify, print a table, write ``results/live.json``.

    Args:
        arguments: See ``--help``.

    Raises:
        AssertionError: Other rows were trained than those of the index.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks live", description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--budget", default="20%")
    _folders.model(parser)
    _folders.encoder(parser)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "live.json")
    options = parser.parse_args(arguments)

    folder = Path(tempfile.mkdtemp())
    data = folder / "rows.parquet"
    rows = pl.read_parquet(ROOT / "examples" / "gsm8k.parquet").head(options.rows).select("prompt", "completion")
    lines = rows.to_dicts()
    rows.write_parquet(data)
    run = p3select.Run(folder / "run")
    embedding = p3select.embed(data, run, options.encoder)["seconds"]
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    trainer = trl.SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(options.model, dtype="float32"),
        args=trl.SFTConfig(
            output_dir=str(folder / "weights"),
            num_train_epochs=options.epochs,
            per_device_train_batch_size=4,
            gradient_checkpointing=False,
            learning_rate=2e-5,
            save_strategy="no",
            report_to="none",
            use_cpu=not torch.cuda.is_available(),
            bf16=False,
            disable_tqdm=True,
            logging_strategy="no",
        ),
        train_dataset=hf.dataset(run),
        processing_class=tokenizer,
    )
    texts = [line["prompt"] + line["completion"] + tokenizer.eos_token for line in lines]
    row_of = {tuple(tokenizer(text)["input_ids"]): row for row, text in enumerate(texts)}
    before, after = _Clock(), _Clock()
    trainer.add_callback(before)
    hf.attach(trainer, run, budget=options.budget, show_progress=True)
    trainer.add_callback(after)
    trained: list[list[int]] = [[] for _ in range(options.epochs)]
    step = trainer.training_step

    def recorded(model: Any, inputs: dict[str, Any], *more: Any) -> Any:
        for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True):
            trained[len(after.begun) - 1].append(row_of[tuple(ids[mask].tolist())])
        return step(model, inputs, *more)

    trainer.training_step = recorded
    start = time.monotonic()
    trainer.train()
    whole = time.monotonic() - start
    for epoch, own in enumerate(trained, start=1):
        wanted = sorted(index.read(run.index(epoch)).rows.tolist())
        assert sorted(own) == wanted, f"epoch {epoch}: trained {sorted(own)}, selected {wanted}"
    selecting = [end - begin for begin, end in zip(before.begun, after.begun, strict=True)]
    result = {
        "benchmark": "live",
        "machine": machine(),
        "load": os.getloadavg()[0],
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "trl": trl.__version__},
        "model": Path(options.model).name,
        "rows": options.rows,
        "trained_per_epoch": [len(own) for own in trained],
        "rows_verified": True,
        "seconds": {"embedding": embedding, "training_with_selection": whole, "selecting": selecting},
        "share_of_selection": sum(selecting) / whole,
    }
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    shutil.rmtree(folder)
    for epoch, (own, seconds) in enumerate(zip(trained, selecting, strict=True), start=1):
        print(
            f"epoch {epoch}: {len(own)} of {options.rows} rows trained, those of the index; selecting {seconds:.1f} s"
        )
    print(
        f"embedding {embedding:.1f} s, once; {whole:.1f} s in all, {result['share_of_selection']:.0%} of it selecting"
    )
