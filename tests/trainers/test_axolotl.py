"""axolotl is run as its users run it; what reaches the model is recorded by a second plugin (axolotl_recorder.py)."""

import inspect
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

# Read when axolotl is imported: it would else send word of each error, and wait for an answer.
os.environ["AXOLOTL_DO_NOT_TRACK"] = "1"
pytest.importorskip("axolotl", reason="needs axolotl: make test-trainers")

import yaml
from axolotl.cli.args import TrainerCliArgs
from axolotl.cli.config import load_cfg
from axolotl.cli.train import do_train
from axolotl.common.datasets import load_datasets
from axolotl.integrations.base import PluginManager
from axolotl.train import train
from axolotl.utils.dict import DictDefault
from axolotl.utils.samplers import MultipackBatchSampler
from datasets import Dataset
from transformers import AutoTokenizer

import p3select
from p3select import tokens
from p3select.dataset import load
from p3select.errors import InputError, MismatchError
from p3select.trainers import axolotl, hf
from tests.fakes import FakeScorer
from tests.trainers.tiny import ACCUMULATION, BATCH, EPOCHS, ROWS, STEPS, K, select, tiny

# axolotl's own warnings are not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore")

REPOSITORY = Path(__file__).parents[2]
PLUGIN = "p3select.trainers.axolotl.P3SelectPlugin"
TEXT = {
    "field_instruction": "prompt",
    "field_output": "completion",
    "format": "{instruction}",
    "no_input_format": "{instruction}",
}


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory):
    """The folder of a tiny random model."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tokenizer.save_pretrained(folder)
    made = tiny()
    for name in ("pad_token_id", "eos_token_id", "bos_token_id"):
        setattr(made.config, name, getattr(tokenizer, name))
        setattr(made.generation_config, name, getattr(tokenizer, name))
    made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def rows_of(data, model):
    """Token row → row number, tokenised here: prompt, completion and the end, as axolotl does it, each by itself."""
    tokenizer, table = AutoTokenizer.from_pretrained(model), pl.read_parquet(data)
    found = {}
    for row, (prompt, completion) in enumerate(zip(table["prompt"], table["completion"], strict=True)):
        found[*tokenizer(prompt)["input_ids"], *tokenizer(completion)["input_ids"], tokenizer.eos_token_id] = row
    assert len(found) == ROWS
    return found


@pytest.fixture(scope="module")
def selected(data, tokenizer, tmp_path_factory):
    """A run folder with three indices of 13 rows."""
    return select(data, tokenizer, p3select.Run(tmp_path_factory.mktemp("selected") / "run"), [K] * EPOCHS)


@pytest.fixture(scope="module")
def even(data, tokenizer, tmp_path_factory):
    """The same of 12 rows, for two processes."""
    return select(data, tokenizer, p3select.Run(tmp_path_factory.mktemp("even") / "run"), [12] * EPOCHS)


@pytest.fixture
def configure(data, model, tmp_path):
    """Writes a configuration."""

    def write(name="out", **options):
        settings = {
            "base_model": str(model),
            "plugins": [PLUGIN, "tests.trainers.axolotl_recorder.Recorder"],
            "datasets": [{"path": str(data), "type": TEXT}],
            "dataset_prepared_path": str(tmp_path / "prepared"),
            "dataset_num_proc": 1,
            "output_dir": str(tmp_path / name),
            "sequence_len": 256,
            "micro_batch_size": BATCH,
            "gradient_accumulation_steps": ACCUMULATION,
            "num_epochs": EPOCHS,
            "learning_rate": 0.01,
            "lr_scheduler": "linear",
            "optimizer": "adamw_torch",
            "warmup_steps": 0,
            "logging_steps": 1,
            "save_strategy": "no",
            "attn_implementation": "sdpa",
            "bf16": False,
            "fp16": False,
            "tf32": False,
            "seed": 7,
        } | options
        path = tmp_path / f"{name}.yml"
        path.write_text(yaml.safe_dump({key: value for key, value in settings.items() if value is not None}))
        return path

    return write


def launch(path, *launcher, command="train", **changed):
    """Run ``axolotl train`` as on a command line."""
    binaries = Path(sys.executable).parent
    environment = {
        **os.environ,
        # axolotl starts a bare `python` or `torchrun`.
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "HF_HUB_OFFLINE": "1",
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        **changed,
    }
    environment = {name: value for name, value in environment.items() if value is not None}
    return subprocess.run(
        [binaries / "axolotl", command, str(path), *(launcher or ("--launcher", "python"))],
        cwd=path.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )


def trained(path, rows_of, *launcher):
    """What was recorded, per process: the rows by their numbers."""
    done = launch(path, *launcher)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    found = []
    for file in sorted(path.with_suffix("").glob("recorded-*.json")):
        one = json.loads(file.read_text())
        one["epochs"] = [[rows_of[tuple(ids)] for ids in epoch] for epoch in one["epochs"]]
        found.append(one)
    return found


def indices(run, epochs=EPOCHS):
    return [pl.read_parquet(run.index(epoch))["row"].to_list() for epoch in range(1, epochs + 1)]


def same_rows(epochs, run):
    return [sorted(epoch) for epoch in epochs] == [sorted(rows) for rows in indices(run)]


def linear(steps):
    return 0.01 * (1 - np.arange(steps) / steps)


TWO = ("--launcher", "torchrun", "--", "--nproc_per_node", "2", "--master_port", "29617")


# --- what is trained


@pytest.mark.slow
@pytest.mark.cell("axolotl", "shuffle")
@pytest.mark.cell("axolotl", "gradient accumulation, last incomplete batch")
@pytest.mark.cell("axolotl", "learning rate of one training")
@pytest.mark.cell("axolotl", "resume in the middle of an epoch")
@pytest.mark.cell("axolotl", "resume at an epoch's end")
def test_rows_and_resuming(selected, rows_of, configure, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 2, "p3select_run": str(selected.path)}
    (whole,) = trained(configure("a", **saving), rows_of)
    assert same_rows(whole["epochs"], selected)
    # Shuffled by the seed, not in the order picked.
    assert all(epoch != rows for epoch, rows in zip(whole["epochs"], indices(selected), strict=True))
    assert whole["steps"] == [EPOCHS * STEPS] * 2
    np.testing.assert_allclose(whole["rates"], linear(EPOCHS * STEPS))
    # Step 4 is in the middle of epoch 2, step 6 the end of it.
    for step, rest in ((4, [whole["epochs"][1][BATCH * ACCUMULATION :], whole["epochs"][2]]), (6, whole["epochs"][2:])):
        start = str(tmp_path / "a" / f"checkpoint-{step}")
        (resumed,) = trained(configure(f"from-{step}", resume_from_checkpoint=start, **saving), rows_of)
        assert resumed["epochs"] == rest
        assert resumed["losses"] == whole["losses"][-len(resumed["losses"]) :]
        assert resumed["weights"] == whole["weights"]


@pytest.mark.slow
@pytest.mark.cell("axolotl", "dataloader workers")
@pytest.mark.cell("axolotl", "order as picked")
def test_the_order_picked_with_workers(selected, rows_of, configure):
    options = {"dataloader_num_workers": 1, "p3select_shuffle": False, "warmup_steps": None, "warmup_ratio": 0.5}
    (found,) = trained(configure(p3select_run=str(selected.path), **options), rows_of)
    assert found["epochs"] == indices(selected)
    # Of the steps that there are, not of those of the whole dataset.
    assert found["warmup"] == EPOCHS * STEPS // 2


@pytest.mark.slow
@pytest.mark.cell("axolotl", "2 processes")
@pytest.mark.cell("axolotl", "2 processes, resume in the middle of an epoch")
def test_two_processes(even, rows_of, configure, tmp_path):
    options = {
        "p3select_run": str(even.path),
        "micro_batch_size": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": 99,
    }
    found = trained(configure("a", **options), rows_of, *TWO)
    assert [one["processes"] for one in found] == [2, 2]
    together = [[*one, *other] for one, other in zip(*(one["epochs"] for one in found), strict=True)]
    assert same_rows(together, even)
    # 12 rows: 3 batches in each process, 2 steps.
    assert found[0]["steps"] == [2 * EPOCHS] * 2
    np.testing.assert_allclose(found[0]["rates"], linear(2 * EPOCHS))
    start = str(tmp_path / "a" / "checkpoint-3")
    resumed = trained(configure("b", resume_from_checkpoint=start, **options), rows_of, *TWO)
    for one, unbroken in zip(resumed, found, strict=True):
        assert one["epochs"] == [unbroken["epochs"][1][4:], unbroken["epochs"][2]]
        assert one["weights"] == unbroken["weights"]


@pytest.mark.slow
@pytest.mark.cell("axolotl", "packing")
@pytest.mark.cell("axolotl", "packing, resume in the middle of an epoch")
def test_packing(selected, rows_of, configure, tmp_path):
    options = {
        "p3select_run": str(selected.path),
        "sample_packing": True,
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": 99,
    }
    (found,) = trained(configure("a", **options), rows_of)
    assert same_rows(found["epochs"], selected)
    steps, most = found["steps"]
    assert steps == most
    assert len(found["losses"]) == steps < EPOCHS * -(-K // 2)
    np.testing.assert_allclose(found["rates"], linear(steps))
    # In the middle of epoch 2.
    middle = steps // EPOCHS + 1
    start = str(tmp_path / "a" / f"checkpoint-{middle}")
    (resumed,) = trained(configure("b", resume_from_checkpoint=start, **options), rows_of)
    assert resumed["epochs"][1] == found["epochs"][2]
    assert resumed["epochs"][0] == found["epochs"][1][-len(resumed["epochs"][0]) :]
    assert 0 < len(resumed["epochs"][0]) < K
    assert resumed["weights"] == found["weights"]
    # As many packs, of other rows.
    options |= {"resume_from_checkpoint": start, "sequence_len": 320}
    refused(MismatchError, "packing, shuffle or the seed changed", configure("c", **options))


@pytest.mark.slow
@pytest.mark.cell("axolotl", "packing, 2 processes")
def test_packing_in_two_processes_is_of_each_epoch(selected, rows_of, configure):
    """axolotl alone keeps the batches of the first epoch."""
    options = {"sample_packing": True, "micro_batch_size": 1, "gradient_accumulation_steps": 2}
    found = trained(configure(p3select_run=str(selected.path), **options), rows_of, *TWO)
    together = [[*one, *other] for one, other in zip(*(one["epochs"] for one in found), strict=True)]
    assert same_rows(together, selected)
    assert found[0]["steps"][0] == found[0]["steps"][1]


@pytest.mark.slow
@pytest.mark.cell("axolotl", "live selection")
def test_live_selection(data, model, rows_of, configure, tmp_path):
    run = p3select.Run(tmp_path / "run")
    run.bind(load(data))
    options = {"p3select_budget": K, "p3select_selector": "topk", "p3select_pace": "constant:100"}
    (found,) = trained(configure(p3select_run=str(run.path), **options), rows_of)
    assert same_rows(found["epochs"], run)
    assert len(set(map(tuple, indices(run)))) > 1
    assert found["steps"] == [EPOCHS * STEPS] * 2


@pytest.mark.slow
@pytest.mark.cell("axolotl", "a stale cache of prepared rows")
def test_rows_that_changed_are_prepared_anew(data, tokenizer, rows_of, configure, tmp_path):
    """axolotl alone finds the prepared dataset of a path again, whatever the file holds."""
    table, path = pl.read_parquet(data), tmp_path / "rows.parquet"
    for rows in (table[:20], table[20:]):
        rows.write_parquet(path)
        run = select(path, tokenizer, p3select.Run(tmp_path / f"run-{rows['id'][0]}"), [6])
        yml = configure(datasets=[{"path": str(path), "type": TEXT}], num_epochs=1, p3select_run=str(run.path))
        (found,) = trained(yml, rows_of)
        names = [table["id"][row] for row in found["epochs"][0]]
        assert sorted(names) == sorted(rows["id"][indices(run, 1)[0]].to_list())
    # And with axolotl's own command beforehand.
    done = launch(yml, "--debug", command="preprocess")
    assert done.returncode == 0, done.stderr[-3000:]


# --- what is refused


def begun(path):
    """A configuration as axolotl reads it, its plugins loaded, in this process."""
    PluginManager.get_instance().plugins.clear()
    return load_cfg(str(path))


def refused(kind, match, path):
    with pytest.raises(kind, match=match):
        do_train(begun(path), TrainerCliArgs())


@pytest.mark.slow
@pytest.mark.cell("axolotl", "a dropped row")
def test_rows_that_axolotl_drops_are_reported(selected, rows_of, configure):
    run = {"p3select_run": str(selected.path)}
    lengths = {row: len(ids) for ids, row in rows_of.items()}
    picked = set(indices(selected)[0])
    longest = max(picked, key=lengths.get)
    for more in ({}, {"sample_packing": True}):
        message = rf"epoch 1: axolotl dropped \d+ of 13 selected rows \(row .*{longest}.*longer than sequence_len"
        refused(InputError, message, configure(**run, **more, sequence_len=lengths[longest] - 1))


@pytest.mark.slow
def test_a_row_that_was_not_selected_may_go(data, model, configure, tmp_path, caplog):
    table = pl.read_parquet(data)
    rows, path = table.to_dicts()[:20], tmp_path / "rows.parquet"
    rows[5]["completion"] *= 30
    rows[6]["completion"] = ""
    pl.DataFrame(rows, table.schema).write_parquet(path)
    run = p3select.Run(tmp_path / "run")
    p3select.score(path, run, scorer=FakeScorer(AutoTokenizer.from_pretrained(model)), max_length=256, truncate="skip")
    p3select.select(run, epoch=1, epochs=1, budget=18, pace="constant:100", selector="topk")
    options = {"datasets": [{"path": str(path), "type": TEXT}], "num_epochs": 1}
    cfg = begun(configure(p3select_run=str(run.path), **options))
    with caplog.at_level(logging.WARNING, "p3select"):
        meta = PluginManager.get_instance().load_datasets(cfg)
    assert (
        "axolotl dropped 1 of 20 rows: row 5" in caplog.text or "axolotl dropped 2 of 20 rows: row 5, 6" in caplog.text
    )
    assert meta.total_num_steps == 3
    assert axolotl.COLUMN not in meta.train_dataset.column_names


@pytest.mark.slow
@pytest.mark.cell("axolotl", "a row that is cut")
def test_rows_that_axolotl_cuts_are_refused(selected, configure):
    yml = configure(p3select_run=str(selected.path), sequence_len=64, excess_length_strategy="truncate")
    refused(MismatchError, r"row \d+: the trainer's is not the run's: 64 tokens there, \d+ here", yml)


@pytest.mark.slow
@pytest.mark.cell("axolotl", "other rows, or another run's index")
@pytest.mark.cell("axolotl", "epochs of different sizes (refused)")
def test_other_rows_are_refused(selected, even, data, tokenizer, configure, tmp_path):
    fewer, other = tmp_path / "fewer.parquet", tmp_path / "other.csv"
    pl.read_parquet(data)[1:].write_parquet(fewer)
    pl.read_parquet(data).reverse().write_csv(other)
    run = {"p3select_run": str(selected.path)}
    for path, message in ((fewer, "39 rows with the fingerprint"), (other, "row 0 is another")):
        yml = configure(**run, datasets=[{"path": str(path), "type": TEXT}])
        refused(MismatchError, f"{path.name} does not hold the rows of .*{message}", yml)
    run = shutil.copytree(even.path, tmp_path / "run")
    foreign = select(fewer, tokenizer, p3select.Run(tmp_path / "foreign"), [12] * EPOCHS)
    shutil.copy(foreign.index(2), run / "index")
    refused(MismatchError, r"epoch-002\.parquet: of other data", configure(p3select_run=str(run)))
    shutil.copy(selected.index(2), run / "index")
    refused(InputError, "the epochs have 12, 13, 12 rows", configure(p3select_run=str(run)))
    refused(MismatchError, "for epoch 1 of 3", configure(p3select_run=str(even.path), num_epochs=2))
    refused(InputError, r"num_train_epochs=1\.5", configure(p3select_run=str(even.path), num_epochs=1.5))


@pytest.mark.slow
@pytest.mark.cell("axolotl", "a stale cache of prepared rows")
def test_rows_prepared_without_the_plugin_are_refused(selected, configure):
    yml = configure(p3select_run=str(selected.path))
    cfg = begun(yml)
    cfg.dataset_prepared_path = f"{cfg.dataset_prepared_path}/p3select-{selected.dataset().fingerprint[:16]}"
    load_datasets(cfg=cfg)
    refused(InputError, "were not numbered: .* prepared without the plugin in", yml)


@pytest.mark.slow
@pytest.mark.cell("axolotl", "max_steps")
def test_other_steps_are_refused(selected, configure):
    yml = configure(p3select_run=str(selected.path), max_steps=5)
    refused(InputError, "max_steps=5: 3 epochs of 13 rows are 9 steps", yml)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p3select_budgt": 3}, "p3select_budgt: 3: no such key; there are p3select_run, p3select_shuffle"),
        ({"p3select_seed": "x"}, "p3select_seed: 'x': Input should be a valid integer"),
        ({"p3select_run": None}, "p3select_run: is missing"),
        ({"p3select_run": "nowhere"}, "nowhere: no run folder"),
        ({"p3select_pace": "constant:50"}, "pace: for live selection, which needs a budget"),
        ({"p3select_check": "all"}, "check 'all': one of"),
        ({"val_set_size": 0.1}, "val_set_size: 0.1 takes rows out of training; use test_datasets"),
        ({"curriculum_sampling": True}, "use p3select_shuffle: false"),
        ({"sample_packing": True, "p3select_budget": 5}, "sample_packing with p3select_budget"),
        ({"sample_packing": True, "micro_batch_size": 20}, "13 rows do not make 20 packs"),
        ({"group_by_length": True}, "group_by_length: the order is attach's"),
        ({"dataset_shard_num": 2, "dataset_shard_idx": 0}, "dataset_shard_num: takes rows out of training"),
    ],
)
def test_settings_that_contradict_are_refused(options, message, selected, configure):
    refused(InputError, message, configure(**{"p3select_run": str(selected.path), **options}))


def test_settings_without_rows_to_choose_from():
    def refused(message, **options):
        cfg = {"datasets": [{}], **options}
        with pytest.raises(InputError, match=message):
            axolotl._refuse_settings(DictDefault(cfg))

    refused("supervised", rl="dpo")
    refused("from a stream", streaming=True)
    refused("from a stream", pretraining_dataset=[{"path": "a"}])
    refused("skip_prepare_dataset", skip_prepare_dataset=True)
    refused("push_dataset_to_hub", push_dataset_to_hub="me/mine")
    refused("datasets: 2 entries", datasets=[{}, {}])
    refused("context_parallel_size", context_parallel_size=2)
    axolotl._refuse_settings(DictDefault({"datasets": [{}]}))


@pytest.mark.slow
@pytest.mark.cell("axolotl", "a row that is split")
def test_a_type_that_splits_rows_is_refused(selected, configure):
    options = {"datasets": [{"path": selected.dataset().paths[0], "type": "completion", "field": "completion"}]}
    yml = configure(p3select_run=str(selected.path), sequence_len=32, **options)
    refused(InputError, r"row \d+: the dataset's type makes \d rows of it", yml)


@pytest.mark.slow
@pytest.mark.cell("axolotl", "processes that do not know of each other")
def test_processes_that_would_each_train_all_are_refused(even, configure):
    done = launch(configure(p3select_run=str(even.path)), *TWO, ACCELERATE_USE_CPU=None)
    assert done.returncode
    assert "2 processes were started, and each would train by itself" in done.stderr


@pytest.mark.slow
def test_a_hook_that_is_not_called_is_noticed(selected, configure, monkeypatch):
    monkeypatch.setattr(axolotl.P3SelectPlugin, "post_trainer_create", lambda *_: None)
    refused(InputError, "did not give its trainer to the p3select plugin", configure(p3select_run=str(selected.path)))


@pytest.mark.slow
def test_datasets_that_the_plugin_did_not_load_are_refused(selected, configure):
    cfg = begun(configure(p3select_run=str(selected.path), p3select_check="none"))
    with pytest.raises(InputError, match="did not let the p3select plugin load the datasets"):
        train(cfg=cfg, dataset_meta=load_datasets(cfg=cfg))


def test_other_versions_are_refused(monkeypatch):
    monkeypatch.setattr(axolotl, "version", lambda _: "0.20.1")
    with pytest.raises(InputError, match=r"axolotl 0\.20\.1: the p3select plugin knows 0\.19"):
        axolotl.P3SelectPlugin().register({"p3select_run": "a"})


def test_the_keys_are_the_options_of_attach():
    options = {f"p3select_{name}" for name in inspect.signature(hf.attach).parameters}
    assert set(axolotl.P3SelectArgs.model_fields) == options - {
        "p3select_trainer",
        "p3select_tokenizer",
        "p3select_rows",
        "p3select_batches",
        "p3select_epoch",
    }


def test_packs_are_of_the_rows_there_are():
    rows, lengths = [0, 1, 2], np.array([3, 3, 3, 3, 3, 3])
    alone = MultipackBatchSampler(rows, batch_size=1, batch_max_len=6, lengths=lengths, bin_size=9)
    before = list(alone)
    cfg = {"sequence_len": 6, "micro_batch_size": 1, "world_size": 1, "sample_packing_bin_size": 9}
    cfg |= {"sample_packing_group_size": 9, "multipack_real_batches": True}
    make, count = axolotl._packing(DictDefault(cfg), Dataset.from_dict({"length": lengths}), [np.array(rows)])
    ours = make(rows)
    assert list(ours) == [[[0, 1]], [[2]]]
    assert len(ours) == count == 2
    rows[:] = [3, 4, 5]
    # Why axolotl's own sampler is made anew for each epoch.
    assert list(alone) == before
    assert list(ours) == [[[3, 4]], [[5]]]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(0, 30))
def test_spread_keeps_every_row_in_its_place(sizes, more):
    rows = iter(range(sum(sizes)))
    packs = [[next(rows) for _ in range(size)] for size in sizes]
    wanted = len(packs) + more
    if wanted > sum(sizes):
        with pytest.raises(MismatchError, match="were planned"):
            axolotl.spread(packs, wanted)
        return
    found = axolotl.spread(packs, wanted)
    assert len(found) == wanted
    assert all(found)
    assert [row for pack in found for row in pack] == list(range(sum(sizes)))
    # None longer than before, and none cut that need not be.
    assert max(map(len, found)) <= max(sizes)
    if not more:
        assert found == packs


# --- kinds of rows, and the exporter


def turns(row):
    return [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]


KINDS = {
    "prompt": lambda rows: {"question": [row["prompt"] for row in rows], "answer": [row["completion"] for row in rows]},
    "alpaca": lambda rows: {
        "instruction": [row["prompt"] for row in rows],
        "input": ["", "more\nof it"] * (len(rows) // 2),
        "output": [row["completion"] for row in rows],
        "system": ["not to be trained"] * len(rows),
    },
    "messages": lambda rows: {"messages": [turns(row) for row in rows]},
    "conversations": lambda rows: {
        "conversations": [
            [{"from": "human", "value": row["prompt"]}, {"from": "gpt", "value": row["completion"]}] for row in rows
        ]
    },
}
GIVEN = {"prompt": {"prompt": "question", "completion": "answer"}}


@pytest.mark.slow
@pytest.mark.cell("axolotl", "export")
@pytest.mark.cell("axolotl", "tokens as they were scored")
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_exported_is_tokenised_as_it_was_scored(kind, data, model, configure, tmp_path):
    tokenizer, path = AutoTokenizer.from_pretrained(model), tmp_path / "rows.parquet"
    pl.DataFrame(KINDS[kind](pl.read_parquet(data).to_dicts()[:20])).write_parquet(path)
    dataset, run = load(path, GIVEN.get(kind)), p3select.Run(tmp_path / "run")
    p3select.score(dataset, run, scorer=FakeScorer(tokenizer))
    chosen = p3select.select(run, epoch=1, epochs=1, budget=6, pace="constant:100", selector="uniform")
    p3select.export(run, epoch=1, to="axolotl", out=tmp_path / "epoch")
    entry = yaml.safe_load((tmp_path / "epoch" / "axolotl.yml").read_text(encoding="utf-8"))
    made = configure(**entry, plugins=None, shuffle_merged_datasets=False, curriculum_sampling=True)
    given = load_datasets(cfg=begun(made)).train_dataset
    texts = [dataset.rows()[row] for row in chosen.rows]
    for row, expected in zip(given, tokens.encode(texts, tokenizer), strict=True):
        assert row["input_ids"] == expected.ids.tolist()
        # With messages, axolotl trains nothing that the template writes after the end of a turn: a line break here.
        scored = expected.scored[: -1 if "messages" in texts[0] else None]
        assert (np.flatnonzero(np.array(row["labels"][1:]) != -100) + 1).tolist() == scored.tolist()
    # And the plugin reads the whole file by the same entry.
    entry["datasets"][0]["path"] = str(path)
    options = {"p3select_run": str(run.path), "num_epochs": 1, **entry}
    if "messages" in texts[0]:
        refused(MismatchError, r"a loss on \d+ tokens there, \d+ scored here", configure(**options))
        options["p3select_check"] = "tokens"
    do_train(begun(configure(**options)), TrainerCliArgs())
    found = json.loads((tmp_path / "out" / "recorded-0.json").read_text())
    assert sorted(found["epochs"][0]) == sorted(row["input_ids"] for row in given)


@pytest.mark.slow
@pytest.mark.cell("axolotl", "example")
def test_the_example_runs(tmp_path, smollm2, minilm):
    shutil.copytree(REPOSITORY / "examples", tmp_path / "examples")
    (tmp_path / "models").symlink_to(REPOSITORY / "models")
    done = subprocess.run(
        [sys.executable, tmp_path / "examples" / "axolotl_live.py"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Epoch 2: λ = " in done.stdout
    assert done.stdout.count("  row ") == 8
