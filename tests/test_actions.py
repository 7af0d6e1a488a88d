"""Cutting text into actions."""

import re

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p3select.actions import spans
from p3select.errors import InputError

RULES = ["line", "sentence", "token", "whole", "re:b+", "re:(?=a)", r"re:\s"]

# Text made of what the rules look at.
MARKS = ["a", "b", "A", " ", "\n", "\r", "\r\n", "\t", ".", "!", "?", "…", "。", '"', ")", "(", "$", "$$", "\\[", "\\]"]
MARKS += [
    "\\(",
    "\\)",
    "\\begin{x}",
    "\\end{x}",
    "```",
    "1",
    "Mr",
    "é",
    "👩‍🚀",
    "日",
    "\u2028",
    "\x0b",
    "\ue001",
    "[asy]",
]
texts = st.lists(st.sampled_from(MARKS), max_size=40).map("".join) | st.text(max_size=60)


def cut(text, rule):
    return [text[start:end] for start, end in spans(text, rule)]


@pytest.mark.parametrize("rule", RULES)
@given(text=texts)
def test_spans_are_contiguous_cover_the_text_and_are_not_empty(rule, text):
    found = spans(text, rule)
    assert found.dtype == np.int64
    assert found.shape == (len(found), 2)
    assert "".join(cut(text, rule)) == text
    assert (found[:, 0] < found[:, 1]).all()
    assert (found[1:, 0] == found[:-1, 1]).all()


@pytest.mark.parametrize("rule", ["line", "sentence"])
@given(text=texts)
def test_no_line_or_sentence_is_blank_unless_the_text_is(rule, text):
    parts = cut(text, rule)
    assert all(part.strip() for part in parts) or len(parts) == 1


@given(text=texts)
def test_lines_against_a_plain_reading(text):
    lines = [line for line in re.split(r"(?<=\n)|(?<=\r)(?!\n)", text) if line]
    expected = []
    for line in lines:
        if expected and (not line.strip() or not expected[-1].strip()):
            expected[-1] += line
        else:
            expected.append(line)
    assert cut(text, "line") == expected


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", []),
        (" \n\n ", [" \n\n "]),
        ("one", ["one"]),
        ("one\ntwo\n", ["one\n", "two\n"]),
        ("one\r\n\r\ntwo\rthree", ["one\r\n\r\n", "two\r", "three"]),
        ("\n\n  one\n \n\t\n  two  \n\n", ["\n\n  one\n \n\t\n", "  two  \n\n"]),
        ("def f(x):\n    if x:\n\n        return 1\n", ["def f(x):\n", "    if x:\n\n", "        return 1\n"]),
        ("a\u2028b\x0bc\x85d\x0ce", ["a\u2028b\x0bc\x85d\x0ce"]),  # no line breaks here
        ("👩‍🚀\ne\u0301\n日本", ["👩‍🚀\n", "e\u0301\n", "日本"]),
    ],
)
def test_lines(text, lines):
    assert cut(text, "line") == lines


def test_token_gives_one_span_per_character_and_whole_gives_one():
    assert cut("ab\n", "token") == ["a", "b", "\n"]
    assert cut("ab\n\n", "whole") == ["ab\n\n"]
    assert cut("\n", "whole") == ["\n"]


@pytest.mark.parametrize(
    ("text", "pattern", "parts"),
    [
        ("a; b; c", r"; ", ["a; ", "b; ", "c"]),
        ("a; b; ", r"; ", ["a; ", "b; "]),
        ("Step 1: x Step 2: y", r"(?=Step)", ["Step 1: x ", "Step 2: y"]),  # a match of width zero cuts where it is
        ("abc", r"x", ["abc"]),
        ("one\n\n\ntwo", r"\n+", ["one\n\n\n", "two"]),
    ],
)
def test_pattern(text, pattern, parts):
    assert cut(text, f"re:{pattern}") == parts


@pytest.mark.parametrize("rule", ["re:(", "re:*", "re:", "lines", "", "RE:a"])
def test_a_bad_rule_is_named(rule):
    with pytest.raises(InputError, match=re.escape(repr(rule))):
        spans("text", rule)


@pytest.mark.parametrize(
    "sentences",
    [
        ["One ends. ", "Two ends! ", "Three ends?  ", "Four"],
        ["“Stop!” he said. ", "“Why?” ", "She left."],
        ["He paused... then ran. ", "And… ", "Then he fell."],
        ["(It is so.) ", "Then it is not."],
        ["**Note.** ", "Read `it.` ", "Now."],
        ["Really?! ", "Yes."],
        ["Mr. and Mrs. Smith met Dr. J. R. Brown vs. Prof. Green, e.g. at St. Paul's, i.e. there. ", "They left."],
        ["He took plan B. ", "Then he left. ", "Point A. ", "Let it be."],
        ["It is 5 p.m. on Monday. ", "It opened at 9 a.m. ", "We came, etc. and so on."],
        ["The U.S. Army won. ", "He lives in the U.S. ", "They do not."],
        ["See No. 5 and p. 12. ", "No. ", "I will not."],
        ["Pi is 3.14 or .5 of it. ", "It costs $2.50. ", "She paid $3 for it. ", "He has $4."],
        ["1. Take it. ", "2. Leave it. ", "Step 3. Run. ", "a. Hide."],
        ["These are all of the steps to take: 1. Take it. ", "2. Leave it."],
        ["One. \t", "Two.\u00a0", "Three etc.\u00a0and four."],
        ["We divide by 2! once for the digit 2, and 3! ways remain. ", "So it is."],
        ["One line\n", "the next one\n\n", "  and indented. ", "Two\n"],
        ["One.\r\n\r\n", "Two.\r\n"],
        ["日本語です。", "「はい！」", "そうですか？ ", "はい。"],
        ["👩‍🚀 flew! ", "🎉 She landed. ", "e\u0301tude."],
        # Formulas are never cut; what ends in one ends the sentence.
        ["So $x = 5.$ ", "Then $P(A. B) = 1$. ", "We get $10!$ ways."],
        ["Let $f(x) = 1, 2, \\ldots.$ ", "Then \\(a. B\\) holds. ", "It does $n!$ times."],
        ["Costs are \\$5. ", "Now \\$6. ", "It is $\\$7. 50$ in all."],
        ["We have\n\\[ x = 1. Y \\]\nso that it holds. ", "Next\n$$y. Z$$\n\n", "The end."],
        ["The cube is \\[x^3. \\]   ", "The first terms are \\[(x+y)^3\\]", "In this case, \\[9\\] is it."],
        ["The value\n\\begin{align*}\nx &= 1. \\\\\nY &= 2.\n\\end{align*}\n", "Done."],
        ["It is \\[ \\left\\{ x \\right. \\] with $x > 0$. ", "So."],
        ["Thus \\[x = 1\\]. ", "Then \\begin{align*}a\\end{align*}, which is $b$."],
        ["Run this:\n", "```python\nx = 1. \nY = 2\n\nprint(x)\n```\n", "It works. ", "Good."],
        ["See below. ", "[asy]\ndraw((0,0)); label(A. B);\n[/asy]\n\n", "It is round."],
        # What is not closed is no formula.
        ["Open $x. ", "Then \\[ y. ", "And \\begin{x} z. ", "And ``` w. ", "End."],
        ["He earned $12 an hour. ", "She earned $3. ", "They earned $5 and $6 more. ", "All."],
    ],
)
def test_sentences(sentences):
    assert cut("".join(sentences), "sentence") == sentences


def test_sentences_of_a_long_text_take_linear_time():
    # Unclosed openers and dollars must not search the rest of the text each.
    for piece in ("\\[ x. ", "$ 5 dollars. And ", "``` ", "\\begin{a} ", "a. ", "\n \n", '."', "\\[x\\]\n"):
        assert len(cut(piece * 20_000, "sentence")) >= 1


@pytest.mark.slow
def test_sentences_of_real_solutions(shared_data):
    table = pl.read_parquet(shared_data / "math_train.parquet")
    single = 0
    for text in table["completion"].head(2000):
        parts = cut(text, "sentence")
        single += len(parts) == 1
        assert all(part.count(r"\begin") == part.count(r"\end") for part in parts) or "\\begin" not in text
        if "\\$" not in text and text.count("$") % 2 == 0:
            assert all(part.count("$") % 2 == 0 for part in parts), text
    assert single < 0.15 * 2000  # by lines, some 60 % are one action
