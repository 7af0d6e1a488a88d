"""The report: what it says against the run folder, and what a browser would make of it."""

import itertools
import json
import math
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest

import p3select
from p3select import index, page, scores, tokens, tradeoff
from p3select.errors import InputError, MismatchError
from p3select.page import examples, facts, sections, signatures, tables
from p3select.run import write_json
from tests.fakes import FakeEncoder, FakeScorer

SCRIPT = "<script>alert('run')</script>"
VOID = {"meta", "br", "img", "link", "input", "hr"}


@pytest.fixture(scope="module")
def tokenizer(smollm2):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory, gsm8k):
    """Rows whose every text would do something in a page."""
    path = tmp_path_factory.mktemp("data") / "a<b>&.parquet"
    rows = pl.int_range(pl.len())
    frame = pl.read_parquet(gsm8k)[:120].with_columns(
        id=pl.lit("<i>id") + rows.cast(pl.String),
        prompt=pl.lit(SCRIPT) + pl.col("prompt"),
        completion=pl.col("completion") + pl.lit('\n</style></p><img src=x onerror="alert(1)">&amp;\u202e'),
        source=pl.when(rows % 3 == 0).then(pl.lit('"><svg onload=alert(1)>')).otherwise(pl.lit("b & c")),
    )
    frame.write_parquet(path)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory, hostile, tokenizer):
    run = p3select.Run(tmp_path_factory.mktemp("page") / "three")
    p3select.embed(hostile, run, FakeEncoder())
    for epoch in (1, 2, 3):
        p3select.score(hostile, run, epoch=epoch, scorer=FakeScorer(tokenizer, model=f"<b>fake-{epoch}"))
        p3select.select(run, epoch=epoch, epochs=3, budget=20)
    return run


@pytest.fixture(scope="module")
def made(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "report.html"
    return p3select.page.report(run, out=out), out.read_text(encoding="utf-8")


class Page(HTMLParser):
    """Tags, attributes and texts; every tag is closed where it was opened."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts, self.open = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *attr) for attr in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *attr) for attr in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_text_of_the_data_is_shown_and_not_run(made):
    found = Page(made[1])
    assert not {"script", "img", "iframe", "object", "link", "base", "form"} & set(found.tags)
    assert not [one for one in found.attributes if one[1].startswith("on")]
    shown = "".join(found.texts)
    for text in (
        SCRIPT,
        '</style></p><img src=x onerror="alert(1)">&amp;',
        '"><svg onload=alert(1)>',
        "<i>id",
        "<b>fake-3",
        "b & c",
    ):
        assert text in shown


def test_the_page_loads_nothing(made):
    found = Page(made[1])
    for tag, name, value in found.attributes:
        if name in ("href", "src", "xlink:href", "action", "data", "poster", "srcset"):
            assert value.startswith("#"), (tag, name, value)
    style = re.search(r"<style>(.*?)</style>", made[1], re.S)[1]
    assert "url(" not in style
    assert "@import" not in style
    policy = next(
        value for tag, name, value in found.attributes if (tag, name) == ("meta", "content") and "default" in value
    )
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    ids = [value for _, name, value in found.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {value[1:] for _, name, value in found.attributes if name == "href"} <= set(ids)


def test_every_figure_has_a_name_and_the_numbers_behind_it(made):
    figures = re.findall(r"<figure>.*?</figure>", made[1], re.S)
    assert len(figures) > 12
    for figure in figures:
        (drawing,) = re.findall(r"<svg.*?</svg>", figure, re.S)
        assert ElementTree.fromstring(drawing).get("aria-label")
        assert "NaN" not in drawing
        assert "nan" not in drawing
        assert re.search(r"<details><summary>Numbers</summary>.*<tbody><tr>", figure, re.S)


def test_the_same_run_gives_the_same_bytes(run, made, tmp_path):
    page.report(run.path, out=tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == made[1]
    assert made[0]["bytes"] == len(made[1].encode()) < 1_000_000


def test_the_numbers_are_those_of_the_run_folder(run, made):
    tables = [scores.read(run, epoch).column("difficulty").to_numpy() for epoch in (1, 2, 3)]
    chosen = [index.read(run.index(epoch)) for epoch in (1, 2, 3)]
    for values, selection in zip(tables, chosen, strict=True):
        line = (f"{values.mean():.4f}", f"{values[selection.rows].mean():.4f}", f"{selection.metadata['lam']:.4f}")
        assert "".join(f'<td class="num">{value}</td>' for value in line) in made[1]
        assert f"120 rows, {selection.metadata['eligible']} eligible, 20 selected by dpp" in made[1]
    sets = [set(selection.rows.tolist()) for selection in chosen]
    for a, b in itertools.combinations(sets, 2):
        assert f"<td>{len(a & b) / len(a | b):.1%}</td>" in made[1]
    easier = (tables[1] < tables[0]).mean()
    assert f"{easier:.0%} of 120 rows became easier" in made[1]
    hardest = int(np.argmax(tables[2]))
    assert made[1].index(f"<b>row {hardest}</b>") > made[1].index(">Hardest<")


def test_a_bin_ends_at_the_threshold(run):
    values = scores.read(run, 1).column("difficulty").to_numpy()
    selection = index.read(run.index(1))
    edges = np.unique([*sections._edges(values), selection.metadata["lam"]])
    counts = sections._counts(values, edges)
    assert counts.sum() == len(values)
    assert counts[edges[:-1] < selection.metadata["lam"]].sum() == selection.metadata["eligible"]


def test_one_epoch_says_what_cannot_be_told(tmp_path, hostile, tokenizer):
    run = p3select.Run(tmp_path / "one")
    p3select.score(hostile, run, scorer=FakeScorer(tokenizer))
    found = page.report(run, out=tmp_path / "one.html")
    assert [state for name, state in found.items() if state in ("seen", "not seen", "cannot be told")] == [
        "cannot be told"
    ] * 4
    text = "".join(Page((tmp_path / "one.html").read_text(encoding="utf-8")).texts)
    assert "p3select select" in text
    assert "p3select embed" in text
    assert "It needs the scores of two epochs." in text


def test_an_epoch_half_scored_is_left_out_and_said(run, tmp_path, hostile, tokenizer):
    other = p3select.Run(tmp_path / "half")
    p3select.score(hostile, other, scorer=FakeScorer(tokenizer), shard_rows=50)
    p3select.score(hostile, other, epoch=2, scorer=FakeScorer(tokenizer, model="two"), shard_rows=50)
    (other.scores(2) / "part-000000050.parquet").unlink()
    found = page.report(other, out=tmp_path / "half.html")
    assert found["epochs"] == 1
    assert "epoch 2 is left out" in found["notes"][0]
    assert "1 of 3 shards are missing" in (tmp_path / "half.html").read_text(encoding="utf-8")


def test_an_index_may_be_of_an_earlier_epoch_s_scores(tmp_path, hostile, tokenizer):
    run = p3select.Run(tmp_path / "static")
    p3select.score(hostile, run, scorer=FakeScorer(tokenizer))
    p3select.select(run, epoch=1, epochs=2, budget=10, selector="topk")
    p3select.select(run, epoch=2, epochs=2, budget=10, selector="topk", scores_of=1)
    found = page.report(run, out=tmp_path / "static.html")
    assert found["epochs"] == 2
    assert found["notes"] == ["epoch 2 was selected by the scores of epoch 1"]
    assert found["Difficulty does not fall in spite of training"] == "cannot be told"


def test_an_index_of_other_scores_is_said(tmp_path, hostile, tokenizer):
    other = p3select.Run(tmp_path / "stale")
    p3select.score(hostile, other, scorer=FakeScorer(tokenizer))
    p3select.select(other, epoch=1, epochs=2, budget=10, selector="topk")
    p3select.score(hostile, other, scorer=FakeScorer(tokenizer, model="other"), overwrite=True)
    assert "other scores than are there now" in page.report(other, out=tmp_path / "stale.html")["notes"][0]


def test_difficulty_is_of_the_kind_that_was_selected_by(tmp_path, hostile, tokenizer):
    other = p3select.Run(tmp_path / "nll")
    p3select.score(hostile, other, scorer=FakeScorer(tokenizer))
    chosen = p3select.select(other, epoch=1, epochs=2, budget=10, selector="topk", difficulty="nll")
    epochs, kind, _ = facts.epochs(other, 120)
    assert kind == "nll"
    assert epochs[0].difficulty[chosen.rows].tolist() == chosen.difficulty.tolist()
    assert epochs[0].nll[chosen.rows] == pytest.approx(chosen.difficulty, rel=1e-6)
    assert epochs[0].eligible.sum() == chosen.metadata["eligible"]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [({"columns": ["absent"]}, "no column 'absent'"), ({"overhead": 1.5}, "overhead 1.5"), ({"out": "."}, "a folder")],
)
def test_what_cannot_be_done_is_refused(run, tmp_path, arguments, match):
    with pytest.raises(InputError, match=match):
        page.report(run, **{"out": tmp_path / "no.html", **arguments})
    assert not (tmp_path / "no.html").exists()


def test_without_scores_there_is_no_report(tmp_path, hostile):
    run = p3select.Run(tmp_path / "bare")
    p3select.embed(hostile, run, FakeEncoder())
    with pytest.raises(InputError, match="p3select score"):
        page.report(run, out=tmp_path / "no.html")


# --- signs


def epoch(number, difficulty, picked=(), nll=None, settings=None, lam=1.0, source=None, fingerprint=None):
    difficulty = np.asarray(difficulty, float)
    rows = np.asarray(picked, np.int64)
    eligible = int((difficulty <= lam).sum())
    meta = {"lam": lam, "eligible": eligible, "difficulty": "p3", "embeddings_fingerprint": fingerprint}
    none = np.zeros(len(rows))
    return facts.Epoch(
        number=number,
        source=source or number,
        difficulty=difficulty,
        nll=difficulty if nll is None else np.asarray(nll, float),
        tokens=np.full(len(difficulty), 10),
        status={},
        settings={"model": number} if settings is None else settings,
        policy=None,
        selection=index.Selection(rows, None, none, none, none, meta, {}) if len(rows) else None,
        lam=lam if len(rows) else None,
    )


def sign(number, *epochs, costs=None, overhead=0.5):
    return signatures.all_of(epochs, facts.steps(epochs), costs or {}, overhead)[number]


def test_difficulty_that_does_not_fall():
    start = np.linspace(0.2, 0.8, 10)
    assert sign(0, epoch(1, start, [0]), epoch(2, start * 0.995)).state == "seen"
    assert sign(0, epoch(1, start, [0]), epoch(2, start * 0.98)).state == "not seen"
    late = sign(0, epoch(1, start, [0]), epoch(2, start * 0.5, [1]), epoch(3, start * 0.5))
    assert late.state == "seen"
    assert "0.5000 → 0.2500 (−50.0%); rows trained on −50.0%; others −50.0%." in late.found[0]
    same = sign(0, epoch(1, start, [0], settings={}), epoch(2, start, settings={}))
    assert same.state == "cannot be told"
    assert "same weights" in same.found[0]
    cut = sign(0, epoch(1, start, settings={"actions": "line"}), epoch(2, start, settings={"actions": "token"}))
    assert cut.state == "cannot be told"
    assert "another actions" in cut.found[0]


def test_the_same_rows_again():
    start = np.linspace(0.2, 0.8, 100)
    again = sign(1, epoch(1, start, range(20)), epoch(2, start, range(2, 22)))
    assert (again.name, again.state) == ("The same rows again and again", "seen")
    assert "90% of its rows were those of epoch 1; a uniform draw would have 20%, the line is at 60%." in again.found[0]
    assert sign(1, epoch(1, start, range(20)), epoch(2, start, range(15, 35))).state == "not seen"
    three = [epoch(number, start, range(number, 20 + number)) for number in (1, 2, 3)]
    assert "18 rows were picked in each of 3 epochs." in sign(1, *three).found


def test_losses_that_part():
    start = np.full(100, 1.0)
    for others, state in ((1.2, "seen"), (1.005, "not seen"), (0.9, "not seen")):
        after = np.where(np.arange(100) < 20, 0.5, others)
        found = sign(2, epoch(1, start, range(20), nll=start), epoch(2, start, nll=after))
        assert found.state == state
        assert f"rows trained on −50.0%, of the 80 never picked {signatures.signed(others - 1)}." in found.found[0]


def test_overhead_is_in_time_where_it_is_recorded_else_in_tokens():
    one = epoch(1, np.full(100, 0.5), range(50))
    found = sign(3, one)
    assert found.state == "not seen"
    assert "40% is choosing" in found.found[1]  # 1000 / 3 scored, 500 trained on
    assert sign(3, one, overhead=0.3).state == "seen"
    found = sign(3, one, costs=recorded(score={1: 60}, embed={0: 10}, select={1: 5}, train={1: 25}))
    assert found.state == "seen"
    assert found.found[0] == "In time, epoch 1: 75 s to choose, 25 s to train: 75% is choosing."


def recorded(**seconds):
    return {name: {number: {"seconds": value} for number, value in by.items()} for name, by in seconds.items()}


def test_time_is_that_of_epochs_of_which_all_is_recorded():
    start = np.full(100, 0.5)
    four = [epoch(number, start, range(50), fingerprint="vectors") for number in (1, 2, 3, 4)] + [epoch(5, start)]
    some = {"score": {2: 60, 3: 50, 4: 40, 5: 40}, "select": {1: 1, 2: 2, 3: 3, 4: 4}, "train": {1: 90, 2: 80, 3: 70}}
    found = sign(3, *four, costs=recorded(**some))
    assert found.found[0] == (
        "In time, epochs 2, 3: 115 s to choose, 150 s to train: 43% is choosing. Left out: epoch 1 (time to score not "
        "recorded); epoch 4 (time to train not recorded); epoch 5 (no index). The time to embed is not recorded: "
        "choosing took so much longer."
    )
    assert found.state == "not seen"
    found = sign(3, *four, costs=recorded(**some, embed={0: 100}))
    assert "165 s to choose, 150 s to train: 52% is choosing." in found.found[0]
    assert found.found[0].endswith("Of embedding, once for the run, 2 of 4 parts count.")
    assert found.state == "seen"
    apart = sign(3, *four[:2], costs=recorded(score={1: 900}, select={1: 1, 2: 1}, train={2: 1}), overhead=0.45)
    assert apart.found[0] == (
        "No epoch has all its times: epoch 1 (time to train not recorded); epoch 2 (time to score not recorded)."
    )
    assert (apart.state, "40% is choosing" in apart.found[1]) == ("not seen", True)  # by tokens
    static = [epoch(1, start, range(50)), epoch(2, start, range(50), source=1)]
    found = sign(3, *static, costs=recorded(score={1: 60}, select={1: 5, 2: 5}, train={1: 70, 2: 70}))
    assert found.found[0] == "In time, epochs 1, 2: 70 s to choose, 140 s to train: 33% is choosing."


def test_the_section_on_cost_has_the_same_times():
    start = np.full(100, 0.5)
    two = [epoch(1, start, range(50)), epoch(2, start, range(50))]
    costs = recorded(score={2: 60}, embed={0: 40}, select={1: 5, 2: 5}, train={1: 90, 2: 80})
    text = sections.cost(two, costs)
    said = "".join(Page(text).texts)
    assert (
        "Time is compared over epoch 2. Left out: epoch 1 (time to score not recorded). Of embedding, once for" in said
    )
    assert "It took 40.0 s." in said
    assert "165 s, of epoch 2" in said
    assert "Seconds of each step: score 36%, embed 12%, select 3%, train 48%." in text
    said = "".join(Page(sections.cost(two, {name: costs[name] for name in ("score", "select")})).texts)
    assert (
        "No epoch has all its times: epoch 1 (time to score and to train not recorded); epoch 2 (time to train" in said
    )
    assert "70 s, all that is recorded, not of the same epochs" in said
    assert "share" not in said


def test_recorded_times_are_shown(run, tmp_path, hostile, tokenizer):
    other = p3select.Run(tmp_path / "timed")
    p3select.score(hostile, other, scorer=FakeScorer(tokenizer))
    p3select.select(other, epoch=1, epochs=2, budget=10, selector="topk")
    for name, seconds in (("score-001", 30.0), ("embed-000", 4.0), ("select-001", 6.0)):
        write_json(other.path / "costs" / f"{name}.json", {"seconds": seconds})
    write_json(other.path / "loop" / "epoch-001" / "done.json", {"command": "train", "seconds": 60.0})
    found = page.report(other, out=tmp_path / "timed.html")
    assert found["Choosing costs too much beside training"] == "not seen"
    text = (tmp_path / "timed.html").read_text(encoding="utf-8")
    assert "40 s to choose, 60 s to train: 40% is choosing" in text
    assert "Time is compared over epoch 1. Embedding is done once for a run. It took 4.0 s." in text


def test_what_less_would_have_given(run, made, tmp_path, hostile, tokenizer):
    text, mean = made[1], {}
    results = tradeoff.tradeoff(run)["results"]
    for one in results:
        if one["draws"]:
            mean.setdefault((one["whole"], one["share"]), []).append(one["spearman"])
    assert [len(mean[whole, 0.5]) for whole in (1, 2)] == [2, 1]
    assert f"50%: {np.mean(mean[1, 0.5]):.3f}, {mean[2, 0.5][0]:.3f}" in text
    assert "Jaccard index with those of the full re-score" in text
    few = [one for one in results if not one["draws"]]
    assert {(one["share"], one["epoch"]) for one in few} == {(0.1, 2), (0.1, 3), (0.25, 2), (0.25, 3)}
    for one in few[:2]:
        told = f"{one['share']:.0%} of the tokens is left out of epochs 2, 3 and what follows from it"
        assert f"{told}: {one['failed']}." in text
    part = p3select.Run(tmp_path / "part")
    for epoch, share in ((1, None), (2, 0.7)):
        p3select.score(hostile, part, epoch=epoch, scorer=FakeScorer(tokenizer, model=f"fake-{epoch}"), refresh=share)
        p3select.select(part, epoch=epoch, epochs=3, budget=5, selector="topk")
    page.report(part, out=tmp_path / "part.html")
    text = (tmp_path / "part.html").read_text(encoding="utf-8")
    assert "<h3>Scored in part</h3>" in text
    about = json.loads((part.scores(2) / "refresh.json").read_text())
    assert f"{about['held_back_rmse']:.4f}" in text
    assert "It cannot be told: epoch 2 was itself predicted in part" in text
    # Rows that are named are measured ones.
    measured = np.flatnonzero((pl.read_parquet(part.scores(2) / "*.parquet")["status"] == "ok").to_numpy())
    lists = re.findall(r"<h3>Became (?:easier|harder) most, epoch 1 → 2</h3>(.*?)</div>", text, re.DOTALL)
    assert len(lists) == 2
    named = {int(row) for table in lists for row in re.findall(r"<tr>\s*<t[dh][^>]*>(\d+)</t", table)}
    assert named
    assert named <= set(measured.tolist())


def test_what_is_not_known_is_a_dash_and_minus_is_one_for_people(made, tmp_path, hostile, tokenizer):
    cells = re.findall(r"<td.*?>(.*?)</td>", tables.html(("a", "b", "c", "d", "e"), [("x", math.nan, -1.5, -1234, 2)]))
    assert cells == ["–", "−1.5000", "−1,234", "2"]
    # The table of what less would have given has epochs that were scored whole.
    run = p3select.Run(tmp_path / "run")
    for epoch in (1, 2):
        p3select.score(hostile, run, epoch=epoch, scorer=FakeScorer(tokenizer, model=f"fake-{epoch}"))
    p3select.select(run, epoch=1, epochs=3, budget=20, selector="topk")
    page.report(run, out=tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert re.search(r"epoch 1: 0\.\d{3}, 0\.\d{3}, 0\.\d{3}; epoch 2: 0\.\d{3}, –, –\"", text)
    for whole in (made[1], text):
        assert not re.search(r"\bnan\b", whole)
        assert '<td class="num">–</td>' in whole
        assert not re.search(r">-\d", whole)


def test_a_long_path_is_shown_by_its_end():
    assert sections._end("org/model") == "org/model"
    assert sections._end("/a/b/loop/epoch-001/weights") == "…/loop/epoch-001/weights"


# --- rows


@pytest.mark.parametrize("rule", ["line", "sentence", "whole", "re:,"])
def test_the_text_of_an_action_is_that_of_its_tokens(tokenizer, gsm8k, rule):
    lines = pl.read_parquet(gsm8k)[:80].select("prompt", "completion").to_dicts()
    for line, row in zip(lines, tokens.encode(lines, tokenizer, actions=rule), strict=True):
        counts = np.bincount(row.actions)
        found = examples.pieces([line["completion"]], rule, (-np.ones(len(counts)), counts, row.status))
        assert isinstance(found, list)
        ids = row.ids[row.scored]
        for number, text in enumerate(found):
            own = tokenizer.decode(ids[row.actions == number], clean_up_tokenization_spaces=False)
            assert own.replace(tokenizer.eos_token, "").strip() == text.strip()
        assert "".join(found) == line["completion"]


def test_what_cannot_be_shaded_is_not_and_says_why():
    def why(turns, rule, counts, status="ok"):
        return examples.pieces(turns, rule, (-np.ones(len(counts)), np.array(counts), status))

    assert why(["a\nb"], "line", [2, 2]) == ["a\n", "b"]
    assert "scored as 3 actions, and its text has 2" in why(["a\nb"], "line", [1, 1, 1])
    assert "cut at the maximal length" in why(["a\nb"], "line", [2], "truncated")
    assert "2 bytes" in why(["a\nb"], "line", [5, 1])
    assert "tokens" in why(["a b"], "token", [1, 1])
    assert "several messages" in why(None, "line", [1])
    assert why(["a\nb", "c"], "line", [2, 9, 9]) == ["a\n", "b", "c"]


@pytest.mark.parametrize("rule", ["token", "line"])
def test_with_the_tokenizer_the_text_is_that_of_the_tokens(tokenizer, rule):
    line = {"prompt": "2+2?", "completion": "Fo\u00fcr \U0001f642 ok.\nYes."}
    (row,) = tokens.encode([line], tokenizer, actions=rule)
    counts = np.bincount(row.actions)
    settings = {"actions": rule, "max_length": None, "truncate": "keep-start"}
    found = examples.decoded(line, tokenizer, settings, (-np.ones(len(counts)), counts, "ok"))
    assert len(found) == len(counts)
    assert "".join(found) == line["completion"] + tokenizer.eos_token
    if rule == "token":
        assert found[-1] == tokenizer.eos_token
    else:
        assert found == ["Fo\u00fcr \U0001f642 ok.\n", "Yes." + tokenizer.eos_token]
    assert "not those that were scored" in examples.decoded(line, tokenizer, settings, (np.zeros(1), np.ones(1), "ok"))


def test_scores_by_token_are_shaded_with_the_tokenizer(tmp_path, hostile, tokenizer, smollm2, minilm):
    run = p3select.Run(tmp_path / "tokens")
    p3select.score(hostile, run, scorer=FakeScorer(tokenizer), actions="token")
    page.report(run, out=tmp_path / "without.html")
    assert "Not shaded" in (tmp_path / "without.html").read_text(encoding="utf-8")
    page.report(run, out=tmp_path / "with.html", tokenizer=smollm2)
    text = (tmp_path / "with.html").read_text(encoding="utf-8")
    assert "Not shaded" not in text
    assert text.count('title="action 3:') == 2 * sections.SHOWN
    Page(text)
    with pytest.raises(MismatchError, match="not the tokenizer"):
        page.report(run, out=tmp_path / "with.html", tokenizer=minilm)


def test_a_policy_that_scored_nothing_is_said(tmp_path, tokenizer):
    path = tmp_path / "rows.parquet"
    pl.DataFrame({"prompt": ["a"], "completion": [""]}).write_parquet(path)
    run = p3select.Run(tmp_path / "none")
    p3select.score(path, run, scorer=FakeScorer(tokenizer))
    with pytest.raises(InputError, match="epoch 1: no row has a difficulty"):
        page.report(run, out=tmp_path / "no.html")


def test_conversations_are_shown_turn_by_turn(tmp_path, tokenizer):
    turns = [("user", "2+2?"), ("assistant", "Four.\nYes."), ("user", "<u>3+3?"), ("assistant", "Six.")]
    messages = [{"role": role, "content": content} for role, content in turns]
    path = tmp_path / "chat.jsonl"
    pl.DataFrame({"messages": [messages] * 5}).write_ndjson(path)
    run = p3select.Run(tmp_path / "chat")
    p3select.score(path, run, scorer=FakeScorer(tokenizer))
    page.report(run, out=tmp_path / "chat.html")
    text = (tmp_path / "chat.html").read_text(encoding="utf-8")
    shown = re.findall(r'<i class="h\d" title="action \d+: [\d.]+, \d+ tokens">(.*?)</i>', text, re.S)
    assert shown[:3] == ["Four.\n", "Yes.", "Six."]
    assert "user: &lt;u&gt;3+3?" in text


def test_the_page_is_small_whatever_the_rows(tmp_path, tokenizer):
    long = "word " * 20_000
    path = tmp_path / "long.parquet"
    pl.DataFrame({"prompt": [long, "a"], "completion": [long, "b"]}).write_parquet(path)
    run = p3select.Run(tmp_path / "long")
    p3select.score(path, run, scorer=FakeScorer(tokenizer))
    assert page.report(run, out=tmp_path / "long.html")["bytes"] < 100_000
    assert "further actions are not shown" in (tmp_path / "long.html").read_text(encoding="utf-8")
    assert "more characters" in (tmp_path / "long.html").read_text(encoding="utf-8")


# --- numbers


def test_expected_cells_are_those_of_all_draws():
    sizes = np.array([1, 2, 4])
    cell = np.repeat(np.arange(3), sizes)
    for k in range(1, 8):
        draws = [len(set(cell[list(rows)])) for rows in itertools.combinations(range(7), k)]
        assert facts.expected_cells(sizes, k) == pytest.approx(np.mean(draws))


def test_the_plane_is_that_of_the_covariance():
    x = np.random.default_rng(1).normal(size=(300, 6)) @ np.diag([3, 2, 1, 0.5, 0.1, 0.1])
    mean, axes, shares = facts.plane(x.astype(np.float32))
    values, vectors = np.linalg.eigh(np.cov(x.T))
    assert shares == pytest.approx(values[::-1][:2] / values.sum(), rel=1e-4)
    assert np.abs(axes.T @ vectors[:, ::-1][:, :2]) == pytest.approx(np.eye(2), abs=1e-3)
    assert mean == pytest.approx(x.mean(axis=0), abs=1e-5)
    assert (axes[np.abs(axes).argmax(axis=0), [0, 1]] > 0).all()


def test_groups_of_a_column(tmp_path):
    path = tmp_path / "rows.parquet"
    pl.DataFrame(
        {
            "prompt": ["p"] * 40,
            "completion": ["c"] * 40,
            "source": [None, *("abcdefghijkl"[min(n // 3, 11)] for n in range(39))],
            "level": [None, *map(float, range(39))],
            "subject": ["one"] * 40,
            "nested": [[1]] * 40,
        }
    ).write_parquet(path)
    dataset = p3select.dataset.load(path)
    found = facts.columns(dataset, None)
    assert list(found) == ["source", "level"]  # a column of one value says nothing
    names, group = found["source"]
    assert names[-1] == facts.OTHERS
    assert np.bincount(group).tolist() == [6 if name == "l" else 3 for name in names[:-1]] + [40 - 33]
    names, group = found["level"]
    assert names[-1] == facts.NONE
    assert np.bincount(group)[:5].sum() == 39
    assert np.bincount(group)[:5].min() >= 7
    assert list(facts.columns(dataset, ["subject"])) == ["subject"]
    with pytest.raises(InputError, match="lists and objects"):
        facts.columns(dataset, ["nested"])
