"""Greedy MAP of a determinantal point process, exact, from the embeddings alone.

Chen, Zhang & Zhou, "Fast greedy MAP inference for determinantal point process to improve recommendation
diversity" (NeurIPS 2018, arXiv 1709.05135), algorithm 1, with two differences: rows of the kernel are made when
a row is picked, so that n × n is never formed; and the Cholesky factor is that of S, not of L = diag(q) S diag(q),
so that rounding does not depend on quality. Row i then has the gain q_i² c_i, where c_i is the variance of row i
given the rows picked: 1 at the start, 0 for a copy of a picked row.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from p3select import kernel
from p3select.errors import InputError
from p3select.selectors import checked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

METHODS = ("auto", "dpp")

VARIANCE_FLOOR = 1e-10
"""Conditional variance, relative to that before any pick, below which a row counts as a copy of those picked.

Above the rounding of float64 (about 1e-13) and of one text embedded twice in float32 (about 1e-12); two rows
with S = 1 − 1e-9 are still told apart.
"""

TIE = 1e-10
"""Gains that agree to this fraction are a tie: less than that is rounding, which depends on a row's position."""


def dpp(
    embeddings: ArrayLike,
    quality: ArrayLike,
    k: int,
    *,
    scale: float | None = None,
    method: str = "auto",
    seed: int | Sequence[int] = 0,  # noqa: ARG001 (of the contract; nothing is drawn here)
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The rows that greedily maximise log det L_S, L_ij = q_i q_j exp((cos_ij − 1) / scale).

    Each step picks the row that multiplies the determinant most; ties go to the lower row. With gains that
    differ, the rows picked do not depend on the order of the input. The first k of k + m picks are those of k.

    **Past the rank.** When no row with q > 0 is left whose conditional variance is above ``VARIANCE_FLOOR``, a
    further pick would be decided by rounding. What is still missing is then filled with the remaining rows by
    quality, highest first, ties to the lower row, each with gain exactly 0: ``(gains == 0).sum()`` is the number
    of rows so filled. They are copies of picked rows, or rows with q = 0.

    Args:
        embeddings: (n, d) of norm 1.
        quality: (n,) ≥ 0; see :func:`p3select.kernel.quality`.
        k: 1 ≤ k ≤ n.
        scale: h of the similarity, > 0; the larger, the farther rows repel each other. None: the data's own, by
            :func:`p3select.kernel.scale`.
        method: ``dpp``, exact; ``auto`` takes it too.
        seed: For methods that draw. The exact greedy draws nothing.

    Returns:
        (rows, gains): (k,) int64 in the order picked, and (k,) float64 det L_S after / before each pick, which
        never rise. The sum of their logarithms is log det L_S (−∞ once rows were filled).

        Time is O(n k (k + d)); memory 8 n (k + d) bytes: 0.2 GB for 20,000 rows, k = 1,000, d = 384.

    Raises:
        InputError: Embeddings or quality that cannot be used (the message names the row), k outside 1…n, a scale
            that is not positive and finite, an unknown method, or more memory needed than the machine has left.
    """
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}: there are {', '.join(METHODS)}")
    if embeddings is None:
        raise InputError("dpp needs embeddings: run 'p3select embed' first, or use selector topk or uniform")
    q, k = checked(quality, k)
    if np.shape(embeddings)[:1] != q.shape:
        raise InputError(f"{np.shape(embeddings)[:1]} rows of embeddings, but {q.size} of quality")
    _afford(q.size, k, np.shape(embeddings)[-1])
    unit = kernel.unit_rows(embeddings)
    h = kernel.scale(unit) if scale is None else float(scale)
    if not (h > 0 and math.isfinite(h)):
        raise InputError(f"scale {h} must be > 0 and finite")
    return _greedy(unit, q, k, h)


def _greedy(
    unit: NDArray[np.float64], q: NDArray[np.float64], k: int, h: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    n = len(unit)
    factor = np.empty((k, n))  # row t: column t of the Cholesky factor of S, over all n rows
    variance = np.ones(n)
    squared = np.square(q)
    rows = np.empty(k, np.int64)
    gains = np.zeros(k)
    left = np.ones(n, dtype=bool)
    for t in range(k):
        gain = np.where(left & (variance > VARIANCE_FLOOR), squared * variance, 0.0)
        best = gain.max()
        if best == 0:
            rest = np.flatnonzero(left)
            rows[t:] = rest[np.argsort(-q[rest], kind="stable")[: k - t]]
            break
        row = int(np.argmax(gain >= best * (1.0 - TIE)))
        rows[t], gains[t], left[row] = row, gain[row], False
        if t + 1 < k:
            column = factor[t]
            column[:] = kernel.similarity(unit, row, h)
            column -= factor[:t, row] @ factor[:t]
            column /= math.sqrt(variance[row])
            variance -= np.square(column)
    return rows, gains


def _afford(n: int, k: int, d: int) -> None:
    """Refuse what would not fit: an allocation that is too large may end the process without a message."""
    need = 8 * n * (k + d)
    limit = _memory()
    if limit is not None and need > limit:
        raise InputError(
            f"dpp of k = {k} from {n} rows needs {need / 1e9:.1f} GB, and {limit / 1e9:.1f} GB are available: "
            "choose a smaller k or fewer rows"
        )


def _memory() -> int | None:
    """Bytes that are available (Linux), or in the machine (macOS); None where neither can be asked."""
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    if hasattr(os, "sysconf"):
        return int(os.sysconf("SC_PAGE_SIZE")) * int(os.sysconf("SC_PHYS_PAGES"))
    return None
