"""Signs that a training by selection goes wrong: what was seen, where the line is drawn, and what to try."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from p3select.page import facts
from p3select.page.tables import signed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from p3select.page.facts import Epoch, Step

SEEN, NOT_SEEN, UNKNOWN = "seen", "not seen", "cannot be told"

FALL = 0.01
"""A mean difficulty that falls by less than this share of itself does not fall."""

RISE = 0.01
"""A loss that rises by more than this share of itself rises."""

OVERHEAD = 0.5
"""The share of choosing in the whole that is too much."""

FORWARD_SHARE = 1 / 3
"""A forward pass beside a training step: the backward pass costs about two forward passes."""


class Signature(NamedTuple):
    """One sign."""

    name: str
    state: str
    """``seen``, ``not seen`` or ``cannot be told``."""
    found: tuple[str, ...]
    """What was seen, with its numbers; or why it cannot be told."""
    threshold: str
    advice: str
    """What to try; options of commands are in backquotes."""


def all_of(
    epochs: Sequence[Epoch],
    steps: Sequence[Step],
    costs: Mapping[str, Mapping[int, Mapping[str, Any]]],
    overhead: float,
) -> list[Signature]:
    """Every sign, in the order in which they are shown.

    Args:
        epochs: The epochs that were scored.
        steps: Between them.
        costs: What the run folder records of seconds; see :func:`p3select.page.facts.costs`.
        overhead: The share of choosing that is too much.
    """
    return [_stuck(steps), _repeating(epochs), _overfitting(steps), _overhead(epochs, costs, overhead)]


def _stuck(steps: Sequence[Step]) -> Signature:
    found, seen, told = [], False, False
    for step in steps:
        if step.reason is not None:
            found.append(f"{_between(step)}: {step.reason}.")
            continue
        told = True
        before, change = step.before.difficulty[step.rows], step.change("difficulty")
        share = _share(change.mean(), before.mean())
        seen |= share > -FALL
        text = f"{_between(step)}: all rows {before.mean():.4f} → {(before + change).mean():.4f} ({signed(share)})"
        for name, mask in (("rows trained on", step.trained), ("others", ~step.trained)):
            text += f"; {name} {signed(_share(change[mask].mean(), before[mask].mean()))}" if mask.any() else ""
        found.append(text + ".")
    return Signature(
        "Difficulty does not fall in spite of training",
        _state(seen, told),
        tuple(found) or ("It needs the scores of two epochs.",),
        f"From one epoch to the next the mean difficulty falls by less than {FALL:.0%} of itself.",
        "See that the trainer took this epoch's rows, and that the next scoring took its new weights. Then train more "
        "on each selection (steps, learning rate), or begin with easier rows: a lower first percentile of `--pace`.",
    )


def _repeating(epochs: Sequence[Epoch]) -> Signature:
    chosen = facts.selected(epochs)
    found, seen, told = [], False, False
    for before, after in pairwise(chosen):
        pool = after.eligible if after.eligible.any() else ~np.isnan(after.difficulty)
        told = True
        again = float((before.picked & after.picked).sum() / after.picked.sum())
        chance = float((before.picked & pool).sum() / pool.sum())
        limit = (1 + chance) / 2
        seen |= again >= limit
        found.append(
            f"Epoch {after.number}: {again:.0%} of its rows were those of epoch {before.number}; "
            f"a uniform draw would have {chance:.0%}, the line is at {limit:.0%}."
        )
    if len(chosen) > 2:
        always = int(np.logical_and.reduce([epoch.picked for epoch in chosen]).sum())
        found.append(f"{always:,} rows were picked in each of {len(chosen)} epochs.")
    return Signature(
        "The same rows again and again",
        _state(seen, told),
        tuple(found) or ("It needs the indices of two epochs.",),
        "The share of rows that the epoch before had, too, is more than halfway from that of a uniform draw from the "
        "eligible rows to all.",
        "`--fresh 0.5` (up to 1) puts back what was picked before; a `--pace` that rises lets other rows in; "
        "a lower `--quality-weight` gives diversity more weight.",
    )


def _overfitting(steps: Sequence[Step]) -> Signature:
    found, seen, told = [], False, False
    for step in steps:
        before, change = step.before.nll[step.rows], step.change("nll")
        # Of predicted rows no loss is known.
        trained, untouched = (mask & ~np.isnan(change) for mask in (step.trained, step.untouched))
        if step.reason is None and not (trained.any() and untouched.any()):
            found.append(f"{_between(step)}: no rows to compare, as all of them or none were picked.")
        elif step.reason is not None:
            found.append(f"{_between(step)}: {step.reason}.")
        else:
            told = True
            shares = [_share(change[mask].mean(), before[mask].mean()) for mask in (trained, untouched)]
            seen |= shares[0] < 0 and shares[1] > RISE
            found.append(
                f"{_between(step)}: loss of the {trained.sum():,} rows trained on {signed(shares[0])}, "
                f"of the {untouched.sum():,} never picked {signed(shares[1])}."
            )
    return Signature(
        "The selected rows' loss falls while the others' rises",
        _state(seen, told),
        tuple(found) or ("It needs the scores of two epochs.",),
        "Loss (nats per token) of the rows trained on falls, and that of rows never picked rises by more than "
        f"{RISE:.0%} of itself: over-fitting to the selection.",
        "Train less on each selection (fewer passes, a lower learning rate), select more rows, or other rows each "
        "epoch (`--fresh 1`); and watch the loss on rows held out.",
    )


def _overhead(epochs: Sequence[Epoch], costs: Mapping[str, Mapping[int, Mapping[str, Any]]], limit: float) -> Signature:
    passes = {epoch.source: epoch for epoch in facts.selected(epochs)}
    scored = sum(int(epoch.tokens[~np.isnan(epoch.nll)].sum()) for epoch in passes.values())
    trained = sum(int(epoch.tokens[epoch.picked].sum()) for epoch in epochs)
    times = facts.times(epochs, costs)
    share, found = None, list[str]()
    if times.epochs:
        spent = sum(seconds for name, seconds in times.seconds.items() if name != "train")
        share = spent / max(spent + times.seconds["train"], 1e-12)
        found = [
            f"In time, {facts.listed(times.epochs)}: {spent:,.0f} s to choose, {times.seconds['train']:,.0f} s to "
            f"train: {share:.0%} is choosing."
        ]
    found = [" ".join([*found, *times.notes])]
    if trained:
        forward = scored * FORWARD_SHARE
        tokens = forward / (forward + trained)
        found.append(
            f"In completion tokens: {scored:,} scored, {trained:,} selected; at three times the work for a token "
            f"trained on once, {tokens:.0%} is choosing."
        )
        share = tokens if share is None else share
    return Signature(
        "Choosing costs too much beside training",
        UNKNOWN if share is None else SEEN if share > limit else NOT_SEEN,
        tuple(found) if share is not None else (*found, "It needs an index, or the times of an epoch."),
        f"More than {limit:.0%} of the whole is choosing: in time over the epochs of which scoring, selecting and "
        "training are recorded, in tokens where there is none.",
        "Score faster (`--scorer vllm`, a GPU, `--option dtype=bfloat16`) or shorter (`--max-length`); select more, "
        "or train more on each selection.",
    )


def _state(seen: bool, told: bool) -> str:
    return SEEN if seen else NOT_SEEN if told else UNKNOWN


def _between(step: Step) -> str:
    return f"Epoch {step.before.number} → {step.after.number}"


def _share(change: float, of: float) -> float:
    return float(change / of) if of else 0.0
