"""Does the policy's difficulty agree with a ground truth, and with more of it than length?

A rank correlation says how far two orders agree; a long text is often both labelled hard and scored hard, so every
correlation stands beside that of the length alone, and beside the partial one, which is what agreement is left among
rows of one length. Intervals are 95 %, by the bootstrap over rows (Efron & Tibshirani 1993, percentiles).
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from scipy import stats

from p3select import dataset as data
from p3select import difficulties, scores, selection, tokenised, tokens
from p3select.errors import InputError, MismatchError, check_seed
from p3select.run import Run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Values = NDArray[np.float64]

RESAMPLES = 1_000
# Groups of fewer rows say nothing: they are counted, and left out.
LEAST = 10
# Distinct values up to which a ground truth is shown level by level.
LEVELS = 20
# Rows without a value of the column of groups.
MISSING = "(missing)"
# Of a measure over the rows, as its spread.
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# Of the values of a text column, how many have a number where it is one of numbers.
MOST = 0.9
# A hyphen after a letter or a digit is no sign, and a point there none of decimals.
NUMBER = re.compile(
    r"(?:(?<!\w)[+-])?(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|(?<!\w)\.\d+)(?:[eE][+-]?\d+)?"
)


def validate(
    run: Run | str | Path,
    *,
    against: str | None = None,
    epoch: int = 1,
    by: str | None = None,
    difficulty: Sequence[str] = ("p3",),
    actions: Sequence[str] = (),
    tokenizer: str | Path | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare difficulties with a column of the data.

    Rows whose difficulty was predicted are left out: nothing was measured of them.

    Args:
        run: The run folder.
        against: The column: numbers, or text with a number in it such as ``Level 3`` (higher = harder; a text with
            two different numbers has none). Where fewer than 90 % of the texts have a number they are categories
            without an order, else the others are left out. None: only ``spread`` and ``between`` are found.
        epoch: Whose scores.
        by: A column whose values are groups to be looked at one by one, beside all rows together. Rows without a value
            are the group ``MISSING``.
        difficulty: ``p3``, ``nll``, ``ifd``, ``el2n``.
        actions: Rules for ``p3``, each looked at beside the rule that was scored by; () for that alone. ``whole`` can
            always be had; others from scores with ``--actions token``, which are cut anew without scoring again.
        tokenizer: With such rules: the folder or id of the policy's tokenizer; None for the policy's name.
        resamples: Of the bootstrap, at least 1; the same ones for every statistic of the same rows.
        seed: Draws them.

    Returns:
        What can be written as JSON: a number that is not finite, such as the correlation of a constant, is None.
        ``rows``; ``left_out`` (rows without a score, without a value, and if there are any without a number or with a
        predicted difficulty) and, with the third, ``no_number``, one of their texts; ``spread``, for each measure (the
        difficulties, and ``length`` in scored tokens) its mean, its ``QUANTILES`` over the rows and how many rows are
        between the ``edges`` of 30 equal parts of the middle 99 %; ``between``, Spearman's ρ of every two measures;
        ``ordered``, None without a ground truth, and then nothing below.
        If ordered, ``agreement``, for each group and measure: rows, Spearman's ρ and Kendall's τ-b with the ground
        truth, and ρ given length, each as [value, low, high]; and ``trend``, for each measure, Kendall's two-sided p
        of no trend over all rows. If not, ``kruskal``, for each group and measure: rows, the Kruskal–Wallis H
        (corrected for ties) and the p of no difference between the categories.
        ``levels``, for each value of a ground truth of at most ``LEVELS`` values (of categories in each group, too):
        group, level, rows and the means of the measures as [value, low, high], without an interval for one row.
        The group of all rows is None.
        ``groups_left_out``: group and rows of those of fewer than ``LEAST`` rows, of one value, or of categories none
        of which has two rows.

    Raises:
        InputError: No such run, epoch, column or difficulty; a column of neither numbers nor text, or of categories
            none of which has two rows; fewer than one resample; a negative seed; or too few rows with both.
        MismatchError: The tokenizer is not that of the scores.
    """
    if resamples < 1:
        raise InputError(f"resamples {resamples}: the intervals need at least 1")
    check_seed(seed)
    run = run if isinstance(run, Run) else Run(run)
    table = scores.read(run, epoch)
    dataset = run.dataset()
    if against is None and by is not None:
        raise InputError("by goes with against: the ground truth that each group is compared with")
    truth, ordered, unread = (None, None, {}) if against is None else _truth(data.column(dataset, against), against)
    groups = None if by is None else _groups(data.column(dataset, by))
    scored = table.column("logprob").is_valid().to_numpy()
    guessed = table.column("difficulty").is_valid().to_numpy() & ~scored
    known = np.array([truth is None or truth[row] is not None for row in range(table.num_rows)])
    rows = np.flatnonzero(scored & known)
    if len(rows) < LEAST:
        where, also = ("", "") if against is None else (f"column {against!r}: ", " and a value")
        raise InputError(f"{where}{len(rows)} rows have a measured score{also}, fewer than {LEAST}")
    if truth is not None and not ordered and len(set(truth[rows])) == len(rows):
        raise InputError(f"column {against!r}: every category has one row; give a column whose values repeat")
    measures = _measures(run, epoch, table, rows, difficulty, actions, tokenizer)
    measures["length"] = table.column("tokens").take(rows).to_numpy().astype(np.float64)
    numberless = [row for row in unread if row < len(scored) and scored[row]]
    result: dict[str, Any] = {
        "run": str(run.path),
        "epoch": epoch,
        "policy": scores.policy(run, epoch),
        "against": against,
        "by": by,
        "rows": len(rows),
        "left_out": {
            "no score": int((~scored & ~guessed).sum()),
            "no value": int((scored & ~known).sum()) - len(numberless),
            **({"no number": len(numberless)} if numberless else {}),
            **({"predicted difficulty": int(guessed.sum())} if guessed.any() else {}),
        },
        **({"no_number": unread[numberless[0]]} if numberless else {}),
        "spread": {name: _spread(found) for name, found in measures.items()},
        "between": {
            "measures": list(measures),
            "spearman": [[_finite(_spearman(one, other)) for other in measures.values()] for one in measures.values()],
        },
        "ordered": ordered,
        "resamples": resamples,
        "seed": seed,
        "scores": scores.settings(run, epoch),
    }
    if truth is None:
        return result
    return result | _against(
        measures, truth[rows], None if groups is None else groups[rows], bool(ordered), resamples, seed
    )


def _against(
    measures: Mapping[str, Values],
    values: NDArray[Any],
    groups: NDArray[Any] | None,
    ordered: bool,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """What is found of measures beside a ground truth, (n,) numbers or texts."""
    values = values.astype(np.float64) if ordered else values
    every: tuple[str | None, NDArray[np.int64]] = (None, np.arange(len(values)))
    names = [every]
    if groups is not None:
        names += [(name, np.flatnonzero(groups == name)) for name in np.unique(groups).tolist()]
    # Of categories with one row each there is nothing to compare.
    tested = [
        (name, own)
        for name, own in names
        if len(own) >= LEAST and 1 < len(set(values[own])) < (math.inf if ordered else len(own))
    ]
    length = measures["length"]
    found: dict[str, Any] = {
        "agreement" if ordered else "kruskal": [
            {"group": name, "measure": measure, "rows": len(own)}
            | (
                _agreement(one[own], values[own], None if measure == "length" else length[own], resamples, seed)
                if ordered
                else _kruskal(one[own], values[own])
            )
            for name, own in tested
            for measure, one in measures.items()
        ]
    }
    if ordered:
        found["trend"] = {name: _finite(stats.kendalltau(one, values).pvalue) for name, one in measures.items()}
    levels = np.unique(values).tolist()
    if len(levels) <= LEVELS:
        found["levels"] = [
            {"group": name, "level": level, "rows": len(part)}
            | {measure: _mean(one[part], resamples, seed) for measure, one in measures.items()}
            for name, own in ([every] if ordered else tested or [every])
            for level in levels
            for part in [own[values[own] == level]]
            if len(part)
        ]
    shown = {name for name, _ in tested}
    left_out = [{"group": name, "rows": len(own)} for name, own in names if name not in shown]
    return found | {"groups_left_out": left_out}


def named(group: str | None) -> str:
    """A group as it is shown: None is that of all rows."""
    return "all rows" if group is None else group


def _groups(column: pa.ChunkedArray) -> NDArray[Any]:
    """The group of each row: (n,) texts."""
    return np.where(column.is_null().to_numpy(), MISSING, data.text(column))


def _spread(values: Values) -> dict[str, Any]:
    counts, edges = np.histogram(values, bins=30, range=np.quantile(values, (0.005, 0.995)).tolist())
    return {
        "mean": float(values.mean()),
        "quantiles": np.quantile(values, QUANTILES).tolist(),
        "edges": edges.tolist(),
        "counts": counts.tolist(),
    }


def _truth(column: pa.ChunkedArray, name: str) -> tuple[NDArray[Any], bool, dict[int, str]]:
    """The ground truth (n,) with None where there is none, whether its values have an order, texts without a number."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind, values = column.type, column.to_pylist()
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        numbers = [None if value is None else _number(value) for value in values]
        given = len(values) - values.count(None)
        unread = {row: value for row, value in enumerate(values) if value is not None and numbers[row] is None}
        if given - len(unread) < MOST * given:
            return np.array(values, object), False, {}
        return np.array(numbers, object), True, unread
    if not (pa.types.is_null(kind) or pa.types.is_boolean(kind) or pa.types.is_decimal(kind)) and not (
        pa.types.is_integer(kind) or pa.types.is_floating(kind)
    ):
        raise InputError(f"column {name!r}: {kind} is neither numbers nor text; give a column of one of these")
    return np.array([None if value is None else _finite(value) for value in values], object), True, {}


def _number(text: str) -> float | None:
    """The number in a text; None where there is none, or more than one."""
    found = {float(part.replace(",", "")) for part in NUMBER.findall(text.replace("\N{MINUS SIGN}", "-"))}
    return _finite(found.pop()) if len(found) == 1 else None


def _finite(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


def _measures(
    run: Run,
    epoch: int,
    table: pa.Table,
    rows: NDArray[np.int64],
    kinds: Sequence[str],
    rules: Sequence[str],
    tokenizer: str | Path | None,
) -> dict[str, Values]:
    """Difficulties of the rows by name."""
    settings = scores.settings(run, epoch)
    stored = settings["actions"]
    logprobs, counts, offsets = _actions(table, rows)
    found: dict[str, Values] = {}
    for kind in kinds:
        selection.refuse_without(table, kind, run.scores(epoch))
        if kind == "ifd" and (few := table.column("alone_tokens").take(rows).to_numpy()).min() < 1:
            raise InputError(f"row {rows[np.argmin(few)]}: a target of one token has no ifd; leave ifd out")
        found[kind] = selection.difficulty_of(table, rows, kind)
    for rule in dict.fromkeys(rules):
        if rule == stored:
            cut = logprobs, counts, offsets
        elif rule == "whole":
            edges = np.arange(len(rows) + 1)
            cut = np.add.reduceat(logprobs, offsets[:-1]), np.add.reduceat(counts, offsets[:-1]), edges
        elif stored == "token":
            cut = _recut(run, settings, rows, rule, logprobs, offsets, tokenizer or scores.policy(run, epoch))
        else:
            raise InputError(
                f"actions {rule!r}: the scores have sums over actions by {stored!r}, which cannot be cut otherwise; "
                "score with --actions token, of which every rule can be made"
            )
        found[f"p3 by {rule}"] = difficulties.difficulty(*cut[:2], "p3", offsets=cut[2])
    return found


def _actions(table: pa.Table, rows: NDArray[np.int64]) -> tuple[Values, NDArray[np.int64], NDArray[np.int64]]:
    logprobs, counts = (table.column(name).take(rows).combine_chunks() for name in ("action_logprobs", "action_tokens"))
    offsets = np.concatenate([[0], np.cumsum(logprobs.value_lengths().to_numpy())])
    return logprobs.flatten().to_numpy().astype(np.float64), counts.flatten().to_numpy().astype(np.int64), offsets


def _recut(
    run: Run,
    settings: Mapping[str, Any],
    rows: NDArray[np.int64],
    rule: str,
    logprobs: Values,
    offsets: NDArray[np.int64],
    tokenizer: str | Path | None,
) -> tuple[Values, NDArray[np.int64], NDArray[np.int64]]:
    """Token by token scores as sums over the actions of another rule."""
    if tokenizer is None:
        raise InputError(f"actions {rule!r}: give the policy's tokenizer, whose name the scores do not have")
    from p3select.scorers.checkpoints import describe

    _, loaded, _ = describe(tokenizer, None)
    dataset = run.dataset()
    texts = [dataset.part(int(row), int(row) + 1).rows()[0] for row in rows]
    known = tokens.fingerprint(loaded, messages="messages" in texts[0])
    if known["tokenizer"] != settings["tokenizer"]:
        raise MismatchError(f"{tokenizer}: not the tokenizer that the scores were made with; give that of the policy")
    encoded = tokens.encode(texts, loaded, **{**tokenised.rules(settings), "actions": rule})
    lengths = np.diff(offsets)
    for row, one, length in zip(rows, encoded, lengths, strict=True):
        if len(one.actions) != length:
            raise MismatchError(f"row {row}: {len(one.actions)} tokens now, and {length} when it was scored")
    # A row's actions are numbered from 0, without gaps: the place of an action among all rows'.
    firsts = np.cumsum([0, *(int(one.actions[-1]) + 1 for one in encoded)])
    places = np.concatenate([one.actions + first for one, first in zip(encoded, firsts[:-1], strict=True)])
    sums: Values = np.bincount(places, logprobs).astype(np.float64)
    counts: NDArray[np.int64] = np.bincount(places).astype(np.int64)
    return sums, counts, firsts.astype(np.int64)


def _agreement(
    measure: Values, truth: Values, length: Values | None, resamples: int, seed: int
) -> dict[str, list[float | None]]:
    """Rank correlations with their intervals; given length too, where it is not length itself."""
    found = {"spearman": _interval(_spearman, (measure, truth), resamples, seed)}
    found["kendall"] = _interval(_kendall, (measure, truth), resamples, seed)
    if length is not None:
        found["given_length"] = _interval(partial_spearman, (measure, truth, length), resamples, seed)
    return found


def _kruskal(measure: Values, categories: NDArray[Any]) -> dict[str, float | None]:
    """Do the categories differ? Kruskal & Wallis 1952; SciPy has no answer for a constant."""
    if np.ptp(measure) == 0:
        return {"statistic": None, "p": None}
    _, place, count = np.unique(categories, return_inverse=True, return_counts=True)
    found = stats.kruskal(*np.split(measure[np.argsort(place)], np.cumsum(count)[:-1]))
    return {"statistic": _finite(found.statistic), "p": _finite(found.pvalue)}


def partial_spearman(one: Values, other: Values, given: Values) -> float:
    """Spearman's ρ of two variables given a third: the partial correlation of their ranks (Kendall 1942).

    Args:
        one: (n,).
        other: (n,).
        given: (n,) what is held fixed.

    Returns:
        −1 to 1; NaN where the third says everything of one of the others, or one of them is constant.
    """
    a, b, c = _spearman(one, other), _spearman(one, given), _spearman(other, given)
    left = (1.0 - b * b) * (1.0 - c * c)
    return (a - b * c) / np.sqrt(left) if left > 1e-12 else float("nan")


def _spearman(one: Values, other: Values) -> float:
    ranks = stats.rankdata(one), stats.rankdata(other)
    spread = [rank.std() for rank in ranks]
    if min(spread) == 0:
        return float("nan")
    return float(np.mean((ranks[0] - ranks[0].mean()) * (ranks[1] - ranks[1].mean())) / (spread[0] * spread[1]))


def _kendall(one: Values, other: Values) -> float:
    return float(stats.kendalltau(one, other).statistic)


def _interval(
    measure: Callable[..., float], arrays: tuple[Values, ...], resamples: int, seed: int
) -> list[float | None]:
    """The value, and the 2.5 and 97.5 percentiles over rows drawn with replacement: the same for every measure."""
    n, rng = len(arrays[0]), np.random.default_rng(seed)
    value = _finite(measure(*arrays))
    if n < 2:
        return [value, None, None]
    drawn = [measure(*(array[rows] for array in arrays)) for rows in (rng.integers(0, n, n) for _ in range(resamples))]
    low, high = np.nanpercentile(drawn, [2.5, 97.5]) if not np.isnan(drawn).all() else (np.nan, np.nan)
    return [value, _finite(low), _finite(high)]


def _mean(values: Values, resamples: int, seed: int) -> list[float | None]:
    return _interval(lambda one: float(one.mean()), (values,), resamples, seed)
