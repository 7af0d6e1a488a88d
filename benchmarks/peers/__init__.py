"""Ways to pick k of n rows, each in a process of its own, and those from a registry in an environment of their own."""

from typing import NamedTuple


class Peer(NamedTuple):
    """A way to pick rows."""

    function: str
    """``module:function`` of this folder: (x, q, k, h) → rows."""
    about: str
    requirements: str = ""
    """``NAME`` of the file ``NAME.txt`` of this folder with what it needs; nothing: what p3select needs."""
    squared: bool = False
    """Whether it forms the n × n similarity."""


PEERS = {
    "dpp": Peer("own:exact", "p3select: exact greedy MAP, lazy"),
    "dpp-local": Peer("own:local", "p3select: greedy MAP from near picks alone"),
    "dpp-local-wide": Peer("own:local_wide", "the same, given 96 near picks sought in 16 cells"),
    "plain": Peer("own:plain", "greedy MAP, every row brought up to date at every pick, float32, no kernel kept"),
    "plain-64": Peer("own:plain_64", "the same in float64: the picks that the others' are compared with"),
    "fast-map": Peer("own:fast_map", "greedy MAP over the n × n kernel, float64 (Chen et al. 2018)", squared=True),
    "hemmi": Peer(
        "own:hemmi",
        "the same, lazy (Hemmi et al. 2022), written anew and compiled by numba, not their C++",
        squared=True,
    ),
    "k-means": Peer("own:k_means", "faiss k-means with k centres, the best quality of each cell"),
    "k-center": Peer("own:k_center", "farthest row first, from the best quality on"),
    "top": Peer("own:top", "the best k by quality"),
    "random": Peer("own:random", "k at random"),
    "dppy": Peer("others:dppy", "DPPy: an exact k-DPP sample, not the mode", "dppy", squared=True),
    "submodlib": Peer("others:submodlib", "submodlib: LogDeterminant, LazyGreedy", "submodlib", squared=True),
    "apricot": Peer("others:apricot", "apricot: facility location, lazy", "apricot", squared=True),
    "pyversity": Peer("others:pyversity", "pyversity: dpp, of the linear kernel", "pyversity"),
}
