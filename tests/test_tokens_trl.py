"""The ids and the loss mask are those that TRL's own SFTTrainer prepares, on real rows."""

from importlib.resources import files
from itertools import cycle, pairwise

import numpy as np
import polars as pl
import pytest

from p3select.tokens import encode, fingerprint

datasets = pytest.importorskip("datasets")
trl = pytest.importorskip("trl")
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM  # noqa: E402

pytestmark = pytest.mark.slow

ROWS = 101
ENDS = ("", " ", "\n", "\n\n", "\nAnswer: ")
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def trl_template(name):
    return (files("trl") / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def model():
    config = LlamaConfig(
        vocab_size=49152, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    return LlamaForCausalLM(config)


@pytest.fixture(params=["gsm8k", "math", "mnli"])
def pairs(request):
    """Prompts and completions of real rows."""
    if request.param == "gsm8k":
        path = request.getfixturevalue("gsm8k")
    else:
        name = {"math": "math_cp_train", "mnli": "mnli_devm_bert100"}[request.param]
        path = request.getfixturevalue("shared_data") / f"{name}.parquet"
    table = pl.read_parquet(path, n_rows=ROWS)
    assert len(table) >= 100
    return list(zip(table["prompt"], table["completion"], strict=True))


def strings(pairs):
    return [{"prompt": p + end, "completion": c} for (p, c), end in zip(pairs, cycle(ENDS))]


def conversations(pairs):
    return [
        {
            "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": prompt}],
            "completion": [{"role": "assistant", "content": completion + end}],
        }
        for (prompt, completion), end in zip(pairs, cycle(ENDS))
    ]


def multi_turn(pairs):
    """Two questions of the data in one conversation; every third ends with the user."""
    rows = []
    for number, ((prompt, completion), (other, answer)) in enumerate(pairwise(pairs)):
        messages = [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": completion},
            {"role": "user", "content": other},
            {"role": "assistant", "content": answer},
            {"role": "user", "content": "Thanks."},
        ]
        rows.append({"messages": messages[: 5 if number % 3 == 0 else 4]})
    return rows


def prepare(rows, tokenizer, model, folder, **settings):
    """What SFTTrainer makes of the rows: row number -> (input_ids, labels)."""
    dataset = datasets.Dataset.from_list([row | {"row": number} for number, row in enumerate(rows)])
    settings = {"max_length": None, **settings}
    config = trl.SFTConfig(
        output_dir=str(folder), use_cpu=True, bf16=False, report_to="none", shuffle_dataset=False, **settings
    )
    trainer = trl.SFTTrainer(model, args=config, train_dataset=dataset, processing_class=tokenizer)
    return {row["row"]: (row["input_ids"], row["labels"]) for row in trainer.train_dataset}


def assert_same(rows, tokenizer, model, folder, max_length=None, **settings):
    """Ours and TRL's are equal, row for row; the statuses are given back."""
    before = fingerprint(tokenizer)
    ours = encode(rows, tokenizer, max_length=max_length)
    theirs = prepare(rows, tokenizer, model, folder, max_length=max_length, **settings)
    assert fingerprint(tokenizer) == before  # TRL sets a padding token, which changes nothing
    for number, row in enumerate(ours):
        assert (row.status == "too_long") == (number not in theirs), number
        if number in theirs:
            ids, labels = theirs[number]
            assert row.ids.tolist() == ids, number
            labels = np.array(labels[1:])  # the shift leaves the first out
            assert row.scored.tolist() == (np.flatnonzero(labels != -100) + 1).tolist(), number
            assert row.ids[row.scored].tolist() == labels[labels != -100].tolist(), number
    return [row.status for row in ours]


def short(rows, tokenizer):
    """A length that leaves some rows whole or cut, and others without a scored token."""
    starts = [row.scored[0] for row in encode(rows, tokenizer)]
    return int(np.median(starts)) + 2


def test_strings_without_chat_template(pairs, smollm2, model, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    tokenizer.chat_template = None
    assert set(assert_same(strings(pairs), tokenizer, model, tmp_path)) == {"ok"}


def test_strings_cut(pairs, smollm2, model, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(smollm2)  # has a chat template, which strings do not use
    rows = strings(pairs)
    statuses = assert_same(rows, tokenizer, model, tmp_path, short(rows, tokenizer))
    assert {"truncated", "too_long"} <= set(statuses)


def test_strings_with_tokens_that_the_tokenizer_adds(pairs, minilm, model, tmp_path):
    # WordPiece: lower-cased, [CLS] and [SEP] around each text, so the prompt is never a prefix.
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    tokenizer.eos_token = "[SEP]"
    rows = strings(pairs)
    assert set(assert_same(rows, tokenizer, model, tmp_path)) == {"ok"}
    assert {row.shift for row in encode(rows, tokenizer)} == {1}


def test_conversational_pairs(pairs, smollm2, model, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    rows = conversations(pairs)
    assert set(assert_same(rows, tokenizer, model, tmp_path)) == {"ok"}


@pytest.mark.parametrize("template", ["marked", "qwen2_5"])
def test_messages(pairs, template, smollm2, model, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    tokenizer.chat_template = CHATML if template == "marked" else trl_template(template)
    rows = multi_turn(pairs)
    assert all(np.diff(row.scored).max() > 1 for row in encode(rows, tokenizer))  # two turns, not one
    length = max(len(row.ids) for row in encode(rows, tokenizer)) if template == "marked" else short(rows, tokenizer)
    statuses = assert_same(rows, tokenizer, model, tmp_path, length, assistant_only_loss=True)
    assert set(statuses) == {"ok"} if template == "marked" else {"truncated", "too_long"} <= set(statuses)


def test_tools_and_template_variables(smollm2, model, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    tokenizer.chat_template = trl_template("qwen3")
    schema = {"type": "object", "properties": {"a": {"type": "number"}}}
    tool = {"type": "function", "function": {"name": "double", "description": "Twice a.", "parameters": schema}}
    call = {"type": "function", "function": {"name": "double", "arguments": {"a": 4}}}
    messages = [
        {"role": "user", "content": "Twice 4?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "double", "content": "8"},
        {"role": "assistant", "content": "<think>\nEasy.\n</think>\n\n8"},
    ]
    extra = {"tools": [tool], "chat_template_kwargs": {"enable_thinking": False}}
    assert_same([{"messages": messages, **extra}], tokenizer, model, tmp_path, assistant_only_loss=True)
    pair = {"prompt": messages[:1], "completion": messages[1:]}
    assert_same([pair | extra, pair | extra], tokenizer, model, tmp_path)
    with_tools, without = encode([pair | extra, pair], tokenizer)
    assert len(with_tools.ids) > len(without.ids)
