import json
import re
import shutil

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.special import expit, logit

import p3select
from benchmarks import refresh as refresh_
from p3select import refreshing, scores, shards, validation
from p3select.errors import InputError, MismatchError
from p3select.tradeoff import tradeoff
from tests.fakes import FakeEncoder, FakeScorer
from tests.test_scores import files


class Smooth(FakeScorer):
    """A policy that learns: a row has its own difficulty, which falls from step to step, faster for short rows."""

    def __init__(self, tokenizer, step=0, **options):
        super().__init__(tokenizer, model=f"step-{step}", **options)
        self.step = step

    def score(self, ids, scored, advance):
        own = np.array([np.random.default_rng(row.tolist()).normal(size=2) for row in ids]).reshape(-1, 2)
        super().score(ids, scored, advance)
        lengths = np.log([len(positions) for positions in scored])
        hard = own[:, 0] - self.step * (1.5 - 0.2 * lengths) + 0.05 * self.step * own[:, 1]
        # 1 − p = expit(hard) for every token, hence for every action and row.
        return [np.full(len(row), np.log(expit(-value)), np.float32) for row, value in zip(scored, hard, strict=True)]


@pytest.fixture(scope="module")
def tokenizer(smollm2):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2)


@pytest.fixture(scope="module")
def first(tmp_path_factory, gsm8k, tokenizer):
    """A run whose first epoch is scored, embedded and selected."""
    run = p3select.Run(tmp_path_factory.mktemp("first") / "run")
    p3select.score(gsm8k, run, scorer=Smooth(tokenizer), shard_rows=64)
    p3select.embed(gsm8k, run, FakeEncoder())
    p3select.select(run, epoch=1, epochs=3, budget=40, pace="linear:50:90", selector="topk")
    return run


@pytest.fixture(scope="module")
def second(tmp_path_factory, gsm8k, tokenizer, first):
    """Its second epoch, scored whole: what is to be predicted."""
    run = copied(first, tmp_path_factory.mktemp("second") / "run")
    p3select.score(gsm8k, run, epoch=2, scorer=Smooth(tokenizer, 1), shard_rows=64)
    return run


def copied(run, folder):
    return p3select.Run(shutil.copytree(run.path, folder))


def refresh(run, gsm8k, scorer, **options):
    return p3select.score(gsm8k, run, **{"epoch": 2, "refresh": "30%", "shard_rows": 64, "scorer": scorer} | options)


def table(run, epoch):
    return pl.read_parquet(run.scores(epoch) / "part-*.parquet")


# --- on arrays


def drifted(n, seed=0, noise=0.1):
    """Difficulties of n rows before and after a drift that is linear in what is known, and what is known."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(20, 400, n)
    before = rng.normal(size=n)
    vectors = rng.normal(size=(n, 12)).astype(np.float32) * np.linspace(3, 0.5, 12, dtype=np.float32)
    after = 0.9 * before - 1.5 + 0.3 * np.log(tokens) + 0.1 * vectors[:, 0] + noise * rng.normal(size=n)
    none = np.zeros(n, np.int64)
    past = refreshing.Past(expit(before), np.full(n, np.nan), none + 1, none, none, 70.0, [])
    return past, (tokens + 50, tokens, tokens // 10), vectors, expit(after)


def measuring(now, asked):
    def measure(name, wanted):
        asked[name] = wanted
        return np.where(wanted, now, np.nan)

    return measure


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_a_linear_drift_is_found(share):
    past, sizes, vectors, now = drifted(4000)
    asked = {}
    found = refreshing.refreshed(past, 2, sizes, vectors, share, 0, measuring(now, asked))
    measured = asked["drawn"] | asked["near"]
    assert (found.difficulty[measured] == now[measured]).all()
    assert np.array_equal(np.isnan(found.error), measured)
    # The budget is used, and kept.
    spent = sizes[0][measured].sum() / sizes[0].sum()
    assert share - 0.002 < spent <= share
    assert found.about["share_of_tokens"] == spent
    assert sum(found.about["parts"].values()) == 4000
    assert stats.spearmanr(found.difficulty, now).statistic > 0.99
    eligible = [values <= np.percentile(values, 70) for values in (found.difficulty, now)]
    assert (eligible[0] & eligible[1]).sum() / (eligible[0] | eligible[1]).sum() > 0.95
    # The errors that are told are those that are made: noise of 0.1 in the logits.
    wrong = (found.difficulty - now)[~measured]
    assert 0.7 < np.sqrt(np.mean(wrong**2)) / np.sqrt(np.mean(found.error[~measured] ** 2)) < 1.4
    assert 0.7 < np.sqrt(np.mean(wrong**2)) / found.about["held_back_rmse"] < 1.4
    assert found.about["held_back_right_side"] > 0.97
    # Of rows near the threshold more are measured than of those far off.
    distance = np.abs(logit(now) - logit(np.percentile(now, 70)))
    assert np.mean(measured[distance < 0.05]) > np.mean(measured[distance > 1]) + 0.1


def test_without_a_threshold_the_rest_is_drawn_at_random():
    past, sizes, vectors, now = drifted(1000)
    asked = {}
    found = refreshing.refreshed(past._replace(percentile=None), 2, sizes, None, 0.25, 0, measuring(now, asked))
    assert list(asked) == ["drawn"]
    assert 0.24 < found.about["share_of_tokens"] <= 0.25
    assert found.about["parts"]["near"] == found.about["components"] == 0
    assert found.about["held_back_right_side"] is None
    # Embeddings make predictions better where difficulty changes with them.
    with_them = refreshing.refreshed(past._replace(percentile=None), 2, sizes, vectors, 0.25, 0, measuring(now, {}))
    assert with_them.about["held_back_rmse"] < 0.9 * found.about["held_back_rmse"]


def test_rows_without_a_score_are_left_alone_and_known_ones_are_taken_along():
    past, sizes, _, now = drifted(1000)
    past.difficulty[::7] = np.nan
    asked = {}

    def measure(name, wanted):
        asked[name] = wanted
        return np.where(wanted | (np.arange(1000) % 7 == 1), now, np.nan)

    found = refreshing.refreshed(past, 2, sizes, None, 0.25, 0, measure)
    assert np.array_equal(np.isnan(found.difficulty), np.arange(1000) % 7 == 0)
    assert not any(part[::7].any() for part in asked.values())
    assert (found.difficulty[1::7] == now[1::7]).all()
    assert found.about["parts"]["taken over"] > 50
    # Nothing that is known is asked for once more.
    assert not (asked["near"] & (asked["drawn"] | (np.arange(1000) % 7 == 1))).any()


def test_the_choice_depends_on_the_seed_and_the_epoch_alone():
    past, sizes, vectors, now = drifted(500)

    def chosen(epoch, seed):
        asked = {}
        found = refreshing.refreshed(past, epoch, sizes, vectors, 0.3, seed, measuring(now, asked))
        return asked["drawn"], found

    one, again = chosen(2, 0), chosen(2, 0)
    assert np.array_equal(one[0], again[0])
    assert one[1].difficulty.tobytes() == again[1].difficulty.tobytes()
    assert not np.array_equal(one[0], chosen(2, 1)[0])
    assert not np.array_equal(one[0], chosen(3, 0)[0])


def test_a_share_that_is_too_small_is_refused():
    past, sizes, _, now = drifted(100)
    with pytest.raises(InputError, match=r"comes to \d+ rows to learn from \(at least 10\) and 0 to tell the error by"):
        refreshing.refreshed(past, 2, sizes, None, 0.1, 0, measuring(now, {}))


@given(
    st.lists(st.tuples(st.integers(1, 1000), st.integers(1, 5)), min_size=1, max_size=80),
    st.floats(0.01, 0.99),
    st.booleans(),
    st.integers(0, 9),
)
def test_what_is_drawn_first_keeps_to_the_budget(rows, share, near, seed):
    tokens, measured = np.array(rows).T
    budget = int(share * tokens.sum())
    parts = refreshing.drawn(tokens, measured, budget, near=near, seed=(seed,))
    stale, random, held = parts
    assert (np.sum(parts, axis=0) <= 1).all()
    assert tokens[stale].sum() <= budget / 4
    assert tokens[held].sum() <= budget / 8
    assert tokens[stale | random | held].sum() <= (budget / 2 if near else budget)
    # No row that was measured later is taken as stale before one that was measured earlier.
    if stale.any():
        assert measured[~(stale | held)].min(initial=5) >= measured[stale].max()
    again = refreshing.drawn(tokens, measured, budget, near=near, seed=(seed,))
    assert all(np.array_equal(one, other) for one, other in zip(parts, again, strict=True))


def test_of_what_is_drawn_first_more_rows_are_short():
    tokens, measured = np.tile([50, 500], 1000), np.ones(2000, int)
    drawn = [refreshing.drawn(tokens, measured, 60_000, near=False, seed=(seed,)) for seed in range(5)]
    # A row with a tenth of the tokens comes first ten times as often; what is held back is drawn evenly.
    short = [np.mean(np.concatenate([tokens[parts[place]] for parts in drawn]) == 50) for place in range(3)]
    assert min(short[:2]) > 0.75
    assert 0.4 < short[2] < 0.6


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9), st.booleans(), st.booleans()), min_size=1, max_size=40),
    st.integers(0, 60),
    st.sampled_from([0.0, 0.5, 4.0]),
)
def test_the_doubtful_are_those_that_a_budget_pays_for(rows, budget, spread):
    distance, tokens, free, candidates = np.array(rows).T
    free, candidates = free.astype(bool), candidates.astype(bool)
    taken = refreshing.doubtful(distance.astype(float), spread, tokens, free, candidates, budget)
    wrong = np.maximum(stats.norm.sf(distance / (spread or 1e-9)), refreshing.DOUBT) / tokens
    left, expected = budget, []
    for row in sorted(np.flatnonzero(candidates), key=lambda row: (-wrong[row], row)):
        cost = 0 if free[row] else tokens[row]
        if cost > left:
            break
        left -= cost
        expected.append(row)
    assert np.flatnonzero(taken).tolist() == sorted(expected)


def test_the_ridge_is_that_of_least_generalised_cross_validation():
    rng = np.random.default_rng(3)
    x = np.column_stack([rng.normal(size=(60, 6)) * [1, 5, 0.1, 2, 1, 1], np.ones(60)])
    y = x[:, 0] - 0.3 * x[:, 1] + rng.normal(size=60)
    fitted = np.arange(60) < 40
    known = (x[fitted, :6] - x[fitted, :6].mean(0)) / x[fitted, :6].std(0)
    scored = []
    for penalty in np.logspace(-4, 4, 33) * 40:
        hat = known @ np.linalg.solve(known.T @ known + penalty * np.eye(6), known.T) + 1 / 40
        wrong = y[fitted] - hat @ y[fitted]
        scored.append(((wrong @ wrong) / (40 - np.trace(hat)) ** 2, penalty))
    penalty = min(scored)[1]
    slope = np.linalg.solve(known.T @ known + penalty * np.eye(6), known.T @ (y[fitted] - y[fitted].mean()))
    expected = y[fitted].mean() + (x[:, :6] - x[fitted, :6].mean(0)) / x[fitted, :6].std(0) @ slope
    found, spread = refreshing.predicted(x, y, fitted)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert spread == pytest.approx(np.std((found - y)[~fitted]), rel=0.3)
    # What is exactly linear is found, whatever the rows that are not fitted hold.
    exact = 2 + x[:, 0] - x[:, 2]
    found, spread = refreshing.predicted(x, np.where(fitted, exact, np.nan), fitted)
    assert spread < 0.01
    np.testing.assert_allclose(found, exact, atol=0.01)


def test_components_are_the_principal_ones(monkeypatch):
    vectors = np.random.default_rng(1).normal(size=(300, 8)).astype(np.float32) * 1.6 ** np.arange(8, dtype=np.float32)
    rows = np.arange(0, 300, 2)
    centred = vectors[rows].astype(float) - vectors[rows].astype(float).mean(0)
    expected = centred @ np.linalg.svd(centred, full_matrices=False)[2][:3].T
    found = refreshing._components(vectors, rows, 3)
    np.testing.assert_allclose(np.abs(found[:, ::-1]), np.abs(expected), atol=1e-5)
    # Projected in blocks too, whose axes are those of some rows alone.
    monkeypatch.setattr(refreshing, "COMPONENT_ROWS", 64)
    in_blocks = refreshing._components(vectors, rows, 3)
    assert in_blocks.shape == (150, 3)
    assert (np.abs(np.corrcoef(in_blocks.T, found.T)[:3, 3:].diagonal()) > 0.9).all()


def test_shares():
    assert refreshing.fraction("25%") == refreshing.fraction(0.25) == refreshing.fraction("0.25") == 0.25
    for wrong in (0, 1, "100%", 25, "a quarter", -0.1, "nan", "%"):
        with pytest.raises(InputError, match="give a share of the tokens, such as 25%"):
            refreshing.fraction(wrong)


# --- on a run folder


def test_an_epoch_is_measured_in_part_and_predicted_for_the_rest(tmp_path, gsm8k, tokenizer, first, second):
    run = copied(first, tmp_path / "run")
    scorer = Smooth(tokenizer, 1)
    summary = refresh(run, gsm8k, scorer)
    found, before = table(run, 2), table(run, 1)
    # The schema is that of scores, and two columns more.
    assert found.schema == {**before.schema, "measured": pl.Int32, "error": pl.Float64}
    measured, guessed = found.filter(pl.col("status") == "ok"), found.filter(pl.col("status") == "predicted")
    assert scorer.rows == len(measured) == sum(n for part, n in summary["parts"].items() if part != "predicted")
    assert summary["status"] == {"ok": len(measured), "predicted": len(guessed)}
    assert len(guessed) == summary["parts"]["predicted"]
    assert summary["reused"] == 0
    assert summary["scored_tokens"] == measured["tokens"].sum()
    assert summary["percentile"] == 70
    assert (measured["measured"] == 2).all()
    assert (guessed["measured"] == 1).all()
    assert measured["error"].null_count() == len(measured)
    assert (guessed["error"] > 0).all()
    for name in ("logprob", "action_logprobs", "action_tokens"):
        assert guessed[name].null_count() == len(guessed)
    assert (found["tokens"] == before["tokens"]).all()
    again = p3select.difficulty(measured["action_logprobs"].to_list(), measured["action_tokens"].to_list())
    assert np.array_equal(again, measured["difficulty"].to_numpy())
    # Tokens are those of whole rows, of which prompts are a part.
    folder = next((run.path / "tokens").iterdir())
    tokens = pl.read_parquet(folder / "part-*.parquet")["id_count"].to_numpy()
    asked = tokens[measured["row"].to_numpy()].sum() / tokens.sum()
    assert 0.27 < asked <= 0.3
    assert summary["share_of_tokens"] == asked
    # Near to what scoring all rows gives.
    true = table(second, 2)["difficulty"]
    assert np.array_equal(found["difficulty"].to_numpy()[measured["row"]], true.to_numpy()[measured["row"]])
    assert stats.spearmanr(found["difficulty"], true).statistic > 0.98
    # Nothing is left of the work, and a second call finds it done.
    assert sorted(path.name for path in run.scores(2).iterdir() if path.suffix != ".parquet") == [
        "manifest.json",
        "refresh.json",
    ]
    scorer = Smooth(tokenizer, 1)
    again = refresh(run, gsm8k, scorer)
    assert scorer.rows == 0
    assert again["reused"] == len(measured)
    assert {**again, "reused": 0, "seconds": 0} == {**summary, "reused": 0, "seconds": 0}


@pytest.mark.slow
def test_killed_anywhere_and_given_again_it_makes_the_same_bytes(tmp_path, gsm8k, tokenizer, monkeypatch, first):
    whole, broken = (copied(first, tmp_path / name) for name in ("whole", "broken"))
    calls = Smooth(tokenizer, 1)
    refresh(whole, gsm8k, calls)
    assert calls.calls > 5  # four shards of rows that are drawn, and some of rows near the threshold
    for after in (2, 3, 1):
        scorer = Smooth(tokenizer, 1, fail_after=after)
        with pytest.raises(RuntimeError, match="went away"):
            refresh(broken, gsm8k, scorer)
        with pytest.raises(InputError, match="4 of 4 shards are missing"):
            scores.read(broken, 2)
    write = shards.write

    def fail(folder, shard, values):
        if shard.first == 128 and not folder.name.startswith("."):
            raise RuntimeError("killed")
        write(folder, shard, values)

    monkeypatch.setattr(shards, "write", fail)
    with pytest.raises(RuntimeError, match="killed"):
        refresh(broken, gsm8k, Smooth(tokenizer, 1))
    monkeypatch.undo()
    last = Smooth(tokenizer, 1)
    refresh(broken, gsm8k, last)
    assert last.calls == 0
    assert files(whole.path) == files(broken.path)
    assert scores.fingerprint(whole, 2) == scores.fingerprint(broken, 2)


@pytest.mark.slow
def test_later_epochs_go_on_from_predicted_ones(tmp_path, gsm8k, tokenizer, first):
    run = copied(first, tmp_path / "run")
    refresh(run, gsm8k, Smooth(tokenizer, 1))
    p3select.select(run, epoch=2, epochs=3, budget=40, pace="linear:50:90", selector="topk")
    refresh(run, gsm8k, Smooth(tokenizer, 2), epoch=3)
    before, third = table(run, 2), table(run, 3)
    predicted = third.filter(pl.col("status") == "predicted")
    assert (predicted["measured"] == before["measured"].gather(predicted["row"])).all()
    # What was not measured in the second epoch comes first.
    assert (third["measured"] == 1).sum() < (before["measured"] == 1).sum() - 10
    whole = p3select.Run(tmp_path / "whole")
    p3select.score(gsm8k, whole, scorer=Smooth(tokenizer, 2))
    assert stats.spearmanr(third["difficulty"], table(whole, 1)["difficulty"]).statistic > 0.95


def test_selection_takes_predicted_rows_and_says_so(tmp_path, gsm8k, tokenizer, capsys, first):
    run = copied(first, tmp_path / "run")
    refresh(run, gsm8k, Smooth(tokenizer, 1))
    chosen = p3select.select(run, epoch=2, epochs=3, budget=40, pace="linear:50:90", selector="topk")
    found = table(run, 2)
    assert np.array_equal(chosen.difficulty, found["difficulty"].to_numpy()[chosen.rows])
    guessed = (found["status"] == "predicted").to_numpy()
    assert chosen.metadata["predicted"] == guessed[chosen.rows].sum() > 0
    assert chosen.summary["rows_predicted"] == guessed.sum()
    assert chosen.summary["unscored"] == {}
    assert chosen.metadata["scores"]["refresh"] == 0.3
    assert (
        "predicted" not in p3select.select(run, epoch=1, epochs=3, budget=40, selector="topk", overwrite=True).metadata
    )
    from p3select import tables

    tables.selection(chosen, run.index(2))
    assert f"{guessed.sum()}; of the selected ones {guessed[chosen.rows].sum()}" in capsys.readouterr().out
    for kind in ("nll", "ifd"):
        with pytest.raises(InputError, match=f"the difficulty p3 is predicted, and {kind} is not known; go by p3"):
            p3select.select(run, epoch=2, epochs=3, budget=40, difficulty=kind, selector="topk", overwrite=True)


@pytest.mark.slow
def test_what_reads_scores_knows_predicted_rows(tmp_path, gsm8k, tokenizer, first):
    run = copied(first, tmp_path / "run")
    refresh(run, gsm8k, Smooth(tokenizer, 1))
    found = table(run, 2)
    guessed = int((found["status"] == "predicted").sum())
    # Validation is of measured rows.
    result = validation.validate(run, epoch=2, against="level", difficulty=["p3", "nll"], resamples=10)
    assert result["left_out"] == {"no score": 0, "no value": 0, "predicted difficulty": guessed}
    assert result["rows"] == 200 - guessed
    # Measured rows are taken over under the same weights, predicted ones never.
    for options in ({}, {"ifd": True}):
        scorer = Smooth(tokenizer, 1)
        summary = p3select.score(gsm8k, run, epoch=4 + len(options), scorer=scorer, **options)
        assert summary["reused"] == (0 if options else 200 - guessed)
        assert scorer.rows == (200 if options else guessed)
        if options:
            assert summary["reused_first_pass"] == 200
    assert scores.estimate(gsm8k, scorer=Smooth(tokenizer, 1), run=run, epoch=9)["reused"] == 200
    with pytest.raises(MismatchError, match=r"refresh: 0\.3 there, None now"):
        scores.estimate(gsm8k, scorer=Smooth(tokenizer, 1), run=run, epoch=2, shard_rows=64)
    # And the other way round: what is known besides costs nothing.
    scorer = Smooth(tokenizer, 1)
    other = copied(first, tmp_path / "other")
    summary = refresh(other, gsm8k, scorer, reuse=run)
    assert scorer.rows == 0
    assert summary["status"] == {"ok": 200}
    assert summary["reused"] == 200
    report = pytest.importorskip("p3select.figures")
    p3select.select(run, epoch=2, epochs=3, budget=40, selector="topk")
    report.figure(run, tmp_path / "figure.svg")
    assert f"{guessed} rows predicted" in (tmp_path / "figure.svg").read_text()
    # The report says what is predicted, and shows rows that were measured.
    notes = p3select.report(copied(first, tmp_path / "plain"), out=tmp_path / "plain.html")["notes"]
    assert not any("predicted" in note for note in notes)
    shutil.rmtree(run.scores(4))
    shutil.rmtree(run.scores(5))
    notes = p3select.report(run, out=tmp_path / "report.html")["notes"]
    assert sum(f"epoch 2: the difficulty of {guessed} rows is predicted" in note for note in notes) == 1
    shown = {int(row) for row in re.findall(r"row (\d+)", (tmp_path / "report.html").read_text())}
    assert shown
    assert shown <= set(found.filter(pl.col("status") == "ok")["row"])


def test_without_an_index_or_embeddings_it_says_so(tmp_path, gsm8k, tokenizer):
    run = p3select.Run(tmp_path / "run")
    p3select.score(gsm8k, run, scorer=Smooth(tokenizer), shard_rows=64)
    summary = refresh(run, gsm8k, Smooth(tokenizer, 1))
    assert summary["percentile"] is None
    assert summary["parts"]["near"] == summary["components"] == 0
    assert summary["notes"] == ["epoch 1 has no index to tell the threshold by: select it before, for a better choice"]
    assert json.loads((run.scores(2) / "refresh.json").read_text())["held_back_right_side"] is None


@pytest.mark.slow
def test_what_cannot_be_is_refused(tmp_path, gsm8k, tokenizer, first):
    run = copied(first, tmp_path / "run")

    def refused(kind, match, scorer=None, **options):
        with pytest.raises(kind, match=match):
            refresh(run, gsm8k, scorer or Smooth(tokenizer, 1), **options)

    refused(InputError, "epoch 1 has none before it", epoch=1)
    refused(InputError, "leave ifd out", ifd=True)
    refused(InputError, "refresh 30: give a share", refresh=30)
    refused(InputError, "epoch-002: not scored yet", epoch=3)
    refused(MismatchError, "row 0 is tokenised otherwise than in epoch 1", actions="token")
    refused(InputError, "to tell the error by", refresh=0.05)
    # What is refused leaves nothing that a right call would have to overwrite.
    assert not run.scores(2).exists()
    refresh(run, gsm8k, Smooth(tokenizer, 1))
    refused(MismatchError, r"refresh: 0\.3 there, None now", refresh=None)
    refused(MismatchError, r"refresh: 0\.3 there, 0\.4 now", refresh=0.4)
    refused(MismatchError, "refresh_seed: 0 there, 1 now", seed=1)
    refused(MismatchError, "refresh_past", limit=100)
    p3select.select(run, epoch=1, epochs=3, budget=20, selector="topk", overwrite=True)
    refused(MismatchError, r"made otherwise \(refresh_past: ")
    p3select.select(run, epoch=1, epochs=3, budget=20, difficulty="nll", selector="topk", overwrite=True)
    refused(InputError, "epoch 1 was selected by nll, and only p3 is predicted", overwrite=True)
    short = p3select.Run(tmp_path / "short")
    p3select.score(gsm8k, short, scorer=Smooth(tokenizer), limit=100)
    with pytest.raises(InputError, match="epoch 1 has scores of 100 of the 200 rows; give a limit"):
        refresh(short, gsm8k, Smooth(tokenizer, 1))
    assert refresh(short, gsm8k, Smooth(tokenizer, 1), limit=100, refresh=0.5, shard_rows=512)["rows"] == 100
    # All rows may be scored after all.
    p3select.score(gsm8k, run, epoch=2, scorer=Smooth(tokenizer, 1), shard_rows=64, overwrite=True)
    assert "measured" not in table(run, 2).columns
    assert sorted(path.name for path in run.scores(2).iterdir() if path.suffix != ".parquet") == ["manifest.json"]


def test_the_benchmark_looks_measured_rows_up(tmp_path, second, capsys):
    before = files(second.path)
    refresh_.main([str(second.path), "--shares", "30%,60%", "--seeds", "3", "--out", str(tmp_path / "found.json")])
    assert files(second.path) == before
    found = json.loads((tmp_path / "found.json").read_text())
    none, some, more = found["results"]
    assert [one["share"] for one in found["results"]] == [0.0, 0.3, 0.6]
    old, new = (table(second, epoch)["difficulty"] for epoch in (1, 2))
    assert none["spearman"] == pytest.approx(stats.spearmanr(old, new).statistic)
    assert none["spearman"] < some["spearman"] < more["spearman"]
    (alone,) = found["runs"]
    assert (alone["cost"], alone["rows"], alone["results"]) == ("tokens", 200, found["results"])
    assert 0.27 < some["tokens"] <= 0.3
    assert 0.3 < some["claimed"] / some["rmse"] < 3
    assert (tmp_path / "found.png").stat().st_size > 10_000
    assert "goal at 25%: spearman ≥ 0.97: not measured" in capsys.readouterr().out


def test_what_less_would_have_given(tmp_path, first, second, gsm8k, tokenizer):
    found = tradeoff(second, shares=[0.4], seeds=2, rows=150)
    assert (found["rows"], found["epochs"], found["cost"]) == (150, 2, "tokens")
    none, some = found["results"]
    assert none["spearman"] < some["spearman"] <= some["spearman_range"][1] <= 1
    # The indices' own threshold; another pace has another one.
    other = tradeoff(second, shares=[0.4], seeds=2, rows=150, pace="constant:50", epochs=2)["results"]
    assert other[0]["spearman"] == none["spearman"]
    assert other[0]["jaccard"] < none["jaccard"]
    with pytest.raises(InputError, match="pace and epochs go together"):
        tradeoff(second, pace="linear:50:95")
    with pytest.raises(InputError, match="1 of the first two epochs are scored"):
        tradeoff(first)
    with pytest.raises(InputError, match=r"refresh 1.5: give a share"):
        tradeoff(second, shares=[1.5])
    run = copied(first, tmp_path / "run")
    refresh(run, gsm8k, Smooth(tokenizer, 1))
    with pytest.raises(InputError, match="epoch 2 was itself predicted in part"):
        tradeoff(run)
    # Of a later one those before it can be told.
    run = copied(second, tmp_path / "later")
    refresh(run, gsm8k, Smooth(tokenizer, 2), epoch=3)
    assert tradeoff(run, shares=[0.4], seeds=2, rows=150) == found
    few = tradeoff(second, shares=[0.02], seeds=1)["results"]
    assert "comes to" in few[1]["failed"]
