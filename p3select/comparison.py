"""Which strategy chooses better, at an equal budget: what their selections are like, and what models learn from them.

A strategy is a name for arguments of :func:`p3select.select`; ``NAME+OPTION=VALUE`` changes some of them, as in
``p3+pace=cosine:50:95`` or ``p3+selector=kdpp+quality_weight=0``.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from p3select import (
    __version__,
    embeddings,
    kernel,
    neighbors,
    progress,
    scores,
    selection,
    shards,
    trainings,
)
from p3select import dataset as data
from p3select.errors import InputError, MismatchError, check_seed
from p3select.run import Lent, Run, read_json, write_json
from p3select.strategies import folder, plain, resolved

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa
    from numpy.typing import NDArray

    from p3select.dataset import Dataset
    from p3select.index import Selection
    from p3select.strategies import Strategies

# k-means cells for coverage: at least so many rows for each, and never more cells than this.
CELL_ROWS = 4
CELLS = 1_000
# In the folder of results: what was learned.
TRAINED = "trained.json"


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
    evaluation of the last weights; results, of the call's strategies, in ``out/trained.json``. Every step that was
    finished is kept: the same call goes on where an earlier one ended. Steps of the optimiser are the command's: for
    equal steps with ``full`` it has to train on a part of the rows, such as the e-th of one order of its own (as
    benchmarks/training/train.py does). The first rows of ``full``'s file are no such part: their order is drawn anew in
    each epoch, as that of ``uniform``.

    Args:
        run: A run folder with embeddings, and scores of at least one epoch; with ``train``, of the first.
        budget: Of an epoch, as for :func:`p3select.select`. In tokens, strategies have different numbers of rows.
        epochs: T, the epochs of the whole training.
        out: The folder of results.
        epoch: Compare the selections for this epoch; None for all that have scores.
        strategies: Names of :data:`p3select.strategies.STRATEGIES`, each with changes if any: ``NAME+OPTION=VALUE``,
            options being those of :func:`p3select.select`. ``+per=COLUMN`` alone takes as equally many rows of each
            value as there can be. None: all for which there is what they need, and ``uniform`` by the first of
            ``columns``.
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
        ``selections``: for each epoch and strategy rows, tokens, pool (rows that were eligible), shortfall, difficulty
        (mean, p3), length (mean scored tokens), cells (share of the k-means cells that are hit), near_duplicates (rows
        with another selected one at a cosine above 0.95), log_det and distance
        (:func:`p3select.selection.diversity`, for all strategies of as many rows as the smallest selection has), counts
        (column → value → rows) and shift (column → total variation distance to all rows). ``all``: the same of all
        scored rows, as far as it can be. ``jaccard``: for each epoch the matrix of rows in common to rows in all.
        ``distinct``: rows selected in any of the epochs. ``left_out``: strategies that could not be had, and why.
        ``seconds`` per epoch and strategy, which are not in the file.
        With training ``trained``, which is ``trained.json``: ``before``, the evaluation of the first policy; and per
        strategy ``results``, the evaluation's numbers over the seeds (:func:`p3select.trainings.mean`), with
        ``difference``, the same of what each seed has above that of the first strategy; rows and tokens trained and
        seconds of training, in the mean; and what scoring the strategy needs: passes over all rows (for what does not
        go by scores none, for ``static`` one), their tokens, and seconds by the median pass.

    Raises:
        InputError: Bad options, strategies or data.
        MismatchError: The query set was embedded otherwise, or ``out`` has trainings of another budget or
            number of epochs, of other data, or of other scores or embeddings of it.
        P3Error: A command failed (what was finished stays), or a training in ``out`` was made otherwise.
    """
    run, out = run if isinstance(run, Run) else Run(run), Path(out)
    if str(budget).strip().isdecimal():  # "10" of a command line is the count 10
        budget = int(budget)
    # What can be refused is refused before anything is done.
    check_seed(seed)
    call = {"epochs": epochs, "budget": budget, "train": train, "to": to}
    asked = trainings.asked(run, call, evaluate, model, scoring or {})
    if asked is None and discard:
        raise InputError("discard: there are no weights without train and evaluate")
    if asked is not None and (not strategies or not seeds or len(set(seeds)) < len(seeds)):
        raise InputError(f"to train, name the strategies, and give seeds, each once: not {strategies} and {[*seeds]}")
    compared = _epochs(run, epoch, epochs)
    known = _known(run, columns, seed)
    arms, left_out = resolved(
        run, known.dataset, compared, strategies, budget=budget, queries=queries, per=next(iter(columns), None)
    )
    if asked is not None:
        plan = trainings.Plan(run, known.dataset, out / "training", arms, seeds, asked, scoring or {})
        trainings.refuse(plan)
    if (out / TRAINED).is_file():
        # Results of another comparison, which this one's would lie beside, or replace.
        before = read_json(out / TRAINED)
        own = {"budget": budget, "epochs": epochs} | trainings.fingerprints(run, known.dataset)
        changed = [name for name, value in own.items() if before.get(name) != value]
        if changed:
            why = f"has trainings of another comparison (differs in {', '.join(changed)})"
            raise MismatchError(f"{out}: {why}; give another --out")
    found: dict[str, Any] = {
        "budget": budget,
        "epochs": epochs,
        "seed": seed,
        "queries": None if queries is None else str(queries),
        "rows": len(known.dataset),
        "strategies": {name: plain(arguments) for name, arguments in arms.items()},
        "left_out": left_out,
        **{name: [] for name in ("all", "selections", "jaccard")},
        "dataset_fingerprint": known.dataset.fingerprint,
        "embeddings_fingerprint": known.fingerprint,
        "scores_fingerprints": {str(one): scores.fingerprint(run, one) for one in compared},
        "version": __version__,
    }
    # Selections of an earlier call stay until all of these are made.
    made = out / ".selections"
    shutil.rmtree(made, ignore_errors=True)
    seconds, ever = [], np.zeros((len(arms), len(known.dataset)), np.bool_)
    try:
        for one in compared:
            picks, taken = _select(
                known, arms, made, one, {"epochs": epochs, "budget": budget, "seed": seed}, show_progress
            )
            seconds.append({"epoch": one, "strategies": taken})
            found["all"].append({"epoch": one} | _everything(known, one))
            found["selections"] += _measured(known, one, picks)
            masks = np.array([np.isin(np.arange(len(known.dataset)), pick.rows) for pick in picks.values()])
            found["jaccard"].append({"epoch": one, "values": jaccard(masks).tolist()})
            ever |= masks
        found["distinct"] = dict(zip(arms, ever.sum(axis=1).tolist(), strict=True))
        # A kill in between leaves no compare.json, rather than one of other selections than those beside it.
        (out / "compare.json").unlink(missing_ok=True)
        shutil.rmtree(out / "selections", ignore_errors=True)
        made.rename(out / "selections")
    finally:
        shutil.rmtree(made, ignore_errors=True)
    write_json(out / "compare.json", found)
    found["seconds"] = seconds
    if asked is not None:
        found["trained"] = trainings.trained(plan, discard=discard, show_progress=show_progress)
        write_json(out / TRAINED, found["trained"])
    return found


class _Known(NamedTuple):
    """What selections are measured by, for all rows of the dataset (n,)."""

    run: Run
    dataset: Dataset
    vectors: NDArray[np.float32]
    fingerprint: str
    scale: float
    cell: NDArray[np.int32]
    columns: dict[str, NDArray[Any]]
    seed: int


def _known(run: Run, columns: Sequence[str], seed: int) -> _Known:
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
        seed,
    )


def _epochs(run: Run, epoch: int | None, epochs: int) -> list[int]:
    """The epochs to compare, all of them with scores."""
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise InputError(f"epochs {epochs!r}: at least 1")
    some = range(1, epochs + 1) if epoch is None else [epoch]
    # Where none is scored the first says so.
    return [one for one in some if shards.manifest(run.scores(one)) is not None] or [some[0]]


def _select(
    known: _Known, arms: Strategies, place: Path, epoch: int, given: Mapping[str, Any], show_progress: bool
) -> tuple[dict[str, Selection], dict[str, float]]:
    """Each strategy's selection for an epoch, and the seconds that it took."""
    picks, seconds = {}, {}
    for name, arguments in arms.items():
        lent = Lent(place / folder(name), known.run, scored=True)
        lent.bind(known.dataset)
        clock = time.monotonic()
        # What fresh goes by, where only a later epoch is compared.
        before = [one for one in range(1, epoch) if arguments.get("fresh") and not lent.index(one).is_file()]
        for one in (*before, epoch):
            try:
                picks[name] = selection.select(lent, epoch=one, overwrite=True, **{**given, **arguments})
            except InputError as error:
                raise InputError(f"strategy {name}, epoch {one}: {error}") from None
        seconds[name] = time.monotonic() - clock
        if show_progress:
            progress.say(f"epoch {epoch}, {name}: {len(picks[name]):,} rows in {seconds[name]:.1f} s")
    return picks, seconds


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
        one |= {"pool": pick.summary["pool"], "shortfall": pick.metadata["shortfall"]}
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
