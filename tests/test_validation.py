"""Agreement with a ground truth: against SciPy, by hand, and on data whose answer is known."""

import json

import numpy as np
import polars as pl
import pytest
from scipy import stats

import p3select
from p3select import cli, figures, validation
from p3select.errors import InputError
from tests.fakes import FakeScorer

ROWS = 150


@pytest.fixture(scope="module")
def tokenizer(smollm2):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2)


@pytest.fixture(scope="module")
def run(tmp_path_factory, tokenizer, gsm8k):
    """Levels that follow the p3 of the fake scorer, with noise; one row without a level, one without a score."""
    folder = tmp_path_factory.mktemp("validation")
    frame = pl.read_parquet(gsm8k)[:ROWS]
    first = p3select.Run(folder / "first")
    p3select.score(gsm8k, first, scorer=FakeScorer(tokenizer), limit=ROWS)
    values = pl.read_parquet(first.scores(1) / "*.parquet").sort("row")["difficulty"].to_numpy()
    noisy = values + 0.5 * values.std() * np.random.default_rng(0).normal(size=ROWS)
    level = (stats.rankdata(noisy) * 5 / (ROWS + 1)).astype(int) + 1
    frame = frame.with_columns(
        level=pl.Series([None, *level[1:].tolist()]),
        label=pl.Series([f"Level {value}" for value in level]),
        kind=pl.Series(["easy" if value < 3 else "hard" for value in level]),
        source=pl.Series(["a"] * 100 + ["b"] * 45 + ["c"] * 5),
        completion=pl.when(pl.int_range(ROWS) == 7).then(pl.lit("")).otherwise(pl.col("completion")),
    )
    frame.write_parquet(folder / "rows.parquet")
    run = p3select.Run(folder / "run")
    p3select.score(folder / "rows.parquet", run, scorer=FakeScorer(tokenizer), ifd=True)
    return run


def columns(run):
    table = pl.read_parquet(run.scores(1) / "*.parquet").sort("row")
    return table.with_columns(pl.read_parquet(run.info()["dataset"]["paths"][0]).select("level", "source"))


def entry(found, group, measure):
    (one,) = (one for one in found["agreement"] if (one["group"], one["measure"]) == (group, measure))
    return one


def test_correlations_are_those_of_scipy_and_partial_ones_those_of_residuals(run):
    found = p3select.validate(run, against="level", by="source", difficulty=["p3", "nll", "ifd"], resamples=50)
    table = columns(run).filter(pl.col("level").is_not_null() & pl.col("difficulty").is_not_null())
    assert found["rows"] == len(table) == ROWS - 2
    assert found["left_out"] == {"no score": 1, "no value": 1}
    assert found["groups_left_out"] == {"c": 5}
    for group in ("all", "a", "b"):
        part = table if group == "all" else table.filter(source=group)
        one = entry(found, group, "p3")
        assert one["rows"] == len(part)
        assert one["spearman"][0] == pytest.approx(stats.spearmanr(part["difficulty"], part["level"]).statistic)
        assert one["kendall"][0] == pytest.approx(stats.kendalltau(part["difficulty"], part["level"]).statistic)
        ranks = [stats.rankdata(part[name]) for name in ("difficulty", "level", "tokens")]
        left = [rank - np.polyval(np.polyfit(ranks[2], rank, 1), ranks[2]) for rank in ranks[:2]]
        assert one["given_length"][0] == pytest.approx(np.corrcoef(*left)[0, 1])
        for name in ("spearman", "kendall", "given_length"):
            value, low, high = one[name]
            assert low < value < high
        assert "given_length" not in entry(found, group, "length")
    assert entry(found, "all", "p3")["spearman"][1] > 0.5
    assert found["trend"]["p3"] < 1e-6
    levels = {one["level"]: one for one in found["levels"]}
    assert sorted(levels) == [1, 2, 3, 4, 5]
    third = table.filter(level=3)
    assert levels[3]["rows"] == len(third)
    assert levels[3]["p3"][0] == pytest.approx(third["difficulty"].mean())
    assert levels[3]["length"][0] == pytest.approx(third["tokens"].mean())


def test_the_bootstraps_intervals_have_their_width():
    """Of a mean, ± 1.96 standard errors."""
    values = np.random.default_rng(0).normal(size=400)
    _, low, high = validation._mean(values, np.random.default_rng(1), 2_000)
    assert (high - low) == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def test_text_with_numbers_is_ordered_and_other_text_is_not(run):
    labels = p3select.validate(run, against="label", resamples=20)
    assert labels["ordered"]
    assert [one["level"] for one in labels["levels"]] == [1, 2, 3, 4, 5]
    kinds = p3select.validate(run, against="kind", resamples=20)
    assert not kinds["ordered"]
    assert "agreement" not in kinds
    assert [one["level"] for one in kinds["levels"]] == ["easy", "hard"]
    assert kinds["levels"][0]["p3"][2] < kinds["levels"][1]["p3"][1]


def test_scores_by_token_are_cut_anew_as_if_scored_by_another_rule(run, tokenizer, smollm2, tmp_path):
    data = run.info()["dataset"]["paths"][0]
    by_token = p3select.Run(tmp_path / "tokens")
    p3select.score(data, by_token, scorer=FakeScorer(tokenizer), actions="token")
    rules = ["line", "sentence", "whole", "token"]
    options = {"against": "level", "actions": rules, "tokenizer": smollm2, "resamples": 5}
    found = p3select.validate(by_token, **options)
    for rule in rules:
        other = p3select.Run(tmp_path / rule)
        p3select.score(data, other, scorer=FakeScorer(tokenizer), actions=rule)
        direct = p3select.validate(other, against="level", resamples=5)
        assert entry(found, "all", f"p3 by {rule}")["spearman"][0] == pytest.approx(
            entry(direct, "all", "p3")["spearman"][0], abs=1e-9
        )
        for one, same in zip(found["levels"], direct["levels"], strict=True):
            assert one[f"p3 by {rule}"][0] == pytest.approx(same["p3"][0], rel=1e-6)
    with pytest.raises(InputError, match="'sentence': the scores have sums over actions by 'line'"):
        p3select.validate(run, against="level", actions=["sentence"])
    with pytest.raises(InputError, match="give the policy's tokenizer"):
        p3select.validate(by_token, **{**options, "tokenizer": None})


def test_the_same_seed_gives_the_same_intervals(run):
    one, same, other = (p3select.validate(run, against="level", resamples=20, seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one["agreement"] != other["agreement"]


def test_without_a_ground_truth_difficulties_are_described(run, tmp_path, capsys):
    found = p3select.validate(run, difficulty=["p3", "nll"], actions=["whole"])
    own = columns(run).filter(pl.col("difficulty").is_not_null())["difficulty"].to_numpy()
    assert (found["rows"], found["ordered"], len(own)) == (149, None, 149)
    assert "agreement" not in found
    assert found["spread"]["p3"]["mean"] == pytest.approx(own.mean())
    np.testing.assert_allclose(found["spread"]["p3"]["quantiles"], np.quantile(own, [0.05, 0.25, 0.5, 0.75, 0.95]))
    assert sum(found["spread"]["p3"]["counts"]) == 147  # the least and the greatest are not in the middle 99 %
    assert found["between"]["measures"] == ["p3", "nll", "p3 by whole", "length"]
    nll = columns(run).filter(pl.col("logprob").is_not_null()).select(-pl.col("logprob") / pl.col("tokens"))
    assert found["between"]["spearman"][0][1] == pytest.approx(stats.spearmanr(own, nll.to_series()).statistic)
    assert found["between"]["spearman"][3][3] == pytest.approx(1.0)
    cli.main(["validate", "--run", str(run.path), "--difficulty", "p3,nll", "--out", str(tmp_path / "spread.png")])
    assert "149; left out: 1 with no score" in capsys.readouterr().out
    assert (tmp_path / "spread.png").stat().st_size > 10_000


def test_bad_input_is_refused(run):
    for options, message in (
        ({"by": "source"}, "by goes with against"),
        ({"against": "topic"}, "no column 'topic'"),
        ({"against": "level", "by": "topic"}, "no column 'topic'"),
        ({"against": "level", "epoch": 2}, "not scored yet"),
        ({"against": "level", "difficulty": ["hard"]}, "unknown difficulty 'hard'"),
    ):
        with pytest.raises(InputError, match=message):
            p3select.validate(run, **options)


def test_on_the_command_line(run, tmp_path, capsys):
    picture = tmp_path / "level.png"
    words = ["validate", "--run", str(run.path), "--against", "level", "--by", "source", "--difficulty", "p3,nll"]
    cli.main([*words, "--resamples", "20", "--out", str(picture)])
    shown = capsys.readouterr().out
    assert "148; left out: 1 with no score, 1 with no value" in shown
    assert "group c: 5 rows" in shown
    assert picture.stat().st_size > 10_000
    cli.main([*words, "--resamples", "20", "--json"])
    assert json.loads(capsys.readouterr().out) == p3select.validate(
        run, against="level", by="source", difficulty=["p3", "nll"], resamples=20
    )
    figures.validation(p3select.validate(run, against="kind", resamples=5), tmp_path / "kind.svg")
