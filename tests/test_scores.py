import copy
import os
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial

import numpy as np
import polars as pl
import pytest
from scipy import stats
from tokenizers.processors import TemplateProcessing

import p3select
from p3select import scores
from p3select.errors import InputError, MismatchError, RowError
from tests.fakes import FakeScorer


@pytest.fixture(scope="module")
def tokenizer(smollm2):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2)


def files(folder):
    """All but what it cost, which is another time each time."""
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.*"))}
    return {name: content for name, content in found.items() if not name.startswith("costs/")}


def test_scores_follow_the_schema(tmp_path, gsm8k, tokenizer):
    run = p3select.Run(tmp_path / "run")
    summary = p3select.score(gsm8k, run, scorer=FakeScorer(tokenizer), shard_rows=75)
    assert [path.name for path in sorted(run.scores(1).glob("*.parquet"))] == [
        "part-000000000.parquet",
        "part-000000075.parquet",
        "part-000000150.parquet",
    ]
    table = pl.read_parquet(run.scores(1) / "*.parquet")
    assert dict(table.schema) == {
        "row": pl.Int64,
        "id": pl.String,
        "difficulty": pl.Float64,
        "logprob": pl.Float64,
        "tokens": pl.Int32,
        "action_logprobs": pl.List(pl.Float32),
        "action_tokens": pl.List(pl.Int32),
        "status": pl.String,
        "boundary_shift": pl.Int32,
        "hash": pl.Binary,
    }
    assert table["row"].to_list() == list(range(200))
    assert table["id"].to_list() == pl.read_parquet(gsm8k)["id"].to_list()
    assert summary["rows"] == 200
    assert summary["reused"] == 0
    assert summary["status"] == {"ok": 200}
    # The difficulty is that of the stored sums, and these add up.
    again = p3select.difficulty(table["action_logprobs"].to_list(), table["action_tokens"].to_list())
    assert np.array_equal(again, table["difficulty"].to_numpy())
    assert (table["action_tokens"].list.sum() == table["tokens"]).all()
    np.testing.assert_allclose(table["action_logprobs"].list.sum(), table["logprob"], rtol=1e-6)
    # GSM8K completions: an action is a line.
    lines = pl.read_parquet(gsm8k)["completion"].str.count_matches("\n") + 1
    assert (table["action_tokens"].list.len() == lines.cast(pl.UInt32)).all()


def test_the_same_bytes_whatever_was_done_before(tmp_path, gsm8k, tokenizer):
    whole, broken = p3select.Run(tmp_path / "whole"), p3select.Run(tmp_path / "broken")
    p3select.score(gsm8k, whole, scorer=FakeScorer(tokenizer), shard_rows=32)
    with pytest.raises(RuntimeError, match="went away"):
        p3select.score(gsm8k, broken, scorer=FakeScorer(tokenizer, fail_after=3), shard_rows=32)
    with pytest.raises(InputError, match="4 of 7 shards are missing"):
        scores.read(broken, 1)
    again = FakeScorer(tokenizer)
    summary = p3select.score(gsm8k, broken, scorer=again, shard_rows=32)
    assert summary["reused"] == 96
    assert again.calls == 4
    assert files(whole.path) == files(broken.path)


def test_equal_rows_give_the_same_bytes_after_a_kill(tmp_path, gsm8k, tokenizer):
    class Last(FakeScorer):
        """A row's values depend on the other rows of its shard, as rounding does."""

        def score(self, ids, scored, advance):
            return [row - len(ids[0]) / 1e4 for row in super().score(ids, scored, advance)]

    rows = pl.read_parquet(gsm8k)[:20]
    pl.concat([rows, rows.reverse()]).write_parquet(tmp_path / "rows.parquet")
    whole, broken = p3select.Run(tmp_path / "whole"), p3select.Run(tmp_path / "broken")
    p3select.score(tmp_path / "rows.parquet", whole, scorer=Last(tokenizer), shard_rows=10)
    with pytest.raises(RuntimeError, match="went away"):
        p3select.score(tmp_path / "rows.parquet", broken, scorer=Last(tokenizer, fail_after=2), shard_rows=10)
    p3select.score(tmp_path / "rows.parquet", broken, scorer=Last(tokenizer), shard_rows=10)
    assert files(whole.path) == files(broken.path)


def test_a_second_call_scores_nothing(tmp_path, gsm8k, tokenizer):
    for calls, reused in ((1, 0), (0, 100)):
        scorer = FakeScorer(tokenizer)
        summary = p3select.score(gsm8k, tmp_path, scorer=scorer, limit=100, shard_rows=200)
        assert (scorer.calls, summary["reused"]) == (calls, reused)


def test_a_limit_can_be_raised(tmp_path, gsm8k, tokenizer):
    direct = p3select.Run(tmp_path / "direct")
    p3select.score(gsm8k, direct, scorer=FakeScorer(tokenizer), shard_rows=64)
    run = p3select.Run(tmp_path / "run")
    assert p3select.score(gsm8k, run, scorer=FakeScorer(tokenizer), limit=100, shard_rows=64)["rows"] == 100
    assert scores.read(run, 1).num_rows == 100
    # The second shard was cut short at 36 rows: they are not scored again.
    scorer = FakeScorer(tokenizer)
    assert p3select.score(gsm8k, run, scorer=scorer, shard_rows=64)["reused"] == 100
    assert scorer.rows == 100
    assert files(direct.path) == files(run.path)
    with pytest.raises(MismatchError, match="rows: 200 there, 64 now"):
        p3select.score(gsm8k, run, scorer=FakeScorer(tokenizer), limit=64, shard_rows=64)


def test_a_limit_can_be_raised_past_rows_without_a_score(tmp_path, gsm8k, tokenizer):
    rows = pl.read_parquet(gsm8k)[:12].with_columns(
        completion=pl.when(pl.int_range(12) < 2).then(pl.lit("")).otherwise(pl.col("completion"))
    )
    rows.write_parquet(tmp_path / "rows.parquet")
    for limit, reused in ((1, 0), (2, 0), (5, 0), (12, 3)):
        scorer = FakeScorer(tokenizer)
        summary = p3select.score(tmp_path / "rows.parquet", tmp_path / "run", scorer=scorer, limit=limit)
        assert summary["rows"] == limit
        assert summary["reused"] == reused


def test_rows_scored_before_with_the_same_weights_are_taken_over(tmp_path, gsm8k, tokenizer):
    run = p3select.Run(tmp_path / "run")
    p3select.score(gsm8k, run, scorer=FakeScorer(tokenizer), limit=50)
    # Another epoch, the same weights: nothing is left to score; other weights: everything.
    for epoch, model, limit, scored in ((2, "fake-1", 60, 10), (3, "fake-2", 60, 60)):
        scorer = FakeScorer(tokenizer, model=model)
        summary = p3select.score(gsm8k, run, scorer=scorer, epoch=epoch, limit=limit)
        assert (scorer.rows, summary["reused"]) == (scored, limit - scored)
    first, second = (scores.read(run, epoch).slice(0, 50) for epoch in (1, 2))
    assert first.equals(second)


def test_rows_of_another_run_are_taken_over_where_they_are_the_same(tmp_path, gsm8k, tokenizer):
    p3select.score(gsm8k, tmp_path / "old", scorer=FakeScorer(tokenizer), ifd=True)
    rows = pl.read_parquet(gsm8k)
    changed = pl.concat([rows[:3], rows[3:6].with_columns(completion=pl.lit("42")), rows[6:90].reverse()])
    changed.write_parquet(tmp_path / "new.parquet")
    scorer = FakeScorer(tokenizer)
    new = p3select.Run(tmp_path / "new")
    summary = p3select.score(tmp_path / "new.parquet", new, scorer=scorer, reuse=tmp_path / "old", ifd=True)
    # Three rows, each with its second pass.
    assert (scorer.rows, summary["reused"]) == (6, 87)
    direct = p3select.Run(tmp_path / "direct")
    p3select.score(tmp_path / "new.parquet", direct, scorer=FakeScorer(tokenizer), ifd=True)
    assert scores.read(new, 1).equals(scores.read(direct, 1))
    with pytest.raises(InputError, match="no run folder"):
        p3select.score(gsm8k, tmp_path / "third", scorer=FakeScorer(tokenizer), reuse=tmp_path / "gone")
    assert not (tmp_path / "third").exists()


def test_tokens_are_made_once_and_used_in_every_epoch(tmp_path, gsm8k, tokenizer, monkeypatch):
    calls = []
    encode = scores.tokens.encode
    monkeypatch.setattr(scores.tokens, "encode", lambda *a, **k: calls.append(k["first_row"]) or encode(*a, **k))
    for epoch, model, limit in ((1, "a", 90), (2, "b", 200), (3, "c", 90)):
        scorer = FakeScorer(tokenizer, model=model)
        p3select.score(gsm8k, tmp_path, scorer=scorer, epoch=epoch, limit=limit, shard_rows=40)
    # The third shard was cut short by the first limit.
    assert calls == [0, 40, 80, 80, 120, 160]
    p3select.score(gsm8k, tmp_path, scorer=FakeScorer(tokenizer, model="d"), epoch=4, actions="whole", shard_rows=100)
    assert calls[6:] == [0, 100]


def test_ifd_scores_the_target_a_second_time_by_itself(tmp_path, gsm8k, tokenizer):
    run = p3select.Run(tmp_path)
    plain = p3select.score(gsm8k, tmp_path / "plain", scorer=FakeScorer(tokenizer), limit=30)
    assert p3select.score(gsm8k, run, scorer=FakeScorer(tokenizer), limit=30, ifd=True)["status"] == plain["status"]
    rows = pl.read_parquet(run.scores(1) / "*.parquet")
    before = tokenizer("")["input_ids"]
    for row, text in zip(rows.iter_rows(named=True), pl.read_parquet(gsm8k).iter_rows(named=True), strict=False):
        full = tokenizer(text["prompt"] + text["completion"] + tokenizer.eos_token)["input_ids"]
        ids = np.array([*before, *full[len(full) - row["tokens"] :]], np.int32)
        alone = FakeScorer(tokenizer).score([ids], [np.arange(1, len(ids))], lambda *_: None)[0]
        assert row["alone_tokens"] == len(alone) == row["tokens"] - 1 + len(before)
        assert row["alone_logprob"] == pytest.approx(alone.sum(), rel=1e-6)
    with pytest.raises(MismatchError, match="ifd: True there, None now"):
        p3select.score(gsm8k, run, scorer=FakeScorer(tokenizer), limit=30)


class Counted(FakeScorer):
    """Counts the tokens of all passes, and those scored."""

    tokens = scored = 0

    def score(self, ids, scored, advance):
        self.tokens += sum(map(len, ids))
        self.scored += sum(map(len, scored))
        return super().score(ids, scored, advance)


@pytest.mark.parametrize("begins", [False, True], ids=["no token before a text", "one"])
def test_with_ifd_later_only_the_second_pass_is_made(begins, tmp_path, gsm8k, tokenizer, capsys):
    if begins:
        tokenizer = copy.deepcopy(tokenizer)
        first = (tokenizer.bos_token, tokenizer.bos_token_id)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(f"{first[0]} $A", special_tokens=[first])
    run = p3select.Run(tmp_path / "run")
    p3select.score(gsm8k, run, scorer=FakeScorer(tokenizer), limit=30)
    scorer = Counted(tokenizer)
    summary = p3select.score(gsm8k, run, epoch=2, scorer=scorer, limit=40, ifd=True, show_progress=True)
    # 30 rows by themselves, 10 rows and these by themselves.
    assert (scorer.rows, summary["reused"]) == (50, 0)
    assert f"cpu: {scorer.tokens:,} tokens, {scorer.scored:,} of" in capsys.readouterr().err
    whole = Counted(tokenizer)
    p3select.score(gsm8k, tmp_path / "whole", scorer=whole, limit=40, ifd=True)
    estimate = scores.estimate(gsm8k, scorer=FakeScorer(tokenizer), limit=40, ifd=True)
    assert (estimate["tokens"], estimate["scored_tokens"]) == (whole.tokens, whole.scored)
    direct = p3select.Run(tmp_path / "direct")
    p3select.score(gsm8k, direct, epoch=2, scorer=FakeScorer(tokenizer), limit=40, ifd=True)
    assert scores.read(run, 2).equals(scores.read(direct, 2))
    # And without it nothing is left to do.
    scorer = FakeScorer(tokenizer)
    assert p3select.score(gsm8k, run, epoch=3, scorer=scorer, limit=40)["reused"] == 40
    assert scorer.rows == 0
    capsys.readouterr()
    p3select.score(gsm8k, run, epoch=4, scorer=FakeScorer(tokenizer), limit=40, show_progress=True)
    assert "0 tokens, 0 of them scored; 40 of 40 rows are there" in capsys.readouterr().err


class Wrong(Counted):
    """With errors, from 0 to √2."""

    def score_with_errors(self, ids, scored, advance):
        values = self.score(ids, scored, advance)
        return values, [np.sqrt(-row) for row in values]


def test_el2n_is_the_mean_error_of_the_scored_tokens(tmp_path, gsm8k, tokenizer):
    run, plain = p3select.Run(tmp_path / "run"), p3select.Run(tmp_path / "plain")
    scorer, given = Wrong(tokenizer), {"limit": 30, "shard_rows": 12}
    p3select.score(gsm8k, run, scorer=scorer, el2n=True, **given)
    p3select.score(gsm8k, plain, scorer=FakeScorer(tokenizer), **given)
    table = scores.read(run, 1)
    # No pass more, and the same of everything else.
    assert scorer.rows == 30
    assert scores.settings(run, 1) == scores.settings(plain, 1) | {"el2n": True}
    assert table.drop_columns("el2n").equals(scores.read(plain, 1))
    texts = pl.read_parquet(gsm8k)[:30].select("prompt", "completion").to_dicts()
    for row, value in zip(scores.tokens.encode(texts, tokenizer), table.column("el2n").to_pylist(), strict=True):
        single = FakeScorer(tokenizer).score([row.ids], [row.scored], lambda *_: None)[0]
        assert value == pytest.approx(np.sqrt(-single).mean(), rel=1e-6)
    assert scores.estimate(gsm8k, scorer=Wrong(tokenizer), el2n=True, **given)["tokens"] == scorer.tokens
    for there, now, options in ((run, "None now", {}), (plain, "True now", {"el2n": True})):
        with pytest.raises(MismatchError, match=f"el2n: (True|None) there, {now}"):
            p3select.score(gsm8k, there, scorer=Wrong(tokenizer), **given, **options)
    with pytest.raises(InputError, match="p3 alone: leave el2n out"):
        p3select.score(gsm8k, run, scorer=Wrong(tokenizer), epoch=2, refresh="50%", el2n=True, **given)


def test_a_row_without_a_score_has_no_el2n(tmp_path, tokenizer):
    pl.DataFrame({"prompt": ["a", "b"], "completion": ["", "fine"]}).write_parquet(tmp_path / "rows.parquet")
    run = p3select.Run(tmp_path / "run")
    p3select.score(tmp_path / "rows.parquet", run, scorer=Wrong(tokenizer), el2n=True, ifd=True)
    found = scores.read(run, 1).column("el2n").to_pylist()
    assert found[0] is None
    assert 0 < found[1] < 1.5


def test_el2n_is_taken_over_where_it_is_known(tmp_path, gsm8k, tokenizer):
    run, given = p3select.Run(tmp_path / "run"), {"shard_rows": 25}
    p3select.score(gsm8k, run, scorer=FakeScorer(tokenizer), limit=40, **given)
    # Rows that were scored without it are scored again; then also with a second pass, and without either, not any more.
    for epoch, limit, options, passes, halves in (
        (2, 30, {"el2n": True}, 30, 0),
        (3, 40, {"el2n": True}, 10, 0),
        (4, 40, {"el2n": True, "ifd": True}, 40, 40),
        (5, 40, {"el2n": True}, 0, 0),
        (6, 40, {"ifd": True}, 0, 0),
        (7, 40, {}, 0, 0),
    ):
        scorer = Wrong(tokenizer)
        estimate = scores.estimate(
            gsm8k, scorer=Wrong(tokenizer), run=run, epoch=epoch, limit=limit, **given, **options
        )
        summary = p3select.score(gsm8k, run, scorer=scorer, epoch=epoch, limit=limit, **given, **options)
        assert (scorer.rows, summary["reused_first_pass"]) == (passes, halves), epoch
        assert (estimate["tokens"], estimate["scored_tokens"]) == (scorer.tokens, scorer.scored)
        direct = p3select.Run(tmp_path / f"direct-{epoch}")
        p3select.score(gsm8k, direct, scorer=Wrong(tokenizer), limit=limit, **given, **options)
        assert scores.read(run, epoch).equals(scores.read(direct, 1))
    # Of another run folder too, and what could not be is said.
    scorer = Wrong(tokenizer)
    summary = p3select.score(gsm8k, tmp_path / "a", scorer=scorer, limit=40, reuse=run, el2n=True)
    assert (scorer.rows, summary["reused"], summary["notes"]) == (0, 40, [])
    old = tmp_path / "old"
    p3select.score(gsm8k, old, scorer=FakeScorer(tokenizer), limit=10)
    summary = p3select.score(gsm8k, tmp_path / "b", scorer=Wrong(tokenizer), limit=10, reuse=old, el2n=True)
    assert summary["notes"] == [f"nothing of {old} was taken over: its scores differ in el2n"]


def test_with_el2n_a_killed_scoring_goes_on_to_the_same_bytes(tmp_path, gsm8k, tokenizer):
    whole, broken = p3select.Run(tmp_path / "whole"), p3select.Run(tmp_path / "broken")
    given = {"shard_rows": 32, "el2n": True, "ifd": True}
    p3select.score(gsm8k, whole, scorer=Wrong(tokenizer), limit=100, **given)
    p3select.score(gsm8k, broken, scorer=Wrong(tokenizer), limit=40, **given)
    with pytest.raises(RuntimeError, match="went away"):
        p3select.score(gsm8k, broken, scorer=Wrong(tokenizer, fail_after=1), limit=100, **given)
    # The second shard was cut short at 8 rows, which were not scored again.
    scorer = Wrong(tokenizer)
    assert p3select.score(gsm8k, broken, scorer=scorer, limit=100, **given)["reused"] == 64
    assert scorer.rows == 2 * 36
    assert files(whole.path) == files(broken.path)


def test_a_scorer_without_errors_is_refused_before_any_work(tmp_path, gsm8k, tokenizer):
    for scorer, model, name in (
        (FakeScorer(tokenizer), None, "FakeScorer"),
        ("server", "no-model", "server"),
        ("tests.fakes:Unlucky", "no-model", "tests.fakes:Unlucky"),
    ):
        for call in (partial(p3select.score, run=tmp_path / "run"), scores.estimate):
            with pytest.raises(
                InputError, match=f"scorer '{name}' gives no el2n, .*: score with --scorer transformers"
            ):
                call(gsm8k, model=model, scorer=scorer, el2n=True)
    assert not (tmp_path / "run").exists()


def test_el2n_is_what_select_validate_and_report_go_by(tmp_path, gsm8k, tokenizer):
    run, given = p3select.Run(tmp_path / "run"), {"epoch": 1, "epochs": 1, "budget": 20}
    p3select.score(gsm8k, run, scorer=FakeScorer(tokenizer), limit=60)
    with pytest.raises(InputError, match="scored without --el2n"):
        p3select.select(run, selector="topk", difficulty="el2n", **given)
    with pytest.raises(InputError, match="scored without --el2n"):
        p3select.validate(run, against="level", difficulty=["el2n"])
    p3select.score(gsm8k, run, scorer=Wrong(tokenizer), limit=60, el2n=True, overwrite=True)
    values = scores.read(run, 1).column("el2n").to_numpy()
    lam = np.percentile(values, 80)
    for quality, order in (("harder", np.argsort(-values)), ("easier", np.argsort(values))):
        chosen = p3select.select(
            run, selector="topk", difficulty="el2n", pace="constant:80", quality=quality, overwrite=True, **given
        )
        assert chosen.rows.tolist() == [row for row in order if values[row] <= lam][:20]
        assert chosen.metadata["lam"] == lam
    found = p3select.validate(run, against="level", difficulty=["p3", "el2n"], resamples=20)
    (one,) = (one for one in found["agreement"] if (one["group"], one["measure"]) == (None, "el2n"))
    level = pl.read_parquet(gsm8k)["level"][:60].to_numpy()
    assert one["spearman"][0] == pytest.approx(stats.spearmanr(values, level).statistic)
    p3select.report(run, out=tmp_path / "report.html")
    assert "from 0, certain, to √2" in (tmp_path / "report.html").read_text()


def rows_of(path, count):
    return pl.read_parquet(path)[:count].to_dicts()


def test_the_budget_is_said_before_the_work(tmp_path, gsm8k, tokenizer, capsys):
    class Loud(FakeScorer):
        def score(self, *arguments):
            sys.stderr.write("now\n")
            return super().score(*arguments)

    summary = p3select.score(gsm8k, tmp_path, scorer=Loud(tokenizer), limit=20, show_progress=True)
    said, now = capsys.readouterr().err.splitlines()
    table = scores.estimate(gsm8k, scorer=FakeScorer(tokenizer), limit=20)
    tokens, scored = table["tokens"], summary["scored_tokens"]
    assert said == f"scoring with fake, float32, cpu: {tokens:,} tokens, {scored:,} of them scored"
    assert now == "now"


def test_auto_is_vllm_where_it_and_a_gpu_are_found(monkeypatch):
    import torch

    from p3select import scorers

    for gpu, library, model, chosen in (
        (True, True, "folder", "vllm"),
        (True, True, "file.gguf", "transformers"),
        (True, False, "folder", "transformers"),
        (False, True, "folder", "transformers"),
    ):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        monkeypatch.setattr(scorers, "find_spec", lambda _, library=library: library or None)
        assert scorers.choose("auto", model) == chosen
        assert scorers.choose("server", model) == "server"
        # vLLM has not the probabilities of all tokens.
        assert scorers.choose("auto", model, errors=True) == "transformers"


@pytest.mark.parametrize("ifd", [False, True])
def test_a_row_that_a_scorer_refuses_is_named_by_its_number_in_the_dataset(tmp_path, gsm8k, tokenizer, ifd):
    class Refuses(FakeScorer):
        def score(self, ids, scored, advance):
            # The last one: with ifd it is a row's second pass.
            raise RowError(len(ids) - 1, "it is not finite")

    rows = pl.read_parquet(gsm8k)[:20].with_columns(
        completion=pl.when(pl.int_range(20).is_in([9, 13, 19])).then(pl.lit("")).otherwise("completion")
    )
    rows.write_parquet(tmp_path / "rows.parquet")
    wrong = "without its prompt: it is not finite" if ifd else "it is not finite"
    with pytest.raises(InputError, match=f"row 18 of the dataset: {wrong}"):
        p3select.score(tmp_path / "rows.parquet", tmp_path / "run", scorer=Refuses(tokenizer), ifd=ifd)


def test_options_go_to_the_scorer_by_name(smollm2, gsm8k, tmp_path):
    from p3select import scorers

    made = scorers.make("tests.fakes:Unlucky", smollm2, options={"delay": "0.5", "deadly": "7"})
    assert (made.delay, made.deadly, made.once) == (0.5, 7, None)
    for options, message in (
        (
            {"speed": "1"},
            "scorer 'tests.fakes:Unlucky' has no option 'speed'; it has deadly, delay, fault, once, refused",
        ),
        ({"deadly": "few"}, "option deadly='few': not an int"),
        ({"delay": "long"}, "option delay='long': not a float"),
    ):
        with pytest.raises(InputError, match=message):
            p3select.score(gsm8k, tmp_path, smollm2, scorer="tests.fakes:Unlucky", options=options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": "fake-2"}, "model: fake-1 there, fake-2 now"),
        ({"actions": "whole"}, "actions: line there, whole now"),
        ({"max_length": 100}, "max_length: None there, 100 now"),
        ({"truncate": "skip"}, "truncate: keep-start there, skip now"),
        ({"template": "{{ messages }}"}, "template: "),
    ],
)
def test_what_changed_is_named(tmp_path, gsm8k, tokenizer, change, named, monkeypatch):
    def score(model="fake-1", template=None, **options):
        if template is not None:
            monkeypatch.setattr(tokenizer, "chat_template", template)
        p3select.score(gsm8k, tmp_path, scorer=FakeScorer(tokenizer, model=model), limit=8, **options)

    score()
    before = files(tmp_path)
    with pytest.raises(MismatchError, match=named):
        score(**change)
    assert files(tmp_path) == before
    score(**change, overwrite=True)
    assert files(tmp_path) != before


def test_other_data_is_refused(tmp_path, gsm8k, tokenizer):
    p3select.score(gsm8k, tmp_path / "run", scorer=FakeScorer(tokenizer), limit=8)
    other = tmp_path / "other.parquet"
    pl.read_parquet(gsm8k).with_columns(pl.col("completion").str.replace("#### ", "#### = ")).write_parquet(other)
    with pytest.raises(MismatchError, match=r"belongs to other data: 200 rows of .*gsm8k\.parquet"):
        p3select.score(other, tmp_path / "run", scorer=FakeScorer(tokenizer), limit=8)


def test_paper_defect_10_rows_that_cannot_be_scored_have_a_status_and_no_score(tmp_path, tokenizer):
    data = tmp_path / "rows.parquet"
    long = " ".join(["word"] * 300)
    pl.DataFrame(
        {
            "prompt": ["a", "b", long, "d", "e", None],
            "completion": ["fine\nrow", "", "x", long, None, "no prompt"],
        }
    ).write_parquet(data)
    summary = p3select.score(data, tmp_path / "run", scorer=FakeScorer(tokenizer), max_length=64)
    table = scores.read(p3select.Run(tmp_path / "run"), 1).to_pylist()
    assert [row["status"] for row in table][:5] == ["ok", "empty", "too_long", "truncated", "empty"]
    assert table[5]["status"].startswith("error: ")
    for row in table:
        scored = row["status"] in ("ok", "truncated")
        assert (row["difficulty"] is not None) == scored
        assert (row["logprob"] is not None) == scored
        assert (row["action_logprobs"] is not None) == scored
    assert summary["status"]["ok"] == 1
    assert summary["status"]["truncated"] == 1


def test_bad_options_are_refused_before_a_model_is_loaded(tmp_path, gsm8k, tokenizer):
    for options, message in (
        ({"actions": "paragraph"}, "paragraph"),
        ({"actions": "re:("}, "re:"),
        ({"limit": 0}, "limit 0"),
        ({"max_length": 1}, "max_length 1"),
        ({"epoch": 0}, "epoch 0"),
        ({"truncate": "end"}, "end"),
        ({"seed": -1}, "seed -1: a whole number from 0"),
        ({"seed": -1, "refresh": 0.25, "epoch": 2}, "seed -1"),
    ):
        with pytest.raises(InputError, match=message):
            p3select.score(gsm8k, tmp_path, scorer=FakeScorer(tokenizer), **options)
    with pytest.raises(InputError, match="seed -1"):
        scores.estimate(gsm8k, scorer=FakeScorer(tokenizer), seed=-1)
    with pytest.raises(InputError, match="max_length 500: the model takes 100"):
        p3select.score(gsm8k, tmp_path, scorer=FakeScorer(tokenizer, max_length=100), max_length=500)
    with pytest.raises(InputError, match="no model"):
        p3select.score(gsm8k, tmp_path)
    with pytest.raises(InputError, match="no scorer 'none'"):
        p3select.score(gsm8k, tmp_path, "model", scorer="none")


def test_a_damaged_shard_is_named(tmp_path, gsm8k, tokenizer):
    run = p3select.Run(tmp_path)
    p3select.score(gsm8k, run, scorer=FakeScorer(tokenizer), limit=8)
    shard = run.scores(1) / "part-000000000.parquet"
    shard.write_bytes(shard.read_bytes()[:100])
    for epoch in (1, 2):  # the other one looks for rows to take over
        with pytest.raises(InputError, match=r"epoch-001/part-000000000\.parquet: damaged"):
            p3select.score(gsm8k, run, scorer=FakeScorer(tokenizer), epoch=epoch, limit=8)


def test_estimate_writes_nothing(tmp_path, gsm8k, tokenizer):
    found = scores.estimate(gsm8k, scorer=FakeScorer(tokenizer), limit=100)
    direct = p3select.score(gsm8k, tmp_path / "run", scorer=FakeScorer(tokenizer), limit=100)
    assert found["rows"] == 100
    assert found["scored_tokens"] == direct["scored_tokens"]
    assert found["status"] == direct["status"]
    assert found["seconds"] > 0
    assert found["memory_bytes"] > 10**7
    assert list(tmp_path.iterdir()) == [tmp_path / "run"]


KILLED = """
import sys, time
from transformers import AutoTokenizer
import p3select
from tests.fakes import FakeScorer

class Slow(FakeScorer):
    def score(self, *arguments):
        time.sleep(0.2)
        return super().score(*arguments)

p3select.score(sys.argv[1], sys.argv[2], scorer=Slow(AutoTokenizer.from_pretrained(sys.argv[3])), shard_rows=10)
"""


@pytest.mark.slow
def test_sigkill_loses_only_the_shard_in_hand(tmp_path, gsm8k, tokenizer, smollm2):
    whole, killed = p3select.Run(tmp_path / "whole"), p3select.Run(tmp_path / "killed")
    p3select.score(gsm8k, whole, scorer=FakeScorer(tokenizer), shard_rows=10)
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(gsm8k), str(killed.path), str(smollm2)]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.getcwd()})
    deadline = time.monotonic() + 60
    while len(list(killed.path.glob("scores/*/part-*.parquet"))) < 3:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(list(killed.path.glob("scores/*/part-*.parquet")))
    assert 3 <= done < 20
    again = FakeScorer(tokenizer)
    summary = p3select.score(gsm8k, killed, scorer=again, shard_rows=10)
    assert summary["reused"] == 10 * done
    assert again.calls == 20 - done
    # A torn temporary file, if the kill left one, is hidden and is not a shard.
    assert {name: data for name, data in files(killed.path).items() if not name.endswith(".tmp")} == files(whole.path)


def test_a_folder_that_is_being_replaced_leaves_nothing_to_be_taken_for_the_new_weights(tmp_path, gsm8k, tokenizer):
    run = p3select.Run(tmp_path / "run")
    p3select.score(gsm8k, run, scorer=FakeScorer(tokenizer, model="old"), shard_rows=25)
    direct = p3select.Run(tmp_path / "direct")
    p3select.score(gsm8k, direct, scorer=FakeScorer(tokenizer, model="new"), shard_rows=25)
    # What a kill in the middle of a removal, or a manifest that was removed by hand, would leave.
    (run.scores(1) / "manifest.json").unlink()
    (run.scores(1) / "part-000000000.parquet").unlink()
    scorer = FakeScorer(tokenizer, model="new")
    assert p3select.score(gsm8k, run, scorer=scorer, shard_rows=25)["reused"] == 0
    assert scores.read(run, 1).equals(scores.read(direct, 1))


def test_a_kill_while_shards_are_removed_loses_them_all(tmp_path, gsm8k, tokenizer, monkeypatch):
    run = p3select.Run(tmp_path / "run")
    p3select.score(gsm8k, run, scorer=FakeScorer(tokenizer, model="old"), shard_rows=25)

    def killed(folder, **_):
        (folder / "part-000000000.parquet").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(scores.shards.shutil, "rmtree", lambda folder, **given: given or killed(folder))
        with pytest.raises(KeyboardInterrupt):
            p3select.score(gsm8k, run, scorer=FakeScorer(tokenizer, model="new"), shard_rows=25, overwrite=True)
    assert not run.scores(1).exists()
    summary = p3select.score(gsm8k, run, scorer=FakeScorer(tokenizer, model="new"), shard_rows=25)
    assert (summary["reused"], summary["rows"]) == (0, 200)
    assert [path.name for path in run.scores(1).parent.iterdir()] == ["epoch-001"]


def test_nothing_is_taken_over_under_weights_that_were_not_verified(tmp_path, gsm8k, tokenizer):
    run = p3select.Run(tmp_path / "run")
    for epoch in (1, 2):
        scorer = FakeScorer(tokenizer)
        scorer.provenance["verified"] = False
        summary = p3select.score(gsm8k, run, epoch=epoch, scorer=scorer, limit=30)
        assert (summary["reused"], scorer.rows) == (0, 30)
    scorer = FakeScorer(tokenizer)
    scorer.provenance["verified"] = False
    summary = p3select.score(gsm8k, tmp_path / "other", scorer=scorer, limit=30, reuse=run)
    assert summary["reused"] == 0
    assert any("the scorer's weights are not verified" in note for note in summary["notes"])


def test_what_was_asked_for_and_could_not_be_taken_over_is_said(tmp_path, gsm8k, tokenizer):
    p3select.score(gsm8k, tmp_path / "old", scorer=FakeScorer(tokenizer, model="old"), limit=30)
    summary = p3select.score(gsm8k, tmp_path / "new", scorer=FakeScorer(tokenizer), limit=30, reuse=tmp_path / "old")
    (note,) = summary["notes"]
    assert note.endswith("was taken over: its scores differ in model")


def test_ids_of_another_width_are_the_same_ids(tmp_path, gsm8k, tokenizer):
    rows = pl.read_parquet(gsm8k)[:60]
    rows.write_parquet(tmp_path / "rows.parquet")
    rows.write_ndjson(tmp_path / "rows.jsonl")
    run = p3select.Run(tmp_path / "run")
    p3select.score(tmp_path / "rows.parquet", run, scorer=FakeScorer(tokenizer), shard_rows=20, limit=30)
    p3select.score(tmp_path / "rows.jsonl", run, scorer=FakeScorer(tokenizer), shard_rows=20)
    assert scores.read(run, 1).column("id").to_pylist() == rows["id"].to_list()
    p3select.select(run, epoch=1, epochs=1, budget=10, selector="topk")


def test_numbers_and_texts_may_be_the_same_ids(tmp_path, gsm8k, tokenizer):
    rows = pl.read_parquet(gsm8k)[:60].with_columns(id=pl.int_range(60))
    rows.write_parquet(tmp_path / "rows.parquet")
    rows.with_columns(pl.col("id").cast(pl.String)).write_ndjson(tmp_path / "rows.jsonl")
    run = p3select.Run(tmp_path / "run")
    p3select.score(tmp_path / "rows.parquet", run, scorer=FakeScorer(tokenizer), shard_rows=20, limit=30)
    p3select.score(tmp_path / "rows.jsonl", run, scorer=FakeScorer(tokenizer), shard_rows=20)
    assert scores.read(run, 1).column("id").to_pylist() == list(map(str, range(60)))


def test_a_worker_has_the_gpus_of_its_engine(tmp_path, gsm8k):
    with pytest.raises(InputError, match=r"option tensor_parallel='x': not a whole number"):
        p3select.score(gsm8k, tmp_path, "m", engine="ray", options={"tensor_parallel": "x"})
    assert [scores._parallel(given) for given in (None, {}, {"tensor_parallel": "1"})] == [None] * 3
    assert [scores._parallel({"tensor_parallel": given}) for given in ("2", 4)] == [2, 4]


@pytest.mark.parametrize("ifd", [False, True])
def test_a_dry_run_counts_what_is_left_to_do(ifd, tmp_path, gsm8k, tokenizer):
    run = p3select.Run(tmp_path / "run")
    p3select.score(gsm8k, run, scorer=FakeScorer(tokenizer), limit=60, shard_rows=25)
    for epoch, limit in ((1, 60), (1, 100), (2, 100)):
        if ifd and epoch == 1:
            continue  # refused: scored without
        given = {"epoch": epoch, "limit": limit, "shard_rows": 25, "ifd": ifd}
        found = scores.estimate(gsm8k, scorer=FakeScorer(tokenizer), run=run, **given)
        scorer = Counted(tokenizer)
        summary = p3select.score(gsm8k, run, scorer=scorer, **given)
        assert (found["tokens"], found["scored_tokens"]) == (scorer.tokens, scorer.scored)
        assert found["reused"] == summary["reused"]
        assert summary["reused_first_pass"] == (60 if ifd else 0)
    with pytest.raises(MismatchError, match="model"):
        scores.estimate(gsm8k, scorer=FakeScorer(tokenizer, model="b"), run=run, shard_rows=25, limit=100)


def test_a_dry_run_takes_nothing_over_of_what_it_would_replace(tmp_path, gsm8k, tokenizer):
    p3select.score(gsm8k, tmp_path, scorer=FakeScorer(tokenizer), limit=60, shard_rows=25)
    for other in ({"model": "b"}, {"limit": 20}, {"shard_rows": 20}, {"max_length": 1000}):
        given = {"run": tmp_path, "shard_rows": 25, "limit": 100, "overwrite": True, **other}
        scorer = FakeScorer(tokenizer, model=given.pop("model", "fake-1"))
        assert scores.estimate(gsm8k, scorer=scorer, **given)["reused"] == 0
    with pytest.raises(InputError, match="no run folder"):
        scores.estimate(gsm8k, scorer=FakeScorer(tokenizer), run=tmp_path, reuse=tmp_path / "gone", epoch=2)
