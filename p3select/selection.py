"""Selection: pace → kernel → selector → Selection. The sole orchestrator of stages II and III of P3."""

from __future__ import annotations

import inspect
import math
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

from p3select import (
    __version__,
    constraints,
    difficulties,
    embeddings,
    fingerprints,
    index,
    kernel,
    neighbors,
    paces,
    scores,
    selectors,
    tokenised,
)
from p3select.distributed import ENGINES
from p3select.errors import InputError, MismatchError, check_seed
from p3select.index import Selection
from p3select.run import Run
from p3select.selectors.dpp import AFFORDABLE, METHODS, choose, gigabytes, local_alone, rank

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import pyarrow as pa
    from numpy.typing import NDArray

    from p3select.limits import Limits

# What a selector is told of the rows, if it names it.
OF_ROWS = ("lengths", "ifd")
# Rows on which diversity is measured: a log determinant costs their number cubed.
DIVERSITY_ROWS = 2000
# With Ray and no number given. The result depends on it, and not on the workers.
PARTS = 8
# What the metadata say of a selection that nobody asked for.
RESULTS = ("eligible", "lam", "dependent", "predicted", "selector_reason", "shortfall", "tokens")
# What ``fresh`` leaves of a quality at least: a row put back whole is still told from others by its own.
FRESH_FLOOR = 1e-6
# With a budget in tokens: room for so many times the rows that plain quality takes, before more are asked for.
SPARE = 1.1
# Added to the diagonal there, so that an exact copy costs 13.8 nats rather than infinity.
DIVERSITY_JITTER = 1e-6


def select(
    run: Run | str | Path,
    *,
    epoch: int,
    epochs: int,
    budget: int | str,
    scores_of: int | None = None,
    pace: str = "linear:50:95",
    difficulty: str = "p3",
    quality: str = "harder",
    quality_weight: float = 1.0,
    fresh: float = 0.0,
    selector: str | Callable[..., Any] = "auto",
    similarity: str = "gaussian",
    scale: float | None = None,
    whiten: bool = False,
    cells: int | None = None,
    probes: int | None = None,
    neighbours: int | None = None,
    cost_weight: float = 1.0,
    at_most: int | None = None,
    per: str | None = None,
    share: str | None = None,
    include: str | Path | Sequence[int] | None = None,
    exclude: str | Path | Sequence[int] | None = None,
    parts: int | None = None,
    engine: str = "local",
    workers: int | None = None,
    address: str | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Selection:
    """Choose the rows of an epoch and write its index file.

    Rows whose difficulty is at most λ, a percentile of this epoch's difficulties, are eligible; of these the
    selector takes the budget.

    Args:
        run: The run folder, with this epoch's scores and (for the DPP) embeddings.
        epoch: From 1.
        epochs: T, the epochs of the whole training.
        budget: What to select: a count of rows, a share of the dataset's rows such as ``"20%"`` (rounded down), or
            completion tokens such as ``"2Mtok"``, ``"500ktok"``.
        scores_of: Go by the scores of another epoch: 1 where rows are scored once, before the training. None for those
            of ``epoch``.
        pace: The λ schedule; see :func:`p3select.pace`.
        difficulty: ``p3``, ``nll``, ``ifd`` or ``el2n``; see :mod:`p3select.difficulties`.
        quality: Which rows the DPP prefers: ``harder`` (the paper), ``easier``, ``none``.
        quality_weight: The exponent of q: 0 for diversity alone, large for plain top-q.
        fresh: How much a row that earlier epochs picked is put back, from 0 (not at all) to 1 (it comes last): its q is
            multiplied by (1 − fresh) for each of them, by ``FRESH_FLOOR`` at least, so that diversity holds across
            epochs too.
        selector: ``auto`` (``dpp`` where it fits time and memory, else ``dpp-local``: see
            :func:`p3select.selectors.dpp.choose`), ``dpp``, ``dpp-local``, ``kdpp``, ``topk``, ``uniform``, another
            name (see :mod:`p3select.selectors`), or a function.
        similarity: S of the kernel: ``gaussian``, ``cauchy`` or ``linear``; see :mod:`p3select.kernel`.
        scale: h of S_ij = exp((cos_ij − 1) / h); None for the rule of :func:`p3select.kernel.scale`.
        whiten: Take the common direction out of the embeddings first; see :func:`p3select.kernel.whitening`.
        cells: For ``dpp-local``, asked for by name, like the next two: k-means cells. None for the rule of
            :func:`p3select.selectors.dpp_local.dpp_local`, by the rows to choose from (of a part) and to pick.
        probes: Nearest cells of a row in which its near picks are sought.
        neighbours: Picks that a row is conditioned on, the nearest ones.
        cost_weight: With a budget in tokens: a selector sees q² / tokens^cost_weight in place of q², so that a step
            takes the row with the highest determinant ratio for its tokens^cost_weight, of those that still fit. The
            rule is this package's own. 0 leaves length out of account but for what fits.
        at_most: So many rows at most for each value of the column ``per``, as for several completions of one prompt.
        per: A column of the data.
        share: ``COLUMN=VALUE:40%,VALUE:60%``: shares of the budget for values of a column; the rest is for all other
            values together.
        include: Rows that have to be selected, eligible or not, on which the others are conditioned: row numbers, or a
            file of them (see :func:`p3select.dataset.listed`). They count in the budget.
        exclude: Rows that may not be selected; λ is that of the others.
        parts: Select in so many random parts, then from their union (see :mod:`p3select.partition`): for more rows than
            one machine has memory or time for. None for no parts, or, with ``ray``, ``PARTS``.
        engine: ``local``, or ``ray``: the parts on many machines, which share the run folder.
        workers: With ``ray``: how many; None for one, or one for each GPU where the selector has a use for them.
        address: With ``ray``: a cluster's address; None for a Ray of this machine's own.
        seed: For selectors that draw, and for parts.
        overwrite: Replace an index of this epoch that was made otherwise.

    Returns:
        The selection; where eligible rows and limits do not let the whole budget be used, it has what they let, and
        ``metadata["shortfall"]`` says how many rows are missing; or how many tokens, where no row is left that the
        other limits let in.

    Raises:
        InputError: Bad options, limits that no selection can keep, or scores or embeddings that are missing or do not
            fit.
        MismatchError: The index of this epoch is there and was made otherwise.
    """
    start = time.monotonic()
    run = run if isinstance(run, Run) else Run(run)
    local = {"cells": cells, "probes": probes, "neighbours": neighbours}
    local_alone(name_of(selector), local)
    function = _checked("dpp" if selector == "auto" else selector, quality, quality_weight, fresh, seed)
    parameters = inspect.signature(function).parameters
    percentile = paces.pace(epoch, epochs, pace)
    tokens = constraints.budget_tokens(budget)
    wanted = constraints.budget_rows(budget, int(run.info()["dataset"]["rows"])) if tokens is None else tokens
    kept, left_out = (constraints.listed(*given, run) for given in (("include", include), ("exclude", exclude)))
    scored_in = epoch if scores_of is None else scores_of
    table = scores.read(run, scored_in)
    settings = scores.settings(run, scored_in)

    scored = scored_rows(table, difficulty, run.scores(scored_in))
    scored = _without(scored, left_out)
    kept_places = _kept(table, scored, kept, left_out)
    values = difficulty_of(table, scored, difficulty)
    lam, mask = paces.eligible(values, percentile)
    within = int(np.count_nonzero(mask))
    mask[kept_places] = True
    eligible, values_eligible = scored[mask], values[mask]
    keep = np.flatnonzero(np.isin(eligible, kept))
    q = kernel.quality(values_eligible, quality, quality_weight, difficulty)
    if fresh:
        times = _times_picked(run, epoch, int(run.info()["dataset"]["rows"]))[eligible]
        q *= np.maximum((1.0 - fresh) ** times, FRESH_FLOOR)

    vectors, white, h, vectors_fingerprint = _vectors(run, whiten, required="scale" in parameters)
    of = _of(vectors, eligible, white)
    known = table.column("tokens").fill_null(0).to_numpy().astype(np.int64)
    lengths = known[eligible]
    costs = None if tokens is None else lengths
    limits = constraints.limits(run, eligible, wanted, None if costs is None else known, at_most, per, share, keep)
    h, options = _options(
        name_of(selector),
        parameters,
        (similarity, scale, whiten, h),
        # A new draw each epoch from the one seed.
        {
            "seed": (seed, epoch),
            "keep": keep if keep.size else None,
            "limits": limits,
            "lengths": lengths,
            "ifd": values_eligible if difficulty == "ifd" else None,
        },
    )
    weight = _cost_weight(selector, tokens, cost_weight)
    seen = q if costs is None else q / costs ** (weight / 2)
    k = _asked_for(seen, wanted, costs, options)
    reason = None
    if selector == "auto":
        assert vectors is not None  # the scale has asked for them
        count = parts or (PARTS if engine == "ray" else 1)
        selector, reason = choose(_largest(len(eligible), k, count), vectors.shape[1], k, similarity)
        function = selectors.find(selector)
        if selector == "dpp-torch":
            del options["seed"]  # it draws nothing
    if selector == "dpp":
        options["method"] = "dpp"
    function, parts = _in_parts(
        function,
        (selector, parts, engine),
        parameters,
        {"run": run, "pool": eligible, "white": white, "workers": workers, "address": address},
    )
    local = _local(selector, local, len(eligible), k, parts)
    options |= local
    # Parts take theirs from the run folder.
    x = of if of is None or parts else of(np.arange(len(eligible)))
    picked, gains = _whole(partial(_picked, function, name_of(selector), x, seen), k, wanted, costs, options)
    if costs is not None:
        gains = gains * costs[picked] ** weight

    selection = Selection(
        rows=eligible[picked],
        ids=table.column("id").take(eligible[picked]).combine_chunks() if "id" in table.column_names else None,
        difficulty=values_eligible[picked],
        quality=q[picked],
        gains=gains,
        metadata={
            "epoch": epoch,
            "epochs": epochs,
            # As JSON and as a caller would write it: "10" of a command line is the count 10.
            "budget": budget if tokens or str(budget).strip().endswith("%") else wanted,
            "eligible": within,
            "lam": lam,
            "percentile": percentile,
            "pace": pace,
            "difficulty": difficulty,
            "selector": name_of(selector),
            "policy": scores.policy(run, scored_in),
            **({} if scores_of is None else {"scores_of": scores_of}),
            "similarity": options.get("similarity"),
            "scale": options.get("scale"),
            "whiten": whiten,
            **(local | {"cells_on": neighbors.device()} if local else {}),
            "quality": quality,
            "quality_weight": quality_weight,
            "fresh": fresh,
            "earlier_fingerprints": [fingerprints.of_files(run.index(e)) for e in range(1, epoch)] if fresh else [],
            "cost_weight": None if tokens is None else weight,
            "at_most": at_most,
            "per": per,
            "share": share,
            "include": constraints.described(kept),
            "exclude": constraints.described(left_out),
            "parts": parts,
            "selector_reason": _effort(selector, vectors, len(eligible), k, parts or 1, similarity),
            "seed": seed,
            "tokens": int(lengths[picked].sum()),
            **_predicted(table, eligible[picked], "predicted"),
            "shortfall": _shortfall(wanted, limits, costs, picked, (at_most is not None, share is not None)),
            # Of a row to keep without quality it cannot be told.
            "dependent": int(np.count_nonzero((gains == 0) & ~((q[picked] == 0) & np.isin(picked, keep)))),
            "dataset_fingerprint": settings["dataset"],
            "scores_fingerprint": scores.fingerprint(run, scored_in),
            "embeddings_fingerprint": vectors_fingerprint,
            "scores": settings,
            "numpy": np.__version__,
            "version": __version__,
        },
        summary={
            "rows": table.num_rows,
            "rows_dataset": run.info()["dataset"]["rows"],
            "unscored": _unscored(table),
            **_predicted(table, np.arange(table.num_rows), "rows_predicted"),
            "selected": len(picked),
            "pool": len(eligible),
            "tokens_eligible": int(lengths.sum()),
            "difficulty_all": float(values.mean()),
            "difficulty_eligible": float(values_eligible.mean()),
            "difficulty_selected": float(values_eligible[picked].mean()),
            "selector_reason": reason,
            "accuracy": _accuracy(selector, of, q, picked, gains, options),
            "overlap_top": _overlap(picked, _top(q, len(picked))),
            "overlap_before": _overlap_before(run, epoch, eligible[picked]),
            "diversity": None if of is None or h is None else _compared(of, q, picked, h, seed),
        },
    )
    _keep(selection, run.index(epoch), overwrite)
    run.spend("select", epoch, time.monotonic() - start)
    return selection


def _predicted(table: pa.Table, rows: NDArray[np.int64], name: str) -> dict[str, int]:
    """How many of the rows have a difficulty that was predicted; nothing where all were measured."""
    if "measured" not in table.column_names:
        return {}
    return {name: int(pc.sum(pc.equal(table.column("status").take(rows), scores.PREDICTED)).as_py())}


def diversity(vectors: NDArray[np.float32], scale: float, seed: int = 0) -> dict[str, float]:
    """How diverse some rows are, by two measures; on a drawn part where there are more than 2,000.

    Args:
        vectors: Their unit-norm embeddings (k, d), k ≥ 2.
        scale: h of the similarity.
        seed: Draws the part.

    Returns:
        ``log_det``: log det(S + 1e-6 I) / k, in nats per row, at most 0: higher is more diverse.
        ``distance``: the mean over rows of 1 − cosine to the nearest other row.
    """
    x = np.asarray(vectors[_some(len(vectors), seed)], np.float64)
    cosines = np.minimum(x @ x.T, 1.0)
    matrix = np.exp((cosines - 1.0) / scale)
    np.fill_diagonal(matrix, 1.0 + DIVERSITY_JITTER)
    np.fill_diagonal(cosines, -1.0)
    return {
        "log_det": float(np.linalg.slogdet(matrix).logabsdet / len(x)),
        "distance": float((1.0 - cosines.max(axis=1)).mean()),
    }


def _some(count: int, seed: int) -> NDArray[np.int64]:
    """Places of the rows whose diversity stands for that of so many."""
    if count <= DIVERSITY_ROWS:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, DIVERSITY_ROWS, replace=False))


def _without(scored: NDArray[np.int64], left_out: NDArray[np.int64]) -> NDArray[np.int64]:
    """The scored rows that may be selected."""
    rows = np.setdiff1d(scored, left_out, assume_unique=True)
    if not len(rows):
        raise InputError("exclude: no row with a score is left to select from")
    return rows


def _kept(
    table: pa.Table, scored: NDArray[np.int64], kept: NDArray[np.int64], left_out: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Where the rows to keep are among those that may be selected."""
    missing = np.setdiff1d(kept, scored)
    if missing.size:
        row = int(missing[0])
        if row in left_out:
            raise InputError(f"row {row} is both to be included and to be excluded")
        status = table.column("status")[row].as_py() if row < table.num_rows else "not scored"
        raise InputError(f"include: row {row} has no score in this epoch ({status}); leave it out of the file")
    return np.searchsorted(scored, kept)


def _options(
    name: str,
    parameters: Mapping[str, Any],
    kernels: tuple[str, float | None, bool, float | None],
    given: Mapping[str, Any],
) -> tuple[float | None, dict[str, Any]]:
    """The scale, and what a selector is called with. What it does not take is refused, not left unused.

    Args:
        name: The selector's.
        parameters: Its keywords.
        kernels: The similarity, the scale and whether to whiten, as asked for; and the data's own scale.
        given: ``seed`` and ``lengths``; ``keep``, ``limits`` and ``ifd`` or None.
    """
    similarity, scale, whiten, h = kernels
    options: dict[str, Any] = {}
    if "scale" in parameters:
        # linear has none: it is refused there.
        options["scale"] = scale if similarity == "linear" else (h if scale is None else float(scale))
        h = options["scale"] or h
    elif scale is not None or whiten:
        raise InputError(f"{f'scale {scale}' if scale is not None else 'whiten'}: selector {name!r} takes none")
    if "similarity" in parameters:
        options["similarity"] = similarity
    elif similarity != "gaussian":
        raise InputError(f"similarity {similarity!r}: selector {name!r} takes none")
    options |= {keyword: given[keyword] for keyword in ("seed", *OF_ROWS) if keyword in parameters}
    if "ifd" in options and given["ifd"] is None:
        raise InputError(f"selector {name!r} goes by the difficulty ifd: give difficulty 'ifd'")
    for keyword, what in (("keep", "rows to include"), ("limits", "limits (tokens, at_most, share)")):
        if given[keyword] is not None:
            if keyword not in parameters:
                raise InputError(f"selector {name!r} takes no {what}: choose another, such as dpp or topk")
            options[keyword] = given[keyword]
    return h, options


def _in_parts(
    function: Callable[..., Any],
    asked: tuple[str | Callable[..., Any], int | None, str],
    parameters: Mapping[str, Any],
    given: dict[str, Any],
) -> tuple[Callable[..., Any], int | None]:
    """The selector in parts, where that is asked for, and how many parts."""
    selector, parts, engine = asked
    if engine not in ENGINES:
        raise InputError(f"engine {engine!r}: one of {', '.join(ENGINES)}")
    if engine == "local":
        for name in ("workers", "address"):
            if given[name] is not None:
                raise InputError(f"{name} {given[name]}: is for engine 'ray' alone")
        if parts is None:
            return function, None
    parts = PARTS if parts is None else parts
    if isinstance(parts, bool) or not isinstance(parts, int) or not 2 <= parts <= len(given["pool"]):
        raise InputError(f"parts {parts!r}: from 2 to the {len(given['pool'])} eligible rows")
    if not isinstance(selector, str) or "scale" not in parameters or selector == "kdpp":
        raise InputError(f"parts: for greedy selectors on embeddings, by name; not {name_of(selector)!r}")
    from p3select.partition import partitioned  # compiled; most selections do without

    return partial(partitioned, selector=selector, parts=parts, engine=engine, **given), parts


def _local(
    selector: str | Callable[..., Any], given: dict[str, int | None], n: int, k: int, parts: int | None
) -> dict[str, int | None]:
    """Cells, probes and neighbours for ``dpp-local``: where they are None, each part has its own by the rule."""
    if selector != "dpp-local":
        return {}
    if parts is not None:
        return given
    from p3select.selectors.dpp_local import parameters  # compiled; most selections do without

    return dict(zip(given, parameters(n, k, **given), strict=True))


def _largest(n: int, k: int, parts: int) -> int:
    """The most rows that are selected from at once: a part, or the union of what the parts gave."""
    return max(-(-n // parts), min(n, parts * k) if parts > 1 else 0)


def _effort(
    selector: str | Callable[..., Any], vectors: NDArray[np.float32] | None, n: int, k: int, parts: int, similarity: str
) -> str | None:
    """What the exact greedy takes, by which ``auto`` chooses: the same on every machine, whoever chose.

    The embeddings and the columns in float32, and the factor in both precisions, which are most of it where there is
    much. Columns are computed as far as they are needed, so that it is seldom as much; what cores and finalists take is
    not counted.
    """
    if selector not in METHODS or vectors is None:
        return None
    n, d = _largest(n, k, parts), vectors.shape[1]
    most = rank(d, k, similarity)
    work = n * most * (most + 2 * d) / AFFORDABLE
    need = 4 * (n + 3 * most) * (most + d)
    return f"exact takes up to some {gigabytes(need)}, and {work:.2g} times the work deemed bearable"


def _asked_for(
    seen: NDArray[np.float64], wanted: int, costs: NDArray[np.int64] | None, options: Mapping[str, Any]
) -> int:
    """How many rows a selector is asked for: as many as there can be; with a budget in tokens, as there are likely to.

    Tokens have room for a multitude of the shortest rows, which memory and time need not be had for.
    """
    n, keep, limits = len(seen), options.get("keep"), options.get("limits")
    if costs is None:
        # What fits under one limit is as many rows in any order; under two the budget is filled (see _whole).
        one = limits is not None and len(limits.room) == 1
        return len(selectors.in_order(np.arange(n), min(wanted, n), keep, limits)) if one else min(wanted, n)
    orders = np.argsort(-seen, kind="stable"), np.random.default_rng(0).permutation(n)
    most = int(np.searchsorted(np.cumsum(np.sort(costs)), wanted, side="right"))
    return min(most, math.ceil(SPARE * max(len(selectors.in_order(order, n, keep, limits)) for order in orders)))


def _whole(
    pick: Callable[[dict[str, Any], int], tuple[NDArray[np.int64], NDArray[np.float64]]],
    k: int,
    wanted: int,
    costs: NDArray[np.int64] | None,
    options: dict[str, Any],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """What a selector picks, once more where that did not use up a budget that can be used up."""
    picked, gains = pick(options, k)
    limits = options.get("limits")
    if limits is None:
        return picked, gains
    from p3select import limits as bounded  # compiled; most selections do without

    if costs is None and len(picked) < k and len(limits.room) == 2:
        limit, _ = bounded.crossed(limits, options.get("keep"), picked)
        return pick({**options, "limits": limit}, k)
    while costs is not None and len(picked) == k and bounded.beside(limits, picked).any():
        k = min(len(costs), math.ceil(SPARE * k * wanted / costs[picked].sum()))
        picked, gains = pick(options, k)
    return picked, gains


def _shortfall(
    wanted: int,
    limits: Limits | None,
    costs: NDArray[np.int64] | None,
    picked: NDArray[np.int64],
    given: tuple[bool, bool],
) -> int:
    """Rows that are missing; or tokens, of the budget or of the shares of it for which no row is left.

    Where only tokens keep a row out, what is unused is too little for it, and nothing is missing.

    Args:
        wanted: The budget.
        limits: As of :func:`p3select.constraints.limits`: the budget in tokens, rows of a value, shares.
        costs: Tokens of the rows to choose from, or None.
        picked: Places among them.
        given: Whether there are limits on the rows of a value, and shares.
    """
    if limits is None or costs is None:
        return wanted - len(picked)
    from p3select import limits as bounded  # compiled; most selections do without

    at_most, share = given
    group, cost, room = (part[-1 if share else 0] for part in limits)
    unused = room.copy()
    np.subtract.at(unused, group[picked], cost[picked])
    own = slice(1, 1 + at_most)
    by_rows = bounded.Limits(limits.group[own], limits.cost[own], limits.room[own])
    unused[group[bounded.beside(by_rows, picked)]] = 0
    return int(unused.sum())


def _cost_weight(selector: str | Callable[..., Any], tokens: int | None, weight: float) -> float:
    """The weight of tokens against gain."""
    if tokens is None or selector == "uniform":
        if weight != 1.0:
            what = "a budget in tokens" if tokens is None else "a selector that goes by quality"
            raise InputError(f"cost_weight {weight}: for {what}")
        return 0.0
    if not (weight >= 0 and np.isfinite(weight)):
        raise InputError(f"cost_weight {weight}: a number from 0")
    return float(weight)


def _picked(
    function: Callable[..., Any],
    name: str,
    x: NDArray[np.float32] | Callable[[NDArray[np.int64]], NDArray[np.float32]] | None,
    q: NDArray[np.float64],
    options: dict[str, Any],
    k: int,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """What a selector picks, found to be what it should be: a selector may be anybody's."""
    result = function(x, q, k, **options)
    try:
        picked, gains = (np.asarray(part) for part in result)
    except (TypeError, ValueError):
        raise InputError(f"selector {name!r}: gave {type(result).__name__}, not two arrays (rows, gains)") from None
    whole = picked.shape == gains.shape and picked.ndim == 1 and np.issubdtype(picked.dtype, np.integer)
    enough = 1 <= len(picked) <= k if "limits" in options else len(picked) == k
    if not (whole and enough) or len(np.unique(picked)) < len(picked) or picked.min() < 0 or picked.max() >= len(q):
        raise InputError(
            f"selector {name!r}: gave rows of shape {picked.shape} and {picked.dtype}, gains of shape {gains.shape}, "
            f"where {k} distinct row numbers from 0 to {len(q) - 1} and as many gains are due"
        )
    return picked.astype(np.int64), gains.astype(np.float64)


def _accuracy(
    selector: str | Callable[..., Any],
    of: Callable[[NDArray[np.int64]], NDArray[np.float32]] | None,
    q: NDArray[np.float64],
    picked: NDArray[np.int64],
    gains: NDArray[np.float64],
    options: Mapping[str, Any],
) -> dict[str, Any] | None:
    """How far the gains of ``dpp-local`` are from the true ones; None for others."""
    if selector != "dpp-local" or of is None or not gains.any():
        return None
    from p3select.selectors.dpp_local import accuracy

    own = {name: options[name] for name in ("scale", "similarity", "neighbours")}
    return accuracy(of(picked), q[picked], np.arange(len(picked)), gains, **own)


def _times_picked(run: Run, epoch: int, rows: int) -> NDArray[np.int64]:
    """How many of the epochs before picked each row of the dataset (rows,)."""
    times = np.zeros(rows, np.int64)
    for earlier in range(1, epoch):
        times[index.read(run.index(earlier)).rows] += 1
    return times


def _checked(
    selector: str | Callable[..., Any], quality: str, weight: float, fresh: float, seed: int
) -> Callable[..., Any]:
    """The selector's function; options that would have no effect on it are refused."""
    function: Callable[..., Any] = selectors.find(selector) if isinstance(selector, str) else selector
    name = name_of(selector)
    try:
        signature = inspect.signature(function)
        signature.bind(None, None, 1, **dict.fromkeys(name for name in OF_ROWS if name in signature.parameters))
    except (TypeError, ValueError):
        raise InputError(f"selector {name!r}: no function of (embeddings, quality, k)") from None
    if not 0 <= fresh <= 1:
        raise InputError(f"fresh {fresh}: from 0 to 1")
    if selector in ("uniform", "longest") and (quality, weight, fresh) != ("harder", 1.0, 0.0):
        raise InputError(f"selector {name!r} goes by no quality: leave quality, quality_weight and fresh out")
    if selector == "topk" and quality == "none":
        raise InputError("selector 'topk' with quality 'none' would take the first rows: choose another of the two")
    check_seed(seed)
    return function


def scored_rows(table: pa.Table, kind: str, folder: Path) -> NDArray[np.int64]:
    """The rows (m,) of a table of scores that have a difficulty of a kind.

    Args:
        table: As of :func:`p3select.scores.read`.
        kind: ``p3``, ``nll``, ``ifd`` or ``el2n``.
        folder: Where it was read, for messages.

    Raises:
        InputError: The rows were scored without ``ifd`` or ``el2n``; or the kind is not ``p3``, and some are predicted.
    """
    valid = table.column("difficulty").is_valid().to_numpy()
    if kind != "p3" and (guessed := pc.sum(pc.equal(table.column("status"), scores.PREDICTED)).as_py()):
        raise InputError(
            f"{folder}: of {guessed:,} rows the difficulty p3 is predicted, and {kind} is not known; go by p3, or "
            "score all rows of the epoch ('p3select score' without --refresh, with --overwrite)"
        )
    refuse_without(table, kind, folder)
    if kind == "ifd":
        # A target of one token has no probability by itself, unless the tokenizer begins every text with a token.
        valid &= table.column("alone_tokens").fill_null(0).to_numpy() > 0
    return np.flatnonzero(valid)


def refuse_without(table: pa.Table, kind: str, folder: Path) -> None:
    """Refuse a kind of difficulty of which a table of scores has not what it is made of; the rest is as above."""
    if kind not in (*difficulties.KINDS, "el2n"):
        raise InputError(f"unknown difficulty {kind!r}: choose one of {', '.join(difficulties.KINDS)}, el2n")
    if {"ifd": "alone_tokens", "el2n": "el2n"}.get(kind, "difficulty") not in table.column_names:
        raise InputError(f"{folder}: scored without --{kind}, which the difficulty {kind} needs; score again with it")


def difficulty_of(table: pa.Table, scored: NDArray[np.int64], kind: str) -> NDArray[np.float64]:
    """The difficulties (m,) of such rows; see :mod:`p3select.difficulties`."""
    if kind in ("p3", "el2n"):  # as they are stored: predicted rows have no log-probabilities, and these give no el2n
        column = "difficulty" if kind == "p3" else "el2n"
        values: NDArray[np.float64] = table.column(column).take(scored).to_numpy()
        return values
    logprobs, counts = (
        table.column(name).take(scored).combine_chunks() for name in ("action_logprobs", "action_tokens")
    )
    lengths = logprobs.value_lengths().to_numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    alone = None
    if kind == "ifd":
        sums, numbers = (table.column(name).take(scored).to_numpy() for name in ("alone_logprob", "alone_tokens"))
        alone = np.maximum(-sums, 0.0) / numbers
    return difficulties.difficulty(
        logprobs.flatten().to_numpy(), counts.flatten().to_numpy(), kind, offsets=offsets, nll_alone=alone
    )


def _vectors(
    run: Run, whiten: bool, *, required: bool
) -> tuple[NDArray[np.float32] | None, kernel.Whitening | None, float | None, str | None]:
    """All rows' embeddings, memory-mapped, what whitens them, the scale by the data rule, and the fingerprint.

    None where there are none. Scale and whitening are those of all rows, so that every epoch has the same kernel.
    """
    if not required and not run.embeddings.is_file():
        return None, None, None, None
    vectors, fingerprint = embeddings.read(run)
    white = kernel.whitening(vectors) if whiten else None
    some = kernel.taken(vectors, kernel.spaced(len(vectors), kernel.SCALE_ROWS), white)
    return vectors, white, kernel.scale(some), fingerprint


def _of(
    vectors: NDArray[np.float32] | None, eligible: NDArray[np.int64], white: kernel.Whitening | None
) -> Callable[[NDArray[np.int64]], NDArray[np.float32]] | None:
    """What gives the embeddings of some of the eligible rows, so that no more than those are held."""
    if vectors is None:
        return None
    return lambda places: kernel.taken(vectors, eligible[places], white)


def name_of(selector: str | Callable[..., Any]) -> str:
    """What the metadata call a selector: its name, or module:function."""
    return selector if isinstance(selector, str) else f"{selector.__module__}:{selector.__qualname__}"


def _unscored(table: pa.Table) -> dict[str, int]:
    status = {item["values"]: item["counts"] for item in table.column("status").value_counts().to_pylist()}
    return {name: count for name, count in status.items() if name not in (*tokenised.SCORED, scores.PREDICTED)}


def _top(q: NDArray[np.float64], k: int) -> NDArray[np.int64]:
    return np.argsort(-q, kind="stable")[:k]


def _overlap(picked: NDArray[np.int64], others: NDArray[np.int64]) -> float:
    return len(np.intersect1d(picked, others)) / len(picked)


def _overlap_before(run: Run, epoch: int, rows: NDArray[np.int64]) -> float | None:
    """The share of the rows that the epoch before had too; None where it has no index."""
    if epoch == 1 or not run.index(epoch - 1).is_file():
        return None
    return _overlap(rows, index.read(run.index(epoch - 1)).rows)


def _compared(
    of: Callable[[NDArray[np.int64]], NDArray[np.float32]],
    q: NDArray[np.float64],
    picked: NDArray[np.int64],
    h: float,
    seed: int,
) -> dict[str, dict[str, float]] | None:
    """The diversity of the selection beside a random draw and the top of quality, all of the same size."""
    if len(picked) < 2:
        return None
    drawn = np.random.default_rng(seed).choice(len(q), len(picked), replace=False)
    parts = {"selected": picked, "random": drawn, "top": _top(q, len(picked))}
    return {name: diversity(of(rows[_some(len(rows), seed)]), h) for name, rows in parts.items()}


def _keep(selection: Selection, path: Path, overwrite: bool) -> None:
    """Write the index; one that was made otherwise is not replaced unasked."""
    if path.is_file() and not overwrite:
        known = index.read(path)
        if dict(known.metadata) == dict(selection.metadata) and np.array_equal(known.rows, selection.rows):
            return
        changed = sorted(
            key
            for key in {*known.metadata, *selection.metadata}
            if known.metadata.get(key) != selection.metadata.get(key)
        )
        # What was asked for, rather than what came of it.
        changed = [key for key in changed if key not in RESULTS] or changed
        raise MismatchError(
            f"{path} is there and was made otherwise (differs in {', '.join(changed) or 'rows'}); a trainer may "
            "have used it: give --overwrite to replace it"
        )
    index.write(selection, path)
