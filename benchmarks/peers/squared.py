"""The n × n matrices that some need, in float64, formed in place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def similarity(x: NDArray[np.float32], h: float) -> NDArray[np.float64]:
    """S = exp((cos − 1) / h) of all rows of norm 1, (n, n)."""
    wide = x.astype(np.float64)
    matrix: NDArray[np.float64] = wide @ wide.T
    np.minimum(matrix, 1.0, out=matrix)
    matrix -= 1.0
    matrix /= h
    return np.exp(matrix, out=matrix)


def likelihood(x: NDArray[np.float32], q: NDArray[np.float64], h: float) -> NDArray[np.float64]:
    """L = diag(q) S diag(q)."""
    matrix = similarity(x, h)
    matrix *= q[:, None]
    matrix *= q
    return matrix
