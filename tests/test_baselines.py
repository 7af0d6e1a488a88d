"""Selectors to compare with: against brute force, or their published definition."""

import numpy as np
import pytest

from p3select import embeddings, limits
from p3select.errors import InputError
from p3select.selectors.d2 import d2
from p3select.selectors.deita import deita
from p3select.selectors.facility import facility
from p3select.selectors.ifd import ifd
from p3select.selectors.kcenter import kcenter
from p3select.selectors.longest import longest
from p3select.selectors.middle import middle
from p3select.selectors.rds import rds


def draw(seed, n=60, d=6):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) + 2.0 * rng.normal(size=(8, d))[rng.integers(0, 8, n)]
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    return x, rng.uniform(0.1, 1.0, n)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("weighted", [False, True])
def test_kcenter_is_farthest_first(seed, weighted):
    x, q = draw(seed)
    q = q if weighted else np.ones(len(q))
    rows, gains = kcenter(x, q, 15)
    distance = 1.0 - x.astype(np.float64) @ x.T.astype(np.float64)
    picked = [int(q.argmax())]
    for _ in range(14):
        worth = q * distance[:, picked].min(axis=1)
        worth[picked] = -1
        picked.append(int(worth.argmax()))
    assert rows.tolist() == picked
    np.testing.assert_allclose(
        gains[1:], [q[r] * distance[r, picked[:t]].min() for t, r in enumerate(picked) if t], rtol=1e-4
    )
    # No more than twice the best radius (Gonzalez 1985), in distances that are a metric.
    if not weighted:
        radius = np.sqrt(2 * np.maximum(distance, 0))[:, picked[:3]].min(axis=1).max()
        pairs = np.sqrt(2 * np.maximum(distance, 0))
        best = min(pairs[:, [a, b, c]].min(axis=1).max() for a in range(0, 60, 2) for b in range(a) for c in range(b))
        assert radius <= 2 * best + 1e-6


def test_kcenter_keeps_to_limits():
    x, q = draw(1)
    group = np.arange(60) % 5
    rows, _ = kcenter(x, q, 12, keep=[7, 9], limits=limits.at_most(2, group))
    assert set(rows[:2].tolist()) == {7, 9}
    assert len(rows) == 10
    assert np.bincount(group[rows]).max() == 2


@pytest.mark.parametrize("neighbours", [60, 5])
@pytest.mark.parametrize("seed", range(5))
def test_facility_is_the_plain_greedy_of_its_objective(seed, neighbours):
    x, q = draw(seed)
    rows, gains = facility(x, q, 12, neighbours=neighbours)
    cosine = x.astype(np.float64) @ x.T.astype(np.float64)
    # Row i can be represented by the rows nearest to it, itself among them: all, or few.
    near = np.zeros((60, 60), bool)
    np.put_along_axis(near, np.argsort(-cosine, axis=1)[:, :neighbours], values=True, axis=1)
    value = np.where(near, np.maximum(cosine, 0), 0) * q
    best, picked, added = np.zeros(60), [], []
    for _ in range(12):
        gain = np.maximum(value - best[:, None], 0).sum(axis=0)
        gain[picked] = -1
        row = int(gain.argmax())
        picked.append(row)
        added.append(gain[row])
        best = np.maximum(best, value[:, row])
    assert rows.tolist() == picked
    np.testing.assert_allclose(gains, added, rtol=1e-5)


def test_facility_fills_up_by_quality():
    x = np.repeat(np.eye(3, dtype=np.float32), 4, axis=0)
    q = np.linspace(0.1, 1.0, 12)
    rows, gains = facility(x, q, 6)
    assert rows.tolist() == [11, 7, 3, 10, 9, 8]
    assert (gains > 0).tolist() == [True] * 3 + [False] * 3


@pytest.mark.parametrize("seed", range(5))
def test_d2_passes_messages_as_published(seed):
    x, q = draw(seed)
    rows, gains = d2(x, q, 20, neighbours=4, gamma=0.7)
    y = x.astype(np.float64)
    squared = ((y[:, None] - y) ** 2).sum(axis=2)
    np.fill_diagonal(squared, np.inf)
    near = np.argsort(squared, axis=1)[:, :4]
    weight = np.exp(-0.7 * np.take_along_axis(squared, near, axis=1))
    score = q + (weight * q[near]).sum(axis=1)
    picked, values = [], []
    for _ in range(20):
        row = max((i for i in range(60) if i not in picked), key=lambda i: score[i])
        picked.append(row)
        values.append(score[row])
        for j, e in zip(near[row], weight[row], strict=True):
            score[j] -= e * values[-1]
    assert rows.tolist() == picked
    np.testing.assert_allclose(gains, np.maximum(values, 0), rtol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_deita_passes_over_what_is_near_to_what_it_has(seed, monkeypatch):
    monkeypatch.setattr("p3select.selectors.deita.BLOCK_ROWS", 7)
    x, q = draw(seed)
    rows, gains = deita(x, q, 40, threshold=0.6)
    picked = []
    for row in np.argsort(-q, kind="stable"):
        if all(float(x[row] @ x[other]) <= 0.6 for other in picked):
            picked.append(int(row))
    picked = picked[:40]
    rest = [int(row) for row in np.argsort(-q, kind="stable") if row not in picked][: 40 - len(picked)]
    assert rows.tolist() == picked + rest
    assert (gains > 0).sum() == len(picked) < 40


def test_nearest_rows_are_exact_below_the_bound_and_nearly_above(monkeypatch):
    x, _ = draw(3, n=2_000, d=12)
    cosines, rows = embeddings.nearest(x, 6)
    order = np.argsort(-(x @ x.T), axis=1, kind="stable")[:, :6]
    np.testing.assert_allclose(cosines, np.take_along_axis(x @ x.T, order, axis=1), atol=1e-5)
    monkeypatch.setattr(embeddings, "COMPARED_ROWS", 500)
    found = embeddings.nearest(x, 6)[1]
    hit = np.mean([len(set(a) & set(b)) / 6 for a, b in zip(found.tolist(), rows.tolist(), strict=True)])
    assert hit > 0.9


def test_longest_is_by_tokens():
    tokens = [5, 9, 2, 9, 7]
    rows, gains = longest(None, np.ones(5), 4, lengths=tokens)
    assert rows.tolist() == [1, 3, 4, 0]
    assert gains.tolist() == [9, 9, 7, 5]
    rows, _ = longest(None, np.ones(5), 4, lengths=tokens, keep=[2], limits=limits.budget(tokens, 14))
    assert rows.tolist() == [2, 1]
    with pytest.raises(InputError, match=r"lengths of shape \(4,\), but 5 rows"):
        longest(None, np.ones(5), 2, lengths=tokens[:4])


@pytest.mark.parametrize(("n", "expected"), [(5, [2, 1, 3, 0, 4]), (6, [2, 3, 1, 4, 0, 5]), (1, [0])])
def test_middle_goes_outwards_from_the_median(n, expected):
    rng = np.random.default_rng(n)
    q = np.linspace(0.1, 0.9, n)
    rows, gains = middle(None, q, n)
    assert rows.tolist() == expected
    assert gains[-1] == (0.0 if n > 1 else 1.0)
    mixed = rng.permutation(n)
    other, _ = middle(None, q[mixed], n)
    assert mixed[other].tolist() == expected
    k = max(1, n - 2)
    assert sorted(middle(None, q, k)[0]) == sorted(expected[:k])


def test_middle_keeps_to_limits():
    rows, _ = middle(None, np.linspace(0.1, 0.9, 9), 5, keep=[8], limits=limits.at_most(2, np.arange(9) % 3))
    assert rows.tolist() == [8, 4, 3, 5, 6]


def test_ifd_takes_the_highest_below_one():
    difficulty = np.array([0.4, 1.5, 0.9, 1.0, 0.7, 1.2])
    rows, gains = ifd(None, difficulty / (1 + difficulty), 6, ifd=difficulty)
    assert rows.tolist() == [2, 4, 0, 3, 5, 1]
    np.testing.assert_allclose(gains, [(0.9 / 1.9) ** 2, (0.7 / 1.7) ** 2, (0.4 / 1.4) ** 2, 0, 0, 0])
    # Whatever quality is made of.
    rows, _ = ifd(None, difficulty**4 * 100, 6, ifd=difficulty)
    assert rows.tolist() == [2, 4, 0, 3, 5, 1]
    with pytest.raises(InputError, match=r"ifd of shape \(5,\), but 6 rows"):
        ifd(None, difficulty, 2, ifd=difficulty[:5])


@pytest.mark.parametrize("seed", range(5))
def test_rds_lets_each_query_take_its_nearest_in_turn(seed):
    x, q = draw(seed)
    queries, _ = draw(100 + seed, n=7)
    rows, gains = rds(x, q, 30, queries=queries)
    cosines, left, picked, values = queries @ x.T, set(range(60)), [], []
    while len(picked) < 30:
        turn = len(picked) % 7
        row = max(sorted(left), key=lambda i: cosines[turn, i])
        left.remove(row)
        picked.append(row)
        values.append((1 + cosines[turn, row]) / 2)
    assert rows.tolist() == picked
    np.testing.assert_allclose(gains, np.minimum.accumulate(values), rtol=1e-5)
    assert rds(x, q, 10, queries=queries)[0].tolist() == picked[:10]


def test_rds_keeps_to_limits_and_refuses_other_queries():
    x, q = draw(1)
    group = np.arange(60) % 5
    rows, gains = rds(x, q, 12, queries=x[:3], keep=[7, 9], limits=limits.at_most(2, group))
    assert rows[:2].tolist() == [7, 9]
    assert rows[2:5].tolist() == [0, 1, 2]
    assert len(rows) == len(gains) == 10
    assert np.bincount(group[rows]).max() == 2
    for queries in (x[:0], x[:3, :4] / np.linalg.norm(x[:3, :4], axis=1, keepdims=True)):
        with pytest.raises(InputError, match="queries of shape"):
            rds(x, q, 5, queries=queries)


@pytest.mark.parametrize("selector", [facility, d2, deita])
def test_baselines_keep_to_limits(selector):
    x, q = draw(1)
    group, cost = np.arange(60) % 5, np.random.default_rng(0).integers(1, 9, 60)
    rows, gains = selector(x, q, 12, keep=[7, 9], limits=limits.at_most(2, group))
    assert rows[:2].tolist() == [7, 9]
    assert len(rows) == len(gains) == len(set(rows.tolist())) == 10
    assert np.bincount(group[rows]).max() == 2
    rows, gains = selector(x, q, 60, limits=limits.budget(cost, 50))
    assert cost[rows].sum() <= 50 < cost[rows].sum() + np.delete(cost, rows).min()
    # Rows that cannot fit are as if they were not picked; all that fit: as without limits.
    free = selector(x, q, 20)
    loose = selector(x, q, 20, limits=limits.budget(cost, 10_000))
    assert free[0].tolist() == loose[0].tolist()
    np.testing.assert_array_equal(free[1], loose[1])


@pytest.mark.parametrize("seed", range(3))
def test_facility_under_a_budget_is_the_greedy_of_what_fits(seed):
    x, q = draw(seed)
    cost = np.random.default_rng(seed).integers(1, 9, 60)
    rows, _ = facility(x, q, 60, neighbours=60, keep=[5], limits=limits.budget(cost, 40))
    value = np.maximum(x.astype(np.float64) @ x.T.astype(np.float64), 0) * q
    best, picked, left = np.zeros(60), [], 40
    while True:
        gain = np.maximum(value - best[:, None], 0).sum(axis=0)
        gain[picked] = -1
        gain[cost > left] = -1
        row = 5 if not picked else int(gain.argmax())
        if gain[row] < 0:
            break
        picked.append(row)
        left -= cost[row]
        best = np.maximum(best, value[:, row])
    assert rows.tolist() == picked


@pytest.mark.parametrize("seed", range(3))
def test_d2_and_deita_under_a_budget(seed):
    x, q = draw(seed)
    cost = np.random.default_rng(seed).integers(1, 9, 60)
    rows, _ = deita(x, q, 60, threshold=0.6, keep=[5], limits=limits.budget(cost, 40))
    picked, left = [5], 40 - cost[5]
    order = [int(row) for row in np.argsort(-q, kind="stable")]
    for near in (True, False):
        for row in order:
            apart = not near or all(float(x[row] @ x[other]) <= 0.6 for other in picked)
            if row not in picked and apart and cost[row] <= left:
                picked.append(row)
                left -= cost[row]
    assert rows.tolist() == picked
    rows, _ = d2(x, q, 60, neighbours=4, keep=[5], limits=limits.budget(cost, 40))
    y = x.astype(np.float64)
    squared = ((y[:, None] - y) ** 2).sum(axis=2)
    np.fill_diagonal(squared, np.inf)
    near = np.argsort(squared, axis=1)[:, :4]
    weight = np.exp(-np.take_along_axis(squared, near, axis=1))
    score = q + (weight * q[near]).sum(axis=1)
    picked, left = [], 40
    while True:
        fits = [i for i in range(60) if i not in picked and cost[i] <= left]
        if not fits:
            break
        row = 5 if not picked else max(fits, key=lambda i: score[i])
        picked.append(row)
        left -= cost[row]
        for j, e in zip(near[row], weight[row], strict=True):
            score[j] -= e * score[row]
    assert rows.tolist() == picked
