"""TRL in two processes: together they train the rows of the index, each once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import p3select
from tests.trainers.test_hf import indices, rows_of  # noqa: F401 (rows_of is a fixture)
from tests.trainers.tiny import select, tiny

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
SCRIPT = "tests.trainers.trl_process"
K, EPOCHS = 12, 3
# 2 processes of 2 batches each.
SETTINGS = {"num_train_epochs": EPOCHS, "per_device_train_batch_size": 3, "save_strategy": "no"}


@pytest.fixture(scope="module")
def run(data, tokenizer, tmp_path_factory):
    made = p3select.Run(tmp_path_factory.mktemp("processes") / "run")
    select(data, tokenizer, made, [K] * EPOCHS)
    return made


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def train(launch, run, model, out, **options):
    """What each process recorded; or, where the training failed, what it said."""
    out.mkdir(exist_ok=True)
    given = json.dumps({"run": str(run.path), "model": str(model), "out": str(out), **SETTINGS, **options})
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *launch, "-m", SCRIPT, given]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=out, timeout=600, check=False)
    if done.returncode:
        return done.stderr
    return [json.loads(file.read_text()) for file in sorted(out.glob("rank-*.json"))]


TORCHRUN = ("torch.distributed.run", "--nproc_per_node", "2", "--standalone")


def trained(found, rows_of, epoch):  # noqa: F811
    return sorted(rows_of[tuple(ids)] for one in found for ids in one["epochs"][epoch])


@pytest.mark.cell("trl", "2 processes")
@pytest.mark.cell("trl", "2 processes, resume in the middle of an epoch")
def test_two_processes_share_the_rows_and_resume_in_the_middle_of_an_epoch(run, model, rows_of, tmp_path):  # noqa: F811
    """A resumed loader's set_epoch does not reach the sampler: the rows must not depend on it."""
    whole = train(TORCHRUN, run, model, tmp_path / "whole", save_strategy="steps", save_steps=3)
    assert [one["world"] for one in whole] == [2, 2], whole
    wanted = [sorted(rows) for rows in indices(run)]
    assert [trained(whole, rows_of, epoch) for epoch in range(EPOCHS)] == wanted
    assert all(len(one["epochs"][epoch]) == K / 2 for one in whole for epoch in range(EPOCHS))
    # Step 3 is the first of epoch 2.
    checkpoint = str(tmp_path / "whole" / "checkpoint-3")
    resumed = train(TORCHRUN, run, model, tmp_path / "resumed", resume=checkpoint)
    assert [one["steps"] for one in resumed] == [6, 6], resumed
    for before, after in zip(whole, resumed, strict=True):
        assert after["epochs"] == [before["epochs"][1][3:], before["epochs"][2]]
        assert after["weight"] == before["weight"]


def test_rows_that_do_not_divide_among_processes_are_refused(run, model, tmp_path):
    said = train(TORCHRUN, run, model, tmp_path / "out", per_device_train_batch_size=4)
    assert "give a budget that is a multiple of 8" in said


@pytest.mark.cell("trl", "accelerate launch --cpu, which starts one process")
def test_accelerate_launch_on_a_cpu_starts_one_process_which_trains_all_rows(run, model, rows_of, tmp_path):  # noqa: F811
    launch = ("accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1")
    launch += ("--mixed_precision", "no", "--dynamo_backend", "no")
    found = train(launch, run, model, tmp_path / "out")
    assert [one["world"] for one in found] == [1], found
    assert [trained(found, rows_of, epoch) for epoch in range(EPOCHS)] == [sorted(rows) for rows in indices(run)]
