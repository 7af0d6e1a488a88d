"""The benchmark of trainings: which rows are trained on, and what counts as a right answer."""

import numpy as np
import pytest

from benchmarks.training.evaluate import answer
from benchmarks.training.train import part


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("so 2 + 2 = 4.\n#### 4", "4"),
        ("#### 1,250.00\nQ: and now?\n#### 3", "1250"),
        ("#### $18.0", "18"),
        ("#### -7 dollars", "-7"),
        ("#### none", None),
        ("the answer is 4", None),
        (r"thus $\boxed{1000}$.", "1000"),
        (r"$\boxed{1}$, no, $\boxed{\dfrac{1}{2^{10}}}$", r"\frac{1}{2^{10}}"),
        (r"$\boxed{\left\{1, 2\right\}}$", r"\{1,2\}"),
        (r"$\boxed{1,2}$", "1,2"),
        (r"$\boxed{34,\!650}$", "34650"),
        (r"$\boxed{\frac14}$ or $\boxed{100\%", r"\frac{1}{4}"),
        (r"$\boxed{100\%}$", "100"),
        (r"$\boxed{\frac{1}{2}", None),
        ("#### 5, so it is 5", "5"),
        ("#### 1,000, and", "1000"),
        ("#### 1,000.", "1000"),
        ("#### -.5", "-0.5"),
        ("#### 3,4", None),
        ("#### 1,2345", None),
        ("#### 1,000,00", None),
        (r"$\boxed{1{,}000}$", "1000"),
        (r"$\boxed{1{,}008{,}016.50}$", "1008016.5"),
        (r"$\boxed{1{,}2}$", "1,2"),
        (r"$\boxed{.5}$ or $\boxed{\$.50}$", "0.5"),
        (r"$\boxed{-.25}$", "-0.25"),
    ],
)
def test_the_final_answer_is_found(text, found):
    assert answer(text) == found


def test_full_is_trained_on_each_row_once():
    rows = [{"id": f"row-{number}"} for number in range(200)]
    # As uniform orders them: anew in each epoch.
    orders = [np.random.default_rng([3, epoch]).permutation(200) for epoch in range(1, 5)]
    parts = [part([rows[row] for row in order], 50, epoch, 3) for epoch, order in enumerate(orders, 1)]
    assert [len(one) for one in parts] == [50] * 4
    assert {row["id"] for one in parts for row in one} == {row["id"] for row in rows}
    assert [row["id"] for row in parts[0]] != [row["id"] for row in part(rows, 50, 1, 4)]


def test_what_others_select_is_trained_on_whole():
    rows = [{"id": f"row-{number}"} for number in range(50)]
    first, second = (part(rows, 50, epoch, 0) for epoch in (1, 2))
    assert {row["id"] for row in first} == {row["id"] for row in second} == {row["id"] for row in rows}
    assert first != second
