"""The scorer ``transformers``: one teacher-forced pass per row through a Hugging Face causal language model.

Logits are computed where a token is scored and nowhere else: a hook in front of the model's output head passes on
just the hidden states that are wanted, so that all which the model itself does to its logits (soft-capping, scaling,
a tied head) is done by the model itself. What rests on assumptions about the architecture (the hook, padding without
a mask, reuse of a cache) is tried on a few tokens when the model is loaded; what does not agree with the model's plain
forward is not used, and ``notes`` says so.

On a CPU, batches run side by side in threads of their own, which loses less than threads inside an operation.
"""

from __future__ import annotations

import copy
import inspect
import threading
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers

from p3select.errors import InputError
from p3select.scorers.batches import Batch, Limits, Prefix, plan
from p3select.scorers.checkpoints import adapt, check_finite, check_rows, first_line, load, name_of, of_weights, part

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    Ids = Sequence[NDArray[np.int32]]
    Values = list[NDArray[np.float32]]
    # Of logits (m, vocabulary) and the tokens that are there (m,), one float32 value each, or several: (m, …).
    Reading = Callable[[torch.Tensor, NDArray[np.int32]], NDArray[np.float32]]

# Tokens of a batch. A CPU gains nothing from more; a GPU is busy with these.
CPU_TOKENS = 512
CUDA_TOKENS = 8192
# Bytes for the logits of a batch, with the two copies that soft-capping makes; on CUDA at most a quarter of what is
# free, as a power of two, so that a little more or less free memory does not change the batches.
CPU_LOGITS = 2**30
CUDA_LOGITS = 2**33
PADDING = 0.05
# On a CPU, at most so many batches side by side, for the sake of memory; further cores work inside operations.
SIDE_BY_SIDE = 8
# Rows of logits whose log-softmax is taken at once.
_CHUNK = 128
_PROBE_TOKENS = 24


class TransformersScorer:
    """Log-probabilities by a causal language model of transformers.

    Args:
        model: A local folder, a GGUF file or a Hugging Face id; or a live (model, tokenizer) pair, whose weights are
            used where they are. A live model is left as it was found: each module's training mode, hooks, gradients
            and the state of random generators.
        tokenizer: A tokenizer, its folder or its id, where it is not the model's own.
        adapter: A PEFT adapter's folder, applied without merging. It may not touch embeddings or head.
        device: ``cpu``, ``cuda``, ``cuda:1``; None takes CUDA where there is one.
        dtype: ``float32``, ``bfloat16`` or ``float16``; None for bfloat16 on CUDA and float32 on a CPU.
        max_length: The longest row to accept, where that is less than the model's own limit.

    Attributes:
        model: The model. Where it was loaded here, ``provenance`` takes it that its weights stay as they are: to score
            a model in training, give it as a live pair.
        tokenizer: The tokenizer.
        max_length: Tokens of the longest row that the model takes; None where it has no limit.
        notes: What could not be done as fast or as frugally as intended, one sentence each; also warned of.

    Raises:
        InputError: There is no such model, tokenizer or adapter, or it is not a causal language model.
        MissingLibraryError: A GGUF file needs gguf, an adapter needs peft.
    """

    def __init__(
        self,
        model: str | Path | tuple[Any, Any],
        *,
        tokenizer: Any = None,
        adapter: str | Path | None = None,
        device: str | None = None,
        dtype: str | None = None,
        max_length: int | None = None,
    ) -> None:
        self.notes: list[str] = []
        self._fingerprint: str | None = None
        self._adapter = "none"
        if isinstance(model, (str, Path)):
            self.model, self.tokenizer, self._fingerprint = load(model, tokenizer, device, dtype)
            if adapter is not None:
                self.model, self._adapter = adapt(self.model, Path(adapter))
        else:
            if not (adapter is None and device is None and dtype is None and tokenizer is None):
                raise InputError("a live (model, tokenizer) pair has its adapter, device and dtype: leave them out")
            self.model, self.tokenizer = model
        config: Any = getattr(self.model, "config", None)
        self._config = config.get_text_config() if hasattr(config, "get_text_config") else config
        self._device = next(self.model.parameters()).device
        self._dtype = next(weight.dtype for weight in self.model.parameters() if weight.is_floating_point())
        self._head = part(self.model, "get_output_embeddings")
        self._vocabulary = self._tokens_known()
        self.max_length = own = positions_of(self._config)
        if max_length is not None:
            if own is not None and max_length > own:
                raise InputError(f"max_length {max_length}: the model takes {own} tokens at most")
            self.max_length = max_length
        # The hook finds here what the pass of its own thread wants.
        self._pass = threading.local()
        self._cached = _accepts(self.model, "use_cache")
        self._gathers = self._head is not None
        self._padding = PADDING
        self._shares = True
        self._probe(min(_PROBE_TOKENS, own or _PROBE_TOKENS))

    @property
    def provenance(self) -> dict[str, str]:
        """What the numbers depend on. A live model's weights are read anew at each access: training changes them."""
        return {
            "scorer": "transformers",
            "model": self._fingerprint or of_weights(self.model),
            "adapter": self._adapter,
            "dtype": name_of(self._dtype),
            "device": self._device.type,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }

    def score(self, ids: Ids, scored: Ids, advance: Callable[[int, int], None]) -> Values:
        """Log-probabilities of chosen tokens, each given all the tokens before it in its row.

        The same rows in the same order give the same bytes on the same machine; beside other rows, a row's values
        differ by rounding (less than 1e-4 nats in float32).

        Args:
            ids: One array (length,) of token ids per row, each length from 2 to ``max_length``.
            scored: One array (m,) per row: the positions to score, ascending, each at least 1.
            advance: Called with (rows, tokens) as they are done, for progress.

        Returns:
            One float32 array (m,) per row, in the order given: log p(ids[i] | ids[:i]) in nats for i in scored.

        Raises:
            InputError: A token that the model does not have, a row longer than ``max_length``, positions out of
                range, a log-probability that is not finite, or a row too long for the memory.
        """
        return self._score(ids, scored, advance, log_probabilities)

    def score_with_errors(self, ids: Ids, scored: Ids, advance: Callable[[int, int], None]) -> tuple[Values, Values]:
        """What :meth:`score` gives, the same bytes; and of the same tokens, in the same pass, the errors.

        Args:
            ids: As for :meth:`score`.
            scored: As for :meth:`score`.
            advance: As for :meth:`score`.

        Returns:
            Log-probabilities; and one float32 array (m,) per row of the L2 norms ‖p − onehot(ids[i])‖ of all tokens'
            probabilities p given ids[:i], from 0 to √2, for i in scored (EL2N, arXiv 2107.07075).

        Raises:
            InputError: As :meth:`score`.
        """
        both = self._score(ids, scored, advance, with_errors)
        return [values[:, 0] for values in both], [values[:, 1] for values in both]

    def _score(self, ids: Ids, scored: Ids, advance: Callable[[int, int], None], reading: Reading) -> Values:
        """What is read from the logits before each chosen token."""
        check_rows(ids, scored, self.max_length, self._vocabulary)
        values: dict[int, NDArray[np.float32]] = {}
        with self._ready():
            for batch, results in self._run(ids, scored, *self._planned(ids, scored), reading):
                values.update(zip(batch.rows, results, strict=True))
                advance(len(batch.rows), sum(len(ids[row]) for row in batch.rows))
        return [values[row] for row in range(len(ids))]

    def _planned(self, ids: Ids, scored: Ids) -> tuple[list[Batch], int]:
        """The batches, and how many of them may run side by side."""
        together = self._together()
        turn = _turn(self._config)
        if turn is not None and max(map(len, ids), default=0) > turn:
            # The longest row of a pass decides how all of its positions are encoded, and so do those in a cache.
            # In turn, for the model remembers the encoding of its last pass.
            return [Batch([row], None) for row in range(len(ids))], 1
        batches = self._plan(ids, scored, self._shares)
        window = _window(self._config)
        shared = [(len(ids[row]), row, batch.prefix) for batch in batches if batch.prefix for row in batch.rows]
        if shared and window is not None:
            # The probe may not have reached past the window of the model's attention: the longest row does.
            length, row, prefix = max(shared, key=lambda item: item[:2])
            if length > window:
                plain = self._values(ids, scored, [Batch([row], None)])
                why = self._differs(ids, scored, [Batch([row], prefix)], plain)
                if why:
                    self._note(f"rows longer than the attention window ({window} tokens) share no beginnings: {why}")
                    batches = self._plan(ids, scored, False)
        return batches, together

    def _together(self) -> int:
        """How many batches run side by side: on a CPU, threads that do a batch each lose less than those that share."""
        return 1 if self._device.type == "cuda" else min(torch.get_num_threads(), SIDE_BY_SIDE)

    def _plan(self, ids: Ids, scored: Ids, share: bool) -> list[Batch]:
        logits = list(map(len, scored if self._gathers else ids))
        # The logits at a position are those of the token after it.
        free = [int(positions[0]) - 1 for positions in scored] if share else None
        tokens, memory = CPU_TOKENS, CPU_LOGITS
        if self._device.type == "cuda":
            spare = torch.cuda.mem_get_info(self._device)[0] // 4
            tokens, memory = CUDA_TOKENS, min(CUDA_LOGITS, 1 << (spare.bit_length() - 1))
        most = memory // (3 * self._vocabulary * self._dtype.itemsize)
        return plan(ids, logits, free, Limits(tokens, most, self._padding))

    def _run(
        self, ids: Ids, scored: Ids, batches: list[Batch], together: int, reading: Reading
    ) -> Iterator[tuple[Batch, Values]]:
        """Each batch with its rows' values, as they are done."""
        caches = _Caches(batches, lambda prefix, past: self._cache(ids, prefix, past))

        def work(batch: Batch) -> Values:
            with torch.no_grad():
                past = caches.take(batch.prefix)
                start = batch.prefix.stop if batch.prefix else 0
                results = self._scored(ids, scored, batch.rows, start, past, reading)
                caches.give_back(batch.prefix)
                return results

        # In a thread of its own even a single batch meets neither autocast nor another mode of its caller.
        threads = max(1, torch.get_num_threads() // self._together())
        with ThreadPoolExecutor(together, "p3select", torch.set_num_threads, (threads,)) as pool:
            futures = {pool.submit(work, batch): batch for batch in batches}
            try:
                for future in as_completed(futures):
                    yield futures.pop(future), future.result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _values(self, ids: Ids, scored: Ids, batches: list[Batch]) -> dict[int, NDArray[np.float32]]:
        return {
            row: result
            for batch, results in self._run(ids, scored, batches, 1, log_probabilities)
            for row, result in zip(batch.rows, results, strict=True)
        }

    def _scored(self, ids: Ids, scored: Ids, rows: list[int], start: int, past: Any, reading: Reading) -> Values:
        """The values of a batch, in halves where CUDA has no memory for the whole."""
        try:
            return self._scored_at_once(ids, scored, rows, start, past, reading)
        except torch.cuda.OutOfMemoryError as error:
            if len(rows) == 1:
                raise _no_memory(len(ids[rows[0]])) from error
        torch.cuda.empty_cache()
        half = len(rows) // 2
        return [
            *self._scored(ids, scored, rows[:half], start, past, reading),
            *self._scored(ids, scored, rows[half:], start, past, reading),
        ]

    def _scored_at_once(
        self, ids: Ids, scored: Ids, rows: list[int], start: int, past: Any, reading: Reading
    ) -> Values:
        width = max(len(ids[row]) for row in rows) - start
        tokens = np.zeros((len(rows), width), np.int64)
        for number, row in enumerate(rows):
            tokens[number, : len(ids[row]) - start] = ids[row][start:]
        wanted = [number * width + scored[row] - start - 1 for number, row in enumerate(rows)]
        targets = [ids[row][scored[row]] for row in rows]
        logits, _ = self._forward(tokens, np.concatenate(wanted), _repeated(past, len(rows)), False)
        values = reading(logits, np.concatenate(targets))
        results = np.split(values, np.cumsum([len(item) for item in targets])[:-1])
        for row, result in zip(rows, results, strict=True):
            # The first of several: if it is finite, all are.
            own = result.reshape(len(result), -1)[:, 0]
            check_finite(row, ids[row], scored[row], own, name_of(self._dtype))
        return results

    def _cache(self, ids: Ids, prefix: Prefix, past: Any) -> Any:
        """The model's cache after a prefix; ``past`` is the one after its parent."""
        tokens = ids[prefix.row][None, prefix.start : prefix.stop].astype(np.int64)
        try:
            return self._forward(tokens, np.zeros(1, np.int64), _repeated(past, 1), True)[1]
        except torch.cuda.OutOfMemoryError as error:
            raise _no_memory(prefix.stop) from error

    def _forward(
        self, tokens: NDArray[np.int64], wanted: NDArray[np.int64], past: Any, keep: bool
    ) -> tuple[torch.Tensor, Any]:
        """Logits (m, vocabulary) at the wanted places of the flattened tokens (b, w), and the cache."""
        options: dict[str, Any] = {} if past is None else {"past_key_values": past}
        if self._cached:
            options["use_cache"] = keep or past is not None
        places = torch.from_numpy(wanted)
        self._pass.wanted = (tokens.size, places) if self._gathers else None
        try:
            output = self.model(input_ids=torch.from_numpy(tokens).to(self._device), **options)
        finally:
            self._pass.wanted = None
        logits, cache = getattr(output, "logits", None), getattr(output, "past_key_values", None)
        shape = (1, len(wanted)) if self._gathers else tokens.shape
        if logits is None or logits.shape[:2] != shape:
            found = "none" if logits is None else str(tuple(logits.shape))
            raise InputError(f"the model's forward returns logits {found} where {(*shape, 'vocabulary')} are due")
        if keep and cache is None:
            raise InputError("the model's forward returns no cache")
        logits = logits.reshape(-1, logits.shape[-1])
        return (logits if self._gathers else logits[places.to(logits.device)]), cache

    def _gather(self, _head: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """The hook in front of the output head: of the hidden states (b, w, h), those wanted, as (1, m, h)."""
        wanted = getattr(self._pass, "wanted", None)
        if wanted is None or not inputs:
            return None
        count, places = wanted
        hidden = inputs[0].reshape(-1, inputs[0].shape[-1])
        if len(hidden) != count:
            return None
        return (hidden[places.to(hidden.device)][None], *inputs[1:])

    @contextmanager
    def _ready(self) -> Iterator[None]:
        """The model in evaluation mode with the hook on it; afterwards as it was."""
        modes = [(module, module.training) for module in self.model.modules()]
        threads = torch.get_num_threads()
        hook = nullcontext() if self._head is None else self._head.register_forward_pre_hook(self._gather)
        self.model.eval()
        try:
            with hook:
                yield
        finally:
            for module, mode in modes:
                module.training = mode
            torch.set_num_threads(threads)

    def _probe(self, length: int) -> None:
        """Find out by trying which of the short cuts this model allows."""
        # Three rows: all share a third, the first two share two thirds, the last one is shorter. No ids below 100:
        # special tokens are there.
        first = 100 if self._vocabulary >= 1000 else 0
        row = first + np.arange(2 * length, dtype=np.int32) * 7 % min(900, self._vocabulary)
        third = length // 3
        ids = [
            row[:length],
            np.concatenate([row[: 2 * third], row[length : 2 * length - 2 * third]]),
            np.concatenate([row[:third], row[length + 1 : 2 * length - 2 * third]]),
        ]
        scored = [np.arange(third * part + 1, len(ids[n]), dtype=np.int32) for n, part in enumerate((2, 2, 1))]
        with self._ready():
            gathers, self._gathers = self._gathers, False
            plain = self._values(ids, scored, [Batch([n], None) for n in range(3)])
            self._gathers = gathers
            why = self._differs(ids, scored, [Batch([0], None)], plain) if gathers else "it names no output head"
            if why:
                self._gathers = False
                self._note(f"logits are computed for whole rows, which takes more time and memory: {why}")
            if why := self._differs(ids, scored, [Batch([0, 2], None)], plain):
                self._padding = 0.0
                self._note(f"only rows of the same length share a batch, for padding changes what is scored: {why}")
            outer = Prefix(0, 0, third, None)
            inner = Prefix(0, third, 2 * third, outer)
            trial = [Batch([2], outer), Batch([0, 1], inner), Batch([1], inner)]
            if why := self._differs(ids, scored, trial, plain):
                self._shares = False
                self._note(f"beginnings that rows share are computed anew for every row: {why}")

    def _differs(self, ids: Ids, scored: Ids, batches: list[Batch], plain: dict[int, NDArray[np.float32]]) -> str:
        """Why these batches do not give the plain values; empty where they do."""
        try:
            # In turn: what a pass does to a cache that it should leave alone is to show in the next one.
            for batch, results in self._run(ids, scored, batches, 1, log_probabilities):
                for row, result in zip(batch.rows, results, strict=True):
                    apart = np.abs(result - plain[row])
                    # In half precision single tokens differ by tenths between any two ways to compute them.
                    wrong = apart.max() > 2e-4 if self._dtype == torch.float32 else apart.mean() > 0.05
                    if wrong:
                        return f"log-probabilities differ by {apart.max():.2g} from the plain forward's"
        except Exception as error:
            return f"{type(error).__name__}: {first_line(error)}"
        return ""

    def _note(self, text: str) -> None:
        text = f"{type(self.model).__name__}: {text}"
        if text not in self.notes:
            self.notes.append(text)
            warnings.warn(text, stacklevel=2)

    def _tokens_known(self) -> int:
        embeddings = part(self.model, "get_input_embeddings")
        count = getattr(embeddings, "num_embeddings", None) or getattr(self._config, "vocab_size", None)
        return int(count or len(self.tokenizer))


class _Caches:
    """The model's caches after shared prefixes: made when first wanted, dropped after their last use."""

    def __init__(self, batches: list[Batch], compute: Callable[[Prefix, Any], Any]) -> None:
        self._compute = compute
        self._kept: dict[Prefix, Any] = {}
        self._users = Counter(batch.prefix for batch in batches if batch.prefix is not None)
        pending = list(self._users)
        for prefix in pending:
            if prefix.parent is not None:
                if prefix.parent not in self._users:
                    pending.append(prefix.parent)
                self._users[prefix.parent] += 1
        self._counting = threading.Lock()
        self._locks = {prefix: threading.Lock() for prefix in pending}

    def take(self, prefix: Prefix | None) -> Any:
        if prefix is None:
            return None
        with self._locks[prefix]:
            if prefix not in self._kept:
                self._kept[prefix] = self._compute(prefix, self.take(prefix.parent))
                self.give_back(prefix.parent)
            return self._kept[prefix]

    def give_back(self, prefix: Prefix | None) -> None:
        if prefix is not None:
            with self._counting:
                self._users[prefix] -= 1
                if not self._users[prefix]:
                    del self._kept[prefix]


def _repeated(cache: Any, rows: int) -> Any:
    """A cache for so many rows that a forward pass may extend while the given one stays as it is."""
    if cache is None:
        return None
    fresh = copy.copy(cache)
    fresh.layers = [copy.copy(layer) for layer in cache.layers]
    # Also for one row: layers that cannot be repeated keep a state that the pass would write into.
    fresh.batch_repeat_interleave(rows)
    return fresh


def log_probabilities(logits: torch.Tensor, targets: NDArray[np.int32]) -> NDArray[np.float32]:
    """Log-softmax in float32 of logits (m, vocabulary) at the targets (m,), a chunk of rows at a time."""
    return _by_chunks(logits, targets, lambda logs, chosen: logs.gather(1, chosen)[:, 0])


def with_errors(logits: torch.Tensor, targets: NDArray[np.int32]) -> NDArray[np.float32]:
    """The same, and the L2 norms of softmax − onehot(target) beside it (m, 2)."""

    def read(logs: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        found = logs.gather(1, chosen)
        # p − 1 as expm1(log p), and no Σ p² − 2 p + 1: next to certainty float32 has no digits left for these.
        errors = logs.exp_().scatter_(1, chosen, torch.expm1(found))
        return torch.cat([found, torch.linalg.vector_norm(errors, dim=-1, keepdim=True)], 1)

    return _by_chunks(logits, targets, read)


def _by_chunks(
    logits: torch.Tensor,
    targets: NDArray[np.int32],
    read: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> NDArray[np.float32]:
    """What is read from log-softmax in float32 (c, vocabulary) at the targets (c, 1), a chunk of rows at a time."""
    chosen = torch.from_numpy(targets.astype(np.int64)).to(logits.device)[:, None]
    chunks = [
        read(torch.log_softmax(logits[i : i + _CHUNK].float(), -1), chosen[i : i + _CHUNK])
        for i in range(0, len(chosen), _CHUNK)
    ]
    values: NDArray[np.float32] = torch.cat(chunks).cpu().numpy()
    return values


def _accepts(model: Any, option: str) -> bool:
    parameters = inspect.signature(model.forward).parameters.values()
    return any(item.name == option or item.kind == item.VAR_KEYWORD for item in parameters)


def positions_of(config: Any) -> int | None:
    """Tokens that the model has positions for, by its configuration."""
    names = ("max_position_embeddings", "n_positions", "max_seq_len")
    lengths = [length for name in names if isinstance(length := getattr(config, name, None), int) and length > 0]
    return lengths[0] if lengths else None


def _window(config: Any) -> int | None:
    """The reach of attention in the layers where it is limited."""
    sizes = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min((size for size in sizes if isinstance(size, int)), default=None)


def _turn(config: Any) -> int | None:
    """The length past which longrope encodes all positions of a pass otherwise; None for other encodings."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = [rope, *(kind for kind in rope.values() if isinstance(kind, dict))]
    lengths = [
        kind.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
        for kind in kinds
        if "longrope" in (kind.get("rope_type"), kind.get("type"))
    ]
    return min((length for length in lengths if length), default=None)


def _no_memory(tokens: int) -> InputError:
    return InputError(f"a row of {tokens} tokens does not fit the CUDA device's memory; give a smaller max length")
