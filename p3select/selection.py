"""Selection: pace → kernel → selector → Selection. The sole orchestrator of stages II and III of P3."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import numpy as np

from p3select import (
    __version__,
    difficulties,
    embeddings,
    fingerprints,
    index,
    kernel,
    paces,
    scores,
    selectors,
    tokenised,
)
from p3select.errors import InputError, MismatchError
from p3select.index import Selection
from p3select.run import Run
from p3select.selectors.dpp import choose

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import pyarrow as pa
    from numpy.typing import NDArray

# Rows on which diversity is measured: a log determinant costs their number cubed.
DIVERSITY_ROWS = 2000
# Added to the diagonal there, so that an exact copy costs 13.8 nats rather than infinity.
DIVERSITY_JITTER = 1e-6


def select(
    run: Run | str | Path,
    *,
    epoch: int,
    epochs: int,
    budget: int | str,
    pace: str = "linear:50:95",
    difficulty: str = "p3",
    quality: str = "harder",
    quality_weight: float = 1.0,
    fresh: float = 0.0,
    selector: str | Callable[..., Any] = "auto",
    scale: float | None = None,
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
        budget: Rows to select: a count, or a share of the dataset's rows such as ``"20%"`` (rounded down).
        pace: The λ schedule; see :func:`p3select.pace`.
        difficulty: ``p3``, ``nll`` or ``ifd``; see :func:`p3select.difficulty`.
        quality: Which rows the DPP prefers: ``harder`` (the paper), ``easier``, ``none``.
        quality_weight: The exponent of q: 0 for diversity alone, large for plain top-q.
        fresh: How much a row that earlier epochs picked is put back, from 0 (not at all) to 1 (it comes last): its q is
            multiplied by (1 − fresh) for each of them, so that diversity holds across epochs too.
        selector: ``auto`` (``dpp`` where it fits time and memory, else ``dpp-local``: see
            :func:`p3select.selectors.dpp.choose`), ``dpp``, ``dpp-local``, ``kdpp``, ``topk``, ``uniform``, another
            name (see :mod:`p3select.selectors`), or a function.
        scale: h of S_ij = exp((cos_ij − 1) / h); None for the rule of :func:`p3select.kernel.scale`.
        seed: For selectors that draw.
        overwrite: Replace an index of this epoch that was made otherwise.

    Returns:
        The selection; with fewer eligible rows than the budget it has all of them, and
        ``metadata["shortfall"]`` says how many are missing.

    Raises:
        InputError: Bad options, or scores or embeddings that are missing or do not fit.
        MismatchError: The index of this epoch is there and was made otherwise.
    """
    run = run if isinstance(run, Run) else Run(run)
    function = _checked("dpp" if selector == "auto" else selector, quality, quality_weight, fresh, seed)
    percentile = paces.pace(epoch, epochs, pace)
    wanted = budget_rows(budget, int(run.info()["dataset"]["rows"]))
    table = scores.read(run, epoch)
    settings = scores.settings(run, epoch)

    scored = _scored(table, difficulty, run.scores(epoch))
    if not len(scored):
        raise InputError(f"{run.scores(epoch)}: no row could be scored; see the status column")
    values = _difficulty(table, scored, difficulty)
    lam, mask = paces.eligible(values, percentile)
    eligible, values_eligible = scored[mask], values[mask]
    q = kernel.quality(values_eligible, quality, quality_weight, difficulty)
    if fresh:
        q *= (1.0 - fresh) ** _times_picked(run, epoch, int(run.info()["dataset"]["rows"]))[eligible]

    parameters = inspect.signature(function).parameters
    vectors, h, vectors_fingerprint = _vectors(run, eligible, required="scale" in parameters)
    options: dict[str, Any] = {}
    if "scale" in parameters:
        options["scale"] = h = h if scale is None else float(scale)
    elif scale is not None:
        raise InputError(f"scale {scale}: selector {name_of(selector)!r} takes none")
    if "seed" in parameters:
        # A new draw each epoch from the one seed.
        options["seed"] = (seed, epoch)
    k = min(wanted, len(eligible))
    reason = None
    if selector == "auto":
        assert vectors is not None  # the scale has asked for them
        selector, reason = choose(len(eligible), vectors.shape[1], k)
        function = selectors.find(selector)
    if selector == "dpp":
        options["method"] = "dpp"
    picked, gains = _picked(function, name_of(selector), (vectors, q, k), options)

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
            "budget": wanted if not str(budget).strip().endswith("%") else budget,
            "eligible": len(eligible),
            "lam": lam,
            "percentile": percentile,
            "pace": pace,
            "difficulty": difficulty,
            "selector": name_of(selector),
            "policy": scores.policy(run, epoch),
            "scale": options.get("scale"),
            "quality": quality,
            "quality_weight": quality_weight,
            "fresh": fresh,
            "earlier_fingerprints": [fingerprints.of_files(run.index(e)) for e in range(1, epoch)] if fresh else [],
            "seed": seed,
            "shortfall": wanted - k,
            "dependent": int(np.count_nonzero(gains == 0)),
            "dataset_fingerprint": settings["dataset"],
            "scores_fingerprint": scores.fingerprint(run, epoch),
            "embeddings_fingerprint": vectors_fingerprint,
            "scores": settings,
            "numpy": np.__version__,
            "version": __version__,
        },
        summary={
            "rows": table.num_rows,
            "rows_dataset": run.info()["dataset"]["rows"],
            "unscored": _unscored(table),
            "selected": k,
            "difficulty_all": float(values.mean()),
            "difficulty_eligible": float(values_eligible.mean()),
            "difficulty_selected": float(values_eligible[picked].mean()),
            "selector_reason": reason,
            "accuracy": _accuracy(selector, vectors, q, picked, gains, options),
            "overlap_top": _overlap(picked, _top(q, k)),
            "overlap_before": _overlap_before(run, epoch, eligible[picked]),
            "diversity": None if vectors is None or h is None else _compared(vectors, q, picked, h, seed),
        },
    )
    _keep(selection, run.index(epoch), overwrite)
    return selection


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
    if len(vectors) > DIVERSITY_ROWS:
        drawn = np.random.default_rng(seed).choice(len(vectors), DIVERSITY_ROWS, replace=False)
        vectors = vectors[np.sort(drawn)]
    x = np.asarray(vectors, np.float64)
    cosines = np.minimum(x @ x.T, 1.0)
    matrix = np.exp((cosines - 1.0) / scale)
    np.fill_diagonal(matrix, 1.0 + DIVERSITY_JITTER)
    np.fill_diagonal(cosines, -1.0)
    return {
        "log_det": float(np.linalg.slogdet(matrix).logabsdet / len(x)),
        "distance": float((1.0 - cosines.max(axis=1)).mean()),
    }


def budget_rows(budget: int | str, rows: int) -> int:
    """A budget as a count.

    Args:
        budget: A count, or a share such as ``"20%"`` (rounded down).
        rows: Rows of the dataset.

    Raises:
        InputError: It is neither, or comes to less than one row.
    """
    text = str(budget).strip()
    try:
        share = float(text[:-1]) if text.endswith("%") else None
        wanted = int(text) if share is None else 0
    except ValueError:
        raise InputError(f"budget {budget!r}: give a count of rows such as 1000, or a share such as 20%") from None
    if share is not None:
        if not 0 < share <= 100:
            raise InputError(f"budget {budget!r}: a share is above 0% and at most 100%")
        wanted = int(rows * share / 100)
    if wanted < 1:
        raise InputError(f"budget {budget!r}: comes to {wanted} of {rows} rows; give at least 1")
    return wanted


def _picked(
    function: Callable[..., Any], name: str, given: tuple[Any, NDArray[np.float64], int], options: dict[str, Any]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """What a selector picks, found to be what it should be: a selector may be anybody's."""
    _, q, k = given
    result = function(*given, **options)
    try:
        picked, gains = (np.asarray(part) for part in result)
    except (TypeError, ValueError):
        raise InputError(f"selector {name!r}: gave {type(result).__name__}, not two arrays (rows, gains)") from None
    whole = picked.shape == gains.shape == (k,) and np.issubdtype(picked.dtype, np.integer)
    if not whole or len(np.unique(picked)) < k or picked.min() < 0 or picked.max() >= len(q):
        raise InputError(
            f"selector {name!r}: gave rows of shape {picked.shape} and {picked.dtype}, gains of shape {gains.shape}, "
            f"where {k} distinct row numbers from 0 to {len(q) - 1} and as many gains are due"
        )
    return picked.astype(np.int64), gains.astype(np.float64)


def _accuracy(
    selector: str | Callable[..., Any],
    vectors: NDArray[np.float32] | None,
    q: NDArray[np.float64],
    picked: NDArray[np.int64],
    gains: NDArray[np.float64],
    options: Mapping[str, Any],
) -> dict[str, Any] | None:
    """How far the gains of ``dpp-local`` are from the true ones; None for others."""
    if selector != "dpp-local" or vectors is None or not gains.any():
        return None
    from p3select.selectors.dpp_local import accuracy

    return accuracy(vectors, q, picked, gains, scale=options["scale"])


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
        inspect.signature(function).bind(None, None, 1)
    except (TypeError, ValueError):
        raise InputError(f"selector {name!r}: no function of (embeddings, quality, k)") from None
    if not 0 <= fresh <= 1:
        raise InputError(f"fresh {fresh}: from 0 to 1")
    if selector == "uniform" and (quality, weight, fresh) != ("harder", 1.0, 0.0):
        raise InputError("selector 'uniform' goes by no quality: leave quality, quality_weight and fresh out")
    if selector == "topk" and quality == "none":
        raise InputError("selector 'topk' with quality 'none' would take the first rows: choose another of the two")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed {seed!r}: a whole number from 0")
    return function


def _scored(table: pa.Table, kind: str, folder: Path) -> NDArray[np.int64]:
    """The rows (m,) that have a difficulty of a kind."""
    valid = table.column("difficulty").is_valid().to_numpy()
    if kind == "ifd":
        if "alone_tokens" not in table.column_names:
            raise InputError(f"{folder}: scored without --ifd, which the difficulty ifd needs; score again with it")
        # A target of one token has no probability by itself, unless the tokenizer begins every text with a token.
        valid &= table.column("alone_tokens").fill_null(0).to_numpy() > 0
    return np.flatnonzero(valid)


def _difficulty(table: pa.Table, scored: NDArray[np.int64], kind: str) -> NDArray[np.float64]:
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
    run: Run, eligible: NDArray[np.int64], *, required: bool
) -> tuple[NDArray[np.float32] | None, float | None, str | None]:
    """The eligible rows' embeddings, the scale by the data rule, and the fingerprint; None where there are none.

    The scale is that of all rows, so that every epoch has the same kernel.
    """
    if not required and not run.embeddings.is_file():
        return None, None, None
    vectors, fingerprint = embeddings.read(run)
    return np.asarray(vectors[eligible]), kernel.scale(vectors), fingerprint


def name_of(selector: str | Callable[..., Any]) -> str:
    """What the metadata call a selector: its name, or module:function."""
    return selector if isinstance(selector, str) else f"{selector.__module__}:{selector.__qualname__}"


def _unscored(table: pa.Table) -> dict[str, int]:
    status = {item["values"]: item["counts"] for item in table.column("status").value_counts().to_pylist()}
    return {name: count for name, count in status.items() if name not in tokenised.SCORED}


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
    vectors: NDArray[np.float32], q: NDArray[np.float64], picked: NDArray[np.int64], h: float, seed: int
) -> dict[str, dict[str, float]] | None:
    """The diversity of the selection beside a random draw and the top of quality, all of the same size."""
    if len(picked) < 2:
        return None
    drawn = np.random.default_rng(seed).choice(len(q), len(picked), replace=False)
    parts = {"selected": picked, "random": drawn, "top": _top(q, len(picked))}
    return {name: diversity(vectors[rows], h, seed) for name, rows in parts.items()}


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
        raise MismatchError(
            f"{path} is there and was made otherwise (differs in {', '.join(changed) or 'rows'}); a trainer may "
            "have used it: give --overwrite to replace it"
        )
    index.write(selection, path)
