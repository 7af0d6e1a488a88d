"""transformers' Trainer and TRL's SFTTrainer, trained in epoch e on exactly the rows of index e, each once.

:func:`attach` puts a sampler of its own into the trainer, whose length is the number of rows of an epoch, so that
steps, learning rates and resuming come out right, and a callback that gives it the rows when an epoch begins. The
callback counts the epochs: what a data loader is told by ``set_epoch`` is not reliable after resuming.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import logging
import math
import os
import random
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
import transformers

from p3select import (
    constraints,
    difficulties,
    embeddings,
    fingerprints,
    index,
    kernel,
    paces,
    scores,
    selection,
    selectors,
    tokenised,
    tokens,
)
from p3select.errors import InputError, MismatchError, MissingLibraryError
from p3select.run import Run
from p3select.scorers.transformers import TransformersScorer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from p3select.index import Selection
    from p3select.tokens import TokenRow

# Of transformers: the oldest and the newest that this was run with. What is replaced of Trainer is no public interface.
VERSIONS = ("5.6", "5.23")
REPLACED = ("_get_train_sampler", "_load_optimizer_and_scheduler")
CHECKS = ("loss", "tokens", "text", "none")
# Rows compared at a time.
BLOCK_ROWS = 1024
# Where a checkpoint's trainer_state.json holds what resuming is checked by.
_KEY = "p3select"

_logger = logging.getLogger(__name__)


def attach(
    trainer: Any,
    run: Run | str | Path,
    *,
    shuffle: bool = True,
    check: str = "loss",
    tokenizer: Any = None,
    rows: Sequence[int] | NDArray[np.int64] | None = None,
    batches: Callable[[Any], Any] | None = None,
    epoch: int | None = None,
    budget: int | str | None = None,
    pace: str = "linear:50:95",
    difficulty: str = "p3",
    quality: str = "harder",
    quality_weight: float = 1.0,
    fresh: float = 0.0,
    selector: str | Callable[..., Any] = "auto",
    similarity: str = "gaussian",
    scale: float | None = None,
    whiten: bool = False,
    at_most: int | None = None,
    per: str | None = None,
    share: str | None = None,
    include: str | Path | Sequence[int] | None = None,
    exclude: str | Path | Sequence[int] | None = None,
    seed: int = 0,
    actions: str = "line",
    max_length: int | None = None,
    truncate: str = "keep-start",
    overwrite: bool = False,
    show_progress: bool = False,
) -> None:
    """Make a trainer train, in each epoch, on exactly the rows of that epoch's index, each once.

    Without a ``budget``, the index files of all epochs must be there. With one, an epoch's rows are selected when
    it begins, with the model in training: the trainer's own model, not a copy of it, scores all rows of the run
    (in evaluation mode, without a trace in the states of the random generators), and :func:`p3select.select` makes
    the index.

    All epochs have the same number of rows, since a trainer fixes its steps and learning rates at the start.
    A training that is resumed from a checkpoint, in the middle of an epoch or at its end, goes on with the rows
    that it would have had, in the same order.

    A row of the run is found in ``trainer.train_dataset`` by ``rows``, by the column ``row`` (:func:`dataset` makes it)
    or, where there is neither, by its position.

    In several processes each trains its share of the same order. Live selection is for one process.

    **Epochs of different sizes** need a process for each, with ``epoch``: one training in several runs of the trainer.
    Set ``max_steps`` to the steps of all epochs together (:func:`steps_per_epoch`), for the learning rates; from the
    second epoch on resume from the checkpoint that the one before left at its end, with ``ignore_data_skip=True``. The
    trainer stops, and saves, when the epoch's rows are trained.

    Args:
        trainer: A ``transformers.Trainer`` or one of its children, such as TRL's ``SFTTrainer``.
        run: The run folder: with indices for ``num_train_epochs`` epochs, or, for live selection, with embeddings
            if the selector goes by them.
        shuffle: Shuffle each epoch's rows, by the trainer's ``data_seed`` (or ``seed``) and the epoch; else they
            are trained in the order picked.
        check: What must be equal in the train dataset and the run, row by row: ``loss`` (the token ids are those
            of :mod:`p3select.tokens`, and the tokens with a loss are those that it scores), ``tokens`` (the ids;
            the loss may lie elsewhere), ``text`` (prompt and completion, or messages) or ``none``.
        tokenizer: The model's tokenizer; None for the trainer's ``processing_class``.
        rows: (len(train_dataset),) the number in the run of each row, for datasets that cannot have the column.
        batches: For trainers that pack: called with the sampler of an epoch's rows, it gives a
            ``torch.utils.data.BatchSampler`` of them whose length is that of every epoch. None for one row after
            another.
        epoch: Train this epoch alone, from its index file, which may have another number of rows than others.
        budget: Select live, so many rows in each epoch: a count, or a share such as ``"20%"``. What follows is for
            live selection only.
        pace: See :func:`p3select.select`.
        difficulty: See :func:`p3select.select`.
        quality: See :func:`p3select.select`.
        quality_weight: See :func:`p3select.select`.
        fresh: See :func:`p3select.select`.
        selector: See :func:`p3select.select`.
        similarity: See :func:`p3select.select`.
        scale: See :func:`p3select.select`.
        whiten: See :func:`p3select.select`.
        at_most: See :func:`p3select.select`.
        per: See :func:`p3select.select`.
        share: See :func:`p3select.select`.
        include: See :func:`p3select.select`.
        exclude: See :func:`p3select.select`.
        seed: See :func:`p3select.select`.
        actions: See :func:`p3select.score`.
        max_length: See :func:`p3select.score`; None for the trainer's (``SFTConfig.max_length``) or the model's
            limit, whichever is lower.
        truncate: See :func:`p3select.score`.
        overwrite: Replace what an earlier training left in the run folder: its scores and indices of epochs that
            this one has yet to begin. An epoch that is resumed in its middle keeps its index in any case.
        show_progress: Print rows/s, tokens/s and the time left of the scoring on stderr.

    Raises:
        InputError: Options, settings of the trainer, or a kind of train dataset with which it cannot be done; or
            index files that are missing or differ in length. In training: fewer rows are eligible than the budget
            asks for, or a row that is selected, or live could be, is not in the train dataset.
        MismatchError: Index files of other data or another number of epochs. In training: the train dataset's rows
            are not the run's, or what the run folder or the checkpoint holds comes from another training.
    """
    scoring = {"actions": actions, "max_length": max_length, "truncate": truncate}
    selecting = {
        "budget": budget,
        "pace": pace,
        "difficulty": difficulty,
        "quality": quality,
        "quality_weight": quality_weight,
        "fresh": fresh,
        "selector": selector,
        "similarity": similarity,
        "scale": scale,
        "whiten": whiten,
        "at_most": at_most,
        "per": per,
        "share": share,
        "include": include,
        "exclude": exclude,
        "seed": seed,
    }
    handling = {"overwrite": overwrite, "show_progress": show_progress}
    if not isinstance(trainer, transformers.Trainer):
        raise InputError(f"trainer: a {type(trainer).__name__}, not a transformers.Trainer or a child of it")
    lacking = [name for name in REPLACED if not hasattr(trainer, name)]
    if lacking:
        raise InputError(
            f"transformers {transformers.__version__}: its Trainer has no {lacking[0]}, in whose place attach "
            f"puts its own; install one from {' to '.join(VERSIONS)}"
        )
    if isinstance(getattr(trainer._get_train_sampler, "__self__", None), _Attached):
        raise InputError("trainer: is attached to a run already; make a new trainer")
    if check not in CHECKS:
        raise InputError(f"check {check!r}: one of {', '.join(CHECKS)}")
    run = run if isinstance(run, Run) else Run(run)
    tokenizer = trainer.processing_class if tokenizer is None else tokenizer
    epochs = whole_epochs(trainer.args.num_train_epochs) if epoch is None else 1
    source: Indices | _Live
    if budget is None:
        _refuse_without_budget({**scoring, **selecting, **handling})
        source = Indices(run, epochs, epoch)
    elif epoch is not None:
        raise InputError("epoch and budget: a single epoch is trained from its index file; select it first")
    else:
        source = _Live(trainer, run, epochs, tokenizer, scoring, selecting, **handling)
    attached = (_Attached if epoch is None else _OneEpoch)(trainer, source, epochs, shuffle, check, tokenizer, rows)
    attached.batches = None if batches is None else batches(attached)
    attached.refuse_settings(trainer.args)
    if trainer.train_dataset is not None:
        _positions(trainer, len(source.dataset), rows)
    trainer._get_train_sampler = attached.sampler
    trainer._load_optimizer_and_scheduler = attached.load
    trainer.add_callback(attached)


def dataset(run: Run | str | Path) -> Any:
    """All rows of a run as a ``datasets.Dataset`` for TRL's SFTTrainer, with a column ``row`` by which they are found.

    Args:
        run: The run folder.

    Raises:
        InputError: No such run, or its files are gone.
        MismatchError: Its files hold other rows than before.
        MissingLibraryError: datasets is not installed.
    """
    try:
        import datasets
    except ModuleNotFoundError:
        raise MissingLibraryError("trainers.hf.dataset", "datasets", "trl") from None
    run = run if isinstance(run, Run) else Run(run)
    rows = run.dataset().rows()
    # Not from_list, which has the columns of the first row only.
    names = dict.fromkeys(name for row in rows for name in row)
    # TRL takes null for tools, and none for these.
    lacking: dict[str, Any] = {"chat_template_kwargs": {}}
    columns = {name: [row.get(name, lacking.get(name)) for row in rows] for name in names}
    return datasets.Dataset.from_dict({"row": list(range(len(rows))), **columns})


class _Attached(transformers.TrainerCallback):  # type: ignore[misc]
    """The sampler of the trainer, and the callback that gives it an epoch's rows before it is iterated."""

    def __init__(
        self,
        trainer: Any,
        source: Indices | _Live,
        epochs: int,
        shuffle: bool,
        check: str,
        tokenizer: Any,
        numbers: Sequence[int] | NDArray[np.int64] | None,
    ) -> None:
        self.trainer, self.source, self.epochs = trainer, source, epochs
        self.loading = trainer._load_optimizer_and_scheduler
        self.shuffle, self.check, self.tokenizer, self.numbers = shuffle, check, tokenizer, numbers
        self.batches: Any = None
        # Epochs begun, and the order of rows, or packs, of the one that a checkpoint is from the middle of.
        self.done, self.resumed = 0, None
        # Epoch → what its rows were, in any order.
        self.trained: dict[str, str] = {}
        self.where: NDArray[np.int64] | None = None
        self.positions: list[int] = []
        # When and at which step the epoch began; None where it was resumed in its middle: the time before is not known.
        self.began: tuple[float, int] | None = None

    def sampler(self, *_: Any) -> Any:
        """Stands in for ``Trainer._get_train_sampler``; called once, when a training starts."""
        self.where = _positions(self.trainer, len(self.source.dataset), self.numbers)
        return self if self.batches is None else self.batches

    def load(self, checkpoint: str | None) -> None:
        """Stands in for ``Trainer._load_optimizer_and_scheduler``, which passes over files that are not there."""
        # DeepSpeed has files of its own, and says what is missing.
        if checkpoint is not None and not self.trainer.is_deepspeed_enabled:
            names = os.listdir(checkpoint)
            if "scheduler.pt" not in names or not any(
                "optimizer" in name and not name.endswith(".json") for name in names
            ):
                raise MismatchError(
                    f"{checkpoint}: the checkpoint has no optimizer or schedule, and both would begin anew: resume "
                    "from one that was saved with save_only_model=False, or begin a new training"
                )
        self.loading(checkpoint)

    def steps(self, args: Any) -> int:
        """Optimiser steps in an epoch."""
        return steps_per_epoch(
            self.source.k if self.batches is None else len(self.batches),
            1 if self.batches is not None else args.train_batch_size,
            args.world_size,
            args.gradient_accumulation_steps,
        )

    def refuse_settings(self, args: Any) -> None:
        """Refuse trainer arguments with which rows would be trained twice, in part or not at all."""
        _refuse_settings(args, self.epochs, self.source.k, self.steps(args), packed=self.batches is not None)

    def __len__(self) -> int:
        return self.source.k

    def __iter__(self) -> Iterator[int]:
        return iter(self.positions)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Find where the training stands, and whether it can go on from there."""
        self.refuse_settings(args)
        steps = self.steps(args)
        if self.where is None or state.max_steps != self.epochs * steps:
            raise InputError(
                f"the trainer is about to make {state.max_steps} steps, where {self.epochs} epochs of "
                f"{self.source.k} rows are {self.epochs * steps}: its arguments were changed after attach, or it does "
                "not use _get_train_sampler"
            )
        self.done, inside = divmod(state.global_step, steps)
        self.resumed, self.trained = None, {}
        if state.global_step:
            known = self._known(state)
            if known["steps"] != steps:
                raise MismatchError(
                    f"the checkpoint's epochs have {known['steps']} steps, these {steps}: resume with the budget, "
                    "batch size and gradient accumulation that it began with"
                )
            if inside and args.ignore_data_skip:
                raise InputError("ignore_data_skip=True would train rows of the resumed epoch twice: leave it False")
            if inside and known["per_step"] != _per_step(args):
                raise MismatchError(
                    f"the checkpoint is from the middle of epoch {self.done + 1}, with {known['per_step']} rows (or "
                    f"packs) a step, and now a step has {_per_step(args)}: resume with the batch size, gradient "
                    "accumulation and number of processes that it began with, or from a checkpoint at an epoch's end"
                )
            if inside:
                self.resumed = known["order"]
            self._refuse_another_run(known["trained"])
        self.source.begin(self.done + 1)
        if self.check != "none":
            for rows, settings in self.source.candidates():
                self._compare(rows, settings)
        if isinstance(self.source, _Live):
            self.source.refuse_missing(self.where)

    def _known(self, state: Any) -> Any:
        """What :meth:`on_epoch_begin` left in the checkpoint that a training goes on from."""
        known = state.stateful_callbacks.get(_KEY)
        if known is None:
            raise MismatchError("the checkpoint is of a training without p3select: begin a new training")
        return known

    def _refuse_another_run(self, trained: Mapping[str, str]) -> None:
        """Refuse a checkpoint whose epochs had other rows than the run's; a trainer may take one up by itself."""
        for epoch in range(1, self.done + 1):
            path = self.source.run.index(epoch)
            if path.exists() and trained.get(str(epoch)) != _digest(np.sort(index.read(path).rows)):
                raise MismatchError(
                    f"{path}: not the rows that the checkpoint was trained on in epoch {epoch}: it is of another run "
                    "folder, or the index was replaced; begin a new training, with another output_dir"
                )
        self.trained = dict(trained)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Give the sampler the rows of the epoch, in the order in which they are trained."""
        epoch = self.done = self.done + 1
        rows = self.source.rows(epoch, self.resumed is not None)
        self.trained[str(epoch)] = _digest(np.sort(rows))
        if self.shuffle:
            rows = shuffled(rows, args.seed if args.data_seed is None else args.data_seed, epoch)
        assert self.where is not None  # sampler() comes first: on_train_begin has seen to it
        gone = rows[self.where[rows] < 0]
        if len(gone):
            raise InputError(
                f"epoch {epoch}: {len(gone)} of {len(rows)} selected rows are not in the trainer's train_dataset (row "
                f"{few(gone)}); TRL drops rows of which max_length leaves nothing to train: raise it, or select anew"
            )
        self.positions = self.where[rows].tolist()
        order = _digest(rows)
        if self.batches is not None:
            # Rows in the same order can be packed otherwise.
            order = fingerprints.of_json([order, list(self.batches)])
        if self.resumed not in (None, order):
            raise MismatchError(
                f"{self.source.run.index(epoch)}: not the rows, or not the order, with which the checkpoint began "
                f"epoch {epoch}: the index was replaced, or {'' if self.batches is None else 'packing, '}shuffle or "
                "the seed changed. Resume from a checkpoint at an epoch's end, or begin a new training"
            )
        middle, self.resumed = self.resumed is not None, None
        state.stateful_callbacks[_KEY] = {
            "epoch": epoch,
            "steps": self.steps(args),
            "per_step": _per_step(args),
            "order": order,
            "trained": dict(self.trained),
        }
        self.began = None if middle else (time.monotonic(), state.global_step)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Record how long the epoch took, for the report, if it was trained whole."""
        if not state.is_world_process_zero:
            return
        run = self.source.run
        with suppress(OSError):  # Of another training by the same index.
            run.cost("train", self.done).unlink(missing_ok=True)
        if self.began is not None and state.global_step - self.began[1] == self.steps(args):
            run.spend("train", self.done, time.monotonic() - self.began[0])

    def _compare(self, rows: NDArray[np.int64], settings: Mapping[str, Any]) -> None:
        """Compare rows of the run with the train dataset's, as far as these are there."""
        assert self.where is not None
        data, given = self.source.dataset, self.trainer.train_dataset
        rows = rows[self.where[rows] >= 0]
        for start in range(0, len(rows), BLOCK_ROWS):
            block = rows[start : start + BLOCK_ROWS]
            texts = dataclasses.replace(data, table=data.table.take(pa.array(block))).rows()
            encoded = [None] * len(block) if self.check == "text" else self._encode(texts, settings)
            for row, text, expected in zip(block, texts, encoded, strict=True):
                item = given[int(self.where[row])]
                if expected is None:
                    difference = _other_text(item, text, self.tokenizer)
                elif expected.status in tokenised.SCORED:
                    difference = other_tokens(item, expected, self.tokenizer, self.check)
                elif self.source.chosen:
                    difference = f"{expected.status} by the trainer's tokenizer, and it was scored"
                else:
                    continue  # it will not be eligible
                if difference:
                    raise MismatchError(f"row {row}: the trainer's is not the run's: {difference}")

    def _encode(self, texts: list[dict[str, Any]], settings: Mapping[str, Any]) -> list[TokenRow]:
        if self.tokenizer is None:
            raise InputError("the trainer has no processing_class: give attach a tokenizer, or check='text' or 'none'")
        if "template" in settings and not isinstance(texts[0].get("prompt"), str):
            now = tokens.fingerprint(self.tokenizer, messages="messages" in texts[0])
            if now["tokenizer"] == settings["tokenizer"] and now["template"] != settings["template"]:
                raise MismatchError(
                    "the index was scored with another chat template than the trainer's tokenizer has: score and "
                    "select with this one, or give attach check='text'"
                )
        return tokens.encode(
            texts,
            self.tokenizer,
            actions="whole",
            max_length=settings["max_length"],
            truncate=settings["truncate"],
        )


class _OneEpoch(_Attached):
    """The same for a trainer that trains one epoch of several, from its beginning to its end."""

    def refuse_settings(self, args: Any) -> None:
        """Refuse what :class:`_Attached` refuses, but for ``max_steps``, which is that of all epochs."""
        if args.max_steps < 1:
            raise InputError(
                "epoch: set max_steps to the steps of all epochs together, which the learning rates go by; "
                "p3select.trainers.hf.steps_per_epoch says those of an epoch"
            )
        if args.save_only_model:
            raise InputError(
                "save_only_model=True: the next epoch needs this one's optimizer and learning rate; set it to False"
            )
        _refuse_settings(args, 1, self.source.k, self.steps(args), packed=self.batches is not None, counted=False)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Find that the training stands at the beginning of the epoch."""
        self.refuse_settings(args)
        assert isinstance(self.source, Indices)
        epoch, steps = self.source.epochs[0], self.steps(args)
        known: Any = self._known(state) if state.global_step else {"epoch": 0, "end": 0, "trained": {}}
        if self.where is None:
            raise InputError("the trainer does not use _get_train_sampler: its arguments were changed after attach")
        if (known["epoch"], known.get("end")) != (epoch - 1, state.global_step):
            where = f"step {state.global_step} of epoch {known['epoch']}" if state.global_step else "the beginning"
            raise MismatchError(
                f"epoch {epoch} begins where epoch {epoch - 1} ended, and this training stands at {where}: resume from "
                "the checkpoint that was saved there"
            )
        if state.global_step and not args.ignore_data_skip:
            raise InputError("ignore_data_skip=False would leave out rows of the epoch: set it to True")
        if state.global_step + steps > args.max_steps:
            raise InputError(
                f"max_steps={args.max_steps}: {state.global_step} steps are done, and epoch {epoch} has {steps}; give "
                "the steps of all epochs together"
            )
        self.done, self.end = epoch - 1, state.global_step + steps
        self._refuse_another_run(known["trained"])
        if self.check != "none":
            for rows, settings in self.source.candidates():
                self._compare(rows, settings)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Give the sampler the rows of the epoch."""
        super().on_epoch_begin(args, state, control)
        state.stateful_callbacks[_KEY]["end"] = self.end

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop, with a checkpoint to go on from."""
        super().on_epoch_end(args, state, control)
        if state.global_step != self.end:
            raise InputError(
                f"epoch {self.done} ended at step {state.global_step}, not {self.end}: the trainer's arguments were "
                "changed after attach"
            )
        control.should_training_stop = control.should_save = True


class Indices:
    """Rows from index files made beforehand: of all epochs, each of ``k`` rows, or of a single one."""

    # Whether candidates() gives rows that are chosen already.
    chosen = True

    def __init__(self, run: Run, epochs: int, only: int | None = None) -> None:
        self.run, self.only, self.dataset = run, only, run.dataset()
        self.epochs = range(1, epochs + 1) if only is None else range(only, only + 1)
        made = [self._read(epoch) for epoch in self.epochs]
        self.k = len(made[0])
        if any(len(one) != self.k for one in made):
            raise InputError(
                f"{run.index(1).parent}: the epochs have {', '.join(str(len(one)) for one in made)} rows, and a "
                "trainer's steps and learning rates are fixed at the start for epochs of one length: select all of "
                "them with the same budget, one that the first epoch has enough eligible rows for, or train each by "
                "itself: attach(trainer, run, epoch=1), and so on"
            )

    def _read(self, epoch: int) -> Selection:
        made = index.read(self.run.index(epoch))
        if made.metadata["dataset_fingerprint"] != self.dataset.fingerprint:
            raise MismatchError(f"{self.run.index(epoch)}: of other data than {self.run.path}; select this epoch again")
        epochs = len(self.epochs) if self.only is None else made.metadata["epochs"]
        if (made.metadata["epoch"], made.metadata["epochs"]) != (epoch, epochs):
            raise MismatchError(
                f"{self.run.index(epoch)}: for epoch {made.metadata['epoch']} of {made.metadata['epochs']}, and the "
                f"trainer is to use it for epoch {epoch} of {epochs}; select anew, or set num_train_epochs"
            )
        return made

    def candidates(self) -> Iterator[tuple[NDArray[np.int64], Mapping[str, Any]]]:
        """Each epoch's rows, and how they were tokenised when they were scored."""
        for epoch in self.epochs:
            made = self._read(epoch)
            yield made.rows, made.metadata["scores"]

    def begin(self, epoch: int) -> None:
        """Nothing is to be done before the training."""

    def rows(self, epoch: int, resumed: bool) -> NDArray[np.int64]:  # noqa: ARG002
        """The rows of an epoch."""
        made = self._read(epoch)
        if len(made) != self.k:
            raise MismatchError(f"{self.run.index(epoch)}: {len(made)} rows now, {self.k} when the training began")
        return made.rows


class _Live:
    """Rows selected when an epoch begins, with the model in training."""

    chosen = False

    def __init__(
        self,
        trainer: Any,
        run: Run,
        epochs: int,
        tokenizer: Any,
        scoring: dict[str, Any],
        selecting: dict[str, Any],
        *,
        overwrite: bool,
        show_progress: bool,
    ) -> None:
        self.trainer, self.run, self.epochs, self.tokenizer = trainer, run, epochs, tokenizer
        # Read once: a file could be another by the next epoch.
        listed = {name: constraints.listed(name, selecting[name], run) for name in ("include", "exclude")}
        self.scoring, self.selecting = scoring, selecting | listed
        self.overwrite, self.show_progress = overwrite, show_progress
        self.dataset = run.dataset()
        self.k = constraints.budget_rows(selecting["budget"], len(self.dataset))
        if self.k > len(self.dataset):
            raise InputError(f"budget {selecting['budget']!r}: the run has {len(self.dataset)} rows")
        if trainer.args.world_size > 1:
            raise InputError(
                f"{trainer.args.world_size} processes: live selection is for one process; make the index files of all "
                "epochs beforehand, or use 'p3select loop'"
            )
        if tokenizer is None:
            raise InputError("live selection needs the model's tokenizer, and the trainer has none: give tokenizer=…")
        # What would come out after a pass over all rows is said now.
        tokens.encode([], tokenizer, **scoring)
        difficulties.difficulty([[-1.0]], [[1]], selecting["difficulty"])
        kernel.quality([0.5], selecting["quality"], selecting["quality_weight"], selecting["difficulty"])
        paces.pace(1, epochs, selecting["pace"])
        selector = selecting["selector"]
        selector = "dpp" if selector == "auto" else selector
        function = selectors.find(selector) if isinstance(selector, str) else selector
        if "scale" in inspect.signature(function).parameters:
            embeddings.read(run)

    def begin(self, epoch: int) -> None:
        """Refuse the folder of an earlier training before any time is spent, and get ready for scoring."""
        left = [
            later
            for later in range(epoch + 1, self.epochs + 1)
            if self.run.index(later).exists() or self.run.scores(later).exists()
        ]
        if left and not self.overwrite:
            raise MismatchError(
                f"{self.run.path}: has scores or an index of epoch {few(left)}, left by an earlier training, and "
                f"epoch {epoch} is yet to be trained: give attach overwrite=True to replace them, or another run folder"
            )
        self.engine = TransformersScorer((self.trainer.model, self.tokenizer))
        if self.scoring["max_length"] is None:
            limits = (getattr(self.trainer.args, "max_length", None), self.engine.max_length)
            self.scoring["max_length"] = min((limit for limit in limits if limit is not None), default=None)

    def refuse_missing(self, where: NDArray[np.int64]) -> None:
        """Refuse rows that could be selected and cannot be trained, before they are: it might be in a late epoch.

        Args:
            where: (n,) where in the train dataset each row of the run is; −1 where it is not.
        """
        missing = np.setdiff1d(np.flatnonzero(where < 0), self.selecting["exclude"])
        texts = dataclasses.replace(self.dataset, table=self.dataset.table.take(pa.array(missing))).rows()
        encoded = tokens.encode(texts, self.tokenizer, **self.scoring)
        # A row that cannot be scored is never selected.
        missing = missing[[row.status in tokenised.SCORED for row in encoded]]
        if len(missing):
            raise InputError(
                f"{len(missing)} rows that could be selected are not in the trainer's train_dataset (row "
                f"{few(missing)}); TRL drops rows of which max_length leaves nothing to train: raise it, or give "
                "attach these rows as exclude"
            )

    def candidates(self) -> Iterator[tuple[NDArray[np.int64], Mapping[str, Any]]]:
        """All rows, and how they are tokenised."""
        yield np.arange(len(self.dataset)), self.scoring

    def rows(self, epoch: int, resumed: bool) -> NDArray[np.int64]:
        """Select the rows of an epoch; of one that was begun before, find them."""
        path = self.run.index(epoch)
        if resumed:
            return self._again(epoch)
        there = path.exists()
        with _random_states_kept():
            try:
                scores.score(
                    self.dataset,
                    self.run,
                    scorer=self.engine,
                    epoch=epoch,
                    overwrite=self.overwrite,
                    show_progress=self.show_progress,
                    **self.scoring,
                )
                made = selection.select(
                    self.run, epoch=epoch, epochs=self.epochs, overwrite=self.overwrite, **self.selecting
                )
            except MismatchError as error:
                raise MismatchError(
                    f"{self.run.path} holds the work of another training for epoch {epoch}: give attach "
                    f"overwrite=True to replace it, or another run folder. ({error})"
                ) from None
        if len(made) < self.k:
            if not there:
                path.unlink()  # so that it is not in the way of a smaller budget
            raise InputError(
                f"epoch {epoch}: {len(made)} rows are eligible at pace {self.selecting['pace']!r}, "
                f"{self.k - len(made)} fewer than the budget, and a trainer's epochs have one length: give a budget of "
                f"at most {len(made)}, or a pace that begins higher"
            )
        _logger.info(
            "epoch %d: %d rows of %d eligible, lam %.4f", epoch, self.k, made.metadata["eligible"], made.metadata["lam"]
        )
        return made.rows

    def _again(self, epoch: int) -> NDArray[np.int64]:
        """The index with which a resumed epoch began; the weights have changed since, so it cannot be made again."""
        path = self.run.index(epoch)
        if not path.exists():
            raise MismatchError(
                f"{path}: is gone, and the checkpoint is from the middle of epoch {epoch}: resume from one at an "
                "epoch's end, or begin a new training"
            )
        made = index.read(path)
        asked = {"dataset_fingerprint": self.dataset.fingerprint, "epoch": epoch, "epochs": self.epochs}
        asked |= {**self.selecting, "selector": selection.name_of(self.selecting["selector"])}
        asked |= {name: constraints.described(self.selecting[name]) for name in ("include", "exclude")}
        if self.selecting["selector"] == "auto":
            del asked["selector"]  # it was chosen
        if self.selecting["scale"] is None:
            del asked["scale"]  # it came from the data
        if made.metadata["similarity"] is None:
            del asked["similarity"]  # the selector takes none
        if not str(asked["budget"]).strip().endswith("%"):
            asked["budget"] = self.k  # "13" is the count 13
        found = dict(made.metadata)
        asked |= self.scoring
        found |= {name: made.metadata["scores"].get(name) for name in self.scoring}
        changed = [name for name in asked if asked[name] != found.get(name)]
        if changed:
            raise MismatchError(
                f"{path}: made with other settings ({', '.join(f'{name} {found.get(name)!r}' for name in changed)}), "
                f"and the checkpoint is from the middle of epoch {epoch}: attach with the settings it began with"
            )
        return made.rows


@contextmanager
def _random_states_kept() -> Iterator[None]:
    """What is drawn inside, by a selector for instance, changes nothing that the training draws afterwards."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002


def whole_epochs(number: float) -> int:
    """A trainer's number of epochs, where it is one that can be selected for."""
    if number < 1 or number != int(number):
        raise InputError(f"num_train_epochs={number}: an index is for a whole epoch; give 1, 2, …")
    return int(number)


def steps_per_epoch(k: int, batch: int, processes: int, accumulation: int) -> int:
    """Optimiser steps in an epoch of k rows, ``batch`` at a time in each process, ``accumulation`` batches a step."""
    return math.ceil(math.ceil(k / (batch * processes)) / accumulation)


def shuffled(rows: NDArray[np.int64], seed: int, epoch: int) -> NDArray[np.int64]:
    """An epoch's rows in the order in which :func:`attach` has them trained, for a seed of the trainer."""
    return rows[np.random.default_rng((seed, epoch)).permutation(len(rows))]


def _per_step(args: Any) -> int:
    """Rows, or packs, of an optimiser step that is not an epoch's last."""
    return int(args.train_batch_size * args.world_size * args.gradient_accumulation_steps)


def _digest(rows: NDArray[np.int64]) -> str:
    return hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()


def _refuse_without_budget(options: Mapping[str, Any]) -> None:
    known = inspect.signature(attach).parameters
    # Rows may be an array, which != compares one by one.
    given = [name for name, value in options.items() if not np.array_equal(value, known[name].default)]
    if given:
        raise InputError(
            f"{', '.join(given)}: for live selection, which needs a budget; index files are used as they are"
        )


def _refuse_settings(args: Any, epochs: int, k: int, per_epoch: int, *, packed: bool, counted: bool = True) -> None:
    steps = epochs * per_epoch
    strategy = getattr(args, "train_sampling_strategy", "random")
    together = args.train_batch_size * args.world_size
    for wrong, why in (
        (
            args.world_size > 1 and not packed and k % together,
            f"{k} rows in batches of {args.train_batch_size} in {args.world_size} processes: the last batches would be "
            f"filled up with rows that are trained already; give a budget that is a multiple of {together}, such as "
            f"{k // together * together or together}",
        ),
        (getattr(args, "packing", False), "packing=True: TRL merges rows before training; set packing=False"),
        (
            strategy != "random" or getattr(args, "group_by_length", False),
            f"train_sampling_strategy={strategy!r}, or group_by_length: the order is attach's; leave it 'random' and "
            "give attach shuffle=True or False",
        ),
        (
            args.auto_find_batch_size,
            "auto_find_batch_size=True: it begins anew with weights that are trained already; set it to False",
        ),
        (
            args.dataloader_drop_last and not packed and k % args.train_batch_size,
            f"dataloader_drop_last=True: {k} rows in batches of {args.train_batch_size} leave the last "
            f"{k % args.train_batch_size} untrained; set it to False",
        ),
        (
            counted and args.max_steps >= 0 and args.max_steps != steps,
            f"max_steps={args.max_steps}: {epochs} epochs of {k} rows are {steps} steps; leave max_steps at -1",
        ),
    ):
        if wrong:
            raise InputError(why)


def _positions(trainer: Any, n: int, numbers: Sequence[int] | NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """Where in the trainer's dataset each row of the run is, (n,); −1 where it is not."""
    given = trainer.train_dataset
    if isinstance(given, torch.utils.data.IterableDataset) or not hasattr(given, "__len__"):
        raise InputError(
            f"train_dataset: a {type(given).__name__} cannot be read by row; give one with a length and items, "
            "such as a datasets.Dataset"
        )
    where = np.full(n, -1)
    if numbers is not None and len(numbers) != len(given):
        raise InputError(f"rows: {len(numbers)} numbers, and train_dataset has {len(given)} rows; give one for each")
    if numbers is None and "row" not in (getattr(given, "column_names", None) or ()):
        if len(given) != n or getattr(trainer.args, "shuffle_dataset", False):
            raise InputError(
                f"train_dataset: {len(given)} rows without a column 'row', and the run has {n}"
                f"{', and shuffle_dataset=True' if len(given) == n else ''}: which is which is not known; use "
                "p3select.trainers.hf.dataset(run), or add the column (the row's number in the run)"
            )
        where[:] = np.arange(n)
        return where
    source = "column 'row'" if numbers is None else "list of rows"
    rows = np.asarray(given.with_format(None)["row"][:] if numbers is None else numbers)
    outside = rows[(rows < 0) | (rows >= n)] if np.issubdtype(rows.dtype, np.integer) else rows
    if len(outside):
        raise MismatchError(f"train_dataset: its {source} has {few(outside)}; the run has rows 0 to {n - 1}")
    rows = rows.astype(np.int64)
    where[rows] = np.arange(len(rows))
    twice = np.flatnonzero(np.bincount(rows, minlength=n) > 1)
    if len(twice):
        raise MismatchError(f"train_dataset: its {source} has {few(twice)} more than once")
    return where


def other_tokens(item: Any, expected: TokenRow, tokenizer: Any, check: str) -> str | None:
    """How a trainer's row differs from the tokens that are scored, or None."""
    needed = ("input_ids", "labels") if check == "loss" else ("input_ids",)
    missing = [name for name in needed if name not in item]
    if missing:
        raise InputError(
            f"train_dataset: has no {' and no '.join(missing)} to compare with the run's rows; give attach check="
            f"{'tokens' if missing == ['labels'] else 'text'!r}, or 'none' to go without"
        )
    ids = np.asarray(item["input_ids"]).reshape(-1)
    kept = np.asarray(item["attention_mask"], bool).reshape(-1) if "attention_mask" in item else np.full(len(ids), True)
    ids = ids[kept]
    shared = min(len(ids), len(expected.ids))
    other = np.flatnonzero(ids[:shared] != expected.ids[:shared])
    if len(other):
        there, here = (tokenizer.decode([int(row[other[0]])]) for row in (ids, expected.ids))
        return f"token {other[0]} is {there!r} there, {here!r} here; other rows, another tokenizer or chat template?"
    if len(ids) != len(expected.ids):
        return f"{len(ids)} tokens there, {len(expected.ids)} here; another max_length, no end-of-sequence token?"
    if check == "loss":
        labels = np.asarray(item["labels"]).reshape(-1)[kept]
        trained = np.flatnonzero(labels[1:] != -100) + 1
        if not np.array_equal(trained, expected.scored):
            return (
                f"a loss on {len(trained)} tokens there, {len(expected.scored)} scored here; set "
                "completion_only_loss=True (for messages: assistant_only_loss=True), or give attach check='tokens'"
            )
    return None


def _other_text(item: Any, text: Mapping[str, Any], tokenizer: Any) -> str | None:
    """How a trainer's row differs from the run's as text, or None."""
    names = [name for name in ("prompt", "completion", "messages") if name in text]
    missing = [name for name in names if name not in item]
    if missing:
        raise InputError(
            f"train_dataset: has no {' and no '.join(missing)} to compare with the run's; give check='none'"
        )
    for name in names:
        there, end = item[name], getattr(tokenizer, "eos_token", None)
        if isinstance(there, str) and end and there == f"{text[name]}{end}":
            continue  # TRL appends it
        if isinstance(there, list):
            # Arrow fills the keys that a message lacks with null.
            there = [{key: value for key, value in turn.items() if value is not None} for turn in there]
        if there != text[name]:
            both = str(there), str(text[name])
            at = next((n for n, (one, two) in enumerate(zip(*both, strict=False)) if one != two), min(map(len, both)))
            return (
                f"its {name} is, from character {at}, {both[0][at : at + 40]!r} there, {both[1][at : at + 40]!r} here"
            )
    return None


def few(numbers: Sequence[Any] | NDArray[Any]) -> str:
    """The first of some numbers, for a message."""
    return ", ".join(map(str, numbers[:5])) + (", …" if len(numbers) > 5 else "")
