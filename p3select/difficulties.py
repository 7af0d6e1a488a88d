"""Log-probabilities of actions → difficulty of rows.

A completion is cut into N actions; action i has |a_i| tokens whose log-probabilities sum to s_i nats. Then

- ``p3``  (P3, arXiv 2408.05541, stage I): ``1 − (1/N) Σ_i exp(s_i / |a_i|)``, one minus the mean over actions of
  the geometric mean of the token probabilities; from 0 to 1;
- ``nll``: ``−Σ_i s_i / Σ_i |a_i|``, the mean negative log-probability of a token; from 0, in nats;
- ``ifd`` (instruction-following difficulty, as a ratio of perplexities: Superfiltering, arXiv 2402.00530, after
  arXiv 2308.12032): ``exp(nll − nll_alone)``, where nll_alone is that of the target without what precedes it (and so
  without its first token, unless the tokenizer begins every text with a token); from 0.
  Above 1 the prompt makes the target less likely than it is by itself.

- ``el2n`` (Paul, Ganguli & Dziugaite 2021, arXiv 2107.07075): the mean over the tokens of ‖p − onehot(token)‖, the L2
  norm over the vocabulary of the error of the probabilities p there; from 0 to √2. Log-probabilities of the tokens
  alone do not give it: it is measured, and stored as it is, where rows are scored with ``el2n``.

All grow with difficulty: a row that the policy finds certain has difficulty 0 (``ifd``: next to 0).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from p3select.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

KINDS = ("p3", "nll", "ifd")

ROUNDING = 1e-4
"""Nats per token by which a log-probability may exceed 0 through float32 rounding; it then counts as 0."""


def difficulty(
    action_logprobs: Sequence[ArrayLike] | NDArray[np.floating],
    action_tokens: Sequence[ArrayLike] | NDArray[np.integer],
    kind: str = "p3",
    *,
    offsets: ArrayLike | None = None,
    nll_alone: ArrayLike | None = None,
) -> NDArray[np.float64]:
    """Difficulty of every row; higher = harder.

    Rows are ragged. Give one array or list per row, or, which is fast for a million rows, two flat arrays and
    the ``offsets`` that cut them, as Arrow stores a list column.

    Args:
        action_logprobs: Per row, the summed log-probability of each action's tokens, in nats, ≤ 0.
        action_tokens: Per row, the number of tokens of each action, ≥ 1; shaped like ``action_logprobs``.
        kind: ``p3``, ``nll`` or ``ifd``, see the module.
        offsets: (n + 1,) from 0 to the length of the flat arrays; row i is ``offsets[i]:offsets[i + 1]``.
        nll_alone: (n,) nats per token without the prompt, ≥ 0; for ``ifd``, and for it alone.

    Returns:
        (n,) float64: in [0, 1] for ``p3``, nats per token for ``nll``, a ratio ≥ 0 for ``ifd``. A row's value depends
        on that row alone.

    Raises:
        InputError: An unknown kind; shapes that do not agree; or a row without actions (leave it out: it has
            no difficulty), with a token count below 1, or with a log-probability that is not finite, is
            positive beyond rounding, or comes in half precision. The message names the row.
    """
    if kind == "el2n":
        raise InputError("difficulty 'el2n' is not made of log-probabilities: select from scores of 'score --el2n'")
    if kind not in KINDS:
        raise InputError(f"unknown difficulty {kind!r}: choose one of {', '.join(KINDS)}")
    if (kind == "ifd") is (nll_alone is None):
        raise InputError(f"difficulty {kind!r} {'needs' if kind == 'ifd' else 'takes no'} nll_alone")
    logprobs, starts, lengths = _flat("action_logprobs", action_logprobs, offsets)
    tokens, _, token_lengths = _flat("action_tokens", action_tokens, offsets)
    if lengths.size != token_lengths.size:
        raise InputError(f"action_logprobs has {lengths.size} rows, action_tokens {token_lengths.size}")
    uneven = np.flatnonzero(lengths != token_lengths)
    if uneven.size:
        row = uneven[0]
        raise InputError(f"row {row}: {lengths[row]} action log-probabilities, but {token_lengths[row]} token counts")
    empty = np.flatnonzero(lengths == 0)
    if empty.size:
        raise InputError(f"row {empty[0]} has no actions, hence no difficulty: leave such rows out")
    alone = None if nll_alone is None else _alone(nll_alone, lengths.size)
    if lengths.size == 0:
        return np.empty(0)

    def refuse(bad: NDArray[np.bool_], values: NDArray[np.float64], why: str) -> None:
        where = np.flatnonzero(bad)
        if where.size:
            row = np.searchsorted(starts, where[0], side="right") - 1
            action = where[0] - starts[row]
            raise InputError(f"row {row}, action {action}: {why}, got {values[where[0]]}")

    whole = np.isfinite(tokens) & (tokens >= 1) & (tokens == np.floor(tokens))
    refuse(~whole, tokens, "an action's token count must be a whole number ≥ 1")
    refuse(~np.isfinite(logprobs), logprobs, "a log-probability must be finite")
    refuse(logprobs > ROUNDING * tokens, logprobs, "a log-probability must be ≤ 0")
    logprobs = np.minimum(logprobs, 0.0)
    if kind != "p3":
        nll = np.abs(np.add.reduceat(logprobs, starts)) / np.add.reduceat(tokens, starts)
        return nll if alone is None else np.exp(nll - alone)
    # Divided before exp: a product of probabilities underflows on long actions.
    certainty = np.exp(logprobs / tokens)
    return np.maximum(1.0 - np.add.reduceat(certainty, starts) / lengths, 0.0)


def _alone(given: ArrayLike, rows: int) -> NDArray[np.float64]:
    values = np.asarray(given, np.float64)
    if values.shape != (rows,):
        raise InputError(f"nll_alone has shape {values.shape}, and there are {rows} rows")
    bad = np.flatnonzero(~(np.isfinite(values) & (values >= -ROUNDING)))
    if bad.size:
        raise InputError(f"row {bad[0]}: nll_alone must be finite and ≥ 0, got {values[bad[0]]}")
    return values


def _flat(
    name: str, ragged: Sequence[ArrayLike] | NDArray[np.generic], offsets: ArrayLike | None
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Ragged rows as (values float64, starts (n,), lengths (n,))."""
    if offsets is None:
        rows = [np.asarray(row) for row in ragged]
        for number, row in enumerate(rows):
            if row.ndim != 1:
                raise InputError(f"row {number} of {name} must be a list of numbers, got {ragged[number]!r}")
            if row.dtype == np.float16:
                raise InputError(f"row {number} of {name} is float16: keep float32 or wider")
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        values = np.concatenate(rows) if rows else np.empty(0)
        return _numbers(name, values), np.cumsum(lengths) - lengths, lengths
    values = np.asarray(ragged)
    if values.dtype == np.float16:
        raise InputError(f"{name} is float16: keep float32 or wider")
    cuts = np.asarray(offsets)
    if values.ndim != 1 or cuts.ndim != 1 or cuts.size == 0 or not np.issubdtype(cuts.dtype, np.integer):
        raise InputError(
            f"with offsets, {name} must be 1-D and offsets 1-D integers, "
            f"got shapes {values.shape} and {cuts.shape} ({cuts.dtype})"
        )
    lengths = np.diff(cuts).astype(np.int64)
    if cuts[0] != 0 or cuts[-1] != values.size or (lengths < 0).any():
        raise InputError(f"offsets must rise from 0 to {values.size}, the length of {name}")
    return _numbers(name, values), cuts[:-1].astype(np.int64), lengths


def _numbers(name: str, values: NDArray[np.generic]) -> NDArray[np.float64]:
    try:
        return values.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must hold numbers: {error}") from None
