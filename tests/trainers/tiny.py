"""The small training that every trainer's tests run: its sizes, its model, and indices drawn for it."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import p3select
from tests.fakes import FakeScorer

ROWS, K, EPOCHS = 40, 13, 3
# 13 rows: 5 batches, the last of one row; 3 steps, the last of one batch.
BATCH, ACCUMULATION, STEPS = 3, 2, 3
VOCABULARY = 1000


def tiny(seed=0):
    """Two layers of Llama, with dropout, so that evaluation mode and random states matter."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=512,
            attention_dropout=0.2,
            pad_token_id=2,
        )
    )


def select(data, tokenizer, run, budgets, **options):
    """Give a run folder an index of so many drawn rows for each epoch."""
    for epoch, budget in enumerate(budgets, start=1):
        p3select.score(data, run, scorer=FakeScorer(tokenizer, model=f"fake-{epoch}"), epoch=epoch, **options)
        p3select.select(
            run, epoch=epoch, epochs=len(budgets), budget=budget, pace="constant:100", selector="uniform", seed=epoch
        )
    return run
