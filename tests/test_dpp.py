import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p3select import kernel, machine
from p3select.errors import InputError
from p3select.selectors import dpp as algorithm
from p3select.selectors import dpp_torch
from p3select.selectors.dpp import TIE, VARIANCE_FLOOR, dpp, needed_bytes
from p3select.selectors.topk import topk


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def draw(seed, n, d):
    rng = np.random.default_rng(seed)
    return unit(rng.standard_normal((n, d))), rng.uniform(0.05, 1, n)


def clusters(seed, groups, each, d=64, spread=0.02):
    """Rows in groups of near-duplicates (cosine about 1 − spread²·d), shuffled, with their group."""
    rng = np.random.default_rng(seed)
    centres = unit(rng.standard_normal((groups, d)))
    group = rng.permutation(np.repeat(np.arange(groups), each))
    return unit(centres[group] + spread * rng.standard_normal((groups * each, d))), group


def full_kernel(x, q, h):
    """L by its definition, from the distances, in no way as the package computes it."""
    squared = ((x[:, None] - x[None]) ** 2).sum(-1)
    return np.outer(q, q) * np.exp(-squared / (2 * h))


def determinant(matrix, rows):
    return np.linalg.det(matrix[np.ix_(rows, rows)]) if rows else 1.0


def plain(x, q, k, h):
    """The greedy of Chen et al. (2018) in float64, each row brought up to date at each pick."""
    x = kernel.unit_rows(x)
    n = len(x)
    factor, variance, left = np.empty((k, n)), np.ones(n), np.ones(n, dtype=bool)
    rows, gains = np.empty(k, np.int64), np.zeros(k)
    for t in range(k):
        gain = np.where(left & (variance > VARIANCE_FLOOR), np.square(q) * variance, 0.0)
        if gain.max() == 0:
            rest = np.flatnonzero(left)
            rows[t:] = rest[np.argsort(-q[rest], kind="stable")[: k - t]]
            break
        row = rows[t] = np.argmax(gain >= gain.max() * (1.0 - TIE))
        gains[t], left[row] = gain[row], False
        factor[t] = kernel.similarities(x, x[row : row + 1], h)[:, 0] - factor[:t, row] @ factor[:t]
        factor[t] /= np.sqrt(variance[row])
        variance -= np.square(factor[t])
    return rows, gains


def kinds(rng, kind, n, d):
    """Embeddings and quality of one kind each: what makes a lazy greedy err."""
    x, q = rng.standard_normal((n, d)), rng.beta(5, 2, n)
    match kind:
        case "groups":
            x = rng.standard_normal((n // 10 + 1, d))[rng.integers(0, n // 10 + 1, n)] + 0.05 * x
        case "copies":
            x = rng.standard_normal((n // 4 + 1, d))[rng.integers(0, n // 4 + 1, n)]
        case "nearly copies":
            some = rng.uniform(size=(n, 1)) < 0.5
            x = rng.standard_normal((n // 4 + 1, d))[rng.integers(0, n // 4 + 1, n)] + 1e-4 * some * x
        case "equal quality":
            q = np.ones(n)
        case "few qualities":
            q = np.round(q, 1)
    return unit(x), q


KINDS = ["random", "groups", "copies", "nearly copies", "equal quality", "few qualities"]


small = {
    "seed": st.integers(0, 2**32 - 1),
    "n": st.integers(2, 12),
    "d": st.integers(2, 8),
    "h": st.sampled_from([0.1, 0.5, 1.0, 2.0]),
}


@given(**small)
@settings(deadline=None, max_examples=100)
def test_brute_force_each_pick_multiplies_the_determinant_most(seed, n, d, h):
    x, q = draw(seed, n, d)
    s = full_kernel(x, np.ones(n), h)
    rows, gains = dpp(x, q, n, scale=h)
    for t in range(n):
        before = rows[:t].tolist()
        if determinant(s, before) < 1e-9:  # a determinant below says nothing about ratios in float64
            break
        ratio = np.array([determinant(s, [*before, i]) if i not in before else 0.0 for i in range(n)])
        ratio *= q**2 / determinant(s, before)
        best = ratio.max()
        assert ratio[rows[t]] >= best - 1e-6
        assert gains[t] == pytest.approx(ratio[rows[t]], abs=1e-6)
        if np.partition(ratio, -2)[-2] < best - 1e-6:
            assert rows[t] == ratio.argmax()


@given(**small)
@settings(deadline=None, max_examples=100)
def test_brute_force_the_path_of_a_plain_greedy(seed, n, d, h):
    """Conditional variances by solving, not by updating: the same rows, in the same order."""
    x, q = draw(seed, n, d)
    s = full_kernel(x, np.ones(n), h)
    rows, gains = dpp(x, q, n, scale=h)
    for t in range(n):
        picked = rows[:t]
        inverse = np.linalg.pinv(s[np.ix_(picked, picked)], hermitian=True, rcond=1e-14)
        variance = 1 - np.einsum("pi,pr,ri->i", s[picked], inverse, s[picked])
        variance[picked] = -1
        if variance.max() < 1e-7:
            break
        gain = q**2 * variance
        assert gain[rows[t]] == pytest.approx(gain.max(), rel=1e-4, abs=1e-9)
        assert gains[t] == pytest.approx(gain[rows[t]], rel=1e-4, abs=1e-9)


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 60),
    d=st.integers(8, 30),
    h=st.sampled_from([0.1, 0.5, 1.0]),
    data=st.data(),
)
@settings(deadline=None, max_examples=60)
def test_sum_of_log_gains_is_log_det_and_gains_never_rise(seed, n, d, h, data):
    x, q = draw(seed, n, d)
    k = data.draw(st.integers(1, n))
    rows, gains = dpp(x, q, k, scale=h)
    assert len(set(rows.tolist())) == k
    assert np.all(gains > 0)
    assert np.all(gains[1:] <= gains[:-1] * (1 + 10 * TIE))
    sign, log_det = np.linalg.slogdet(full_kernel(x, q, h)[np.ix_(rows, rows)])
    assert sign == 1
    assert np.log(gains).sum() == pytest.approx(log_det, rel=1e-8, abs=1e-6)


@given(st.integers(0, 2**32 - 1), st.integers(5, 80), st.integers(3, 20))
@settings(deadline=None, max_examples=40)
def test_permutation_and_rotation_change_nothing(seed, n, d):
    x, q = draw(seed, n, d)
    rng = np.random.default_rng(seed)
    k = max(1, n // 3)
    rows, gains = dpp(x, q, k)
    order = rng.permutation(n)
    shuffled, gains_shuffled = dpp(x[order], q[order], k)
    np.testing.assert_array_equal(order[shuffled], rows)
    np.testing.assert_allclose(gains_shuffled, gains, rtol=1e-7)
    rotated, gains_rotated = dpp(x @ np.linalg.qr(rng.standard_normal((d, d)))[0], q, k)
    np.testing.assert_array_equal(rotated, rows)
    np.testing.assert_allclose(gains_rotated, gains, rtol=1e-7)


def test_quality_in_another_unit_scales_the_gains_alone():
    x, q = draw(1, 50, 6)
    rows, gains = dpp(x, q, 20)
    for unit_of_q in (1e-100, 3.0, 1e100):
        scaled, gains_scaled = dpp(x, q * unit_of_q, 20)
        np.testing.assert_array_equal(scaled, rows)
        np.testing.assert_allclose(gains_scaled, gains * unit_of_q**2, rtol=1e-12)


def test_default_scale_is_that_of_the_data():
    x, q = draw(2, 60, 6)
    for got, expected in zip(dpp(x, q, 20), dpp(x, q, 20, scale=kernel.scale(x), method="dpp"), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_a_larger_scale_spreads_more_and_takes_less_quality():
    x, q = draw(3, 400, 8)
    picks = [dpp(x, q, 40, scale=h)[0] for h in (0.02, 0.3, 2.0)]
    nearest = [np.sort(x[rows] @ x[rows].T, axis=1)[:, -2].mean() for rows in picks]
    assert nearest[0] > nearest[1] > nearest[2]
    assert q[picks[0]].mean() > q[picks[1]].mean() > q[picks[2]].mean()


def test_ties_go_to_the_lower_row():
    np.testing.assert_array_equal(dpp(np.eye(64), np.ones(64), 64)[0], np.arange(64))
    rng = np.random.default_rng(4)
    x = unit(rng.standard_normal((30, 384))).astype(np.float32)
    copies, q = np.tile(x, (5, 1)), np.tile(rng.uniform(0.2, 1, 30), 5)
    assert dpp(copies, q, 30)[0].max() < 30
    np.testing.assert_array_equal(dpp(copies, q, 30)[0], dpp(x, q[:30], 30, scale=kernel.scale(copies))[0])


def test_exact_copies_come_after_all_else_with_gain_0():
    x, q = draw(5, 20, 6)
    order = np.random.default_rng(5).permutation(60)
    content = np.tile(np.arange(20), 3)[order]
    rows, gains = dpp(x[content], q[content], 60)
    assert len(set(content[rows[:20]].tolist())) == 20
    assert np.all(gains[:20] > 0)
    assert np.all(gains[20:] == 0)
    assert int((gains == 0).sum()) == 40
    rest = np.setdiff1d(np.arange(60), rows[:20])
    np.testing.assert_array_equal(rows[20:], rest[np.argsort(-q[content][rest], kind="stable")])


def test_of_copies_the_one_of_highest_quality_is_picked():
    x, _ = draw(6, 10, 5)
    rows, gains = dpp(np.repeat(x, 2, axis=0), np.tile([0.5, 0.8], 10), 10)
    assert np.all(rows % 2 == 1)
    assert np.all(gains > 0)


def test_float32_noise_of_one_text_embedded_twice_is_a_copy():
    x, q = draw(7, 30, 384)
    noisy = x * (1 + 1e-7 * np.random.default_rng(70).standard_normal(x.shape))
    both = np.concatenate([x, noisy]).astype(np.float32)
    rows, gains = dpp(both, np.tile(q, 2), 60)
    assert len(set((rows[:30] % 30).tolist())) == 30
    assert int((gains == 0).sum()) == 30


def test_near_duplicates_are_told_apart_but_come_late():
    x, _ = draw(8, 20, 16)
    near = unit(x + 1e-3 * np.random.default_rng(80).standard_normal(x.shape))
    rows, gains = dpp(np.concatenate([x, near]), np.ones(40), 40)
    assert len(set((rows[:20] % 20).tolist())) == 20
    assert np.all(gains > VARIANCE_FLOOR)
    assert gains[20:].max() < 0.01 * gains[:20].min()


def test_all_rows_alike():
    rows, gains = dpp(np.tile([[0.6, 0.8]], (5, 1)), [0.5, 0.9, 0.1, 0.9, 0.7], 5)
    np.testing.assert_array_equal(rows, [1, 3, 4, 0, 2])
    np.testing.assert_allclose(gains, [0.81, 0, 0, 0, 0])


def test_q_0_comes_last_by_row_and_q_equal_is_diversity_alone():
    x, q = draw(9, 12, 4)
    q[[2, 5, 7]] = 0
    rows, gains = dpp(x, q, 12)
    np.testing.assert_array_equal(rows[9:], [2, 5, 7])
    np.testing.assert_array_equal(gains == 0, np.arange(12) >= 9)
    rows, gains = dpp(x, np.zeros(12), 4)
    np.testing.assert_array_equal(rows, np.arange(4))
    assert np.all(gains == 0)
    np.testing.assert_array_equal(dpp(x, np.full(12, 0.3), 8)[0], dpp(x, np.ones(12), 8)[0])


def test_one_row():
    rows, gains = dpp([[1.0, 0.0]], [0.5], 1)
    assert (rows.tolist(), gains.tolist()) == ([0], [0.25])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (np.zeros(6), "row 3 .* norm 0"),
        (np.full(6, np.nan), "row 3 .* not finite"),
        (np.array([np.inf, 0, 0, 0, 0, 0]), "row 3 .* not finite"),
        (np.full(6, 0.5), r"row 3 .* norm 1\.22"),
    ],
)
def test_bad_embeddings_are_refused_with_their_row(row, message):
    x, q = draw(10, 8, 6)
    x[3] = row
    with pytest.raises(InputError, match=message):
        dpp(x, q, 4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"method": "best"}, r"unknown method 'best': there are auto, dpp, dpp-local, dpp-torch$"),
        ({"scale": 0.0}, "scale 0.0"),
        ({"scale": -1.0}, "scale -1.0"),
        ({"scale": np.nan}, "scale nan"),
        ({"scale": np.inf}, "scale inf"),
        ({"embeddings": None}, "dpp needs embeddings"),
        ({"embeddings": np.ones(8)}, "2-D"),
        ({"embeddings": np.eye(8)[:7]}, r"\(7,\) rows of embeddings, but 8 of quality"),
    ],
)
def test_bad_options_are_refused(changed, message):
    arguments = {"embeddings": np.eye(8), "quality": np.ones(8), "k": 3} | changed
    with pytest.raises(InputError, match=message):
        dpp(**arguments)


def test_what_does_not_fit_in_memory_is_refused_before_it_is_tried():
    x = np.broadcast_to(np.float32([1, 0]), (2_000_000, 2))
    with pytest.raises(InputError, match=r"k = 1000000 from 2000000 rows needs 200\d\d\.\d GB, and .* available"):
        dpp(x, np.ones(2_000_000), 1_000_000, method="dpp")


def test_memory_that_the_system_does_not_give_is_an_error_of_one_line():
    with pytest.raises(
        InputError, match=r"^9007199\.3 GB more memory cannot be had: choose a smaller k or fewer rows$"
    ):
        algorithm.reserved(2**40, 2**10, np.float64)


def test_paper_defect_2_constant_features_are_seen():
    hidden = np.tile(np.random.default_rng(11).standard_normal(16), (50, 1))
    with np.errstate(invalid="ignore"):
        standardised = (hidden - hidden[0]) / (hidden - hidden[0]).std(axis=0)
    with pytest.raises(InputError, match=r"row 0 .* not finite"):
        dpp(standardised, np.ones(50), 10)
    rows, gains = dpp(unit(hidden), np.ones(50), 10)
    np.testing.assert_array_equal(rows, np.arange(10))
    assert int((gains == 0).sum()) == 9


def test_paper_defect_3_more_picks_than_dimensions_are_not_noise():
    x, q = draw(12, 400, 30)
    rows, gains = dpp(x, q, 200)
    assert len(set(rows.tolist())) == 200
    assert np.all(gains > 1e-4 * q[rows] ** 2)
    linear = np.linalg.slogdet((x @ x.T)[np.ix_(rows[:31], rows[:31])] + 0.0)
    assert linear.logabsdet < -30  # the paper's kernel is singular after 30
    log_det = np.linalg.slogdet(full_kernel(x, q, kernel.scale(x))[np.ix_(rows, rows)])
    assert np.log(gains).sum() == pytest.approx(log_det.logabsdet, rel=1e-9)


def refilled(x, q, k):
    """Plain greedy on q_i q_j cos_ij, begun anew on the remainder whenever the rank is used up."""
    left, picked = np.arange(len(x)), []
    while len(picked) < k:
        features = q[left, None] * x[left]
        gains, taken = np.square(features).sum(1), []
        while len(picked) + len(taken) < k and gains.max() > 1e-9:
            best = int(gains.argmax())
            direction = features[best] / np.linalg.norm(features[best])
            features = features - np.outer(features @ direction, direction)
            gains = np.square(features).sum(1)
            gains[[*taken, best]] = -1
            taken.append(best)
        picked += left[taken].tolist()
        left = np.delete(left, taken)
    return np.array(picked)


def test_paper_defect_4_a_budget_of_40_covers_40_clusters():
    for seed in range(5):
        x, group = clusters(seed, groups=40, each=10, d=16)
        q = np.random.default_rng(seed).uniform(0.5, 1, 400)
        rows, gains = dpp(x, q, 40)
        assert len(np.unique(group[rows])) == 40
        # The released scheme does not: a linear kernel, whose rank is 16, and a new start on what is left.
        assert len(np.unique(group[refilled(x, q, 40)])) < 40
        assert np.all(gains > 0)


def test_paper_defect_6_diversity_acts_and_the_weight_governs_it():
    x, _ = clusters(13, groups=60, each=10)
    difficulty = np.random.default_rng(13).beta(5, 2, 600)
    overlap = []
    for weight in (0.0, 1.0, 8.0, 64.0):
        q = kernel.quality(difficulty, "harder", weight)
        top = topk(None, kernel.quality(difficulty), 60)[0]
        overlap.append(len(np.intersect1d(dpp(x, q, 60)[0], top)) / 60)
    assert overlap == sorted(overlap)
    assert overlap[0] < 0.2
    assert overlap[1] < 0.75
    assert overlap[3] > 0.9


@pytest.mark.slow
def test_paper_defect_6_diversity_acts_on_real_embeddings(minilm, gsm8k):
    import polars as pl
    from sentence_transformers import SentenceTransformer

    prompts = pl.read_parquet(gsm8k)["prompt"].to_list()[:160]
    twins = [prompt.replace(".", " .", 1) for prompt in prompts[:40]]
    encoder = SentenceTransformer(str(minilm), device="cpu")
    x = encoder.encode([*prompts, *twins], normalize_embeddings=True)
    q = np.tile(np.random.default_rng(14).beta(5, 2, len(prompts)), 2)[: len(x)]
    rows, gains = dpp(x, q, 25)
    top = topk(None, q, 25)[0]
    assert len(np.intersect1d(rows, top)) / 25 < 0.91
    assert q[rows].mean() > np.quantile(q, 0.8)

    def closest(chosen):
        cosine = x[chosen] @ x[chosen].T
        return cosine[np.triu_indices(len(chosen), 1)].max()

    assert closest(top) > 0.95 > closest(rows)
    assert np.all(gains > 0)
    # One text, encoded in another batch, is a copy in spite of float32.
    again = np.concatenate([encoder.encode([text], normalize_embeddings=True) for text in prompts[:4]])
    gains = dpp(np.concatenate([x[:20], again]), np.ones(24), 24)[1]
    np.testing.assert_array_equal(gains == 0, np.arange(24) >= 20)


def assert_the_plain_greedy(x, q, k, h):
    rows, gains = dpp(x, q, k, scale=h)
    expected, expected_gains = plain(x, q, k, h)
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(gains, expected_gains, rtol=1e-6, atol=1e-12)


@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(KINDS),
    n=st.integers(2, 250),
    d=st.sampled_from([2, 4, 32]),
    h=st.sampled_from([0.05, 0.5, 1.0, 4.0]),
    share=st.floats(0, 1),
    slots=st.sampled_from([24, 10_000]),
    dtype=st.sampled_from([np.float32, np.float64]),
)
@settings(deadline=None, max_examples=80)
def test_picks_are_those_of_the_plain_greedy(seed, kind, n, d, h, share, slots, dtype):
    """With all three levels at work on few rows: few finalists at a time, and slots that have to be given up."""
    x, q = kinds(np.random.default_rng(seed), kind, n, d)
    k = 1 + int(share * (n - 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(algorithm, "UNFILTERED", 24)
        patch.setattr(algorithm, "FINALISTS", 8)
        patch.setattr(algorithm, "FINALIST_BYTES", 8 * (k + d) * slots)
        patch.setattr(algorithm, "REFRESHED", 16)
        patch.setattr(algorithm, "BLOCK", 8)
        assert_the_plain_greedy(x.astype(dtype), q, k, h)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("h", [0.2, 1.0])
def test_picks_of_3000_rows_are_those_of_the_plain_greedy(kind, h):
    x, q = kinds(np.random.default_rng(16), kind, 3_000, 48)
    assert_the_plain_greedy(x.astype(np.float32), q, 250, h)


def test_a_margin_of_float32_that_was_too_narrow_is_widened(monkeypatch):
    x, q = kinds(np.random.default_rng(17), "groups", 400, 16)
    monkeypatch.setattr(algorithm, "UNFILTERED", 24)
    greedy, margins = algorithm._greedy, []
    monkeypatch.setattr(algorithm, "_greedy", lambda *given: margins.append(given[-1]) or greedy(*given))
    monkeypatch.setattr(algorithm, "MARGIN", 1e-12)
    assert_the_plain_greedy(x.astype(np.float32), q, 200, 1.0)
    assert len(margins) > 1
    assert margins == sorted(margins)


@pytest.mark.slow
def test_picks_of_real_embeddings_are_those_of_the_plain_greedy(minilm, shared_data, monkeypatch):
    import polars as pl
    from sentence_transformers import SentenceTransformer

    prompts = pl.read_parquet(shared_data / "gsm8k_train.parquet").get_column("prompt").to_list()[:600]
    x = SentenceTransformer(str(minilm), device="cpu").encode(prompts, normalize_embeddings=True)
    q = np.random.default_rng(18).beta(5, 2, len(x))
    monkeypatch.setattr(algorithm, "UNFILTERED", 64)
    monkeypatch.setattr(algorithm, "FINALISTS", 16)
    for h in (kernel.scale(x), 0.2):
        assert_the_plain_greedy(x, q, 300, h)


MEASURED = """
import re, sys
from importlib import import_module
import numpy as np
name, n, d, k = sys.argv[1], *map(int, sys.argv[2:5])
options = eval(sys.argv[5])
module, function = name.split(":")
select = getattr(import_module("p3select.selectors." + module), function)
x = np.random.default_rng(19).standard_normal((n, d), dtype=np.float32)
for first in range(0, n, 1_000):
    x[first : first + 1_000] /= np.linalg.norm(x[first : first + 1_000], axis=1, keepdims=True)
q = np.ones(n)
select(x[:500], q[:500], min(k, d, 20), **options)
status = lambda name: 1024 * int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1])
open("/proc/self/clear_refs", "w").write("5")  # forget the peak so far
before = status("VmRSS")
select(x, q, k, **options)
print(status("VmHWM") - before)
"""


def peak(name, n, d, k, **options):
    """Bytes that a selector takes at most beside n rows of d numbers, as the system counts them."""
    command = [sys.executable, "-c", MEASURED, name, *map(str, (n, d, k)), repr(options)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks the system for the peak of resident memory")
@pytest.mark.parametrize(("n", "d", "k"), [(20_000, 64, 1_000), (500_000, 4, 5)])
def test_memory_is_within_what_is_stated(n, d, k):
    assert 4 * n * d < peak("dpp:dpp", n, d, k, scale=1.0) < needed_bytes(n, d, k)


def test_few_picks_of_many_rows_are_not_said_to_need_much():
    """The embeddings once more, the columns, and a quarter of a GiB for finalists."""
    for k in (10, 100):
        assert needed_bytes(1_000_000, 384, k) < 4e6 * (384 + k) + 0.45e9


def test_more_cores_take_what_their_products_have_and_no_more(monkeypatch):
    """In float64 finalists alone, 128 at a time, are computed, whatever the cores."""
    n, d, k, need = 200_000, 384, 1_000, []
    for cores in (2, 64):
        monkeypatch.setattr(machine, "threads", lambda cores=cores: cores)
        need.append(needed_bytes(n, d, k))
        coarse, fine = (algorithm._rooms(rows, k, np.float32) for rows in (n, algorithm.FINALISTS))
        assert (len(coarse), len(fine)) == (cores, min(cores, 4))
        assert {len(room.known) for room in fine} == {algorithm.LEAST_REFRESHED}
    wide = k + 2 * d + 2 * algorithm.BLOCK
    assert need[1] - need[0] == (4 * 62 * algorithm.REFRESHED + 8 * 2 * algorithm.LEAST_REFRESHED) * wide


@given(most=st.integers(1, 6_000), data=st.data())
def test_there_are_products_enough_for_every_count_of_rows(most, data):
    rows = data.draw(st.integers(1, most))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "threads", lambda: 10_000)
        assert algorithm._product_rows(rows) <= algorithm._product_rows(most)
        assert algorithm._products(rows) <= algorithm._products(most)


def test_linear_needs_the_memory_of_its_rank_and_auto_takes_the_exact(monkeypatch):
    x, q = draw(21, 3_000, 6)
    fits = {"auto": needed_bytes, "dpp": needed_bytes, "dpp-torch": dpp_torch.needed_bytes}
    monkeypatch.setattr(machine, "memory", lambda: needed_bytes(3_000, 6, 6))
    assert algorithm.choose(3_000, 6, 2_000)[0] == "dpp-local"
    assert algorithm.choose(3_000, 6, 2_000, "linear")[0] == "dpp"
    assert algorithm.choose(3_000, 6, 6, "linear")[1].startswith("exact takes at most")
    for method, need in fits.items():
        monkeypatch.setattr(machine, "memory", lambda need=need: need(3_000, 6, 6))
        rows, gains = dpp(x, q, 2_000, similarity="linear", method=method)
        assert len(np.unique(rows)) == 2_000
        np.testing.assert_array_equal(gains > 0, np.arange(2_000) < 6)
        rest = np.setdiff1d(np.arange(3_000), rows[:6])
        np.testing.assert_array_equal(rows[6:], rest[np.argsort(-q[rest], kind="stable")][:1_994])
    kept = dpp(x, q, 20, similarity="linear", keep=[*range(9)], method="dpp-torch")[0]
    assert kept.tolist() == dpp(x, q, 20, similarity="linear", keep=[*range(9)], method="dpp")[0].tolist()
    assert set(kept[:9].tolist()) == set(range(9))
    monkeypatch.setattr(machine, "memory", lambda: 2**16)
    with pytest.raises(
        InputError, match=r"k = 2000 from 3000 rows .*: choose similarity gaussian, a smaller k or fewer"
    ):
        dpp(x, q, 2_000, similarity="linear")
    with pytest.raises(InputError, match=r"dpp of k = 5 from 3000 rows .*: choose selector dpp-local"):
        dpp(x, q, 5, similarity="linear", method="dpp")


@pytest.mark.parametrize("method", ["auto", "dpp"])
def test_options_of_dpp_local_are_for_dpp_local(method):
    x, q = draw(20, 60, 12)
    options = {"cells": 3, "probes": 2, "neighbours": 4}
    for name, value in options.items():
        with pytest.raises(
            InputError, match=f"{name} {value}: is for dpp-local, asked for by name; not for '{method}'"
        ):
            dpp(x, q, 20, method=method, **{name: value})
    from p3select.selectors.dpp_local import dpp_local

    given = dpp(x, q, 20, method="dpp-local", **options)
    np.testing.assert_array_equal(given[0], dpp_local(x, q, 20, **options)[0])
    np.testing.assert_array_equal(given[1], dpp_local(x, q, 20, **options)[1])
    assert (given[1] != dpp(x, q, 20, method="dpp-local")[1]).any()


def test_paper_defect_13_n_by_n_is_never_formed():
    x, q = draw(15, 20_000, 8)
    tracemalloc.start()
    dpp(x, q, 10, scale=0.5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 20_000 * 40  # bytes; n × n would be 8 · 20,000²
