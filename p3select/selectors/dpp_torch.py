"""The exact greedy of :mod:`p3select.selectors.dpp` on one CUDA device, by matrix products alone; the same picks.

Laziness is as there: a row's variance given what is picked never rises, so what is out of date is an upper bound. What
differs is the shape of the work. A device is slow at single steps and fast at large products, so that a round is

1. all bounds, sorted; from the top, thousands of rows at a time are brought up to date in float32, each until it is
   ruled out, as far down as a bound may be among the best few (the finalists);
2. the finalists' columns in float64, anew, by one triangular solve against the Cholesky factor of the picks, and
   their similarity given the picks, a small matrix;
3. on the host, the greedy on that matrix, as long as its best gain is certain to be above all other rows' bounds.

As there, float32 only rules out, with a margin that is checked against every finalist: picks, ties and gains are
decided in float64.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from p3select import kernel
from p3select import limits as bounded
from p3select.errors import InputError
from p3select.selectors import dpp, embedded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import ArrayLike, NDArray

    from p3select.limits import Limits
    from p3select.selectors.dpp import Similarity

BLOCK = 128
"""Picks whose columns are computed by one matrix product."""

FINALISTS = 1_024
"""Rows among which a round picks. Their matrix goes to the host: 8 MB."""

REFRESHED = 16_384
"""Rows of one matrix product."""

WORKSPACE = 2**27
"""Bytes for what cuBLAS and cuSOLVER take for themselves."""


def dpp_torch(
    embeddings: ArrayLike,
    quality: ArrayLike,
    k: int,
    *,
    scale: float | None = None,
    similarity: str = "gaussian",
    keep: ArrayLike | None = None,
    limits: Limits | None = None,
    device: str | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The rows that greedily maximise log det L_S, found on a CUDA device: those of :func:`p3select.dpp`, exact.

    The same rows in the same order as ``method="dpp"``, and the same gains up to the rounding of float64. All said
    there of ties, of what comes past the rank, of rows to keep and of limits holds here.

    Args:
        embeddings: (n, d) of norm 1.
        quality: (n,) ≥ 0.
        k: 1 ≤ k ≤ n.
        scale: As for ``dpp``.
        similarity: As for ``dpp``.
        keep: As for ``dpp``.
        limits: As for ``dpp``.
        device: ``cuda``, ``cuda:1``, …, or ``cpu``. None: ``cuda`` where torch finds one, else ``cpu``, where
            ``dpp`` is faster and needs no torch.

    Returns:
        (rows, gains) as ``dpp``.

        Memory on the device is :func:`needed_bytes`, of which nearly all is taken from the start: 46 GB for
        1,000,000 rows, k = 10,000, d = 384. The host needs the embeddings once more in float32.

    Raises:
        InputError: As ``dpp``; or a device that is none of these or not there, or has too little memory left.
    """
    x, q, k = embedded("dpp-torch", embeddings, quality, k)
    place = _device(device)
    _afford(x.shape, k, place, similarity)
    with _whole_float32():
        return dpp.exact(partial(_greedy, place), x, q, k, scale, similarity, keep, limits)


def needed_bytes(n: int, d: int, k: int) -> int:
    """Memory that the selection takes on the device, in bytes.

    The columns of all rows in float32, the Cholesky factor of the picks in float32, in float64 and as the solver's
    copy, and what a round works on.
    """
    factor = 4 * k * (k + d) + 8 * k * (2 * k + d) + 4 * (k + BLOCK) * BLOCK
    some, few = min(n, REFRESHED), min(n, FINALISTS)
    rounds = 8 * some * (k + d + 4 * BLOCK) + 8 * few * (3 * k + 2 * d + 4 * few)
    return n * (4 * (k + d) + 128) + factor + rounds + WORKSPACE


def left_bytes(device: str | torch.device = "cuda") -> int:
    """Memory left on a CUDA device, in bytes: what is free, and what torch has freed but keeps, to give it again."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0] + kept)


def _device(name: str | None) -> torch.device:
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise InputError(f"device {name!r}: give cpu, cuda, or cuda: and a number") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device {name!r}: dpp-torch runs on cpu and cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {name!r}: torch finds {torch.cuda.device_count()} CUDA devices; choose selector dpp")
    return device


def _afford(shape: tuple[int, ...], k: int, device: torch.device, similarity: str) -> None:
    """Refuse what would not fit on the device.

    Raises:
        InputError: More bytes are needed than are left there.
    """
    n, d = shape[0], shape[-1]
    most = dpp.rank(d, k, similarity)
    need, remedy = needed_bytes(n, d, most), dpp.remedy(most, k)
    if device.type == "cpu":
        dpp.afford("dpp-torch", need, k, n, remedy)
        return
    left = left_bytes(device)
    if need > left:
        raise InputError(
            f"dpp-torch of k = {k} from {n} rows needs {need / 1e9:.1f} GB on {device}, and {left / 1e9:.1f} GB are "
            f"left there: choose {remedy}, a smaller k or fewer rows"
        )


@contextmanager
def _whole_float32() -> Iterator[None]:
    """No TF32 in float32 products, whatever the caller has set: its rounding needs a margin that rules out little."""
    products = torch.backends.cuda.matmul
    # torch 2.9 has a new name for it, and refuses to read the old one once the new one was used.
    name, whole = ("fp32_precision", "ieee") if hasattr(products, "fp32_precision") else ("allow_tf32", False)
    before = getattr(products, name)
    setattr(products, name, whole)
    try:
        yield
    finally:
        setattr(products, name, before)


def _similarities(one: Any, other: Any, similarity: Similarity) -> Any:
    """A block of S, in the precision of the rows given; the same as :func:`p3select.kernel.similarities`."""
    s = (one @ other.T).clamp_(max=1.0)
    if similarity.kind == 2:
        return s
    s.sub_(1.0).div_(similarity.h)
    return s.exp_() if similarity.kind == 0 else s.neg_().add_(1.0).reciprocal_()


class _Rows(NamedTuple):
    """What is known of every row, in float32."""

    unit: Any  # (n, d)
    columns: Any  # (n, k): row i holds C⁻¹ S_(picked, i) as far as it was computed
    seen: Any  # int64 (n,): how far
    variance: Any  # float64 (n,): 1 − the squares of the columns seen


class _Picks(NamedTuple):
    """The Cholesky factor C of S over the rows picked, in one precision."""

    factor: Any  # (k, k), of which the lower triangle counts
    unit: Any  # (k, d): the rows picked


def _picks(k: int, d: int, dtype: Any, device: Any) -> _Picks:
    return _Picks(*(torch.zeros((k, columns), dtype=dtype, device=device) for columns in (k, d)))


def _greedy(
    device: torch.device,
    x: NDArray[Any],
    unit: NDArray[np.float32],
    q: NDArray[np.float64],
    k: int,
    similarity: Similarity,
    limits: Limits,
    margin: float,
) -> tuple[NDArray[np.int64], NDArray[np.float64], float]:
    """Picks and gains up to k or the rank; and 0, or a margin that would have been enough where this one was not."""
    n, d = x.shape
    squared = torch.from_numpy(np.square(q)).to(device)
    known = _Rows(
        torch.from_numpy(unit).to(device),
        torch.empty((n, k), dtype=torch.float32, device=device),
        torch.zeros(n, dtype=torch.int64, device=device),
        torch.ones(n, dtype=torch.float64, device=device),
    )
    coarse, fine = _picks(k, d, torch.float32, device), _picks(k, d, torch.float64, device)
    inverse = torch.zeros((-(-k // BLOCK) * BLOCK, BLOCK), dtype=torch.float32, device=device)
    cap = torch.ones(n, dtype=torch.float64, device=device)  # what float64 says of the variance
    rows, gains = np.empty(k, np.int64), np.zeros(k)
    t, missing = 0, -1
    while t < k:
        if len(limits.room):
            squared[torch.from_numpy(~bounded.fitting(limits)).to(device)] = 0.0
        bound = _refreshed(known, coarse, inverse, squared, cap, t, margin, similarity)
        chosen, beyond, lowest = _finalists(bound, missing)
        if not len(chosen):
            break
        finalists = chosen.cpu().numpy()
        unit64 = torch.from_numpy(kernel.unit_rows(x[finalists])).to(device)
        columns, residual = _conditioned(unit64, fine, t, similarity)
        error = residual.diagonal() - known.variance[chosen]
        error = torch.where(known.seen[chosen] == t, error, 0.0)
        if (most := float(error.max())) > margin:
            return rows, gains, 8.0 * most
        margin = max(margin, 8.0 * float(error.abs().max()))
        residual = residual.cpu().numpy()
        variance, seats = residual.diagonal().copy(), np.empty(len(chosen), np.int64)
        local = np.empty_like(residual)
        now, missing = _climb(
            *(finalists, squared[chosen].cpu().numpy(), variance, residual, local, seats),
            *(beyond, lowest, rows, gains, t, limits),
        )
        cap[chosen] = torch.from_numpy(np.where(variance > dpp.VARIANCE_FLOOR, variance, 0.0)).to(device)
        seats = seats[: now - t]
        cap[chosen[seats]] = 0.0
        fine.factor[t:now, :t] = columns[:, seats].T
        fine.factor[t:now, t:now] = torch.from_numpy(np.tril(local[seats, : now - t])).to(device)
        fine.unit[t:now] = unit64[seats]
        coarse.factor[t:now], coarse.unit[t:now] = fine.factor[t:now], fine.unit[t:now]
        _invert(inverse, fine.factor, t, now)
        t = now
    return rows[:t], gains[:t], 0.0


def _refreshed(
    known: _Rows,
    picks: _Picks,
    inverse: Any,
    squared: Any,
    cap: Any,
    t: int,
    margin: float,
    similarity: Similarity,
) -> Any:
    """All rows' bounds (n,), of which those that are among the ``FINALISTS`` best were brought up to the pick t."""
    bound = squared * torch.minimum(cap, known.variance + margin)
    value, order = torch.sort(bound, descending=True, stable=True)
    # The first part is small: it gives a bound by which others are ruled out early.
    start, stop, least = 0, 2 * FINALISTS, 0.0
    while start < len(order) and float(value[start]) > least:
        part = order[start:stop][value[start:stop] > least]
        _refresh(known, picks, inverse, part, least / squared[part] - margin, t, similarity)
        bound[part] = squared[part] * torch.minimum(cap[part], known.variance[part] + margin)
        best = bound[order[:stop]]
        least = float(best.topk(min(FINALISTS, len(best))).values[-1])
        start, stop = stop, stop + REFRESHED
    return bound


def _refresh(known: _Rows, picks: _Picks, inverse: Any, rows: Any, enough: Any, t: int, similarity: Similarity) -> None:
    """Compute the columns of some rows up to the pick t, or until a row's variance is below ``enough``."""
    seen, order = torch.sort(known.seen[rows])
    order = order[seen < t]
    rows, enough, seen = rows[order], enough[order], seen[: len(order)]
    unit, columns = known.unit[rows], known.columns[:, :t].index_select(0, rows)
    while len(rows) and (start := int(seen[0])) < t:
        stop = min(start // BLOCK * BLOCK + BLOCK, t)
        count = int(torch.searchsorted(seen, stop))  # those that lack a column of this block
        block = _similarities(unit[:count], picks.unit[start:stop], similarity)
        block.addmm_(columns[:count, :start], picks.factor[start:stop, :start].T, alpha=-1.0)
        block = block @ inverse[start:stop, start % BLOCK : start % BLOCK + stop - start].T
        columns[:count, start:stop] = block
        known.columns[rows[:count], start:stop] = block
        squares = block.double().square_()
        squares[torch.arange(start, stop, device=rows.device) < seen[:count, None]] = 0.0
        known.variance[rows[:count]] -= squares.sum(dim=1)
        known.seen[rows[:count]] = seen[:count] = stop
        if stop < t:
            left = known.variance[rows] >= enough
            if 4 * int(left[:count].count_nonzero()) < 3 * count:
                rows, enough, seen, unit, columns = rows[left], enough[left], seen[left], unit[left], columns[left]


def _finalists(bound: Any, missing: int) -> tuple[Any, float, int]:
    """The rows of the highest bounds above 0, the lower row of equals first, and what is best beyond them.

    Args:
        bound: (n,); those of the finalists are set to 0.
        missing: A row that is to be among them whatever its bound, or −1.

    Returns:
        (rows, beyond, lowest): at most ``FINALISTS`` rows, ascending; the highest bound of another row, and the lowest
        other row whose bound ties with it.
    """
    if missing >= 0:
        bound[missing] = math.inf
    value, order = torch.sort(bound, descending=True, stable=True)
    chosen = order[:FINALISTS][value[:FINALISTS] > 0].sort().values
    bound[chosen] = 0.0
    beyond = float(bound.max())
    return chosen, beyond, int((bound >= beyond * (1.0 - 2.0 * dpp.TIE)).nonzero()[0])


def _conditioned(unit: Any, picks: _Picks, t: int, similarity: Similarity) -> tuple[Any, Any]:
    """Columns (t, m) of m rows, and their similarity given the picks (m, m), in float64."""
    residual = _similarities(unit, unit, similarity).fill_diagonal_(1.0)
    columns = _similarities(picks.unit[:t], unit, similarity)
    if t:
        columns = torch.linalg.solve_triangular(picks.factor[:t, :t], columns, upper=False)
    return columns, residual.addmm_(columns.T, columns, alpha=-1.0)


def _invert(inverse: Any, factor: Any, before: int, t: int) -> None:
    """Bring the inverses of the diagonal blocks up to date with the picks from ``before`` to t."""
    for start in range(before // BLOCK * BLOCK, t, BLOCK):
        stop = min(start + BLOCK, t)
        one = torch.eye(stop - start, dtype=factor.dtype, device=factor.device)
        inverse[start:stop, : stop - start] = torch.linalg.solve_triangular(
            factor[start:stop, start:stop], one, upper=False
        )


@kernel.compiled
def _climb(
    finalists: NDArray[np.int64],
    squared: NDArray[np.float64],
    variance: NDArray[np.float64],
    residual: NDArray[np.float64],
    columns: NDArray[np.float64],
    seats: NDArray[np.int64],
    beyond: float,
    lowest: int,
    rows: NDArray[np.int64],
    gains: NDArray[np.float64],
    t: int,
    limits: Limits,
) -> tuple[int, int]:
    """Pick among the finalists while it is certain which row is best.

    ``residual`` is their similarity given the picks so far and ``variance`` its diagonal, which is brought up to date
    as far as needed; ``columns`` and ``seats`` receive the Cholesky factor of the new picks and which finalists they
    are. ``beyond`` and ``lowest`` as :func:`_finalists` gives them.

    Returns:
        (t, missing): picks so far; and the row that has to become a finalist because it may tie, or −1.
    """
    before = t
    seen = np.zeros(len(finalists), np.int64)
    bounds = np.where(variance > dpp.VARIANCE_FLOOR, squared * variance, 0.0)
    peaks = dpp.peaks_of(bounds)
    lead = 0.0  # the highest gain known to be up to date
    while t < len(rows):
        count = t - before
        best = 0.0
        for peak in peaks:
            best = max(best, peak)
        if best == 0.0 or beyond > best:
            return t, -1
        least = best
        place = dpp.first(bounds, peaks, least)
        if seen[place] == count:
            # It is the best; the lowest row that may tie with it goes first.
            least = best * (1.0 - dpp.TIE)
            place = dpp.first(bounds, peaks, least)
        own = columns[place]
        if not bounded.fits(limits, finalists[place]):
            dpp.lower(bounds, peaks, place, 0.0)
        elif seen[place] < count:
            enough = lead / squared[place]
            while True:
                one = seen[place]
                pick = seats[one]
                own[one] = (residual[place, pick] - dpp.dot(own[:one], columns[pick, :one])) / columns[pick, one]
                variance[place] -= own[one] * own[one]
                seen[place] += 1
                if seen[place] == count or variance[place] < enough:
                    break
            gain = squared[place] * variance[place] if variance[place] > dpp.VARIANCE_FLOOR else 0.0
            dpp.lower(bounds, peaks, place, gain)
            if seen[place] == count:
                lead = max(lead, gain)
        elif beyond >= least and lowest < finalists[place]:
            return t, lowest
        else:
            rows[t], gains[t] = finalists[place], bounds[place]
            own[count] = math.sqrt(variance[place])
            seats[count] = place
            bounded.take(limits, finalists[place])
            dpp.lower(bounds, peaks, place, 0.0)
            t += 1
            lead = 0.0
    return t, -1
