"""Which strategy chooses better, at an equal budget: what their selections are like, and what models learn from them.

A strategy is a name for arguments of :func:`p3select.select`; ``NAME+OPTION=VALUE`` changes some of them, as in
``p3+pace=cosine:50:95`` or ``p3+selector=kdpp+quality_weight=0``.
"""

from __future__ import annotations

import inspect
import json
import math
import re
import shutil
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from scipy import stats

from p3select import (
    __version__,
    constraints,
    embeddings,
    fingerprints,
    index,
    kernel,
    loops,
    neighbors,
    progress,
    scores,
    selection,
    selectors,
    shards,
    tokenised,
)
from p3select import dataset as data
from p3select.errors import InputError, MismatchError, P3Error
from p3select.run import Run, read_json, write_json
from p3select.selectors.longest import longest
from p3select.selectors.rds import rds

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from p3select.dataset import Dataset
    from p3select.index import Selection

    Strategies = dict[str, dict[str, Any]]

# Every row that has a score is eligible: pacing is P3's, and a threshold that leaves nothing out is the one that needs
# no choice.
EVERY = {"pace": "constant:100"}
STRATEGIES: Strategies = {
    "p3": {},
    "pace-only": {"selector": "topk"},
    "dpp-only": EVERY,
    "reversed": {"pace": "linear:95:50"},
    "static": {"scores_of": 1},
    "uniform": EVERY | {"selector": "uniform"},
    "longest": EVERY | {"selector": "longest"},
    "nll-high": EVERY | {"selector": "topk", "difficulty": "nll"},
    "nll-middle": EVERY | {"selector": "middle", "difficulty": "nll"},
    "nll-low": EVERY | {"selector": "topk", "difficulty": "nll", "quality": "easier"},
    "ifd": EVERY | {"selector": "ifd", "difficulty": "ifd"},
    "el2n": EVERY | {"selector": "topk", "difficulty": "el2n"},
    "kcenter": EVERY | {"selector": "kcenter", "quality": "none"},
    "facility": EVERY | {"selector": "facility", "quality": "none"},
    "d2": EVERY | {"selector": "d2"},
    "deita": EVERY | {"selector": "deita"},
    "rds": EVERY | {"selector": "rds", "quality": "none"},
    "full": EVERY | {"selector": "uniform", "budget": "100%"},
}
"""Name → arguments of :func:`p3select.select`, ``longest`` and ``rds`` (RDS+) being bound to lengths and queries.

``uniform`` draws anew in each epoch (RS2: Okanovic et al., ICLR 2024, arXiv 2305.18424); ``static`` scores once;
``full`` takes every row, whatever the budget.
"""

# Ablations of P3, which weigh gain against tokens as it does. The others are as published: by their score alone.
ABLATIONS = ("p3", "pace-only", "dpp-only", "reversed", "static")
# Selectors that do not go by quality.
BLIND = ("uniform", "longest", "rds")
# Options of select that are the comparison's own to give, or are of no use to it.
OWN = ("run", "epoch", "epochs", "budget", "seed", "parts", "engine", "workers", "address", "overwrite")

# Selectors that need more than select gives them.
BOUND: Mapping[str, Callable[..., Any]] = {"longest": longest, "rds": rds}
# Of the evaluation's command.
PLACES = ("model", "out", "seed")
NEEDED = (("model",), ("out",))
# What embeddings have to have in common to be compared.
ENCODED = ("encoder", "encoder_fingerprint", "dimension", "text")
# k-means cells for coverage: at least so many rows for each, and never more cells than this.
CELL_ROWS = 4
CELLS = 1_000
# Interval of a mean over seeds.
LEVEL = 0.95


def compare(
    run: Run | str | Path,
    *,
    budget: int | str,
    epochs: int,
    out: str | Path,
    epoch: int | None = None,
    strategies: Sequence[str] | None = None,
    columns: Sequence[str] = (),
    queries: str | Path | None = None,
    seed: int = 0,
    train: str | None = None,
    evaluate: str | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    model: str | Path | None = None,
    to: str = "jsonl",
    scoring: Mapping[str, Any] | None = None,
    discard: bool = False,
    show_progress: bool = False,
) -> dict[str, Any]:
    """Select by many strategies at an equal budget; and, if asked, train by each and evaluate.

    Without training: each strategy's selection for each epoch goes to an index in ``out/selections/STRATEGY``, a run
    folder from which :func:`p3select.export` exports, and what they are like to ``out/compare.json``. The same call
    gives the same bytes.

    With ``train`` and ``evaluate``: for each strategy and seed the whole loop (:func:`p3select.loop`) in
    ``out/training/STRATEGY/seed-0``, the rows scored under the first policy taken over from ``run``, then the
    evaluation of the last weights; results in ``out/trained.json``. Every step that was finished is kept: the same call
    goes on where an earlier one ended. Steps of the optimiser are the command's: for equal steps with ``full`` it has
    to stop there.

    Args:
        run: A run folder with embeddings, and scores of at least one epoch; with ``train``, of the first.
        budget: Of an epoch, as for :func:`p3select.select`. In tokens, strategies have different numbers of rows.
        epochs: T, the epochs of the whole training.
        out: The folder of results.
        epoch: Compare the selections for this epoch; None for all that have scores.
        strategies: Names of ``STRATEGIES``, each with changes if any: ``NAME+OPTION=VALUE``, options being those of
            :func:`p3select.select`. ``+per=COLUMN`` alone takes as equally many rows of each value as there can be.
            None: all for which there is what they need, and ``uniform`` by the first of ``columns``.
        columns: Columns of the data, such as source or level, whose values among the selected rows are counted.
        queries: For ``rds``: another run folder, whose rows were embedded by the same encoder; or ``COLUMN=VALUE``,
            these rows of the dataset, which are then not to be selected by it.
        seed: Of the selections, and of the cells.
        train: As for :func:`p3select.loop`.
        evaluate: A command that reads the weights in ``{model}`` and writes a JSON object of numbers to ``{out}``;
            it may have ``{seed}``.
        seeds: Of the trainings.
        model: The policy that enters the first epoch; None for the one that ``run`` was scored under.
        to: The exporter for ``train``.
        scoring: Arguments of :func:`p3select.score` for the trainings, such as scorer and options; the rules of the
            scores in ``run`` (actions, max_length, truncate, ifd, el2n) hold.
        discard: Remove the weights of a training, which are those of every epoch, once they are evaluated.
        show_progress: Print what is going on, on stderr.

    Returns:
        ``selections``: for each epoch and strategy rows, tokens, shortfall, difficulty (mean, p3), length (mean scored
        tokens), cells (share of the k-means cells that are hit), near_duplicates (rows with another selected one at a
        cosine above 0.95), log_det and distance (:func:`p3select.selection.diversity`, for all strategies of as many
        rows as the smallest selection has), counts (column → value → rows) and shift (column → total variation distance
        to all rows). ``all``: the same of all scored rows, as far as it can be. ``jaccard``: for each epoch the matrix
        of rows in common to rows in all. ``distinct``: rows selected in any of the epochs. ``left_out``: strategies
        that could not be had, and why. ``seconds`` per epoch and strategy, which are not in the file.
        With training ``trained``, which is ``trained.json``: ``before``, the evaluation of the first policy; and per
        strategy ``results``, the evaluation's numbers over the seeds (:func:`mean`), with ``difference``, the same of
        what each seed has above that of the first strategy; rows and tokens trained and seconds of training, in the
        mean; and what scoring the strategy needs: passes over all rows (for what does not go by scores none, for
        ``static`` one), their tokens, and seconds by the median pass.

    Raises:
        InputError: Bad options, strategies or data.
        MismatchError: The query set was embedded otherwise.
        P3Error: A command failed (what was finished stays), or a training in ``out`` was made otherwise.
    """
    run, out = run if isinstance(run, Run) else Run(run), Path(out)
    if str(budget).strip().isdecimal():  # "10" of a command line is the count 10
        budget = int(budget)
    # What can be refused is refused before anything is done.
    asked = _asked(run, {"epochs": epochs, "budget": budget, "train": train, "to": to}, evaluate, model)
    if asked is None and discard:
        raise InputError("discard: there are no weights without train and evaluate")
    if asked is not None and (not strategies or not seeds or len(set(seeds)) < len(seeds)):
        raise InputError(f"to train, name the strategies, and give seeds, each once: not {strategies} and {[*seeds]}")
    compared = _epochs(run, epoch, epochs)
    known = _known(run, columns, compared, seed)
    arms, left_out = _arms(known, strategies, budget, queries, compared)
    found: dict[str, Any] = {
        "budget": budget,
        "epochs": epochs,
        "seed": seed,
        "queries": None if queries is None else str(queries),
        "rows": len(known.dataset),
        "strategies": {name: _plain(arguments) for name, arguments in arms.items()},
        "left_out": left_out,
        **{name: [] for name in ("all", "selections", "jaccard")},
        "dataset_fingerprint": known.dataset.fingerprint,
        "embeddings_fingerprint": known.fingerprint,
        "scores_fingerprints": {str(one): scores.fingerprint(run, one) for one in compared},
        "version": __version__,
    }
    seconds, ever = [], np.zeros((len(arms), len(known.dataset)), np.bool_)
    for one in compared:
        picks, taken = _select(known, arms, out, one, {"epochs": epochs, "budget": budget, "seed": seed}, show_progress)
        seconds.append({"epoch": one, "strategies": taken})
        found["all"].append({"epoch": one} | _everything(known, one))
        found["selections"] += _measured(known, one, picks)
        masks = np.array([np.isin(np.arange(len(known.dataset)), pick.rows) for pick in picks.values()])
        found["jaccard"].append({"epoch": one, "values": jaccard(masks).tolist()})
        ever |= masks
    found["distinct"] = dict(zip(arms, ever.sum(axis=1).tolist(), strict=True))
    write_json(out / "compare.json", found)
    found["seconds"] = seconds
    if asked is not None:
        found["trained"] = _trained(known, out / "training", arms, seeds, asked, scoring or {}, discard, show_progress)
        write_json(out / "trained.json", found["trained"])
    return found


class _Lent(Run):
    """A run folder that has the embeddings of another, and its scores if need be.

    So that a strategy's selections have a folder of their own, from which they can be exported, and nothing is copied.
    """

    def __init__(self, path: Path, lender: Run, *, scored: bool) -> None:
        super().__init__(path)
        self._lender, self._scored = lender, scored

    @property
    def embeddings(self) -> Path:
        return self._lender.embeddings

    def scores(self, epoch: int) -> Path:
        return self._lender.scores(epoch) if self._scored else super().scores(epoch)


class _Known(NamedTuple):
    """What selections are measured by, for all rows of the dataset (n,)."""

    run: Run
    dataset: Dataset
    vectors: NDArray[np.float32]
    fingerprint: str
    scale: float
    cell: NDArray[np.int32]
    columns: dict[str, NDArray[Any]]
    epochs: list[int]
    seed: int


def _known(run: Run, columns: Sequence[str], epochs: list[int], seed: int) -> _Known:
    dataset = run.dataset()
    vectors, fingerprint = embeddings.read(run)
    cells = min(CELLS, max(1, len(vectors) // CELL_ROWS))
    return _Known(
        run,
        dataset,
        vectors,
        fingerprint,
        kernel.scale(vectors),
        neighbors.cells(np.asarray(vectors), cells, 1, seed)[:, 0],
        {name: data.text(data.column(dataset, name)) for name in columns},
        epochs,
        seed,
    )


def _epochs(run: Run, epoch: int | None, epochs: int) -> list[int]:
    """The epochs to compare, all of them with scores."""
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise InputError(f"epochs {epochs!r}: at least 1")
    some = range(1, epochs + 1) if epoch is None else [epoch]
    # Where none is scored the first says so.
    return [one for one in some if _scored(run, one)] or [some[0]]


def _scored(run: Run, epoch: int) -> bool:
    return shards.manifest(run.scores(epoch)) is not None


def _arms(
    known: _Known,
    strategies: Sequence[str] | None,
    budget: int | str,
    queries: str | Path | None,
    compared: Sequence[int],
) -> tuple[Strategies, dict[str, str]]:
    """The strategies' arguments of select; and of those that nobody asked for and that cannot be had, why not."""
    names = [*STRATEGIES] if strategies is None else [*dict.fromkeys(strategies)]
    if not names:
        raise InputError(f"strategies: name some of {', '.join(STRATEGIES)}")
    left_out: dict[str, str] = {}
    if strategies is None and known.columns:
        names.insert(names.index("uniform") + 1, f"uniform+per={next(iter(known.columns))}")
    if strategies is None and list(compared) == [1]:
        names.remove("static")
        left_out["static"] = "in the first epoch it is p3"
    arms: Strategies = {}
    for name in names:
        arguments = _arguments(name)
        lack = _lack(known, arguments, budget, queries)
        if lack is None:
            arms[name] = _ready(known, name, arguments, budget, queries, compared[0])
        elif strategies is None:
            left_out[name] = lack
        else:
            raise InputError(f"strategy {name}: {lack}")
    return arms, left_out


def _arguments(text: str) -> dict[str, Any]:
    """The arguments of select that a strategy is, as they are written."""
    name, *changes = text.split("+")
    if name not in STRATEGIES:
        raise InputError(f"no strategy {name!r}; there are {', '.join(STRATEGIES)}")
    return STRATEGIES[name] | dict(_change(text, change) for change in changes)


def _lack(known: _Known, arguments: Mapping[str, Any], budget: int | str, queries: str | Path | None) -> str | None:
    """What a strategy needs and has not; None for nothing."""
    selector = arguments.get("selector")
    once = arguments.get("scores_of")
    if once is not None and not _scored(known.run, once):
        return f"epoch {once} is not scored"
    asked = arguments.get("difficulty")
    if asked in ("ifd", "el2n") and not all(
        scores.settings(known.run, epoch).get(asked) for epoch in ([once] if once else known.epochs)
    ):
        return f"the rows were scored without --{asked}: score them again with it"
    if selector == "rds" and queries is None:
        return "it needs a query set: give --queries, another run folder or COLUMN=VALUE"
    if constraints.budget_tokens(arguments.get("budget", budget)) and isinstance(selector, str):
        function = BOUND[selector] if selector in BOUND else selectors.find(selector)
        if "limits" not in inspect.signature(function).parameters:
            return "its selector takes no budget in tokens: give one in rows"
    return None


def _ready(
    known: _Known, text: str, arguments: dict[str, Any], budget: int | str, queries: str | Path | None, epoch: int
) -> dict[str, Any]:
    """The arguments with what depends on the data and on the budget."""
    tokens = constraints.budget_tokens(arguments.get("budget", budget))
    table = scores.read(known.run, arguments.get("scores_of", epoch), ["difficulty", "tokens"])
    table = table.append_column("row", pa.array(np.arange(table.num_rows))).filter(
        table.column("difficulty").is_valid()
    )
    if tokens and text.partition("+")[0] not in ABLATIONS and arguments["selector"] != "uniform":
        arguments.setdefault("cost_weight", 0.0)
    if "per" in arguments and "at_most" not in arguments:
        wanted = tokens or constraints.budget_rows(arguments.get("budget", budget), len(known.dataset))
        arguments["at_most"] = _level(known, table, arguments["per"], wanted, in_tokens=tokens is not None)
    if arguments.get("selector") == "longest":
        arguments["selector"] = _bound(longest, lengths=table.column("tokens").to_numpy())
    elif arguments.get("selector") == "rds":
        vectors, rows = _queries(known, str(queries))
        arguments |= {"selector": _bound(rds, queries=vectors)} | ({"exclude": rows} if rows else {})
    return arguments


def _change(text: str, change: str) -> tuple[str, Any]:
    """An option of select and its value."""
    option, equals, value = change.partition("=")
    known = [name for name in inspect.signature(selection.select).parameters if name not in OWN]
    if option not in known or not equals:
        raise InputError(f"strategy {text}: {change!r} should be OPTION=VALUE, with one of {', '.join(known)}")
    try:
        return option, json.loads(value)
    except ValueError:
        return option, value


def _bound(function: Callable[..., Any], **given: Any) -> Callable[..., Any]:
    """A selector with what it needs, under its own name."""
    bound = partial(function, **given)
    for name in ("__module__", "__qualname__"):
        setattr(bound, name, getattr(function, name))
    return bound


def _plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as JSON."""
    plain = dict(arguments)
    if isinstance(plain.get("selector"), partial):
        bound = plain["selector"]
        given = {name: fingerprints.of_json(array.tolist()) for name, array in bound.keywords.items()}
        plain["selector"] = {"name": selection.name_of(bound), **given}
    if plain.get("exclude") is not None and not isinstance(plain["exclude"], str):
        plain["exclude"] = constraints.described(np.asarray(plain["exclude"], np.int64))
    return plain


def _level(known: _Known, table: pa.Table, column: str, wanted: int, *, in_tokens: bool) -> int:
    """The least N so that N rows of each value of a column, or all that it has, make up what is wanted."""
    values = data.text(data.column(known.dataset, column))[table.column("row").to_numpy()]
    _, group, count = np.unique(values, return_inverse=True, return_counts=True)
    cost = table.column("tokens").to_numpy().astype(np.float64) if in_tokens else np.ones(len(values))
    mean = np.bincount(group, cost) / count
    # Of rows up to N of each value, what they come to in the mean.
    total = np.cumsum([mean[count >= n].sum() for n in range(1, int(count.max()) + 1)])
    return min(int(np.searchsorted(total, wanted - 1e-6)), len(total) - 1) + 1


def _queries(known: _Known, given: str) -> tuple[NDArray[np.float32], list[int]]:
    """The query set's vectors (m, d), and the rows of the dataset that it is, if any."""
    if (Path(given) / "run.json").is_file():
        other = Run(given)
        vectors, _ = embeddings.read(other)
        made = [read_json(run.embeddings.with_suffix(".json")) for run in (known.run, other)]
        # The name is for people where there is a fingerprint.
        names = ENCODED[1:] if "encoder_fingerprint" in made[0] else ENCODED
        differ = [name for name in names if made[0].get(name) != made[1].get(name)]
        if differ:
            raise MismatchError(
                f"{given}: embedded otherwise than {known.run.path} (differs in {', '.join(differ)}); embed the "
                "query set with the same encoder and --text"
            )
        return np.asarray(vectors), []
    column, _, value = given.partition("=")
    if not value:
        raise InputError(
            f"queries {given!r}: no run folder, nor COLUMN=VALUE; 'p3select embed FILE --run DIR --encoder M' makes a "
            "run folder of a query set"
        )
    rows = np.flatnonzero(data.text(data.column(known.dataset, column)) == value)
    if not len(rows):
        raise InputError(f"queries {given!r}: no row has {value!r} in column {column!r}")
    return np.asarray(known.vectors[rows]), rows.tolist()


def _select(
    known: _Known, arms: Strategies, out: Path, epoch: int, given: Mapping[str, Any], show_progress: bool
) -> tuple[dict[str, Selection], dict[str, float]]:
    """Each strategy's selection for an epoch, and the seconds that it took."""
    picks, seconds = {}, {}
    for name, arguments in arms.items():
        lent = _Lent(out / "selections" / _folder(name), known.run, scored=True)
        lent.bind(known.dataset)
        clock = time.monotonic()
        try:
            picks[name] = selection.select(lent, epoch=epoch, overwrite=True, **{**given, **arguments})
        except InputError as error:
            raise InputError(f"strategy {name}, epoch {epoch}: {error}") from None
        seconds[name] = time.monotonic() - clock
        if show_progress:
            progress.say(f"epoch {epoch}, {name}: {len(picks[name]):,} rows in {seconds[name]:.1f} s")
    return picks, seconds


def _folder(name: str) -> str:
    return re.sub(r"[^\w+=.,-]", "-", name)


def _everything(known: _Known, epoch: int) -> dict[str, Any]:
    """What all scored rows are like."""
    table = scores.read(known.run, epoch, ["difficulty", "tokens"])
    return _totals(known, table, np.flatnonzero(table.column("difficulty").is_valid().to_numpy()))


def _totals(known: _Known, table: pa.Table, rows: NDArray[np.int64]) -> dict[str, Any]:
    tokens = table.column("tokens").take(rows).to_numpy()
    counts = {}
    for name, values in known.columns.items():
        found, count = np.unique(values[rows], return_counts=True)
        counts[name] = dict(zip(found.tolist(), count.tolist(), strict=True))
    return {
        "rows": len(rows),
        "tokens": int(tokens.sum()),
        "length": float(tokens.mean()),
        "difficulty": float(table.column("difficulty").take(rows).to_numpy().mean()),
        "counts": counts,
    }


def _measured(known: _Known, epoch: int, picks: Mapping[str, Selection]) -> list[dict[str, Any]]:
    """What each strategy's selection for an epoch is like."""
    table = scores.read(known.run, epoch, ["difficulty", "tokens"])
    everything = np.flatnonzero(table.column("difficulty").is_valid().to_numpy())
    hit = len(np.unique(known.cell[everything]))
    # Diversity depends on how many rows there are.
    alike = min(selection.DIVERSITY_ROWS, *(len(pick) for pick in picks.values()))
    measured = []
    for name, pick in picks.items():
        rows = np.sort(pick.rows)
        one: dict[str, Any] = {"epoch": epoch, "strategy": name, **_totals(known, table, rows)}
        one["shortfall"] = pick.metadata["shortfall"]
        one["cells"] = len(np.unique(known.cell[rows])) / hit
        vectors = np.asarray(known.vectors[rows])
        one["near_duplicates"] = int(np.count_nonzero(embeddings.twins(vectors))) if len(rows) > 1 else 0
        one["shift"] = {column: _shift(values, rows, everything) for column, values in known.columns.items()}
        drawn = np.random.default_rng(known.seed).choice(len(rows), alike, replace=False)
        one |= selection.diversity(vectors[np.sort(drawn)], known.scale) if alike > 1 else {}
        measured.append(one)
    return measured


def _shift(values: NDArray[Any], rows: NDArray[np.int64], everything: NDArray[np.int64]) -> float:
    """The total variation distance between the values of some rows and of all."""
    names, code = np.unique(values, return_inverse=True)
    some, all_ = (np.bincount(code[part], minlength=len(names)) / len(part) for part in (rows, everything))
    return float(np.abs(some - all_).sum() / 2)


def jaccard(masks: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Rows that two selections share, of those that either has.

    Args:
        masks: (s, n) which rows are selected.

    Returns:
        (s, s), from 0 to 1.
    """
    shared = masks.astype(np.float32) @ masks.T.astype(np.float32)
    count = np.diag(shared)
    found: NDArray[np.float64] = (shared / (count[:, None] + count - shared)).astype(np.float64)
    return found


def _asked(run: Run, call: dict[str, Any], evaluate: str | None, model: str | Path | None) -> dict[str, Any] | None:
    """What trainings depend on, and the command of their evaluation; None where there are none."""
    if (call["train"] is None) is not (evaluate is None):
        raise InputError("train and evaluate go together: give both commands, or neither")
    if evaluate is None:
        return None
    loops.filled("train", call["train"], dict.fromkeys(loops.PLACES, ""), loops.NEEDED)
    loops.filled("evaluate", evaluate, dict.fromkeys(PLACES, ""), NEEDED)
    policy = scores.policy(run, 1) if model is None else str(model)
    if policy is None:
        raise InputError(f"{run.scores(1)}: scored by an object, which has no name; give the model")
    if model is None and "adapter" in (shards.manifest(run.scores(1)) or {}).get("about", {}):
        raise InputError(f"{run.scores(1)}: scored with an adapter, and trainings begin with whole weights: merge it")
    return call | {"model": policy, "evaluate": evaluate}


def _trained(
    known: _Known,
    folder: Path,
    arms: Strategies,
    seeds: Sequence[int],
    asked: Mapping[str, Any],
    scoring: Mapping[str, Any],
    discard: bool,
    show_progress: bool,
) -> dict[str, Any]:
    """Train and evaluate by every strategy with every seed."""
    evaluate = asked["evaluate"]
    before = _evaluated(evaluate, asked["model"], folder / "before", seeds[0])
    records = []
    for seed in seeds:  # all strategies with the first one, so that there is something to see early
        for name, arguments in arms.items():
            if show_progress:
                progress.say(f"training by {name}, seed {seed}")
            try:
                one = _arm(known, folder, (name, arguments, seed), asked, scoring, show_progress)
                one["results"] = _evaluated(evaluate, one["weights"], Path(one["folder"]), seed)
                if one["results"].keys() != before.keys():
                    raise InputError(f"the evaluation gave {[*one['results']]}, and {[*before]} before training")
            except P3Error as error:
                raise P3Error(f"strategy {name}, seed {seed}: {error}") from None
            if discard:
                for weights in Path(one["folder"]).glob("loop/epoch-*/weights"):
                    shutil.rmtree(weights)
            records.append(one)
            if show_progress:
                told = ", ".join(f"{key} {value:.4f}" for key, value in one["results"].items())
                progress.say(f"trained by {name}, seed {seed}: {told}")
    measured = [seconds for one in records for seconds in one["seconds_scoring"] if seconds]
    cost = {"tokens_a_pass": _tokens(known.run), "seconds_a_pass": float(np.median(measured)) if measured else None}
    return {
        **asked,
        "seeds": list(seeds),
        **cost,
        "before": before,
        "strategies": [_summed(records, name, cost) for name in arms],
        "dataset_fingerprint": known.dataset.fingerprint,
        "version": __version__,
    }


def _arm(
    known: _Known,
    folder: Path,
    arm: tuple[str, dict[str, Any], int],
    asked: Mapping[str, Any],
    scoring: Mapping[str, Any],
    show_progress: bool,
) -> dict[str, Any]:
    """One strategy's training with one seed; what was done before is not done again."""
    name, arguments, seed = arm
    lent = _Lent(folder / _folder(name) / f"seed-{seed}", known.run, scored=False)
    mark = lent.path / "trained.json"
    made = {
        **{key: value for key, value in asked.items() if key != "evaluate"},
        "scoring": {key: str(value) for key, value in scoring.items() if value},
        "selecting": _plain(arguments),
        "dataset": known.dataset.fingerprint,
    }
    if mark.is_file():
        record = read_json(mark)
        changed = sorted(key for key in made if record["made"].get(key) != made[key])
        if changed:
            raise MismatchError(f"{lent.path}: made otherwise (differs in {', '.join(changed)}); give another --out")
        return record
    passes, selecting = 1 if "scores_of" in arguments else asked["epochs"], dict(arguments)
    if _unscored(arguments):  # the first policy's scores serve it, which everybody has
        passes, selecting["scores_of"] = 0, 1
    done = loops.loop(
        known.dataset,
        lent,
        asked["model"],
        epochs=asked["epochs"],
        budget=selecting.pop("budget", asked["budget"]),
        train=asked["train"],
        to=asked["to"],
        scoring=_scoring(known) | dict(scoring),
        selecting=selecting,
        seed=seed,
        show_progress=show_progress,
    )
    record = {
        "strategy": name,
        "seed": seed,
        "made": made,
        "folder": str(lent.path),
        "weights": done[-1]["out"],
        "rows": sum(one["selected"] for one in done),
        "tokens": sum(int(index.read(lent.index(one["epoch"])).metadata["tokens"]) for one in done),
        "passes": passes,
        # Of the first epoch the scores are taken over.
        "seconds_scoring": [one["seconds_scoring"] for one in done[1:]],
        "seconds_training": sum(read_json(Path(one["out"]).parent / "done.json")["seconds"] for one in done),
    }
    write_json(mark, record)
    return record


def _unscored(arguments: Mapping[str, Any]) -> bool:
    """Whether what a strategy picks does not depend on scores, so that it needs none."""
    selector = selection.name_of(arguments.get("selector", "auto")).rpartition(":")[2]
    return arguments.get("pace") == EVERY["pace"] and (selector in BLIND or arguments.get("quality") == "none")


def _scoring(known: _Known) -> dict[str, Any]:
    """How the rows were scored under the first policy, so that these scores can be taken over."""
    settings, rows = scores.settings(known.run, 1), scores.read(known.run, 1, ["tokens"]).num_rows
    return {
        **tokenised.rules(settings),
        "shard_rows": settings["shard_rows"],
        **{name: bool(settings.get(name)) for name in ("ifd", "el2n")},
        "limit": None if rows == len(known.dataset) else rows,
        "reuse": known.run,
    }


def _tokens(run: Run) -> int | None:
    """Tokens that a pass over all rows has; None where they are not kept any more."""
    settings, rows = scores.settings(run, 1), scores.read(run, 1, ["tokens"]).num_rows
    folder, parts = tokenised.folder(run, settings, rows), shards.ranges(rows, settings["shard_rows"])
    if shards.missing(folder, parts):
        return None
    return sum(
        tokenised.plan(folder, part, second=range(part.rows) if settings.get("ifd") else None).tokens for part in parts
    )


def _evaluated(template: str, model: str, folder: Path, seed: int) -> dict[str, float]:
    """The numbers that the command has of a model; it is not run again."""
    out, mark = folder / "evaluation.json", folder / "evaluated.json"
    command = loops.filled("evaluate", template, {"model": model, "out": str(out), "seed": str(seed)}, NEEDED)
    if mark.is_file():
        known = read_json(mark)
        if known["command"] == command:
            return dict(known["results"])
        if not Path(model).exists() and folder in Path(model).parents:
            raise InputError(f"{model}: discarded, and evaluated by another command: {known['command']}")
    folder.mkdir(parents=True, exist_ok=True)
    out.unlink(missing_ok=True)
    code = loops.run_command(command)
    if code:
        raise P3Error(
            f"the evaluation ended with {code}: {command}; mend it and give the same call again: what is trained stays"
        )
    if not out.is_file():
        raise InputError(f"{out}: not there, after the command that was to write it: {command}")
    results = read_json(out)
    numbers = isinstance(results, dict) and results
    bad = [name for name, value in results.items() if not _finite(value)] if numbers else []
    if not numbers or bad:
        what = f"{bad[0]!r} is no finite number" if bad else "no object of numbers"
        raise InputError(f'{out}: {what}; the evaluation has to write such as {{"loss": 1.25}}')
    write_json(mark, {"command": command, "results": results})
    return dict(results)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _summed(records: Sequence[Mapping[str, Any]], strategy: str, cost: Mapping[str, Any]) -> dict[str, Any]:
    """A strategy over its seeds, of the records of all."""
    own, first = ([one for one in records if one["strategy"] == name] for name in (strategy, records[0]["strategy"]))
    results, passes = {}, own[0]["passes"]
    for name in own[0]["results"]:
        values, others = ([one["results"][name] for one in some] for some in (own, first))
        results[name] = mean(values)
        results[name]["difference"] = mean([a - b for a, b in zip(values, others, strict=True)])
    return {
        "strategy": strategy,
        "results": results,
        **{name: float(np.mean([one[name] for one in own])) for name in ("rows", "tokens", "seconds_training")},
        "tokens_scored": _times(passes, cost["tokens_a_pass"]),
        "seconds_scoring": _times(passes, cost["seconds_a_pass"]),
        "passes": passes,
    }


def _times(count: int, each: float | None) -> float | None:
    """The cost of some passes; None where that of one is not known."""
    return 0.0 if not count else None if each is None else count * each


def mean(values: Sequence[float]) -> dict[str, Any]:
    """A mean over seeds.

    Args:
        values: (s,).

    Returns:
        ``mean``; ``half``, half of the 95 % interval of Student's t with s − 1 degrees of freedom, None of one value;
        ``values``.
    """
    n = len(values)
    spread = stats.t.ppf((1 + LEVEL) / 2, n - 1) * np.std(values, ddof=1) / math.sqrt(n) if n > 1 else None
    return {"mean": float(np.mean(values)), "half": None if spread is None else float(spread), "values": list(values)}
