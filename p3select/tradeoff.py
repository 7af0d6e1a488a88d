"""What partial re-scoring would have given for less, told by a run whose epochs were scored whole.

Nothing is scored: epochs are hidden, rows are measured by looking their stored difficulty up, and what was predicted is
laid beside what was measured. For each epoch w it is done as if the epochs up to w had been scored whole, and each one
after it in part, going on from what was predicted for the one before.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
from scipy import stats

from p3select import embeddings, index, paces, refreshing, scores, shards, tokenised
from p3select.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa
    from numpy.typing import NDArray

    from p3select.refreshing import Past
    from p3select.run import Run

    Sizes = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]

SHARES = (0.1, 0.25, 0.5)
KEY = ("whole", "epoch", "share")
MEASURES = ("spearman", "spearman_predicted", "jaccard", "rmse", "claimed", "held_back_rmse", "tokens")
# Of these the range over draws is kept.
RANGED = ("spearman", "jaccard")


def tradeoff(
    run: Run,
    *,
    shares: Sequence[float | str] = SHARES,
    seeds: int = 3,
    rows: int | None = None,
    pace: str | None = None,
    epochs: int | None = None,
) -> dict[str, Any]:
    """Predict every epoch after the first from some of its difficulties, at some costs.

    Args:
        run: A run folder of which the first two epochs or more were scored whole.
        shares: Of the tokens, each above 0 and below 1, or such as ``"25%"``.
        seeds: Draws of the rows to measure, over which means are taken.
        rows: Look at so many rows at most, drawn from all; None for all.
        pace: The schedule of the threshold; None for the one that the run's indices were made with.
        epochs: T of ``pace``, which goes with it.

    Returns:
        ``rows``; ``epochs``, how many are looked at: those before the first one that was itself
        predicted in part, or scored by other rules; ``cost``, which tokens shares are of; ``embedded``, whether
        embeddings are among the predictors; ``cases``, what each draw gave;
        ``results``, these :func:`averaged`: by ``whole`` (the last epoch that is taken as scored whole), ``epoch``
        (after it) and ``share`` (0: to score nothing, and go on with the scores of epoch ``whole``), the means over
        draws of ``spearman`` (with the full re-score, over all rows), ``spearman_predicted`` (over the predicted ones),
        ``jaccard`` (of the eligible rows; None where the threshold is not known), ``rmse`` (of the predicted
        difficulties), ``claimed`` (the same by the errors that are told), ``held_back_rmse``, ``tokens`` (the share
        that was asked for); ``spearman_range`` and ``jaccard_range`` over draws; ``draws``, of how many; ``failed``,
        why rows were too few in others.

    Raises:
        InputError: Fewer than two such epochs, a share out of range, or ``pace`` without ``epochs``.
    """
    if (pace is None) is not (epochs is None):
        raise InputError("pace and epochs go together: the threshold is that of an epoch of so many")
    parts = [refreshing.fraction(share) for share in shares]
    tables = _whole(run)
    sizes, cost = _sizes(run)
    n = min(table.num_rows for table in tables)
    some = np.arange(n)
    if rows is not None and rows < n:
        some = np.sort(np.random.default_rng(0).choice(n, rows, replace=False))
    now = [table.column("difficulty").to_numpy()[some] for table in tables]
    vectors = embeddings.read(run)[0][some] if run.embeddings.is_file() else None
    pasts = []
    for epoch in range(2, len(tables) + 1):
        past, _ = refreshing.past(run, epoch, tables[epoch - 2 :: -1][:2])
        percentile = past.percentile if pace is None or epochs is None else paces.pace(epoch, epochs, pace)
        if percentile is None and run.index(epoch).is_file():
            percentile = index.read(run.index(epoch)).metadata["percentile"]
        kept = {name: getattr(past, name)[some] for name in ("difficulty", "before", "measured", "picked", "last")}
        pasts.append(past._replace(**kept, percentile=percentile))
    sizes = (sizes[0][some], sizes[1][some], sizes[2][some])
    cases = [
        one
        for whole in range(1, len(tables))
        for share in parts
        for seed in range(seeds)
        for one in _case(pasts[whole - 1 :], now[whole - 1 :], sizes, vectors, share, seed, whole)
    ]
    return {
        "rows": len(some),
        "epochs": len(tables),
        "cost": cost,
        "embedded": vectors is not None,
        "cases": cases,
        "results": averaged(cases),
    }


def averaged(cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The means over draws, of one run or of several.

    Args:
        cases: As :func:`tradeoff` gives them.

    Returns:
        Its ``results``.
    """
    found = []
    for key in sorted({tuple(one[name] for name in KEY) for one in cases}):
        ones = [one for one in cases if tuple(one[name] for name in KEY) == key]
        mean: dict[str, Any] = dict(zip(KEY, key, strict=True))
        failed = [one["failed"] for one in ones if "failed" in one]
        mean["draws"] = len(ones) - len(failed)
        if failed:
            mean["failed"] = failed[0]
        for name in MEASURES:
            values = [one[name] for one in ones if one.get(name) is not None]
            mean[name] = float(np.mean(values)) if values else None
            if name in RANGED and values:
                mean[f"{name}_range"] = [min(values), max(values)]
        found.append(mean)
    return found


def _whole(run: Run) -> list[pa.Table]:
    """The difficulties of the epochs from the first one on, up to one that cannot be compared with."""
    tables: list[pa.Table] = []
    while shards.manifest(run.scores(len(tables) + 1)) is not None:
        epoch = len(tables) + 1
        settings, why = scores.settings(run, epoch), None
        if "refresh" in settings:
            why = "was itself predicted in part, so there is nothing to compare with"
        elif tokenised.rules(settings) != tokenised.rules(scores.settings(run, 1)):
            why = "was scored by other rules than epoch 1"
        if why is not None and epoch <= 2:
            raise InputError(f"epoch {epoch} {why}")
        if why is not None:
            break
        tables.append(scores.read(run, epoch, ["difficulty"]))
    if len(tables) < 2:
        raise InputError(f"{len(tables)} of the first two epochs are scored, and both are needed")
    return tables


def _sizes(run: Run) -> tuple[Sizes, str]:
    """Tokens, scored tokens and actions of each row (n,), and which tokens count as cost.

    Those of whole rows, where the run folder still has its tokens; else the scored ones.
    """
    settings, table = scores.settings(run, 1), scores.read(run, 1, ["tokens", "action_tokens"])
    parts = shards.ranges(table.num_rows, settings["shard_rows"])
    own = {name: settings[name] for name in tokenised.SETTINGS} | {"form": tokenised.FORM}
    for folder in (run.path / "tokens").glob("*"):
        known = shards.manifest(folder)
        if known is not None and known["settings"] == own and not shards.missing(folder, parts):
            return tokenised.sizes(folder, parts), "tokens"
    scored = table.column("tokens").to_numpy().astype(np.int64)
    actions = pc.fill_null(pc.list_value_length(table.column("action_tokens")), 0).to_numpy().astype(np.int64)
    return (scored, scored, actions), "scored tokens (the tokens of whole rows are gone)"


def _case(
    pasts: Sequence[Past],
    now: Sequence[NDArray[np.float64]],
    sizes: Sizes,
    vectors: NDArray[np.float32] | None,
    share: float,
    seed: int,
    whole: int,
) -> list[dict[str, Any]]:
    """One epoch after the other, by one draw; the first of ``now`` is that of epoch ``whole``."""
    # What would be known of the last epochs, and in which epoch each row was measured.
    chain, measured = [now[0]], np.full(len(now[0]), whole)
    found: list[dict[str, Any]] = []
    for epoch, (past, full) in enumerate(zip(pasts, now[1:], strict=True), whole + 1):
        before = chain[-2] if len(chain) > 1 else past.before
        known = past._replace(difficulty=chain[-1], before=before, measured=measured)
        made = {"whole": whole, "epoch": epoch}
        found.append({**made, "share": 0.0, **_measures(now[0], full, np.isfinite(full), known.percentile)})
        try:
            got = refreshing.refreshed(known, epoch, sizes, vectors, share, seed, partial(_looked_up, full))
        except InputError as error:
            return [*found, {**made, "share": share, "failed": str(error)}]
        guessed = np.isfinite(got.error)
        measured = np.where(guessed, measured, epoch)
        chain.append(got.difficulty)
        found.append(
            {
                **made,
                "share": share,
                **_measures(got.difficulty, full, guessed, known.percentile),
                "claimed": float(np.sqrt(np.mean(got.error[guessed] ** 2))) if guessed.any() else None,
                "held_back_rmse": got.about["held_back_rmse"],
                "tokens": got.about["share_of_tokens"],
            }
        )
    return found


def _looked_up(full: NDArray[np.float64], _: str, rows: NDArray[np.bool_]) -> NDArray[np.float64]:
    """In a scorer's place."""
    return np.where(rows, full, np.nan)


def _measures(
    found: NDArray[np.float64], full: NDArray[np.float64], guessed: NDArray[np.bool_], percentile: float | None
) -> dict[str, float | None]:
    """How near difficulties are to those of the full re-score."""
    scored, guessed = np.isfinite(full) & np.isfinite(found), guessed & np.isfinite(full)
    jaccard = None
    if percentile is not None:
        one, other = (values[scored] <= np.percentile(values[scored], percentile) for values in (found, full))
        jaccard = float((one & other).sum() / (one | other).sum())
    return {
        "spearman": float(stats.spearmanr(found[scored], full[scored]).statistic),
        "spearman_predicted": float(stats.spearmanr(found[guessed], full[guessed]).statistic),
        "jaccard": jaccard,
        "rmse": float(np.sqrt(np.mean((found - full)[guessed] ** 2))),
    }
