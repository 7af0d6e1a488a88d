"""The examples that run in this environment; those of axolotl and LLaMA-Factory are in tests/trainers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import p3select

ROOT = Path(__file__).parents[1]
VOCABULARY = 1000


@pytest.fixture
def run_example(smollm2, minilm, tmp_path):
    """Runs an example, in a copy of the checkout's examples and models."""
    for name in ("examples", "models"):
        (tmp_path / name).mkdir()
    for path in (smollm2, minilm):
        (tmp_path / "models" / path.name).symlink_to(path.resolve())
    (tmp_path / "examples" / "gsm8k.parquet").symlink_to(ROOT / "examples" / "gsm8k.parquet")

    def run(name, *others):
        for one in (name, *others):
            (tmp_path / "examples" / one).write_bytes((ROOT / "examples" / one).read_bytes())
        call = [sys.executable, str(tmp_path / "examples" / name)]
        done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, timeout=900, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run


@pytest.mark.slow
def test_attach_to_a_trl_trainer(run_example, tmp_path):
    said = run_example("trl_attach.py")
    run = p3select.Run(tmp_path / "runs" / "trl-attach" / "run")
    for epoch in (1, 2):
        rows = pl.read_parquet(run.index(epoch))["row"].to_list()
        assert len(rows) == 6
        part = said.partition(f"Epoch {epoch}:")[2].partition("Epoch")[0]
        assert [int(line.split()[1]) for line in part.splitlines() if line.startswith("  row")] == rows


@pytest.mark.slow
def test_a_plain_pytorch_script(run_example, tmp_path):
    run_example("loop_pytorch.py", "train_pytorch.py")
    run = p3select.Run(tmp_path / "runs" / "loop-pytorch" / "run")
    prompts = pl.read_parquet(ROOT / "examples" / "gsm8k.parquet")["prompt"]
    for epoch in (1, 2):
        rows = pl.read_parquet(run.index(epoch))["row"].to_list()
        given = pl.read_ndjson(run.path / "loop" / f"epoch-00{epoch}" / "train.jsonl")
        assert given["prompt"].to_list() == prompts[rows].to_list()
        assert len(rows) == 6
    # What the first epoch trained is less difficult in the second.
    first = pl.read_parquet(run.index(1))["row"].to_list()
    before, after = (
        pl.read_parquet(run.scores(epoch) / "*.parquet").sort("row")["difficulty"][first].mean() for epoch in (1, 2)
    )
    assert after < before


@pytest.mark.slow
def test_trl_s_command_line(run_example, tmp_path):
    run_example("loop_trl.py")
    loop = tmp_path / "runs" / "loop-trl" / "run" / "loop"
    weights = [load_file(loop / f"epoch-00{epoch}" / "weights" / "model.safetensors") for epoch in (1, 2)]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert [len(pl.read_parquet(loop / f"epoch-00{epoch}" / "train" / "train.parquet")) for epoch in (1, 2)] == [6, 6]


@pytest.mark.slow
def test_optimizer_and_learning_rates_go_on(gsm8k, smollm2, tmp_path):
    table = pl.read_parquet(gsm8k)[:24]
    table.write_parquet(tmp_path / "rows.parquet")
    whole = AutoTokenizer.from_pretrained(smollm2)
    tokenizer = whole.train_new_from_iterator([*table["prompt"], *table["completion"]], VOCABULARY)
    tokenizer.save_pretrained(tmp_path / "model")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, pad_token_id=2, **sizes)).save_pretrained(tmp_path / "model")
    run = p3select.Run(tmp_path / "run")
    script = ROOT / "examples" / "loop_schedule.py"
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    p3select.loop(
        tmp_path / "rows.parquet",
        run,
        tmp_path / "model",
        epochs=3,
        budget=5,
        train=f"'{sys.executable}' '{script}' {{model}} {{index}} {{out}} {{epoch}} {{epochs}}",
        selecting={"selector": "topk"},
    )
    rates, states = [], []
    for epoch in (1, 2, 3):
        checkpoint = run.path / "loop" / f"epoch-00{epoch}" / "weights" / f"checkpoint-{2 * epoch}"
        history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
        rates = [entry["learning_rate"] for entry in history if "learning_rate" in entry]
        optimizer = torch.load(checkpoint / "optimizer.pt", weights_only=True)
        states.append({int(state["step"]) for state in optimizer["state"].values()})
    # 2 steps an epoch: one line from the first to the last, and the moments have seen all of them.
    np.testing.assert_allclose(rates, 2e-5 * (1 - np.arange(6) / 6))
    assert states == [{2}, {4}, {6}]
