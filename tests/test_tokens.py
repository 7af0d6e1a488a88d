"""Rows to token ids, scored positions and actions. That they are TRL's is tested in test_tokens_trl.py."""

import json
import logging
import re
import sys
from importlib.util import find_spec

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from p3select.actions import spans
from p3select.errors import InputError
from p3select.tokens import encode, fingerprint

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + '<|im_end|>\n' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CASES = {
    "code": "def f(x):\n    if x:\n\n        return x  # so\n    return None\n",
    "latex": "We have\n\\[\n  x = \\frac{1}{2}.\n\\]\nso $y = 2.$ Then done.",
    "crlf": "one\r\n\r\ntwo\r\nthree\r\n",
    "edges": "\n\n one\n \n",
    "emoji": "Go 👩‍🚀!\n👨‍👩‍👧‍👦 family\n🏳️‍🌈",
    "combining": "e\u0301tude\ncafe\u0301 n\u0303",
    "cjk": "日本語です。\n「はい」\n中文",
}


@pytest.fixture(scope="module")
def loaded(smollm2):
    return AutoTokenizer.from_pretrained(smollm2)


@pytest.fixture
def tokenizer(loaded):
    """The tokenizer of SmolLM2; what a test sets on it is taken back."""
    names = ("chat_template", "eos_token", "model_max_length")
    before = {name: getattr(loaded, name) for name in names}
    yield loaded
    for name, value in before.items():
        setattr(loaded, name, value)


def message(role, content):
    return {"role": role, "content": content}


def pair(prompt, completion):
    return {"prompt": [message("user", prompt)], "completion": [message("assistant", completion)]}


def one(row, tokenizer, **options):
    (result,) = encode([row], tokenizer, **options)
    return result


def texts(result, tokenizer):
    """The text of each action's tokens."""
    assert result.status in ("ok", "truncated"), result.status
    tokens = result.ids[result.scored]
    return [tokenizer.decode(tokens[result.actions == a]) for a in range(result.actions.max() + 1)]


def assert_valid(result):
    assert result.ids.dtype == result.scored.dtype == result.actions.dtype == np.int32
    assert len(result.scored) == len(result.actions)
    if result.status in ("ok", "truncated"):
        assert len(result.scored) >= 1
        assert result.scored[0] >= 1
        assert result.scored[-1] < len(result.ids)
        assert (np.diff(result.scored) > 0).all()
        assert result.actions[0] == 0
        assert np.isin(np.diff(result.actions), (0, 1)).all()
    else:
        assert len(result.ids) == len(result.scored) == 0


# --- ids and boundary


def test_a_string_row_is_plain_text_and_ends_with_eos(tokenizer):
    result = one({"prompt": "Twice 4? ", "completion": "It is 8."}, tokenizer)
    assert tokenizer.decode(result.ids) == "Twice 4? It is 8.<|im_end|>"
    assert result.ids.tolist() == tokenizer("Twice 4? It is 8.<|im_end|>")["input_ids"]
    again = one({"prompt": "Twice 4? ", "completion": "It is 8.<|im_end|>"}, tokenizer)
    assert again.ids.tolist() == result.ids.tolist()


def test_paper_defect_8_the_rendered_ids_are_those_of_apply_chat_template(tokenizer, gsm8k):
    table = pl.read_parquet(gsm8k, n_rows=50)
    for prompt, completion in zip(table["prompt"], table["completion"], strict=True):
        row = pair(prompt, completion)
        expected = tokenizer.apply_chat_template(row["prompt"] + row["completion"], return_dict=False)
        assert one(row, tokenizer).ids.tolist() == expected


def test_paper_defect_8_every_token_of_the_completion_is_scored_once(tokenizer, gsm8k):
    """Line breaks, spaces and the end-of-sequence token among them, at the places where they are trained."""
    table = pl.read_parquet(gsm8k, n_rows=50)
    for prompt, completion in zip(table["prompt"], table["completion"], strict=True):
        prompt += "\n"
        row = one({"prompt": prompt, "completion": completion}, tokenizer)
        assert row.ids.tolist() == tokenizer(prompt + completion + tokenizer.eos_token)["input_ids"]
        assert row.scored.tolist() == list(range(row.scored[0], len(row.ids)))
        assert tokenizer.decode(row.ids[row.scored]) == completion + tokenizer.eos_token
        assert row.actions[-1] == completion.count("\n")
        assert row.ids[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("prompt", "completion", "shift", "parts"),
    [
        ("Question\n", "one\ntwo", 0, ["one\n", "two<|im_end|>"]),
        ("Question ", "one\ntwo", 1, [" one\n", "two<|im_end|>"]),  # the prompt's space is in the word's token
        ("Question\n\n", "one\ntwo", 1, ["\n\none\n", "two<|im_end|>"]),  # one token before, two within
    ],
)
def test_tokens_across_the_boundary_belong_to_the_first_action(prompt, completion, shift, parts, tokenizer):
    result = one({"prompt": prompt, "completion": completion}, tokenizer)
    assert result.shift == shift
    assert texts(result, tokenizer) == parts


def test_an_empty_prompt_leaves_the_first_token_unscored(tokenizer):
    result = one({"prompt": "", "completion": "one\ntwo\n"}, tokenizer)
    assert result.scored.tolist() == list(range(1, len(result.ids)))
    assert texts(result, tokenizer) == ["\n", "two\n<|im_end|>"]
    # An action whose only token is not scored vanishes, and the numbers stay without gaps.
    result = one({"prompt": "", "completion": "one\ntwo\n"}, tokenizer, actions="re:one")
    assert texts(result, tokenizer) == ["\ntwo\n<|im_end|>"]


def test_a_prompt_is_tokenised_once_for_all_its_completions(tokenizer):
    seen = []

    class Counting:
        def __getattr__(self, name):
            return getattr(tokenizer, name)

        def __call__(self, given, **options):
            seen.extend(given)
            return tokenizer(given, **options)

    rows = [{"prompt": f"P{n % 3}", "completion": f"C{n}"} for n in range(5000)]
    results = encode(rows, Counting())
    assert len(seen) == 5000 + 3
    alone = [one(row, tokenizer) for row in rows[::500]]
    for result, expected in zip(results[::500], alone, strict=True):
        assert result.ids.tolist() == expected.ids.tolist()
        assert result.actions.tolist() == expected.actions.tolist()


@pytest.mark.slow
def test_order_and_kinds_may_mix(tokenizer):
    rows = [pair("a", "b\nc"), {"prompt": "a", "completion": "b\nc"}, {"prompt": "a", "completion": ""}]
    rows += [{"messages": [message("user", "a"), message("assistant", "b")]}]
    together = encode(rows, tokenizer)
    for row, result in zip(rows, together, strict=True):
        assert one(row, tokenizer).ids.tolist() == result.ids.tolist()
    assert [result.status for result in together] == ["ok", "ok", "empty", "ok"]
    assert encode([], tokenizer) == []


def test_no_warning_of_long_rows_leaks(tokenizer):
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    tokenizer.model_max_length = 4
    tokenizer.chat_template = MARKED
    chat = [message("user", "one two three"), message("assistant", "four five six")]
    try:
        encode([{"prompt": "one two three", "completion": "four five six"}, {"messages": chat}], tokenizer)
        encode([pair("one two three", "four five six")], tokenizer)
        assert records == []
        tokenizer("one two three four five six")  # what would have been logged
        assert len(records) == 1
    finally:
        logger.removeHandler(handler)


# --- actions


@pytest.mark.parametrize("text", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("rule", ["line", "sentence", "whole"])
@pytest.mark.parametrize("chat", [False, True], ids=["strings", "chat"])
def test_actions_are_the_spans_of_the_completion(text, rule, chat, tokenizer):
    row = pair("Go", text) if chat else {"prompt": "Go:", "completion": text}
    result = one(row, tokenizer, actions=rule)
    assert_valid(result)
    expected = [text[start:end] for start, end in spans(text, rule)]
    expected[-1] += "<|im_end|>\n" if chat else "<|im_end|>"
    if chat and text.startswith("\n"):  # merged with the line break that ends the generation prompt
        expected[0] = "\n" + expected[0]
    # A space before a word is in the word's token, hence moves to the next sentence; nothing else moves.
    assert [part.strip(" ") for part in texts(result, tokenizer)] == [part.strip(" ") for part in expected]


def test_the_first_word_of_a_sentence_belongs_to_it_in_spite_of_its_space(tokenizer):
    result = one({"prompt": "Q", "completion": "One is so.  Two is not."}, tokenizer, actions="sentence")
    assert texts(result, tokenizer) == ["One is so. ", " Two is not.<|im_end|>"]
    result = one({"prompt": "Q", "completion": "a; b; c"}, tokenizer, actions="re:; ")
    assert texts(result, tokenizer) == ["a;", " b;", " c<|im_end|>"]


@pytest.mark.parametrize("rule", ["line", "sentence", "whole", "re:\n", "re:[.>|]"])
@pytest.mark.parametrize("end", ["", "\n", "\n\n", "  "])
def test_the_tail_of_a_turn_belongs_to_its_last_action(rule, end, tokenizer):
    plain = {"prompt": "Q\n", "completion": "one\ntwo" + end}
    for row, tail in ((plain, "<|im_end|>"), (pair("Q", "one\ntwo" + end), "<|im_end|>\n")):
        parts = texts(one(row, tokenizer, actions=rule), tokenizer)
        assert parts[-1].endswith(end + tail)
        assert parts[-1].strip() != "<|im_end|>"
        if rule != "whole" and rule != "re:[.>|]":
            assert parts[0] == "one\n"


def test_a_tail_that_is_no_special_token_belongs_to_the_last_action_too(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}### {{ m['role'] }}:\n{{ m['content'] }}\n### End.\n{% endfor %}"
    parts = texts(one(pair("Q", "one\ntwo\n"), tokenizer), tokenizer)
    assert parts[-1] == "two\n\n### End.\n"


def test_token_makes_each_scored_token_an_action(tokenizer):
    result = one(pair("Q", "one\ntwo 👩‍🚀"), tokenizer, actions="token")
    assert result.actions.tolist() == list(range(len(result.scored)))
    assert len(result.scored) > 10


def test_actions_smaller_than_a_token_leave_no_gap(tokenizer):
    result = one({"prompt": "Q\n", "completion": "extraordinary"}, tokenizer, actions="re:.")
    assert texts(result, tokenizer) == ["extra", "ordinary<|im_end|>"]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    prompt=st.text(max_size=12),
    completion=st.text(max_size=30) | st.lists(st.sampled_from([*CASES.values(), " ", "\n"]), max_size=3).map("".join),
    rule=st.sampled_from(["line", "sentence", "token", "whole", r"re:\s"]),
    chat=st.booleans(),
)
def test_every_scored_token_has_one_action(prompt, completion, rule, chat, tokenizer):
    row = pair(prompt, completion) if chat else {"prompt": prompt, "completion": completion}
    result = one(row, tokenizer, actions=rule)
    assert_valid(result)
    if not completion.strip():
        assert result.status == "empty"
    elif result.status == "empty":  # characters that this tokenizer has no token for, or a single one that comes first
        assert len(tokenizer(completion, add_special_tokens=False)["input_ids"]) <= (not prompt)
    if result.status == "ok":
        assert result.scored.tolist() == list(range(result.scored[0], len(result.ids)))


SPECIAL = ["<unk>", "<s>", "</s>"]


def trained(model, trainer, pre_tokenizer, decoder, post_processor=None, normalizer=None):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoder
    if normalizer:
        tokenizer.normalizer = normalizer
    text = ["One is so. Two is not.\n\n  Three it is.", *CASES.values()]
    tokenizer.train_from_iterator(text * 3, trainer)
    if post_processor:
        tokenizer.post_processor = post_processor(tokenizer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


def trimming():
    """A byte-level tokenizer that adds a space at the start and leaves spaces out of the offsets."""
    return trained(
        models.BPE(),
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
        pre_tokenizers.ByteLevel(add_prefix_space=True),
        decoders.ByteLevel(),
        lambda _: processors.ByteLevel(trim_offsets=True),
    )


def normalising():
    """A SentencePiece-like tokenizer that normalises, marks spaces, and adds a token at both ends."""
    return trained(
        models.Unigram(),
        trainers.UnigramTrainer(vocab_size=200, special_tokens=SPECIAL, unk_token="<unk>"),
        pre_tokenizers.Metaspace(prepend_scheme="always"),
        decoders.Metaspace(),
        lambda tokenizer: processors.TemplateProcessing(
            single="<s> $A </s>",
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")],
        ),
        normalizers.NFKC(),
    )


@pytest.mark.parametrize("make", [trimming, normalising])
def test_tokenizers_that_trim_prefix_or_normalise(make):
    tokenizer = make()
    result = one(
        {"prompt": "Q:", "completion": "One is so. Two is not.\n\n  Three it is."}, tokenizer, actions="sentence"
    )
    assert_valid(result)
    parts = [re.sub(r"\s+|</?s>", "", part) for part in texts(result, tokenizer)]
    assert parts == ["Oneisso.", "Twoisnot.", "Threeitis."]
    for text in CASES.values():
        lines = one({"prompt": "Q:", "completion": text}, tokenizer)
        assert_valid(lines)
        assert lines.actions[-1] == len(spans(text, "line")) - 1


def test_a_rendered_row_gets_no_token_but_the_templates():
    tokenizer = normalising()
    tokenizer.chat_template = "<s>" + CHATML
    for row in (pair("Q", "One is so."), chat("Q", "One is so.")):
        messages = row.get("messages") or row["prompt"] + row["completion"]
        expected = tokenizer.apply_chat_template(messages, return_dict=False)
        assert one(row, tokenizer).ids.tolist() == expected
        assert expected.count(tokenizer.convert_tokens_to_ids("<s>")) == 1
    plain = one({"prompt": "Q", "completion": "One is so."}, tokenizer)
    assert plain.ids[[0, -2, -1]].tolist() == tokenizer.convert_tokens_to_ids(["<s>", "</s>", "</s>"])


# --- messages


def chat(*contents):
    roles = ("user", "assistant")
    return {"messages": [message(roles[n % 2], content) for n, content in enumerate(contents)]}


@pytest.mark.parametrize("template", [CHATML, MARKED], ids=["found by prefixes", "marked"])
def test_the_assistants_turns_are_scored_and_no_action_crosses_them(template, tokenizer):
    tokenizer.chat_template = template
    result = one(chat("Q", "one\ntwo", "again", "three", "Thanks."), tokenizer, actions="line")
    assert_valid(result)
    assert texts(result, tokenizer) == ["one\n", "two<|im_end|>\n", "three<|im_end|>\n"]
    assert tokenizer.decode(result.ids).endswith("Thanks.<|im_end|>\n")
    whole = one(chat("Q", "one\ntwo", "again", "three"), tokenizer, actions="whole")
    assert texts(whole, tokenizer) == ["one\ntwo<|im_end|>\n", "three<|im_end|>\n"]
    assert result.shift == 0


def test_turns_found_by_prefixes_equal_marked_ones(tokenizer, gsm8k):
    table = pl.read_parquet(gsm8k, n_rows=60)
    rows = [chat(p, c, p, c) for p, c in zip(table["prompt"], table["completion"], strict=True)]
    rows += [chat("Q", "\n\nleading", "\n", "trailing \n\n"), chat("Q", "", "Q", "x")]
    results = []
    for template in (CHATML, MARKED):
        tokenizer.chat_template = template
        results.append(encode(rows, tokenizer))
    for found, marked in zip(*results, strict=True):
        assert found.ids.tolist() == marked.ids.tolist()
        assert found.scored.tolist() == marked.scored.tolist()
        assert found.actions.tolist() == marked.actions.tolist()


def test_messages_whose_turns_cannot_be_found_are_an_error(tokenizer):
    tokenizer.chat_template = "{{ messages | length }}" + CHATML  # not the same at the start of a longer one
    assert "message 1 differently" in one(chat("Q", "A", "Q", "A"), tokenizer).status
    tokenizer.chat_template = CHATML
    first = {"messages": [message("assistant", "A"), message("user", "Q")]}
    assert "comes first" in one(first, tokenizer).status
    tokenizer.chat_template = MARKED.replace("'assistant' %}", "'nobody' %}")
    assert "hold no token" in one(chat("Q", "A"), tokenizer).status


@pytest.mark.slow
@pytest.mark.skipif(find_spec("trl") is None, reason="needs trl")
def test_trl_knows_training_templates_and_the_fingerprint_says_which_is_used(tokenizer, monkeypatch):
    from trl.chat_template_utils import qwen2_5_chat_template

    tokenizer.chat_template = qwen2_5_chat_template
    row = chat("Q", "one\ntwo", "again", "three")
    trained_on = one(row, tokenizer)
    assert texts(trained_on, tokenizer) == ["\none\n", "two<|im_end|>\n", "\nthree<|im_end|>\n"]
    with_trl, for_pairs = fingerprint(tokenizer), fingerprint(tokenizer, messages=False)
    monkeypatch.setitem(sys.modules, "trl.chat_template_utils", None)
    alone = one(row, tokenizer)
    assert texts(alone, tokenizer) == ["one\n", "two<|im_end|>\n", "three<|im_end|>\n"]
    assert alone.ids.tolist() == trained_on.ids.tolist()
    assert fingerprint(tokenizer) != with_trl
    assert fingerprint(tokenizer, messages=False) == for_pairs


def test_tools_and_template_variables_reach_the_template(tokenizer):
    tokenizer.chat_template = "{{ tools }}{{ style }}" + CHATML
    tools = [{"name": "double"}]
    extra = {"tools": tools, "chat_template_kwargs": {"style": "brief"}}
    for row in (pair("Q", "A"), chat("Q", "A")):
        assert tokenizer.decode(one(row | extra, tokenizer).ids).startswith("[{'name': 'double'}]brief<|im_start|>")
        as_json = row | {"tools": json.dumps(tools)}
        assert tokenizer.decode(one(as_json, tokenizer).ids).startswith("[{'name': 'double'}]<|im_start|>")
    reserved = pair("Q", "A") | {"chat_template_kwargs": {"truncation": True}}
    assert one(reserved, tokenizer).status.startswith("error: chat_template_kwargs holds 'truncation'")


# --- what is not scored, and what is cut

EMPTY = [
    {"prompt": "Q", "completion": ""},
    {"prompt": "Q", "completion": " \n\t"},
    {"prompt": "Q", "completion": None},
    {"prompt": "Q"},
    pair("Q", ""),
    pair("Q", " \n"),
    pair("Q", None),
    {"prompt": [message("user", "Q")], "completion": []},
    {"prompt": [message("user", "Q")], "completion": None},
    chat("Q", ""),
    chat("Q", " ", "Q", None),
]


@pytest.mark.parametrize("row", EMPTY)
def test_an_empty_completion_is_not_scored(row, tokenizer):
    result = one(row, tokenizer)
    assert result.status == "empty"
    assert_valid(result)


def test_a_call_of_a_tool_is_not_empty(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{{ m['tool_calls'] }}.{% endfor %}"
    row = pair("Q", "")
    row["completion"][0]["tool_calls"] = ["double"]
    assert one(row, tokenizer).status == "ok"


MALFORMED = [
    ({"prompt": None, "completion": "A"}, "prompt is None"),
    ({"prompt": 3, "completion": "A"}, "prompt is int"),
    ({"prompt": "Q", "completion": 3}, "completion is int"),
    ({"prompt": "Q", "completion": [message("assistant", "A")]}, "completion is list"),
    ({"prompt": [message("user", "Q")], "completion": "A"}, "completion is str"),
    ({"prompt": [], "completion": [message("assistant", "A")]}, "prompt is an empty list"),
    ({"prompt": ["Q"], "completion": [message("assistant", "A")]}, "prompt holds str"),
    ({"prompt": [{"content": "Q"}], "completion": [message("assistant", "A")]}, "prompt holds dict"),
    ({"prompt": [{"role": "user"}], "completion": [message("assistant", "A")]}, "the chat template fails"),
    ({"messages": None}, "messages is None"),
    ({"messages": []}, "messages is an empty list"),
    ({"messages": "Q"}, "messages is str"),
    ({"messages": [message("user", "Q")]}, "no turn of the assistant"),
    ({"messages": [message(None, "Q")]}, "messages holds dict"),
    ({"text": "A"}, "neither prompt and completion nor messages"),
    (pair("Q", "A") | {"tools": "{"}, "tools is not JSON"),
    (pair("Q", "A") | {"chat_template_kwargs": [1]}, "chat_template_kwargs is list"),
    ({"prompt": "Q", "completion": "\ud83d"}, "no Unicode"),
    (pair("Q", "\ud83d"), "no Unicode"),
    (chat("Q", "\ud83d"), "no Unicode"),
    (None, "the row is None"),
]


def test_a_malformed_row_is_an_error_and_the_others_go_on(tokenizer):
    good = pair("Q", "A")
    results = encode([good, *(row for row, _ in MALFORMED), good], tokenizer)
    assert results[0].status == results[-1].status == "ok"
    for result, (row, reason) in zip(results[1:-1], MALFORMED, strict=True):
        assert result.status.startswith("error: "), row
        assert reason in result.status, row
        assert_valid(result)


def test_paper_defect_9_truncation(tokenizer):
    row = {"prompt": "one two three", "completion": " four\nfive"}
    full = one(row, tokenizer)
    length, start = len(full.ids), int(full.scored[0])
    assert one(row, tokenizer, max_length=length).status == "ok"
    cut = one(row, tokenizer, max_length=length - 1)
    assert cut.status == "truncated"
    assert cut.ids.tolist() == full.ids[:-1].tolist()
    assert cut.scored.tolist() == full.scored[:-1].tolist()
    assert cut.actions.tolist() == full.actions[:-1].tolist()
    assert one(row, tokenizer, max_length=start + 1).scored.tolist() == [start]
    gone = one(row, tokenizer, max_length=start)
    assert gone.status == "too_long"
    assert_valid(gone)
    assert one(row, tokenizer, max_length=length - 1, truncate="skip").status == "too_long"
    assert one(row, tokenizer, max_length=length, truncate="skip").status == "ok"
    with pytest.raises(InputError, match=f"row 41 has {length} tokens, more than the maximal length of {length - 1}"):
        one(row, tokenizer, max_length=length - 1, truncate="error", first_row=41)


def test_cutting_what_is_not_scored_leaves_a_row_ok(tokenizer):
    row = chat("Q", "A", "a long last word of the user's")
    full = one(row, tokenizer)
    cut = one(row, tokenizer, max_length=len(full.ids) - 3)
    assert cut.status == "ok"
    assert len(cut.ids) == len(full.ids) - 3
    assert cut.scored.tolist() == full.scored.tolist()


def test_settings_are_checked(tokenizer):
    rows = [{"prompt": "Q", "completion": "A"}]
    with pytest.raises(InputError, match="truncate='end'"):
        encode(rows, tokenizer, truncate="end")
    with pytest.raises(InputError, match="max_length=1"):
        encode(rows, tokenizer, max_length=1)
    with pytest.raises(InputError, match="actions='words'"):
        encode([], tokenizer, actions="words")


def test_what_the_tokenizer_lacks_is_said(tokenizer):
    with pytest.raises(InputError, match="ByT5Tokenizer is a slow one"):
        encode([{"prompt": "Q", "completion": "A"}], ByT5Tokenizer())
    with pytest.raises(InputError, match="slow"):
        fingerprint(ByT5Tokenizer())
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="row 8 is a conversation and the tokenizer has no chat template"):
        encode([{"prompt": "Q", "completion": "A"}, pair("Q", "A")], tokenizer, first_row=7)
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="row 7 needs an end-of-sequence token"):
        encode([{"prompt": "Q", "completion": "A"}], tokenizer, first_row=7)


# --- fingerprint


@pytest.mark.slow
def test_fingerprint_changes_with_what_changes_tokens_and_with_nothing_else(tokenizer, smollm2):
    def tokens():
        return fingerprint(tokenizer, messages=False)

    base = tokens()
    assert base == fingerprint(AutoTokenizer.from_pretrained(smollm2), messages=False)
    assert all(re.fullmatch(r"[0-9a-f]{64}", value) for value in base.values())
    tokenizer(["a", "b c"], padding=True, truncation=True, max_length=2)
    tokenizer.pad_token = "<|endoftext|>"
    tokenizer.padding_side = "left"
    assert tokens() == base
    tokenizer.eos_token = "<|endoftext|>"
    assert tokens()["tokenizer"] != base["tokenizer"]
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.chat_template = CHATML
    assert tokens()["template"] not in (base["template"], "none")
    assert tokens()["tokenizer"] == base["tokenizer"]
    tokenizer.chat_template = None
    assert tokens()["template"] == "none"


def test_fingerprint_changes_with_the_vocabulary():
    tokenizer = trimming()
    base = fingerprint(tokenizer)
    tokenizer.add_tokens(["GSM8K"])
    assert fingerprint(tokenizer)["tokenizer"] != base["tokenizer"]
    assert fingerprint(tokenizer)["template"] == base["template"] == "none"
