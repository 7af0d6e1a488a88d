import math
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from p3select import kernel
from p3select.errors import InputError


def unit(rng, n, d):
    x = rng.standard_normal((n, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_quality_by_direction():
    u = np.array([0.0, 0.25, 0.5, 1.0])
    np.testing.assert_array_equal(kernel.quality(u), u)
    np.testing.assert_allclose(kernel.quality(u, "harder", 2.0), u**2)
    np.testing.assert_allclose(kernel.quality(u, "easier", 0.5), np.sqrt(1 - u))
    np.testing.assert_array_equal(kernel.quality(u, "none"), np.ones(4))
    for direction in ("harder", "easier"):
        np.testing.assert_array_equal(kernel.quality(u, direction, 0.0), np.ones(4))


@given(st.lists(st.floats(0, 800), min_size=1, max_size=10), st.floats(0, 8))
@settings(deadline=None)
def test_quality_of_nll_is_that_of_p3_with_one_action(nll, weight):
    nll = np.array(nll)
    assume(-np.expm1(-nll.max()) > 1e-9)
    assume(nll.min() * weight < 300)
    for direction in ("harder", "easier"):
        q = kernel.quality(nll, direction, weight, "nll")
        assert np.all((q >= 0) & (q <= 1))
        p3 = kernel.quality(1 - np.exp(-nll), direction, weight, "p3")
        np.testing.assert_allclose(q, p3, rtol=1e-6, atol=1e-12 ** min(weight, 1) if weight else 0)


def test_paper_defect_7_direction_is_a_named_option():
    difficulty = np.array([0.1, 0.4, 0.8])
    assert np.all(np.diff(kernel.quality(difficulty, "harder")) > 0)
    assert np.all(np.diff(kernel.quality(difficulty, "easier")) < 0)
    with pytest.raises(InputError, match="'hard': choose one of harder, easier, none"):
        kernel.quality(difficulty, "hard")


def test_quality_of_ifd_is_its_share_of_both_perplexities():
    u = np.array([0.0, 0.5, 1.0, 3.0])
    np.testing.assert_allclose(kernel.quality(u, "harder", 1.0, "ifd"), [0, 1 / 3, 1 / 2, 3 / 4])
    np.testing.assert_allclose(kernel.quality(u, "easier", 2.0, "ifd"), [1, 4 / 9, 1 / 4, 1 / 16])


def test_quality_of_el2n_is_its_share_of_the_largest_error():
    u = np.sqrt(2) * np.array([0.0, 0.25, 1.0])
    np.testing.assert_allclose(kernel.quality(u, "harder", 1.0, "el2n"), [0, 0.25, 1])
    np.testing.assert_allclose(kernel.quality(u, "easier", 2.0, "el2n"), [1, 9 / 16, 0])
    with pytest.raises(InputError, match=r"row 1 has difficulty 1\.5, which el2n cannot be"):
        kernel.quality([0.0, 1.5], kind="el2n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": -1.0}, "weight -1.0"),
        ({"weight": math.nan}, "weight nan"),
        ({"weight": math.inf}, "weight inf"),
        ({"direction": "none", "weight": 2.0}, "'none' takes no weight"),
        ({"kind": "perplexity"}, "'perplexity'"),
    ],
)
def test_quality_refuses_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        kernel.quality([0.5], **options)


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan, math.inf])
def test_quality_names_the_row_out_of_range(bad):
    with pytest.raises(InputError, match="row 1 has difficulty"):
        kernel.quality([0.5, bad])


def test_quality_of_nll_takes_more_than_1_but_not_infinity():
    assert kernel.quality([3.0], kind="nll")[0] == pytest.approx(1 - math.exp(-3))
    for bad in (math.inf, math.nan, -1.0):
        with pytest.raises(InputError, match="row 1"):
            kernel.quality([0.5, bad], kind="nll")
    with pytest.raises(InputError, match="1-D"):
        kernel.quality([[0.5]])


def test_unit_rows_are_exact_and_a_copy():
    x = unit(np.random.default_rng(0), 20, 8)
    for dtype in (np.float16, np.float32, np.float64):
        given_rows = x.astype(dtype)
        rows = kernel.unit_rows(given_rows)
        assert rows.dtype == np.float64
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-15)
        rows[:] = 0
        np.testing.assert_array_equal(given_rows, x.astype(dtype))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros(4), "row 2 .* norm 0"),
        (np.full(4, 2.0), "row 2 .* norm 4"),
        (np.array([1.01, 0, 0, 0]), "row 2 .* norm 1.01"),
        (np.array([np.nan, 0, 0, 1]), "row 2 .* not finite"),
        (np.array([np.inf, 0, 0, 0]), "row 2 .* not finite"),
    ],
)
def test_unit_rows_name_the_bad_row(bad, message):
    x = np.eye(4)
    x[2] = bad
    for function in (kernel.unit_rows, kernel.scale):
        with pytest.raises(InputError, match=message):
            function(x)


@pytest.mark.parametrize("shape", [(3,), (3, 0), (2, 2, 2), ()])
def test_unit_rows_refuse_other_shapes(shape):
    for function in (kernel.unit_rows, kernel.scale):
        with pytest.raises(InputError, match="2-D"):
            function(np.ones(shape))


def test_scale_is_the_median_distance_of_pairs():
    x = unit(np.random.default_rng(1), 101, 6)
    distances = [1 - x[i] @ x[j] for i in range(101) for j in range(i)]
    assert kernel.scale(x) == pytest.approx(np.median(distances), rel=1e-12)
    assert kernel.scale(x.astype(np.float32)) == pytest.approx(kernel.scale(x), rel=1e-6)


def test_scale_does_not_depend_on_order_rotation_or_exact_copies():
    rng = np.random.default_rng(2)
    x = unit(rng, 150, 5)
    rotation = np.linalg.qr(rng.standard_normal((5, 5)))[0]
    assert kernel.scale(x[rng.permutation(150)]) == pytest.approx(kernel.scale(x), rel=1e-12)
    assert kernel.scale(x @ rotation) == pytest.approx(kernel.scale(x), rel=1e-12)
    assert kernel.scale(np.tile(x, (4, 1))) == pytest.approx(kernel.scale(x), rel=1e-12)


def test_scale_of_many_rows_is_that_of_a_few():
    x = unit(np.random.default_rng(3), 9_000, 12)
    assert kernel.scale(x) == kernel.scale(x)
    assert kernel.scale(x) == pytest.approx(kernel.scale(x[:1_500]), rel=0.02)


def test_scale_follows_the_data():
    rng = np.random.default_rng(4)
    spread = rng.standard_normal((300, 16))
    narrow = np.eye(16)[0] + 0.05 * rng.standard_normal((300, 16))
    narrow /= np.linalg.norm(narrow, axis=1, keepdims=True)
    spread /= np.linalg.norm(spread, axis=1, keepdims=True)
    assert kernel.scale(narrow) < 0.1 * kernel.scale(spread)
    rows, h = kernel.unit_rows(narrow), kernel.scale(narrow)
    s = kernel.similarities(rows, rows, h)
    assert np.median(s[~np.eye(300, dtype=bool)]) == pytest.approx(math.exp(-1), rel=1e-3)


def test_scale_where_no_two_rows_differ():
    for n in (1, 2, 50):
        assert kernel.scale(np.tile([[0.6, 0.8]], (n, 1))) == 1.0
    assert kernel.scale(np.empty((0, 3))) == 1.0


@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.integers(2, 10), st.sampled_from([0.05, 0.5, 1.0, 3.0]))
@settings(deadline=None, max_examples=50)
def test_similarity_is_a_kernel(seed, n, d, h):
    x = kernel.unit_rows(unit(np.random.default_rng(seed), n, d))
    s = kernel.similarities(x, x, h)
    squared = ((x[:, None] - x[None]) ** 2).sum(-1)
    np.testing.assert_allclose(s, np.exp(-squared / (2 * h)), rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(np.diag(s), 1, rtol=1e-13)
    np.testing.assert_allclose(s, s.T, rtol=1e-12)
    assert s.max() <= 1
    assert np.linalg.eigvalsh(s)[0] > -1e-12 * n


def test_similarity_of_copies_is_never_above_1():
    x = kernel.unit_rows(np.repeat(unit(np.random.default_rng(5), 40, 384), 3, axis=0))
    for row in range(0, 120, 7):
        s = kernel.similarities(x, x[row : row + 1], 1e-3)[:, 0]
        assert s.max() <= 1
        np.testing.assert_allclose(s[row // 3 * 3 : row // 3 * 3 + 3], 1, atol=1e-9)


def test_whitening_removes_the_common_direction_and_keeps_rows_apart():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2_000, 12)) * np.linspace(0.1, 1.0, 12) + 3.0  # a cone, stretched
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    by = kernel.whitening(x)
    white = kernel.taken(x, np.arange(len(x)), by)
    assert white.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(white, axis=1), 1.0, atol=1e-6)
    cosines = (white @ white.T)[np.triu_indices(len(x), 1)]
    assert (x @ x.T).mean() > 0.9
    assert abs(cosines.mean()) < 1e-2
    # Every direction has the same part of the variance.
    spread = np.linalg.eigvalsh(np.cov(white.T))
    assert spread.max() / spread.min() < 1.5
    # By hand, from the definition.
    y = x.astype(np.float64)
    y = (y - y.mean(axis=0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(y.T, bias=True))).T
    y /= np.linalg.norm(y, axis=1, keepdims=True)
    np.testing.assert_allclose(white @ white[:50].T, y @ y[:50].T, atol=1e-4)  # W is unique up to a rotation
    # Of some rows alone, which need not be in memory.
    some = np.array([1_999, 3, 3, 1_500])
    np.testing.assert_allclose(kernel.taken(x, some, by), white[some], atol=1e-6)
    np.testing.assert_array_equal(kernel.taken(x, some), x[some])


@pytest.mark.slow
def test_whitening_and_scale_do_not_depend_on_the_threads_of_matrix_products():
    code = """
import hashlib
import numpy as np
from p3select import kernel
x = np.random.default_rng(0).standard_normal((3_000, 384), dtype=np.float32) + 1
x /= np.linalg.norm(x, axis=1, keepdims=True)
white = kernel.taken(x, np.arange(3_000), kernel.whitening(x))
print(hashlib.sha256(white.tobytes()).hexdigest(), kernel.scale(x).hex(), kernel.scale(white).hex())
"""
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"OPENBLAS_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)},
            capture_output=True,
            check=True,
        ).stdout
        for threads in (1, 2)
    }
    assert len(printed) == 1


def test_what_cannot_be_whitened_is_refused():
    one = np.zeros((5, 4))
    one[:, 0] = 1.0
    with pytest.raises(InputError, match="all alike"):
        kernel.whitening(one)
    pair = np.array([[1.0, 0.0], [-1.0, 0.0], [0.6, 0.8], [-0.6, -0.8]])
    axes = np.concatenate([pair, np.zeros((1, 2))])
    axes[4] = [0.0, 1.0]
    by = kernel.whitening(axes)
    assert kernel.taken(axes, np.arange(5), by).shape == (5, 2)
    at_mean = np.vstack([axes, by.mean])
    with pytest.raises(InputError, match="row 5 of the embeddings is their mean"):
        kernel.taken(at_mean, np.array([2, 5]), by)
