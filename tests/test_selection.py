import dataclasses

import numpy as np
import polars as pl
import pytest

import p3select
from p3select import constraints, index, kernel, scores, selection
from p3select.errors import InputError, MismatchError
from tests.fakes import FakeEncoder, FakeScorer


@pytest.fixture(scope="module")
def tokenizer(smollm2):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2)


@pytest.fixture
def run(tmp_path, gsm8k, tokenizer):
    run = p3select.Run(tmp_path / "run")
    p3select.score(gsm8k, run, scorer=FakeScorer(tokenizer))
    p3select.embed(gsm8k, run, FakeEncoder())
    return run


def test_the_index_follows_the_contract(run, gsm8k):
    chosen = p3select.select(run, epoch=1, epochs=5, budget=50)
    table = pl.read_parquet(run.path / "index" / "epoch-001.parquet")
    assert dict(table.schema) == {
        "row": pl.Int64,
        "id": pl.String,
        "rank": pl.Int32,
        "difficulty": pl.Float64,
        "quality": pl.Float64,
        "gain": pl.Float64,
    }
    assert table["row"].to_list() == chosen.rows.tolist()
    assert table["rank"].to_list() == list(range(50))
    assert table["id"].to_list() == pl.read_parquet(gsm8k)["id"][chosen.rows.tolist()].to_list()
    metadata = index.read(run.index(1)).metadata
    for key in [
        "epoch",
        "epochs",
        "budget",
        "eligible",
        "lam",
        "pace",
        "selector",
        "quality",
        "seed",
        "shortfall",
        "dataset_fingerprint",
        "scores_fingerprint",
        "embeddings_fingerprint",
        "version",
    ]:
        assert key in metadata
    assert metadata["shortfall"] == 0
    assert metadata["eligible"] == 100


def test_it_is_the_dpp_of_the_eligible(run):
    p3select.select(run, epoch=1, epochs=5, budget=40, quality_weight=2.0, scale=0.7)
    difficulty = scores.read(run, 1).column("difficulty").to_numpy()
    lam = np.percentile(difficulty, 50)
    pool = np.flatnonzero(difficulty <= lam)
    vectors = np.load(run.embeddings)[pool]
    rows, gains = p3select.dpp(vectors, kernel.quality(difficulty[pool], "harder", 2.0), 40, scale=0.7)
    stored = index.read(run.index(1))
    assert stored.metadata["lam"] == lam
    assert stored.rows.tolist() == pool[rows].tolist()
    assert stored.gains.tolist() == gains.tolist()
    assert (stored.difficulty <= lam).all()


@pytest.mark.parametrize("selector", ["dpp", "topk", "uniform"])
def test_paper_defect_12_the_metadata_is_enough_to_make_the_same_bytes(run, selector):
    p3select.select(run, epoch=1, epochs=3, budget="15%", selector=selector, seed=7, pace="constant:60")
    before = run.index(1).read_bytes()
    metadata = index.read(run.index(1)).metadata
    run.index(1).unlink()
    names = [
        "epoch",
        "epochs",
        "budget",
        "pace",
        "difficulty",
        "quality",
        "quality_weight",
        "selector",
        "scale",
        "seed",
    ]
    p3select.select(run, **{name: metadata[name] for name in names})
    assert run.index(1).read_bytes() == before
    p3select.select(run, **{name: metadata[name] for name in names})  # once more finds it there


def test_uniform_draws_anew_each_epoch(run, gsm8k, tokenizer):
    p3select.score(gsm8k, run, scorer=FakeScorer(tokenizer), epoch=2)
    first, second = (
        p3select.select(run, epoch=epoch, epochs=2, budget=50, pace="constant:100", selector="uniform")
        for epoch in (1, 2)
    )
    assert set(first.rows) != set(second.rows)
    assert second.summary["overlap_before"] == len(set(first.rows) & set(second.rows)) / 50


def test_topk_takes_the_hardest_of_the_eligible(run):
    chosen = p3select.select(run, epoch=1, epochs=5, budget=30, selector="topk")
    difficulty = scores.read(run, 1).column("difficulty").to_numpy()
    eligible = np.sort(difficulty[difficulty <= np.percentile(difficulty, 50)])
    assert np.sort(chosen.difficulty).tolist() == eligible[-30:].tolist()
    assert chosen.summary["overlap_top"] == 1.0
    assert chosen.summary["diversity"]["selected"] == chosen.summary["diversity"]["top"]


def test_paper_defect_5_fewer_eligible_than_the_budget_selects_all_and_says_so(run):
    chosen = p3select.select(run, epoch=1, epochs=5, budget=150)
    assert len(chosen) == 100
    assert chosen.metadata["shortfall"] == 50
    assert chosen.metadata["budget"] == 150
    assert len(set(chosen.rows)) == 100


def test_quality_directions(run):
    means = {}
    for quality in ("harder", "none", "easier"):
        chosen = p3select.select(run, epoch=1, epochs=5, budget=40, quality=quality, overwrite=True)
        means[quality] = chosen.summary["difficulty_selected"]
    assert means["easier"] < means["none"] < means["harder"]


def test_nll_changes_the_pool(run):
    p3 = p3select.select(run, epoch=1, epochs=5, budget=40)
    nll = p3select.select(run, epoch=1, epochs=5, budget=40, difficulty="nll", overwrite=True)
    table = scores.read(run, 1)
    expected = -table.column("logprob").to_numpy() / table.column("tokens").to_numpy()
    np.testing.assert_allclose(nll.difficulty, expected[nll.rows], rtol=1e-6)
    assert nll.metadata["lam"] != p3.metadata["lam"]


def test_an_index_made_otherwise_is_not_replaced_unasked(run):
    p3select.select(run, epoch=1, epochs=5, budget=40)
    before = run.index(1).read_bytes()
    with pytest.raises(MismatchError, match=r"differs in budget\)"):
        p3select.select(run, epoch=1, epochs=5, budget=41)
    assert run.index(1).read_bytes() == before
    p3select.select(run, epoch=1, epochs=5, budget=41, overwrite=True)
    assert run.index(1).read_bytes() != before


def test_bad_input_is_refused(run, tmp_path):
    for options, message in (
        ({"budget": 0}, "budget 0"),
        ({"budget": "120%"}, "budget '120%'"),
        ({"budget": "0tok"}, "comes to 0 tokens"),
        ({"budget": "1tok"}, "the shortest eligible row has"),
        ({"budget": "many"}, "budget 'many'"),
        ({"budget": "0.1%"}, "comes to 0 of 200"),
        ({"epoch": 6}, "epoch 6 of 5"),
        ({"epoch": 2}, "not scored yet"),
        ({"pace": "linear:50"}, "linear:50"),
        ({"quality": "best"}, "best"),
        ({"difficulty": "ifd"}, "ifd"),
        ({"selector": "magic"}, "no selector 'magic'"),
        ({"selector": "topk", "scale": 0.5}, "takes none"),
        ({"scale": -1.0}, "scale -1"),
    ):
        with pytest.raises(InputError, match=message):
            p3select.select(run, **{"epoch": 1, "epochs": 5, "budget": 40, **options})
    with pytest.raises(InputError, match="no run folder"):
        p3select.select(tmp_path / "nowhere", epoch=1, epochs=5, budget=40)
    assert not run.index(1).exists()


def test_without_embeddings_the_dpp_says_what_to_do_and_topk_works(tmp_path, gsm8k, tokenizer):
    run = p3select.Run(tmp_path / "run")
    p3select.score(gsm8k, run, scorer=FakeScorer(tokenizer))
    with pytest.raises(InputError, match="no embeddings; run 'p3select embed"):
        p3select.select(run, epoch=1, epochs=5, budget=40)
    chosen = p3select.select(run, epoch=1, epochs=5, budget=40, selector="topk")
    assert chosen.summary["diversity"] is None
    assert chosen.metadata["embeddings_fingerprint"] is None


def test_rows_without_a_score_are_never_eligible(tmp_path, tokenizer, gsm8k):
    data = tmp_path / "rows.parquet"
    frame = pl.read_parquet(gsm8k)[:60].with_columns(
        completion=pl.when(pl.int_range(60) % 3 == 0).then(pl.lit("")).otherwise(pl.col("completion"))
    )
    frame.write_parquet(data)
    run = p3select.Run(tmp_path / "run")
    p3select.score(data, run, scorer=FakeScorer(tokenizer))
    p3select.embed(data, run, FakeEncoder())
    chosen = p3select.select(run, epoch=1, epochs=1, budget=60, pace="constant:100")
    assert (chosen.rows % 3 != 0).all()
    assert len(chosen) == 40
    assert chosen.summary["unscored"] == {"empty": 20}
    assert chosen.metadata["shortfall"] == 20


def test_embeddings_are_unit_rows_and_made_once(tmp_path, gsm8k):
    run = p3select.Run(tmp_path / "run")
    first = p3select.embed(gsm8k, run, FakeEncoder())
    vectors = np.load(run.embeddings, mmap_mode="r")
    assert vectors.dtype == np.float32
    assert vectors.shape == (200, 24)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert not first["reused"]
    assert p3select.embed(gsm8k, run, FakeEncoder())["reused"]
    with pytest.raises(MismatchError, match="differs in encoder"):
        p3select.embed(gsm8k, run, FakeEncoder("other"))
    for broken in (0.0, np.nan):
        with pytest.raises(InputError, match="row 5: its embedding is zero or not finite"):
            p3select.embed(gsm8k, run, FakeEncoder("broken", broken=broken), overwrite=True)
    np.testing.assert_array_equal(np.load(run.embeddings), vectors)  # the finished ones stay


def test_a_selection_is_frozen(run):
    chosen = p3select.select(run, epoch=1, epochs=5, budget=10)
    with pytest.raises(dataclasses.FrozenInstanceError):
        chosen.rows = None


def test_ifd_needs_the_second_pass(tmp_path, gsm8k, tokenizer):
    run = p3select.Run(tmp_path / "run")
    p3select.score(gsm8k, run, scorer=FakeScorer(tokenizer), limit=60)
    options = {"epoch": 1, "epochs": 1, "budget": 20, "selector": "topk", "difficulty": "ifd", "overwrite": True}
    with pytest.raises(InputError, match="scored without --ifd"):
        p3select.select(run, **options)
    p3select.score(gsm8k, run, scorer=FakeScorer(tokenizer), limit=60, ifd=True, overwrite=True)
    chosen = p3select.select(run, **options)
    table = scores.read(run, 1).to_pylist()
    for row, value in zip(chosen.rows, chosen.difficulty, strict=True):
        known = table[row]
        with_prompt = -known["logprob"] / known["tokens"]
        assert value == pytest.approx(np.exp(with_prompt + known["alone_logprob"] / known["alone_tokens"]), rel=1e-5)


def twice(embeddings, quality, k):
    return np.zeros(k, np.int64), np.ones(k)


def negative(embeddings, quality, k):
    return -1 - np.arange(k), np.ones(k)


def few(embeddings, quality, k):
    return np.arange(k - 1), np.ones(k - 1)


def floats(embeddings, quality, k):
    return np.arange(k) + 0.5, np.ones(k)


def beyond(embeddings, quality, k):
    return np.arange(k) + len(quality), np.ones(k)


@pytest.mark.parametrize("selector", [twice, negative, few, floats, beyond, "tests.test_selection:twice"])
def test_what_a_selector_gives_is_checked(run, selector):
    with pytest.raises(InputError, match="4 distinct row numbers from 0 to 99"):
        p3select.select(run, epoch=1, epochs=5, budget=4, selector=selector)
    assert not run.index(1).exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"selector": "math:sqrt"}, "'math:sqrt': no function of"),
        ({"selector": lambda embeddings, quality, k: 1}, "gave int, not two arrays"),
        ({"selector": "uniform", "quality": "easier"}, "'uniform' goes by no quality"),
        ({"selector": "uniform", "quality_weight": 3.0}, "'uniform' goes by no quality"),
        ({"selector": "topk", "quality": "none"}, "'topk' with quality 'none'"),
        ({"selector": "uniform", "fresh": 0.5}, "'uniform' goes by no quality"),
        ({"fresh": 1.5}, "fresh 1.5: from 0 to 1"),
        ({"seed": -1}, "seed -1"),
        ({"seed": 1.5}, "seed 1.5"),
        ({"budget": "inf%"}, "budget 'inf%'"),
        ({"budget": "1/0%"}, "budget '1/0%'"),
        ({"budget": "nan%"}, "budget 'nan%'"),
        ({"quality_weight": 5000.0}, "quality weight 5000 is too large"),
    ],
)
def test_options_without_sense_or_effect_are_refused(run, options, message):
    with pytest.raises(InputError, match=message):
        p3select.select(run, **{"epoch": 1, "epochs": 5, "budget": 4, **options})


def test_embeddings_that_were_changed_are_noticed(run):
    vectors = np.load(run.embeddings)
    for damaged in (vectors[::-1], vectors[:100]):
        np.save(run.embeddings, damaged)
        with pytest.raises(InputError, match="not what 'p3select embed' wrote"):
            p3select.select(run, epoch=1, epochs=5, budget=4)
    run.embeddings.write_bytes(run.embeddings.read_bytes()[:5000])
    with pytest.raises(InputError, match="damaged"):
        p3select.select(run, epoch=1, epochs=5, budget=4)


@pytest.mark.parametrize("selector", ["auto", "dpp", "dpp-local", "kdpp"])
def test_every_dpp_is_a_selector(run, selector, tmp_path):
    chosen = p3select.select(run, epoch=1, epochs=5, budget=20, selector=selector)
    assert chosen.metadata["selector"] == ("dpp" if selector == "auto" else selector)
    assert (chosen.summary["selector_reason"] is not None) == (selector == "auto")
    # The index's own parameters make it again, the choice of auto among them.
    before = run.index(1).read_bytes()
    names = ("epoch", "epochs", "budget", "pace", "difficulty", "selector", "quality", "quality_weight", "seed")
    p3select.select(run, **{name: chosen.metadata[name] for name in names}, overwrite=True)
    assert run.index(1).read_bytes() == before
    if selector == "dpp-local":
        assert chosen.summary["accuracy"]["claimed"] >= chosen.summary["accuracy"]["log_gain"] - 1e-6
    if selector == "kdpp":
        other = p3select.select(run, epoch=1, epochs=5, budget=20, selector=selector, seed=1, overwrite=True)
        assert set(other.rows) != set(chosen.rows)


def test_auto_takes_dpp_local_where_dpp_would_not_fit(run, monkeypatch, capsys):
    from p3select import tables
    from p3select.selectors import dpp

    monkeypatch.setattr(dpp, "AFFORDABLE", 1.0)
    chosen = p3select.select(run, epoch=1, epochs=5, budget=20)
    assert chosen.metadata["selector"] == "dpp-local"
    tables.selection(chosen, run.index(1))
    printed = capsys.readouterr().out
    assert "by dpp-local (exact would take about" in printed
    assert "log det per pick" in printed


def test_auto_goes_by_the_rank_of_linear(run, monkeypatch):
    from p3select import machine
    from p3select.selectors import dpp

    d = int(np.load(run.embeddings, mmap_mode="r").shape[1])
    fits = dpp.needed_bytes(200, d, d)
    monkeypatch.setattr(machine, "memory", lambda: fits)
    options = {"epoch": 1, "epochs": 1, "pace": "constant:100", "budget": 150, "overwrite": True}
    assert d < 150
    assert dpp.choose(200, d, 150)[0] == "dpp-local"
    chosen = p3select.select(run, **options, similarity="linear")
    assert chosen.metadata["selector"] == "dpp"
    assert chosen.summary["selector_reason"].endswith(f"as 'linear' tells {d} rows apart")
    assert len(chosen) == 150
    assert chosen.metadata["dependent"] >= 150 - d
    monkeypatch.setattr(machine, "memory", lambda: fits - 1)
    with pytest.raises(InputError, match=r"^dpp of k = 150 from 200 rows needs .*: choose similarity gaussian, a smal"):
        p3select.select(run, **options, similarity="linear")


def test_diversity_is_measured_on_a_part_and_no_more_is_taken(run, monkeypatch):
    chosen = p3select.select(run, epoch=1, epochs=1, pace="constant:100", budget=90, overwrite=True)
    monkeypatch.setattr(selection, "DIVERSITY_ROWS", 20)
    x, taken = np.load(run.embeddings), []

    def of(places):
        taken.append(len(places))
        return x[places]

    told = selection._compared(of, np.arange(200.0), chosen.rows, 0.5, 3)
    assert taken == [20, 20, 20]
    assert told["selected"] == selection.diversity(x[chosen.rows], 0.5, 3)
    assert told["top"] == selection.diversity(x[:109:-1], 0.5, 3)


@pytest.mark.parametrize(
    "budget", ["1/3%", "1e999999%", "1e9999999999%", "1e1%", "-5%", "%", "9" * 5_000 + "%", "1" * 400 + "tok", "9" * 16]
)
def test_a_budget_that_is_none_is_refused_in_no_time(run, budget):
    with pytest.raises(InputError, match=r"^budget ") as refused:
        p3select.select(run, epoch=1, epochs=1, budget=budget)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("rows", "share", "count"), [(10_000, "0.57%", 57), (10_000, "100%", 10_000), (7, "30%", 2)])
def test_a_share_of_the_rows_is_exact(rows, share, count):
    assert constraints.budget_rows(share, rows) == count


class Sure(FakeScorer):
    """Of one row the model is certain: its difficulty and quality are 0."""

    def score(self, ids, scored, advance):
        results = super().score(ids, scored, advance)
        results[0][:] = 0
        return results


def test_a_row_to_keep_without_quality_is_no_copy(tmp_path, gsm8k, tokenizer):
    run = p3select.Run(tmp_path / "run")
    p3select.score(gsm8k, run, scorer=Sure(tokenizer))
    p3select.embed(gsm8k, run, FakeEncoder())
    certain = np.flatnonzero(scores.read(run, 1).column("difficulty").to_numpy() == 0).tolist()
    chosen = p3select.select(run, epoch=1, epochs=5, budget=20, include=certain)
    assert chosen.rows[0] == certain[0]
    assert chosen.quality[0] == chosen.gains[0] == 0
    assert chosen.metadata["dependent"] == 0


def test_the_index_says_why_auto_chose_and_bytes_stay(run):
    chosen = p3select.select(run, epoch=1, epochs=5, budget=20)
    why = chosen.metadata["selector_reason"]
    assert why == "exact takes up to some 0.1 GB, and 6.8e-09 times the work deemed bearable"
    before = run.index(1).read_bytes()
    p3select.select(run, epoch=1, epochs=5, budget=20, selector="dpp", overwrite=True)
    assert run.index(1).read_bytes() == before
    assert (
        p3select.select(run, epoch=1, epochs=5, budget=20, selector="dpp-local", overwrite=True)
        .metadata["selector_reason"]
        .startswith(why)
    )
    chosen = p3select.select(run, epoch=1, epochs=5, budget=20, selector="topk", overwrite=True)
    assert chosen.metadata["selector_reason"] is None


def test_fresh_rows_come_first_and_coverage_rises(tmp_path, gsm8k, tokenizer):
    covered = {}
    for fresh in (0.0, 0.1, 1.0):
        run = p3select.Run(tmp_path / str(fresh))
        for epoch in range(1, 5):
            p3select.score(gsm8k, run, scorer=FakeScorer(tokenizer), epoch=epoch)
        p3select.embed(gsm8k, run, FakeEncoder())
        if fresh:
            with pytest.raises(InputError, match=r"epoch-001\.parquet: no index there"):
                p3select.select(run, epoch=2, epochs=4, budget=40, fresh=fresh)
        picked = [
            p3select.select(run, epoch=e, epochs=4, budget=40, pace="constant:100", fresh=fresh).rows
            for e in range(1, 5)
        ]
        covered[fresh] = len(np.unique(np.concatenate(picked)))
        assert len(index.read(run.index(3)).metadata["earlier_fingerprints"]) == (2 if fresh else 0)
    assert covered[0.0] < covered[0.1] <= covered[1.0] == 160


def test_rows_that_are_put_back_whole_come_last_by_quality_and_diversity(run, gsm8k, tokenizer):
    p3select.score(gsm8k, run, scorer=FakeScorer(tokenizer), epoch=2)
    options = {"epochs": 2, "pace": "constant:100", "fresh": 1.0}
    first = set(p3select.select(run, epoch=1, budget=150, **options).rows.tolist())
    second = p3select.select(run, epoch=2, budget=90, **options)
    old = np.array([row in first for row in second.rows])
    assert old.sum() == 40  # 50 were unseen
    assert not old[:50].any()
    np.testing.assert_allclose(second.quality[old], 1e-6 * second.difficulty[old])
    assert (second.gains > 0).all()
    assert second.metadata["dependent"] == 0
    plain = p3select.select(run, epoch=2, budget=90, selector="topk", overwrite=True, **options)
    assert (np.diff(plain.difficulty[50:]) <= 0).all()


def test_fresh_is_a_factor_of_quality_for_each_earlier_pick(run, gsm8k, tokenizer):
    for epoch in (2, 3):
        p3select.score(gsm8k, run, scorer=FakeScorer(tokenizer), epoch=epoch)
    options = {"epochs": 3, "budget": 50, "pace": "constant:100"}
    first, second = (set(p3select.select(run, epoch=e, fresh=0.25, **options).rows) for e in (1, 2))
    third = p3select.select(run, epoch=3, fresh=0.25, **options)
    times = np.array([(row in first) + (row in second) for row in third.rows])
    np.testing.assert_allclose(third.quality, third.difficulty * 0.75**times)
