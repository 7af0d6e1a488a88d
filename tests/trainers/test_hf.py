"""What reaches the model is recorded: the token rows of every training step, stripped of padding."""

import copy
import inspect
import json
import random
import shutil
import time
from itertools import islice

import accelerate
import numpy as np
import polars as pl
import pytest
import torch
import transformers
import trl
from transformers import DataCollatorForSeq2Seq, LlamaForCausalLM

import p3select
from p3select import scores
from p3select.dataset import load
from p3select.errors import InputError, MismatchError
from p3select.trainers import hf
from tests.trainers.tiny import ACCUMULATION, BATCH, EPOCHS, ROWS, STEPS, K, select, tiny

KINDS = ("plain", "trl")
MASKED = ("input_ids", "attention_mask")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny tensors: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def embedded(data, minilm, tmp_path_factory):
    run = p3select.Run(tmp_path_factory.mktemp("embedded") / "run")
    p3select.embed(data, run, minilm)
    return run


@pytest.fixture
def live_run(embedded, tmp_path):
    """A new run folder with embeddings."""
    shutil.copytree(embedded.path, tmp_path / "run")
    return p3select.Run(tmp_path / "run")


@pytest.fixture(scope="module")
def selected(data, tokenizer, tmp_path_factory):
    """A run folder with three indices of 13 rows."""
    run = p3select.Run(tmp_path_factory.mktemp("selected") / "run")
    select(data, tokenizer, run, [K] * EPOCHS)
    return run


@pytest.fixture(scope="module")
def rows_of(data, tokenizer):
    """Token row → row number, tokenised here as TRL documents it."""
    table = pl.read_parquet(data)
    texts = [row["prompt"] + row["completion"] + tokenizer.eos_token for row in table.iter_rows(named=True)]
    return {tuple(tokenizer(text)["input_ids"]): row for row, text in enumerate(texts)}


def tokenised(dataset, tokenizer):
    """What a user of the plain Trainer does."""

    def encode(row):
        prompt = tokenizer(row["prompt"])["input_ids"]
        ids = tokenizer(row["prompt"] + row["completion"] + tokenizer.eos_token)["input_ids"]
        start = next((at for at, (a, b) in enumerate(zip(prompt, ids, strict=False)) if a != b), len(prompt))
        return {"input_ids": ids, "labels": [-100] * start + ids[start:]}

    return dataset.map(encode)


def padded(input_ids, labels, **_):
    pad = [0] * 5
    mask = [1] * len(input_ids) + pad
    return {"input_ids": input_ids + pad, "attention_mask": mask, "labels": labels + [-100] * 5}


class Recorder(transformers.TrainerCallback):
    """Per epoch, the rows that the model was trained on, in order, and the losses."""

    def __init__(self, trainer, rows_of):
        self.epochs, self.losses, self.rows_of = [], [], rows_of
        self.step = trainer.training_step
        trainer.training_step = self.training_step
        trainer.add_callback(self)

    def on_epoch_begin(self, args, state, control, **_):
        self.epochs.append([])

    def training_step(self, model, inputs, *more):
        assert model.training
        for ids, mask in zip(inputs["input_ids"].tolist(), inputs["attention_mask"].bool(), strict=True):
            self.epochs[-1].append(self.rows_of[tuple(np.array(ids)[mask.numpy()])])
        loss = self.step(model, inputs, *more)
        self.losses.append(loss.item())
        return loss


def make(kind, out, dataset, tokenizer, model=None, **options):
    options = {
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": ACCUMULATION,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "dataloader_pin_memory": False,
    } | options
    model = tiny() if model is None else model
    if kind == "trl":
        return trl.SFTTrainer(
            model=model,
            args=trl.SFTConfig(output_dir=str(out), gradient_checkpointing=False, **options),
            train_dataset=dataset,
            processing_class=tokenizer,
        )
    return transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(output_dir=str(out), **options),
        train_dataset=tokenised(dataset, tokenizer),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
    )


def indices(run, epochs=EPOCHS):
    return [pl.read_parquet(run.index(epoch))["row"].to_list() for epoch in range(1, epochs + 1)]


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


# --- index files made beforehand


@pytest.mark.cell("trl", "shuffle")
@pytest.mark.cell("trl", "order as picked")
@pytest.mark.cell("trl", "gradient accumulation, last incomplete batch")
@pytest.mark.cell("trl", "dataloader workers")
@pytest.mark.cell("trl", "learning rate of one training")
@pytest.mark.cell("trl", "max_steps")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options", "attached"),
    [
        ("plain", {}, {}),
        ("plain", {"dataloader_num_workers": 1}, {}),
        ("plain", {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}, {"shuffle": False}),
        ("trl", {}, {}),
        ("trl", {"shuffle_dataset": True}, {}),
        ("trl", {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}, {"shuffle": False}),
        ("trl", {"max_steps": EPOCHS * STEPS}, {}),
    ],
)
def test_the_rows_trained_are_those_of_the_index(kind, options, attached, selected, tokenizer, rows_of, tmp_path):
    trainer = make(kind, tmp_path, hf.dataset(selected), tokenizer, **options)
    hf.attach(trainer, selected, **attached)
    recorder = Recorder(trainer, rows_of)
    start = time.monotonic()
    trainer.train()
    took = time.monotonic() - start
    # What another training by the same indices took is not added.
    costs = [json.loads(selected.cost("train", epoch).read_text())["seconds"] for epoch in range(1, EPOCHS + 1)]
    assert 0 < sum(costs) < took
    wanted = indices(selected)
    assert len(recorder.epochs) == EPOCHS
    for trained, rows in zip(recorder.epochs, wanted, strict=True):
        assert sorted(trained) == sorted(rows)
        assert len(set(trained)) == K
        assert (trained == rows) is ("shuffle" in attached)
    batches = -(-K // trainer.args.per_device_train_batch_size)
    steps = -(-batches // trainer.args.gradient_accumulation_steps)
    assert trainer.state.global_step == trainer.state.max_steps == EPOCHS * steps
    # The schedule is that of the rows trained on: linear, and one step from 0 at the last.
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    np.testing.assert_allclose(rates, 1e-2 * (1 - np.arange(EPOCHS * steps) / (EPOCHS * steps)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_positions_are_rows_where_there_is_no_column(kind, selected, tokenizer, rows_of, tmp_path):
    trainer = make(kind, tmp_path, hf.dataset(selected).remove_columns("row"), tokenizer)
    dataset, trainer.train_dataset = trainer.train_dataset, None
    hf.attach(trainer, selected)
    # Any dataset with a length and items will do, also one that comes later.
    trainer.train_dataset = dataset if kind == "trl" else [padded(**row) for row in dataset]
    recorder = Recorder(trainer, rows_of)
    trainer.train()
    assert [sorted(trained) for trained in recorder.epochs] == [sorted(rows) for rows in indices(selected)]


@pytest.mark.slow
def test_epochs_are_shuffled_each_its_own_way(data, tokenizer, rows_of, tmp_path):
    run = p3select.Run(tmp_path / "run")
    select(data, tokenizer, run, [ROWS, ROWS])
    orders = []
    for seed in (1, 1, 2):
        trainer = make("plain", tmp_path, hf.dataset(run), tokenizer, num_train_epochs=2, data_seed=seed)
        hf.attach(trainer, run)
        recorder = Recorder(trainer, rows_of)
        trainer.train()
        orders.append(recorder.epochs)
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert len({tuple(order) for order in (*orders[0], *orders[2])}) == 4


@pytest.mark.cell("trl", "resume in the middle of an epoch")
@pytest.mark.cell("trl", "resume at an epoch's end")
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_training_goes_on_as_the_unbroken_one(kind, selected, tokenizer, rows_of, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 2}

    def start(out):
        # The weights come from the checkpoint, not from here.
        trainer = make(
            kind, out, hf.dataset(selected), tokenizer, model=tiny(seed=0 if out.name == "a" else 1), **saving
        )
        hf.attach(trainer, selected)
        return trainer, Recorder(trainer, rows_of)

    unbroken, whole = start(tmp_path / "a")
    unbroken.train()
    # Step 4 is in the middle of epoch 2, step 6 the end of it.
    for step, rest in ((4, [whole.epochs[1][BATCH * ACCUMULATION :], whole.epochs[2]]), (6, [whole.epochs[2]])):
        resumed, recorder = start(tmp_path / f"from-{step}")
        resumed.train(resume_from_checkpoint=str(tmp_path / "a" / f"checkpoint-{step}"))
        assert recorder.epochs == rest
        assert recorder.losses == whole.losses[-len(recorder.losses) :]
        assert same(weights(resumed), weights(unbroken))


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [((3, 2), (5, 1)), ((5, 1), (3, 2)), ((3, 2), (6, 1))])
def test_inside_an_epoch_a_step_has_as_many_rows_as_before(first, then, selected, tokenizer, rows_of, tmp_path):
    """13 rows are 3 steps by any of these: 14 or 12 rows would be trained."""

    def start(out, sizes, **options):
        options |= dict(zip(("per_device_train_batch_size", "gradient_accumulation_steps"), sizes, strict=True))
        trainer = make("plain", tmp_path / out, hf.dataset(selected), tokenizer, **options)
        hf.attach(trainer, selected)
        return trainer, Recorder(trainer, rows_of)

    unbroken, whole = start("a", first, save_strategy="steps", save_steps=4, max_steps=EPOCHS * STEPS)
    unbroken.train()
    resumed, recorder = start("b", then)
    checkpoint = str(tmp_path / "a" / "checkpoint-4")
    rows = first[0] * first[1], then[0] * then[1]
    if rows[0] == rows[1]:
        resumed.train(resume_from_checkpoint=checkpoint)
        assert recorder.epochs == [whole.epochs[1][rows[0] :], whole.epochs[2]]
        return
    message = rf"middle of epoch 2, with {rows[0]} rows \(or packs\) a step, and now a step has {rows[1]}: resume with"
    with pytest.raises(MismatchError, match=message):
        resumed.train(resume_from_checkpoint=checkpoint)


class Packs(torch.utils.data.BatchSampler):
    """Rows in packs of these sizes."""

    def __init__(self, sampler, sizes):
        super().__init__(sampler, BATCH, drop_last=False)
        self.sizes = sizes

    def __len__(self):
        return len(self.sizes)

    def __iter__(self):
        rows = iter(self.sampler)
        return (list(islice(rows, size)) for size in self.sizes)


@pytest.mark.slow
def test_resuming_is_refused_where_rows_are_packed_otherwise(selected, tokenizer, rows_of, tmp_path):
    def start(out, *sizes):
        trainer = make("plain", tmp_path / out, hf.dataset(selected), tokenizer, save_strategy="steps", save_steps=2)
        hf.attach(trainer, selected, batches=lambda sampler: Packs(sampler, sizes))

        def loader():
            rows = trainer.train_dataset.select_columns(["input_ids", "labels"])
            packs = trainer._get_train_sampler(rows)
            return torch.utils.data.DataLoader(rows, batch_sampler=packs, collate_fn=trainer.data_collator)

        trainer.get_train_dataloader = loader
        return trainer, Recorder(trainer, rows_of)

    unbroken, whole = start("a", 4, 3, 3, 2, 1)
    unbroken.train()
    assert [sorted(trained) for trained in whole.epochs] == [sorted(rows) for rows in indices(selected)]
    checkpoint = str(tmp_path / "a" / "checkpoint-4")
    resumed, recorder = start("b", 4, 3, 3, 2, 1)
    resumed.train(resume_from_checkpoint=checkpoint)
    assert recorder.epochs == [whole.epochs[1][4 + 3 :], whole.epochs[2]]
    resumed, _ = start("c", 4, 4, 2, 2, 1)
    with pytest.raises(MismatchError, match="packing, shuffle or the seed changed"):
        resumed.train(resume_from_checkpoint=checkpoint)


@pytest.mark.slow
def test_resuming_is_refused_where_it_would_train_other_rows(selected, data, tokenizer, tmp_path):
    run = p3select.Run(shutil.copytree(selected.path, tmp_path / "run"))
    saving = {"save_strategy": "steps", "save_steps": 4, "max_steps": EPOCHS * STEPS}
    hf.attach(trainer := make("plain", tmp_path / "a", hf.dataset(run), tokenizer, **saving), run)
    trainer.train()
    checkpoint = str(tmp_path / "a" / "checkpoint-4")

    def resume(attached=None, checkpoint=checkpoint, **options):
        trainer = make("plain", tmp_path / "b", hf.dataset(run), tokenizer, **(saving | {"max_steps": -1} | options))
        hf.attach(trainer, run, **(attached or {}))
        trainer.train(resume_from_checkpoint=checkpoint)

    with pytest.raises(MismatchError, match="shuffle or the seed changed"):
        resume({"shuffle": False})
    with pytest.raises(MismatchError, match="shuffle or the seed changed"):
        resume(data_seed=7)
    with pytest.raises(MismatchError, match="epochs have 3 steps, these 2"):
        resume(per_device_train_batch_size=4)
    with pytest.raises(InputError, match="ignore_data_skip"):
        resume(ignore_data_skip=True)
    drawn = {"epochs": 3, "budget": K, "pace": "constant:100", "selector": "uniform", "seed": 99, "overwrite": True}
    first, second = (run.index(epoch).read_bytes() for epoch in (1, 2))
    p3select.select(run, epoch=1, **drawn)
    with pytest.raises(MismatchError, match=r"epoch-001\.parquet: not the rows that the checkpoint was trained on"):
        resume()
    run.index(1).write_bytes(first)
    p3select.select(run, epoch=2, **drawn)
    with pytest.raises(MismatchError, match=r"epoch-002\.parquet: not the rows"):
        resume()
    run.index(2).write_bytes(second)
    for name in ("optimizer.pt", "scheduler.pt"):
        shutil.copytree(checkpoint, tmp_path / name / "checkpoint-4")
        (tmp_path / name / "checkpoint-4" / name).unlink()
        with pytest.raises(MismatchError, match=rf"{name}/checkpoint-4: the checkpoint has no optimizer or schedule"):
            resume(checkpoint=str(tmp_path / name / "checkpoint-4"))
    plain = make("plain", tmp_path / "c", hf.dataset(run), tokenizer, **(saving | {"max_steps": 4}))
    plain.train()
    with pytest.raises(MismatchError, match="without p3select"):
        resume(checkpoint=str(tmp_path / "c" / "checkpoint-4"))


@pytest.mark.slow
def test_a_schedule_that_has_not_moved_is_resumed(selected, tokenizer, rows_of, tmp_path):
    """Before the first evaluation a schedule that goes by it is what it was at the beginning."""

    def start(out, **options):
        trainer = make("plain", tmp_path / out, hf.dataset(selected), tokenizer, **options)
        trainer.args.lr_scheduler_type = "reduce_lr_on_plateau"
        hf.attach(trainer, selected)
        return trainer, Recorder(trainer, rows_of)

    unbroken, whole = start("a", save_strategy="steps", save_steps=4)
    unbroken.train()
    assert unbroken.lr_scheduler.last_epoch == 0
    resumed, recorder = start("b")
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-4"))
    assert recorder.epochs == [whole.epochs[1][BATCH * ACCUMULATION :], whole.epochs[2]]
    assert same(weights(resumed), weights(unbroken))


def test_the_time_of_an_epoch_that_was_stopped_is_not_recorded(selected, tokenizer, tmp_path):
    class Stop(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_training_stop = state.global_step == STEPS + 1

    trainer = make("trl", tmp_path, hf.dataset(selected), tokenizer)
    hf.attach(trainer, selected)
    selected.spend("train", 2, 1.0)  # by a training before
    trainer.add_callback(Stop())
    trainer.train()
    assert trainer.state.global_step == STEPS + 1
    assert selected.cost("train", 1).is_file()
    assert not selected.cost("train", 2).exists()


def test_an_epoch_set_on_the_loader_changes_no_rows(selected, tokenizer, tmp_path):
    """A loader that skips batches after resuming sets its sampler's epoch: to 0 with some versions of accelerate."""
    trainer = make("plain", tmp_path, hf.dataset(selected), tokenizer)
    hf.attach(trainer, selected, shuffle=False)
    loader = trainer.get_train_dataloader()
    attached = trainer.callback_handler.callbacks[-1]
    rows, expected = trainer.train_dataset["input_ids"], indices(selected)
    for epoch in range(EPOCHS):
        attached.on_epoch_begin(trainer.args, trainer.state, trainer.control)
        for skipped in (0, 2):
            rest = accelerate.skip_first_batches(loader, skipped)
            for each in (loader, rest):
                each.set_epoch(0)
            found = [
                ids[mask.bool()].tolist() for batch in rest for ids, mask in zip(*map(batch.get, MASKED), strict=True)
            ]
            assert found == [rows[row] for row in expected[epoch][skipped * BATCH :]]


# --- live


LIVE = {"budget": K, "pace": "linear:50:95", "max_length": 256}


class Keeper(transformers.TrainerCallback):
    """The weights with which each epoch begins, and the random states after attach's own work."""

    def __init__(self, trainer, folder):
        self.trainer, self.folder, self.epoch = trainer, folder, 0
        trainer.add_callback(self)

    def on_epoch_begin(self, args, state, control, **_):
        self.epoch += 1
        self.trainer.model.save_pretrained(self.folder / f"weights-{self.epoch}")


@pytest.mark.cell("trl", "live selection")
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_live_selection_is_that_of_the_saved_weights(kind, live_run, embedded, data, tokenizer, rows_of, tmp_path):
    trainer = make(kind, tmp_path / "out", hf.dataset(live_run), tokenizer)
    hf.attach(trainer, live_run, **LIVE)
    recorder, keeper = Recorder(trainer, rows_of), Keeper(trainer, tmp_path)
    trainer.train()
    chosen = indices(live_run)
    assert [sorted(trained) for trained in recorder.epochs] == [sorted(rows) for rows in chosen]
    assert len({frozenset(rows) for rows in chosen}) == EPOCHS
    other = p3select.Run(shutil.copytree(embedded.path, tmp_path / "other"))
    for epoch in range(1, EPOCHS + 1):
        folder = keeper.folder / f"weights-{epoch}"
        tokenizer.save_pretrained(folder)
        p3select.score(data, other, folder, epoch=epoch, max_length=256)
        p3select.select(other, epoch=epoch, epochs=EPOCHS, budget=K, pace=LIVE["pace"])
        one, two = scores.read(live_run, epoch), scores.read(other, epoch)
        for column in ("difficulty", "logprob"):
            np.testing.assert_allclose(one[column], two[column], atol=1e-5, rtol=1e-6)
        assert chosen[epoch - 1] == pl.read_parquet(other.index(epoch))["row"].to_list()
    # The weights did move.
    spread = [
        np.abs(scores.read(other, 1)["logprob"].to_numpy() - scores.read(other, e)["logprob"]).max() for e in (2, 3)
    ]
    assert min(spread) > 1


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_live_with_an_adapter(precision, live_run, embedded, data, tokenizer, rows_of, tmp_path):
    peft = pytest.importorskip("peft")
    tiny().save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    base = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    trainer = make("trl", tmp_path, hf.dataset(live_run), tokenizer, model=model, bf16=precision == "bfloat16")
    hf.attach(trainer, live_run, **LIVE)
    recorder, keeper = Recorder(trainer, rows_of), Keeper(trainer, tmp_path)
    trainer.train()
    assert [sorted(trained) for trained in recorder.epochs] == [sorted(rows) for rows in indices(live_run)]
    other = tmp_path / "other"
    p3select.score(data, other, tmp_path / "base", adapter=keeper.folder / "weights-3", epoch=3, max_length=256)
    one, two, before = (
        scores.read(run, epoch)["logprob"].to_numpy()
        for run, epoch in ((live_run, 3), (p3select.Run(other), 3), (live_run, 1))
    )
    # A trainer with bf16=True scores as it trains: under autocast.
    np.testing.assert_allclose(one, two, rtol=1e-6 if precision == "float32" else 1e-3)
    assert np.abs(one - before).max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_live_with_all_rows_is_the_plain_training(kind, live_run, tokenizer, rows_of, tmp_path):
    live = make(kind, tmp_path, hf.dataset(live_run), tokenizer)
    hf.attach(live, live_run, budget="100%", pace="constant:100", selector="topk", shuffle=False)
    recorder = Recorder(live, rows_of)
    live.train()
    orders = indices(live_run)
    assert [sorted(order) for order in orders] == [list(range(ROWS))] * EPOCHS
    assert recorder.epochs == orders

    plain = make(kind, tmp_path, hf.dataset(live_run), tokenizer)
    pending = list(orders)

    class Replay:
        def __len__(self):
            return ROWS

        def __iter__(self):
            return iter(pending.pop(0))

    plain._get_train_sampler = lambda *_: Replay()
    reference = Recorder(plain, rows_of)
    plain.train()
    assert reference.epochs == orders
    # Dropout is drawn from the same random states: scoring left no trace.
    assert recorder.losses == reference.losses
    assert same(weights(live), weights(plain))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_live_resumes_as_the_unbroken_training(kind, live_run, tokenizer, rows_of, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 2}

    def start(out, run, **attached):
        trainer = make(kind, tmp_path / out, hf.dataset(run), tokenizer, **saving)
        hf.attach(trainer, run, **(LIVE | attached))
        return trainer, Recorder(trainer, rows_of)

    unbroken, whole = start("a", live_run)
    unbroken.train()
    files = {path: path.read_bytes() for path in live_run.path.rglob("*.parquet")}
    middle, end = (str(tmp_path / "a" / f"checkpoint-{step}") for step in (4, 6))

    # In the middle of epoch 2: its index is kept; what there is of epoch 3 is refused, or made again.
    trainer, recorder = start("b", live_run)
    with pytest.raises(MismatchError, match=r"index of epoch 3, left by an earlier training.*overwrite=True"):
        trainer.train(resume_from_checkpoint=middle)
    trainer, recorder = start("c", live_run, overwrite=True)
    trainer.train(resume_from_checkpoint=middle)
    assert recorder.epochs == [whole.epochs[1][BATCH * ACCUMULATION :], whole.epochs[2]]
    assert same(weights(trainer), weights(unbroken))
    # At the end of epoch 2: the scores of epoch 3 are of the same weights and serve again.
    trainer, recorder = start("d", live_run)
    trainer.train(resume_from_checkpoint=end)
    assert recorder.epochs == [whole.epochs[2]]
    assert same(weights(trainer), weights(unbroken))
    assert files == {path: path.read_bytes() for path in live_run.path.rglob("*.parquet")}

    for epoch in (3,):
        live_run.index(epoch).unlink()
        shutil.rmtree(live_run.scores(epoch))
    trainer, _ = start("e", live_run, quality_weight=3.0, actions="whole")
    with pytest.raises(MismatchError, match=r"quality_weight 1\.0, actions 'line'"):
        trainer.train(resume_from_checkpoint=middle)
    live_run.index(2).unlink()
    trainer, _ = start("f", live_run)
    with pytest.raises(MismatchError, match=r"epoch-002\.parquet: is gone"):
        trainer.train(resume_from_checkpoint=middle)


EVERY = {
    "difficulty": "nll",
    "quality": "easier",
    "quality_weight": 0.5,
    "fresh": 0.25,
    "selector": "dpp",
    "similarity": "cauchy",
    "scale": 0.5,
    "whiten": True,
    "at_most": 8,
    "per": "level_label",
    "share": "level_label=3 calc steps:40%",
    "include": np.array([3, 4]),
    "exclude": [0, 1],
    "seed": 5,
    "actions": "whole",
    "max_length": 200,
    "truncate": "skip",
}


@pytest.mark.slow
@pytest.mark.parametrize("options", [EVERY, {"selector": "topk"}], ids=["every option", "a selector without a kernel"])
def test_live_with_any_option_resumes_in_the_middle_of_an_epoch(options, live_run, tokenizer, rows_of, tmp_path):
    def start(out, **changed):
        trainer = make("plain", tmp_path / out, hf.dataset(live_run), tokenizer, **saving)
        hf.attach(trainer, live_run, **(LIVE | {"pace": "constant:100"} | options | changed))
        return trainer, Recorder(trainer, rows_of)

    saving = {"save_strategy": "steps", "save_steps": 4, "num_train_epochs": 2}
    unbroken, whole = start("a")
    unbroken.train()
    (tmp_path / "rows.txt").write_text("1\n0\n")
    checkpoint = str(tmp_path / "a" / "checkpoint-4")
    # The same rows, listed otherwise.
    resumed, recorder = start("b", **({"exclude": str(tmp_path / "rows.txt")} if "exclude" in options else {}))
    resumed.train(resume_from_checkpoint=checkpoint)
    assert recorder.epochs == [whole.epochs[1][BATCH * ACCUMULATION :]]
    resumed, _ = start("c", exclude=[0, 2])
    with pytest.raises(MismatchError, match=r"made with other settings \(exclude "):
        resumed.train(resume_from_checkpoint=checkpoint)


@pytest.mark.slow
def test_what_an_earlier_training_left_is_refused(live_run, tokenizer, tmp_path):
    def start(seed=0, **attached):
        trainer = make("plain", tmp_path / "out", hf.dataset(live_run), tokenizer, model=tiny(seed), num_train_epochs=2)
        hf.attach(trainer, live_run, **(LIVE | attached))
        return trainer

    start().train()
    first = live_run.index(1).read_bytes()
    with pytest.raises(MismatchError, match="index of epoch 2, left by an earlier training"):
        start().train()
    live_run.index(2).unlink()
    shutil.rmtree(live_run.scores(2))
    with pytest.raises(MismatchError, match=r"holds the work of another training for epoch 1.*model"):
        start(seed=1).train()
    with pytest.raises(MismatchError, match=r"holds the work of another training for epoch 1.*budget"):
        start(budget=12).train()
    assert live_run.index(1).read_bytes() == first
    start(seed=1, overwrite=True).train()
    assert live_run.index(1).read_bytes() != first


@pytest.mark.slow
def test_too_few_eligible_rows_are_an_error(live_run, tokenizer, tmp_path):
    trainer = make("plain", tmp_path, hf.dataset(live_run), tokenizer)
    hf.attach(trainer, live_run, **(LIVE | {"budget": 25}))
    with pytest.raises(InputError, match=r"epoch 1: 20 rows are eligible at pace 'linear:50:95', 5 fewer"):
        trainer.train()
    assert trainer.state.global_step == 0
    # A smaller budget is not in the way of the scores, nor of the index that came out too short.
    trainer = make("plain", tmp_path, hf.dataset(live_run), tokenizer, num_train_epochs=3)
    hf.attach(trainer, live_run, **(LIVE | {"budget": "50%"}))
    trainer.train()
    assert [len(rows) for rows in indices(live_run)] == [20] * 3


def draw():
    return random.random(), np.random.random(), torch.rand(1).item()  # noqa: NPY002


def drawing(embeddings, quality, k):
    """A selector that draws from the generators that training draws from."""
    draw()
    return np.arange(k), np.ones(k)


def test_selecting_leaves_modes_and_random_states_as_they_were(live_run, tokenizer, tmp_path):
    trainer = make("plain", tmp_path, hf.dataset(live_run), tokenizer)
    hf.attach(trainer, live_run, **(LIVE | {"selector": drawing}))
    attached = trainer.callback_handler.callbacks[-1]
    modules = list(trainer.model.train().modules())
    trainer.model.model.layers[1].eval()
    modes = [module.training for module in modules]
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules]

    def seed():
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)

    seed()
    wanted = draw()
    seed()
    attached.source.begin(1)
    attached.source.rows(1, resumed=False)
    assert draw() == wanted
    assert [module.training for module in modules] == modes
    assert [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules] == hooks
    assert all(parameter.grad is None and parameter.requires_grad for parameter in trainer.model.parameters())


# --- the train dataset


@pytest.mark.cell("trl", "a dropped row")
@pytest.mark.slow
def test_rows_that_the_trainer_dropped_are_named(selected, tokenizer, tmp_path):
    first, second = indices(selected)[1][:2]
    dataset = hf.dataset(selected).filter(lambda row: row["row"] not in (first, second))
    trainer = make("trl", tmp_path, dataset, tokenizer)
    hf.attach(trainer, selected, shuffle=False)
    with pytest.raises(
        InputError, match=rf"of 13 selected rows are not in the trainer's train_dataset \(row .*{first}"
    ):
        trainer.train()


@pytest.mark.slow
def test_rows_that_live_selection_could_pick_are_named_before_it(live_run, tokenizer, rows_of, tmp_path):
    lengths = {row: len(ids) for ids, row in rows_of.items()}
    longest = max(lengths, key=lengths.get)
    rows = hf.dataset(live_run).filter(lambda row: row["row"] not in (7, longest))

    def start(**options):
        trainer = make("plain", tmp_path, rows, tokenizer, num_train_epochs=1)
        hf.attach(trainer, live_run, **(LIVE | options))
        return trainer

    listed = ", ".join(map(str, sorted((7, longest))))
    with pytest.raises(InputError, match=rf"^2 rows that could be selected .*\(row {listed}\).* exclude"):
        start().train()
    # One that has no score will not be picked.
    settings = {"max_length": lengths[longest] - 1, "truncate": "skip"}
    with pytest.raises(InputError, match=r"^1 rows that could be selected .*\(row 7\)"):
        start(**settings).train()
    assert not live_run.scores(1).exists()
    trainer = start(**settings, exclude=[7])
    trainer.train()
    assert trainer.state.global_step == STEPS


@pytest.mark.cell("trl", "tokens as they were scored")
@pytest.mark.slow
@pytest.mark.parametrize("live", [False, True])
def test_rows_that_are_not_the_runs_are_named(live, selected, live_run, tokenizer, tmp_path):
    run, options = (live_run, LIVE) if live else (selected, {})
    wanted = indices(selected)[0][0]
    rows = hf.dataset(run)

    def refused(match, kind="plain", dataset=rows, check="loss", **settings):
        trainer = make(kind, tmp_path, dataset, tokenizer, **settings)
        hf.attach(trainer, run, check=check, **options)
        with pytest.raises(MismatchError, match=match):
            trainer.train()

    moved = rows.map(lambda row: {"row": (row["row"] + 1) % ROWS})
    refused(rf"row {'0' if live else wanted}: .*token 0 is '", dataset=moved)
    refused(r"its prompt is, from character \d+, '", dataset=moved, check="text")
    refused(r"row \d+: .*token \d+ is '", dataset=rows.remove_columns("row").shuffle(seed=1))
    refused(r"row \d+: .*60 tokens there, \d+ here; another max_length", "trl", max_length=60)
    refused(
        r"row \d+: .*a loss on \d+ tokens there, \d+ scored here; set completion_only",
        "trl",
        completion_only_loss=False,
    )
    changed = rows.map(lambda row: {"completion": row["completion"] + "!"} if row["row"] == wanted else row)
    refused(rf"row {wanted}: .*(token|tokens there)", "trl", dataset=changed)
    refused(
        rf"row {wanted}: .* its completion is, from character \d+, '!<.im_end.>' there, '' here",
        "trl",
        dataset=changed,
        check="text",
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("check", "kind", "settings"),
    [("tokens", "trl", {"completion_only_loss": False}), ("text", "trl", {"max_length": 250}), ("none", "plain", {})],
)
def test_a_weaker_check_lets_pass_what_it_does_not_look_at(check, kind, settings, selected, tokenizer, tmp_path):
    rows = hf.dataset(selected)
    if check == "none":
        rows = rows.map(lambda row: {"completion": "no"})
    trainer = make(kind, tmp_path, rows, tokenizer, **settings)
    hf.attach(trainer, selected, check=check)
    trainer.train()
    assert trainer.state.global_step == EPOCHS * STEPS


def test_what_cannot_be_compared_needs_another_check(selected, tokenizer, tmp_path):
    def refused(match, columns, **options):
        trainer = make("plain", tmp_path, hf.dataset(selected), tokenizer, remove_unused_columns=False)
        trainer.train_dataset = trainer.train_dataset.select_columns(columns)
        if "tokenizer" in options:
            trainer.processing_class = options.pop("tokenizer")
        hf.attach(trainer, selected, **options)
        with pytest.raises(InputError, match=match):
            trainer.train()

    refused("has no labels .*check='tokens'", ["row", "input_ids"])
    refused("has no input_ids and no labels .*check='text'", ["row", "prompt"])
    refused("has no prompt and no completion .*check='none'", ["row", "input_ids"], check="text")
    refused("give attach a tokenizer", ["row", "input_ids", "labels"], tokenizer=None)


CHATML = (
    "{% for turn in messages %}{{ '<|im_start|>' + turn['role'] + '\n' }}{% if turn['role'] == 'assistant' %}"
    "{% generation %}{{ turn['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ turn['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.slow
@pytest.mark.parametrize("column", ["prompt", "messages"])
def test_conversations(column, data, tokenizer, tmp_path):
    tokenizer = copy.deepcopy(tokenizer)
    table = pl.read_parquet(data)
    asked, answered = (
        [[{"role": role, "content": text}] for text in table[name]]
        for role, name in (("user", "prompt"), ("assistant", "completion"))
    )
    both = [one + other for one, other in zip(asked, answered, strict=True)]
    rows = {"prompt": asked, "completion": answered} if column == "prompt" else {"messages": both}
    options = {}
    if column == "messages":
        tokenizer.chat_template, options = CHATML, {"assistant_only_loss": True}
    path = tmp_path / "chat.parquet"
    pl.DataFrame(rows).write_parquet(path)
    run = p3select.Run(tmp_path / "run")
    select(path, tokenizer, run, [K] * EPOCHS)
    dataset = hf.dataset(run)
    assert dataset.column_names == ["row", *rows]
    assert dataset[7] == {"row": 7} | {name: values[7] for name, values in rows.items()}

    trainer = make("trl", tmp_path / "out", dataset, tokenizer, **options)
    hf.attach(trainer, run)
    texts = [tokenizer.apply_chat_template(turns, tokenize=False) for turns in both]
    recorder = Recorder(trainer, {tuple(tokenizer(text)["input_ids"]): row for row, text in enumerate(texts)})
    trainer.train()
    assert [sorted(trained) for trained in recorder.epochs] == [sorted(rows) for rows in indices(run)]

    live = p3select.Run(tmp_path / "live")
    live.bind(load(path))
    trainer = make("trl", tmp_path / "out", dataset, tokenizer, **options)
    hf.attach(trainer, live, budget=K, pace="linear:50:95", selector="topk", max_length=300)
    recorder = Recorder(trainer, recorder.rows_of)
    Keeper(trainer, tmp_path)
    trainer.train()
    chosen = indices(live)
    assert [sorted(trained) for trained in recorder.epochs] == [sorted(rows) for rows in chosen]
    assert len({frozenset(rows) for rows in chosen}) == EPOCHS
    tokenizer.save_pretrained(tmp_path / "weights-3")
    other = p3select.Run(tmp_path / "other")
    p3select.score(path, other, tmp_path / "weights-3", epoch=3, max_length=300)
    one, two = scores.read(live, 3), scores.read(other, 3)
    np.testing.assert_allclose(one["difficulty"], two["difficulty"], atol=1e-5, rtol=1e-6)
    assert one["tokens"].to_pylist() == two["tokens"].to_pylist()

    tokenizer.chat_template = CHATML.replace("turn['role'] +", "turn['role'] + ':' +")
    trainer = make("trl", tmp_path / "out", dataset, tokenizer, **options)
    hf.attach(trainer, run)
    with pytest.raises(MismatchError, match="was scored with another chat template"):
        trainer.train()
    if column == "messages":
        tokenizer.chat_template = CHATML
        trainer = make("trl", tmp_path / "out", dataset, tokenizer)
        hf.attach(trainer, run)
        with pytest.raises(MismatchError, match="assistant_only_loss=True"):
            trainer.train()


def test_the_dataset_has_all_rows_and_their_numbers(selected, data):
    rows = hf.dataset(str(selected.path))
    table = pl.read_parquet(data)
    assert rows.column_names == ["row", "prompt", "completion"]
    assert rows["row"][:] == list(range(ROWS))
    assert rows["prompt"][:] == table["prompt"].to_list()
    assert rows["completion"][:] == table["completion"].to_list()


def test_the_dataset_has_what_some_rows_have(tmp_path):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [{"messages": turns}, {"messages": turns, "tools": "[]", "chat_template_kwargs": {"think": True}}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = p3select.Run(tmp_path / "run")
    run.bind(load(path))
    made = hf.dataset(run)
    assert made["tools"][:] == [None, "[]"]
    # Not null, which TRL could not take.
    assert made["chat_template_kwargs"][:] == [{"think": None}, {"think": True}]


# --- a run of the trainer for each epoch


def one_epoch(out, run, tokenizer, epoch, total, resume=None, **options):
    options = {"max_steps": total, "ignore_data_skip": epoch > 1} | options
    trainer = make("trl", out, hf.dataset(run), tokenizer, model=tiny(seed=epoch - 1), **options)
    hf.attach(trainer, run, epoch=epoch)
    return trainer


@pytest.mark.cell("trl", "epochs of different sizes, a run for each")
@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(K, 7, 11), (4, 13, 2), (K, K, K)])
def test_a_run_for_each_epoch_is_one_training(sizes, data, tokenizer, rows_of, tmp_path):
    run = p3select.Run(tmp_path / "run")
    select(data, tokenizer, run, sizes)
    steps = [hf.steps_per_epoch(k, BATCH, 1, ACCUMULATION) for k in sizes]
    rates, losses, resume = [], [], None
    for epoch, rows in enumerate(indices(run), start=1):
        trainer = one_epoch(tmp_path / "out", run, tokenizer, epoch, sum(steps))
        recorder = Recorder(trainer, rows_of)
        trainer.train(resume_from_checkpoint=resume)
        assert [sorted(trained) for trained in recorder.epochs] == [sorted(rows)]
        losses += recorder.losses
        assert trainer.state.global_step == sum(steps[:epoch])
        resume = str(tmp_path / "out" / f"checkpoint-{trainer.state.global_step}")
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    np.testing.assert_allclose(rates, 1e-2 * (1 - np.arange(sum(steps)) / sum(steps)))
    if len(set(sizes)) == 1:
        # Rows, optimizer, rates and random states are those of a single process.
        whole = make("trl", tmp_path / "whole", hf.dataset(run), tokenizer)
        hf.attach(whole, run)
        recorder = Recorder(whole, rows_of)
        whole.train()
        assert recorder.losses == losses
        assert same(weights(whole), weights(trainer))


@pytest.mark.slow
def test_an_epoch_begins_only_where_the_one_before_ended(data, tokenizer, tmp_path):
    run = p3select.Run(tmp_path / "run")
    select(data, tokenizer, run, (K, 7, 11))
    first = one_epoch(tmp_path / "out", run, tokenizer, 1, 7, save_strategy="steps", save_steps=2)
    first.train()
    middle, end = (str(tmp_path / "out" / f"checkpoint-{step}") for step in (2, 3))

    def refused(error, match, epoch, resume, **options):
        with pytest.raises(error, match=match):
            one_epoch(tmp_path / "b", run, tokenizer, epoch, **{"total": 7, **options}).train(
                resume_from_checkpoint=resume
            )

    refused(MismatchError, "epoch 2 begins where epoch 1 ended, .* stands at the beginning", 2, None)
    refused(MismatchError, "stands at step 2 of epoch 1: resume", 2, middle)
    refused(MismatchError, "stands at step 2 of epoch 1: resume", 1, middle)
    refused(MismatchError, "epoch 3 begins where epoch 2 ended, .* stands at step 3 of epoch 1", 3, end)
    refused(InputError, "ignore_data_skip=False would leave out", 2, end, ignore_data_skip=False)
    refused(InputError, "max_steps=4: 3 steps are done, and epoch 2 has 2", 2, end, total=4)
    refused(InputError, "epoch: set max_steps", 1, None, total=-1)
    refused(InputError, "save_only_model=True: the next epoch needs", 1, None, save_only_model=True)
    (tmp_path / "out" / "checkpoint-3" / "scheduler.pt").unlink()
    refused(MismatchError, "the checkpoint has no optimizer or schedule", 2, end)
    with pytest.raises(InputError, match="a single epoch is trained from its index"):
        hf.attach(make("plain", tmp_path / "c", hf.dataset(run), tokenizer), run, epoch=1, budget=5)


# --- refusals


@pytest.mark.cell("trl", "epochs of different sizes (refused)")
@pytest.mark.cell("trl", "other rows, or another run's index")
def test_indices_that_do_not_fit_are_refused(selected, data, tokenizer, tmp_path):
    rows = hf.dataset(selected)

    def refused(error, match, run, **options):
        trainer = make("plain", tmp_path / "out", rows, tokenizer, **options)
        with pytest.raises(error, match=match):
            hf.attach(trainer, run)

    uneven = p3select.Run(tmp_path / "uneven")
    select(data, tokenizer, uneven, [13, 12, 13])
    refused(InputError, "the epochs have 13, 12, 13 rows.*same budget", uneven)
    uneven.index(3).unlink()
    refused(InputError, r"epoch-003\.parquet: no index there", uneven)
    refused(
        MismatchError, "for epoch 1 of 3, and the trainer is to use it for epoch 1 of 2", selected, num_train_epochs=2
    )
    refused(InputError, r"num_train_epochs=1\.5", selected, num_train_epochs=1.5)
    refused(InputError, "no run folder", tmp_path / "nowhere")

    swapped = p3select.Run(shutil.copytree(selected.path, tmp_path / "swapped"))
    shutil.copy(swapped.index(1), swapped.index(2))
    refused(MismatchError, "for epoch 1 of 3, and the trainer is to use it for epoch 2", swapped)

    part = tmp_path / "part.parquet"
    pl.read_parquet(data)[:30].write_parquet(part)
    other = p3select.Run(tmp_path / "other")
    select(part, tokenizer, other, [K] * EPOCHS)
    refused(MismatchError, "column 'row' has 30, 31, 32, 33, 34, …; the run has rows 0 to 29", other)
    shutil.copy(selected.index(3), other.index(3))
    refused(MismatchError, r"epoch-003\.parquet: of other data", other)


@pytest.mark.cell("trl", "packing (refused)")
def test_trainers_that_cannot_do_it_are_refused(selected, live_run, tokenizer, tmp_path, monkeypatch):
    rows = hf.dataset(selected)

    def refused(match, kind="plain", attached=None, **options):
        trainer = make(kind, tmp_path, rows, tokenizer, **options)
        with pytest.raises(InputError, match=match):
            hf.attach(trainer, selected, **(attached or {}))

    refused("packing=True: TRL merges rows", "trl", packing=True, packing_strategy="wrapped", max_length=64)
    refused("group_by_length", train_sampling_strategy="group_by_length")
    refused("train_sampling_strategy='sequential'", train_sampling_strategy="sequential")
    refused("13 rows in batches of 3 leave the last 1 untrained", dataloader_drop_last=True)
    refused("max_steps=10: 3 epochs of 13 rows are 9 steps", max_steps=10)
    refused("auto_find_batch_size", auto_find_batch_size=True)
    refused("check 'some'", attached={"check": "some"})
    refused(
        "pace, include, overwrite: for live selection, which needs a budget",
        attached={"pace": "constant:100", "include": np.arange(2), "overwrite": True},
    )
    with pytest.raises(InputError, match="a str, not a transformers"):
        hf.attach("trainer", selected)
    trainer = make("plain", tmp_path, rows, tokenizer)
    hf.attach(trainer, selected)
    with pytest.raises(InputError, match="attached to a run already"):
        hf.attach(trainer, selected)
    trainer = make("plain", tmp_path, rows, tokenizer)
    with monkeypatch.context() as changed:
        changed.setattr(type(trainer.args), "world_size", 2)
        with pytest.raises(InputError, match="2 processes"):
            hf.attach(trainer, selected)
    monkeypatch.delattr(transformers.Trainer, "_get_train_sampler")
    with pytest.raises(
        InputError, match=rf"transformers {transformers.__version__}: its Trainer has no .* from 5\.6 to"
    ):
        hf.attach(trainer, selected)


def test_trainers_that_were_changed_after_attach_are_refused(selected, tokenizer, tmp_path):
    def refused(match, change):
        trainer = make("plain", tmp_path, hf.dataset(selected), tokenizer)
        hf.attach(trainer, selected)
        change(trainer)
        with pytest.raises(InputError, match=match):
            trainer.train()

    refused("about to make 6 steps", lambda trainer: setattr(trainer.args, "num_train_epochs", 2))
    refused("dataloader_drop_last", lambda trainer: setattr(trainer.args, "dataloader_drop_last", True))
    loader = torch.utils.data.DataLoader(range(K), batch_size=BATCH)
    refused("about to make 9 steps", lambda trainer: setattr(trainer, "get_train_dataloader", lambda: loader))


def test_train_datasets_without_known_rows_are_refused(selected, tokenizer, tmp_path):
    rows = hf.dataset(selected)

    def refused(match, dataset, kind="plain", **options):
        trainer = make(kind, tmp_path, rows if kind == "plain" else dataset, tokenizer, **options)
        if kind == "plain":
            trainer.train_dataset = dataset
        with pytest.raises((InputError, MismatchError), match=match):
            hf.attach(trainer, selected)

    unnumbered = rows.remove_columns("row")
    refused("IterableDataset cannot be read by row", rows.to_iterable_dataset())
    refused("39 rows without a column 'row', and the run has 40", unnumbered.select(range(39)))
    refused("shuffle_dataset=True: which is which", unnumbered, "trl", shuffle_dataset=True)
    refused("column 'row' has 0 more than once", rows.select([0, 0, 1]))
    refused("column 'row' has a, a", rows.select([0, 0]).remove_columns("row").add_column("row", ["a", "a"]))


def test_live_options_are_refused_before_training(selected, live_run, tokenizer, tmp_path):
    trainer = make("plain", tmp_path, hf.dataset(selected), tokenizer)

    def refused(match, run=live_run, **options):
        with pytest.raises(InputError, match=match):
            hf.attach(trainer, run, **options)

    refused("no embeddings", selected, budget=K)
    refused("pace 'fast'", budget=K, pace="fast")
    refused("'hard'", budget=K, difficulty="hard")
    refused("'hardest'", budget=K, quality="hardest")
    refused("'word'", budget=K, actions="word")
    refused("truncate", budget=K, truncate="middle")
    refused("max_length", budget=K, max_length=1)
    refused("no selector 'best'", budget=K, selector="best")
    refused("budget '0%'", budget="0%")
    refused("budget 41", budget=41)
    refused("include: row 40 is not there", budget=K, include=[40])
    refused(r"nowhere\.txt: no such file", budget=K, exclude="nowhere.txt")
    trainer.processing_class = None
    refused("needs the model's tokenizer", budget=K)


def test_the_defaults_are_those_of_score_and_select():
    own = inspect.signature(hf.attach).parameters
    for function in (p3select.select, p3select.score):
        for name, parameter in inspect.signature(function).parameters.items():
            if name in own and name not in ("run", "budget", "epoch"):
                assert parameter.default == own[name].default, name
