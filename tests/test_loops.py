"""The loop with a fake scorer and a command that trains nothing; and, slow, with real ones."""

import json
import sys

import polars as pl
import pytest

import p3select
from p3select.errors import InputError, MismatchError, P3Error

SCORER = {"scorer": "tests.fakes:Unlucky", "limit": 40}
SELECTING = {"selector": "topk"}

# Copies the policy's tokenizer, as a trainer would write it, and notes what it was given.
TRAIN = """
import json, pathlib, shutil, sys
model, data, index, out, epoch, broken = sys.argv[1:]
if broken == epoch:
    sys.exit(3)
rows = [json.loads(line) for line in open(data)]
shutil.copytree(model, out, ignore=shutil.ignore_patterns("*.safetensors"))
log = pathlib.Path(out).parents[1] / "log.jsonl"
with log.open("a") as file:
    file.write(json.dumps({"epoch": epoch, "model": model, "ids": [row["id"] for row in rows]}) + "\\n")
"""


@pytest.fixture
def command(tmp_path):
    script = tmp_path / "a script.py"
    script.write_text(TRAIN)
    return f"'{sys.executable}' '{script}' {{model}} {{data}} {{index}} {{out}} {{epoch}}"


def log(run):
    return [json.loads(line) for line in (run.path / "loop" / "log.jsonl").read_text().splitlines()]


def call(gsm8k, run, model, train, **options):
    return p3select.loop(
        gsm8k, run, model, epochs=3, budget=8, train=train, scoring=SCORER, selecting=SELECTING, **options
    )


def test_each_epoch_trains_the_rows_of_its_index_from_the_weights_before(tmp_path, gsm8k, smollm2, command):
    run = p3select.Run(tmp_path / "run of spaces")
    done = call(gsm8k, run, smollm2, f"{command} never")
    assert [item["policy"] for item in done] == [str(smollm2), done[0]["out"], done[1]["out"]]
    told = log(run)
    assert [item["model"] for item in told] == [item["policy"] for item in done]
    ids = pl.read_parquet(gsm8k)["id"]
    for epoch in (1, 2, 3):
        assert told[epoch - 1]["ids"] == ids[pl.read_parquet(run.index(epoch))["row"].to_list()].to_list()
    assert [item["eligible"] for item in done] == sorted(item["eligible"] for item in done)
    # Again: nothing is left to do.
    again = call(gsm8k, run, smollm2, f"{command} never")
    assert [item["seconds_training"] for item in again] == [0.0] * 3
    assert len(log(run)) == 3
    with pytest.raises(MismatchError, match="trained by another command"):
        call(gsm8k, run, smollm2, f"{command} other")


def test_a_command_that_fails_is_said_and_run_again(tmp_path, gsm8k, smollm2, command):
    run = p3select.Run(tmp_path / "run")
    with pytest.raises(P3Error, match="epoch 2: the command ended with 3"):
        call(gsm8k, run, smollm2, f"{command} 2")
    assert [item["epoch"] for item in log(run)] == ["1"]
    (run.path / "loop" / "epoch-001" / "done.json").write_text(
        (run.path / "loop" / "epoch-001" / "done.json").read_text().replace(' 2"', ' never"')
    )
    call(gsm8k, run, smollm2, f"{command} never")
    assert [item["epoch"] for item in log(run)] == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("train {data}", r"it needs \{out\}"),
        ("train {out}", r"it needs \{out\}, and \{data\} or \{index\}"),
        ("train {data} {out} {weights}", r"no place \{weights\}; there are \{model\}"),
        ("train {data} {out} {", "braces"),
        ("true {data} {out}", r"no config\.json or adapter_config\.json there"),
    ],
)
def test_commands_that_cannot_be_right(tmp_path, gsm8k, smollm2, train, message):
    with pytest.raises(InputError, match=message):
        call(gsm8k, tmp_path / "run", smollm2, train)


def test_other_options_that_cannot_be_right(tmp_path, gsm8k, smollm2):
    with pytest.raises(InputError, match="epochs 0: at least 1"):
        p3select.loop(gsm8k, tmp_path, smollm2, epochs=0, budget=2, train="{data} {out}")
    with pytest.raises(InputError, match="no exporter 'xml'"):
        call(gsm8k, tmp_path / "run", smollm2, "train {data} {out}", to="xml")


REAL = """
import sys, json, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model, data, out = sys.argv[1:]
tokenizer, network = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
optimizer = torch.optim.AdamW(network.parameters(), 5e-5)
for line in open(data):
    row = json.loads(line)
    ids = tokenizer(row["prompt"] + row["completion"], return_tensors="pt")["input_ids"][:, :64]
    network(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
network.save_pretrained(out)
tokenizer.save_pretrained(out)
"""


@pytest.mark.slow
def test_a_plain_pytorch_script(tmp_path, gsm8k, smollm2, capsys):
    from p3select import cli

    (tmp_path / "train.py").write_text(REAL)
    pl.read_parquet(gsm8k)[:8].write_parquet(tmp_path / "rows.parquet")
    arguments = ["loop", tmp_path / "rows.parquet", "--run", tmp_path / "run", "--model", smollm2, "--epochs", "2"]
    arguments += ["--budget", "2", "--selector", "topk", "--max-length", "96", "--scorer", "transformers", "--json"]
    arguments += ["--train", f"{sys.executable} {tmp_path}/train.py {{model}} {{data}} {{out}}"]
    cli.main([str(argument) for argument in arguments])
    first, second = json.loads(capsys.readouterr().out)["epochs"]
    rows = pl.read_parquet(tmp_path / "run" / "index" / "epoch-001.parquet")["row"].to_list()
    scores = [pl.read_parquet(tmp_path / "run" / "scores" / f"epoch-00{epoch}" / "*.parquet") for epoch in (1, 2)]
    assert scores[1]["difficulty"][rows].mean() < scores[0]["difficulty"][rows].mean()
    assert second["policy"] == first["out"]
