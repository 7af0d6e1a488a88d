"""What users ask of a selection beside the best rows: from the words of the command line to the index."""

import json

import numpy as np
import polars as pl
import pytest

import p3select
from p3select import cli, constraints, index, selection, tables
from p3select.errors import InputError, MismatchError
from tests.fakes import FakeEncoder, FakeScorer

ROWS = 120
ALL = {"epoch": 1, "epochs": 1, "pace": "constant:100"}


@pytest.fixture(scope="module")
def made(tmp_path_factory, smollm2, gsm8k):
    """Rows of three sources, two completions a prompt, with ids."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("constraints")
    frame = pl.read_parquet(gsm8k)[:ROWS].with_columns(
        prompt=pl.lit("Question ") + (pl.int_range(ROWS) // 2).cast(pl.String),
        source=pl.Series((["math"] * 3 + ["code", None]) * (ROWS // 5)),
        turns=pl.Series([[{"role": "user", "content": str(i // 3)}] for i in range(ROWS)]),
    )
    frame.write_parquet(folder / "rows.parquet")
    run = p3select.Run(folder / "run")
    p3select.score(folder / "rows.parquet", run, scorer=FakeScorer(AutoTokenizer.from_pretrained(smollm2)))
    p3select.embed(folder / "rows.parquet", run, FakeEncoder())
    return run, frame


def select(run, budget, **options):
    return p3select.select(run, budget=budget, overwrite=True, **{**ALL, **options})


def tokens(run):
    return pl.read_parquet(run.scores(1) / "*.parquet").sort("row")["tokens"].to_numpy()


def crossed(folder, smollm2, groups):
    """A run of rows of (source, prompt), scored at random."""
    from transformers import AutoTokenizer

    sources, prompts = zip(*groups, strict=True)
    completions = [f"{i * 37 % 101} and {i}" for i in range(len(groups))]
    pl.DataFrame(
        {
            "source": sources,
            "prompt": prompts,
            "completion": completions,
            "id": [f"row {i // 2}" for i in range(len(groups))],
        }
    ).write_parquet(folder / "rows.parquet")
    run = p3select.Run(folder / "run")
    p3select.score(folder / "rows.parquet", run, scorer=FakeScorer(AutoTokenizer.from_pretrained(smollm2)))
    p3select.embed(folder / "rows.parquet", run, FakeEncoder())
    return run


def test_shares_that_another_limit_does_not_let_in_are_refused_with_the_numbers(tmp_path, smollm2):
    run = crossed(
        tmp_path, smollm2, [("math", f"m{i}") for i in range(30)] + [("code", f"c{i % 3}") for i in range(30)]
    )
    options = {"share": "source=math:50%,code:50%", "at_most": 1, "per": "prompt"}
    with pytest.raises(InputError, match="share code: 10 of 20 rows, and at most 1 per 'prompt' lets in 3 of the rows"):
        select(run, 20, **options)
    assert len(select(run, 6, **options)) == 6
    with pytest.raises(InputError, match="share code: 3 of 6 rows, and at most 1 per 'prompt' lets in 2"):
        select(run, 6, exclude=[30 + i for i in range(30) if i % 3 == 2], **options)


@pytest.mark.parametrize("selector", ["dpp", "dpp-local", "topk", "uniform"])
def test_two_limits_that_bar_each_other_are_filled_all_the_same(tmp_path, smollm2, monkeypatch, selector):
    # Of 40 prompts 30 have a row of code, and 20 are to be taken: what math takes of these, code cannot have.
    groups = [("code" if i < 30 else "math", f"p{i % 40}") for i in range(200)]
    run = crossed(tmp_path, smollm2, groups)
    kept, counts, picked = [0, 35, 41], [], selection._picked

    def spy(*given):
        rows, gains = picked(*given)
        counts.append(len(rows))
        return rows, gains

    monkeypatch.setattr(selection, "_picked", spy)
    for parts in (None, 2) if selector == "dpp" else (None,):
        limits = {"share": "source=math:50%,code:50%", "at_most": 1, "per": "prompt"}
        chosen = select(run, 40, selector=selector, include=kept, parts=parts, **limits)
        assert counts.pop() == 40 > counts.pop()
        source, prompt = zip(*(groups[row] for row in chosen.rows), strict=True)
        assert len(set(prompt)) == len(chosen) == 40
        assert source.count("code") == 20
        assert set(kept) <= set(chosen.rows.tolist())
        assert chosen.metadata["shortfall"] == 0


def test_what_limits_leave_unused_of_a_budget_in_tokens_is_a_shortfall(made):
    run, _ = made
    # Of the rows to choose from, not of the data.
    wanted = tokens(run).reshape(-1, 2).max(axis=1).sum()
    chosen = select(run, f"{wanted}tok", at_most=1, per="prompt", pace="constant:40")
    assert len(chosen) < 60
    assert chosen.metadata["shortfall"] == wanted - chosen.metadata["tokens"] > 0
    # Where a row is left that only the budget bars, it is used up.
    chosen = select(run, "400tok", at_most=1, per="prompt")
    assert chosen.metadata["tokens"] < 400
    assert chosen.metadata["shortfall"] == 0


@pytest.mark.parametrize("selector", ["dpp", "topk", "uniform"])
def test_what_a_share_in_tokens_leaves_is_too_little_for_a_row_and_no_shortfall(made, selector):
    run, frame = made
    share = "source=math:60%,code:40%"
    chosen = select(run, "3ktok", share=share, selector=selector)
    source, lengths = frame["source"].to_numpy(), tokens(run)
    used = [int(lengths[chosen.rows][source[chosen.rows] == name].sum()) for name in ("math", "code")]
    left = np.setdiff1d(np.arange(ROWS), chosen.rows)
    for name, room, own in zip(("math", "code"), (1_800, 1_200), used, strict=True):
        assert lengths[left][source[left] == name].min() > room - own
    assert sum(used) < 3_000
    assert chosen.metadata["shortfall"] == 0


def test_a_share_in_tokens_of_which_no_row_is_left_is_the_shortfall(tmp_path, smollm2):
    # Of every prompt a long and a short row of code, and rows of math: the short ones are easier to come by.
    groups = [("code", f"c{i // 2}") for i in range(40)] + [("math", f"m{i}") for i in range(60)]
    run = crossed(tmp_path, smollm2, groups)
    lengths = tokens(run)
    code = lengths[:40].reshape(-1, 2)
    wanted = 2 * int(code.max(axis=1).sum())
    if not code.min(axis=1).sum() < wanted // 2 <= lengths[40:].sum():
        pytest.fail("the rows are not those that the test needs")
    options = {"share": "source=code:50%,math:50%", "at_most": 1, "per": "prompt"}
    chosen = select(run, f"{wanted}tok", selector="topk", **options)
    own = chosen.rows[chosen.rows < 40]
    assert len(own) == 20
    assert chosen.metadata["shortfall"] == wanted // 2 - lengths[own].sum() > 0
    with pytest.raises(InputError, match=rf"share code: {wanted // 2 + 1} of .* tokens, .* lets in {wanted // 2} of"):
        select(run, f"{wanted + 2}tok", **options)


@pytest.mark.parametrize("parts", [None, 2])
def test_a_budget_in_tokens_and_so_many_of_a_value_hold_together(made, parts):
    run, frame = made
    lengths = tokens(run)
    for budget in (700, 2_000):
        chosen = select(run, f"{budget}tok", at_most=1, per="prompt", selector="dpp", parts=parts)
        assert chosen.metadata["parts"] == parts
        assert chosen.metadata["tokens"] == lengths[chosen.rows].sum() <= budget
        assert frame["prompt"][chosen.rows.tolist()].n_unique() == len(chosen)
        # Nothing else would have fit, unless what the parts gave was too little to fill it.
        taken = np.isin(np.arange(ROWS) // 2, chosen.rows // 2)
        assert lengths[~taken].min() > budget - lengths[chosen.rows].sum()
        assert chosen.metadata["shortfall"] == 0


@pytest.mark.parametrize("parts", [2, 4])
def test_a_part_does_not_win_by_short_rows(made, parts):
    run, _ = made
    chosen = select(run, "2ktok", selector="dpp", parts=parts, cost_weight=0.0)
    dealt = np.random.default_rng(0).permutation(np.arange(ROWS) % parts)
    assert len(np.unique(dealt[chosen.rows])) == parts


@pytest.mark.parametrize("count", [5_000_000_000, 99_999_999_999_999_999_999])
def test_a_limit_beyond_all_rows_is_none(made, count):
    run, _ = made
    share = {"share": "source=math:50%,code:50%"}
    chosen = select(run, 20, at_most=count, per="prompt", selector="topk", **share)
    np.testing.assert_array_equal(chosen.rows, select(run, 20, selector="topk", **share).rows)


def test_shares_in_tokens_that_no_row_fits_are_refused_with_the_numbers(made):
    run, _ = made
    least = int(tokens(run).min())
    with pytest.raises(
        InputError, match=f"no row fits .math: {least - 1}, its shortest row .*; code: {least - 1}, its"
    ):
        select(run, f"{2 * least - 2}tok", share="source=math:50%,code:50%")


def test_a_refusal_names_the_row_of_the_dataset_and_its_value(made):
    run, frame = made
    rows = [110, 112, 116, 118]
    codes = [row for row in range(100, 120) if frame["source"][row] == "code"]
    for budget, unit in ((20, "rows"), ("2ktok", "tokens")):
        with pytest.raises(
            InputError, match=f"include: row {codes[0]}, 'code' in column 'source', and its like .* {unit}"
        ):
            select(run, budget, pace="constant:50", include=[*rows, *codes], share="source=code:5%")
    with pytest.raises(InputError, match="row 118, 'Question 59' in column 'prompt'"):
        select(run, 20, pace="constant:50", include=[110, 118, 119], at_most=1, per="prompt")


def test_all_rows_of_an_id_are_meant(tmp_path, smollm2):
    run = crossed(tmp_path, smollm2, [("math", f"p{i}") for i in range(12)])  # ids of two rows each
    (tmp_path / "ids.jsonl").write_text('{"id": "row 2"}\n{"id": "row 0"}\n')
    assert not {0, 1, 4, 5} & set(select(run, 8, exclude=tmp_path / "ids.jsonl").rows.tolist())
    assert set(select(run, 6, include=tmp_path / "ids.jsonl").rows[:4].tolist()) == {0, 1, 4, 5}
    for text in ('{"id": "row 2"}\n{"id": "row 6"}\n', '{"id": "row 2"}\n{"id": null}\n'):
        (tmp_path / "ids.jsonl").write_text(text)
        with pytest.raises(InputError, match=r"ids.jsonl, row 1: id (row 6|None) is none of the dataset's"):
            select(run, 8, include=tmp_path / "ids.jsonl")


@pytest.mark.parametrize("selector", ["dpp", "topk", "uniform"])
def test_a_budget_in_tokens_asks_for_the_rows_that_are_likely_and_is_used_up_all_the_same(made, monkeypatch, selector):
    run, _ = made
    asked, picked = [], selection._picked

    def spy(*given):
        asked.append(given[-1])
        return picked(*given)

    monkeypatch.setattr(selection, "_picked", spy)
    options = {"selector": selector} | ({} if selector == "uniform" else {"cost_weight": 0.0})
    chosen = select(run, "3ktok", **options)
    # Fewer than there would be of the shortest.
    assert len(chosen) <= asked[0] < np.searchsorted(np.cumsum(np.sort(tokens(run))), 3_000)
    assert len(asked) == 1
    monkeypatch.setattr(selection, "_asked_for", lambda *given: 5)
    again = select(run, "3ktok", **options)
    assert len(asked) > 2
    assert again.rows.tolist() == chosen.rows.tolist()


def test_rows_that_a_limit_cannot_let_in_are_not_asked_for(made, monkeypatch):
    run, _ = made
    asked = []
    monkeypatch.setattr(selection, "choose", lambda n, d, k, similarity: asked.append(k) or ("dpp", "because"))
    chosen = select(run, 60, at_most=1, per="prompt", pace="constant:40")
    assert asked == [len(chosen)]
    assert chosen.metadata["shortfall"] == 60 - len(chosen) > 0


@pytest.mark.parametrize("selector", ["dpp", "dpp-local", "topk", "uniform"])
def test_a_budget_in_tokens_is_used_up_and_not_exceeded(made, selector):
    run, _ = made
    chosen = select(run, "2ktok", selector=selector)
    used = int(tokens(run)[chosen.rows].sum())
    assert chosen.metadata["tokens"] == used <= 2_000
    assert chosen.metadata["budget"] == "2ktok"
    left = np.setdiff1d(np.arange(ROWS), chosen.rows)
    assert tokens(run)[left].min() > 2_000 - used  # nothing else would have fit
    assert chosen.metadata["shortfall"] == 0


def test_cost_weight_prefers_gain_for_tokens_and_gains_stay_those_of_the_determinant(made):
    run, _ = made
    lengths = tokens(run)
    by_gain, by_cost = (select(run, "2ktok", selector="dpp", cost_weight=weight) for weight in (0.0, 1.0))
    assert lengths[by_cost.rows].mean() < lengths[by_gain.rows].mean()
    assert len(by_cost) > len(by_gain)
    # With no weight the rows are those of a budget in rows until the first that does not fit.
    plain = select(run, 20, selector="dpp").rows
    fit = int(np.searchsorted(np.cumsum(lengths[plain]), 2_000, side="right"))
    assert by_gain.rows[:fit].tolist() == plain[:fit].tolist()
    # Both rows of a prompt have the same embedding: the second one of a pair, if any, has gain 0.
    own = by_cost.gains > 0
    x, q = np.load(run.embeddings)[by_cost.rows[own]].astype(float), by_cost.quality[own]
    matrix = np.exp((np.minimum(x @ x.T, 1) - 1) / by_cost.metadata["scale"]) * np.outer(q, q)
    assert np.log(by_cost.gains[own]).sum() == pytest.approx(np.linalg.slogdet(matrix).logabsdet, rel=1e-6)


def test_a_budget_above_all_tokens_takes_all_rows_and_says_what_is_missing(made):
    run, _ = made
    chosen = select(run, "1Mtok")
    assert len(chosen) == ROWS
    assert chosen.metadata["shortfall"] == 1_000_000 - tokens(run).sum()


def test_at_most_so_many_rows_of_a_value(made, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    run, frame = made
    chosen = select(run, 40, at_most=1, per="prompt")
    assert frame["prompt"][chosen.rows.tolist()].n_unique() == len(chosen) == 40
    chosen = select(run, 30, at_most=1, per="turns")  # conversations
    assert len(set((chosen.rows // 3).tolist())) == 30
    # 60 prompts in the data, fewer among the eligible rows.
    chosen = select(run, 60, at_most=1, per="prompt", pace="constant:40")
    assert chosen.metadata["shortfall"] == 60 - len(chosen) > 0
    assert len(chosen) == frame["prompt"][np.flatnonzero(eligible(run, 40)).tolist()].n_unique()
    tables.selection(chosen, run.index(1))
    assert "fewer than the budget, as the limits let no more in" in capsys.readouterr().out
    # A limit that keeps no row out is no reason.
    chosen = select(run, 60, at_most=2, per="prompt", pace="constant:40")
    assert len(chosen) == chosen.metadata["eligible"] < 60
    tables.selection(chosen, run.index(1))
    assert "fewer than the budget, as no more rows are eligible" in capsys.readouterr().out


def eligible(run, percentile):
    values = pl.read_parquet(run.scores(1) / "*.parquet").sort("row")["difficulty"].to_numpy()
    return values <= np.percentile(values, percentile)


def test_shares_of_rows_and_of_tokens(made):
    run, frame = made
    source = frame["source"].to_numpy()
    chosen = select(run, 40, share="source=math:50%,code:25%")
    assert (source[chosen.rows] == "math").sum() == 20
    assert (source[chosen.rows] == "code").sum() == 10
    assert select(run, 10, share="source=null:100%").rows.max() % 5 == 4
    chosen = select(run, "3ktok", share="source=math:60%,code:40%", selector="topk")
    lengths = tokens(run)[chosen.rows]
    assert 1_800 - 60 < lengths[source[chosen.rows] == "math"].sum() <= 1_800
    assert 1_200 - 60 < lengths[source[chosen.rows] == "code"].sum() <= 1_200
    both = select(run, 20, share="source=math:50%,code:50%", at_most=1, per="prompt")
    assert frame["prompt"][both.rows.tolist()].n_unique() == 20
    assert (source[both.rows] == "code").sum() == 10


def test_rows_to_include_and_to_exclude(made, tmp_path):
    run, frame = made
    hardest = np.flatnonzero(~eligible(run, 50))[:3].tolist()
    first = select(run, 20, pace="constant:50")
    kept = first.rows[:4].tolist()
    (tmp_path / "rows.txt").write_text("".join(f"{row}\n" for row in hardest))
    frame["id"][kept].to_frame().write_ndjson(tmp_path / "ids.jsonl")
    chosen = select(run, 20, pace="constant:50", include=tmp_path / "rows.txt", exclude=tmp_path / "ids.jsonl")
    assert set(chosen.rows[:3].tolist()) == set(hardest)
    assert not set(kept) & set(chosen.rows.tolist())
    assert len(chosen) == 20
    assert chosen.metadata["include"]["rows"] == 3
    assert chosen.metadata["exclude"] == constraints.described(np.sort(kept))
    # The index of an earlier epoch is such a file.
    path = tmp_path / "before.parquet"
    index.write(first, path)
    after = select(run, 20, exclude=path)
    assert not set(first.rows.tolist()) & set(after.rows.tolist())
    # λ is that of the rows left.
    values = pl.read_parquet(run.scores(1) / "*.parquet").sort("row")["difficulty"].to_numpy()
    half = select(run, 20, exclude=path, pace="constant:50")
    assert half.metadata["lam"] == np.percentile(np.delete(values, first.rows), 50)


def test_the_same_words_give_the_same_bytes_on_the_command_line(made, tmp_path, capsys):
    run, _ = made
    chosen = select(run, "1.5ktok", at_most=1, per="prompt", share="source=math:50%,code:50%", include=[6], whiten=True)
    before = run.index(1).read_bytes()
    (tmp_path / "keep.txt").write_text("6\n")
    words = ["--epoch", "1", "--epochs", "1", "--pace", "constant:100", "--budget", "1.5ktok", "--at-most", "1"]
    words += ["--per", "prompt", "--share", "source=math:50%,code:50%", "--include", str(tmp_path / "keep.txt")]
    cli.main(["select", "--run", str(run.path), *words, "--whiten", "--json", "--overwrite"])
    assert run.index(1).read_bytes() == before
    assert json.loads(capsys.readouterr().out)["tokens"] == chosen.metadata["tokens"]
    cli.main(["select", "--run", str(run.path), *words, "--whiten", "--overwrite"])
    shown = capsys.readouterr().out
    assert f"{chosen.metadata['tokens']:,}: " in shown
    assert "included" in shown


def test_similarity_and_whitening_change_the_kernel_and_are_recorded(made):
    run, _ = made
    picks = {}
    for name, options in {
        "gaussian": {},
        "cauchy": {"similarity": "cauchy"},
        "linear": {"similarity": "linear"},
        "white": {"whiten": True},
    }.items():
        chosen = select(run, 30, selector="dpp", **options)
        picks[name] = chosen.rows.tolist()
        assert chosen.metadata["similarity"] == options.get("similarity", "gaussian")
        assert chosen.metadata["whiten"] is bool(options.get("whiten"))
        assert (chosen.metadata["scale"] is None) == (name == "linear")
    assert len({tuple(rows) for rows in picks.values()}) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"at_most": 1}, "at_most and per go together"),
        ({"per": "prompt"}, "at_most and per go together"),
        ({"at_most": 1, "per": "topic"}, "rows.parquet: no column 'topic'; it has .*source"),
        ({"budget": 70, "at_most": 1, "per": "prompt"}, "60 values of 'prompt' are 60, fewer than the budget of 70"),
        ({"budget": 121, "at_most": 5, "per": "prompt"}, "60 values of 'prompt' are 120, fewer than the budget of 121"),
        (
            {"budget": "8ktok", "at_most": 1, "per": "source"},
            r"3 values of 'source' have \d+ tokens, fewer than .* 8,000",
        ),
        ({"share": "math:40%"}, "give COLUMN=VALUE:40%"),
        ({"share": "source=math:40"}, "give COLUMN=VALUE:40%"),
        ({"share": "source=math:40%,math:10%"}, "each value once"),
        ({"share": "source=law:40%"}, "no row has 'law' in column 'source'; it has code, math, null"),
        ({"share": "source=math:80%,code:30%"}, "at most 100%"),
        ({"budget": 60, "share": "source=math:20%,code:80%"}, "share code: 0.8 of 60 rows is 48, .* have 24"),
        ({"include": [120]}, "include: row 120 is not there"),
        ({"include": [5], "exclude": [5]}, "row 5 is both"),
        (
            {"include": [2, 6, 7], "at_most": 1, "per": "prompt"},
            "include: row 6, 'Question 3' in column 'prompt', and its like take 2 rows; at most 1 of a value lets in 1",
        ),
        ({"include": [1.7]}, "include: 1.7 is no row number"),
        ({"exclude": [True]}, "exclude: True is no row number"),
        ({"budget": 2, "include": [0, 2, 4]}, "3 rows to keep"),
        ({"budget": "100tok", "include": [0, 2, 4]}, "budget of 100 tokens: the 3 rows to keep have"),
        ({"exclude": list(range(ROWS))}, "no row with a score is left"),
        ({"include": "nowhere.parquet"}, "nowhere.parquet: the file is gone"),
        ({"include": "rows.csv"}, "rows.csv: no such file of row numbers"),
        ({"selector": "kdpp", "include": [1]}, "'kdpp' takes no rows to include"),
        ({"selector": "kdpp", "budget": "1ktok"}, "'kdpp' takes no limits"),
        ({"selector": "topk", "whiten": True}, "whiten: selector 'topk' takes none"),
        ({"selector": "topk", "similarity": "cauchy"}, "similarity 'cauchy': selector 'topk' takes none"),
        ({"similarity": "linear", "scale": 0.5}, "'linear' takes none"),
        ({"cost_weight": 0.5}, "cost_weight 0.5: for a budget in tokens"),
        ({"budget": "1ktok", "cost_weight": -1.0}, "cost_weight -1.0: a number from 0"),
        ({"budget": "1ktok", "cost_weight": 0.5, "selector": "uniform"}, "for a selector that goes by quality"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_reason(made, options, message):
    run, _ = made
    with pytest.raises(InputError, match=message):
        select(run, **{"budget": 20, **options})


def test_a_file_of_rows_is_checked(made, tmp_path):
    run, _ = made
    for name, text, message in [
        ("a.txt", "1\nx\n", "'x' is no row number"),
        ("b.txt", "500\n", "row 500 is not there; the dataset has 120 rows"),
        ("c.jsonl", '{"name": 1}\n', "no column 'row' of whole numbers, nor 'id'"),
        ("d.jsonl", '{"id": "nobody"}\n', "d.jsonl, row 0: id nobody is none of the dataset's"),
    ]:
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=message):
            select(run, 20, include=tmp_path / name)
    chosen = select(run, 20)
    other = index.Selection(**{**vars(chosen), "metadata": {**chosen.metadata, "dataset_fingerprint": "0" * 64}})
    index.write(other, tmp_path / "other.parquet")
    with pytest.raises(MismatchError, match=r"other.parquet: an index of other data"):
        select(run, 20, include=tmp_path / "other.parquet")
