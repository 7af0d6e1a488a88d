"""The scorer 'vllm', with a real vLLM: agreement with transformers, adapters, new weights, refusals, clean ends."""

from types import SimpleNamespace

import numpy as np
import peft
import polars as pl
import psutil
import pytest
import torch
import transformers as hf

pytest.importorskip("vllm")

from p3select import tokens
from p3select.difficulties import difficulty
from p3select.errors import EngineError, InputError
from p3select.progress import silent
from p3select.scorers import checkpoints, trial
from p3select.scorers import vllm as module
from p3select.scorers.transformers import TransformersScorer
from p3select.scorers.vllm import VllmScorer

pytestmark = pytest.mark.slow

# The bounds for float32, in nats.
MOST, MEAN, ROW = 5e-4, 5e-5, 1e-4
# Of one engine against another.
SAME = 1e-4


def encoded(path, tokenizer, count):
    """The shortest of the first 200 rows of a file, for the sake of time, as ids, positions and actions."""
    table = pl.read_parquet(path).head(200).select("prompt", "completion")
    length = pl.col("prompt").str.len_chars() + pl.col("completion").str.len_chars()
    rows = tokens.encode(table.sort(length).head(count).to_dicts(), tokenizer)
    return [row.ids for row in rows], [row.scored for row in rows], [row.actions for row in rows]


def apart(values, others):
    return np.abs(np.concatenate(values) - np.concatenate(others))


def by_row(values, actions):
    """A row's difficulty, from the sums of its actions."""
    sums = [np.bincount(a, weights=v.astype(np.float64)) for v, a in zip(values, actions, strict=True)]
    return difficulty(sums, [np.bincount(a) for a in actions])


def load(path):
    return hf.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def adapter_at(path, model, std=0.01, **options):
    """A LoRA adapter; with this size it changes log-probabilities by tenths."""
    torch.manual_seed(0)
    config = peft.LoraConfig(**{"r": 12, "target_modules": ["q_proj", "v_proj", "o_proj", "down_proj"], **options})
    adapted = peft.get_peft_model(model, config)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=std)
    adapted.save_pretrained(path)
    return adapted


@pytest.fixture(scope="module")
def tokenizer(smollm2):
    return hf.AutoTokenizer.from_pretrained(smollm2)


@pytest.fixture(scope="module")
def next_checkpoint(smollm2, tmp_path_factory):
    """The weights of SmolLM2 with a little noise, as if trained on."""
    path = tmp_path_factory.mktemp("checkpoint")
    model = load(smollm2)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.02 * weight.std() * torch.randn_like(weight)
    model.save_pretrained(path)
    hf.AutoTokenizer.from_pretrained(smollm2).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def adapter(smollm2, tmp_path_factory):
    path = tmp_path_factory.mktemp("adapter")
    adapter_at(path, load(smollm2))
    return path


@pytest.fixture(scope="module")
def gsm8k_rows(gsm8k, tokenizer):
    return encoded(gsm8k, tokenizer, 64)


@pytest.fixture(scope="module")
def reference(smollm2):
    return TransformersScorer(smollm2, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def scorer(smollm2):
    """The first engine."""
    made = VllmScorer(smollm2, dtype="float32", max_length=1024)
    yield made
    made.close()


@pytest.fixture(scope="module")
def second(next_checkpoint, adapter):
    """Another engine, on other weights, with an adapter."""
    made = VllmScorer(next_checkpoint, dtype="float32", adapter=adapter, max_length=1024)
    yield made
    made.close()


@pytest.fixture(scope="module")
def on_gsm8k(scorer, gsm8k_rows):
    return scorer.score(*gsm8k_rows[:2], silent)


# Values


def agree(values, expected, actions):
    difference = apart(values, expected)
    assert difference.max() <= MOST
    assert difference.mean() <= MEAN
    assert np.abs(by_row(values, actions) - by_row(expected, actions)).max() <= ROW


def test_agrees_with_transformers_on_gsm8k(on_gsm8k, reference, gsm8k_rows):
    """On the 64 shortest of the first 200 rows."""
    ids, scored, actions = gsm8k_rows
    assert [len(values) for values in on_gsm8k] == [len(positions) for positions in scored]
    assert all(values.dtype == np.float32 for values in on_gsm8k)
    agree(on_gsm8k, reference.score(ids, scored, silent), actions)


def test_agrees_with_transformers_on_math(scorer, reference, shared_data, tokenizer):
    """On the 64 shortest of the first 200 rows."""
    ids, scored, actions = encoded(shared_data / "math_train.parquet", tokenizer, 64)
    agree(scorer.score(ids, scored, silent), reference.score(ids, scored, silent), actions)


def test_positions_need_not_be_a_completion(scorer, reference, gsm8k_rows):
    random = np.random.default_rng(0)
    ids = [*gsm8k_rows[0][:6], np.array([7, 9], np.int32)]
    scored = [
        np.sort(random.choice(np.arange(1, len(row)), random.integers(1, len(row)), replace=False)).astype(np.int32)
        for row in ids
    ]
    values = scorer.score(ids, scored, silent)
    assert [len(found) for found in values] == [len(positions) for positions in scored]
    assert apart(values, reference.score(ids, scored, silent)).max() <= MOST


def test_the_same_rows_give_the_same_bytes(scorer, gsm8k_rows):
    ids, scored = gsm8k_rows[0][:8], gsm8k_rows[1][:8]
    first, again = scorer.score(ids, scored, silent), scorer.score(ids, scored, silent)
    assert [values.tobytes() for values in first] == [values.tobytes() for values in again]
    turned = scorer.score(ids[::-1], scored[::-1], silent)[::-1]
    assert apart(turned, first).max() <= SAME


def test_progress_counts_every_row_and_token(scorer, gsm8k_rows):
    ids, scored = gsm8k_rows[0][:8], gsm8k_rows[1][:8]
    calls = []
    scorer.score(ids, scored, lambda rows, tokens: calls.append((rows, tokens)))
    assert len(calls) == len(ids)
    assert np.sum(calls, 0).tolist() == [len(ids), sum(map(len, ids))]
    assert scorer.score([], [], silent) == []


def test_provenance_and_length(scorer, reference):
    known = scorer.provenance
    assert known["model"] == reference.provenance["model"]
    assert {name: known[name] for name in ("scorer", "adapter", "dtype", "device")} == {
        "scorer": "vllm",
        "adapter": "none",
        "dtype": "float32",
        "device": "cpu",
    }
    assert scorer.max_length == 1024
    assert scorer.notes == []


def test_rows_that_cannot_be_scored_are_named(scorer):
    two, one = np.array([7, 9], np.int32), np.array([1], np.int32)
    for ids, scored, message in (
        (np.full(1025, 7, np.int32), one, "row 1 of those to score: 1025 tokens, and the model takes 1024"),
        (two, np.array([2], np.int32), "row 1 of those to score: positions to score must be from 1 to 1"),
        (np.array([7, 49152], np.int32), one, "row 1 of those to score: token 49152, and the model has 0 to 49151"),
    ):
        with pytest.raises(InputError, match=message):
            scorer.score([two, ids], [one, scored], silent)
    longest = np.arange(100, 1124, dtype=np.int32)
    assert len(scorer.score([longest], [np.array([1023], np.int32)], silent)[0]) == 1


# The trial


def test_the_trial_refuses_numbers_that_are_not_the_models(scorer, next_checkpoint):
    own = scorer._policy
    scorer._policy = module._policy(next_checkpoint, None, None)
    try:
        assert "nats from those of transformers" in scorer._try()
        assert "nats from those of transformers" in scorer._try(again=True)
    finally:
        scorer._policy = own
    assert scorer._try() == ""


def test_the_trial_refuses_other_tokens(scorer):
    ids, scored = scorer._trial
    path = module._PROMPT
    other = module._Path("other", path.ask, lambda output, row, positions: path.read(output, row[::-1], positions))
    own, scorer._path = scorer._path, other
    try:
        assert "not about the tokens that were sent" in scorer._wrong(ids[:2], scored[:2], [], [])
    finally:
        scorer._path = own


def test_steps_leave_room_for_logits():
    # 8% of 24 GB, which vLLM leaves, and a vocabulary of 151,936: three copies of four bytes each.
    left = int(0.08 * 24 * 2**30)
    step = module._step(left, 151_936)
    assert 3 * 4 * 151_936 * step <= left < 3 * 4 * 151_936 * (step + 1)
    assert module._step(2**40, 151_936) == module.STEP_TOKENS
    assert module._step(100, 151_936) == 0


def test_a_gpus_steps_are_vllms_own_where_logits_are_at_scored_positions(scorer, monkeypatch):
    # Not run on a GPU: only what the engine is asked for.
    monkeypatch.setattr(scorer, "_device", "cuda")
    monkeypatch.setattr(module.current_platform, "get_device_total_memory", lambda: 24 * 2**30)
    assert scorer._step_for(scorer._policy, module._IDS) is None
    usual = scorer._step_for(scorer._policy, module._PROMPT)
    monkeypatch.setitem(scorer._options, "gpu_memory_utilization", 0.98)
    less = scorer._step_for(scorer._policy, module._PROMPT)
    assert 0 < less < usual <= module.STEP_TOKENS
    monkeypatch.setitem(scorer._options, "gpu_memory_utilization", 1.0)
    with pytest.raises(InputError, match=r"option memory=1: no memory of the GPU is left for logits; give at most"):
        scorer._step_for(scorer._policy, module._PROMPT)
    monkeypatch.setattr(scorer, "_batched", 77)
    assert {scorer._step_for(scorer._policy, path) for path in module._PATHS} == {77}


def test_asked_for_named_tokens_it_takes_the_right_ones(tokenizer):
    # Model Runner V2, which answers this, needs a GPU: here is only what is asked and how an answer is read.
    ids, scored = trial.rows(tokenizer, 49152, 1000)
    for row, positions, asked in zip(ids, scored, module._ask_ids(ids, scored), strict=True):
        start = asked.prompt_logprob_start
        assert asked.max_tokens == 1
        assert asked.skip_reading_prefix_cache
        assert len(asked.prompt_logprob_token_ids) == len(row) - 1 - start
        # The answer: for the place i of the array, a number that says which position and token it is of.
        answer = np.array([[1000 * (start + 1 + i) + t] for i, [t] in enumerate(asked.prompt_logprob_token_ids)])
        found = module._read_ids(SimpleNamespace(prompt_token_id_logprobs=answer), row, positions)
        np.testing.assert_array_equal(found, 1000 * positions + row[positions])
        assert module._read_ids(SimpleNamespace(prompt_token_id_logprobs=None), row, positions) is None
        assert module._read_ids(SimpleNamespace(prompt_token_id_logprobs=answer[1:]), row, positions) is None


# New weights


def test_the_next_checkpoint_in_the_same_engine(scorer, second, on_gsm8k, next_checkpoint, smollm2, gsm8k_rows):
    ids, scored = gsm8k_rows[0][:8], gsm8k_rows[1][:8]
    before = scorer.provenance
    children = psutil.Process().children(recursive=True)
    try:
        scorer.load(next_checkpoint)
        assert scorer.notes == []
        assert [child for child in children if not child.is_running()] == []
        values = scorer.score(ids, scored, silent)
        expected = TransformersScorer(next_checkpoint, device="cpu", dtype="float32")
        assert scorer.provenance["model"] == expected.provenance["model"] != before["model"]
        assert apart(values, expected.score(ids, scored, silent)).max() <= MOST
        assert apart(values, on_gsm8k[:8]).mean() > 0.01
        second.load(next_checkpoint)
        fresh = second.score(ids, scored, silent)
        assert second.provenance["adapter"] == "none"
        assert apart(values, fresh).max() <= SAME
    finally:
        scorer.load(smollm2)
    assert scorer.provenance == before
    assert apart(scorer.score(ids, scored, silent), on_gsm8k[:8]).max() <= SAME


def test_weights_that_were_not_replaced_are_seen_in_half_precision(scorer, smollm2, tokenizer, tmp_path, monkeypatch):
    """The steps are so small that the bounds of half precision, here on float32's numbers, do not show them."""
    torch.manual_seed(0)
    for name, size in (("now", 0.0), ("next", 0.005), ("near", 1e-5)):
        model = load(smollm2)
        with torch.no_grad():
            for weight in model.parameters():
                # As an engine in half precision has them.
                weight += size * weight.std() * torch.randn_like(weight)
                weight.copy_(weight.bfloat16())
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    after = module._policy(tmp_path / "next", None, None)
    try:
        scorer.load(tmp_path / "now")
        monkeypatch.setattr(scorer, "_dtype", "bfloat16")
        monkeypatch.setattr(scorer, "_compared", None)
        # At the start, and after a load: the same weights give the same bits, so that no step is too small.
        assert scorer._use(scorer._policy, scorer._path) == ""
        _, expected, values = scorer._compared
        assert scorer._use(scorer._policy, scorer._path, again=True) == ""
        assert all(map(np.array_equal, values, scorer._compared[2]))
        for policy in (module._policy(tmp_path / "near", None, None), after):
            wrong = scorer._use(policy, scorer._path, again=True)
            assert wrong == "vLLM applies 0.00 of what the step to these weights changes in transformers"
        scorer._reload(str(tmp_path / "next"))
        assert scorer._use(after, scorer._path, again=True) == ""
        assert scorer.notes == []
        # The bounds would have let the old values pass.
        assert trial.apart(values, scorer._compared[1], "", "bfloat16") == ""
        assert trial.apart(values, expected, "", "float32") == ""
    finally:
        monkeypatch.undo()
        scorer.load(smollm2)


def test_a_checkpoint_that_is_none_leaves_the_scorer_as_it_is(scorer, tmp_path, gsm8k_rows):
    before = scorer.provenance
    with pytest.raises(InputError, match="no such file or folder"):
        scorer.load(tmp_path / "nothing")
    assert scorer.provenance == before
    assert len(scorer.score(gsm8k_rows[0][:1], gsm8k_rows[1][:1], silent)) == 1


def test_the_next_checkpoint_under_an_adapter(second, next_checkpoint, smollm2, adapter, tokenizer, gsm8k_rows):
    ids, scored = gsm8k_rows[0][:8], gsm8k_rows[1][:8]
    engine, before = second._engine, second.score(ids, scored, silent)
    try:
        second.load(smollm2, adapter)
        # The weights went into the engine with its adapter's layers, and no other was started.
        assert second._engine is engine
        assert second.notes == []
        values = second.score(ids, scored, silent)
        merged = peft.PeftModel.from_pretrained(load(smollm2), adapter).merge_and_unload()
        expected = TransformersScorer((merged, tokenizer)).score(ids, scored, silent)
        assert apart(values, expected).max() <= 1e-4
        assert apart(values, before).mean() > 0.01
    finally:
        second.load(next_checkpoint, adapter)
    assert second._engine is engine


# Adapters


def test_an_adapter_that_is_not_applied_is_seen_in_half_precision(second, next_checkpoint, tmp_path, monkeypatch):
    for name, size in (("weak", 0.002), ("nothing", 0.0)):
        adapter_at(tmp_path / name, load(next_checkpoint), std=size)
    second.load(next_checkpoint, tmp_path / "weak")
    assert second.notes == []
    # The bounds of half precision, with numbers that are float32's.
    monkeypatch.setattr(second, "_dtype", "bfloat16")
    monkeypatch.setattr(second, "_compared", None)
    assert second._try(again=True) == ""
    nothing = module.LoRARequest("nothing", 1000, str(tmp_path / "nothing"))
    monkeypatch.setattr(second, "_adapter", nothing)
    wrong = second._try(again=True)
    assert wrong == "vLLM applies 0.00 of what the adapter changes in transformers"
    monkeypatch.undo()
    second.load(next_checkpoint, tmp_path / "nothing")
    assert len(second.notes) == 1
    assert "by 0 nats in the mean: too little beside rounding to see" in second.notes[0]


def test_an_adapter_scores_like_the_merged_model(second, next_checkpoint, adapter, tokenizer, gsm8k_rows):
    ids, scored = gsm8k_rows[0][:8], gsm8k_rows[1][:8]
    second.load(next_checkpoint, adapter)
    values = second.score(ids, scored, silent)
    assert second.provenance["adapter"] == checkpoints.of_path(adapter)
    merged = peft.PeftModel.from_pretrained(load(next_checkpoint), adapter).merge_and_unload()
    expected = TransformersScorer((merged, tokenizer)).score(ids, scored, silent)
    assert apart(values, expected).max() <= 1e-4
    second.load(next_checkpoint)
    assert apart(second.score(ids, scored, silent), values).mean() > 0.01


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_adapters_that_vllm_would_apply_in_part_are_refused(smollm2, tmp_path):
    adapter_at(tmp_path / "head", load(smollm2), target_modules=["q_proj", "lm_head"])
    with pytest.raises(InputError, match=r"changes .*lm_head.* merge"):
        VllmScorer(smollm2, adapter=tmp_path / "head")
    adapter_at(tmp_path / "dora", load(smollm2), use_dora=True)
    with pytest.raises(InputError, match=r"lora_magnitude_vector.*merge"):
        VllmScorer(smollm2, adapter=tmp_path / "dora")
    adapter_at(tmp_path / "rank", load(smollm2), r=600, target_modules=["q_proj"])
    with pytest.raises(InputError, match="rank 600, and vLLM takes 512 at most"):
        VllmScorer(smollm2, adapter=tmp_path / "rank")
    adapter_at(tmp_path / "bias", load(smollm2), bias="lora_only")
    with pytest.raises(InputError, match=r"vLLM cannot apply it: Adapter bias is not supported\. Merge it .*and score"):
        VllmScorer(smollm2, adapter=tmp_path / "bias")


# Refusals


def test_what_vllm_cannot_use_is_refused(smollm2, tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(InputError, match="GGUF files only in part; use the scorer transformers"):
        VllmScorer(file)
    with pytest.raises(InputError, match="no such file or folder"):
        VllmScorer(tmp_path / "nothing")
    with pytest.raises(InputError, match="dtype 'int8': one of float32"):
        VllmScorer(smollm2, dtype="int8")
    with pytest.raises(InputError, match="max_length 100000: the model takes 8191 tokens at most in vLLM"):
        VllmScorer(smollm2, max_length=100_000)


@pytest.mark.parametrize(
    ("option", "value", "complaint"),
    [
        ("memory", 2, "option memory=2: more than 0 and at most 1"),
        ("memory", -1, "option memory=-1: more than 0 and at most 1"),
        ("memory", 0, "option memory=0: more than 0 and at most 1"),
        ("max_length", 1, "option max_length=1: at least 2"),
        ("batched_tokens", 0, "option batched_tokens=0: at least 1"),
        ("batched_tokens", -5, "option batched_tokens=-5: at least 1"),
        ("tensor_parallel", 0, "option tensor_parallel=0: at least 1"),
        ("seed", -1, "option seed=-1: at least 0"),
    ],
)
def test_options_out_of_their_range_are_refused(smollm2, option, value, complaint):
    with pytest.raises(InputError, match=complaint):
        VllmScorer(smollm2, **{option: value})


# The end


def test_another_architecture_gets_a_new_engine_and_a_closed_one_is_gone(
    second, tokenizer, gsm8k_rows, tmp_path, monkeypatch, capfd
):
    """Also: an engine that fails at the first way to ask is started anew for the second."""

    def fails(ids, scored):
        return [SimpleNamespace(broken=True)] * len(ids)

    broken = module._Path("broken", fails, module._PROMPT.read)
    monkeypatch.setattr(module, "_PATHS", (broken, module._PROMPT))
    config = hf.LlamaConfig(
        vocab_size=49152,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
    )
    torch.manual_seed(0)
    hf.LlamaForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    ids, scored = gsm8k_rows[0][:8], gsm8k_rows[1][:8]
    before = set(psutil.Process().children(recursive=True))
    second.load(tmp_path)
    started = set(psutil.Process().children(recursive=True)) - before
    assert started
    assert second._path is module._PROMPT
    assert len(second.notes) == 1
    assert "vLLM computes logits for whole rows" in second.notes[0]
    assert "(broken: vLLM failed, and is closed: " in second.notes[0]
    assert len(second.notes[0].splitlines()) == 1
    assert capfd.readouterr().err.count("starting vLLM") == 2
    expected = TransformersScorer(tmp_path, device="cpu", dtype="float32")
    assert second.provenance["model"] == expected.provenance["model"]
    assert apart(second.score(ids, scored, silent), expected.score(ids, scored, silent)).max() <= MOST
    with pytest.raises(EngineError, match="vLLM failed, and is closed"):
        second._scored(broken, ids, scored, silent, None)
    assert not started & set(psutil.Process().children(recursive=True))
    with pytest.raises(InputError, match="closed"):
        second.score(ids, scored, silent)
