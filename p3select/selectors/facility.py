"""Facility location: rows that represent all rows, each by the nearest one picked, over the graph of nearest rows.

f(Y) = Σ_i max_{j ∈ Y} q_j max(cos_ij, 0), maximised greedily, lazily (Mirchandani & Francis 1990; Lin & Bilmes, ACL
2011; Minoux 1978). Only the nearest rows of each are kept, and itself, as a dense n × n of a million rows cannot be:
the sparse form of Lindgren, Wu & Dimakis (NIPS 2016). With quality ``none`` it is theirs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from p3select import kernel
from p3select.embeddings import nearest
from p3select.selectors import dpp, embedded

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

NEIGHBOURS = 64
"""Nearest rows that can represent a row, itself among them."""


def facility(
    embeddings: ArrayLike | None, quality: ArrayLike, k: int, *, neighbours: int = NEIGHBOURS
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The rows that greedily maximise how well the nearest one picked represents each row.

    Args:
        embeddings: (n, d) of norm 1. Nearest rows are found by :func:`p3select.embeddings.nearest`.
        quality: (n,) ≥ 0.
        k: 1 ≤ k ≤ n.
        neighbours: Rows that can represent a row.

    Returns:
        (rows, gains): (k,) int64, ties to the lower row, and (k,) float64 what each pick added to f. Once nothing adds
        to f, the rest follows by quality, with gain 0.

    Raises:
        InputError: As :func:`p3select.selectors.embedded`.
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
    picked, gains = np.empty(k, np.int64), np.zeros(k)
    count = _climb(
        edges, of, value, np.add.reduceat(np.append(value, 0.0), edges[:-1]) * (np.diff(edges) > 0), picked, gains
    )
    rest = np.setdiff1d(np.arange(n), picked[:count])
    picked[count:] = rest[np.argsort(-q[rest], kind="stable")][: k - count]
    return picked, gains


@kernel.compiled
def _climb(
    edges: NDArray[np.int64],
    of: NDArray[np.int64],
    value: NDArray[np.float64],
    bounds: NDArray[np.float64],
    picked: NDArray[np.int64],
    gains: NDArray[np.float64],
) -> int:
    """Pick by falling gain; a gain that is out of date is a bound. Returns how many added something."""
    n = len(edges) - 1
    best = np.zeros(n)
    fresh = np.zeros(n, np.int64)
    peaks = dpp.peaks_of(bounds)
    t = 0
    while t < len(picked):
        top = 0.0
        for peak in peaks:
            top = max(top, peak)
        if top <= 0.0:
            break
        row = dpp.first(bounds, peaks, top)
        if fresh[row] == t:
            picked[t], gains[t] = row, top
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
