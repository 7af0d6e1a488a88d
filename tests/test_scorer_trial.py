"""The trial: its rows, what passes and what does not, and the plain forward that it goes by."""

import re

import numpy as np
import pytest
import torch
import transformers as hf

from p3select import machine
from p3select.errors import InputError
from p3select.scorers import checkpoints, trial


@pytest.fixture(scope="module")
def tokenizer(smollm2):
    return hf.AutoTokenizer.from_pretrained(smollm2)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A small model's folder, and its configuration."""
    path = tmp_path_factory.mktemp("tiny")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = hf.LlamaConfig(vocab_size=300, max_position_embeddings=256, **sizes)
    hf.LlamaForCausalLM(config).save_pretrained(path)
    return path, config


def test_rows(tokenizer):
    for step in (0, 2000, 8192):
        ids, scored = trial.rows(tokenizer, 49152, 5000, step)
        assert len(ids) == len(scored) == trial.ROWS
        assert sum(map(len, ids)) > step
        checkpoints.check_rows(ids, scored, 5000, 49152)
    # A model of few tokens, an engine of short rows, and one without a limit.
    for longest in (2, 3, 4, 5, 6, 12, None):
        checkpoints.check_rows(*trial.rows(tokenizer, 50, longest, 2000), longest, 50)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", None])
def test_text_is_among_what_is_compared(tokenizer, dtype):
    ids, scored = trial.rows(tokenizer, 49152, 1000)
    few = trial.compared(scored, dtype)
    texts = [tokenizer.decode(row) for row in ids[:few]]
    assert trial.TEXTS[0] in texts
    tokens = sum(map(len, scored[:few]))
    assert (few, tokens < 300) == (2, True) if dtype == "float32" else tokens >= 300
    # Never more than there are.
    assert trial.compared(trial.rows(tokenizer, 49152, 3)[1], dtype) <= trial.ROWS


def test_the_plain_forward_in_float32_with_the_engines_weights(tiny, monkeypatch):
    path, config = tiny
    ids, scored = [np.arange(9, 30, dtype=np.int32)], [np.array([3, 4, 20], np.int32)]
    weights = hf.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    threads, seen = torch.get_num_threads(), []
    network = checkpoints.network

    def watched(*arguments):
        seen.append(torch.get_num_threads())
        return network(*arguments)

    monkeypatch.setattr(checkpoints, "network", watched)
    monkeypatch.setattr(machine, "threads", lambda: 3)
    for dtype in (None, "float32", "bfloat16"):
        torch.set_num_threads(1)
        values, bare = trial.by_transformers(path, config, None, dtype, ids, scored)
        assert torch.get_num_threads() == 1
        torch.set_num_threads(threads)
        model = weights.bfloat16().float() if dtype == "bfloat16" else weights
        with torch.no_grad():
            expected = model(input_ids=torch.tensor(ids[0][None].astype(np.int64))).logits[0].log_softmax(-1)
        np.testing.assert_allclose(values[0], [expected[i - 1, ids[0][i]] for i in scored[0]], atol=1e-5)
        assert bare == []
    # As many threads as this process may use, although its caller has one.
    assert seen == [3] * 3


def test_without_the_memory_it_says_so(tiny, monkeypatch):
    monkeypatch.setattr(machine, "memory", lambda: 3 * 2**30)  # a container's, say
    sizes = {"hidden_size": 2**17, "intermediate_size": 2**19, "num_hidden_layers": 2, "num_attention_heads": 2**10}
    with pytest.raises(InputError, match=r"takes 2048 GiB of memory, and 3 GiB are free; the option compare=false"):
        trial.by_transformers(tiny[0], hf.LlamaConfig(vocab_size=300, **sizes), None, None, [], [])


def test_what_is_apart():
    values = [np.zeros(4, np.float32), np.zeros(4, np.float32)]
    near, far = np.full(4, 4e-4, np.float32), np.array([0.01, 0, 0, 0], np.float32)
    assert trial.apart(values, [near], "X", "float32") == ""
    said = "row 1 of the trial has log-probabilities 0.01 nats from X"
    assert trial.apart(values, [near, far], "X", "float32") == said
    for dtype in ("bfloat16", None):
        assert trial.apart(values, [near, far], "X", dtype) == ""
        assert "0.2 nats from X" in trial.apart(values, [near + 0.2], "X", dtype)
        assert "nan nats from X" in trial.apart(values, [near * np.nan], "X", dtype)


def test_a_change_that_does_not_arrive():
    random = np.random.default_rng(0)
    before, noise, step = (
        [random.normal(0, size, 100).astype(np.float32) for _ in range(3)] for size in (1.0, 0.02, 0.03)
    )
    after = [a + b for a, b in zip(before, step, strict=True)]
    rounded = [a + b for a, b in zip(after, noise, strict=True)]
    assert trial.change("E", "the step", (before, rounded), (before, after)) == ("", "")
    # Far within the bounds of half precision.
    assert trial.apart(before, after, "", "bfloat16") == ""
    wrong, note = trial.change("E", "the step", (before, before), (before, after))
    assert (wrong, note) == ("E applies 0.00 of what the step changes in transformers", "")
    small = [a + b / 100 for a, b in zip(before, step, strict=True)]
    wrong, note = trial.change("E", "the step", (before, rounded), (before, small))
    assert wrong == ""
    assert re.search(r"^the step changes the trial's log-probabilities by 0\.0002\d nats in the mean: too little", note)


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_the_share_of_an_effect(noise):
    random = np.random.default_rng(0)
    effect = random.normal(0, 0.05, 300).astype(np.float32)
    for true in (0.0, 0.5, 1.0, -1.0):
        found = (true * effect + random.normal(0, noise, 300)).astype(np.float32)
        share, error = trial.share(found, effect)
        assert abs(share - true) <= max(4 * error, 1e-6)
        assert error == pytest.approx(noise / (0.05 * np.sqrt(300)), rel=0.2, abs=1e-6)
    assert trial.share(effect, 0 * effect) == (0.0, np.inf)
