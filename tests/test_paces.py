import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p3select.errors import InputError
from p3select.paces import eligible, pace


def table(schedule, epochs):
    return [pace(epoch, epochs, schedule) for epoch in range(1, epochs + 1)]


@pytest.mark.parametrize(
    ("schedule", "epochs", "expected"),
    [
        ("linear:50:95", 5, [50, 61.25, 72.5, 83.75, 95]),
        ("linear:50:95", 2, [50, 95]),
        ("linear:50:95", 1, [95]),
        ("linear:90:30", 3, [90, 60, 30]),
        ("cosine:50:90", 3, [50, 70, 90]),
        ("cosine:50:90", 4, [50, 60, 80, 90]),
        ("cosine:50:90", 1, [90]),
        ("constant:80", 3, [80, 80, 80]),
        ("constant:80", 1, [80]),
        ("step:40:70:100", 3, [40, 70, 100]),
        ("step:40:70:100", 6, [40, 40, 70, 70, 100, 100]),
        ("step:40:100", 3, [40, 40, 100]),
        ("step:40", 1, [40]),
        ("paper-code", 5, [45, 55, 65, 75, 85]),
        ("paper-code", 2, [45, 70]),
        ("paper-code", 1, [45]),
    ],
)
def test_schedules_at_both_ends_and_between(schedule, epochs, expected):
    np.testing.assert_allclose(table(schedule, epochs), expected, rtol=1e-12)


def test_the_default_is_the_paper():
    assert pace(1, 4) == 50
    assert pace(4, 4) == 95


def test_the_ends_are_exact():
    for epochs in range(2, 40):
        for name in ("linear", "cosine"):
            values = table(f"{name}:33.3:77.7", epochs)
            assert values[0] == 33.3
            assert values[-1] == 77.7
            assert np.all(np.diff(values) > 0)


@given(st.lists(st.integers(0, 100), min_size=1, max_size=6), st.integers(0, 20))
@settings(deadline=None)
def test_step_has_every_stage_for_about_as_long(stages, more):
    epochs = len(stages) + more
    values = table("step:" + ":".join(map(str, range(len(stages)))), epochs)
    assert values == sorted(values)
    lengths = np.bincount(np.array(values, int), minlength=len(stages))
    assert lengths.min() >= 1
    assert lengths.max() - lengths.min() <= 1


def test_rounding_never_leaves_the_ends():
    for name in ("linear", "cosine"):
        for start in (0.1, 50, 99.9, 100):
            for epochs in range(1, 60):
                values = table(f"{name}:{start}:100", epochs)
                assert values[-1] == 100
                assert all(start <= value <= 100 for value in values)


@pytest.mark.parametrize(
    "schedule",
    [
        "linear",
        "linear:50",
        "linear:50:95:99",
        "linear:50:101",
        "linear:-1:50",
        "linear:a:95",
        "linear:nan:95",
        "linear::95",
        "cosine:5",
        "constant",
        "constant:1:2",
        "step",
        "paper-code:45",
        "exp:1:2",
        "",
    ],
)
def test_a_malformed_schedule_is_named(schedule):
    with pytest.raises(InputError, match=f"{schedule!r}"):
        pace(1, 5, schedule)


def test_step_with_more_stages_than_epochs_is_refused():
    with pytest.raises(InputError, match=r"'step:1:2:3' has 3 stages.*got 2"):
        pace(1, 2, "step:1:2:3")


@pytest.mark.parametrize(("epoch", "epochs"), [(0, 5), (6, 5), (-1, 5), (1, 0)])
def test_epochs_count_from_1(epoch, epochs):
    with pytest.raises(InputError, match=f"epoch {epoch} of {epochs}: epochs count from 1"):
        pace(epoch, epochs)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), st.floats(0, 100))
@settings(deadline=None)
def test_eligible_is_the_percentile(values, percentile):
    lam, mask = eligible(values, percentile)
    assert lam == np.percentile(values, percentile)
    np.testing.assert_array_equal(mask, np.array(values) <= lam)
    assert mask.any()
    assert mask.sum() >= math.floor(percentile / 100 * (len(values) - 1))


def test_eligible_at_both_ends_and_with_ties():
    values = np.array([0.3, 0.1, 0.9, 0.1, 0.5])
    assert eligible(values, 100)[1].all()
    np.testing.assert_array_equal(eligible(values, 0)[1], [False, True, False, True, False])
    lam, mask = eligible(values, 50)
    assert lam == 0.3
    assert mask.sum() == 3
    assert eligible(np.full(7, 0.25), 10)[1].all()
    assert eligible([0.4], 10)[1].all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_eligible_refuses_what_is_not_finite(bad):
    with pytest.raises(InputError, match="row 1 has difficulty"):
        eligible([0.1, bad], 50)


def test_eligible_refuses_no_rows_and_no_percentile():
    with pytest.raises(InputError, match=r"shape \(0,\)"):
        eligible([], 50)
    with pytest.raises(InputError, match="101 is not a percentile"):
        eligible([0.1], 101)
    with pytest.raises(InputError, match="nan is not a percentile"):
        eligible([0.1], math.nan)
