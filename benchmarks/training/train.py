"""One epoch of a training in plain PyTorch that goes on where the last epoch ended.

    python train.py MODEL DATA OUT --epoch 2 --epochs 4 --seed 0 --rows 50

The optimiser's state lies beside the weights, and the rate falls along one line through all epochs. Of data with more
rows than ``--rows`` (the strategy full) epoch e takes the e-th part of one order, so that each row is seen once, in as
many steps as the others.

``seen.json``, in the folder of OUT, has the log-probabilities of each row's targets as they were in its step.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

STATE = "optimizer.pt"
SEEN = "seen.json"
WARM = 0.1
"""Of the steps of all epochs, until the rate is at its top."""


def main() -> None:
    """Train for an epoch."""
    parser = argparse.ArgumentParser()
    for name in ("model", "data", "out"):
        parser.add_argument(name, type=Path)
    for name in ("epoch", "epochs", "seed", "rows", "batch"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    network = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=options.rate, weight_decay=0.0)
    if options.epoch > 1:
        optimizer.load_state_dict(torch.load(options.model / STATE, weights_only=True))

    rows = [json.loads(line) for line in options.data.read_text(encoding="utf-8").splitlines()]
    rows = part(rows, options.rows, options.epoch, options.seed)
    if len(rows) != options.rows:
        raise SystemExit(f"{options.data}: {len(rows)} rows for epoch {options.epoch}, not {options.rows}")
    steps = -(-options.rows // options.batch)
    total, seen = steps * options.epochs, []
    for number in range(steps):
        at = (options.epoch - 1) * steps + number
        warm = max(1.0, WARM * total)
        rate = options.rate * min((at + 1) / warm, (total - at) / (total - warm + 1))
        for group in optimizer.param_groups:
            group["lr"] = rate
        picked = rows[number * options.batch : (number + 1) * options.batch]
        encoded = [encode(row, tokenizer) for row in picked]
        count, loss = sum(len(targets) for _, targets in encoded), 0.0
        # One by one: no padding, and logits of targets alone.
        for row, (tokens, targets) in zip(picked, encoded, strict=True):
            hidden = network.model(input_ids=tokens[None, :-1]).last_hidden_state[0, -len(targets) :]
            each = torch.nn.functional.cross_entropy(network.lm_head(hidden), targets, reduction="none")
            one = each.sum() / count
            one.backward()
            loss += one.item()
            seen.append({"id": row["id"], "step": number + 1, "logprobs": (-each.detach()).tolist()})
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {at + 1} of {total}: loss {loss:.3f}", flush=True)
    options.out.with_name(SEEN).write_text(json.dumps(seen) + "\n")
    network.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    if options.epoch < options.epochs:
        torch.save(optimizer.state_dict(), options.out / STATE)


def part(rows: list[dict[str, str]], count: int, epoch: int, seed: int) -> list[dict[str, str]]:
    """The rows of an epoch in the order that they are trained on: all, or of more than count the epoch's part."""
    if len(rows) <= count:
        return [rows[place] for place in np.random.default_rng([seed, epoch]).permutation(len(rows))]
    # The file of full has another order in each epoch, whose first rows are those that uniform draws.
    rows = sorted(rows, key=lambda row: row["id"])
    order = np.random.default_rng(seed).permutation(len(rows))
    return [rows[place] for place in order[(epoch - 1) * count : epoch * count]]


def encode(row: dict[str, str], tokenizer: AutoTokenizer) -> tuple[torch.Tensor, torch.Tensor]:
    """A row's token ids (length,), and those at its end that are to be learned: the completion's, and the end's."""
    prompt = tokenizer(row["prompt"])["input_ids"]
    whole = torch.tensor([*tokenizer(row["prompt"] + row["completion"])["input_ids"], tokenizer.eos_token_id])
    return whole, whole[len(prompt) :]


if __name__ == "__main__":
    main()
