"""axolotl, trained in epoch e on exactly the rows of index e, each once: ``P3SelectPlugin`` in ``plugins`` of its YAML.

The plugin numbers the rows while axolotl tokenises them, takes the numbers away again before the model could see them,
states the steps that axolotl would else count from the whole dataset, and hands the trainer to
:func:`p3select.trainers.hf.attach`. Where axolotl packs, its own packing is used, anew in each epoch.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from axolotl.integrations.base import BasePlugin
from pydantic import BaseModel, ValidationError
from torch.utils.data import BatchSampler
from transformers import TrainerCallback

from p3select.errors import InputError, MismatchError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from p3select.dataset import Dataset

# Of axolotl: what the plugin was tested with. Its hooks are not a public interface that keeps.
VERSIONS = ("0.19",)
# The row's number in the run, while axolotl tokenises.
COLUMN = "p3select_row"
# Rows compared at a time.
BLOCK_ROWS = 1024
# axolotl's, where the YAML says nothing.
PREPARED = "last_run_prepared"

_logger = logging.getLogger(__name__)


class P3SelectArgs(BaseModel):
    """The plugin's keys in axolotl's YAML: the run folder, and the options of :func:`p3select.trainers.hf.attach`."""

    p3select_run: str | None = None
    p3select_shuffle: bool | None = None
    p3select_check: str | None = None
    p3select_budget: int | str | None = None
    p3select_pace: str | None = None
    p3select_difficulty: str | None = None
    p3select_quality: str | None = None
    p3select_quality_weight: float | None = None
    p3select_fresh: float | None = None
    p3select_selector: str | None = None
    p3select_similarity: str | None = None
    p3select_scale: float | None = None
    p3select_whiten: bool | None = None
    p3select_at_most: int | None = None
    p3select_per: str | None = None
    p3select_share: str | None = None
    p3select_include: str | list[int] | None = None
    p3select_exclude: str | list[int] | None = None
    p3select_seed: int | None = None
    p3select_actions: str | None = None
    p3select_max_length: int | None = None
    p3select_truncate: str | None = None
    p3select_overwrite: bool | None = None
    p3select_show_progress: bool | None = None


class _Given(P3SelectArgs, extra="forbid"):
    """The same, for what a YAML has under our names and no others: axolotl drops keys that it does not know."""


class P3SelectPlugin(BasePlugin):  # type: ignore[misc]
    """What axolotl calls: ``plugins: [p3select.trainers.axolotl.P3SelectPlugin]``."""

    def __init__(self) -> None:
        super().__init__()
        # Of the train dataset, when it is there: the rows' numbers in the run, and how they are packed.
        self.rows: NDArray[np.int64] | None = None
        self.batches: Callable[[Any], Any] | None = None
        self.attached = False

    def get_input_args(self) -> str:
        """Where axolotl finds the keys."""
        return f"{P3SelectArgs.__module__}.{P3SelectArgs.__name__}"

    def register(self, cfg: Any) -> None:
        """Check the version and the keys, before axolotl does anything else.

        Raises:
            InputError: Another version of axolotl, no run, or a key that there is not.
        """
        found = version("axolotl")
        if not found.startswith(tuple(f"{known}." for known in VERSIONS)):
            raise InputError(
                f"axolotl {found}: the p3select plugin knows {', '.join(VERSIONS)}; "
                f"pip install 'axolotl=={VERSIONS[-1]}.*'"
            )
        try:
            given = _Given(**{name: value for name, value in cfg.items() if name.startswith("p3select_")})
        except ValidationError as error:
            first = error.errors()[0]
            name, known = str(first["loc"][0]), ", ".join(_Given.model_fields)
            what = f"no such key; there are {known}" if first["type"] == "extra_forbidden" else first["msg"]
            raise InputError(f"{name}: {first['input']!r}: {what}") from None
        if given.p3select_run is None:
            raise InputError("p3select_run: is missing; give the run folder, as 'p3select score --run' made it")

    def load_datasets(self, cfg: Any, preprocess: bool = False) -> Any:
        """The datasets that axolotl makes, less the column of row numbers, and the steps of the selected rows.

        Raises:
            InputError: Settings with which rows would not be those selected, or selected rows that axolotl dropped.
            MismatchError: The rows are not the run's, or an index is not.
        """
        # Not above: axolotl passes over a plugin whose module raises an ImportError.
        from axolotl.common.datasets import load_datasets

        from p3select import constraints
        from p3select.run import Run
        from p3select.trainers import hf

        _refuse_settings(cfg)
        run, epochs = Run(cfg.p3select_run), hf.whole_epochs(cfg.num_epochs)
        data = run.dataset()
        # axolotl finds a prepared dataset again by the words of the YAML, whatever the files hold by now.
        folder = Path(cfg.dataset_prepared_path or PREPARED) / f"p3select-{data.fingerprint[:16]}"
        cfg.dataset_prepared_path = str(folder)
        _refuse_other_files(cfg, data)
        with _numbering(data) as differences:
            meta = load_datasets(cfg=cfg)
        if meta.eval_dataset is not None and COLUMN in meta.eval_dataset.column_names:
            meta.eval_dataset = meta.eval_dataset.remove_columns(COLUMN)
        self.rows, meta.train_dataset = _taken(meta.train_dataset, differences, cfg)
        where = np.full(len(data), -1)
        where[self.rows] = np.arange(len(self.rows))
        dropped = np.flatnonzero(where < 0)
        if len(dropped):
            _logger.warning("axolotl dropped %d of %d rows: row %s", len(dropped), len(data), hf.few(dropped))
        if preprocess:
            return meta

        if cfg.p3select_budget is None:
            indices = hf.Indices(run, epochs)
            orders = [_order(indices.rows(epoch, resumed=False), epoch, where, cfg) for epoch in range(1, epochs + 1)]
            count, batch = indices.k, cfg.micro_batch_size
            if cfg.sample_packing:
                self.batches, count = _packing(cfg, meta.train_dataset, orders)
                batch = 1
        else:
            count, batch = constraints.budget_rows(cfg.p3select_budget, len(data)), cfg.micro_batch_size
        steps = hf.steps_per_epoch(count, batch, cfg.world_size, cfg.gradient_accumulation_steps)
        meta.total_num_steps = epochs * steps
        return meta

    def add_callbacks_pre_trainer(self, cfg: Any, model: Any) -> list[Any]:  # noqa: ARG002
        """What makes a hook that axolotl did not call an error."""
        return [_Guard(self)]

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        """Attach the run to the trainer.

        Raises:
            InputError: As :func:`p3select.trainers.hf.attach`, or the processes do not know of each other, or axolotl
                loaded the datasets without the plugin.
            MismatchError: As there.
        """
        from p3select.trainers import hf

        if self.rows is None:
            raise InputError(
                "axolotl did not let the p3select plugin load the datasets; load them with "
                "PluginManager.get_instance().load_datasets(cfg), as 'axolotl train' does"
            )
        if trainer.args.world_size != cfg.world_size:
            raise InputError(
                f"{cfg.world_size} processes were started, and each would train by itself; on a machine without a GPU, "
                "set ACCELERATE_USE_CPU=true"
            )
        given = {name: cfg[name] for name in P3SelectArgs.model_fields if cfg.get(name) is not None}
        options = {name.removeprefix("p3select_"): value for name, value in given.items()}
        run = options.pop("run")
        if "budget" in options:
            # Rows that axolotl drops as too long are not scored, so that they are not selected.
            options.setdefault("max_length", cfg.sequence_len)
            cut = (cfg.excess_length_strategy or "drop") == "truncate"
            options.setdefault("truncate", "keep-start" if cut else "skip")
        hf.attach(trainer, run, rows=self.rows, batches=self.batches, **options)
        self.attached = True


class _Guard(TrainerCallback):  # type: ignore[misc]
    """An axolotl that did not call the plugin's ``post_trainer_create`` would train all rows."""

    def __init__(self, plugin: P3SelectPlugin) -> None:
        self.plugin = plugin

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Find that the trainer has its sampler."""
        if not self.plugin.attached:
            raise InputError("axolotl did not give its trainer to the p3select plugin; nothing was trained")


class _Numbering:
    """A tokenisation strategy of axolotl's that keeps the row's number; a row that it drops takes it along."""

    def __init__(self, strategy: Any) -> None:
        self.strategy, self.supports_batched = strategy, strategy.supports_batched
        self.filter_rows = getattr(strategy, "filter_rows", None)

    def tokenize_prompt(self, prompt: Any) -> dict[str, Any]:
        """Tokenise a row, or, where the strategy takes several at a time, these one by one."""
        columns = dict(prompt)
        number = columns.pop(COLUMN)
        if not self.supports_batched:
            return {**self.strategy.tokenize_prompt(columns), COLUMN: number}
        whole: dict[str, list[Any]] = {COLUMN: []}
        for at, row in enumerate(number):
            made = self.strategy.tokenize_prompt({name: values[at : at + 1] for name, values in columns.items()})
            count = len(next(iter(made.values()), ()))
            if count > 1:
                raise InputError(
                    f"row {row}: the dataset's type makes {count} rows of it; give a type that makes one, or a larger "
                    "sequence_len"
                )
            for name, values in {**made, COLUMN: [row] * count}.items():
                whole.setdefault(name, []).extend(values)
        return whole


@contextmanager
def _numbering(data: Dataset) -> Iterator[list[str]]:
    """While it lasts, axolotl's tokenisation of a run's rows numbers them.

    Yields:
        What other datasets differ from the run's in; it grows as they are tokenised.
    """
    from axolotl.datasets import TokenizedPromptDataset

    plain = TokenizedPromptDataset.process
    differences: list[str] = []

    def process(self: Any, dataset: Any) -> Any:
        difference = _difference(dataset, data)
        if difference:
            differences.append(difference)
            return plain(self, dataset)
        strategy, self.prompt_tokenizer = self.prompt_tokenizer, _Numbering(self.prompt_tokenizer)
        try:
            return plain(self, dataset.add_column(COLUMN, np.arange(len(dataset))))
        finally:
            self.prompt_tokenizer = strategy

    TokenizedPromptDataset.process = process
    try:
        yield differences
    finally:
        TokenizedPromptDataset.process = plain


def _refuse_other_files(cfg: Any, data: Dataset) -> None:
    """Refuse local files that are not the run's; those that axolotl finds prepared it would not read."""
    from p3select.dataset import JSON_LINES, PARQUET, load

    files = cfg.datasets[0]["data_files"] or cfg.datasets[0]["path"]
    files = [Path(file).resolve() for file in ([files] if isinstance(files, str) else files)]
    if list(map(str, files)) == list(data.paths):
        return
    if all(file.is_file() and file.suffix in PARQUET + JSON_LINES for file in files):
        given = load(files, data.columns)
        if given.fingerprint != data.fingerprint:
            raise MismatchError(_other_rows(cfg, f"{len(given)} rows with the fingerprint {given.fingerprint[:12]}"))


def _other_rows(cfg: Any, difference: str) -> str:
    return (
        f"datasets: {cfg.datasets[0]['path']} does not hold the rows of {cfg.p3select_run}: {difference}; give the "
        "run's files, or score these rows with another run folder"
    )


def _difference(dataset: Any, data: Dataset) -> str | None:
    """What a dataset of axolotl's, before it is tokenised, differs from the run's in; None where it does not."""
    lacking = [name for name in data.columns.values() if name not in dataset.column_names]
    if lacking:
        return f"no column {lacking[0]!r}; it has {', '.join(dataset.column_names)}"
    if len(dataset) != len(data):
        return f"{len(dataset)} rows, and the run has {len(data)}"
    arrow = dataset.with_format("arrow")
    for start in range(0, len(data), BLOCK_ROWS):
        given = arrow[start : start + BLOCK_ROWS]
        table = pa.table({role: given.column(name) for role, name in data.columns.items()})
        pairs = zip(replace(data, table=table).rows(), data.rows(start, start + len(table)), strict=True)
        for row, (there, here) in enumerate(pairs, start):
            if there != here:
                return f"row {row} is another: {str(there)[:60]!r} there, {str(here)[:60]!r} in the run"
    return None


def _taken(dataset: Any, differences: list[str], cfg: Any) -> tuple[NDArray[np.int64], Any]:
    """The numbers (len(dataset),) of a train dataset's rows, and the dataset without them."""
    if COLUMN in dataset.column_names:
        return np.asarray(dataset.with_format(None)[COLUMN][:], np.int64), dataset.remove_columns(COLUMN)
    if differences:
        raise MismatchError(_other_rows(cfg, differences[0]))
    raise InputError(
        f"datasets: the rows of {cfg.datasets[0]['path']} were not numbered: they are tokenised already, or prepared "
        f"without the plugin in {cfg.dataset_prepared_path}; give rows of text, and remove that folder"
    )


def _order(rows: NDArray[np.int64], epoch: int, where: NDArray[np.int64], cfg: Any) -> NDArray[np.int64]:
    """Where in the train dataset an epoch's rows are, (k,), in the order in which they will be trained."""
    from p3select.trainers import hf

    gone = rows[where[rows] < 0]
    if len(gone):
        raise InputError(
            f"epoch {epoch}: axolotl dropped {len(gone)} of {len(rows)} selected rows (row {hf.few(gone)}): longer "
            f"than sequence_len {cfg.sequence_len}, shorter than min_sample_len, without a token to train, or copies; "
            "set excess_length_strategy or sequence_len, or select without these rows"
        )
    return where[rows if cfg.p3select_shuffle is False else hf.shuffled(rows, cfg.seed, epoch)]


def _packing(cfg: Any, dataset: Any, orders: list[NDArray[np.int64]]) -> tuple[Callable[[Any], Any], int]:
    """How an epoch's rows are packed: what makes batches for a sampler, and how many, the same in each epoch.

    axolotl's own packing, of each epoch's rows anew; it alone would keep the first epoch's batches under several
    processes, leave out those beyond the first epoch's number, and the last one where it is not full.
    """
    from axolotl.utils.samplers import MultipackBatchSampler, get_dataset_lengths

    real = not cfg.attn_supports_packing if cfg.multipack_real_batches is None else cfg.multipack_real_batches
    size = cfg.micro_batch_size if real else 1
    lengths = get_dataset_lengths(dataset)

    def pack(positions: Sequence[int]) -> list[list[int]]:
        batches = MultipackBatchSampler(
            positions,
            batch_size=size,
            batch_max_len=cfg.sequence_len * (1 if real else cfg.micro_batch_size),
            lengths=lengths,
            bin_size=cfg.sample_packing_bin_size,
            group_size=cfg.sample_packing_group_size,
            sequential=cfg.sample_packing_sequentially,
            drop_last=False,
            # More than one for more than one group only.
            num_processes=min(cfg.dataset_num_proc or 1, -(-len(positions) // cfg.sample_packing_group_size)),
            mp_start_method=cfg.sample_packing_mp_start_method or "fork",
        ).generate_batches()
        packs = [pack for batch in batches for pack in batch]
        if sorted(position for pack in packs for position in pack) != sorted(positions):
            raise MismatchError("axolotl's packing lost rows or doubled them; set sample_packing: false")
        return packs

    together = size * cfg.world_size
    most = max(len(pack(order.tolist())) for order in orders)
    wanted = -(-most // together) * together
    if wanted > len(orders[0]):
        raise InputError(
            f"sample_packing: {len(orders[0])} rows do not make {wanted} packs, {size} in each of {cfg.world_size} "
            "processes; give a larger budget, or sample_packing: false"
        )
    return (lambda sampler: _Packed(sampler, pack, wanted, size)), wanted // size


class _Packed(BatchSampler):  # type: ignore[misc]
    """Batches of ``size`` packs of rows, of the rows that the sampler has when it is iterated; ``wanted`` packs."""

    def __init__(self, sampler: Any, pack: Callable[[Sequence[int]], list[list[int]]], wanted: int, size: int) -> None:
        super().__init__(sampler, size, drop_last=False)
        self.pack, self.wanted = pack, wanted

    def __len__(self) -> int:
        return int(self.wanted // self.batch_size)

    def __iter__(self) -> Iterator[list[list[int]]]:
        packs = spread(self.pack(list(self.sampler)), self.wanted)
        for at in range(0, len(packs), self.batch_size):
            yield packs[at : at + self.batch_size]


def spread(packs: list[list[int]], wanted: int) -> list[list[int]]:
    """The same rows in so many packs, in the same order: those of most rows are halved.

    Raises:
        MismatchError: There are more, or fewer rows than that.
    """
    while len(packs) < wanted:
        fullest = sorted(range(len(packs)), key=lambda at: -len(packs[at]))[: wanted - len(packs)]
        halved = {at for at in fullest if len(packs[at]) > 1}
        if not halved:
            break
        packs = [
            part
            for at, pack in enumerate(packs)
            for part in ((pack[: len(pack) // 2], pack[len(pack) // 2 :]) if at in halved else (pack,))
        ]
    if len(packs) != wanted:
        raise MismatchError(f"{len(packs)} packs, and {wanted} were planned; the index or the seed changed")
    return packs


def _refuse_settings(cfg: Any) -> None:
    """Refuse settings of the YAML with which rows would not be those selected."""
    for wrong, why in (
        (cfg.rl or cfg.reward_model or cfg.process_reward_model, "rl, reward_model: for supervised fine-tuning only"),
        (
            cfg.streaming or cfg.pretraining_dataset,
            "streaming, pretraining_dataset: rows cannot be chosen from a stream",
        ),
        (cfg.skip_prepare_dataset, "skip_prepare_dataset: the plugin follows the rows through their preparation"),
        (cfg.push_dataset_to_hub, "push_dataset_to_hub: what the hub has may be prepared from other rows"),
        (
            len(cfg.datasets or ()) != 1,
            f"datasets: {len(cfg.datasets or ())} entries; give the run's files as one, path or data_files",
        ),
        (cfg.val_set_size, f"val_set_size: {cfg.val_set_size} takes rows out of training; use test_datasets"),
        (cfg.dataset_shard_num, "dataset_shard_num: takes rows out of training"),
        (cfg.curriculum_sampling, "curriculum_sampling: the order is the plugin's; use p3select_shuffle: false"),
        (
            (cfg.context_parallel_size or 1) > 1 or (cfg.tensor_parallel_size or 1) > 1,
            "context_parallel_size, tensor_parallel_size: which process trains which rows is not known; leave them out",
        ),
        (
            cfg.sample_packing and cfg.p3select_budget is not None,
            "sample_packing with p3select_budget: how many steps the rows of later epochs make is not known; make the "
            "index files of all epochs beforehand, or set sample_packing: false",
        ),
    ):
        if wrong:
            raise InputError(why)
