"""The scorer on tiny random models of many architectures, against the full logits of the model's plain forward."""

import copy
import warnings

import numpy as np
import pytest
import torch
import transformers as hf
from torch import nn
from torch.nn import functional

from p3select.errors import InputError
from p3select.progress import silent
from p3select.scorers.transformers import TransformersScorer

VOCABULARY = 131
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
NARROW = {**GROUPED, "head_dim": 8}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32, "num_experts": 4}

# Name → configuration, made only in its own test.
FULL_ATTENTION = {
    "llama, untied": lambda: hf.LlamaConfig(**GROUPED),
    "llama, tied": lambda: hf.LlamaConfig(**GROUPED, tie_word_embeddings=True),
    "qwen2": lambda: hf.Qwen2Config(**GROUPED),
    "qwen3": lambda: hf.Qwen3Config(**NARROW),
    "qwen3, experts": lambda: hf.Qwen3MoeConfig(**NARROW, **EXPERTS),
    "gemma": lambda: hf.GemmaConfig(**NARROW),
    "gpt2": lambda: hf.GPT2Config(**GPT2, n_positions=256),
    "phi": lambda: hf.PhiConfig(**GROUPED),
    "phi3": lambda: hf.Phi3Config(**GROUPED),
    "granite, scaled logits": lambda: hf.GraniteConfig(**GROUPED, logits_scaling=0.25, embedding_multiplier=2.0),
    "cohere, scaled logits": lambda: hf.CohereConfig(**GROUPED, logit_scale=4.0),
    "mixtral, experts": lambda: hf.MixtralConfig(**GROUPED, num_local_experts=4, num_experts_per_tok=2),
    "gpt-neox": lambda: hf.GPTNeoXConfig(**SIZES),
    "opt": lambda: hf.OPTConfig(**SIZES, ffn_dim=64, word_embed_proj_dim=32),
    "bloom": lambda: hf.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4),
    "deepseek3": lambda: hf.DeepseekV3Config(
        **{**SIZES, "num_key_value_heads": 4},
        n_routed_experts=4,
        n_group=1,
        topk_group=1,
        num_experts_per_tok=2,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
        moe_intermediate_size=32,
        first_k_dense_replace=1,
    ),
}
SOFT = {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 8}
WINDOWED = {
    "mistral": lambda: hf.MistralConfig(**GROUPED, sliding_window=16),
    "mistral, window past the probe": lambda: hf.MistralConfig(**GROUPED, sliding_window=75),
    "qwen2, half of its layers": lambda: hf.Qwen2Config(
        **GROUPED, use_sliding_window=True, sliding_window=16, max_window_layers=1
    ),
    "gemma2, soft-capped logits": lambda: hf.Gemma2Config(**NARROW, sliding_window=16, **SOFT),
    "gemma3": lambda: hf.Gemma3TextConfig(**NARROW, sliding_window=16, query_pre_attn_scalar=8),
    "cohere2": lambda: hf.Cohere2Config(
        **GROUPED, logit_scale=4.0, sliding_window=16, layer_types=["sliding_attention", "full_attention"]
    ),
    "llama4, chunks": lambda: hf.Llama4TextConfig(
        **NARROW, attention_chunk_size=16, num_local_experts=2, intermediate_size_mlp=64
    ),
}
RECURRENT = {
    "mamba": lambda: hf.MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=8),
    "lfm2": lambda: hf.Lfm2Config(**GROUPED, layer_types=["conv", "full_attention"]),
    "falcon-h1, both in every layer": lambda: hf.FalconH1Config(
        **NARROW, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8, mamba_chunk_size=16
    ),
}


def build(config):
    """Weights far enough from zero that a wrong position, scale or cap shows in the log-probabilities."""
    torch.manual_seed(1)
    model = hf.AutoModelForCausalLM.from_config(config).float().eval()
    return spread(model)


def spread(model):
    for weight in model.parameters():
        if weight.dim() > 1:
            nn.init.normal_(weight, std=0.2)
    return model


def make_rows(seed=0):
    """Rows on one header, some of them also on a common prompt; rows alone, of one token, and twice the same."""
    random = np.random.default_rng(seed)

    def some(count):
        return random.integers(1, VOCABULARY, count)

    header, first, second = some(70), some(66), some(67)
    parts = [(header, first, some(9)), (header, first, some(13)), (header, second, some(30))]
    parts += [(header, second, some(2)), (header, some(20)), (some(90),), (some(5),), (some(2),), (some(6),)]
    ids = [np.concatenate(part).astype(np.int32) for part in parts]
    ids.append(ids[0].copy())
    scored = [np.arange(len(row) - min(8, len(row) - 1), len(row), dtype=np.int32) for row in ids]
    scored[1], scored[3] = scored[1][[0, 3, 4]], scored[3][-1:]
    return ids, scored


def plain(model, ids, scored):
    """One forward per row, all logits."""
    values = []
    with torch.no_grad():
        for row, positions in zip(ids, scored, strict=True):
            logits = model(input_ids=torch.from_numpy(row).long()[None]).logits[0]
            logs = torch.log_softmax(logits.double(), -1)
            values.append(logs[positions - 1, torch.from_numpy(row[positions]).long()].numpy())
    return values


def apart(values, expected):
    return max(float(np.abs(a - b).max()) for a, b in zip(values, expected, strict=True))


def counted(scorer, model, ids, scored):
    """The values, and how many tokens went through the model."""
    counts = []
    with model.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: counts.append(inputs[0].numel())):
        values = scorer.score(ids, scored, silent)
    return values, sum(counts)


@pytest.mark.parametrize("name", [*FULL_ATTENTION, *WINDOWED])
def test_architectures(name):
    model = build((FULL_ATTENTION | WINDOWED)[name]())
    scorer = TransformersScorer((model, None))
    ids, scored = make_rows()
    values, tokens = counted(scorer, model, ids, scored)
    expected = plain(model, ids, scored)
    assert np.std(np.concatenate(expected)) > 0.2
    assert apart(values, expected) < 1e-4
    assert scorer.notes == []
    total = sum(map(len, ids))
    # A window's reach is beyond the probe: its longest row is scored once more, with and without a cache.
    assert tokens < (0.5 if name in FULL_ATTENTION else 0.85) * total


@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.filterwarnings("ignore:.*beginnings")
def test_recurrent_state_is_not_shared_and_says_so(name):
    model = build(RECURRENT[name]())
    scorer = TransformersScorer((model, None))
    assert len(scorer.notes) == 1
    assert "beginnings that rows share are computed anew" in scorer.notes[0]
    ids, scored = make_rows()
    assert apart(scorer.score(ids, scored, silent), plain(model, ids, scored)) < 1e-4


def test_a_note_is_a_warning_too():
    model = build(RECURRENT["mamba"]())
    with pytest.warns(UserWarning, match="MambaForCausalLM: beginnings"):
        TransformersScorer((model, None))


def test_logits_at_scored_positions_only():
    model = build(FULL_ATTENTION["llama, tied"]())
    scorer = TransformersScorer((model, None))
    ids, scored = make_rows()
    sizes = []
    with model.get_output_embeddings().register_forward_hook(lambda _module, _inputs, out: sizes.append(out.shape)):
        scorer.score(ids, scored, silent)
    # One row of logits for each of the three shared beginnings, which no pass can do without.
    assert sum(rows for _, rows, _ in sizes) == sum(map(len, scored)) + 3


def test_longrope_rows_beyond_its_switch_go_alone():
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [3.0, 5.0, 7.0, 9.0], "factor": 4.0}
    sizes = {**GROUPED, "max_position_embeddings": 512, "original_max_position_embeddings": 100}
    model = build(hf.Phi3Config(**sizes, rope_scaling=rope))
    scorer = TransformersScorer((model, None))
    ids, scored = make_rows()
    values, tokens = counted(scorer, model, ids, scored)
    assert apart(values, plain(model, ids, scored)) < 1e-4
    assert tokens == sum(map(len, ids))
    short = [row for row in range(len(ids)) if len(ids[row]) <= 100]
    ids, scored = [ids[row] for row in short], [scored[row] for row in short]
    assert apart(scorer.score(ids, scored, silent), plain(model, ids, scored)) < 1e-4


class Odd(hf.LlamaForCausalLM):
    """Its forward has its own way with the head; what it gives is still a causal model's logits."""

    def forward(self, input_ids):
        hidden = self.model(input_ids=input_ids, use_cache=False).last_hidden_state
        logits = functional.linear(hidden, self.lm_head.weight)
        return hf.modeling_outputs.CausalLMOutputWithPast(logits=logits)


class Headless(Odd):
    def get_output_embeddings(self):
        return None


@pytest.mark.parametrize(("kind", "why"), [(Odd, "the model's forward returns logits"), (Headless, "no output head")])
def test_full_forward_where_the_head_cannot_be_hooked(kind, why):
    torch.manual_seed(1)
    model = spread(kind(hf.LlamaConfig(**GROUPED)).eval())
    with pytest.warns(UserWarning, match=kind.__name__) as caught:
        scorer = TransformersScorer((model, None))
    assert "logits are computed for whole rows" in scorer.notes[0]
    assert why in scorer.notes[0]
    assert "beginnings" in scorer.notes[1]
    assert [str(item.message) for item in caught] == scorer.notes
    ids, scored = make_rows()
    assert apart(scorer.score(ids, scored, silent), plain(model, ids, scored)) < 1e-4


class FromTheEnd(hf.LlamaForCausalLM):
    """Positions are counted from the end of what it is given, so that padding moves them."""

    def forward(self, input_ids, use_cache=False):
        positions = torch.arange(input_ids.shape[1], 0, -1)[None]
        hidden = self.model(input_ids=input_ids, position_ids=positions, use_cache=False).last_hidden_state
        # A term of the length, for rotary positions are relative.
        return hf.modeling_outputs.CausalLMOutputWithPast(logits=self.lm_head(hidden) * (1 + positions[0, 0] / 99))


def test_no_padding_where_padding_changes_the_scores():
    torch.manual_seed(1)
    model = spread(FromTheEnd(hf.LlamaConfig(**GROUPED)).eval())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scorer = TransformersScorer((model, None))
    assert any("only rows of the same length share a batch" in note for note in scorer.notes)
    ids, scored = make_rows()
    assert apart(scorer.score(ids, scored, silent), plain(model, ids, scored)) < 1e-4


class Forgetful(hf.LlamaForCausalLM):
    """Takes a cache and gives one, but begins again at position 0."""

    def forward(self, input_ids, past_key_values=None, use_cache=False):
        positions = torch.arange(input_ids.shape[1])[None]
        return super().forward(
            input_ids=input_ids, past_key_values=past_key_values, use_cache=use_cache, position_ids=positions
        )


class ForgetfulAfter(hf.LlamaForCausalLM):
    """As the one above, but only after 90 tokens: more than the probe sees."""

    def forward(self, input_ids, past_key_values=None, use_cache=False):
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        start = past if past + input_ids.shape[1] <= 90 else 0
        positions = torch.arange(start, start + input_ids.shape[1])[None]
        return super().forward(
            input_ids=input_ids, past_key_values=past_key_values, use_cache=use_cache, position_ids=positions
        )


def test_a_cache_that_gives_other_numbers_is_not_used():
    torch.manual_seed(1)
    model = spread(Forgetful(hf.LlamaConfig(**GROUPED)).eval())
    with pytest.warns(UserWarning, match=r"computed anew for every row: log-probabilities differ by \d"):
        scorer = TransformersScorer((model, None))
    ids, scored = make_rows()
    assert apart(scorer.score(ids, scored, silent), plain(model, ids, scored)) < 1e-4


def test_a_cache_is_tried_past_the_attention_window():
    torch.manual_seed(1)
    config = hf.LlamaConfig(**GROUPED)
    config.sliding_window = 100
    model = spread(ForgetfulAfter(config).eval())
    scorer = TransformersScorer((model, None))
    assert scorer.notes == []
    ids, scored = make_rows()
    with pytest.warns(UserWarning, match=r"attention window \(100 tokens\) share no beginnings"):
        values = scorer.score(ids, scored, silent)
    assert apart(values, plain(model, ids, scored)) < 1e-4


class Ragged(hf.LlamaForCausalLM):
    def forward(self, input_ids):
        return hf.modeling_outputs.CausalLMOutputWithPast(logits=super().forward(input_ids).logits[:, -1:])


class Silent(hf.LlamaForCausalLM):
    def forward(self, input_ids):
        return (super().forward(input_ids).logits,)


@pytest.mark.parametrize(("kind", "message"), [(Ragged, r"logits \(1, 1, 131\) where"), (Silent, "logits none")])
def test_a_model_without_logits_at_every_position_is_refused(kind, message):
    with pytest.raises(InputError, match=message):
        TransformersScorer((kind(hf.LlamaConfig(**GROUPED)).eval(), None))


def test_vocabulary_larger_than_the_tokenizer():
    class Small:
        def __len__(self):
            return 100

    model = build(FULL_ATTENTION["qwen2"]())
    scorer = TransformersScorer((model, Small()))
    ids, scored = [np.array([3, VOCABULARY - 1, 120], np.int32)], [np.array([1, 2], np.int32)]
    assert apart(scorer.score(ids, scored, silent), plain(model, ids, scored)) < 1e-4


def test_half_precision_agrees_with_its_own_plain_forward():
    model = build(FULL_ATTENTION["llama, untied"]()).bfloat16()
    scorer = TransformersScorer((model, None))
    assert scorer.notes == []
    assert scorer.provenance["dtype"] == "bfloat16"
    ids, scored = make_rows()
    values = scorer.score(ids, scored, silent)
    assert all(item.dtype == np.float32 for item in values)
    means = [np.abs(a - b).mean() for a, b in zip(values, plain(model, ids, scored), strict=True)]
    assert max(means) < 0.05


def test_weights_are_not_copied():
    model = build(FULL_ATTENTION["llama, untied"]())
    before = copy.deepcopy(model)
    scorer = TransformersScorer((model, None))
    ids, scored = make_rows()
    first = scorer.score(ids, scored, silent)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(1.5)
    second = scorer.score(ids, scored, silent)
    assert apart(first, plain(before, ids, scored)) < 1e-4
    assert apart(second, plain(model, ids, scored)) < 1e-4
    assert apart(first, second) > 1e-3
