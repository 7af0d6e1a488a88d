"""Partial re-scoring: some rows are measured under the new policy, the difficulty of the others is predicted.

What a policy finds hard after an epoch of training is much like what it found hard before, so that the change can be
learned from some rows: in the logits of difficulty, by ridge regression on what is known of every row. The rows to
measure are chosen twice. First, those measured longest ago and a random part, of which some are held back to tell the
error by. Then, as a first prediction says where the threshold λ of the epoch will be, the rows likeliest to be on its
wrong side, per token: near λ a small error does it, elsewhere it does not matter.

That difficulty can be predicted from a few rows is the idea of DOTS (arXiv 2506.05316) and MoPPS (arXiv 2507.04632)
too; the parts and the regression are p3select's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy import stats
from scipy.special import expit, logit

from p3select import fingerprints, index, paces
from p3select.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pyarrow as pa
    from numpy.typing import NDArray

    from p3select.run import Run

    Values = NDArray[np.float64]
    Mask = NDArray[np.bool_]

# Shares of the tokens to score; what these leave is drawn at random.
NEAR, STALE, HELD = 1 / 2, 1 / 4, 1 / 8
# Probabilities below which rows that may be on the wrong side of the threshold count alike: the shorter come first, so
# that more are measured.
DOUBT = 0.1
# Rows below which there is nothing to learn from, and nothing to tell the error by.
LEAST_FITTED, LEAST_HELD = 10, 5
# Principal components of the embeddings among the predictors: one for so many fitted rows, so many at most.
ROWS_OF_COMPONENT, COMPONENTS = 32, 16
# Rows of which the components are taken, and that are projected at a time.
COMPONENT_ROWS = 20_000
# Difficulties next to 0 and 1 count as this far from them: their logits would outweigh all others.
EDGE = 1e-4


class Past(NamedTuple):
    """What earlier epochs say of the rows, n of them."""

    difficulty: Values
    """(n,) p3, of the epoch before; NaN for rows that cannot be scored."""
    before: Values
    """(n,) of the epoch before that one; NaN where it is not known."""
    measured: NDArray[np.int64]
    """(n,) the epoch in which a row was last measured, rather than predicted."""
    picked: NDArray[np.int64]
    """(n,) how many of the earlier epochs' indices have the row."""
    last: NDArray[np.int64]
    """(n,) 1 where that of the epoch before has it."""
    percentile: float | None
    """Of the difficulties, up to which the epoch's rows are eligible; None where no index says it."""
    notes: list[str]
    """What there is to know."""


class Refreshed(NamedTuple):
    """Difficulties of an epoch, measured and predicted."""

    difficulty: Values
    """(n,) NaN for rows that cannot be scored."""
    error: Values
    """(n,) of predicted rows, the standard error to be expected; NaN for all others."""
    about: dict[str, Any]
    """What was measured and how well the rest is predicted; see :func:`refreshed`."""


def refuse(also: Mapping[str, Any]) -> None:
    """Refuse what is asked for beside a partial re-scoring.

    Args:
        also: Option of :func:`p3select.score` that measures another difficulty → whether it is asked for.

    Raises:
        InputError: One is.
    """
    for name, asked in also.items():
        if asked:
            raise InputError(f"refresh predicts the difficulty p3 alone: leave {name} out, or score all rows")


def fraction(given: float | str) -> float:
    """A share of the tokens as a number.

    Args:
        given: ``"25%"`` or 0.25.

    Raises:
        InputError: It is neither, or not between 0 and 1.
    """
    text = str(given).strip()
    try:
        share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise InputError(f"refresh {given!r}: give a share of the tokens, such as 25% or 0.25, above 0 and below 1")
    return share


def past(run: Run, epoch: int, tables: Sequence[pa.Table]) -> tuple[Past, str]:
    """What a run folder says of its rows before an epoch, and the fingerprint of the indices among it.

    Args:
        run: The run folder.
        epoch: From 2.
        tables: The scores of the epoch before and, where there are any, of the one before that: ``difficulty`` and,
            where not all rows were measured, ``measured``.

    Raises:
        InputError: The epoch before was selected by another difficulty than p3.
    """
    n = tables[0].num_rows
    difficulty, before = np.full((2, n), np.nan)
    for values, table in zip((difficulty, before), tables, strict=False):
        known = table.column("difficulty").to_numpy()[:n]
        values[: len(known)] = known
    measured = np.full(n, epoch - 1)
    if "measured" in tables[0].column_names:
        measured = tables[0].column("measured").fill_null(epoch - 1).to_numpy().astype(np.int64)
    picked, last, percentile, notes, found = np.zeros(n, np.int64), np.zeros(n, np.int64), None, [], {}
    for earlier in range(1, epoch):
        if not (file := run.index(earlier)).is_file():
            continue
        selection, found[earlier] = index.read(file), fingerprints.of_files(file)
        last = np.zeros(n, np.int64)
        last[selection.rows[selection.rows < n]] = 1
        picked += last
    if epoch - 1 in found:
        asked = selection.metadata
        if asked["difficulty"] != "p3":
            raise InputError(
                f"refresh: epoch {epoch - 1} was selected by {asked['difficulty']}, and only p3 is predicted: score "
                "all rows"
            )
        if epoch <= asked["epochs"]:
            percentile = paces.pace(epoch, asked["epochs"], asked["pace"])
        else:
            notes.append(f"epoch {epoch} is beyond the {asked['epochs']} of the index before: no threshold is known")
    else:
        last = np.zeros(n, np.int64)
        notes.append(f"epoch {epoch - 1} has no index to tell the threshold by: select it before, for a better choice")
    return Past(difficulty, before, measured, picked, last, percentile, notes), fingerprints.of_json(found)


def drawn(
    tokens: NDArray[np.integer], measured: NDArray[np.integer], budget: int, *, near: bool, seed: Sequence[int]
) -> tuple[Mask, Mask, Mask]:
    """The rows that are measured first: those measured longest ago, a random part, and a random part to hold back.

    Rows of fewer tokens are likelier, but in the part to hold back, so that more of them are measured: the order is
    that of a race, a row's time being exponential with its tokens as the mean (Efraimidis & Spirakis 2006).

    Args:
        tokens: (n,) of each row.
        measured: (n,) the epoch in which it was last measured; among equals the race decides.
        budget: Tokens to be spent in all.
        near: Whether ``NEAR`` of them are kept for later; otherwise they go to the random part.
        seed: Of the draw.

    Returns:
        (stale, random, held), each (n,); together they have at most the budget's tokens.
    """
    rng = np.random.default_rng(seed)
    held = _first(rng.permutation(len(tokens)), tokens, int(HELD * budget))
    order = np.argsort(rng.exponential(size=len(tokens)) * tokens, kind="stable")
    order = order[~held[order]]
    stale = _first(order[np.argsort(measured[order], kind="stable")], tokens, int(STALE * budget))
    spent = int(tokens[stale | held].sum())
    random = _first(order[~stale[order]], tokens, int((1 - NEAR) * budget if near else budget) - spent)
    return stale, random, held


def doubtful(
    distance: Values, spread: float, tokens: NDArray[np.integer], free: Mask, candidates: Mask, budget: int
) -> Mask:
    """The candidates likeliest to be on the wrong side of the threshold, per token, as far as a budget goes, (n,).

    Args:
        distance: (n,) of the prediction from the threshold.
        spread: Of predictions around what would be measured, as the standard deviation of a normal distribution.
        tokens: (n,) of each row.
        free: (n,) rows that cost nothing, as they are measured already.
        candidates: (n,) which rows are asked about.
        budget: Tokens to be spent.
    """
    worth = np.maximum(stats.norm.sf(distance / max(spread, 1e-9)), DOUBT) / tokens
    order = np.argsort(-worth, kind="stable")
    return _first(order[candidates[order]], np.where(free, 0, tokens), budget)


def predicted(x: Values, target: Values, fitted: Mask) -> tuple[Values, float]:
    """Ridge regression, its penalty by generalised cross-validation (Golub, Heath & Wahba 1979).

    Args:
        x: (n, p) predictors; columns that are constant over the fitted rows say nothing.
        target: (n,) known for the fitted rows.
        fitted: (n,) which rows to learn from, 2 at least.

    Returns:
        (n,) what the target is likely to be; and the standard deviation around it, by the cross-validation.
    """
    known, y = x[fitted], target[fitted]
    spread = known.std(axis=0)
    told = spread > 1e-9
    mean, spread = known.mean(axis=0)[told], spread[told]
    u, s, vt = np.linalg.svd((known[:, told] - mean) / spread, full_matrices=False)
    centred = y - y.mean()
    along = u.T @ centred
    best, slope = np.inf, np.zeros(int(told.sum()))
    for penalty in np.logspace(-4, 4, 33) * len(y):
        kept = s**2 / (s**2 + penalty)
        left = centred - u @ (kept * along)
        score = float(left @ left) / (len(y) - 1 - kept.sum()) ** 2
        if score < best:
            best, slope = score, vt.T @ (s / (s**2 + penalty) * along)
    found: Values = y.mean() + (x[:, told] - mean) / spread @ slope
    return found, float(np.sqrt(best * len(y)))


def refreshed(
    known: Past,
    epoch: int,
    sizes: tuple[NDArray[np.integer], NDArray[np.integer], NDArray[np.integer]],
    vectors: NDArray[np.float32] | None,
    share: float,
    seed: int,
    measure: Callable[[str, Mask], Values],
) -> Refreshed:
    """Measure some rows, predict the others.

    Args:
        known: What earlier epochs say.
        epoch: The epoch that the policy enters.
        sizes: (n,) each: a row's tokens, those of them that are scored, and its actions.
        vectors: (n or more, d) the rows' embeddings, or None.
        share: Of the tokens of all rows that can be scored, at most, to be measured.
        seed: Of the rows that are drawn.
        measure: What scores rows: from ``"drawn"`` or ``"near"`` and which rows (n,) to their difficulties (n,), NaN
            for others. It may know more rows than it is asked for.

    Returns:
        Difficulties and errors; and ``about``: ``share``, ``seed``, ``percentile``; ``share_of_tokens`` (what was asked
        to be measured, of all tokens); ``parts`` (rows of each; ``taken over``: known without having been asked for;
        ``predicted``); ``components`` of the embeddings. Of the rows held back (those that turn out near the threshold
        are not among them, as such rows are not predicted, unless hardly any would be left): ``held_back_rmse``,
        ``held_back_spearman``, ``held_back_right_side`` (the share that is put on the right side of the threshold; None
        without one).

    Raises:
        InputError: The share is too small to learn from and to tell the error by.
    """
    rows = np.flatnonzero(np.isfinite(known.difficulty))
    tokens = sizes[0][rows].astype(np.int64)
    old = logit(np.clip(known.difficulty[rows], EDGE, 1 - EDGE))
    budget = int(share * tokens.sum())
    near = np.zeros(len(rows), bool)
    percentile = known.percentile
    stale, random, held = drawn(tokens, known.measured[rows], budget, near=percentile is not None, seed=(seed, epoch))
    if held.sum() < LEAST_HELD or (stale | random).sum() < LEAST_FITTED:
        raise InputError(
            f"refresh {share:g}: comes to {(stale | random).sum()} rows to learn from (at least {LEAST_FITTED}) and "
            f"{held.sum()} to tell the error by (at least {LEAST_HELD}); give a larger share, or score all rows"
        )
    asked = stale | random | held
    now = _of("drawn", asked, rows, len(known.difficulty), measure)
    components = 0 if vectors is None else min(COMPONENTS, int((stale | random).sum()) // ROWS_OF_COMPONENT)
    x = _predictors(known, epoch, rows, sizes, vectors, components)

    def guess() -> tuple[Values, float]:
        change, spread = predicted(x, logit(np.clip(now, EDGE, 1 - EDGE)) - old, np.isfinite(now) & ~held)
        return old + change, spread

    likely, spread = guess()
    if percentile is not None:
        done = np.isfinite(now)
        lam = np.percentile(np.where(done, now, expit(likely)), percentile)
        region = doubtful(
            np.abs(likely - logit(np.clip(lam, EDGE, 1 - EDGE))),
            spread,
            tokens,
            done,
            ~done | held,
            budget - int(tokens[asked].sum()),
        )
        near = region & ~done
        if near.any():
            now = np.where(done, now, _of("near", near, rows, len(known.difficulty), measure))
        if (held & ~region).sum() >= LEAST_HELD:
            held &= ~region
        likely, _ = guess()
    done = np.isfinite(now)
    values = np.where(done, now, expit(likely))
    about: dict[str, Any] = {
        "share": share,
        "seed": seed,
        "percentile": percentile,
        "share_of_tokens": float(tokens[asked | near].sum() / tokens.sum()),
        "parts": {
            "near": int(near.sum()),
            "stale": int(stale.sum()),
            "random": int((asked & ~stale & ~held).sum()),
            "held back": int(held.sum()),
            "taken over": int((done & ~asked & ~near).sum()),
            "predicted": int((~done).sum()),
        },
        "components": components,
        **_accuracy(
            now[held], expit(likely[held]), None if percentile is None else float(np.percentile(values, percentile))
        ),
    }
    wrong = likely[held] - logit(np.clip(now[held], EDGE, 1 - EDGE))
    difficulty, error = np.full((2, len(known.difficulty)), np.nan)
    difficulty[rows] = values
    # From logits to difficulties: times the slope there.
    error[rows[~done]] = np.sqrt(np.mean(wrong**2)) * (values * (1 - values))[~done] if held.any() else np.nan
    return Refreshed(difficulty, error, about)


def _first(order: NDArray[np.int64], cost: NDArray[np.integer], budget: int) -> Mask:
    """The rows that come first in an order, as far as a budget goes, as a mask over all."""
    taken = np.zeros(len(cost), bool)
    taken[order[: np.searchsorted(np.cumsum(cost[order], dtype=np.int64), budget, side="right")]] = True
    return taken


def _of(name: str, asked: Mask, rows: NDArray[np.int64], n: int, measure: Callable[[str, Mask], Values]) -> Values:
    """The difficulties that are measured, of the rows that can be scored."""
    wanted = np.zeros(n, bool)
    wanted[rows[asked]] = True
    return measure(name, wanted)[rows]


def _predictors(
    known: Past,
    epoch: int,
    rows: NDArray[np.int64],
    sizes: tuple[NDArray[np.integer], NDArray[np.integer], NDArray[np.integer]],
    vectors: NDArray[np.float32] | None,
    components: int,
) -> Values:
    """(m, p), of the rows that can be scored."""
    old, before = (logit(np.clip(part[rows], EDGE, 1 - EDGE)) for part in (known.difficulty, known.before))
    trend = np.isfinite(before)
    columns = [
        old,
        old**2,
        trend.astype(np.float64),
        np.where(trend, old - before, 0.0),
        *(np.log(size[rows]) for size in sizes[1:]),
        known.picked[rows].astype(np.float64),
        known.last[rows].astype(np.float64),
        (epoch - known.measured[rows]).astype(np.float64),
    ]
    if vectors is not None and components:
        columns += list(_components(vectors, rows, components).T)
    return np.column_stack(columns)


def _components(vectors: NDArray[np.float32], rows: NDArray[np.int64], count: int) -> Values:
    """The first principal components of some rows' embeddings (m, count), read in blocks."""
    spaced = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), COMPONENT_ROWS)).astype(np.int64))
    some = np.asarray(vectors[rows[spaced]], np.float64)
    mean = some.mean(axis=0)
    # Eigenvalues rise.
    axes = np.linalg.eigh((some - mean).T @ (some - mean))[1][:, -count:]
    blocks = range(0, len(rows), COMPONENT_ROWS)
    return np.concatenate([(vectors[rows[first : first + COMPONENT_ROWS]] - mean) @ axes for first in blocks])


def _accuracy(now: Values, likely: Values, lam: float | None) -> dict[str, Any]:
    """How near predictions are to what was measured; None for what cannot be told."""
    varied = len(now) > 1 and min(np.ptp(now), np.ptp(likely)) > 0
    return {
        "held_back_rmse": float(np.sqrt(np.mean((now - likely) ** 2))) if len(now) else None,
        "held_back_spearman": float(stats.spearmanr(now, likely).statistic) if varied else None,
        "held_back_right_side": None
        if lam is None or not len(now)
        else float(np.mean((now <= lam) == (likely <= lam))),
    }
