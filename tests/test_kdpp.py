import itertools
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from p3select import kernel
from p3select.errors import InputError
from p3select.selectors.kdpp import kdpp, log_symmetric, needed_bytes
from tests.test_dpp import peak


def draw(seed, n, d):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True), rng.uniform(0.3, 1, n)


def full_kernel(x, q, similarity, h):
    squared = ((x[:, None] - x[None]) ** 2).sum(-1)
    s = np.exp(-squared / (2 * h)) if similarity == "gaussian" else 1 - squared / 2
    return np.outer(q, q) * s


def options(similarity, h=0.5):
    return {"similarity": similarity} | ({"scale": h} if similarity == "gaussian" else {})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("similarity", "n", "d", "k"),
    [("gaussian", 6, 2, 3), ("gaussian", 8, 3, 1), ("linear", 7, 4, 3), ("linear", 6, 3, 3)],
)
def test_sets_are_drawn_as_likely_as_their_determinant(similarity, n, d, k):
    x, q = draw(n + d, n, d)
    matrix = full_kernel(x, q, similarity, 0.5)
    sets = list(itertools.combinations(range(n), k))
    weight = np.array([np.linalg.det(matrix[np.ix_(rows, rows)]) for rows in sets])
    draws = 6_000
    counts = dict.fromkeys(sets, 0)
    for seed in range(draws):
        counts[tuple(sorted(kdpp(x, q, k, seed=seed, **options(similarity))[0].tolist()))] += 1
    expected = draws * weight / weight.sum()
    observed = np.array(list(counts.values()))
    # Rare sets together, as χ² needs.
    rare = expected < 5
    expected, observed = ([*v[~rare], v[rare].sum()] if rare.any() else v for v in (expected, observed))
    if expected[-1] == 0:
        expected, observed = expected[:-1], observed[:-1]
    assert stats.chisquare(observed, expected).pvalue > 1e-3
    # Marginals: how often a row is in the set.
    inside = np.array([[row in rows for row in range(n)] for rows in sets])
    marginal = weight @ inside / weight.sum()
    found = np.array(list(counts.values())) @ inside / draws
    np.testing.assert_allclose(found, marginal, atol=4.5 * np.sqrt(0.25 / draws))


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.data())
@settings(deadline=None, max_examples=50)
def test_symmetric_polynomials(seed, n, data):
    k = data.draw(st.integers(1, n))
    values = np.random.default_rng(seed).lognormal(0, 2, n)
    table = log_symmetric(np.log(values), k)
    for m in range(n + 1):
        for degree in range(k + 1):
            direct = sum(np.prod(some) for some in itertools.combinations(values[:m], degree))
            assert np.exp(table[m, degree]) == pytest.approx(direct, rel=1e-10)


def test_symmetric_polynomials_beyond_float64():
    # Of 5,000 equal values v, that of degree l is C(5000, l) v^l.
    from scipy.special import gammaln

    table = log_symmetric(np.full(5_000, np.log(1e-3)), 400)
    exact = gammaln(5_001) - gammaln(401) - gammaln(4_601) + 400 * np.log(1e-3)
    assert table[-1, -1] == pytest.approx(exact, rel=1e-10)


@pytest.mark.parametrize("similarity", ["gaussian", "linear"])
def test_rows_gains_and_seed(similarity):
    x, q = draw(1, 60, 24)
    rows, gains = kdpp(x, q, 20, seed=3, **options(similarity))
    assert rows.dtype == np.int64
    assert len(set(rows.tolist())) == 20
    assert np.all(np.diff(gains) <= 1e-12)
    log_det = np.linalg.slogdet(full_kernel(x, q, similarity, 0.5)[np.ix_(rows, rows)]).logabsdet
    assert np.log(gains).sum() == pytest.approx(log_det, rel=1e-8)
    np.testing.assert_array_equal(kdpp(x, q, 20, seed=3, **options(similarity))[0], rows)
    others = [frozenset(kdpp(x, q, 20, seed=(3, epoch), **options(similarity))[0].tolist()) for epoch in range(5)]
    assert len(set(others)) == 5


def test_draws_are_more_diverse_than_uniform_ones_and_less_than_the_greedy():
    from p3select.selectors.dpp import dpp

    x, _ = draw(2, 150, 6)
    q, h = np.ones(150), kernel.scale(x)
    matrix = full_kernel(x, q, "gaussian", h)

    def mean(sets):
        return np.mean([np.linalg.slogdet(matrix[np.ix_(rows, rows)]).logabsdet for rows in sets])

    rng = np.random.default_rng(0)
    drawn = mean([kdpp(x, q, 12, seed=seed)[0] for seed in range(10)])
    uniform = mean([rng.choice(150, 12, replace=False) for _ in range(40)])
    assert uniform + 1 < drawn < mean([dpp(x, q, 12)[0]])


def test_copies_are_never_drawn_together_and_q_0_never():
    x, q = draw(3, 10, 5)
    x, q = np.concatenate([x, x]), np.concatenate([q, q])
    q[[4, 14]] = 0
    for seed in range(50):
        rows = kdpp(x, q, 6, seed=seed, scale=0.5)[0]
        assert len(set((rows % 10).tolist())) == 6
        assert 4 not in rows % 10


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"k": 9}, "k = 9 rows: the kernel has rank 8, .* or selector dpp"),
        ({"k": 4, "similarity": "linear", "scale": None}, "k = 4 rows: the kernel has rank 3, .* similarity gaussian"),
        ({"similarity": "linear"}, "scale 0.5: similarity 'linear' takes none"),
        ({"similarity": "cosine"}, "unknown similarity 'cosine': there are gaussian, cauchy, linear"),
        ({"scale": -1.0}, "scale -1.0"),
        ({"embeddings": None}, "kdpp needs embeddings"),
        ({"quality": np.ones(9)}, r"\(10,\) rows of embeddings, but 9 of quality"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_the_remedy(changed, message):
    x = draw(4, 8, 3)[0]
    given = {"embeddings": np.concatenate([x, x[:2]]), "quality": np.ones(10), "k": 3, "scale": 0.5} | changed
    with pytest.raises(InputError, match=message):
        kdpp(**given)


def test_what_does_not_fit_in_memory_is_refused_before_it_is_tried():
    x = np.broadcast_to(np.float32([1, 0]), (1_000_000, 2))
    with pytest.raises(InputError, match=r"k = 10 from 1000000 rows needs 32000\.\d GB, .* choose similarity linear"):
        kdpp(x, np.ones(1_000_000), 10, scale=1.0)
    with pytest.raises(InputError, match=r"k = 500000 from 1000000 rows needs 8000\.\d GB, .* choose selector dpp"):
        kdpp(x, np.ones(1_000_000), 500_000, similarity="linear")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks the system for the peak of resident memory")
@pytest.mark.parametrize(("n", "d", "k", "similarity"), [(60_000, 64, 50, "linear"), (1_200, 8, 100, "gaussian")])
def test_memory_is_near_what_is_stated(n, d, k, similarity):
    taken = peak("kdpp:kdpp", n, d, k, similarity=similarity)
    assert 0.6 * needed_bytes(n, d, k, similarity) < taken < needed_bytes(n, d, k, similarity) + 4e6
