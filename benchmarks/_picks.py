"""How good picked rows are, and how alike two sets of them. Computed here, by none of the code that is measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.linalg import cholesky

from benchmarks.peers.squared import similarity

if TYPE_CHECKING:
    from numpy.typing import NDArray

JITTER = 1e-6
"""On the diagonal of S, for log det."""

LARGEST_LOG_DET = 12_000
TWIN = 0.95
SAMPLED = 5_000
"""Picks of a larger set whose nearest other pick is looked for."""


def value(x: NDArray[np.float32], q: NDArray[np.float64], rows: NDArray[np.int64], h: float) -> dict[str, float]:
    """Of a set of rows of norm 1.

    Returns:
        ``picked``, how many; ``quality``, their sum; ``log_det`` of L in float64 with ``JITTER`` on the diagonal of S,
        up to ``LARGEST_LOG_DET`` rows; ``distance``, the mean of 1 − cos to the nearest other pick; ``twins``, picks
        with another one at a cosine above ``TWIN`` (both of at most ``SAMPLED`` picks, spread over all).
    """
    some = x[rows]
    found = {"picked": len(rows), "quality": float(q[rows].sum())}
    if len(rows) <= LARGEST_LOG_DET:
        s = similarity(some, h)
        s[np.diag_indices(len(s))] = 1.0 + JITTER
        half = np.log(cholesky(s, lower=True, overwrite_a=True, check_finite=False).diagonal()).sum()
        found["log_det"] = float(2.0 * half + 2.0 * np.log(q[rows]).sum())
    looked = np.linspace(0, len(rows) - 1, min(len(rows), SAMPLED)).astype(int)
    cosine = some[looked] @ some.T
    cosine[np.arange(len(looked)), looked] = -1.0
    nearest = cosine.max(axis=1)
    return found | {"distance": float(1.0 - nearest.mean(dtype=float)), "twins": int((nearest > TWIN).sum())}
