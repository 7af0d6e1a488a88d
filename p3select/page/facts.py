"""What a run folder says, as arrays over the rows of the dataset."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.special import gammaln

from p3select import dataset as data
from p3select import embeddings, index, neighbors, scores, selection, shards
from p3select.errors import InputError
from p3select.run import read_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from p3select.dataset import Dataset
    from p3select.index import Selection
    from p3select.run import Run

    Values = NDArray[np.float64]
    Rows = NDArray[np.int64]

STEPS = ("score", "embed", "select", "train")
# Scores that differ in one of these are of other tokens or other actions.
_SAME = ("tokenizer", "template", "actions", "max_length", "truncate")
# Columns that are looked at unasked, where the data have them.
COLUMNS = ("source", "subset", "domain", "category", "task", "subject", "type", "level")
# Values of a column that are shown one by one; further ones are put together.
SHOWN_VALUES = 10
OTHERS, NONE = "all others", "(none)"
# Characters by which values of a column are told apart.
NAME = 80
CELLS = 50
# Fewer cells where there are fewer rows, so that a cell has about so many.
CELL_ROWS = 20
PROJECTED_ROWS = 4_000


class Epoch(NamedTuple):
    """An epoch with scores; the arrays are over all rows of the dataset."""

    number: int
    source: int
    """The epoch whose scores these are: another one where the index was made from its scores."""
    difficulty: Values
    """(n,), NaN for rows without one."""
    nll: Values
    """(n,) nats per token, NaN for rows without a score."""
    tokens: Rows
    """(n,) scored tokens."""
    status: Mapping[str, int]
    settings: Mapping[str, Any]
    policy: str | None
    selection: Selection | None
    lam: float | None
    """λ; None without an index, or where that went by another difficulty."""

    @property
    def eligible(self) -> NDArray[np.bool_]:
        """(n,), none without λ."""
        return np.zeros(len(self.difficulty), bool) if self.lam is None else self.difficulty <= self.lam

    @property
    def picked(self) -> NDArray[np.bool_]:
        """(n,), none without an index."""
        mask = np.zeros(len(self.difficulty), bool)
        if self.selection is not None:
            mask[self.selection.rows] = True
        return mask


class Step(NamedTuple):
    """From an epoch's policy to the next one's; the arrays are over the rows scored in both."""

    before: Epoch
    after: Epoch
    rows: Rows
    trained: NDArray[np.bool_]
    """(m,) picked for the epoch between the two policies."""
    untouched: NDArray[np.bool_]
    """(m,) picked for no epoch so far."""
    reason: str | None
    """Why the two cannot be compared, if they cannot."""

    def change(self, name: str) -> Values:
        """(m,) after − before of ``difficulty`` or ``nll``."""
        found: Values = getattr(self.after, name)[self.rows] - getattr(self.before, name)[self.rows]
        return found


class Times(NamedTuple):
    """What choosing and training took, over the epochs of which both are known whole."""

    epochs: list[int]
    """Those of which the times to score, to select and to train are recorded."""
    seconds: dict[str, float]
    """Step → seconds over these epochs: scores that several were selected by count once, and embeddings, made once for
    the run, in these epochs' share of those that were selected."""
    notes: list[str]
    """What is left out, and why."""


def epochs(run: Run, rows: int) -> tuple[list[Epoch], str, list[str]]:
    """The epochs with scores, the kind of difficulty, and what there is to know.

    The kind is that of the last index; ``p3`` without one.

    Raises:
        InputError: No epoch was scored to its end.
    """
    chosen = {number: index.read(run.index(number)) for number in _numbers(run, "index", "epoch-*.parquet")}
    kind = chosen[max(chosen)].metadata["difficulty"] if chosen else "p3"
    found, notes = [], []
    for number in sorted({*_numbers(run, "scores", "epoch-*/manifest.json"), *chosen}):
        try:
            found.append(_epoch(run, number, kind, rows, chosen.get(number)))
        except InputError as error:
            notes.append(f"epoch {number} is left out: {error}")
    if not found:
        raise InputError(notes[0] if notes else f"{run.path}: no scores; run 'p3select score' first")
    for epoch in found:
        if guessed := epoch.status.get(scores.PREDICTED):
            rmse = read_json(run.scores(epoch.source) / "refresh.json")["held_back_rmse"]
            notes.append(
                f"epoch {epoch.number}: the difficulty of {guessed:,} rows is predicted, not measured (error on rows "
                f"held back: {rmse:.3f}); losses, and the rows that are shown, are of measured rows"
            )
        if epoch.selection is None:
            continue
        if epoch.selection.metadata["difficulty"] != kind:
            notes.append(
                f"epoch {epoch.number} was selected by {epoch.selection.metadata['difficulty']}, and {kind} is shown: "
                "its λ has another scale and is left out"
            )
        if epoch.source != epoch.number:
            notes.append(f"epoch {epoch.number} was selected by the scores of epoch {epoch.source}")
        if epoch.selection.metadata["scores_fingerprint"] != scores.fingerprint(run, epoch.source):
            notes.append(f"epoch {epoch.number} was selected from other scores than are there now; select it again")
    return found, kind, notes


def selected(found: Sequence[Epoch]) -> list[Epoch]:
    """Those of the epochs for which rows were picked."""
    return [epoch for epoch in found if epoch.picked.any()]


def steps(found: Sequence[Epoch]) -> list[Step]:
    """From each epoch to the next one that was scored."""
    return [step(before, after, found) for before, after in pairwise(found)]


def step(before: Epoch, after: Epoch, found: Sequence[Epoch]) -> Step:
    """From one epoch to a later one."""
    rows = np.flatnonzero(~(np.isnan(before.difficulty) | np.isnan(after.difficulty)))
    trained, earlier = np.zeros(len(before.difficulty), bool), np.zeros(len(before.difficulty), bool)
    for epoch in found:
        if before.number <= epoch.number < after.number:
            trained |= epoch.picked
        elif epoch.number < before.number:
            earlier |= epoch.picked
    reason = None
    changed = [name for name in _SAME if before.settings.get(name) != after.settings.get(name)]
    if changed:
        reason = f"epochs {before.number} and {after.number} were scored with another {', another '.join(changed)}"
    elif before.settings == after.settings:
        reason = f"by the record, epochs {before.number} and {after.number} were scored with the same weights"
    elif not len(rows):
        reason = f"no row was scored both in epoch {before.number} and in {after.number}"
    return Step(before, after, rows, trained[rows], ~(trained | earlier)[rows], reason)


def vectors(run: Run) -> NDArray[np.float32] | None:
    """The embeddings (n, d), memory-mapped; None where there are none."""
    return embeddings.read(run)[0] if run.embeddings.is_file() else None


def plane(x: NDArray[np.float32]) -> tuple[Values, Values, Values]:
    """The first two principal components of rows drawn from all.

    Args:
        x: (n, d).

    Returns:
        (mean (d,), axes (d, 2), shares (2,) of the variance); an axis points to where its largest entry is positive.
    """
    drawn = np.random.default_rng(0).choice(len(x), min(len(x), PROJECTED_ROWS), replace=False)
    sample = np.asarray(x[np.sort(drawn)], np.float64)
    mean = sample.mean(axis=0)
    _, sizes, axes = np.linalg.svd(sample - mean, full_matrices=False)
    two = np.zeros((2, x.shape[1]))
    two[: len(axes[:2])] = axes[:2]
    signs = np.sign(two[np.arange(2), np.abs(two).argmax(axis=1)])
    shares = np.zeros(2)
    shares[: len(sizes[:2])] = sizes[:2] ** 2 / max((sizes**2).sum(), 1e-300)
    return mean, (two * signs[:, None]).T, shares


def cells(x: NDArray[np.float32]) -> NDArray[np.int32]:
    """Each row's cell (n,), by spherical k-means; see :func:`p3select.neighbors.cells`."""
    return neighbors.cells(x, max(1, min(CELLS, len(x) // CELL_ROWS)), 1)[:, 0]


def expected_cells(sizes: NDArray[np.int64], k: int) -> float:
    """How many cells k rows drawn without replacement fall into, on average: Σ 1 − C(n − nᵢ, k) / C(n, k)."""
    n, left = int(sizes.sum()), sizes.sum() - sizes
    fits = left >= k
    missed = gammaln(left[fits] + 1) - gammaln(left[fits] - k + 1) - (gammaln(n + 1) - gammaln(n - k + 1))
    return float(len(sizes) - np.exp(missed).sum())


def atypicality(x: NDArray[np.float32]) -> Values:
    """(n,): 1 − the mean cosine to all rows."""
    found: Values = 1.0 - np.asarray(x @ np.mean(x, axis=0, dtype=np.float64).astype(np.float32), np.float64)
    return found


def columns(dataset: Dataset, names: Sequence[str] | None) -> dict[str, tuple[list[str], NDArray[np.int64]]]:
    """Columns of the data as groups of rows.

    Args:
        dataset: The dataset.
        names: The columns; None for those of ``COLUMNS`` that there are, with more values than one.

    Returns:
        Column → names of its groups, and each row's group (n,). Numbers of many values are cut at their fifths; of
        many names the most frequent ones are kept.

    Raises:
        InputError: No such column, or one of lists or objects.
    """
    if names is None:
        schema = data.take(dataset.paths, np.empty(0, np.int64)).schema
        there = [name for name in COLUMNS if name in schema.names and not pa.types.is_nested(schema.field(name).type)]
        found = {name: _groups(data.column(dataset, name), name) for name in there}
        return {name: groups for name, groups in found.items() if len(groups[0]) > 1}
    return {name: _groups(data.column(dataset, name), name) for name in names}


def costs(run: Run, found: Sequence[Epoch]) -> dict[str, dict[int, Mapping[str, Any]]]:
    """Step → epoch → its seconds, and tokens where they are known; steps of which nothing is recorded are absent.

    Seconds of training are those of ``p3select loop``, else those that an attached trainer or the demo recorded.
    """
    known: dict[str, dict[int, Mapping[str, Any]]] = {}
    for name in STEPS:
        for epoch in [0] if name == "embed" else [epoch.number for epoch in found]:
            file = run.cost(name, epoch)
            done = run.path / "loop" / f"epoch-{epoch:03d}" / "done.json"
            if name == "train" and done.is_file():
                file = done
            if file.is_file():
                one = read_json(file)
                if not isinstance(one.get("seconds"), int | float):
                    raise InputError(f"{file}: damaged (it has no seconds); remove it")
                known.setdefault(name, {})[epoch] = one
    return known


def times(found: Sequence[Epoch], known: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> Times:
    """What of the recorded seconds can be compared: a step's of some epochs is nothing beside another's of others.

    Args:
        found: The epochs that were scored.
        known: What :func:`costs` gave.
    """
    whole, lacking = [], dict[str, list[int]]()
    for epoch in found:
        own = {"score": epoch.source, "select": epoch.number, "train": epoch.number}
        lack = [name for name, number in own.items() if number not in known.get(name, {})]
        if not epoch.picked.any():
            lacking.setdefault("no index", []).append(epoch.number)
        elif lack:
            lacking.setdefault(f"time to {' and to '.join(lack)} not recorded", []).append(epoch.number)
        else:
            whole.append(epoch)
    seconds = {
        name: sum(known[name][number]["seconds"] for number in {getattr(epoch, of) for epoch in whole})
        for name, of in (("score", "source"), ("select", "number"), ("train", "number"))
        if whole
    }
    why = "; ".join(f"{listed(numbers)} ({reason})" for reason, numbers in lacking.items())
    notes = [f"{'Left out' if whole else 'No epoch has all its times'}: {why}."] if why else []
    if whole and "embed" in known:
        every = len(selected(found))
        seconds["embed"] = known["embed"][0]["seconds"] * len(whole) / every
        notes += [f"Of embedding, once for the run, {len(whole)} of {every} parts count."] if len(whole) < every else []
    elif any(one.selection is not None and one.selection.metadata["embeddings_fingerprint"] for one in whole):
        notes.append("The time to embed is not recorded: choosing took so much longer.")
    return Times([epoch.number for epoch in whole], seconds, notes)


def listed(numbers: Sequence[int]) -> str:
    """Epochs by their numbers."""
    return f"epoch{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"


def refreshed(run: Run, found: Sequence[Epoch]) -> list[tuple[Any, ...]]:
    """Of each epoch that was scored in part: its number, share of tokens, rows predicted, and what was held back says.

    That is the error, Spearman's ρ, and the share on the right side of λ.
    """
    lines = []
    for epoch in found:
        if guessed := epoch.status.get(scores.PREDICTED):
            about = read_json(run.scores(epoch.source) / "refresh.json")
            told = (about[f"held_back_{name}"] for name in ("rmse", "spearman", "right_side"))
            values = (np.nan if value is None else value for value in told)
            lines.append((epoch.number, f"{about['share_of_tokens']:.0%}", guessed, *values))
    return lines


def actions(run: Run, source: int, rows: Sequence[int]) -> dict[int, tuple[Values, NDArray[np.int64], str]]:
    """Row → its actions' log-probabilities and tokens, and its status; of rows that were scored."""
    settings = scores.settings(run, source)
    found = {}
    size = settings["shard_rows"]
    for row in sorted(set(rows)):
        first = row // size * size
        part = shards.Shard(first, row + 1)
        line = shards.read(run.scores(source), [part], ["action_logprobs", "action_tokens", "status"]).slice(
            row - first
        )
        (one,) = line.to_pylist()
        found[row] = (np.array(one["action_logprobs"], np.float64), np.array(one["action_tokens"]), one["status"])
    return found


def _numbers(run: Run, folder: str, pattern: str) -> list[int]:
    names = [path.relative_to(run.path / folder).parts[0] for path in (run.path / folder).glob(pattern)]
    return sorted(int(name.removeprefix("epoch-").removesuffix(".parquet")) for name in names)


def _epoch(run: Run, number: int, kind: str, rows: int, chosen: Selection | None) -> Epoch:
    source = number if chosen is None else chosen.metadata.get("scores_of", number)
    wanted = ["difficulty", "logprob", "tokens", "status"]
    wanted += ["action_logprobs", "action_tokens"] if kind != "p3" else []
    wanted += {"ifd": ["alone_logprob", "alone_tokens"], "el2n": ["el2n"]}.get(kind, [])
    table = scores.read(run, source, wanted)
    scored = selection.scored_rows(table, kind, run.scores(source))
    tokens = np.zeros(rows, np.int64)
    tokens[: len(table)] = table.column("tokens").to_numpy()
    logprob = np.full(rows, np.nan)
    logprob[: len(table)] = table.column("logprob").cast(pa.float64()).to_numpy()
    difficulty = np.full(rows, np.nan)
    if kind == "p3":
        difficulty[scored] = table.column("difficulty").take(scored).to_numpy()
    else:
        difficulty[scored] = selection.difficulty_of(table, scored, kind)
    return Epoch(
        number=number,
        source=source,
        difficulty=difficulty,
        nll=-logprob / np.maximum(tokens, 1),
        tokens=tokens,
        status={item["values"]: item["counts"] for item in table.column("status").value_counts().to_pylist()},
        settings=scores.settings(run, source),
        policy=scores.policy(run, source),
        selection=chosen,
        lam=float(chosen.metadata["lam"]) if chosen is not None and chosen.metadata["difficulty"] == kind else None,
    )


def _groups(column: pa.ChunkedArray, name: str) -> tuple[list[str], NDArray[np.int64]]:
    if pa.types.is_nested(column.type):
        raise InputError(f"column {name!r}: lists and objects are no groups; give a column of numbers or of text")
    number = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
    if number and pc.count_distinct(column).as_py() > SHOWN_VALUES:
        values = column.cast(pa.float64(), safe=False).to_numpy()
        edges = np.unique(np.nanquantile(values, [0.2, 0.4, 0.6, 0.8]))
        names = [*(f"to {edge:.3g}" for edge in edges), f"above {edges[-1]:.3g}"]
        group = np.searchsorted(edges, values)
        group[np.isnan(values)] = len(names)
        return [*names, *([NONE] if np.isnan(values).any() else [])], group.astype(np.int64)
    if pa.types.is_floating(column.type):
        text = [NONE if value is None else f"{value:g}" for value in column.to_pylist()]
    else:
        text = pc.fill_null(column.cast(pa.string()), NONE).to_pylist()
    text = [value[:NAME] for value in text]
    names_, inverse, counts = np.unique(np.array(text, object).astype(str), return_inverse=True, return_counts=True)
    if len(names_) <= SHOWN_VALUES:
        return names_.tolist(), inverse
    kept = np.sort(np.argsort(-counts, kind="stable")[:SHOWN_VALUES])
    places = np.full(len(names_), SHOWN_VALUES)
    places[kept] = np.arange(SHOWN_VALUES)
    return [*names_[kept].tolist(), OTHERS], places[inverse]
