"""Limits and rows to keep: the greedy selectors against a plain one that looks at every row at every step."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import p3select
from p3select import kernel, limits
from p3select.errors import InputError
from p3select.selectors.dpp_local import dpp_local
from p3select.selectors.topk import topk
from p3select.selectors.uniform import uniform

SCALE = 0.5


def draw(seed, n=120, d=8):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x, rng.uniform(0.2, 1.0, n), rng


def plain(x, q, k, similarity, keep, fits):
    """Rows to keep first, then the rest, each time the row of the highest gain that ``fits(rows so far, row)``."""
    unit = kernel.unit_rows(x)
    s = kernel.similarities(unit, unit, SCALE, similarity)
    rows, gains = [], []

    def variance(i):
        if not rows:
            return 1.0
        return 1.0 - s[rows, i] @ np.linalg.solve(s[np.ix_(rows, rows)], s[rows, i])

    for pool in (sorted(keep), sorted(set(range(len(q))) - set(keep))):
        worth = np.ones(len(q)) if pool == sorted(keep) else q**2
        while len(rows) < k:
            gain = {i: worth[i] * variance(i) for i in pool if i not in rows and (i in keep or fits(rows, i))}
            best = max(gain.values(), default=0.0)
            if best < 1e-9:
                break
            row = next(i for i, value in gain.items() if value >= best * (1 - 1e-10))
            gains.append(q[row] ** 2 * variance(row))
            rows.append(row)
    return rows, gains


def local(x, q, k, **options):
    """``dpp-local`` with all picks as neighbours: exact but for its jitter."""
    return dpp_local(x, q, k, cells=1, neighbours=k, **options)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    similarity=st.sampled_from(["gaussian", "cauchy"]),
    kept=st.integers(0, 3),
    cap=st.integers(1, 3),
    total=st.integers(60, 500),
    which=st.sampled_from(["none", "groups", "tokens", "both"]),
)
def test_under_limits_the_picks_are_those_of_the_plain_greedy(seed, similarity, kept, cap, total, which):
    x, q, rng = draw(seed)
    group, cost = rng.integers(0, 9, len(q)), rng.integers(5, 40, len(q))
    keep = np.unique(group, return_index=True)[1][:kept].tolist()  # of different groups
    some = [limits.at_most(cap, group)] * (which in ("groups", "both"))
    some += [limits.budget(cost, total + 120)] * (which in ("tokens", "both"))

    def fits(rows, row):
        taken = [*rows, *(i for i in keep if i not in rows)]
        held = np.count_nonzero(group[taken] == group[row]) < cap
        paid = cost[taken].sum() + cost[row] <= total + 120
        return (held or which in ("none", "tokens")) and (paid or which in ("none", "groups"))

    rows, gains = plain(x, q, 20, similarity, keep, fits)
    options = {"scale": SCALE, "similarity": similarity, "keep": keep or None}
    options["limits"] = limits.together(*some) if some else None
    for select in (p3select.dpp, local):
        picked, found = select(x, q, 20, **options)
        assert picked.tolist() == rows
        np.testing.assert_allclose(found, gains, rtol=1e-9 if select is p3select.dpp else 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("similarity", kernel.SIMILARITIES)
def test_3000_rows_under_limits(similarity):
    """More rows than are all computed in float64."""
    x, q, rng = draw(3, 3_000, 64)
    group, keep = rng.integers(0, 40, 3_000), [2_999, 5, 77]
    scale = None if similarity == "linear" else SCALE
    options = {"similarity": similarity, "scale": scale, "keep": keep, "limits": limits.at_most(2, group)}

    def fits(rows, row):
        return np.count_nonzero(group[rows] == group[row]) < 2

    rows, gains = plain(x, q, 50, similarity, keep, fits)
    picked, found = p3select.dpp(x, q, 50, **options)
    assert picked.tolist() == rows
    np.testing.assert_allclose(found, gains, rtol=1e-9)


def test_copies_of_rows_to_keep_are_kept_and_count_as_dependent():
    x, q, _ = draw(1)
    x[11], x[12] = x[10], x[10]
    for select in (p3select.dpp, local):
        rows, gains = select(x, q, 20, scale=SCALE, keep=[10, 11, 12, 40])
        assert {10, 11, 12, 40} <= set(rows.tolist())
        assert len(set(rows.tolist())) == 20
        assert (gains == 0).sum() == 2
        # The others are those that are picked when the copies need not be kept.
        fewer, _ = select(x, q, 18, scale=SCALE, keep=[10, 40])
        assert set(rows.tolist()) == {11, 12, *fewer.tolist()}


def test_a_copy_whose_better_twin_does_not_fit_is_picked():
    x, q, _ = draw(2, n=30)
    x[5], q[5], q[6] = x[6], 0.9, 1.0
    group = np.zeros(30, np.int64)
    group[5] = 1
    for select in (p3select.dpp, local):
        # The one row of group 0 that may be taken is another than 6, which then does not fit.
        rows, _ = select(x, q, 2, scale=SCALE, keep=[0], limits=limits.at_most(1, group))
        assert rows.tolist() == [0, 5]


def test_past_the_rank_rows_that_fit_are_added_by_quality():
    x = np.repeat(draw(4, n=3)[0], 10, axis=0)  # three different rows
    q = np.linspace(0.5, 1.0, 30)
    rows, gains = p3select.dpp(x, q, 12, scale=SCALE, limits=limits.at_most(5, np.arange(30) // 10))
    assert len(rows) == 12
    assert (gains > 0).sum() == 3
    assert np.bincount(rows // 10).max() == 5
    assert rows[3:].tolist() == sorted(rows[3:], key=lambda row: -q[row])


def test_topk_and_uniform_keep_to_limits_too():
    _, q, rng = draw(5)
    group = rng.integers(0, 9, len(q))
    for rows, gains in (
        topk(None, q, 20, keep=[3, 4], limits=limits.at_most(3, group)),
        uniform(None, q, 20, keep=[3, 4], limits=limits.at_most(3, group), seed=1),
    ):
        assert len(rows) == len(gains) == 20
        assert set(rows[:2].tolist()) == {3, 4}
        assert np.bincount(group[rows]).max() <= 3
    rows, _ = topk(None, q, 20, limits=limits.at_most(3, group))
    order, taken = np.argsort(-q, kind="stable"), []
    for row in order:
        if sum(group[i] == group[row] for i in taken) < 3:
            taken.append(row)
    assert rows.tolist() == taken[:20]


def test_shares_fill_the_budget_and_rounding_leaves_nothing():
    group = np.array(["a"] * 50 + ["b"] * 30 + ["c"] * 20)
    one = limits.shares({"a": 0.335, "b": 0.335}, group, 10)
    assert one.room.sum() == 10
    x, q, _ = draw(6, n=100)
    rows, _ = p3select.dpp(x, q, 10, scale=SCALE, limits=one)
    held = {name: int((group[rows] == name).sum()) for name in "abc"}
    assert sorted(held.values()) == [3, 3, 4]
    exact = limits.shares({"a": 0.4, "b": 0.6}, group, 50)
    rows, _ = p3select.dpp(x, q, 50, scale=SCALE, limits=exact)
    assert [int((group[rows] == name).sum()) for name in "abc"] == [20, 30, 0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: limits.at_most(0, [1, 2]), "at most 0"),
        (lambda: limits.shares({"a": 0.7, "b": 0.4}, ["a", "b"], 10), "110.*at most 100%"),
        (lambda: limits.shares({"a": -0.1}, ["a", "b"], 10), "from 0% to 100%"),
        (lambda: limits.shares({"a": 0.5}, ["a", "b", "b", "b"], 4), "share a: 0.5 of 4 rows is 2, .* have 1"),
        (
            lambda: limits.shares({"a": 0.5}, ["a", "b", "b"], 60, [35, 37, 40]),
            "shares of 60 tokens: no row fits .a: 30, its shortest row 35; all other values: 30, its shortest row 37",
        ),
        (lambda: limits.budget([3, 0], 10), "row 1 has cost 0"),
        (lambda: p3select.dpp(*draw(1)[:2], 5, limits=limits.at_most(1, [1, 2])), "limits of .2,. rows, .* 120"),
        (lambda: p3select.dpp(*draw(1)[:2], 5, keep=[120]), "keep: row 120 is not there"),
        (lambda: p3select.dpp(*draw(1)[:2], 5, keep=[1, 1]), "keep: a row is given twice"),
        (lambda: p3select.dpp(*draw(1)[:2], 5, keep=[1.5]), "keep: give the places"),
        (lambda: p3select.dpp(*draw(1)[:2], 2, keep=[1, 2, 3]), "3 rows to keep, and k = 2"),
        (
            lambda: p3select.dpp(*draw(1)[:2], 5, keep=[1, 2, 3], limits=limits.at_most(2, np.zeros(120))),
            "the rows to keep, such as row 1, take 1 more than their limit allows",
        ),
        (lambda: p3select.dpp(*draw(1)[:2], 5, similarity="cosine"), "there are gaussian, cauchy, linear"),
        (lambda: p3select.dpp(*draw(1)[:2], 5, similarity="linear", scale=1.0), "'linear' takes none"),
    ],
)
def test_what_cannot_be_kept_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def most(both, keep):
    """How many rows two limits let in together with those to keep, by looking at every set of rows."""
    n = both.group.shape[1]
    for size in range(n, -1, -1):
        for rows in combinations(range(n), size):
            held = [np.bincount(group[list(rows)], minlength=both.room.shape[1]) for group in both.group]
            if set(keep) <= set(rows) and (np.array(held) <= both.room).all():
                return size
    return None


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(3, 9), cap=st.integers(1, 2), kept=st.integers(0, 2))
def test_two_limits_are_filled_as_far_as_can_be(seed, n, cap, kept):
    rng = np.random.default_rng(seed)
    by, of = rng.integers(0, 4, n), rng.integers(0, 3, n)
    rooms = np.array([[cap] * 4, [*rng.integers(0, 4, 3), 0]])
    both = limits.Limits(np.array([by, of], np.int32), np.ones((2, n), np.int64), rooms)
    keep = rng.choice(n, kept, replace=False).tolist()
    most_rows = most(both, keep)
    if most_rows is None:
        return  # the rows to keep do not fit
    picked = limits.in_order(limits.checked(both, n, keep, n), np.array([*keep, *rng.permutation(n)]), n)
    picked = picked[np.sort(np.unique(picked, return_index=True)[1])]
    one, short = limits.crossed(both, keep, picked)
    assert one.room.sum() == most_rows
    assert short.any() == (most_rows < rooms[1].sum())
    # Whatever the order, it ends full, and within both limits.
    for order in (rng.permutation(n), rng.permutation(n)):
        rows, _ = topk(None, 1.0 + order, n, keep=keep or None, limits=one)
        assert len(rows) == most_rows
        assert set(keep) <= set(rows.tolist())
        held = np.bincount(of[rows], minlength=4)
        assert (held <= rooms[1]).all()
        assert (held >= np.bincount(of[picked], minlength=4)).all()
        assert (np.bincount(by[rows], minlength=4) <= cap).all()
        assert (held == rooms[1])[~short].all()


def test_the_limits_given_are_not_used_up():
    x, q, rng = draw(7)
    one = limits.together(limits.at_most(1, rng.integers(0, 5, len(q))), limits.budget(np.full(len(q), 3), 100))
    before = [part.copy() for part in one]
    first = p3select.dpp(x, q, 20, scale=SCALE, keep=[9], limits=one)[0]
    for part, was in zip(one, before, strict=True):
        np.testing.assert_array_equal(part, was)
    assert first.tolist() == p3select.dpp(x, q, 20, scale=SCALE, keep=[9], limits=one)[0].tolist()
    assert len(first) == 5
