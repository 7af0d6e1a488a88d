"""One training in plain PyTorch, which knows nothing of p3select: for examples/loop_pytorch.py.

    python examples/train_pytorch.py MODEL DATA OUT

DATA is a file of JSON Lines with prompt and completion; the loss is on the completion.
"""

import json
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

model, data, out = sys.argv[1:]
BATCH = 3
tokenizer = AutoTokenizer.from_pretrained(model)
network = AutoModelForCausalLM.from_pretrained(model, dtype="float32").train()
# Each epoch is a training of its own, so the rate is constant.
optimizer = torch.optim.AdamW(network.parameters(), lr=2e-5)

with open(data, encoding="utf-8") as file:
    rows = [json.loads(line) for line in file]
for number, row in enumerate(rows, start=1):
    prompt = tokenizer(row["prompt"])["input_ids"]
    ids = [*tokenizer(row["prompt"] + row["completion"])["input_ids"], tokenizer.eos_token_id]
    labels = [-100] * len(prompt) + ids[len(prompt) :]
    loss = network(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss
    (loss / BATCH).backward()
    print(f"row {number} of {len(rows)}: loss {loss.item():.3f}")
    if number % BATCH == 0 or number == len(rows):
        optimizer.step()
        optimizer.zero_grad()

network.save_pretrained(out)
tokenizer.save_pretrained(out)
