import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p3select.difficulties import difficulty
from p3select.errors import InputError

rows = st.lists(
    st.lists(st.tuples(st.floats(-60, 0), st.integers(1, 300)), min_size=1, max_size=8), min_size=1, max_size=20
)


def split(drawn):
    return [[s for s, _ in row] for row in drawn], [[t for _, t in row] for row in drawn]


@given(rows)
@settings(deadline=None)
def test_against_the_formula_row_by_row(drawn):
    logprobs, tokens = split(drawn)
    p3 = [1 - math.fsum(math.exp(s / t) for s, t in row) / len(row) for row in drawn]
    nll = [-math.fsum(s for s, _ in row) / sum(t for _, t in row) for row in drawn]
    np.testing.assert_allclose(difficulty(logprobs, tokens), p3, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(difficulty(logprobs, tokens, "nll"), nll, rtol=1e-12, atol=1e-14)
    assert np.all((difficulty(logprobs, tokens) >= 0) & (difficulty(logprobs, tokens) <= 1))


@given(rows, st.randoms())
@settings(deadline=None)
def test_a_row_depends_on_that_row_alone(drawn, random):
    for kind in ("p3", "nll"):
        whole = difficulty(*split(drawn), kind)
        order = list(range(len(drawn)))
        random.shuffle(order)
        np.testing.assert_array_equal(difficulty(*split([drawn[i] for i in order]), kind), whole[order])
        alone = [difficulty(*split([row]), kind)[0] for row in drawn]
        np.testing.assert_array_equal(alone, whole)


def test_direction_less_probable_is_harder():
    logprobs = [[math.log(p) * 4, math.log(p) * 2] for p in (0.99, 0.9, 0.5, 0.1, 0.001)]
    for kind in ("p3", "nll"):
        values = difficulty(logprobs, [[4, 2]] * 5, kind)
        assert np.all(np.diff(values) > 0)
        assert difficulty([[0.0, 0.0]], [[4, 2]], kind) == [0.0]


def test_actions_weigh_alike_in_p3_and_by_tokens_in_nll():
    logprobs, tokens = [[math.log(0.5), 9 * math.log(0.9)]], [[1, 9]]
    assert difficulty(logprobs, tokens)[0] == pytest.approx(1 - (0.5 + 0.9) / 2)
    assert difficulty(logprobs, tokens, "nll")[0] == pytest.approx(-(math.log(0.5) + 9 * math.log(0.9)) / 10)


def test_ragged_forms_agree():
    logprobs, tokens = [[-1.0, -2.5], [-0.25], [-3.0, -4.0, -0.5]], [[2, 3], [1], [7, 8, 9]]
    expected = difficulty(logprobs, tokens)
    arrays = [np.array(r, np.float32) for r in logprobs], [np.array(r, np.int32) for r in tokens]
    flat = np.concatenate(arrays[0]), np.concatenate(arrays[1])
    for got in (
        difficulty(*arrays),
        difficulty(*flat, offsets=np.array([0, 2, 3, 6], np.int32)),
        difficulty(np.array([[-1.0, -2.5]]), np.array([[2, 3]])),
    ):
        assert got.dtype == np.float64
        np.testing.assert_array_equal(got, expected[: got.size])
    assert difficulty([], []).shape == (0,)
    assert difficulty([], [], offsets=[0]).shape == (0,)


@pytest.mark.parametrize("kind", ["p3", "nll"])
@pytest.mark.parametrize(
    ("logprobs", "tokens", "message"),
    [
        ([[-1.0], [-1.0, math.nan]], [[1], [1, 1]], "row 1, action 1: .*finite, got nan"),
        ([[-1.0], [-math.inf]], [[1], [1]], "row 1, action 0: .*finite, got -inf"),
        ([[-1.0, -1.0], [0.5]], [[1, 1], [2]], "row 1, action 0: .*≤ 0, got 0.5"),
        ([[-1.0], [-1.0]], [[1], [0]], "row 1, action 0: .*≥ 1, got 0.0"),
        ([[-1.0], [-1.0]], [[1], [-3]], "row 1, action 0: .*≥ 1, got -3.0"),
        ([[-1.0]], [[1.5]], "whole number"),
        ([[-1.0], [-1.0, -2.0]], [[1], [1]], "row 1: 2 action log-probabilities, but 1 token"),
        ([[-1.0]], [[1], [1]], "1 rows, action_tokens 2"),
        ([[-1.0], -2.0], [[1], [1]], "row 1 of action_logprobs must be a list"),
        ([["a"]], [[1]], "action_logprobs must hold numbers"),
        ([[-1.0, None]], [[1, 1]], "action_logprobs must hold numbers|row 0, action 1"),
    ],
)
def test_bad_input_is_refused_with_its_row(logprobs, tokens, message, kind):
    with pytest.raises(InputError, match=message):
        difficulty(logprobs, tokens, kind)


@pytest.mark.parametrize(
    ("offsets", "message"),
    [([0, 3], "rise from 0 to 2"), ([1, 2], "rise from 0"), ([0, 2, 1, 2], "rise"), ([0.0, 2.0], "integers")],
)
def test_bad_offsets_are_refused(offsets, message):
    with pytest.raises(InputError, match=message):
        difficulty(np.array([-1.0, -1.0]), np.array([1, 1]), offsets=offsets)


def test_unknown_kind_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match=r"'ppl'.*p3, nll"):
        difficulty([[-1.0]], [[1]], "ppl")


def test_el2n_is_not_of_log_probabilities():
    with pytest.raises(InputError, match="not made of log-probabilities: select from scores of 'score --el2n'"):
        difficulty([[-1.0]], [[1]], "el2n")


def test_rounding_above_zero_counts_as_certain():
    assert difficulty([[1e-6, 0.0]], [[1, 1]]) == [0.0]
    assert difficulty([[1e-6, 0.0]], [[1, 1]], "nll") == [0.0]


def test_paper_defect_1_long_actions_do_not_underflow():
    product = [np.prod(np.full(2000, p, np.float32)) for p in (0.6, 0.7)]
    assert product[0] == product[1] < 1e-44  # what the released code computes
    for tokens in (290, 2_000, 100_000):
        logprob = np.float32(tokens * math.log(0.7))
        assert difficulty([[logprob]], [[tokens]])[0] == pytest.approx(0.3, abs=1e-6)
    p = np.linspace(0.5, 0.9, 1000)
    values = difficulty([[2_000 * math.log(x)] for x in p], [[2_000]] * 1000)
    assert len(np.unique(values)) == 1000


def test_paper_defect_7_direction_is_pinned_whatever_the_release():
    easy, hard = difficulty([[-0.1], [-5.0]], [[1], [1]])
    assert easy < hard


def test_paper_defect_10_a_row_without_actions_has_no_difficulty():
    for empty in ([], np.empty(0, np.float32)):
        with pytest.raises(InputError, match="row 1 has no actions"):
            difficulty([[-1.0], empty, [-2.0]], [[1], [], [1]])
    with pytest.raises(InputError, match="row 2 has no actions"):
        difficulty([-1.0, -2.0], [1, 1], offsets=[0, 1, 2, 2])
    with pytest.raises(InputError, match="row 0 has no actions"):
        difficulty([-1.0, -2.0], [1, 1], offsets=[0, 0, 1, 2])


def test_paper_defect_11_half_precision_is_refused_and_values_stay_apart():
    p = np.linspace(0.4, 0.95, 20_000)
    logprobs = (100 * np.log(p)).astype(np.float32)
    values = difficulty(logprobs, np.full(20_000, 100), offsets=np.arange(20_001))
    assert values.dtype == np.float64
    assert len(np.unique(values)) > 19_900
    assert len(np.unique(values.astype(np.float16))) < 4_000
    with pytest.raises(InputError, match="float16"):
        difficulty([np.array([-1.0], np.float16)], [[1]])
    with pytest.raises(InputError, match="float16"):
        difficulty(np.array([-1.0], np.float16), [1], offsets=[0, 1])


def test_ifd_is_the_ratio_of_perplexities():
    logprobs, tokens = [[-2.0, -1.0], [-3.0]], [[2, 1], [3]]
    # Superfiltering's formula, written out.
    expected = [np.exp(3.0 / 3) / np.exp(0.5), np.exp(3.0 / 3) / np.exp(2.0)]
    np.testing.assert_allclose(difficulty(logprobs, tokens, "ifd", nll_alone=[0.5, 2.0]), expected)
    for options, message in (
        ({"kind": "ifd"}, "'ifd' needs nll_alone"),
        ({"kind": "nll", "nll_alone": [1.0, 1.0]}, "'nll' takes no nll_alone"),
        ({"kind": "ifd", "nll_alone": [1.0]}, "shape"),
        ({"kind": "ifd", "nll_alone": [1.0, np.nan]}, "row 1"),
    ):
        with pytest.raises(InputError, match=message):
            difficulty(logprobs, tokens, **options)
