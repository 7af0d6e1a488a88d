"""LLaMA-Factory, trained in epoch e on exactly the rows of index e, each once.

``p3select-llamafactory-train train.yaml`` does what ``llamafactory-cli train train.yaml`` does. The configuration has
keys ``p3select_run`` and, for what :func:`p3select.trainers.hf.attach` takes, ``p3select_budget`` and so on.
LLaMA-Factory has no plugins: its ``run_exp`` is called, with the class of its trainer replaced by a child of it for
the time of the call. What that rests on is looked at before, and no step is trained unless the trainer is that child.
"""

from __future__ import annotations

import inspect
import logging
import os
import sys
from contextlib import contextmanager
from dataclasses import fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from p3select import constraints, index, tokenised, tokens
from p3select.errors import InputError, MismatchError, MissingLibraryError, P3Error
from p3select.exporters import llamafactory as exporter
from p3select.run import Run, write_json
from p3select.trainers import hf

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from p3select.dataset import Dataset

KEYS = "p3select_"
# The version that the tests run with.
TESTED = "0.9.5"
CHECKS = ("rows", "tokens", "loss")
# Of LLaMA-Factory's environment variables, those with which it trains by other code.
OTHERS = ("USE_V1", "USE_MCA", "USE_RAY", "USE_KT")
# Rows compared at a time, and cut at no length.
_BLOCK_ROWS = 1024
_NO_LIMIT = 2**31

_logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> None:
    """``p3select-llamafactory-train train.yaml [key=value …]``: 0 done, 2 bad input, 1 a fault inside."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        train(arguments)
    except P3Error as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        sys.exit(2)


def train(arguments: Sequence[str]) -> None:
    """Train by LLaMA-Factory, in this process.

    Args:
        arguments: As of ``llamafactory-cli train``: a YAML file, and keys that replace some of it, ``key=value``.

    Raises:
        InputError: Settings of LLaMA-Factory or of :func:`p3select.trainers.hf.attach` with which it cannot be done, or
            a LLaMA-Factory that is not what it was.
        MismatchError: LLaMA-Factory's rows are not the run's; see also :func:`p3select.trainers.hf.attach`.
        MissingLibraryError: LLaMA-Factory is not installed.
    """
    if not arguments or not arguments[0].endswith((".yaml", ".yml")):
        raise InputError("usage: p3select-llamafactory-train train.yaml [key=value …]")
    if not Path(arguments[0]).is_file():
        raise InputError(f"{arguments[0]}: no such file")
    _installed()
    settings, options = _split(_read(arguments))
    run = Run(options.pop("run"))
    check = options.pop("check", "rows")
    if check not in CHECKS:
        raise InputError(f"{KEYS}check {check!r}: one of {', '.join(CHECKS)}")
    _refuse(settings)
    if torch.cuda.device_count() > 1 and "LOCAL_RANK" not in os.environ:
        raise InputError(
            f"{torch.cuda.device_count()} GPUs: start a process for each, torchrun --nproc_per_node "
            f"{torch.cuda.device_count()} -m p3select.trainers.llamafactory {arguments[0]}; or set CUDA_VISIBLE_DEVICES"
        )
    options["shuffle"] = options.get("shuffle", not settings.get("disable_shuffling", False))
    if settings.get("dataset") is None:
        settings |= _dataset_settings(run)
    from llamafactory.hparams import DataArguments
    from llamafactory.train import tuner
    from transformers import HfArgumentParser

    (data,) = HfArgumentParser(DataArguments).parse_dict(settings, allow_extra_keys=True)
    if options.get("budget") is not None:
        options.setdefault("max_length", data.cutoff_len)

    def attach(trainer: Any, template: Any) -> None:
        if settings.get("resume_from_checkpoint") is None and trainer.args.resume_from_checkpoint is not None:
            _logger.warning(
                "LLaMA-Factory goes on from %s, which it found in output_dir: overwrite_output_dir: true begins anew",
                trainer.args.resume_from_checkpoint,
            )
        live = options.get("budget") is not None
        epochs = [options["epoch"]] if options.get("epoch") else range(1, int(trainer.args.num_train_epochs) + 1)
        left_out = constraints.listed("exclude", options.get("exclude"), run)
        every = np.arange(int(run.info()["dataset"]["rows"]))
        wanted = np.setdiff1d(every, left_out) if live else _selected(run, epochs)
        numbers = _check(trainer, template, data, run, wanted, live=live)
        # Live, scores are made with LLaMA-Factory's tokenizer and its template; before, with the model's own.
        tokenizer = trainer.processing_class if live else _own_tokenizer(settings)
        strict = check != "rows"
        hf.attach(trainer, run, rows=numbers, check=check if strict else "none", tokenizer=tokenizer, **options)
        if not strict:
            _note_other_tokens(trainer, tokenizer, run, numbers)

    with _trainer_class(attach) as made:
        tuner.run_exp(settings, callbacks=[_proof(made)])


def _installed() -> None:
    """See that LLaMA-Factory is there, and has what is used of it.

    Raises:
        InputError: It has not.
        MissingLibraryError: It is not there.
    """
    try:
        found = version("llamafactory")
    except PackageNotFoundError:
        raise MissingLibraryError("p3select-llamafactory-train", "llamafactory", "llamafactory") from None
    others = [name for name in OTHERS if os.environ.get(name, "0").lower() in ("true", "y", "1")]
    if others:
        raise InputError(f"{others[0]} is set, with which LLaMA-Factory trains by other code: unset it")
    try:
        from llamafactory.data.processor import SupervisedDatasetProcessor
        from llamafactory.hparams import DataArguments, read_args
        from llamafactory.train.sft import workflow
        from llamafactory.train.tuner import run_exp
        from transformers import Trainer

        wanting = [
            f"no {what}"
            for what, there in (
                ("read_args(args)", _takes(read_args, "args")),
                ("run_exp(args, callbacks)", _takes(run_exp, "args", "callbacks")),
                (
                    "SupervisedDatasetProcessor(template, tokenizer, processor, data_args)",
                    _takes(SupervisedDatasetProcessor, "template", "tokenizer", "processor", "data_args"),
                ),
                (
                    "DataArguments' cutoff_len, packing, tokenized_path",
                    {"cutoff_len", "packing", "tokenized_path"} <= {field.name for field in fields(DataArguments)},
                ),
                ("sft.workflow.CustomSeq2SeqTrainer", issubclass(workflow.CustomSeq2SeqTrainer, Trainer)),
            )
            if not there
        ]
    except (ImportError, AttributeError, TypeError) as error:
        wanting = [str(error)]
    if wanting:
        raise InputError(_unknown("; ".join(wanting)))
    if found != TESTED:
        _logger.warning("llamafactory %s: p3select was tested with %s", found, TESTED)


def _unknown(what: str) -> str:
    found = version("llamafactory")
    return f"llamafactory {found} is not what p3select knows ({what}): pip install llamafactory=={TESTED}"


def _takes(function: Any, *names: str) -> bool:
    return set(names) <= set(inspect.signature(function).parameters)


def _read(arguments: Sequence[str]) -> dict[str, Any]:
    """The configuration, by LLaMA-Factory's own reader."""
    from llamafactory.hparams import read_args

    before = sys.argv
    sys.argv = [before[0], *arguments]
    try:
        found = read_args()
    finally:
        sys.argv = before
    if not isinstance(found, dict):
        raise InputError(f"{arguments[0]}: no keys and values")
    return found


def _split(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """LLaMA-Factory's settings, and those of p3select."""
    parameters = inspect.signature(hf.attach).parameters.values()
    known = [one.name for one in parameters if one.kind is one.KEYWORD_ONLY]
    known = ["run", *(name for name in known if name not in ("tokenizer", "rows", "batches"))]
    ours = {key.removeprefix(KEYS): value for key, value in settings.items() if key.startswith(KEYS)}
    unknown = [name for name in ours if name not in known]
    if unknown:
        raise InputError(f"no key {KEYS}{unknown[0]}; there are {', '.join(KEYS + name for name in known)}")
    if not ours.get("run"):
        raise InputError(f"no key {KEYS}run: the run folder, with the index files or for live selection")
    return {key: value for key, value in settings.items() if not key.startswith(KEYS)}, ours


def _refuse(settings: Mapping[str, Any]) -> None:
    """Refuse settings with which LLaMA-Factory's rows are not the dataset's, one by one."""
    for key, wanted in (("stage", "sft"), ("do_train", True)):
        if settings.get(key) != wanted:
            raise InputError(f"{key}: {settings.get(key)}: rows are selected for {key}: {str(wanted).lower()} only")
    for key, why in (
        ("packing", "LLaMA-Factory merges rows before training"),
        ("neat_packing", "LLaMA-Factory merges rows before training"),
        ("streaming", "a stream cannot be read by row"),
        ("val_size", "it takes rows out of the run's: give eval_dataset, of other rows"),
        ("max_samples", "it takes rows out of the run's"),
        ("use_hyper_parallel", "LLaMA-Factory trains by other code"),
    ):
        if settings.get(key):
            raise InputError(f"{key}: {settings[key]}: {why}; leave it out")
    if settings.get("mix_strategy", "concat") != "concat":
        raise InputError(f"mix_strategy: {settings['mix_strategy']}: it changes the order of rows; leave it out")
    if settings.get("dataset") is None:
        for key in ("dataset_dir", "eval_dataset"):
            if settings.get(key):
                raise InputError(
                    f"{key} without dataset: for the run's rows leave both out; or give dataset, the name of all rows "
                    f"of the run in {settings.get('dataset_dir', 'data')}/dataset_info.json"
                )


def _dataset_settings(run: Run) -> dict[str, str]:
    """``dataset_dir`` and ``dataset`` for all rows of the run, where their files are."""
    dataset = run.dataset()
    tags: dict[str, str] = {}
    for role in ("messages", "conversations"):
        if role in dataset.columns:
            for row, values in enumerate(dataset.table.column(role).to_pylist()):
                try:
                    _, found = exporter.turns(values)
                except InputError:
                    continue  # it is dropped, and said when the rows are compared
                try:
                    exporter.note(found, tags)
                except InputError as error:
                    raise InputError(f"row {row}: {error}, and score and select again") from None
    about = exporter.entry(dataset.columns, tags)
    names = {f"p3select-{number}": path for number, path in enumerate(dataset.paths)}
    odd = [path for path in dataset.paths if Path(path).suffix not in (".parquet", ".json", ".jsonl")]
    if odd:
        raise InputError(f"{odd[0]}: LLaMA-Factory reads .parquet, .json and .jsonl: rename it, and score it again")
    folder = run.path / "llamafactory"
    write_json(folder / "dataset_info.json", {name: {"file_name": path, **about} for name, path in names.items()})
    return {"dataset_dir": str(folder), "dataset": ",".join(names)}


@contextmanager
def _trainer_class(attach: Any) -> Iterator[list[Any]]:
    """While it lasts, LLaMA-Factory makes its trainer as one that is attached; the list is of those made."""
    from llamafactory.train.sft import workflow

    made: list[Any] = []
    plain = workflow.CustomSeq2SeqTrainer

    class Trainer(plain):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            attach(self, getattr(kwargs.get("data_collator"), "template", None))
            made.append(self)

    Trainer.__name__, Trainer.__qualname__ = plain.__name__, plain.__qualname__
    workflow.CustomSeq2SeqTrainer = Trainer
    try:
        yield made
    finally:
        workflow.CustomSeq2SeqTrainer = plain


def _proof(made: Sequence[Any]) -> Any:
    """A callback by which no step is trained with any other trainer."""
    from transformers import TrainerCallback

    class Proof(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            if len(made) != 1:
                raise InputError(_unknown("its trainer was made elsewhere, and nothing was trained"))

    return Proof()


def _check(
    trainer: Any, template: Any, data: Any, run: Run, wanted: NDArray[np.int64], *, live: bool
) -> NDArray[np.int64]:
    """The numbers in the run of LLaMA-Factory's rows, whose tokens were found to be those of these rows.

    Args:
        trainer: The trainer.
        template: LLaMA-Factory's template.
        data: LLaMA-Factory's arguments about the data.
        run: The run.
        wanted: Rows that are selected; in live selection, those that may be.
        live: Whether they are selected live.

    Raises:
        InputError: A selected row was dropped, or nothing of it is left to train; in live selection, one that could
            be selected.
        MismatchError: They are not the run's.
    """
    if template is None:
        raise InputError(_unknown("its data_collator has no template"))
    dataset = run.dataset()
    reasons = {row: example for row, example in _examples(dataset) if isinstance(example, str)}
    numbers = np.setdiff1d(np.arange(len(dataset)), list(reasons))
    if len(trainer.train_dataset) != len(numbers):
        raise MismatchError(
            f"LLaMA-Factory has {len(trainer.train_dataset)} rows, where {len(numbers)} of the {len(dataset)} in "
            f"{run.path} are such as it keeps: dataset is of other rows{_cache(data)}"
        )
    _dropped(np.intersect1d(wanted, list(reasons)), reasons, dataset, trainer.processing_class, live=live)
    _same_tokens(trainer, template, data, _examples(dataset, np.intersect1d(wanted, numbers)), numbers)
    return numbers


def _examples(dataset: Dataset, wanted: NDArray[np.int64] | None = None) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Rows, all or those wanted, with their numbers; see :func:`_example`."""
    for start in range(0, len(dataset), _BLOCK_ROWS):
        stop = min(start + _BLOCK_ROWS, len(dataset))
        chosen = range(start, stop) if wanted is None else wanted[(wanted >= start) & (wanted < stop)].tolist()
        if chosen:
            rows = dataset.rows(start, stop)
            yield from ((row, _example(rows[row - start])) for row in chosen)


def _cache(data: Any) -> str:
    if data.tokenized_path is None:
        return ""
    return f", or tokenized_path {data.tokenized_path} was made of others: remove it"


def _selected(run: Run, epochs: Sequence[int]) -> NDArray[np.int64]:
    """All rows that some index has, ascending; what is wrong with an index, attach says."""
    paths = [run.index(epoch) for epoch in epochs]
    rows = [index.read(path).rows for path in paths if path.is_file()]
    return np.unique(np.concatenate(rows)) if rows else np.empty(0, np.int64)


def _example(row: Mapping[str, Any]) -> dict[str, Any] | str:
    """A row as LLaMA-Factory has it when it tokenises it, or why it drops it."""
    system = ""
    if "messages" in row:
        try:
            turns, _ = exporter.turns(row["messages"])
        except InputError as error:
            return str(error)
        if turns[0]["role"] == "system":
            system, turns = turns[0]["content"], turns[1:]
    else:
        turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
        odd = [role for role, turn in zip(("prompt", "completion"), turns, strict=True) if not _text(turn)]
        if odd:
            return f"its {odd[0]} is no text"
    roles = [{**turn, "role": "observation" if turn["role"] == "tool" else turn["role"]} for turn in turns]
    return {"_prompt": roles[:-1], "_response": roles[-1:], "_system": system, "_tools": row.get("tools") or ""}


def _text(turn: Mapping[str, Any]) -> bool:
    return isinstance(turn["content"], str)


def _dropped(
    rows: NDArray[np.int64], reasons: Mapping[int, str], dataset: Dataset, tokenizer: Any, *, live: bool
) -> None:
    """Report rows that LLaMA-Factory drops; refuse what would have it train without them."""
    if reasons:
        _logger.warning("LLaMA-Factory drops %d rows: %s", len(reasons), hf.few(list(reasons)))
    if live and len(rows):
        # A row that cannot be scored is never selected.
        part = replace(dataset, table=dataset.table.take(pa.array(rows))).rows()
        rows = rows[[row.status in tokenised.SCORED for row in tokens.encode(part, tokenizer)]]
    if len(rows):
        raise InputError(
            f"LLaMA-Factory drops {len(rows)} rows that {'could be' if live else 'are'} selected: {hf.few(rows)}; row "
            f"{rows[0]}: {reasons[int(rows[0])]}. "
            f"{f'Give them as {KEYS}exclude' if live else 'Select with them as exclude'}, or mend them, and score and "
            "select again"
        )


def _same_tokens(
    trainer: Any, template: Any, data: Any, examples: Iterator[tuple[int, Any]], numbers: NDArray[np.int64]
) -> None:
    """Compare LLaMA-Factory's tokens and labels with those that it makes of the run's rows now."""
    from llamafactory.data.processor import SupervisedDatasetProcessor

    processors = {
        limit: SupervisedDatasetProcessor(
            template=template,
            tokenizer=trainer.processing_class,
            processor=None,
            data_args=replace(data, cutoff_len=limit),
        )
        for limit in (data.cutoff_len, _NO_LIMIT)
    }

    def encode(example: dict[str, Any], limit: int) -> dict[str, list[int]]:
        row = {**example, "_images": None, "_videos": None, "_audios": None}
        found = processors[limit].preprocess_dataset({name: [value] for name, value in row.items()})
        return {name: found[name][0] for name in ("input_ids", "labels")}

    cut = []
    for row, example in examples:
        expected = encode(example, _NO_LIMIT)
        if len(expected["input_ids"]) > data.cutoff_len:
            cut.append(row)
            expected = encode(example, data.cutoff_len)
        found = trainer.train_dataset[int(np.searchsorted(numbers, row))]
        for name, values in expected.items():
            if list(found[name]) != values:
                raise MismatchError(
                    f"row {row}: LLaMA-Factory's {name} are not those that it makes of the run's row: dataset is of "
                    f"other rows, or its entry in dataset_info.json names other columns{_cache(data)}"
                )
        if all(label == -100 for label in expected["labels"]):
            raise InputError(f"row {row}: cutoff_len {data.cutoff_len} leaves nothing of it to train; raise it")
    if cut:
        _logger.warning("cutoff_len %d cuts %d rows: %s", data.cutoff_len, len(cut), hf.few(cut))


def _own_tokenizer(settings: Mapping[str, Any]) -> Any:
    """The model's tokenizer without what LLaMA-Factory changes of it."""
    from transformers import AutoTokenizer

    trust = bool(settings.get("trust_remote_code", False))
    return AutoTokenizer.from_pretrained(settings["model_name_or_path"], trust_remote_code=trust)


def _note_other_tokens(trainer: Any, tokenizer: Any, run: Run, numbers: NDArray[np.int64]) -> None:
    """Say where LLaMA-Factory has the model trained on other tokens than are scored."""
    row = int(numbers[0])
    (scored,) = tokens.encode(run.dataset().rows(row, row + 1), tokenizer)
    if scored.status in tokenised.SCORED:
        difference = hf.other_tokens(trainer.train_dataset[0], scored, tokenizer, "tokens")
        if difference:
            _logger.warning(
                "row %d is trained as other tokens than it is scored as: %s (there is LLaMA-Factory, which has a "
                "template of its own; %scheck: tokens refuses this)",
                row,
                difference,
                KEYS,
            )


if __name__ == "__main__":
    main()
