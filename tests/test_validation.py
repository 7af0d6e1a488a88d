"""Agreement with a ground truth: against SciPy, by hand, and on data whose answer is known."""

import datetime
import json

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from scipy import stats

import p3select
from p3select import cli, figures, strategies, tables, validation
from p3select.errors import InputError
from tests.fakes import FakeScorer
from tests.test_tables import compared

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
    # Row 7 has no score.
    unknown = pl.int_range(ROWS).is_in([3, 7, 40, 41])
    frame = frame.with_columns(
        unknown=pl.when(unknown).then(pl.lit("Level ?")).otherwise(pl.col("label")),
        loose=pl.when(pl.int_range(ROWS) < 20).then(pl.lit("?")).otherwise(pl.col("label")),
        grade=pl.col("label").cast(pl.Categorical),
        genre=pl.col("kind").cast(pl.Enum(["hard", "easy"])),
        when=pl.lit(datetime.date(2024, 5, 1)),
        then=pl.lit(datetime.datetime(2024, 5, 1, 12)),
        taken=pl.lit(datetime.timedelta(seconds=3)),
        same=pl.lit(1),
        part=pl.Series([*["all"] * 60, *["null"] * 50, *[None] * 40]),
        alone=pl.when(pl.int_range(ROWS) == 5).then(6).otherwise(pl.col("level")),
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
    assert found["groups_left_out"] == [{"group": "c", "rows": 5}]
    for group in (None, "a", "b"):
        part = table if group is None else table.filter(source=group)
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
    assert entry(found, None, "p3")["spearman"][1] > 0.5
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
    _, low, high = validation._mean(values, 2_000, 1)
    assert (high - low) == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def test_every_statistic_of_the_same_rows_has_the_same_resamples(run):
    """So that two measures can be compared: of one measure under two names all is one."""
    found = p3select.validate(run, against="level", by="source", actions=["line"], resamples=20)
    for group in (None, "a", "b"):
        one, same = entry(found, group, "p3"), entry(found, group, "p3 by line")
        assert one | {"measure": ""} == same | {"measure": ""}
    assert all(one["p3"] == one["p3 by line"] for one in found["levels"])


def test_a_level_of_one_row_has_no_interval(run, tmp_path, capsys):
    found = p3select.validate(run, against="alone", resamples=20)
    (one,) = (one for one in found["levels"] if one["level"] == 6)
    assert one["rows"] == 1
    assert one["p3"][0] > 0
    assert one["p3"][1:] == one["length"][1:] == [None, None]
    words = ["validate", "--run", str(run.path), "--against", "alone", "--resamples", "5"]
    cli.main([*words, "--out", str(tmp_path / "alone.svg")])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.split()[:2] == ["6", "1"])
    assert "±" not in line


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *(("Level 3", 3), ("level-1", 1), ("level-5", 5), ("-3", -3), ("−3", -3), ("+3", 3), ("level −2", -2)),
        *(("level: -1.5", -1.5), ("(-4)", -4), ("1e3", 1000), ("1e-5", 1e-5), ("2E+2", 200), ("1,000", 1000)),
        *(("$1,234,567.5", 1234567.5), (".5", 0.5), ("-.5", -0.5), ("No.5", 5), ("5.", 5), (" 7 ", 7), ("3rd", 3)),
        *(("2 (two: 2)", 2), ("Level 3 of 5", None), ("2-3", None), ("1,5", None), ("1,0000", None), ("v1.2.3", None)),
        *(("2024-05-01", None), ("Level ?", None), ("", None), ("nan", None), ("inf", None), ("1e999", None)),
    ],
)
def test_the_number_in_a_text(text, number):
    assert validation._number(text) == number


def test_few_texts_without_a_number_are_left_out_and_said(run, capsys):
    known = p3select.validate(run, against="label", resamples=5)
    found = p3select.validate(run, against="unknown", resamples=5)
    assert found["ordered"]
    assert (found["rows"], known["rows"]) == (146, 149)
    assert found["left_out"] == {"no score": 1, "no value": 0, "no number": 3}
    assert found["no_number"] == "Level ?"
    assert "no_number" not in known
    cli.main(["validate", "--run", str(run.path), "--against", "unknown", "--resamples", "5"])
    assert '146; left out: 1 with no score, 3 with no number, such as "Level ?"' in capsys.readouterr().out
    loose = p3select.validate(run, against="loose", resamples=5)
    assert not loose["ordered"]
    assert loose["left_out"] == {"no score": 1, "no value": 0}
    assert [one["level"] for one in loose["levels"]] == ["?", *(f"Level {level}" for level in range(1, 6))]


def test_nine_of_ten_texts_with_a_number_are_enough():
    for unknown, ordered in ((10, True), (11, False)):
        texts = [None] * 5 + ["Level ?"] * unknown + [f"Level {row}" for row in range(100 - unknown)]
        values, found, unread = validation._truth(pa.chunked_array([texts]), "level")
        assert found == ordered
        assert unread == (dict.fromkeys(range(5, 15), "Level ?") if ordered else {})
        assert [value is None for value in values[:20]] == [row < (15 if ordered else 5) for row in range(20)]


def test_dictionaries_are_their_values_and_times_are_refused(run):
    for name, same in (("grade", "label"), ("genre", "kind")):
        found, plain = (p3select.validate(run, against=one, by="source", resamples=5) for one in (name, same))
        assert found | {"against": ""} == plain | {"against": ""}
    codes = pa.chunked_array([pa.array([3, None, 1]).dictionary_encode()])
    assert validation._truth(codes, "level")[0].tolist() == [3, None, 1]
    for name, kind in (("when", "date32"), ("then", "timestamp"), ("taken", "duration")):
        with pytest.raises(InputError, match=rf"column '{name}': {kind}.* is neither numbers nor text"):
            p3select.validate(run, against=name)


def test_categories_are_tested_within_each_group_too(run, tmp_path, capsys):
    found = p3select.validate(run, against="kind", by="source", difficulty=["p3", "nll"], resamples=20)
    kinds = pl.read_parquet(run.info()["dataset"]["paths"][0]).select("kind")
    table = columns(run).with_columns(kinds).filter(pl.col("difficulty").is_not_null())
    assert found["groups_left_out"] == [{"group": "c", "rows": 5}]
    assert {(one["group"], one["measure"]) for one in found["kruskal"]} == {
        (group, measure) for group in (None, "a", "b") for measure in ("p3", "nll", "length")
    }
    assert [(one["group"], one["level"]) for one in found["levels"]] == [
        (group, kind) for group in (None, "a", "b") for kind in ("easy", "hard")
    ]
    for group in (None, "a", "b"):
        part = table if group is None else table.filter(source=group)
        parts = {kind: part.filter(kind=kind) for kind in ("easy", "hard")}
        for measure, column in (("p3", "difficulty"), ("length", "tokens")):
            (one,) = (one for one in found["kruskal"] if (one["group"], one["measure"]) == (group, measure))
            test = stats.kruskal(*(part[column] for part in parts.values()))
            assert one["rows"] == len(part)
            assert (one["statistic"], one["p"]) == (pytest.approx(test.statistic), pytest.approx(test.pvalue))
            for kind in parts:
                (level,) = (one for one in found["levels"] if (one["group"], one["level"]) == (group, kind))
                assert level["rows"] == len(parts[kind])
                assert level[measure][0] == pytest.approx(parts[kind][column].mean())
    words = ["validate", "--run", str(run.path), "--against", "kind", "--by", "source", "--resamples", "5"]
    cli.main([*words, "--out", str(tmp_path / "kind.png")])
    shown = capsys.readouterr().out
    assert "Kruskal–Wallis, p of no difference" in shown
    assert all(f"{group}: mean ± half the 95 % interval" in shown for group in ("all rows", "a", "b"))
    assert "group c: 5 rows" in shown
    assert (tmp_path / "kind.png").stat().st_size > 10_000


def test_no_value_of_a_column_is_taken_for_all_rows_or_for_none(run, capsys):
    found = p3select.validate(run, against="level", by="part", resamples=5)
    sizes = {one["group"]: one["rows"] for one in found["agreement"]}
    assert sizes == {None: 148, "(missing)": 40, "all": 58, "null": 50}
    cli.main(["validate", "--run", str(run.path), "--against", "level", "--by", "part", "--resamples", "5"])
    shown = capsys.readouterr().out.splitlines()
    for group, rows in (("all rows", 148), ("(missing)", 40), ("all", 58), ("null", 50)):
        assert f"{group}, {rows} rows: rank correlation [95 % interval]" in shown
    cli.main(["validate", "--run", str(run.path), "--against", "same", "--resamples", "5"])
    assert "all rows: 149 rows, too few or of one value" in capsys.readouterr().out


def test_categories_of_one_row_each_are_not_tested(run):
    with pytest.raises(InputError, match="column 'prompt': every category has one row; give a column whose values re"):
        p3select.validate(run, against="prompt")
    kinds = np.array([*(f"only {letter}" for letter in "abcdefghijkl"), *["x", "y"] * 10], object)
    groups = np.array(["one"] * 12 + ["two"] * 20, object)
    values = np.random.default_rng(0).random(32)
    found = validation._against({"p3": values, "length": values}, kinds, groups, False, 5, 0)
    assert {one["group"] for one in found["kruskal"]} == {None, "two"}
    assert found["groups_left_out"] == [{"group": "one", "rows": 12}]
    # Numbers have an order, however many there are.
    found = validation._against({"p3": values, "length": values}, np.arange(32.0), groups, True, 5, 0)
    assert {one["group"] for one in found["agreement"]} == {None, "one", "two"}


def test_an_epoch_scored_in_part_is_said_not_to_be_drawn_evenly(run, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    found = p3select.validate(run, against="level", resamples=5)
    for guessed in (0, 3):
        found["left_out"]["predicted difficulty"] = guessed
        tables.validation(found)
        shown = capsys.readouterr().out
        assert ("3 with predicted difficulty" in shown) == (guessed > 0)
        assert ("not drawn evenly" in shown) == (guessed > 0)


def test_the_table_says_by_which_actions_and_why_there_are_no_levels(run, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    tables.validation(p3select.validate(run, against="level", resamples=5))
    shown = capsys.readouterr().out
    assert "line, as the rows were scored" in shown
    assert "no means of each" not in shown
    found = p3select.validate(run, against="level", difficulty=[], actions=["whole"], resamples=5)
    del found["levels"]
    tables.validation(found)
    shown = capsys.readouterr().out
    assert "as the rows were scored" not in shown
    assert "level has more than 20 values: no means of each" in shown


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([0.5, 0.4, 0.6], "0.500 ± 0.100"),
        ([0.99961, 0.99948, 0.99974], "0.99961 ± 0.00013"),
        ([92.31, 90.0, 94.0], "92.3 ± 2.0"),
        ([1.0, 1.0, 1.0], "1.000 ± 0.000"),
        ([3.0, None, None], "3.000"),
    ],
)
def test_a_mean_has_the_digits_that_its_interval_needs(values, shown):
    assert tables._with_half(values) == shown


def strict(text):
    """JSON as it is defined: without NaN and Infinity."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


def test_what_is_not_finite_is_none_and_json_is_json(run, tmp_path, capsys):
    words = ["validate", "--run", str(run.path), "--against", "same", "--resamples", "5"]
    found = p3select.validate(run, against="same", resamples=5)
    assert (found["agreement"], found["groups_left_out"]) == ([], [{"group": None, "rows": 149}])
    assert found["trend"] == {"p3": None, "length": None}
    cli.main([*words, "--json"])
    assert strict(capsys.readouterr().out) == found
    cli.main([*words, "--out", str(tmp_path / "same.png")])
    assert "p of no trend" in capsys.readouterr().out
    # A measure that is a constant, too: all of one length.
    constant = np.ones(40)
    level, kind = np.arange(40.0), np.array(["a", "b"] * 20, object)
    both = {"p3": np.random.default_rng(0).random(40), "length": constant}
    ordered = validation._against(both, level, None, True, 5, 0)
    assert entry(ordered, None, "length")["spearman"] == [None] * 3
    assert entry(ordered, None, "length")["kendall"] == [None] * 3
    assert validation._against(both, kind, None, False, 5, 0)["kruskal"][1]["p"] is None
    cli._print({"loss": float("nan"), "all": [{"worst": float("inf")}, (1.5, -float("inf"))]}, True)
    assert strict(capsys.readouterr().out) == {"loss": None, "all": [{"worst": None}, [1.5, None]]}


def test_a_drawing_that_cannot_be_written_is_refused_before_the_work(run, tmp_path, capsys):
    validate = ["validate", "--run", str(run.path), "--against", "level", "--resamples", "5"]
    compare = ["compare", "--run", str(tmp_path / "none"), "--epochs", "2", "--budget", "9", "--out", str(tmp_path)]
    for words, name in ((validate, "--out"), (compare, "--plot")):
        for out in ("x.foo", "x", ".png"):
            with pytest.raises(SystemExit) as left:
                cli.main([*words, name, str(tmp_path / out)])
            assert left.value.code == 2
            shown = capsys.readouterr()
            assert shown.out == ""
            assert "no drawing ends so; give a file that ends in .png, .jpg" in shown.err


def test_dollars_in_names_are_no_formula(run, tmp_path):
    found = json.dumps(p3select.validate(run, against="kind", by="source", resamples=5))
    named = found.replace('"a"', r'"$\\foo$"').replace('"hard"', r'"$\\frac{$"')
    figures.validation(json.loads(named), tmp_path / "levels.svg")
    # The picture of ordered values names groups beside its lines.
    found = json.dumps(p3select.validate(run, against="level", by="source", resamples=5))
    figures.validation(json.loads(found.replace('"a"', r'"$\\foo$"')), tmp_path / "groups.svg")
    figures.comparison(compared(["p3", r"p3+share=s=$\foo$:40%", "uniform"]), tmp_path / "compared.svg")
    assert all((tmp_path / f"{name}.svg").stat().st_size > 1_000 for name in ("levels", "groups", "compared"))


@pytest.mark.parametrize("as_json", [False, True])
def test_results_are_shown_before_they_are_drawn(run, tmp_path, monkeypatch, capsys, as_json):
    def fails(found, out):
        raise RuntimeError("cannot be drawn")

    for name in ("validation", "comparison"):
        monkeypatch.setattr(figures, name, fails)
    monkeypatch.setattr(p3select, "compare", lambda **_: compared(["p3", "uniform", "full"]))
    out, flag = str(tmp_path / "x.svg"), ["--json"] * as_json
    compare = ["compare", "--run", "r", "--epochs", "5", "--budget", "9", "--out", str(tmp_path), "--plot", out, *flag]
    validate = ["validate", "--run", str(run.path), "--against", "level", "--resamples", "5", "--out", out, *flag]
    for words, told in ((validate, "spearman" if as_json else "Spearman ρ"), (compare, "uniform")):
        with pytest.raises(RuntimeError, match="cannot be drawn"):
            cli.main(words)
        assert told in capsys.readouterr().out


@pytest.mark.slow
def test_every_drawing_that_is_allowed_is_written(run, tmp_path):
    found = p3select.validate(run, against="level", resamples=5)
    for ending in (*cli.DRAWN, "PNG"):
        cli._drawing("validation", str(tmp_path / f"drawn.{ending}"))(found)
        assert (tmp_path / f"drawn.{ending}").stat().st_size > 1_000


def test_lists_may_have_blanks_and_strategies_commas(run, capsys):
    words = ["validate", "--run", str(run.path), "--resamples", "5", "--json", "--difficulty"]
    shown = [(cli.main([*words, given]), capsys.readouterr().out)[1] for given in ("p3,nll", " p3, nll ,")]
    assert shown[0] == shown[1]
    share = "p3+share=src=gsm8k:40%,null:60%+pace=constant:80"
    rows = "rds+exclude=[1,2,3]"
    given = f"p3, {share} ,uniform,{rows}, p3+pace=linear:50:95,p3+selector=module:name,full"
    parts = cli._list(given, cli.STRATEGY_ENDS)
    assert parts == ["p3", share, "uniform", rows, "p3+pace=linear:50:95", "p3+selector=module:name", "full"]
    arguments = [strategies._arguments(part) for part in parts]
    assert arguments[1] == {"share": "src=gsm8k:40%,null:60%", "pace": "constant:80"}
    assert arguments[3]["exclude"] == [1, 2, 3]


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
        assert entry(found, None, f"p3 by {rule}")["spearman"][0] == pytest.approx(
            entry(direct, None, "p3")["spearman"][0], abs=1e-9
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
        ({"against": "level", "resamples": 0}, "resamples 0: the intervals need at least 1"),
        ({"resamples": -5}, "resamples -5"),
        ({"against": "level", "seed": -1}, "seed -1: a whole number from 0"),
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
