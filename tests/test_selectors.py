"""What every selector has in common, and the two that take no embeddings."""

import inspect
import sys
import types
from functools import partial

import numpy as np
import pytest

import p3select
from p3select import selection, selectors
from p3select.errors import InputError
from p3select.selectors.topk import topk
from p3select.selectors.uniform import uniform


def unit(rng, n, d):
    x = rng.standard_normal((n, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.fixture(params=sorted(selectors.BUILTIN))
def selector(request):
    function, rng = selectors.find(request.param), np.random.default_rng(1)
    # As select gives them to those that name them.
    told = {"lengths": rng.integers(1, 99, 40), "ifd": rng.uniform(0.5, 1.5, 40)}
    assert {*told} == {*selection.OF_ROWS}
    names = {*told} & {*inspect.signature(function).parameters}
    return partial(function, **{name: told[name] for name in names})


@pytest.fixture
def pool():
    rng = np.random.default_rng(0)
    return unit(rng, 40, 5), rng.uniform(0.1, 1, 40)


def test_rows_and_gains(selector, pool):
    for k in (1, 7, 39, 40):
        rows, gains = selector(*pool, k)
        assert rows.dtype == np.int64
        assert gains.dtype == np.float64
        assert rows.shape == gains.shape == (k,)
        assert len(set(rows.tolist())) == k
        assert rows.min() >= 0
        assert rows.max() < 40
        assert np.all(np.isfinite(gains) & (gains >= 0))
        assert np.all(np.diff(gains) <= 1e-12)


def test_the_same_call_gives_the_same_bytes(selector, pool):
    one, two = selector(*pool, 12), selector(*pool, 12)
    assert one[0].tobytes() == two[0].tobytes()
    assert one[1].tobytes() == two[1].tobytes()


# A draw of k is not the beginning of a draw of more.
@pytest.mark.parametrize("selector", sorted({*selectors.BUILTIN} - {"kdpp"}), indirect=True)
def test_the_first_k_of_more_are_those_of_k(selector, pool):
    rows, gains = selector(*pool, 30)
    for k in (1, 5, 29):
        fewer = selector(*pool, k)
        np.testing.assert_array_equal(fewer[0], rows[:k])
        np.testing.assert_array_equal(fewer[1], gains[:k])


def test_the_input_is_not_changed(selector, pool):
    before = pool[0].copy(), pool[1].copy()
    selector(*pool, 10)
    np.testing.assert_array_equal(pool[0], before[0])
    np.testing.assert_array_equal(pool[1], before[1])


@pytest.mark.parametrize("k", [0, -1, 41])
def test_k_out_of_range_is_refused(selector, pool, k):
    with pytest.raises(InputError, match=f"k = {k} of 40 rows"):
        selector(*pool, k)


@pytest.mark.parametrize("bad", [-0.1, np.nan, np.inf, -np.inf, 1e200])
def test_bad_quality_is_refused_with_its_row(selector, pool, bad):
    quality = pool[1].copy()
    quality[17] = bad
    with pytest.raises(InputError, match="row 17 has quality"):
        selector(pool[0], quality, 3)


def test_quality_of_another_shape_is_refused(selector, pool):
    with pytest.raises(InputError, match="1-D"):
        selector(pool[0], pool[1][:, None], 3)


def test_topk_is_by_quality_and_ties_go_to_the_lower_row():
    rows, gains = topk(None, [0.5, 0.9, 0.0, 0.9, 0.7, 0.5], 6)
    np.testing.assert_array_equal(rows, [1, 3, 4, 0, 5, 2])
    np.testing.assert_allclose(gains, [0.81, 0.81, 0.49, 0.25, 0.25, 0.0])


def test_topk_is_the_dpp_of_rows_that_are_not_alike():
    quality = np.random.default_rng(1).uniform(0.1, 1, 30)
    rows, gains = selectors.find("dpp")(np.eye(30), quality, 20, scale=1e-3)
    np.testing.assert_array_equal(topk(None, quality, 20)[0], rows)
    np.testing.assert_allclose(topk(None, quality, 20)[1], gains)


def test_uniform_draws_every_row_alike_and_by_seed():
    draws = np.array([uniform(None, np.ones(10), 3, seed=seed)[0] for seed in range(3_000)])
    counts = np.bincount(draws.ravel(), minlength=10)
    # χ² with 9 degrees of freedom: 27.9 has p = 0.001, and draws without replacement vary less.
    assert ((counts - 900) ** 2 / 900).sum() < 27.9
    first = np.bincount(draws[:, 0], minlength=10)
    assert ((first - 300) ** 2 / 300).sum() < 27.9
    assert np.all(uniform(None, np.ones(10), 3)[1] == 1)


def test_uniform_takes_epoch_into_the_seed():
    epochs = [tuple(uniform(None, np.ones(1000), 20, seed=(7, epoch))[0]) for epoch in (1, 2, 1)]
    assert epochs[0] == epochs[2] != epochs[1]


def test_uniform_does_not_read_quality():
    np.testing.assert_array_equal(
        uniform(None, np.linspace(0, 1, 50), 9, seed=3)[0], uniform(None, np.ones(50), 9, seed=3)[0]
    )


def test_the_door_takes_module_and_attribute():
    module = types.ModuleType("p3select_test_plugin")
    module.first = lambda embeddings, quality, k: (np.arange(k), np.ones(k))
    sys.modules[module.__name__] = module
    try:
        assert selectors.find("p3select_test_plugin:first") is module.first
        with pytest.raises(InputError, match="'p3select_test_plugin:second'"):
            selectors.find("p3select_test_plugin:second")
    finally:
        del sys.modules[module.__name__]


def test_the_door_names_what_there_is():
    with pytest.raises(InputError, match=r"no selector 'best'; there are .*dpp, .*topk, .*uniform"):
        selectors.find("best")
    with pytest.raises(InputError, match="'no_such_module:x'"):
        selectors.find("no_such_module:x")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.eye(3), np.ones(3), 2.0), "k 2.0"),
        ((np.eye(3), np.ones(3), "2"), "k '2'"),
        ((np.eye(3), ["a", "b", "c"], 2), "quality must be real numbers"),
        ((np.eye(3) * 1j, np.ones(3), 2), "embeddings must be real numbers, got complex128"),
        (([[1.0], [1.0, 2.0]], np.ones(2), 1), "its rows differ in length"),
    ],
)
def test_what_is_no_number_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        p3select.dpp(*arguments, scale=0.5)


def test_a_scale_that_is_no_number_is_refused():
    with pytest.raises(InputError, match="scale 'a' must be a number"):
        p3select.dpp(np.eye(3), np.ones(3), 2, scale="a")
