"""Selectors: which k of the eligible rows. One algorithm, one file, one function.

This module is the door: it names the built-in selectors and imports the chosen one only when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from p3select import kernel, plugins
from p3select.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from p3select.limits import Limits

BUILTIN = {
    "dpp": ("p3select.selectors.dpp:dpp", ""),
    "dpp-local": ("p3select.selectors.dpp_local:dpp_local", ""),
    "dpp-torch": ("p3select.selectors.dpp_torch:dpp_torch", "hf"),
    "kdpp": ("p3select.selectors.kdpp:kdpp", ""),
    "topk": ("p3select.selectors.topk:topk", ""),
    "kcenter": ("p3select.selectors.kcenter:kcenter", ""),
    "facility": ("p3select.selectors.facility:facility", ""),
    "d2": ("p3select.selectors.d2:d2", ""),
    "deita": ("p3select.selectors.deita:deita", ""),
    "ifd": ("p3select.selectors.ifd:ifd", ""),
    "longest": ("p3select.selectors.longest:longest", ""),
    "middle": ("p3select.selectors.middle:middle", ""),
    "uniform": ("p3select.selectors.uniform:uniform", ""),
}


class Selector(Protocol):
    """What selection needs of an algorithm.

    What it names as a keyword it is given: ``similarity`` and ``scale`` of the kernel; ``seed`` (an int or a sequence
    of them, as :func:`numpy.random.default_rng` takes); ``keep``, places of rows that have to be picked; ``limits``,
    a :class:`p3select.limits.Limits`, under which it may pick fewer than k; ``lengths``, (n,) tokens of the rows'
    targets; ``ifd``, (n,) the rows' difficulties of that name, which have then to be asked for.
    """

    def __call__(
        self, embeddings: NDArray[np.float32] | None, quality: NDArray[np.float64], k: int, **options: Any
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Choose k rows.

        Args:
            embeddings: (n, d) of norm 1; None where there are none, for selectors that do not use them.
            quality: (n,) ≥ 0.
            k: 1 ≤ k ≤ n.
            **options: Keywords of the selector's own.

        Returns:
            (rows, gains): (k,) int64 distinct rows in the order picked, and (k,) float64, for each pick the
            ratio det L_{picked so far} / det L_{picked before} of the kernel that the selector goes by; or, where it
            goes by none, what the pick added to what it does go by. They never rise.
        """
        ...


def find(name: str) -> Selector:
    """The selector of a name: a built-in, an entry point of ``p3select.selectors``, or ``module:attribute``.

    Raises:
        InputError: There is no such selector; the message lists those that there are.
    """
    return cast("Selector", plugins.find("selector", name, BUILTIN))


def checked(quality: ArrayLike, k: int) -> tuple[NDArray[np.float64], int]:
    """Quality as float64 (n,) and k as int, refused where no selector could use them.

    Raises:
        InputError: Quality is not 1-D, or a row's is negative, not finite, or so large that its square is not
            (the message names the row); k is not from 1 to n.
    """
    q = kernel.real("quality", quality).astype(np.float64)
    if q.ndim != 1:
        raise InputError(f"quality must be 1-D, one number per row, got shape {q.shape}")
    bad = np.flatnonzero(~((q >= 0) & (q <= np.sqrt(np.finfo(np.float64).max))))
    if bad.size:
        raise InputError(f"row {bad[0]} has quality {q[bad[0]]}: it must be finite and ≥ 0")
    if isinstance(k, bool) or not isinstance(k, int | np.integer):
        raise InputError(f"k {k!r}: a whole number of rows")
    k = int(k)
    if not 1 <= k <= q.size:
        raise InputError(f"cannot choose k = {k} of {q.size} rows: k must be from 1 to the number of rows")
    return q, k


def embedded(
    name: str, embeddings: ArrayLike | None, quality: ArrayLike, k: int
) -> tuple[NDArray[Any], NDArray[np.float64], int]:
    """Embeddings as an array (n, …), quality and k, for a selector that goes by embeddings.

    Raises:
        InputError: As :func:`checked`; or there are no embeddings, they are no numbers, or not as many as qualities.
    """
    if embeddings is None:
        raise InputError(f"{name} needs embeddings: run 'p3select embed' first, or use selector topk or uniform")
    q, k = checked(quality, k)
    x = kernel.real("embeddings", embeddings)
    if x.shape[:1] != q.shape:
        raise InputError(f"{x.shape[:1]} rows of embeddings, but {q.size} of quality")
    return x, q, k


def in_order(
    order: NDArray[np.int64], k: int, keep: ArrayLike | None = None, limits: Limits | None = None
) -> NDArray[np.int64]:
    """The first k rows of an order: those to keep before all others, and no row that does not fit when it is its turn.

    Args:
        order: (n,) all rows.
        k: 1 ≤ k ≤ n.
        keep: (m,) rows to keep, m ≤ k, or None.
        limits: See :mod:`p3select.limits`.

    Raises:
        InputError: As :func:`p3select.limits.checked`.
    """
    if keep is None and limits is None:
        return order[:k].astype(np.int64)
    from p3select import limits as bounded  # compiled; most selections do without

    kept = np.isin(order, np.asarray(keep if keep is not None else [], np.int64))
    return bounded.in_order(
        bounded.checked(limits, len(order), keep, k), np.concatenate([order[kept], order[~kept]]).astype(np.int64), k
    )
