"""Facility location: rows that represent all rows, each by the nearest one picked, over the graph of nearest rows.

f(Y) = Σ_i max_{j ∈ Y} q_j max(cos_ij, 0), maximised greedily, lazily (Mirchandani & Francis 1990; Lin & Bilmes, ACL
2011; Minoux 1978). Only the nearest rows of each are kept, and itself, as a dense n × n of a million rows cannot be:
the sparse form of Lindgren, Wu & Dimakis (NIPS 2016). With quality ``none`` it is theirs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from p3select import kernel
from p3select import limits as bounded
from p3select.embeddings import nearest
from p3select.selectors import dpp, embedded

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from p3select.limits import Limits

NEIGHBOURS = 64
"""Nearest rows that can represent a row, itself among them."""


def facility(
    embeddings: ArrayLike | None,
    quality: ArrayLike,
    k: int,
    *,
    keep: ArrayLike | None = None,
    limits: Limits | None = None,
    neighbours: int = NEIGHBOURS,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The rows that greedily maximise how well the nearest one picked represents each row.

    Args:
        embeddings: (n, d) of norm 1. Nearest rows are found by :func:`p3select.embeddings.nearest`.
        quality: (n,) ≥ 0.
        k: 1 ≤ k ≤ n.
        keep: (m,) places of rows that come first, m ≤ k.
        limits: What may be taken of groups of rows; see :mod:`p3select.limits`.
        neighbours: Rows that can represent a row.

    Returns:
        (rows, gains): (k,) int64, ties to the lower row, and (k,) float64 what each pick added to f. Once nothing adds
        to f, the rest follows by quality, with gain 0; fewer than k where limits let no more in.

    Raises:
        InputError: As :func:`p3select.selectors.embedded`, or limits or rows to keep that cannot be kept.
    """
    x, q, k = embedded("facility", embeddings, quality, k)
    n = len(q)
    cosines, rows = nearest(kernel.unit_rows(x, np.float32), min(neighbours, n))
    # By candidate j: the rows i that it can represent.
    places = np.flatnonzero((rows.ravel() >= 0) & (cosines.ravel() > 0))
    places = places[np.argsort(rows.ravel()[places], kind="stable")]
    candidate, of = rows.ravel()[places], places // rows.shape[1]
    value = np.minimum(cosines.ravel()[places].astype(np.float64), 1.0) * q[candidate]
    edges = np.searchsorted(candidate, np.arange(n + 1))
    bounds = np.add.reduceat(np.append(value, 0.0), edges[:-1]) * (np.diff(edges) > 0)
    left = bounded.checked(limits, n, keep, k)
    kept = np.asarray([] if keep is None else keep, np.int64)
    picked, gains = np.empty(k, np.int64), np.zeros(k)
    count = _climb(edges, of, value, bounds, kept, left, picked, gains)
    rest = np.setdiff1d(np.arange(n), picked[:count])
    rest = bounded.in_order(left, rest[np.argsort(-q[rest], kind="stable")], k - count)
    return np.concatenate([picked[:count], rest]), gains[: count + len(rest)]


@kernel.compiled
def _climb(
    edges: NDArray[np.int64],
    of: NDArray[np.int64],
    value: NDArray[np.float64],
    bounds: NDArray[np.float64],
    kept: NDArray[np.int64],
    limits: Limits,
    picked: NDArray[np.int64],
    gains: NDArray[np.float64],
) -> int:
    """Pick the rows to keep, then by falling gain; one that is out of date is a bound. Returns how many were picked."""
    n = len(edges) - 1
    best = np.zeros(n)
    fresh = np.zeros(n, np.int64)
    peaks = dpp.peaks_of(bounds)
    t = 0
    while t < len(picked):
        top = 0.0
        for peak in peaks:
            top = max(top, peak)
        if t < len(kept):
            row = kept[t]
        elif top > 0.0:
            row = dpp.first(bounds, peaks, top)
        else:
            break
        if not bounded.fits(limits, row):  # and never will
            dpp.lower(bounds, peaks, row, 0.0)
        elif fresh[row] == t:
            bounded.take(limits, row)
            picked[t], gains[t] = row, bounds[row]
            for place in range(edges[row], edges[row + 1]):
                best[of[place]] = max(best[of[place]], value[place])
            dpp.lower(bounds, peaks, row, 0.0)
            t += 1
        else:
            gain = 0.0
            for place in range(edges[row], edges[row + 1]):
                gain += max(value[place] - best[of[place]], 0.0)
            fresh[row] = t
            dpp.lower(bounds, peaks, row, min(gain, bounds[row]))
    return t
