"""A draw from a k-DPP: k rows, each set S of k rows as likely as det L_S says. A new diverse subset for each epoch.

Kulesza & Taskar, "k-DPPs: fixed-size determinantal point processes" (ICML 2011; arXiv 1207.6083, §5.2): k of the
eigenvectors of L are drawn, then rows from the projection on them, one after the other (algorithm 8, with the
projections kept as columns of a Cholesky factor, so that nothing is orthogonalised anew). Elementary symmetric
polynomials are kept as logarithms: of thousands of eigenvalues they leave the range of float64.

Where L has low rank, as with ``similarity="linear"``, the d × d dual of §3.3 has the same eigenvalues.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.linalg import eigh
from scipy.linalg.lapack import dpstrf

from p3select import kernel
from p3select.errors import InputError
from p3select.selectors import dpp, embedded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

RANK = 1e-12
"""Eigenvalues below this fraction of the largest one are rounding."""


def kdpp(
    embeddings: ArrayLike,
    quality: ArrayLike,
    k: int,
    *,
    scale: float | None = None,
    similarity: str = "gaussian",
    seed: int | Sequence[int] = 0,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Draw k rows with P(S) = det L_S / Σ over all sets of k rows, exactly.

    Args:
        embeddings: (n, d) of norm 1.
        quality: (n,) ≥ 0; see :func:`p3select.kernel.quality`.
        k: 1 ≤ k ≤ n, and at most the rank of L.
        scale: h of ``gaussian`` and ``cauchy``; None: the data's own, by :func:`p3select.kernel.scale`.
        similarity: ``gaussian`` or ``cauchy``, as for ``dpp``: rank up to n, time O(n³).
            ``linear``, S_ij = cos_ij: rank up to d, time O(n (d² + k²)). Memory: :func:`needed_bytes`.
        seed: Of :func:`numpy.random.default_rng`. For a new draw in each epoch put the epoch into it.

    Returns:
        (rows, gains): (k,) int64 in an order in which the gains never rise, which is not the order of the draw: which
        rows they are is random, not how they are listed. And (k,) float64 det L_S after / before each row.

    Raises:
        InputError: Embeddings, quality, k or scale that cannot be used; a rank below k; an unknown similarity, or
            a scale given with ``linear``, where it would have no effect; more memory needed than the machine has left.
    """
    embeddings, q, k = embedded("kdpp", embeddings, quality, k)
    kind = dpp.checked_similarity(embeddings, similarity, scale)
    need = needed_bytes(q.size, embeddings.shape[-1], k, similarity)
    remedy = "selector dpp or dpp-local" if similarity == "linear" else "similarity linear, selector dpp or dpp-local"
    dpp.afford("kdpp", need, k, q.size, remedy)
    if similarity == "linear":
        features = kernel.unit_rows(embeddings) * q[:, None]
        values, dual = eigh(features.T @ features)
    else:
        unit = kernel.unit_rows(embeddings)
        matrix = dpp.block(unit, unit, kind)
        matrix *= q[:, None]
        matrix *= q
        values, vectors = eigh(matrix, overwrite_a=True)
    live = np.flatnonzero(values > RANK * max(values[-1], 0.0))
    if len(live) < k:
        raise InputError(
            f"cannot draw k = {k} rows: the kernel has rank {len(live)}, as many rows can be told apart; choose a "
            "smaller k"
            + (", or similarity gaussian" if similarity == "linear" else ", or selector dpp, which fills up")
        )
    rng = np.random.default_rng(seed)
    chosen = live[_eigenvectors(np.log(values[live]), k, rng)]
    basis = features @ (dual[:, chosen] / np.sqrt(values[chosen])) if similarity == "linear" else vectors[:, chosen]
    rows = _project(basis, rng)
    if similarity == "linear":
        part = features[rows] @ features[rows].T
    else:
        part = dpp.block(unit[rows], unit[rows], kind) * np.outer(q[rows], q[rows])
    return _listed(rows, part)


def needed_bytes(n: int, d: int, k: int, similarity: str) -> int:
    """Memory that a draw takes, in bytes, beside the embeddings.

    The rows in float64, and once more times their quality; or of a kernel of full rank L, its eigenvectors and LAPACK's
    work. And 2 n k for the projection.
    """
    matrices = 16 * n * d + 40 * d * d if similarity == "linear" else 8 * n * d + 32 * n * n
    return matrices + 16 * n * k


def log_symmetric(log_values: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Logarithms of the elementary symmetric polynomials of the first m of N positive values.

    Args:
        log_values: (N,) logarithms of the values.
        k: The highest degree.

    Returns:
        (N + 1, k + 1): at (m, l) that of degree l of the first m; −∞ where l > m.
    """
    table = np.full((len(log_values) + 1, k + 1), -np.inf)
    table[:, 0] = 0.0
    for m, value in enumerate(log_values, start=1):
        np.logaddexp(table[m - 1, 1:], table[m - 1, :-1] + value, out=table[m, 1:])
    return table


def _eigenvectors(log_values: NDArray[np.float64], k: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw k of them, each set as likely as the product of its values."""
    table = log_symmetric(log_values, k)
    chosen: list[int] = []
    for m, coin in zip(range(len(log_values), 0, -1), rng.random(len(log_values)), strict=True):
        wanted = k - len(chosen)
        if wanted and (m == wanted or coin < np.exp(log_values[m - 1] + table[m - 1, wanted - 1] - table[m, wanted])):
            chosen.append(m - 1)
    return np.array(chosen[::-1], np.int64)


def _project(basis: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw rows from the DPP of a projection: of as many as the (n, k) orthonormal columns."""
    n, k = basis.shape
    left = np.einsum("nk,nk->n", basis, basis)
    columns = np.empty((k, n))
    rows = np.empty(k, np.int64)
    for t in range(k):
        below = np.cumsum(left)
        row = rows[t] = np.searchsorted(below, rng.random() * below[-1], side="right")
        columns[t] = (basis @ basis[row] - columns[:t, row] @ columns[:t]) / np.sqrt(left[row])
        left = np.maximum(left - np.square(columns[t]), 0.0)
        left[rows[: t + 1]] = 0.0
    return rows


def _listed(rows: NDArray[np.int64], part: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The rows drawn, the one that multiplies det L most first, and their gains."""
    factor, order, _, _ = dpstrf(part, lower=1, tol=0.0)
    return rows[order - 1], np.square(factor.diagonal())
