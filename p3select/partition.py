"""A greedy selection in parts: the rows are dealt out at random, each part is selected from, and then their union is.

RandGreeDi (Barbosa, Ene, Nguyễn & Ward, ICML 2015, arXiv 1502.02606; before it GreeDi, Mirzasoleiman et al., NIPS
2013). Each part gives its k best, of which the greedy over all of them takes k; the better of that and of the best
part's own is the result; with a budget in tokens the former is. Parts are done one after the other here, or side by
side on Ray, with the same result.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from p3select import distributed, embeddings, kernel, limits, selectors
from p3select.run import Run, write_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    Picks = tuple[NDArray[np.int64], NDArray[np.float64]]


def partitioned(
    vectors: Callable[[NDArray[np.int64]], NDArray[np.float32]],
    quality: NDArray[np.float64],
    k: int,
    *,
    run: Run,
    pool: NDArray[np.int64],
    selector: str,
    white: kernel.Whitening | None,
    parts: int,
    engine: str,
    workers: int | None,
    address: str | None,
    **options: Any,
) -> Picks:
    """What a selector picks by way of parts.

    Args:
        vectors: Gives the embeddings of some places among the rows to choose from; it is asked for the union alone.
        quality: (n,).
        k: Rows to pick.
        run: The run folder; workers read its embeddings, and leave what they pick there until it is put together.
        pool: (n,) the rows to choose from as rows of the dataset.
        selector: Its name.
        white: What the embeddings are whitened by, or None.
        parts: ≥ 2.
        engine: ``local`` or ``ray``.
        workers: With ``ray``: how many; None for one, or one for each GPU where the selector has a use for them.
        address: With ``ray``: a cluster's.
        **options: What the selector is called with. ``seed`` deals the rows out, too.

    Returns:
        (places, gains) as the selector returns them. A call that is killed leaves its folder ``parts-…`` in the run's.

    Raises:
        InputError: As the selector, or as :func:`p3select.distributed.crew`.
    """
    n = len(quality)
    part = np.random.default_rng(options.get("seed", 0)).permutation(np.arange(n) % parts)
    run = run.absolute()  # workers have another working directory
    # A folder for each call: several epochs may be selected at once.
    folder = Path(tempfile.mkdtemp(prefix="parts-", dir=run.path))
    try:
        crew = distributed.crew(
            engine,
            Worker,
            {"run": run.path, "selector": selector, "white": white},
            workers=workers,
            address=address,
            gpus=None if engine == "local" else float(selector == "dpp-torch"),
        )
        try:
            for number in range(parts):
                _write(folder / f"{number}.in.npz", _part(pool, quality, k, options, np.flatnonzero(part == number)))
            crew.each("pick", ((folder, number, _plain(options)) for number in range(parts)))
        finally:
            crew.close()
        found = [_read(folder / f"{number}.out.npz") for number in range(parts)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    own = [(one["places"], one["gains"]) for one in found]
    union = np.unique(np.concatenate([places for places, _ in own]))
    places, gains = selectors.find(selector)(vectors(union), quality[union], min(k, len(union)), **_of(options, union))
    within: limits.Limits | None = options.get("limits")
    if within is not None and (within.cost != 1).any():
        # Sets of as many tokens have different numbers of rows: their determinants tell nothing of each other.
        return union[places], gains
    return max([(union[places], gains), *own], key=_worth)


class Worker:
    """Selects from parts, each into a file."""

    def __init__(self, run: Path, selector: str, white: kernel.Whitening | None) -> None:
        self._select: Callable[..., Picks] = selectors.find(selector)
        self._vectors, _ = embeddings.read(Run(run))
        self._white = white

    def pick(self, folder: Path, number: int, options: Mapping[str, Any], advance: Callable[[int, int], None]) -> None:
        """Select from a part."""
        given = _read(folder / f"{number}.in.npz")
        options = dict(options)
        if given["keep"].size:
            options["keep"] = given["keep"]
        if given["room"].size:
            options["limits"] = limits.Limits(given["group"], given["cost"], given["room"])
        vectors = kernel.taken(self._vectors, given["rows"], self._white)
        places, gains = self._select(vectors, given["quality"], int(given["k"]), **options)
        _write(folder / f"{number}.out.npz", {"places": given["places"][places], "gains": gains})
        advance(len(given["rows"]), 0)


def _part(
    pool: NDArray[np.int64], quality: NDArray[np.float64], k: int, options: Mapping[str, Any], own: NDArray[np.int64]
) -> dict[str, Any]:
    """What a worker needs of a part, to which the rows to keep belong as well."""
    keep = options.get("keep")
    places = own if keep is None else np.union1d(own, keep)
    some = _of(options, places)
    within = some.get("limits") or limits.checked(None, len(places), None, k)
    return {
        "places": places,
        "rows": pool[places],
        "quality": quality[places],
        "k": min(k, len(places)),
        "keep": some.get("keep", np.zeros(0, np.int64)),
        **within._asdict(),
    }


def _of(options: Mapping[str, Any], places: NDArray[np.int64]) -> dict[str, Any]:
    """The selector's options for some of the rows, which have all rows to keep among them."""
    some = dict(options)
    if some.get("keep") is not None:
        some["keep"] = np.searchsorted(places, np.sort(some["keep"]))
    if some.get("limits") is not None:
        some["limits"] = limits.part(some["limits"], places)
    return some


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in ("keep", "limits")}


def _worth(picks: Picks) -> tuple[int, int, float]:
    """More rows, fewer of them copies, a higher determinant."""
    gains = picks[1][picks[1] > 0]
    return len(picks[1]), len(gains), float(np.log(gains).sum())


def _write(path: Path, arrays: Mapping[str, Any]) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)

    write_whole(path, write)


def _read(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path) as arrays:
        return dict(arrays)
