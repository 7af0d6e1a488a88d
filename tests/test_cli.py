import json
import os
import subprocess
import sys

import click
import polars as pl
import pytest

from p3select import cli


def run(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "p3select", *map(str, arguments)], capture_output=True, text=True, check=False, **options
    )


def invoke(capsys, *arguments):
    """In this process: the exit code, stdout, stderr."""
    try:
        cli.main([str(argument) for argument in arguments])
        code = 0
    except SystemExit as error:
        code = error.code
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.mark.parametrize("name", sorted(cli.cli.commands))
def test_every_command_has_help_with_an_example(name, capsys):
    code, out, _ = invoke(capsys, name, "--help")
    assert code == 0
    assert f"p3select {name}" in out.split("Options:")[0].split("\n", 2)[2]
    for parameter in cli.cli.commands[name].params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.name} has no help"


def test_bad_input_is_one_line_on_stderr_and_exit_code_2(tmp_path, capsys, gsm8k):
    (tmp_path / "other.parquet").write_bytes(b"not parquet")
    for arguments, named in (
        (("score", tmp_path / "gone.parquet", "--run", tmp_path / "r", "--model", "m"), "gone.parquet"),
        (("score", tmp_path / "other.parquet", "--run", tmp_path / "r", "--model", "m"), "other.parquet"),
        (("score", gsm8k, "--run", tmp_path / "r", "--model", "m", "--actions", "re:("), "re:("),
        (("score", gsm8k, "--run", tmp_path / "r", "--model", "m", "--column", "prompt"), "prompt=question"),
        (("score", gsm8k, "--run", tmp_path / "r", "--model", "m", "--option", "dtype"), "dtype=bfloat16"),
        (("score", gsm8k, "--run", tmp_path / "r", "--model", "m", "--option", "fast=1"), "no option 'fast'; it has"),
        (("score", gsm8k, "--run", tmp_path / "r", "--model", "m", "--workers", "2"), "engine 'ray' alone"),
        (("score", gsm8k, "--run", tmp_path / "r", "--model", "m", "--server", "x", "--scorer", "vllm"), "--server"),
        (("score", gsm8k, "--run", tmp_path / "r"), "--model"),
        (("score", gsm8k, "--run", tmp_path / "r", "--model", "m", "--epoch", "2", "--refresh", "25"), "25% or 0.25"),
        (("score", gsm8k, "--run", tmp_path / "r", "--model", "m", "--refresh", "25%"), "epoch 1 has none before it"),
        (("score", gsm8k, "--run", tmp_path / "r", "--model", "m", "--dry-run", "--refresh", "25%"), "of all rows"),
        (("score", gsm8k, "--run", tmp_path / "r", "--model", "m", "--epoch", "one"), "'one'"),
        (("select", "--run", tmp_path / "r", "--epoch", "1", "--epochs", "2", "--budget", "5"), "run.json"),
        (("score", gsm8k, "--run", gsm8k, "--model", "m"), "a file, where the run folder should be"),
        (("score", gsm8k, "--run", tmp_path / "r", "--model", "m", "--epoch", "0"), "epoch 0"),
        (("score", gsm8k, "--run", tmp_path / "r", "--model", "m", "--adapter", tmp_path), "adapter_config.json"),
        (("embed", gsm8k, "--run", tmp_path / "r"), "one of the two"),
        (("export", "--run", tmp_path / "r", "--epoch", "1", "--to", "xml", "--out", "x"), "xml"),
        (("frobnicate",), "frobnicate"),
    ):
        code, out, err = invoke(capsys, *arguments)
        assert code == 2
        assert out == ""
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert named in err


def test_a_missing_model_folder_is_said_without_a_traceback(tmp_path, gsm8k):
    done = run("score", gsm8k, "--run", tmp_path / "r", "--model", tmp_path / "no-model")
    assert done.returncode == 2
    assert "no-model" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_the_commands_of_the_contract(tmp_path, gsm8k, smollm2, minilm):
    data = tmp_path / "rows.parquet"
    pl.read_parquet(gsm8k)[:24].write_parquet(data)
    common = ("--run", tmp_path / "run")
    planned = run("score", data, *common, "--model", smollm2, "--dry-run", "--json")
    assert planned.returncode == 0, planned.stderr
    assert json.loads(planned.stdout)["rows"] == 24
    assert not (tmp_path / "run").exists()
    for arguments in (
        ("score", data, *common, "--model", smollm2),
        ("embed", data, *common, "--encoder", minilm),
        ("select", *common, "--epoch", "1", "--epochs", "5", "--budget", "50%"),
        ("export", *common, "--epoch", "1", "--to", "jsonl", "--out", tmp_path / "a.jsonl"),
    ):
        done = run(*arguments)
        assert done.returncode == 0, done.stderr
        assert "Warning" not in done.stderr
    again = run("select", *common, "--epoch", "1", "--epochs", "5", "--budget", "50%", "--json")
    found = json.loads(again.stdout)
    assert found["eligible"] == 12
    assert found["difficulty_selected"] <= found["lam"]
    rows = pl.read_parquet(tmp_path / "run" / "index" / "epoch-001.parquet")["row"]
    texts = [json.loads(line)["prompt"] for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert texts == pl.read_parquet(data)["prompt"][rows.to_list()].to_list()


HEAVY = ("torch", "transformers", "vllm", "faiss", "ray", "sentence_transformers", "datasets", "trl", "matplotlib")


@pytest.mark.parametrize("code", ["import p3select", "from p3select.cli import main; main(['--help'])"])
def test_nothing_heavy_is_loaded(code):
    script = f"import sys\ntry:\n    {code}\nexcept SystemExit: pass\nprint(sorted(set({HEAVY}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_progress_goes_to_stderr_and_results_to_stdout(tmp_path, gsm8k, capsys):
    from p3select import progress

    with progress.track("scoring", 3) as advance:
        for _ in range(3):
            advance(1, 10)
    assert capsys.readouterr().out == ""
    assert progress.left(42) == "42 s"
    assert progress.left(185) == "3 min 05 s"
    assert progress.left(7800) == "2 h 10 min"


def test_the_module_and_the_script_are_the_same():
    script = os.path.join(os.path.dirname(sys.executable), "p3select")
    assert (
        subprocess.run([script, "--version"], capture_output=True, text=True, check=True).stdout
        == run("--version").stdout
    )
