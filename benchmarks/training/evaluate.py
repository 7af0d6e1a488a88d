"""What a model knows of rows that it was not trained on: nats per token of their completions, and exact match.

    python evaluate.py MODEL ROWS.parquet OUT.json --answers 60

The model writes answers greedily to the prompts of the first ``--answers`` rows; an answer is right where
:func:`answer` finds the same in it as in the row's completion.
"""

import argparse
import json
import re
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import p3select

# Commas are of thousands; a number with another one before a digit is no one number.
NUMBER = re.compile(r"-?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?!,?\d)(?:\.\d+)?|\.\d+)")
TOKENS = 200
"""Of an answer; what is longer is cut."""
TOGETHER = 30
"""Answers written at once."""


def main() -> None:
    """Evaluate and write."""
    parser = argparse.ArgumentParser()
    for name in ("model", "rows", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--answers", type=int, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = p3select.Run(folder)
        p3select.score(options.rows, run, options.model, scorer="transformers")
        scored = pl.read_parquet(run.scores(1) / "*.parquet")
    if scored["logprob"].null_count():
        raise SystemExit(f"{options.rows}: {scored['logprob'].null_count()} rows have no score")
    found = {"loss": -float(scored["logprob"].to_numpy().sum()) / int(scored["tokens"].to_numpy().sum())}
    rows = pl.read_parquet(options.rows).head(options.answers)
    if options.answers:
        right = [
            one is not None and one == answer(text)
            for one, text in zip(map(answer, rows["completion"]), written(options.model, rows["prompt"]), strict=True)
        ]
        found["exact match"] = float(np.mean(right))
    options.out.write_text(json.dumps(found) + "\n")


def written(model: Path, prompts: pl.Series) -> list[str]:
    """The answers of a model, greedily."""
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    texts: list[str] = []
    for first in range(0, len(prompts), TOGETHER):
        asked = tokenizer(prompts[first : first + TOGETHER].to_list(), return_tensors="pt", padding=True)
        with torch.inference_mode():
            ids = network.generate(**asked, max_new_tokens=TOKENS, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        texts += tokenizer.batch_decode(ids[:, asked["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


def answer(text: str) -> str | None:
    r"""The final answer of a solution: what the last closed ``\boxed{}`` holds, else the number after ``####``.

    None where there is neither. Braces may be nested. Of several ``####`` the first counts, as a model goes on after
    its answer. Written in one way: blanks, signs of money and of percent, and commas of thousands count for nothing,
    nor do ``\left``, ``\right`` and the kinds of ``\frac``; 18.0 is 18, and .5 is 0.5.
    """
    for start in reversed([match.end() for match in re.finditer(r"\\boxed\{", text)]):
        depth = 1
        for place in range(start, len(text)):
            depth += (text[place] == "{") - (text[place] == "}")
            if not depth:
                return plain(text[start:place])
    _, marked, rest = text.partition("####")
    match = NUMBER.match(rest.lstrip().lstrip("$")) if marked else None
    return None if match is None else plain(match[0])


def plain(text: str) -> str:
    """An answer written in one way; see :func:`answer`."""
    text = re.sub(r"\\[!,;: ]|\\?[$%]|\\left|\\right|\s", "", text)
    text = text.replace("{,}", ",")
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    text = re.sub(r"\\frac(\w)(\w)", r"\\frac{\1}{\2}", text)
    if NUMBER.fullmatch(text):
        return f"{float(text.replace(',', '')):.12g}"
    return text


if __name__ == "__main__":
    main()
