"""The greedy on a device: always on the CPU's tensors, and on CUDA's where there are any."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from p3select import kernel, limits
from p3select.errors import InputError
from p3select.selectors import dpp as reference
from p3select.selectors import dpp_torch as algorithm
from p3select.selectors.dpp import dpp
from p3select.selectors.dpp_torch import dpp_torch, needed_bytes
from tests.test_dpp import KINDS, clusters, draw, kinds

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=CUDA)]


def assert_the_same(x, q, k, device="cpu", **options):
    """As ``dpp``, which is tested against a plain greedy."""
    rows, gains = dpp_torch(x, q, k, device=device, **options)
    expected, expected_gains = dpp(x, q, k, method="dpp", **options)
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(gains, expected_gains, rtol=1e-6, atol=1e-12)
    return rows, gains


@pytest.fixture
def few(monkeypatch):
    """Many rounds, parts and blocks on few rows."""
    shrink(monkeypatch)
    return monkeypatch


def shrink(patch):
    patch.setattr(algorithm, "FINALISTS", 8)
    patch.setattr(algorithm, "REFRESHED", 16)
    patch.setattr(algorithm, "BLOCK", 8)


@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(KINDS),
    n=st.integers(2, 250),
    d=st.sampled_from([2, 4, 32]),
    h=st.sampled_from([0.05, 0.5, 1.0, 4.0]),
    share=st.floats(0, 1),
    dtype=st.sampled_from([np.float32, np.float64]),
)
@settings(deadline=None, max_examples=60)
def test_picks_are_those_of_dpp(seed, kind, n, d, h, share, dtype):
    x, q = kinds(np.random.default_rng(seed), kind, n, d)
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        assert_the_same(x.astype(dtype), q, 1 + int(share * (n - 1)), scale=h)


@given(
    seed=st.integers(0, 2**32 - 1),
    similarity=st.sampled_from(kernel.SIMILARITIES),
    kept=st.integers(0, 3),
    cap=st.integers(1, 4),
    total=st.integers(200, 900),
    which=st.sampled_from(["none", "groups", "tokens", "both"]),
)
@settings(deadline=None, max_examples=40)
def test_under_limits_and_with_rows_to_keep_they_are_too(seed, similarity, kept, cap, total, which):
    rng = np.random.default_rng(seed)
    x, q = kinds(rng, "groups", 120, 16)
    group, cost = rng.integers(0, 9, 120), rng.integers(5, 40, 120)
    some = [limits.at_most(cap, group)] * (which in ("groups", "both"))
    some += [limits.budget(cost, total)] * (which in ("tokens", "both"))
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        assert_the_same(
            *(x.astype(np.float32), q, 30),
            scale=None if similarity == "linear" else 0.5,
            similarity=similarity,
            keep=np.unique(group, return_index=True)[1][:kept] if kept else None,
            limits=limits.together(*some) if some else None,
        )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_picks_of_3000_rows_are_those_of_dpp(kind, device):
    x, q = kinds(np.random.default_rng(1), kind, 3_000, 48)
    assert_the_same(x.astype(np.float32), q, 250, device)


@pytest.mark.parametrize("device", DEVICES)
def test_few_rows_are_brought_up_to_date(device, monkeypatch):
    x, _ = clusters(2, groups=600, each=5, d=64)
    q = np.random.default_rng(2).beta(5, 2, len(x))
    similarities, computed = algorithm._similarities, []

    def counted(one, other, similarity):
        computed.append(len(one) * len(other) * (one.dtype == torch.float32))
        return similarities(one, other, similarity)

    monkeypatch.setattr(algorithm, "FINALISTS", 64)
    monkeypatch.setattr(algorithm, "REFRESHED", 256)
    monkeypatch.setattr(algorithm, "_similarities", counted)
    assert_the_same(x.astype(np.float32), q, 200, device, scale=0.2)
    assert 0 < sum(computed) < len(x) * 200 / 5


def test_ties_go_to_the_lower_row(few):
    np.testing.assert_array_equal(dpp_torch(np.eye(64), np.ones(64), 64, device="cpu")[0], np.arange(64))
    # Row 0 ties with the finalists, which are those of the highest bounds, and is not one of them.
    q = np.ones(40)
    q[0] -= 1e-12
    assert assert_the_same(np.eye(40), q, 30, scale=1e-3)[0][0] == 0


def test_copies_and_rows_of_quality_0_come_last_with_gain_0(few):
    x, q = draw(3, 20, 6)
    q[7] = 0.0
    order = np.random.default_rng(3).permutation(60)
    rows, gains = assert_the_same(np.tile(x, (3, 1))[order], np.tile(q, 3)[order], 60)
    assert len(set((order % 20)[rows[:19]].tolist())) == 19
    np.testing.assert_array_equal(gains > 0, np.arange(60) < 19)


def test_a_margin_of_float32_that_was_too_narrow_is_widened(few):
    x, q = kinds(np.random.default_rng(17), "groups", 400, 16)
    greedy, margins = algorithm._greedy, []
    few.setattr(algorithm, "_greedy", lambda *given: margins.append(given[-1]) or greedy(*given))
    few.setattr(reference, "MARGIN", 1e-12)
    assert_the_same(x.astype(np.float32), q, 200, scale=1.0)
    assert len(margins) > 1
    assert margins == sorted(margins)


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_picks_of_real_embeddings_are_those_of_dpp(minilm, gsm8k, device, monkeypatch):
    import polars as pl
    from sentence_transformers import SentenceTransformer

    prompts = pl.read_parquet(gsm8k)["prompt"].to_list()
    x = SentenceTransformer(str(minilm), device="cpu").encode(prompts, normalize_embeddings=True)
    monkeypatch.setattr(algorithm, "FINALISTS", 16)
    for h in (None, 0.2):
        assert_the_same(x, np.random.default_rng(18).beta(5, 2, len(x)), 100, device, scale=h)


@pytest.mark.parametrize("similarity", kernel.SIMILARITIES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_similarities_are_those_of_the_kernel(similarity, dtype):
    x = kernel.unit_rows(draw(4, 50, 8)[0], dtype)
    kind = reference.Similarity(kernel.SIMILARITIES.index(similarity), 0.3)
    found = algorithm._similarities(torch.from_numpy(x[:20]), torch.from_numpy(x), kind)
    assert found.numpy().dtype == dtype
    np.testing.assert_allclose(
        found.numpy(), reference.block(x[:20], x, kind), rtol=20 * np.finfo(dtype).eps, atol=1e-7
    )


def test_float32_is_whole_inside_and_as_it_was_outside():
    products = torch.backends.cuda.matmul
    before = products.allow_tf32
    try:
        products.allow_tf32 = True
        with algorithm._whole_float32():
            assert products.fp32_precision == "ieee" if hasattr(products, "fp32_precision") else not products.allow_tf32
        assert products.allow_tf32
        with pytest.raises(InputError):
            dpp_torch(np.eye(8), np.ones(8), 3, keep=[8], device="cpu")
        assert products.allow_tf32
    finally:
        products.allow_tf32 = before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"device": "abacus"}, "device 'abacus': give cpu, cuda"),
        ({"device": 1.5}, "device 1.5: give cpu, cuda"),
        ({"device": "meta"}, "device 'meta': dpp-torch runs on cpu and cuda"),
        ({"device": "cuda:99"}, r"device 'cuda:99': torch finds \d+ CUDA devices; choose selector dpp"),
        ({"embeddings": None}, "dpp-torch needs embeddings"),
        ({"embeddings": np.ones(8)}, "2-D"),
        ({"embeddings": 2 * np.eye(8)}, "row 0 .* norm 2"),
        ({"scale": 0.0}, "scale 0.0"),
        ({"similarity": "cosine"}, "there are gaussian, cauchy, linear"),
        ({"keep": [8]}, "keep: row 8 is not there"),
    ],
)
def test_what_cannot_be_used_is_refused(changed, message):
    arguments = {"embeddings": np.eye(8), "quality": np.ones(8), "k": 3} | changed
    with pytest.raises(InputError, match=message):
        dpp_torch(**arguments)


@pytest.mark.parametrize("device", DEVICES)
def test_what_does_not_fit_in_memory_is_refused_before_it_is_tried(device):
    x = np.broadcast_to(np.float32([1, 0]), (2_000_000, 2))
    with pytest.raises(InputError, match=r"k = 1000000 from 2000000 rows needs \d+\.\d GB.* choose selector dpp-local"):
        dpp_torch(x, np.ones(2_000_000), 1_000_000, device=device)


@CUDA
def test_memory_of_the_device_is_within_what_is_stated():
    x, q = kinds(np.random.default_rng(19), "random", 20_000, 64)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    dpp_torch(x.astype(np.float32), q, 1_000, scale=1.0, device="cuda")
    taken = torch.cuda.max_memory_allocated() - before
    assert 4 * 20_000 * 1_064 < taken < needed_bytes(20_000, 64, 1_000)
