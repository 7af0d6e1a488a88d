"""The real LLaMA-Factory on a tiny model: the token rows that reach the model are recorded at the training step."""

import copy
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

pytest.importorskip("llamafactory", reason="needs llamafactory: make test-trainers")
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoTokenizer

import p3select
from p3select import scores
from p3select.dataset import load
from p3select.errors import InputError, MismatchError
from p3select.index import Selection, read, write
from p3select.trainers import llamafactory
from tests.fakes import FakeScorer
from tests.test_exporters_llamafactory import ASSISTANT, GIVEN, KINDS, ORDER, SYSTEM, TOOL, USER, made
from tests.trainers.tiny import ACCUMULATION, BATCH, EPOCHS, ROWS, STEPS, K, tiny

ROOT = Path(__file__).parents[2]
CHATML = (
    "{% for turn in messages %}{{ '<|im_start|>' + turn['role'] + '\n' + turn['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


EXAMPLES = ("llamafactory_live", "loop_llamafactory")


def cell(name):
    return pytest.mark.cell("llamafactory", name)


@contextmanager
def recording(file):
    """Write what each training step is given: a line with the step, the epoch that the trainer is in, and the rows."""
    step = transformers.Trainer.training_step

    def training_step(self, model, inputs, *more):
        assert model.training
        masks = inputs["attention_mask"].bool()
        rows = [ids[mask].tolist() for ids, mask in zip(inputs["input_ids"], masks, strict=True)]
        loss = step(self, model, inputs, *more)
        with Path(file).open("a") as out:
            out.write(json.dumps({"step": self.state.global_step, "rows": rows, "loss": loss.item()}) + "\n")
        return loss

    transformers.Trainer.training_step = training_step
    try:
        yield
    finally:
        transformers.Trainer.training_step = step


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory):
    """The folder of a tiny random model, whose tokenizer has a chat template."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    tiny().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def rows_of(data, model):
    """Token row → row number, tokenised here as LLaMA-Factory's template ``default`` says."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    end = tokenizer.eos_token_id

    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    found = {}
    for row, one in enumerate(pl.read_parquet(data).iter_rows(named=True)):
        asked = [*ids(f"Human: {one['prompt']}"), end, *ids("\nAssistant:")]
        found[(*asked, *ids(one["completion"]), end, *ids("\n"))] = row
    return found


def indices(data, path, epochs, columns=None):
    """A run folder with these rows as its indices."""
    run = p3select.Run(path)
    dataset = load(data, columns)
    run.bind(dataset)
    for epoch, rows in enumerate(epochs, start=1):
        ones = np.ones(len(rows))
        about = {"dataset_fingerprint": dataset.fingerprint, "epoch": epoch, "epochs": len(epochs), "scores": {}}
        write(Selection(np.array(rows, np.int64), None, ones, ones, ones, about, {}), run.index(epoch))
    return run


def drawn(seed, k=K, n=ROWS):
    return [np.random.default_rng((seed, epoch)).permutation(n)[:k].tolist() for epoch in range(EPOCHS)]


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    return indices(data, tmp_path_factory.mktemp("run") / "run", drawn(0))


class Training:
    """A training by the launcher, in this process or in two."""

    def __init__(self, folder, model, run, processes=1, **options):
        self.out = Path(options.get("output_dir", folder / "out"))
        self.log = folder / "rows"
        self.settings = {
            "model_name_or_path": str(model),
            "stage": "sft",
            "do_train": True,
            "finetuning_type": "full",
            "template": "default",
            "cutoff_len": 512,
            "per_device_train_batch_size": BATCH,
            "gradient_accumulation_steps": ACCUMULATION,
            "num_train_epochs": EPOCHS,
            "learning_rate": 1.0e-2,
            "lr_scheduler_type": "linear",
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            "output_dir": str(self.out),
            "p3select_run": str(run.path),
            **options,
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "train.yaml").write_text(yaml.safe_dump(self.settings))
        arguments = [str(folder / "train.yaml")]
        if processes == 1:
            with recording(f"{self.log}-0.jsonl"):
                llamafactory.train(arguments)
            return
        (folder / "train.py").write_text(TWO)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        call = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={port}"]
        call += [str(folder / "train.py"), str(self.log), *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.done = subprocess.run(call, env=environment, capture_output=True, text=True, timeout=400, check=False)

    def steps(self, process=0):
        return [json.loads(line) for line in Path(f"{self.log}-{process}.jsonl").read_text().splitlines()]

    def epochs(self, rows_of, process=0, steps=STEPS, first=1):
        """The rows of each epoch, in order."""
        found = {}
        for one in self.steps(process):
            rows = found.setdefault(one["step"] // steps + 1, [])
            rows += [rows_of[tuple(ids)] for ids in one["rows"]]
        return [found[epoch] for epoch in range(first, EPOCHS + 1)]

    @property
    def losses(self):
        return [one["loss"] for one in self.steps()]

    @property
    def rates(self):
        history = json.loads((self.out / "trainer_state.json").read_text())["log_history"]
        return [entry["learning_rate"] for entry in history if "learning_rate" in entry]

    @property
    def weights(self):
        return load_file(self.out / "model.safetensors")


TWO = """
import os, sys, torch
from p3select.trainers import llamafactory
from tests.trainers.test_llamafactory import recording
# Processes on the CPU ask for the optimizer's state at "cpu:0" and "cpu:1", which torch does not know.
torch.serialization.register_package(0, lambda _: None, lambda kept, place: kept if place.startswith("cpu:") else None)
with recording(f"{sys.argv[1]}-{os.environ['RANK']}.jsonl"):
    llamafactory.main(sys.argv[2:])
"""


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def linear(steps):
    return 1e-2 * (1 - np.arange(steps) / steps)


@cell("shuffle")
@cell("gradient accumulation, last incomplete batch")
@cell("learning rate of one training")
@cell("max_steps")
@cell("resume in the middle of an epoch")
@cell("resume at an epoch's end")
def test_the_rows_trained_are_those_of_the_index_also_when_resumed(run, model, rows_of, tmp_path, caplog):
    saving = {"save_strategy": "steps", "save_steps": 2}
    whole = Training(tmp_path / "a", model, run, **saving)
    trained = whole.epochs(rows_of)
    assert [sorted(rows) for rows in trained] == [sorted(rows) for rows in drawn(0)]
    assert trained != drawn(0)
    np.testing.assert_allclose(whole.rates, linear(EPOCHS * STEPS))

    # Step 4 is in the middle of epoch 2; LLaMA-Factory takes up by itself what it finds in output_dir.
    middle = Training(tmp_path / "b", model, run, resume_from_checkpoint=str(whole.out / "checkpoint-4"), **saving)
    (tmp_path / "c" / "out").mkdir(parents=True)
    shutil.copytree(whole.out / "checkpoint-6", tmp_path / "c" / "out" / "checkpoint-6")
    with caplog.at_level(logging.WARNING):
        end = Training(tmp_path / "c", model, run, **saving)
    assert "goes on from" in caplog.text
    assert "checkpoint-6" in caplog.text
    assert middle.epochs(rows_of, first=2) == [trained[1][BATCH * ACCUMULATION :], trained[2]]
    assert end.epochs(rows_of, first=3) == [trained[2]]
    for resumed in (middle, end):
        assert resumed.losses == whole.losses[-len(resumed.losses) :]
        assert resumed.rates == whole.rates
        assert same(resumed.weights, whole.weights)

    # What it finds may be another run's.
    other = indices(load(run.info()["dataset"]["paths"]), tmp_path / "other", drawn(1))
    shutil.rmtree(tmp_path / "c" / "out")
    for checkpoint in ("checkpoint-4", "checkpoint-6"):
        shutil.copytree(whole.out / checkpoint, tmp_path / "c" / "out" / checkpoint)
        with pytest.raises(MismatchError, match=r"epoch-001\.parquet: not the rows that the checkpoint was trained on"):
            Training(tmp_path / "c", model, other, **saving)


@cell("dataloader workers")
@cell("order as picked")
@pytest.mark.parametrize("key", ["p3select_shuffle", "disable_shuffling"])
def test_the_order_picked_with_workers(key, run, model, rows_of, tmp_path):
    unshuffled = {key: key == "disable_shuffling"}
    training = Training(tmp_path, model, run, dataloader_num_workers=2, gradient_accumulation_steps=1, **unshuffled)
    assert training.epochs(rows_of, steps=5) == drawn(0)


@cell("2 processes")
def test_two_processes(data, model, rows_of, tmp_path):
    run = indices(data, tmp_path / "run", drawn(0, 24))
    training = Training(tmp_path, model, run, processes=2)
    assert training.done.returncode == 0, training.done.stderr[-3000:]
    shares = [training.epochs(rows_of, process, steps=2) for process in (0, 1)]
    for one, other, rows in zip(*shares, drawn(0, 24), strict=True):
        assert sorted(one + other) == sorted(rows)
        assert len(one) == len(other) == 12
    np.testing.assert_allclose(training.rates, linear(EPOCHS * 2))
    # What does not come out even is refused, in one line, by each.
    uneven = indices(data, tmp_path / "uneven", drawn(0))
    training = Training(tmp_path / "b", model, uneven, processes=2)
    assert "error: 13 rows in batches of 3 in 2 processes" in training.done.stderr
    assert not list(tmp_path.glob("b/rows*"))


@cell("2 processes, resume in the middle of an epoch")
def test_two_processes_resumed(data, model, rows_of, tmp_path):
    run = indices(data, tmp_path / "run", drawn(0, 24))
    saving = {"save_strategy": "steps", "save_steps": 3}
    whole = Training(tmp_path / "a", model, run, processes=2, **saving)
    checkpoint = f"{whole.out}/checkpoint-3"
    resumed = Training(tmp_path / "b", model, run, processes=2, resume_from_checkpoint=checkpoint, **saving)
    assert resumed.done.returncode == 0, resumed.done.stderr[-3000:]
    for process in (0, 1):
        rows = whole.epochs(rows_of, process, steps=2)
        assert resumed.epochs(rows_of, process, steps=2, first=2) == [rows[1][BATCH * ACCUMULATION :], rows[2]]


@cell("live selection")
def test_live_selection_is_that_of_the_saved_weights(data, model, rows_of, tmp_path):
    run = p3select.Run(tmp_path / "run")
    run.bind(load(data))
    selecting = {"selector": "topk", "pace": "linear:50:95"}
    live = {f"p3select_{key}": value for key, value in {"budget": K, **selecting}.items()}
    training = Training(tmp_path, model, run, save_strategy="epoch", save_only_model=True, **live)
    chosen = [pl.read_parquet(run.index(epoch))["row"].to_list() for epoch in range(1, EPOCHS + 1)]
    assert [sorted(rows) for rows in training.epochs(rows_of)] == [sorted(rows) for rows in chosen]
    assert len({frozenset(rows) for rows in chosen}) == EPOCHS
    other = p3select.Run(tmp_path / "other")
    for epoch, weights in ((1, model), (2, training.out / "checkpoint-3"), (3, training.out / "checkpoint-6")):
        p3select.score(data, other, weights, epoch=epoch, max_length=512)
        p3select.select(other, epoch=epoch, epochs=EPOCHS, budget=K, **selecting)
        one, two = scores.read(run, epoch), scores.read(other, epoch)
        np.testing.assert_allclose(one["logprob"], two["logprob"], atol=1e-4, rtol=1e-5)
        assert chosen[epoch - 1] == pl.read_parquet(other.index(epoch))["row"].to_list()
    assert np.abs(scores.read(other, 1)["logprob"].to_numpy() - scores.read(other, 3)["logprob"].to_numpy()).max() > 1


@cell("packing (refused)")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"packing": True}, "packing: True: LLaMA-Factory merges rows before training"),
        ({"neat_packing": True}, "neat_packing: True: LLaMA-Factory merges rows"),
        ({"val_size": 0.1}, "val_size: 0.1: it takes rows out of the run's"),
        ({"max_samples": 10}, "max_samples: 10"),
        ({"streaming": True}, "streaming: True: a stream cannot be read by row"),
        ({"stage": "pt"}, "stage: pt: rows are selected for stage: sft only"),
        ({"do_train": False}, "do_train: False"),
        ({"mix_strategy": "interleave_under"}, "mix_strategy: interleave_under: it changes the order"),
        ({"dataset_dir": "data"}, "dataset_dir without dataset"),
        ({"p3select_budgets": 3}, "no key p3select_budgets; there are p3select_run, p3select_shuffle"),
        ({"p3select_check": "text"}, "p3select_check 'text': one of rows, tokens, loss"),
        ({"p3select_run": None}, "no key p3select_run"),
        ({"p3select_pace": "constant:50"}, "pace: for live selection, which needs a budget"),
        ({"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy="),
        ({"max_steps": 4}, "max_steps=4: 3 epochs of 13 rows are 9 steps"),
        ({"num_train_epochs": 2}, "for epoch 1 of 3, and the trainer is to use it for epoch 1 of 2"),
    ],
)
def test_settings_that_cannot_be_right(options, message, run, model, tmp_path):
    with pytest.raises((InputError, MismatchError), match=message):
        Training(tmp_path, model, run, **options)


@cell("epochs of different sizes (refused)")
def test_epochs_of_different_sizes_are_refused(data, model, tmp_path):
    rows = drawn(0)
    run = indices(data, tmp_path / "run", [rows[0], rows[1][:12], rows[2]])
    with pytest.raises(InputError, match="the epochs have 13, 12, 13 rows"):
        Training(tmp_path, model, run)


@cell("epochs of different sizes, a run for each")
def test_epochs_of_different_sizes_in_a_run_of_the_trainer_each(data, model, rows_of, tmp_path):
    chosen = [rows[:count] for rows, count in zip(drawn(0), (13, 12, 7), strict=True)]
    run = indices(data, tmp_path / "run", chosen)
    # 3, 2 and 2 steps; LLaMA-Factory finds the checkpoint of the epoch before in output_dir.
    options = {"max_steps": 7, "output_dir": str(tmp_path / "out")}
    for epoch, rows in enumerate(chosen, start=1):
        skip = {"ignore_data_skip": True} if epoch > 1 else {}
        training = Training(tmp_path / str(epoch), model, run, p3select_epoch=epoch, **skip, **options)
        assert sorted(rows_of[tuple(ids)] for step in training.steps() for ids in step["rows"]) == sorted(rows)
    np.testing.assert_allclose(training.rates, linear(7))


def chats(data, broken):
    """Rows of messages, one of which LLaMA-Factory drops."""
    rows = [
        [{"role": USER, "content": one["prompt"]}, {"role": ASSISTANT, "content": one["completion"]}]
        for one in pl.read_parquet(data).iter_rows(named=True)
    ]
    rows[broken].append({"role": USER, "content": "and?"})
    return rows


@cell("a dropped row")
def test_a_dropped_row_is_said_and_the_others_are_the_right_ones(data, model, rows_of, tmp_path, caplog):
    path = tmp_path / "chats.parquet"
    pl.DataFrame({"messages": chats(data, broken=5)}).write_parquet(path)
    without = [[row for row in rows if row != 5][:12] for rows in drawn(0)]
    with caplog.at_level(logging.WARNING):
        training = Training(tmp_path / "a", model, indices(path, tmp_path / "run", without))
    assert [sorted(rows) for rows in training.epochs(rows_of, steps=2)] == [sorted(rows) for rows in without]
    assert "LLaMA-Factory drops 1 rows: 5" in caplog.text

    within = indices(path, tmp_path / "within", [[*rows[1:], 5] for rows in without])
    message = "drops 1 rows that are selected: 5; row 5: turns of user, assistant, user"
    with pytest.raises(InputError, match=message):
        Training(tmp_path / "b", model, within)
    live = p3select.Run(tmp_path / "live")
    live.bind(load(path))
    with pytest.raises(InputError, match="drops 1 rows that could be selected: 5"):
        Training(tmp_path / "c", model, live, p3select_budget=12, p3select_selector="topk")
    options = {"p3select_budget": 12, "p3select_selector": "topk", "p3select_pace": "constant:100"}
    training = Training(tmp_path / "d", model, live, p3select_exclude=[5], **options)
    chosen = [read(live.index(epoch)).rows for epoch in range(1, EPOCHS + 1)]
    assert [sorted(rows) for rows in training.epochs(rows_of, steps=2)] == [sorted(rows) for rows in chosen]
    assert 5 not in np.concatenate(chosen)


def test_speakers_of_two_names_are_refused(data, model, tmp_path):
    rows = chats(data, broken=5)
    rows[7][0]["role"] = "human"
    pl.DataFrame({"messages": rows}).write_parquet(tmp_path / "chats.parquet")
    run = indices(tmp_path / "chats.parquet", tmp_path / "run", drawn(0))
    with pytest.raises(InputError, match="row 7: 'human' where rows before have 'user'"):
        Training(tmp_path, model, run)


@cell("a row that is cut")
def test_cut_rows_are_said(run, model, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        Training(tmp_path / "a", model, run, cutoff_len=100)
    assert "cutoff_len 100 cuts" in caplog.text
    with pytest.raises(InputError, match=r"row \d+: cutoff_len 1 leaves nothing of it to train"):
        Training(tmp_path / "b", model, run, cutoff_len=1)


@cell("a stale cache of prepared rows")
@cell("other rows, or another run's index")
def test_a_stale_cache_and_other_rows_are_noticed(data, run, model, rows_of, tmp_path):
    cache = {"tokenized_path": str(tmp_path / "cache")}
    for name in ("a", "b"):  # made, and used
        training = Training(tmp_path / name, model, run, **cache)
        assert [sorted(rows) for rows in training.epochs(rows_of)] == [sorted(rows) for rows in drawn(0)]
    table = pl.read_parquet(data)
    changed = table.with_columns(completion=table["completion"] + "!")
    changed.write_parquet(tmp_path / "changed.parquet")
    table[:39].write_parquet(tmp_path / "fewer.parquet")
    for name, message in (("changed", r"row \d+: .*input_ids are not those"), ("fewer", "has 40 rows, where 39 of")):
        other = indices(tmp_path / f"{name}.parquet", tmp_path / name, drawn(0, n=39))
        with pytest.raises(MismatchError, match=rf"{message}.*tokenized_path .*cache was made of others"):
            Training(tmp_path / f"{name}-c", model, other, **cache)

    # A dataset of the user's own: it may be the run's, or others, or in another order.
    about = {"columns": {"prompt": "prompt", "response": "completion"}}
    table.reverse().write_parquet(tmp_path / "reversed.parquet")
    (tmp_path / "dataset_info.json").write_text(
        json.dumps({name: {"file_name": f"{name}.parquet", **about} for name in ("mine", "reversed")})
    )
    table.write_parquet(tmp_path / "mine.parquet")
    mine = {"dataset_dir": str(tmp_path)}
    training = Training(tmp_path / "d", model, run, dataset="mine", **mine)
    assert [sorted(rows) for rows in training.epochs(rows_of)] == [sorted(rows) for rows in drawn(0)]
    with pytest.raises(MismatchError, match=r"row \d+: LLaMA-Factory's input_ids are not those"):
        Training(tmp_path / "e", model, run, dataset="reversed", **mine)

    fewer = indices(tmp_path / "fewer.parquet", tmp_path / "of-fewer", drawn(0, n=39))
    shutil.copy(run.index(2), fewer.index(2))
    with pytest.raises(MismatchError, match=r"epoch-002\.parquet: of other data"):
        Training(tmp_path / "f", model, fewer)


@cell("tokens as they were scored")
def test_tokens_can_be_held_to_the_scores(data, model, tmp_path, caplog):
    path = tmp_path / "chats.parquet"
    pl.DataFrame({"messages": chats(data, broken=5)}).filter(pl.arange(0, ROWS) != 5).write_parquet(path)
    tokenizer = AutoTokenizer.from_pretrained(model)
    run = p3select.Run(tmp_path / "run")
    for epoch in range(1, EPOCHS + 1):
        p3select.score(path, run, scorer=FakeScorer(tokenizer), epoch=epoch)
        options = {"pace": "constant:100", "selector": "uniform", "seed": epoch}
        p3select.select(run, epoch=epoch, epochs=EPOCHS, budget=K, **options)
    Training(tmp_path / "a", model, run, template="chatml", p3select_check="tokens")
    with pytest.raises(MismatchError, match=r"row \d+: the trainer's is not the run's: token 0 is"):
        Training(tmp_path / "b", model, run, p3select_check="tokens")
    with caplog.at_level(logging.WARNING):
        Training(tmp_path / "c", model, run)
    assert "row 0 is trained as other tokens than it is scored as: token 0 is 'H' there" in caplog.text


def test_a_llamafactory_that_is_another_is_refused(run, model, tmp_path, monkeypatch):
    from llamafactory.train.sft import workflow

    class Other(workflow.CustomSeq2SeqTrainer):
        pass

    plain = workflow.run_sft
    monkeypatch.setattr(workflow, "run_sft", lambda *args, **kwargs: plain(*args, **kwargs))
    with monkeypatch.context() as patch:
        # Its trainer is made from somewhere else.
        patch.setattr("llamafactory.train.tuner.run_sft", elsewhere(plain, Other))
        with pytest.raises(InputError, match=r"its trainer was made elsewhere, and nothing was trained.*0\.9\.5"):
            Training(tmp_path, model, run)
        assert not list(tmp_path.glob("rows*"))
    with monkeypatch.context() as patch:
        patch.delattr(workflow, "CustomSeq2SeqTrainer")
        with pytest.raises(InputError, match=r"is not what p3select knows .*CustomSeq2SeqTrainer"):
            Training(tmp_path, model, run)
    with monkeypatch.context() as patch:
        patch.setenv("USE_V1", "1")
        with pytest.raises(InputError, match="USE_V1 is set"):
            Training(tmp_path, model, run)


def elsewhere(function, trainer):
    """The function with a module of its own, where the trainer is another."""
    from types import FunctionType

    names = {**function.__globals__, "CustomSeq2SeqTrainer": trainer}
    return FunctionType(function.__code__, names, function.__name__, function.__defaults__)


def test_the_command_says_what_is_wrong_in_one_line(run, model, tmp_path, capsys):
    def failing(*arguments):
        with pytest.raises(SystemExit) as ended:
            llamafactory.main(list(arguments))
        assert ended.value.code == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert said.count("\n") == 1
        return said

    assert "usage: p3select-llamafactory-train train.yaml" in failing()
    assert "no such file" in failing(str(tmp_path / "train.yaml"))
    (tmp_path / "train.yaml").write_text("stage: sft\ndo_train: true\n")
    assert "no key p3select_run" in failing(str(tmp_path / "train.yaml"))
    # Keys on the command line replace the file's, as LLaMA-Factory has it.
    assert "packing: True" in failing(str(tmp_path / "train.yaml"), f"p3select_run={run.path}", "packing=true")


@cell("export")
@pytest.mark.parametrize("kind", KINDS)
def test_its_own_loader_reads_what_is_exported(kind, tmp_path, monkeypatch):
    from llamafactory.data.loader import _get_merged_dataset
    from llamafactory.hparams import DataArguments, ModelArguments
    from transformers import Seq2SeqTrainingArguments

    run = made(tmp_path, KINDS[kind], GIVEN.get(kind))
    p3select.export(run, epoch=1, to="llamafactory", out=tmp_path / "out")
    arguments = DataArguments(template="default", dataset="p3select", dataset_dir=str(tmp_path / "out"))
    where = ModelArguments(model_name_or_path="none", cache_dir=str(tmp_path / "cache"))
    training = Seq2SeqTrainingArguments(output_dir=str(tmp_path / "unused"), use_cpu=True, report_to="none")
    read = _get_merged_dataset(["p3select"], where, arguments, training, "sft").to_list()
    wanted = load(tmp_path / "rows.parquet", GIVEN.get(kind)).rows()
    assert len(read) == len(ORDER)
    for found, row in zip(read, (wanted[number] for number in ORDER), strict=True):
        turns = row.get("messages") or [
            {"role": USER, "content": row["prompt"]},
            {"role": ASSISTANT, "content": row["completion"]},
        ]
        system = turns[0]["content"] if turns[0]["role"] == SYSTEM else ""
        assert found["_system"] == system
        assert found["_tools"] == row.get("tools", "")
        said = [turn for turn in turns if turn["role"] != SYSTEM]
        names = {TOOL: "observation"}
        assert [*found["_prompt"], *found["_response"]] == [
            {"role": names.get(turn["role"], turn["role"]), "content": turn["content"]} for turn in said
        ]


@cell("example")
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_run(name, smollm2, minilm, tmp_path):
    for folder in ("examples", "models"):
        (tmp_path / folder).mkdir()
        for path in (ROOT / folder).iterdir():
            if path.is_dir() or folder == "models":
                (tmp_path / folder / path.name).symlink_to(path.resolve())
            else:
                shutil.copy(path, tmp_path / folder)
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    call = [sys.executable, str(tmp_path / "examples" / f"{name}.py")]
    done = subprocess.run(call, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    run = p3select.Run(tmp_path / "runs" / name.replace("_", "-") / "run")
    assert [len(pl.read_parquet(run.index(epoch))) for epoch in (1, 2)] == [6, 6]
    if name.startswith("loop"):
        weights = [run.path / "loop" / f"epoch-00{epoch}" / "weights" / "model.safetensors" for epoch in (1, 2)]
        assert not same(*map(load_file, weights))
