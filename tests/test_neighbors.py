import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from p3select import machine, neighbors


def clustered(seed, groups, each, d=32, spread=0.05):
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((groups, d))
    group = rng.permutation(np.repeat(np.arange(groups), each))
    x = centres[group] / np.linalg.norm(centres[group], axis=1, keepdims=True)
    x += spread * rng.standard_normal(x.shape)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), group


def test_nearest_is_by_falling_product_and_ties_go_to_the_lower_centre():
    rng = np.random.default_rng(0)
    x, centres = (rng.standard_normal((n, 16)).astype(np.float32) for n in (9_000, 40))
    products = x.astype(np.float64) @ centres.T.astype(np.float64)
    for probes in (1, 7, 40):
        found = neighbors.nearest(x, centres, probes)
        chosen = np.take_along_axis(products, found.astype(np.int64), axis=1)
        np.testing.assert_allclose(chosen, np.sort(products, axis=1)[:, ::-1][:, :probes], atol=1e-5)
    same = np.repeat(centres[:1], 5, axis=0)
    np.testing.assert_array_equal(neighbors.nearest(x[:10], same, 3), np.tile([0, 1, 2], (10, 1)))


@pytest.mark.parametrize(
    "cells",
    [
        lambda x: neighbors.cells(x, 48, 4, seed=2),
        # What runs where FAISS finds a GPU.
        lambda x: neighbors.by_faiss(x, 48, 4, np.random.default_rng(2), gpu=False),
    ],
)
def test_cells_hold_what_is_alike(cells):
    x, group = clustered(1, groups=12, each=100)
    cell = cells(x)
    assert cell.shape == (1_200, 4)
    assert cell.dtype == np.int32
    assert all(len(set(row)) == 4 for row in cell.tolist())
    # Of rows that share their first cell nearly all are of one group.
    pairs = cell[:, :1] == cell[:, 0]
    assert (group[:, None] == group)[pairs].mean() > 0.95


def test_cells_of_copies_and_of_one_cell():
    x = np.tile(clustered(2, 1, 1)[0], (50, 1))
    assert (neighbors.cells(x, 5, 2) == neighbors.cells(x, 5, 2)[0]).all()
    np.testing.assert_array_equal(neighbors.cells(clustered(3, 5, 10)[0], 1, 1), np.zeros((50, 1)))


def test_cells_are_those_of_the_seed():
    x, _ = clustered(4, groups=10, each=60)
    np.testing.assert_array_equal(neighbors.cells(x, 20, 3, seed=(1, 2)), neighbors.cells(x, 20, 3, seed=(1, 2)))
    assert (neighbors.cells(x, 20, 3, seed=1) != neighbors.cells(x, 20, 3, seed=2)).any()


def test_in_threads_covers_all_once_and_passes_errors_on(monkeypatch):
    with ThreadPoolExecutor(3) as pool:
        for count, least, threads in ((0, 1, 3), (1, 1, 3), (100, 16, 3), (100, 1_000, 3), (7, 1, 1)):
            monkeypatch.setattr(machine, "threads", lambda threads=threads: threads)
            done = np.zeros(count, int)

            def work(first, last, done=done):
                done[first:last] += 1

            neighbors.in_threads(pool, work, count, least)
            assert (done == 1).all()
        monkeypatch.setattr(machine, "threads", lambda: 3)
        with pytest.raises(ZeroDivisionError):
            neighbors.in_threads(pool, lambda first, last: 1 // (first < 66), 100, 1)


def test_importing_the_package_and_its_doors_loads_no_numba():
    code = "import sys, p3select, p3select.cli, p3select.kernel, p3select.selectors; assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_compiled_code_runs_where_its_cache_cannot_be_written(tmp_path):
    """As in an installation that may only be read, by a user without a home."""
    source = tmp_path / "kernels.py"
    source.write_text("from p3select.kernel import compiled\n\n\n@compiled\ndef twice(x):\n    return 2 * x\n")
    code = (
        "import numba.core.caching as caching\n"
        "def none(*_): raise OSError\n"
        "for locator in caching.CacheImpl._locator_classes: locator.from_function = classmethod(lambda *_: None)\n"
        "import kernels\n"
        "assert kernels.twice(21) == 42"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
