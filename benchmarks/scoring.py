"""Scoring: tokens/s of p3select and of three loops that people write, on the same rows with the same model.

Variants:
    p3select    TransformersScorer: everything that it does by default
    per-action  the loop of the paper's code: one row at a time, one padded forward per action (line), logits of the
                whole vocabulary over the whole row
    row         a plain forward per row, logits over the whole row, log-softmax, gather
    batch-8     rows in file order, padded batches of eight with an attention mask, logits over the whole batch

and, with eight worked examples in front of every prompt, p3select and ``row`` again.

All variants run in one process with torch's default number of threads, one after the other in every repeat, so that
another load of the machine meets all of them; a ratio is the median over the repeats of the ratios within a repeat. The
slow loops run on evenly spaced rows of the set, as many as the table says; rates are tokens of rows (prompt and
completion, without padding) per second. All variants must agree on the log-probabilities.

With ``--scorer vllm`` there are three variants, on one engine, which take turns at going first:
    p3select        VllmScorer, one call for all rows
    p3select.score  all that ``p3select score`` does but loading the model: tokens, shards one after the other, files
    generate        ``LLM.generate`` with the same prompts and sampling parameters, whose answers nobody reads

With ``--agree N`` nothing is timed: ``p3select score`` runs over the first N rows of ``--data`` with the scorers
transformers and vllm, in float32, and how far apart they are is written to ``results/agreement-vllm.json``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import polars as pl
import torch
import transformers

import p3select
from benchmarks import _folders
from benchmarks._folders import ROOT
from benchmarks._machine import machine
from p3select import scorers, scores
from p3select.progress import silent
from p3select.scorers.transformers import TransformersScorer
from p3select.tokens import TokenRow, encode

if TYPE_CHECKING:
    from collections.abc import Callable

SHOTS = 8
GOALS = {"per-action": 5.0, "row": 1.15, "batch-8": 1.5, "row, 8 shots": 3.0}
VLLM_GOAL = 0.95
SHARDS = 3
# Nats, in float32: between any two variants, per token (per action for the per-action loop).
AGREEMENT = 1e-3
# Between the scorers transformers and vllm, in float32: nats of a token, at most and in the mean; a row's difficulty.
BOUNDS = {"token_most": 5e-4, "token_mean": 5e-5, "difficulty_most": 1e-4}


def main(arguments: list[str]) -> None:
    """Measure, print a table, write ``results/scoring.json``, ``scoring-vllm.json`` or ``agreement-vllm.json``.

    Args:
        arguments: See ``--help``.

    Raises:
        AssertionError: The variants do not give the same numbers.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks scoring", description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=200, help="rows that p3select scores (default 200)")
    parser.add_argument("--repeats", type=int, default=3, help="of every variant (default 3)")
    parser.add_argument("--scorer", choices=("transformers", "vllm"), default="transformers")
    parser.add_argument("--agree", type=int, metavar="N", help="compare vllm with transformers on N rows instead")
    parser.add_argument("--data", type=Path, default=ROOT / "examples" / "gsm8k.parquet", help="of --agree")
    _folders.model(parser)
    parser.add_argument("--out", type=Path, help="file (default: in benchmarks/results)")
    options = parser.parse_args(arguments)

    if options.agree is not None:
        result = agreement(options.model, options.data, options.agree)
        out = options.out or ROOT / "benchmarks" / "results" / "agreement-vllm.json"
        out.write_text(json.dumps(result, indent=2) + "\n")
        print(json.dumps(result["apart"], indent=2))
        return
    chosen, name = (measure_vllm, "scoring-vllm") if options.scorer == "vllm" else (measure, "scoring")
    result = chosen(options.model, options.rows, options.repeats)
    out = options.out or ROOT / "benchmarks" / "results" / f"{name}.json"
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{result['machine']['cpu']}, {result['machine']['cores']} cores; {Path(options.model).name}")
    says = "× the rate of generate" if options.scorer == "vllm" else "× as fast is p3select"
    print(f"{'variant':18} {'rows':>5} {'tokens':>8} {'tokens/s':>9}")
    for name, found in result["variants"].items():
        print(f"{name:18} {found['rows']:5} {found['tokens']:8} {found['tokens_per_second']:9.0f}", end="")
        print(f"   {found['ratio']:.2f} {says} (goal {found['goal']})" if "ratio" in found else "")


def measure(model: str, rows: int, repeats: int) -> dict[str, Any]:
    """Rates and ratios of all variants.

    Args:
        model: A local folder of a causal language model.
        rows: Rows that p3select scores; the other loops take fewer of them.
        repeats: How often each variant runs.

    Returns:
        What is written to the results: machine, versions, variants with rows, tokens, tokens_per_second (median),
        seconds (of every repeat) and ratio (median over the repeats).
    """
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    network = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    scorer = TransformersScorer((network, tokenizer))
    table = pl.read_parquet(ROOT / "examples" / "gsm8k.parquet").select("prompt", "completion")
    shots = "".join(f"Question: {p}\nAnswer: {c}\n\n" for p, c in table.tail(SHOTS).iter_rows())
    chosen = table.head(rows)
    plain = encode(chosen.to_dicts(), tokenizer)
    header = [{"prompt": f"{shots}Question: {p}\nAnswer:", "completion": f" {c}"} for p, c in chosen.iter_rows()]
    shot = encode(header, tokenizer)

    def ours(data: list[TokenRow]) -> list[np.ndarray]:
        return list(scorer.score([row.ids for row in data], [row.scored for row in data], silent))

    variants: dict[str, tuple[Callable[[list[TokenRow]], list[np.ndarray]], list[TokenRow], int]] = {
        "p3select": (ours, plain, rows),
        "per-action": (lambda data: per_action(network, data), plain, rows // 12),
        "row": (lambda data: per_row(network, data), plain, rows // 3),
        "batch-8": (lambda data: per_batch(network, data), plain, rows // 3),
        "p3select, 8 shots": (ours, shot, rows),
        "row, 8 shots": (lambda data: per_row(network, data), shot, rows // 30),
    }
    for function, data, _ in variants.values():
        function(data[:2])  # warm-up
    start_load = os.getloadavg()[0]
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    counts: dict[str, tuple[int, int]] = {}
    for _ in range(repeats):
        values: dict[str, list[np.ndarray]] = {}
        for name, (function, data, count) in variants.items():
            places = np.linspace(0, len(data) - 1, max(count, 2)).astype(int)
            picked = [data[place] for place in places]
            counts[name] = len(picked), sum(len(row.ids) for row in picked)
            start = time.perf_counter()
            found = function(picked)
            seconds[name].append(time.perf_counter() - start)
            if name.startswith("p3select"):
                values[name] = found
                continue
            own = values["p3select, 8 shots" if "shots" in name else "p3select"]
            _agree(name, found, [own[place] for place in places], picked)
    rates = {name: [counts[name][1] / item for item in seconds[name]] for name in variants}
    described: dict[str, dict[str, Any]] = {}
    for name in variants:
        described[name] = {
            "rows": counts[name][0],
            "tokens": counts[name][1],
            "tokens_per_second": round(statistics.median(rates[name]), 1),
            "seconds": [round(item, 2) for item in seconds[name]],
        }
        if name in GOALS:
            own_rates = rates["p3select, 8 shots" if "shots" in name else "p3select"]
            ratios = [a / b for a, b in zip(own_rates, rates[name], strict=True)]
            described[name]["ratio"] = round(statistics.median(ratios), 3)
            described[name]["goal"] = GOALS[name]
    return {**_described(model, "float32", start_load), "repeats": repeats, "variants": described}


def measure_vllm(model: str, rows: int, repeats: int) -> dict[str, Any]:
    """As :func:`measure`, for the scorer vllm, and all of ``p3select.score`` in shards, against the bare engine."""
    import vllm

    from p3select.scorers.vllm import VllmScorer

    start = time.perf_counter()
    scorer = VllmScorer(model)
    started = time.perf_counter() - start
    table = pl.read_parquet(ROOT / "examples" / "gsm8k.parquet").select("prompt", "completion")
    data = encode(table.head(rows).to_dicts(), scorer.tokenizer)
    ids, scored = [row.ids for row in data], [row.scored for row in data]
    prompts: list[Any] = [{"prompt_token_ids": row.tolist()} for row in ids]
    parameters = scorer._path.ask(ids, scored)
    folder = Path(tempfile.mkdtemp())
    table.head(rows).write_parquet(folder / "rows.parquet")
    runs = itertools.count()
    functions: dict[str, Callable[[], Any]] = {
        "p3select": lambda: scorer.score(ids, scored, silent),
        "p3select.score": lambda: p3select.score(
            folder / "rows.parquet", folder / f"run-{next(runs)}", scorer=scorer, shard_rows=-(-rows // SHARDS)
        ),
        "generate": lambda: scorer._engine.generate(prompts, parameters, use_tqdm=False),
    }
    scorer.score(ids[:8], scored[:8], silent)  # warm-up
    start_load = os.getloadavg()[0]
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(repeats):
        values: dict[str, Any] = {}
        for name in list(functions)[:: 1 if repeat % 2 else -1]:
            start = time.perf_counter()
            values[name] = functions[name]()
            seconds[name].append(time.perf_counter() - start)
        for own, *bare in zip(values["p3select"], values["generate"], ids, scored, strict=True):
            np.testing.assert_array_equal(own, scorer._path.read(*bare))
    total = sum(map(len, ids))
    described: dict[str, dict[str, Any]] = {
        name: {
            "rows": len(ids),
            "tokens": total,
            "tokens_per_second": round(statistics.median(total / item for item in times), 1),
            "seconds": [round(item, 2) for item in times],
        }
        for name, times in seconds.items()
    }
    for name in ("p3select", "p3select.score"):
        ratios = [bare / own for own, bare in zip(seconds[name], seconds["generate"], strict=True)]
        described[name] |= {"ratio": round(statistics.median(ratios), 3), "goal": VLLM_GOAL}
    described["p3select.score"]["shards"] = SHARDS
    shutil.rmtree(folder)
    known = scorer.provenance
    scorer.close()
    result = _described(model, known["dtype"], start_load)
    result["versions"]["vllm"] = vllm.__version__
    result["machine"]["device"] = known["device"]
    return {**result, "repeats": repeats, "variants": described, "start_seconds": round(started, 1)}


def agreement(model: str, data: Path, rows: int) -> dict[str, Any]:
    """How far the scorers transformers and vllm are apart in ``p3select.score``.

    Args:
        model: A local folder of a causal language model.
        data: The dataset.
        rows: The first rows of it, which are scored.

    Returns:
        What is written to the results: machine, versions, rows, statuses, tokens, and ``apart``: between tokens'
        log-probabilities (nats) and between rows' difficulties, at most and in the mean, with the ``bounds``.

    Raises:
        AssertionError: A bound does not hold, or a row has another status.
    """
    import vllm

    start_load = os.getloadavg()[0]
    logprobs: dict[str, list[np.ndarray]] = {}
    tables: dict[str, pl.DataFrame] = {}
    with tempfile.TemporaryDirectory() as folder:
        # vLLM last: it leaves the process's threads otherwise.
        for name in ("transformers", "vllm"):
            scorer: Any = scorers.make(name, model, options={"dtype": "float32"})
            own = logprobs[name] = []
            whole = scorer.score

            # The files have sums over actions: the tokens' values are taken on the way to them.
            def score(*call: Any, whole: Any = whole, own: list[np.ndarray] = own) -> list[np.ndarray]:
                values = whole(*call)
                own.extend(values)
                return list(values)

            scorer.score = score
            p3select.score(data, Path(folder, name), scorer=scorer, limit=rows, show_progress=True)
            tables[name] = cast("pl.DataFrame", pl.from_arrow(scores.read(p3select.Run(Path(folder, name)), 1)))
    ours, theirs = tables["transformers"].head(rows), tables["vllm"].head(rows)
    assert ours["status"].equals(theirs["status"]), "a row has another status"
    tokens = np.abs(np.concatenate(logprobs["transformers"]) - np.concatenate(logprobs["vllm"]))
    difficulties = (ours["difficulty"] - theirs["difficulty"]).abs().drop_nulls().to_numpy()
    apart = {
        "token_most": float(tokens.max()),
        "token_mean": float(tokens.mean()),
        "difficulty_most": float(difficulties.max()),
        "difficulty_mean": float(difficulties.mean()),
    }
    assert all(apart[name] <= bound for name, bound in BOUNDS.items()), f"{apart}: beyond {BOUNDS}"
    result = _described(model, "float32", start_load)
    result["versions"] |= {"vllm": vllm.__version__, "p3select": p3select.__version__}
    return {
        **result,
        "benchmark": "agreement-vllm",
        "data": data.name,
        "rows": rows,
        "status": {name: int(count) for name, count in ours["status"].value_counts().iter_rows()},
        "scored_tokens": len(tokens),
        "apart": apart,
        "bounds": BOUNDS,
    }


def _described(model: str, dtype: str, start_load: float) -> dict[str, Any]:
    return {
        "benchmark": "scoring",
        "machine": {**machine(), "torch_threads": torch.get_num_threads(), "load_before": round(start_load, 2)},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "model": Path(model).name,
        "dtype": dtype,
    }


def per_action(network: Any, data: list[TokenRow]) -> list[np.ndarray]:
    """For each action a forward over the row up to the action's end, padded to the row; sums per action."""
    results = []
    for row in data:
        sums = []
        for action in range(int(row.actions[-1]) + 1):
            positions = row.scored[row.actions == action]
            ids = torch.zeros(1, len(row.ids), dtype=torch.long)
            mask = torch.zeros_like(ids)
            ids[0, : positions[-1] + 1] = torch.from_numpy(row.ids[: positions[-1] + 1])
            mask[0, : positions[-1] + 1] = 1
            with torch.no_grad():
                logits = network(input_ids=ids, attention_mask=mask).logits
            sums.append(float(_chosen(logits[0], ids[0], positions).sum()))
        results.append(np.array(sums))
    return results


def per_row(network: Any, data: list[TokenRow]) -> list[np.ndarray]:
    """One plain forward per row."""
    results = []
    for row in data:
        ids = torch.from_numpy(row.ids).long()[None]
        with torch.no_grad():
            logits = network(input_ids=ids).logits
        results.append(_chosen(logits[0], ids[0], row.scored))
    return results


def per_batch(network: Any, data: list[TokenRow], size: int = 8) -> list[np.ndarray]:
    """Padded batches in file order."""
    results = []
    for first in range(0, len(data), size):
        batch = data[first : first + size]
        ids = torch.zeros(len(batch), max(len(row.ids) for row in batch), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for number, row in enumerate(batch):
            ids[number, : len(row.ids)] = torch.from_numpy(row.ids)
            mask[number, : len(row.ids)] = 1
        with torch.no_grad():
            logits = torch.log_softmax(network(input_ids=ids, attention_mask=mask).logits.float(), -1)
        chosen = logits[:, :-1].gather(2, ids[:, 1:, None])[:, :, 0].numpy()
        results += [chosen[number, row.scored - 1] for number, row in enumerate(batch)]
    return results


def _chosen(logits: torch.Tensor, ids: torch.Tensor, positions: Any) -> np.ndarray:
    """Log-softmax of all logits (w, vocabulary), then those of the tokens at the positions."""
    values = torch.log_softmax(logits.float(), -1)[:-1].gather(1, ids[1:, None])[:, 0]
    chosen: np.ndarray = values.numpy()[positions - 1]
    return chosen


def _agree(name: str, found: list[np.ndarray], own: list[np.ndarray], data: list[TokenRow]) -> None:
    for values, expected, row in zip(found, own, data, strict=True):
        if name == "per-action":
            expected = np.bincount(row.actions, weights=expected)
        apart = float(np.abs(values - expected).max())
        assert apart < AGREEMENT, f"{name} differs from p3select by {apart} nats"
