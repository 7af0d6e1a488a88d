"""The loop with a fake scorer and a command that trains nothing; and, slow, with real ones."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

import p3select
from p3select import cli, loops, scores
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
    given = {"epochs": 3, "budget": 8, "scoring": SCORER, "selecting": SELECTING, **options}
    return p3select.loop(gsm8k, run, model, train=train, **given)


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
    with pytest.raises(MismatchError, match=r"epoch-001: trained otherwise \(differs in train\)"):
        call(gsm8k, run, smollm2, f"{command} other")


def test_weights_are_taken_for_those_of_the_rows_they_were_trained_on_alone(tmp_path, gsm8k, smollm2, command):
    run, train = p3select.Run(tmp_path / "run"), f"{command} never"
    first = call(gsm8k, run, smollm2, train)
    for given, name in (({"budget": 12}, "budget"), ({"seed": 1}, "seed"), ({"epochs": 4}, "epochs")):
        with pytest.raises(MismatchError, match=rf"epoch-001: trained otherwise \(differs in {name}\)"):
            call(gsm8k, run, smollm2, train, **given)
    with pytest.raises(MismatchError, match=r"differs in limit, pace\)"):
        call(gsm8k, run, smollm2, train, scoring={**SCORER, "limit": 50}, selecting={**SELECTING, "pace": "constant:9"})
    # What no result depends on may change, and the default may be written out.
    more = {"scoring": {**SCORER, "actions": "line", "reuse": p3select.Run(tmp_path / "none"), "options": {}}}
    assert [item["difficulty_all"] for item in call(gsm8k, run, smollm2, train, **more)] == [
        item["difficulty_all"] for item in first
    ]
    # Selected anew behind its back.
    p3select.select(run, epoch=2, epochs=3, budget=12, overwrite=True, **SELECTING)
    with pytest.raises(MismatchError, match=r"epoch-002\.parquet: not the rows that the weights in .*epoch-002"):
        call(gsm8k, run, smollm2, train)
    p3select.select(run, epoch=2, epochs=3, budget=8, overwrite=True, **SELECTING)
    assert call(gsm8k, run, smollm2, train)[2]["selected"] == 8
    # Trained anew: what was trained after it is another policy's.
    (run.path / "loop" / "epoch-001" / "done.json").unlink()
    shutil.rmtree(run.path / "loop" / "epoch-001" / "weights")
    with pytest.raises(MismatchError, match=r"epoch-002: trained otherwise \(differs in policy\)"):
        call(gsm8k, run, smollm2, train)
    assert [item["epoch"] for item in log(run)] == ["1", "2", "3", "1"]


def test_other_versions_of_libraries_are_no_hindrance(tmp_path, gsm8k, smollm2, command, monkeypatch):
    run = p3select.Run(tmp_path / "run")
    with pytest.raises(P3Error, match="epoch 3: the command ended with 3"):
        call(gsm8k, run, smollm2, f"{command} 3")
    # Epochs 1 and 2 are trained; of epoch 3 there are neither scores nor an index.
    for path in (run.index(3), *run.scores(3).iterdir()):
        path.unlink()
    monkeypatch.setattr(p3select, "__version__", "9.9")
    monkeypatch.setattr("p3select.selection.__version__", "9.9")
    with pytest.raises(P3Error, match="epoch 3: the command ended with 3"):
        call(gsm8k, run, smollm2, f"{command} 3")
    assert p3select.index.read(run.index(3)).metadata["version"] == "9.9"


def test_the_same_may_be_asked_for_in_other_words(tmp_path, gsm8k, smollm2, command, monkeypatch, capsys):
    pl.read_parquet(gsm8k)[:40].write_parquet(tmp_path / "rows.parquet")
    train, scoring = f"{command} never", {"scorer": SCORER["scorer"]}
    done = call(tmp_path / "rows.parquet", tmp_path / "run", smollm2, train, scoring=scoring)
    # Paths from somewhere else, and every default written out.
    monkeypatch.chdir(tmp_path)
    words = ["loop", "rows.parquet", "--run", "run", "--model", os.path.relpath(smollm2), "--epochs", "3"]
    words += ["--budget", "8", "--train", train, "--scorer", SCORER["scorer"], "--selector", "topk"]
    cli.main([*words, "--json"])
    found = json.loads(capsys.readouterr().out)["epochs"]
    assert [item["seconds_training"] for item in found] == [0.0] * 3
    assert [item["difficulty_selected"] for item in found] == [item["difficulty_selected"] for item in done]
    cli.main(words)
    assert f"{done[2]['difficulty_selected']:.3f}" in capsys.readouterr().out


# Ends when it is told to, in its own time; what it has started does not.
ENDLESS = """
import pathlib, signal, subprocess, sys, time
out = pathlib.Path(sys.argv[1])
child = subprocess.Popen(["sleep", "60"])
signal.signal(signal.SIGTERM, lambda *_: sys.exit((out / "ended").write_text("")))
(out / "started").write_text(str(child.pid))
while True:
    time.sleep(0.02)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("ending", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_signal_ends_the_command_and_what_it_started(ending, code, tmp_path, gsm8k, smollm2):
    (tmp_path / "endless.py").write_text(ENDLESS)
    # A shell between them, as scripts and launchers have.
    train = f"{sys.executable} {tmp_path}/endless.py {tmp_path} {{data}} {{out}}; true"
    call = [sys.executable, "-m", "p3select", "loop", gsm8k, "--run", tmp_path / "run", "--model", smollm2]
    call += ["--epochs", "1", "--budget", "8", "--train", train, "--scorer", "tests.fakes:Unlucky"]
    call = [str(word) for word in [*call, "--selector", "uniform"]]
    started = tmp_path / "started"

    def heeded():
        # A shell has what it runs in the background ignore SIGINT, these tests perhaps.
        signal.signal(ending, signal.SIG_DFL)

    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(call, cwd=Path(__file__).parents[1], stderr=said, preexec_fn=heeded)
    try:
        while not started.is_file() or not started.read_text():
            assert process.poll() is None, (tmp_path / "said").read_text()
            time.sleep(0.05)
        process.send_signal(ending)
        assert process.wait(timeout=30) == code
    finally:
        process.kill()
        process.wait()
    assert (tmp_path / "ended").is_file()
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)
    assert not (tmp_path / "run" / "loop" / "epoch-001" / "done.json").exists()


@pytest.mark.parametrize(("ending", "code"), [(signal.SIGTERM, "143"), (signal.SIGINT, "")])
def test_a_signal_while_the_command_is_started_ends_it_too(ending, code, monkeypatch):
    start, started = subprocess.Popen, []

    def signalled(*given, **options):
        started.append(start(*given, **options))
        os.kill(os.getpid(), ending)
        return started[0]

    monkeypatch.setattr(subprocess, "Popen", signalled)
    before = signal.signal(ending, signal.SIG_DFL if ending == signal.SIGTERM else signal.default_int_handler)
    try:
        with pytest.raises((SystemExit, KeyboardInterrupt)) as found:
            loops.run_command("sleep 60")
        assert started[0].returncode == -signal.SIGTERM
        assert str(found.value) == code
        assert signal.getsignal(ending) in (signal.SIG_DFL, signal.default_int_handler)
    finally:
        signal.signal(ending, before)


def test_an_adapter_is_of_no_use_to_a_server(tmp_path, gsm8k, smollm2, command, monkeypatch):
    monkeypatch.setattr(loops, "_score", lambda *_: 0.0)
    run = p3select.Run(tmp_path / "run")
    p3select.score(gsm8k, run, smollm2, **SCORER)
    monkeypatch.setattr(loops, "_adapter", lambda out, _: out)
    with pytest.raises(InputError, match="have the command leave merged ones"):
        call(gsm8k, run, smollm2, f"{command} never", epochs=2, scoring={"scorer": "server"})
    assert not (run.path / "loop" / "epoch-001" / "done.json").exists()


def test_rows_may_be_scored_once(tmp_path, gsm8k, smollm2, command):
    run, once = p3select.Run(tmp_path / "run"), {"selecting": {**SELECTING, "scores_of": 1}}
    # The weights of other epochs need not be told from these.
    scoring = {**SCORER, "scorer": "tests.fakes:Unverified"}
    done = call(gsm8k, run, smollm2, f"{command} never", epochs=2, scoring=scoring, **once)
    assert not run.scores(2).exists()
    assert done[0]["difficulty_all"] == done[1]["difficulty_all"]
    assert done[0]["lam"] < done[1]["lam"]
    (run.path / "loop" / "epoch-002" / "done.json").unlink()
    p3select.score(gsm8k, run, smollm2, actions="whole", overwrite=True, **SCORER)
    with pytest.raises(MismatchError, match="not the scores that epoch 1 was selected by"):
        call(gsm8k, run, smollm2, f"{command} never", epochs=2, scoring=scoring, **once)
    with pytest.raises(InputError, match="refresh is for later epochs"):
        call(gsm8k, run, smollm2, f"{command} never", epochs=2, scoring={**scoring, "refresh": "50%"}, **once)
    with pytest.raises(InputError, match="scores_of 2: the first epoch would have no scores"):
        call(gsm8k, run, smollm2, f"{command} never", selecting={**SELECTING, "scores_of": 2})


def test_later_epochs_may_be_scored_in_part(tmp_path, gsm8k, smollm2, command):
    run = p3select.Run(tmp_path / "run")
    scoring = {**SCORER, "limit": 100, "refresh": "60%"}
    call(gsm8k, run, smollm2, f"{command} never", scoring=scoring, seed=3)
    first, second, third = (scores.settings(run, epoch) for epoch in (1, 2, 3))
    assert "refresh" not in first
    assert "refresh" not in second
    assert (third["refresh"], third["refresh_seed"]) == (0.6, 3)
    earlier = p3select.Run(tmp_path / "earlier")
    call(gsm8k, earlier, smollm2, f"{command} never", epochs=2, scoring=scoring, refresh_from=2)
    assert "refresh" in scores.settings(earlier, 2)
    with pytest.raises(MismatchError, match=r"differs in refresh_from\)"):
        call(gsm8k, run, smollm2, f"{command} never", scoring=scoring, seed=3, refresh_from=2)
    with pytest.raises(InputError, match="refresh_from 2: nothing is scored in part without refresh"):
        call(gsm8k, run, smollm2, f"{command} never", refresh_from=2)
    for given in (1, 4):
        with pytest.raises(InputError, match=f"refresh_from {given}: of 3 epochs one from 2 on"):
            call(gsm8k, run, smollm2, f"{command} never", scoring=scoring, seed=3, refresh_from=given)


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
        ("train {data} {out} {epoch:03d}", r"no place \{epoch:03d\}; there are .*\{epoch\}, .*as they are written"),
        ("train {data} {out} {model!x}", r"no place \{model!x\}"),
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


@pytest.fixture
def trained(tmp_path, gsm8k, smollm2):
    """A tiny policy, and weights that commands can copy: whole ones, and an adapter."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    for seed, name in enumerate(("first", "whole")):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, initializer_range=0.2))
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    pl.read_parquet(gsm8k)[:8].write_parquet(tmp_path / "rows.parquet")

    def on(base):
        path = tmp_path / "adapter" / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": base and str(base)}))

    return on


def test_how_an_engine_is_reached_may_change(tmp_path, gsm8k, smollm2, command):
    run = p3select.Run(tmp_path / "run")
    for timeout in ("1.0", "2.0"):
        scoring = {**SCORER, "scorer": "tests.fakes:Patient", "options": {"timeout": timeout}}
        done = call(gsm8k, run, smollm2, f"{command} never", scoring=scoring, epochs=1)
    assert done[0]["seconds_training"] == 0.0


def test_a_list_of_rows_is_known_by_what_it_holds(tmp_path, gsm8k, smollm2, command):
    run = p3select.Run(tmp_path / "run")
    for name, rows, refused in (("a.txt", "1", False), ("b.txt", "1", False), ("a.txt", "2", True)):
        (tmp_path / name).write_text(rows)
        given = {"epochs": 1, "selecting": {**SELECTING, "exclude": tmp_path / name}}
        if refused:
            with pytest.raises(MismatchError, match=r"differs in exclude"):
                call(gsm8k, run, smollm2, f"{command} never", **given)
        else:
            call(gsm8k, run, smollm2, f"{command} never", **given)
    assert len(log(run)) == 1


def test_a_scorer_whose_weights_are_not_verified_is_for_one_epoch(tmp_path, gsm8k, smollm2, command, capsys):
    scoring = {**SCORER, "scorer": "tests.fakes:Unverified"}
    train = f"{command} never"
    refused = p3select.Run(tmp_path / "run")
    with pytest.raises(InputError, match="cannot tell that it has this policy's weights"):
        call(gsm8k, refused, smollm2, train, scoring=scoring)
    assert not (refused.path / "scores").exists()
    run = p3select.Run(tmp_path / "one")
    (one,) = call(gsm8k, run, smollm2, train, scoring=scoring, epochs=1, show_progress=True)
    assert one["selected"] == 8
    assert "note: the weights are not verified" in capsys.readouterr().err


@pytest.mark.slow
def test_adapters_are_scored_on_the_last_whole_weights(tmp_path, trained):
    (tmp_path / "copy.sh").write_text(f"""
        case $1 in 1) from=whole;; *) from=adapter;; esac
        echo "$1" >> '{tmp_path}/log'
        mkdir -p "$2" && cp -r '{tmp_path}'/$from/* "$2"
    """)
    options = {
        "epochs": 3,
        "budget": 4,
        "scoring": {"max_length": 128, "scorer": "transformers"},
        "selecting": {"selector": "topk", "pace": "constant:100"},
        "train": f"sh '{tmp_path}/copy.sh' {{epoch}} {{out}} # {{data}}",
    }
    data, whole = tmp_path / "rows.parquet", tmp_path / "run" / "loop" / "epoch-001" / "weights"
    trained(whole)
    found = p3select.loop(data, tmp_path / "run", tmp_path / "first", **options)
    other = p3select.Run(tmp_path / "other")
    for epoch, model, adapter in ((1, tmp_path / "first", None), (2, whole, None), (3, whole, tmp_path / "adapter")):
        score = {"epoch": epoch, "adapter": adapter, **options["scoring"]}
        assert p3select.score(data, other, model, **score)["difficulty"] == found[epoch - 1]["difficulty_all"]
    assert len({item["difficulty_all"] for item in found}) == 3
    assert (tmp_path / "log").read_text().split() == ["1", "2", "3"]
    # An adapter on the first policy, or on nobody knows what, is not scored on the weights after it.
    for name, base in (("a", tmp_path / "first"), ("b", None)):
        trained(base)
        (tmp_path / "log").unlink()
        for _ in range(2):
            with pytest.raises(
                InputError, match=rf"an adapter on {base}, and the last whole weights, .*are .*epoch-001"
            ):
                p3select.loop(data, tmp_path / name, tmp_path / "first", **options)
        # It is not done: the second call has trained it again, and nothing before it.
        assert (tmp_path / "log").read_text().split() == ["1", "2", "2"]


@pytest.mark.slow
def test_a_command_may_go_to_another_folder(tmp_path, trained, monkeypatch):
    trained(None)
    (tmp_path / "train.py").write_text("""
import json, pathlib, shutil, sys
model, data, index, out = map(pathlib.Path, sys.argv[1:])
assert data.is_file() and index.is_file()
named = "base_model_name_or_path"
before = model / "adapter_config.json"
base = json.loads(before.read_text())[named] if before.is_file() else str(model)
shutil.copytree("../adapter", out)
known = json.loads((out / "adapter_config.json").read_text())
(out / "adapter_config.json").write_text(json.dumps({**known, named: base}))
""")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    found = p3select.loop(
        "rows.parquet",
        "run",
        "first",
        epochs=2,
        budget=4,
        train=f"cd elsewhere && {sys.executable} ../train.py {{model}} {{data}} {{index}} {{out}}",
        scoring={"max_length": 128, "scorer": "transformers"},
        selecting={"selector": "topk"},
    )
    assert [item["policy"] for item in found] == ["first", found[0]["out"]]
    assert found[0]["difficulty_all"] != found[1]["difficulty_all"]
