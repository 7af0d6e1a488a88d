"""Libraries, each called as its documentation says. What one forms from the features is part of its time.

Each has an environment of its own, without the others and without p3select.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.peers.squared import likelihood, similarity

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Features = NDArray[np.float32]
    Quality = NDArray[np.float64]
    Rows = NDArray[np.int64]


def dppy(x: Features, q: Quality, k: int, h: float) -> Rows:
    """An exact sample of the k-DPP."""
    process = import_module("dppy.finite_dpps").FiniteDPP("likelihood", L=likelihood(x, q, h))
    return np.array(process.sample_exact_k_dpp(size=k, random_state=0))


def submodlib(x: Features, q: Quality, k: int, h: float) -> Rows:
    """Gains fall below zero, and the greedy is to go on all the same."""
    library = import_module("submodlib")
    matrix = likelihood(x, q, h)
    function = library.LogDeterminantFunction(n=len(x), mode="dense", lambdaVal=0, sijs=matrix)
    picks = function.maximize(budget=k, optimizer="LazyGreedy", stopIfZeroGain=False, stopIfNegativeGain=False)
    return np.array([row for row, _ in picks])


def apricot(x: Features, q: Quality, k: int, h: float) -> Rows:  # noqa: ARG001
    """Facility location knows no quality."""
    selection = import_module("apricot").FacilityLocationSelection(k, metric="precomputed", optimizer="lazy")
    return np.array(selection.fit(similarity(x, h)).ranking)


def pyversity(x: Features, q: Quality, k: int, h: float) -> Rows:  # noqa: ARG001
    """Its kernel is its own; ``diversity`` as it comes."""
    library = import_module("pyversity")
    return np.array(library.diversify(x, q, k, strategy=library.Strategy.DPP).indices)
