"""Cells: which rows are near which, without comparing all with all.

Spherical k-means on a part of the rows (Lloyd's iterations on cosines), then each row's nearest centres: matrix
products and one pass; by FAISS where it finds a GPU (faiss-gpu), whose cells are others than ours for the same seed.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from p3select import kernel, machine

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

TRAIN_ROWS = 40
"""Rows for each cell that k-means is trained on."""

ITERATIONS = 5
"""Of k-means."""

BLOCK_ROWS = 1_024
"""Rows of one matrix product."""

SEARCHED_ROWS = 8_192
"""Rows that FAISS is given at a time."""


def cells(x: NDArray[np.float32], count: int, probes: int, seed: int | Sequence[int] = 0) -> NDArray[np.int32]:
    """The nearest cells of every row.

    Args:
        x: (n, d), of norm about 1.
        count: Cells, 1 ≤ count ≤ n.
        probes: 1 ≤ probes ≤ count.
        seed: Draws the rows that k-means is trained on and the first centres.

    Returns:
        (n, probes) int32: cells by falling cosine of their centres.
    """
    rng = np.random.default_rng(seed)
    if device() == "gpu":
        return by_faiss(x, count, probes, rng, gpu=True)
    train = x[np.sort(rng.choice(len(x), min(len(x), TRAIN_ROWS * count), replace=False))]
    train = train / np.linalg.norm(train, axis=1, keepdims=True)
    centres = train[np.sort(rng.choice(len(train), count, replace=False))]
    with kernel.unthreaded_blas():
        for _ in range(ITERATIONS if count > 1 else 0):
            cell = nearest(train, centres, 1)[:, 0]
            order = np.argsort(cell, kind="stable")
            held, first = np.unique(cell[order], return_index=True)
            centres[held] = np.add.reduceat(train[order], first, axis=0)  # a cell without rows keeps its centre
            centres /= np.linalg.norm(centres, axis=1, keepdims=True).clip(1e-12)
        return nearest(x, centres, probes)


def device() -> str:
    """Where :func:`cells` are made: ``gpu``, where FAISS finds one, or ``cpu``."""
    import faiss

    return "gpu" if faiss.get_num_gpus() else "cpu"


def by_faiss(
    x: NDArray[np.float32], count: int, probes: int, rng: np.random.Generator, *, gpu: bool
) -> NDArray[np.int32]:
    """The same by FAISS, which has k-means and the search on GPUs; on CPUs it took several times as long as ours."""
    import faiss

    train = x[np.sort(rng.choice(len(x), min(len(x), TRAIN_ROWS * count), replace=False))]
    seeds = {"seed": int(rng.integers(2**31)), "min_points_per_centroid": 1, "max_points_per_centroid": TRAIN_ROWS}
    means = faiss.Kmeans(x.shape[1], count, niter=ITERATIONS, spherical=True, gpu=gpu, **seeds)
    means.train(np.ascontiguousarray(train))
    found = np.empty((len(x), probes), np.int32)
    for first in range(0, len(x), SEARCHED_ROWS):
        some = np.ascontiguousarray(x[first : first + SEARCHED_ROWS])
        found[first : first + SEARCHED_ROWS] = means.index.search(some, probes)[1]
    return found


def nearest(x: NDArray[np.float32], centres: NDArray[np.float32], probes: int) -> NDArray[np.int32]:
    """The centres of the highest products with every row, highest first, ties to the lower one: (n, probes)."""
    found = np.empty((len(x), probes), np.int32)

    def work(first: int) -> None:
        part = slice(first, first + BLOCK_ROWS)
        _highest(x[part] @ centres.T, found[part])

    with ThreadPoolExecutor(machine.threads()) as pool:
        for _ in pool.map(work, range(0, len(x), BLOCK_ROWS)):
            pass
    return found


@kernel.compiled
def _highest(products: NDArray[np.float32], found: NDArray[np.int32]) -> None:
    values = np.empty(found.shape[1], np.float32)
    for row in range(len(products)):
        held = 0
        for column in range(products.shape[1]):
            value = products[row, column]
            if held == len(values) and value <= values[held - 1]:
                continue
            place = held if held < len(values) else held - 1
            held = min(held + 1, len(values))
            while place > 0 and values[place - 1] < value:
                values[place] = values[place - 1]
                found[row, place] = found[row, place - 1]
                place -= 1
            values[place] = value
            found[row, place] = column


def in_threads(pool: ThreadPoolExecutor, work: Callable[[int, int], Any], count: int, least: int) -> None:
    """Do ``work(first, last)`` over 0 … count in parts of at least ``least``, on all cores.

    For compiled functions, which let other threads run. The parts must not depend on each other.
    """
    parts = max(1, min(machine.threads(), count // least))
    edges = [count * part // parts for part in range(parts + 1)]
    started = [pool.submit(work, a, b) for a, b in pairwise(edges[1:])]
    work(edges[0], edges[1])
    for one in started:
        one.result()
