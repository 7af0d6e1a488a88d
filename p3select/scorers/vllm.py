"""The scorer ``vllm``: log-probabilities of prompts from an engine of vLLM in this process's charge.

Rows go in as token ids and each asks for one token, the least that vLLM can be asked for; what counts is what it says
about the prompt. Newer versions on a GPU give the log-probabilities of named tokens from a position on and compute
logits nowhere else (``prompt_logprob_token_ids``); others give those of the whole prompt (``prompt_logprobs``). Which
of the two an engine takes is found out by asking it.

vLLM has had faults that show in nothing but the numbers. So an engine is tried on a few rows whenever it has new
weights: what comes back must be about the ids that were sent, must not depend on the order of the rows, and must be
what transformers computes; and what an adapter or the step to new weights changes about it must be what it changes in
transformers.
"""

from __future__ import annotations

import io
import os
import re
import warnings
import weakref
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from tqdm import tqdm

from p3select import progress
from p3select.errors import EngineError, InputError, P3Error, RowError
from p3select.scorers import checkpoints, trial
from p3select.scorers.transformers import positions_of

# Read when vLLM is imported. An engine that fails still says why.
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

import vllm
from vllm.config.lora import LoRAConfig, MaxLoRARanks
from vllm.exceptions import VLLMValidationError
from vllm.lora.peft_helper import PEFTHelper
from vllm.lora.request import LoRARequest
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.platforms import current_platform

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    Ids = Sequence[NDArray[np.int32]]
    Values = list[NDArray[np.float32]]

# Bytes on a CPU for the logits of a step's whole rows; a GPU has what vLLM leaves of its memory. vLLM may hold three
# copies of four bytes over the whole vocabulary, and does not count them when it takes its share.
CPU_LOGITS = 2**30
_COPIES = 3 * 4
# Bytes of a CPU's memory for keys and values; vLLM would take nearly all that there is.
CPU_CACHE = 2**30
# Tokens of a step at most where whole rows have logits.
STEP_TOKENS = 8192
SEQUENCES = 256
_NOT_TAKEN = "this engine does not take it"


class VllmScorer:
    """Log-probabilities by vLLM.

    Args:
        model: A local folder or a Hugging Face id.
        tokenizer: A tokenizer, its folder or its id, where it is not the model's own.
        adapter: The folder of a LoRA adapter in PEFT's format, applied without merging. It may not touch embeddings
            or head.
        dtype: ``float32``, ``bfloat16`` or ``float16``; None for bfloat16 on a GPU and float32 on a CPU.
        tensor_parallel: GPUs that share the model.
        memory: The part of the device's memory that vLLM may take, up to 1; None for vLLM's own choice. On a CPU,
            None for a cache of ``CPU_CACHE`` bytes, or of what the environment variable VLLM_CPU_KVCACHE_SPACE says.
        max_length: The longest row to accept, at least 2, where that is less than the model's own limit. Less needs
            less memory.
        batched_tokens: Tokens of a step. None for vLLM's own number on a GPU where logits are computed at scored
            positions alone; else for as many as keep the logits of a step within the memory that vLLM leaves of the
            GPU's, or within ``CPU_LOGITS`` bytes.
        seed: vLLM's.
        compare: Whether to compare with transformers, which for that loads the model into the CPU's memory for a
            moment, in float32. Without, a ``note`` says that nothing vouches for the numbers.

    Attributes:
        tokenizer: The tokenizer.
        max_length: Tokens of the longest row that the engine takes: one less than the model's limit, as vLLM needs
            room for the token that it generates.
        notes: What could not be done or checked as intended, one sentence each.

    Raises:
        InputError: There is no such model, tokenizer or adapter, vLLM cannot use it, an option is out of its range,
            or the trial fails.
        MissingLibraryError: An adapter needs peft.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        tokenizer: Any = None,
        adapter: str | Path | None = None,
        dtype: str | None = None,
        tensor_parallel: int = 1,
        memory: float | None = None,
        max_length: int | None = None,
        batched_tokens: int | None = None,
        seed: int = 0,
        compare: bool = True,
    ) -> None:
        least = {"tensor_parallel": 1, "max_length": 2, "batched_tokens": 1, "seed": 0}
        given = {"tensor_parallel": tensor_parallel, "max_length": max_length, "batched_tokens": batched_tokens}
        for option, value in {**given, "seed": seed}.items():
            if value is not None and value < least[option]:
                raise InputError(f"option {option}={value}: at least {least[option]}")
        if memory is not None and not 0 < memory <= 1:
            raise InputError(f"option memory={memory:g}: more than 0 and at most 1, a part of the device's memory")
        self._device = str(current_platform.device_type)
        if not self._device:
            raise InputError(
                f"vLLM {vllm.__version__} finds no device that it can use here; use the scorer transformers, or a vLLM "
                "that is built for this machine"
            )
        self._dtype = checkpoints.dtype_for(self._device, dtype)
        self._tokenizer = tokenizer
        self._compare = compare
        self._batched = batched_tokens
        self._options: dict[str, Any] = {"tensor_parallel_size": tensor_parallel, "seed": seed}
        if memory is not None:
            self._options["gpu_memory_utilization"] = memory
        if max_length is not None:
            self._options["max_model_len"] = max_length + 1
        self._adapters = 0
        self._engine: Any = None
        self._end: Callable[[], Any] = lambda: None
        self._start(_policy(model, tokenizer, adapter))

    @property
    def provenance(self) -> dict[str, str]:
        """What the numbers depend on."""
        return {
            "scorer": "vllm",
            "model": self._policy.fingerprint,
            "adapter": self._policy.adapter_fingerprint,
            "dtype": self._dtype,
            "device": self._device,
            "torch": torch.__version__,
            "vllm": vllm.__version__,
        }

    def score(self, ids: Ids, scored: Ids, advance: Callable[[int, int], None]) -> Values:
        """Log-probabilities of chosen tokens, each given all the tokens before it in its row.

        Args:
            ids: One array (length,) of token ids per row, each length from 2 to ``max_length``.
            scored: One array (m,) per row: the positions to score, ascending, each at least 1.
            advance: Called with (rows, tokens) as they are done, for progress.

        Returns:
            One float32 array (m,) per row, in the order given: log p(ids[i] | ids[:i]) in nats for i in scored.

        Raises:
            InputError: A token that the model does not have, a row longer than ``max_length``, positions out of
                range, a log-probability that is not finite or is of another token, or an engine that was closed.
            EngineError: The engine failed.
        """
        checkpoints.check_rows(ids, scored, self.max_length, self._vocabulary)
        values = self._scored(self._path, ids, scored, advance, self._adapter) if len(ids) else []
        for row, result in enumerate(values):
            checkpoints.check_finite(row, ids[row], scored[row], result, self._dtype)
        return values

    def load(self, model: str | Path, adapter: str | Path | None = None) -> None:
        """Go on with another checkpoint: in the same engine where its architecture is the same, else in a new one.

        Args:
            model: A local folder or a Hugging Face id; the same as before, where only the adapter is another.
            adapter: The folder of its adapter; None for none.

        Raises:
            InputError: As at the beginning. The scorer is closed then, unless nothing was loaded yet.
        """
        policy = _policy(model, self._tokenizer, adapter)
        why = ""
        if self._engine is not None and _fits(policy, self._base):
            try:
                if policy.fingerprint != self._policy.fingerprint:
                    self._reload(policy.model)
                why = self._use(policy, self._path, again=True)
                if not why:
                    return
            except BaseException as error:
                # Nobody knows what weights it has now.
                self.close()
                if not isinstance(error, Exception):
                    raise
                why = _reason(error)
        self.close()
        self._start(policy)
        if why:
            self.notes.append(f"a new engine was started, as the old one did not take the weights: {why}")

    def close(self) -> None:
        """End the engine and its processes. Also done when the scorer is forgotten, and at the end of the program."""
        self._engine = None
        self._end()

    def _start(self, policy: _Policy) -> None:
        """An engine for a policy, and the first way to ask it that gives the right numbers."""
        self._check_length(policy)
        why: list[str] = []
        for path in _PATHS:
            step = self._step_for(policy, path)
            # One that failed is closed, and one that was started for the other way may take too large steps.
            if self._engine is None or step != self._step:
                self.close()
                self._launch(policy, step)
            wrong = self._use(policy, path)
            if not wrong:
                break
            why.append(f"{path.name}: {wrong}")
        else:
            self.close()
            raise InputError(
                f"vLLM {vllm.__version__} does not give the right log-probabilities here ({'; '.join(why)}); use the "
                "scorer transformers, or another vLLM"
            )
        # On a CPU, that vLLM does not know the first way is as it should be.
        if path is not _IDS and (self._device != "cpu" or any(not each.endswith(_NOT_TAKEN) for each in why)):
            reason = f" ({why[0]})" if why else ""
            self.notes.append(f"vLLM computes logits for whole rows, which takes more time and memory{reason}")

    def _check_length(self, policy: _Policy) -> None:
        """Refuse a length that the model does not have, which vLLM does in many words."""
        wanted, known = self._options.get("max_model_len", 0), positions_of(policy.config.get_text_config())
        if known is None or wanted <= known:  # of a model that names no length vLLM takes any
            return
        # Some ways to stretch positions count for vLLM: it says how far they go.
        options = {"model": policy.model, "revision": _revision(policy), "skip_tokenizer_init": True}
        try:
            with _quiet():
                longest = int(vllm.EngineArgs(**options).create_model_config().max_model_len)
        except Exception as error:
            raise _no_start(policy, error) from error
        if wanted > longest:
            raise InputError(f"max_length {wanted - 1}: the model takes {longest - 1} tokens at most in vLLM")

    def _step_for(self, policy: _Policy, path: _Path) -> int | None:
        """Tokens of a step; None for vLLM's own number."""
        if self._batched is not None:
            return self._batched
        if self._device == "cpu":
            return _step(CPU_LOGITS, policy.config.get_text_config().vocab_size)
        if path is _IDS:
            # Logits of 1024 positions at a time.
            return None
        share = self._options.get("gpu_memory_utilization", vllm.EngineArgs.gpu_memory_utilization)
        left = int((1 - share) * current_platform.get_device_total_memory())
        step = _step(left, policy.config.get_text_config().vocab_size)
        if not step:
            raise InputError(f"option memory={share:g}: no memory of the GPU is left for logits; give at most 0.95")
        return step

    def _launch(self, policy: _Policy, step: int | None) -> None:
        """An engine for a policy."""
        progress.say(f"starting vLLM {vllm.__version__} and trying it on a few rows (a minute or more) …")
        options: dict[str, Any] = {
            "model": policy.model,
            "revision": _revision(policy),
            "dtype": self._dtype,
            "max_num_batched_tokens": step,
            "max_num_seqs": min(SEQUENCES, step or SEQUENCES),
            # It takes ids and generates nothing that anybody reads.
            "skip_tokenizer_init": True,
            "generation_config": "vllm",
            # A prompt's log-probabilities cannot be had of what comes from a cache.
            "enable_prefix_caching": False,
            "use_tqdm_on_load": False,
            **self._options,
        }
        if policy.adapter is not None:
            # vLLM's faults with adapters are in its wrapper of the head, so the head is not wrapped.
            options |= {"enable_lora": True, "max_lora_rank": policy.rank, "lora_target_modules": list(policy.targets)}
        if self._device == "cpu":
            options |= {"enforce_eager": True, "distributed_executor_backend": "mp"}
            # One process less to start, which on a CPU takes longer than all else.
            os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
            if "gpu_memory_utilization" not in options and not os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
                options["kv_cache_memory_bytes"] = CPU_CACHE
        try:
            with _quiet():
                self._engine = engine = vllm.LLM(**options)
        except Exception as error:
            raise _no_start(policy, error) from error
        self._end = weakref.finalize(self, _shut_down, engine)
        self._base = policy
        self._step = step
        # Of the last weights that were compared: which, and for rows of the trial transformers' values and vLLM's.
        self._compared: tuple[str, Values, Values] | None = None
        self.max_length = int(engine.model_config.max_model_len) - 1
        self._vocabulary = int(engine.model_config.get_vocab_size())
        # Steps of the trial are full on a GPU, where they may be too large for its memory.
        full = engine.llm_engine.vllm_config.scheduler_config.max_num_batched_tokens if self._device != "cpu" else 0
        self._trial = trial.rows(policy.tokenizer, self._vocabulary, self.max_length, full)

    def _reload(self, model: str) -> None:
        """Other weights of the same architecture into the engine."""
        self._engine.collective_rpc("reload_weights", kwargs={"weights_path": model})
        if self._device == "cpu":
            self._engine.apply_model(_pack_head)
        self._engine.reset_prefix_cache()

    def _use(self, policy: _Policy, path: _Path, *, again: bool = False) -> str:
        """Ask for the policy whose weights the engine has: what is wrong with it; empty where nothing is.

        Args:
            policy: The policy.
            path: How to ask.
            again: Whether this engine was right with other weights: then fewer rows will do.
        """
        self._policy, self._path = policy, path
        self.tokenizer = policy.tokenizer
        self.notes: list[str] = []
        self._adapter: Any = None
        try:
            if path is _IDS and not again and (why := self._untaken()):
                return why
            if policy.adapter is not None:
                # vLLM keeps adapters by number: a number of its own for each.
                self._adapters += 1
                folder = str(policy.adapter.resolve())
                self._adapter = LoRARequest(f"adapter-{self._adapters}", self._adapters, folder)
                try:
                    self._engine.llm_engine.add_lora(self._adapter)
                except Exception as error:
                    raise InputError(f"adapter {policy.adapter}: vLLM cannot apply it: {_reason(error)}") from error
            return self._try(again)
        except BaseException:
            self.close()
            raise

    def _untaken(self) -> str:
        """Why the engine does not score named tokens of a prompt; empty where it does."""
        row, positions = np.array([1, 2], np.int32), np.array([1], np.int32)
        try:
            outputs = self._engine.generate(
                [{"prompt_token_ids": row.tolist()}], _IDS.ask([row], [positions]), use_tqdm=False
            )
        except VLLMValidationError:
            return _NOT_TAKEN
        except Exception as error:
            self.close()
            return f"vLLM failed: {_reason(error)}"
        return "" if _IDS.read(outputs[0], row, positions) is not None else _NOT_TAKEN

    def _try(self, again: bool = False) -> str:
        """What is wrong with the numbers; empty where nothing is."""
        ids, scored = self._trial
        few = trial.compared(scored, self._dtype)
        if again:
            ids, scored = ids[:few], scored[:few]
        if not self._compare:
            self.notes.append("vLLM's log-probabilities were not compared with those of transformers (compare=false)")
            return self._wrong(ids, scored, [], [], again)
        policy = self._policy
        expected, bare = trial.by_transformers(
            policy.model, policy.config, policy.adapter, self._dtype, ids[:few], scored[:few]
        )
        return self._wrong(ids, scored, expected, bare, again)

    def _wrong(self, ids: Ids, scored: Ids, expected: Values, bare: Values, again: bool = False) -> str:
        """What is wrong with the numbers for these rows; empty where nothing is.

        Args:
            ids: The rows.
            scored: Their scored positions.
            expected: Transformers' values for the first of them.
            bare: The same without the adapter, where there is one.
            again: Whether to leave out the reverse order.
        """
        few = len(expected)
        try:
            values = without = self._scored(self._path, ids, scored, progress.silent, self._adapter)
            turned = []
            if not again:
                turned = self._scored(self._path, ids[::-1], scored[::-1], progress.silent, self._adapter)[::-1]
            # In a call of their own, as after the next weights: so weights that stayed give the same bits, and a step
            # that does not arrive shows however small it is.
            if few and (bare or not again):
                without = self._scored(self._path, ids[:few], scored[:few], progress.silent, None)
        except P3Error as error:
            return str(error)
        wrong = trial.apart(values, turned, "those of the rows in reverse order", self._dtype) or trial.apart(
            values, expected, "those of transformers", self._dtype
        )
        if not wrong and bare:
            wrong = self._wrong_change("the adapter", (without, values[:few]), (bare, expected))
        if not wrong and expected:
            wrong = self._wrong_step(without, bare or expected)
        return wrong

    def _wrong_step(self, values: Values, expected: Values) -> str:
        """What is wrong with the change from the weights before, without adapters: they may not have been replaced."""
        last, now = self._compared, self._policy.fingerprint
        if last and last[0] != now:
            wrong = self._wrong_change("the step to these weights", (last[2], values), (last[1], expected))
            if wrong:
                return wrong
        self._compared = (now, expected, values)
        return ""

    def _wrong_change(self, cause: str, seen: tuple[Values, Values], due: tuple[Values, Values]) -> str:
        wrong, note = trial.change("vLLM", cause, seen, due)
        self.notes += [note] if note else []
        return wrong

    def _scored(self, path: _Path, ids: Ids, scored: Ids, advance: Callable[[int, int], None], adapter: Any) -> Values:
        if self._engine is None:
            raise InputError("this scorer is closed; make a new one")
        ends = np.cumsum([0, *map(len, ids)])
        finished = 0

        def done(rows: int) -> None:
            # The engine takes rows in turn, so that which of them are done is known well enough.
            nonlocal finished
            advance(rows, int(ends[finished + rows] - ends[finished]))
            finished += rows

        try:
            outputs = self._engine.generate(
                [{"prompt_token_ids": row.tolist()} for row in ids],
                path.ask(ids, scored),
                use_tqdm=partial(_Bar, done),
                lora_request=adapter,
            )
        except BaseException as error:
            # Rows that are still in the engine would come back with those of the next call.
            self.close()
            if isinstance(error, Exception):
                raise EngineError(f"vLLM failed, and is closed: {_reason(error)}") from error
            raise
        values = []
        for row, output in enumerate(outputs):
            result = path.read(output, ids[row], scored[row])
            if result is None or list(output.prompt_token_ids) != ids[row].tolist():
                raise RowError(
                    row,
                    f"what vLLM {vllm.__version__} returns is not about the tokens that were sent; use the scorer "
                    "transformers, or another vLLM",
                )
            values.append(result)
        return values


@dataclass(frozen=True)
class _Policy:
    """A checkpoint, with an adapter where it has one."""

    model: str
    config: Any
    tokenizer: Any
    fingerprint: str
    adapter: Path | None
    adapter_fingerprint: str
    targets: frozenset[str]
    """The names of the modules that the adapter changes."""
    rank: int
    """The adapter's, rounded up to one that vLLM knows."""


def _policy(model: str | Path, tokenizer: Any, adapter: str | Path | None) -> _Policy:
    """All that can be said, and refused, without loading weights."""
    if Path(model).is_file():
        raise InputError(
            f"model {str(model)!r}: vLLM reads GGUF files only in part; use the scorer transformers, or give the "
            "folder of the model in Hugging Face's format"
        )
    config, own, fingerprint = checkpoints.describe(model, tokenizer)
    if adapter is None:
        return _Policy(str(model), config, own, fingerprint, None, "none", frozenset(), 0)
    folder = Path(adapter)
    weights, adapter_fingerprint = checkpoints.adapter_weights(checkpoints.empty(config), folder)
    others = sorted(name for name in weights if not re.search(r"\.lora_[AB]\.weight$", name))
    if others or not weights:
        found = others[0] if others else "none"
        raise InputError(
            f"adapter {folder}: vLLM applies the two matrices of LoRA and no more, and this has {found}; merge it into "
            "the model (merge_and_unload) and score the merged model"
        )
    try:
        about = PEFTHelper.from_local_dir(str(folder), None)
        rank = max(about.r, *(weight.shape[0] for name, weight in weights.items() if ".lora_A." in name))
        ranks = [size for size in get_args(MaxLoRARanks) if size >= rank]
        if ranks:
            about.validate_legal(LoRAConfig(max_lora_rank=min(ranks)))
    except Exception as error:
        raise InputError(
            f"adapter {folder}: vLLM cannot apply it: {_reason(error)} Merge it into the model (merge_and_unload) and "
            "score the merged model"
        ) from error
    if not ranks:
        raise InputError(
            f"adapter {folder}: rank {rank}, and vLLM takes {max(get_args(MaxLoRARanks))} at most; merge it"
        )
    targets = frozenset(re.split(r"\.lora_[AB]\.", name)[0].rpartition(".")[2] for name in weights)
    return _Policy(str(model), config, own, fingerprint, folder, adapter_fingerprint, targets, min(ranks))


def _fits(policy: _Policy, base: _Policy) -> bool:
    """Whether an engine that was started for one policy can take another."""
    return (
        Path(policy.model).is_dir()
        and checkpoints.settings(policy.config) == checkpoints.settings(base.config)
        and policy.targets <= base.targets
        and policy.rank <= base.rank
    )


def _revision(policy: _Policy) -> str | None:
    """The commit of a model of the Hub's; None for a folder."""
    return None if Path(policy.model).exists() else policy.fingerprint.rpartition("@")[2]


def _step(room: int, vocabulary: int) -> int:
    """Tokens of a step whose logits fit these bytes; 0 where not even one does."""
    return min(STEP_TOKENS, room // (_COPIES * vocabulary))


@dataclass(frozen=True)
class _Path:
    """A way to ask vLLM for log-probabilities."""

    name: str
    ask: Callable[[Ids, Ids], Any]
    """(ids, scored) → sampling parameters."""
    read: Callable[[Any, NDArray[np.int32], NDArray[np.int32]], NDArray[np.float32] | None]
    """(a row's output, its ids, its scored positions) → values; None where the output is not about these ids."""


def _ask_ids(ids: Ids, scored: Ids) -> list[vllm.SamplingParams]:
    """From the first scored position to the end, one token id to score at each position."""
    return [
        _least(prompt_logprob_token_ids=row[positions[0] :, None], prompt_logprob_start=int(positions[0]) - 1)
        for row, positions in zip(ids, scored, strict=True)
    ]


def _read_ids(output: Any, ids: NDArray[np.int32], scored: NDArray[np.int32]) -> NDArray[np.float32] | None:
    found = output.prompt_token_id_logprobs
    if found is None or found.shape != (len(ids) - scored[0], 1):
        return None
    values: NDArray[np.float32] = found[scored - scored[0], 0].astype(np.float32)
    return values


def _ask_prompt(_ids: Ids, _scored: Ids) -> vllm.SamplingParams:
    return _least(prompt_logprobs=0, flat_logprobs=True)


def _read_prompt(output: Any, ids: NDArray[np.int32], scored: NDArray[np.int32]) -> NDArray[np.float32] | None:
    found = output.prompt_logprobs
    # Each position's tokens begin with the prompt's; the first position has none.
    if found is None or len(found.start_indices) != len(ids):
        return None
    places = np.array(found.start_indices[1:])
    if not np.array_equal(np.array(found.token_ids)[places], ids[1:]):
        return None
    values: NDArray[np.float32] = np.array(found.logprobs, np.float32)[places[scored - 1]]
    return values


_IDS = _Path("prompt_logprob_token_ids", _ask_ids, _read_ids)
_PROMPT = _Path("prompt_logprobs", _ask_prompt, _read_prompt)
# The better one first. Versions without a start mean something else by the ids.
_PATHS = (_IDS, _PROMPT) if hasattr(vllm.SamplingParams, "prompt_logprob_start") else (_PROMPT,)


def _least(**about_prompt: Any) -> vllm.SamplingParams:
    return vllm.SamplingParams(max_tokens=1, temperature=0.0, detokenize=False, **about_prompt)


class _Bar(tqdm):  # type: ignore[misc]
    """vLLM tells how far it is by a progress bar. This one shows nothing, and passes on how many rows are done."""

    monitor_interval = 0

    def __init__(self, done: Callable[[int], None], *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "file": io.StringIO(), "mininterval": 3600.0})
        # vLLM also wraps the rows that it takes in, which come as an argument.
        self._done = None if args else done

    def update(self, n: float | None = 1) -> bool | None:
        """So many more rows are done."""
        if self._done is not None and n:
            self._done(int(n))
        shown: bool | None = super().update(n)
        return shown


@contextmanager
def _quiet() -> Iterator[None]:
    """Hush what an engine's processes say beside vLLM's own errors, unless the user has asked to hear it.

    On a CPU, vLLM leaves this process with a single thread of torch, which is also set right.
    """
    threads = torch.get_num_threads()
    hushed = {"PYTHONWARNINGS": "ignore", "TORCH_CPP_LOG_LEVEL": "ERROR", "TORCH_LOGS": "-all"}
    fresh = [name for name in hushed if name not in os.environ]
    os.environ.update({name: hushed[name] for name in fresh})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(threads)
        for name in fresh:
            os.environ.pop(name, None)


def _pack_head(model: Any) -> None:
    """Pack the head for the CPU again, in vLLM's process: a head that is tied keeps the old weights there otherwise."""
    for layer in model.modules():
        if isinstance(layer, ParallelLMHead):
            layer.quant_method.process_weights_after_loading(layer)


def _shut_down(engine: vllm.LLM) -> None:
    engine.llm_engine.engine_core.shutdown()


def _no_start(policy: _Policy, error: Exception) -> InputError:
    return InputError(f"model {policy.model!r}: vLLM {vllm.__version__} does not start with it: {_reason(error)}")


def _reason(error: BaseException) -> str:
    """What went wrong in one line, out of the frame that pydantic puts around it."""
    inside = re.search(r"\b\w+ error, (.+?)(?: \[type=|$)", str(error), re.MULTILINE)
    return inside[1] if inside else checkpoints.first_line(error)
