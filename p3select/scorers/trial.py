"""The trial: what an engine elsewhere gives for a few rows, beside what transformers computes from the same weights.

In half precision two right engines are further apart than what a few steps of training change. So where something
changes under an engine, its weights or its adapter, the change by itself is compared with the one that is due.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from p3select import machine
from p3select.errors import InputError
from p3select.scorers import checkpoints
from p3select.scorers.transformers import log_probabilities

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Ids = Sequence[NDArray[np.int32]]
    Values = list[NDArray[np.float32]]

# Plain text, which training changes more than it does random tokens, with what tokenizers differ in.
TEXTS = (
    "The river had risen in the night, and by morning the lower fields were under water. To find the area of a "
    "triangle, multiply its base by its height and divide by two. She asked for three apples and paid with a coin that "
    "the shopkeeper turned over twice. Most of the heat of the sun reaches us as light, which the ground takes up and "
    "gives back slowly.",
    "Question: Natalia sold 48/2 = 24 clips in May and twice as many in June. How many is that?\nAnswer: In June she "
    "sold 24 * 2 = 48 clips.\nIn both months she sold 24 + 48 = 72.\n\nDid café «Zoë» sell 3.5% more?\n"
    "def f(x):\n\treturn x**2 + 1\n",
)
ROWS = 16
# Tokens of the shortest rows.
_TOKENS = 24
# Rows to compare: two in float32. In half precision as many as have this many scored tokens: a change must show among
# what rounding changes.
_COMPARED = 2
_HALF_TOKENS = 300
# Nats between two ways to compute the same in float32, at most; in half precision, where single tokens differ by
# tenths, in the mean.
_EXACT = 5e-4
_HALF = 0.15
# What arrives of a change is 1 within this and three standard errors, which together must stay below the second to
# tell anything.
_SHARE = 0.1
_UNCLEAR = 0.5
_REMEDY = "; it is loaded to compare the engine with transformers, which the option compare=false leaves out"


def rows(tokenizer: Any, vocabulary: int, longest: int | None, step: int = 0) -> tuple[Ids, Ids]:
    """Rows to try an engine on: text, and random tokens, the shorter ones first.

    Args:
        tokenizer: The model's.
        vocabulary: How many tokens the model has.
        longest: Tokens of the longest row that the engine takes; None where it has no limit.
        step: Tokens of an engine's step; the rows together have more, where ``longest`` allows it.

    Returns:
        ``ROWS`` arrays (length,) of ids; and for each the positions (m,) to score.
    """
    random = np.random.default_rng(0)
    count = ROWS - len(TEXTS)
    lengths = np.linspace(_TOKENS, max(_TOKENS + 8, 2 * step // count), count).astype(int)
    # Special tokens are below 100, and rare ones far above.
    first = 100 if vocabulary >= 1000 else 0
    ids = [random.integers(first, min(vocabulary, 5000), length).astype(np.int32) for length in lengths]
    # A tokenizer may know more tokens than the model.
    text = [np.array(tokenizer(each)["input_ids"], np.int32) % vocabulary for each in TEXTS]
    ids = [row[:longest] for row in [ids[0], *text, *ids[1:]]]
    # Not from the first token on, and with gaps, as rows are; the shortest rows have no room for that.
    scored = [np.arange(len(row) // 4 + 1, len(row), dtype=np.int32) for row in ids]
    return ids, [np.delete(positions, 2) if len(positions) > 3 else positions for positions in scored]


def compared(scored: Ids, dtype: str | None) -> int:
    """How many of the first rows are to be compared, by the engine's dtype; None for one that is not known."""
    if dtype == "float32":
        return _COMPARED
    return 1 + int(np.searchsorted(np.cumsum([*map(len, scored[:-1])]), _HALF_TOKENS))


def by_transformers(
    model: str | Path, config: Any, adapter: Path | None, dtype: str | None, ids: Ids, scored: Ids
) -> tuple[Values, Values]:
    """What the model's plain forward gives, with the adapter and (empty where there is none) without.

    On the CPU, as a GPU's memory is the engine's. In float32, so that only the engine's rounding is in what is
    compared, but with weights that are rounded as the engine's are.

    Args:
        model: A local folder, a GGUF file or a Hugging Face id.
        config: The model's configuration.
        adapter: A PEFT adapter's folder.
        dtype: The engine's; None for one that is not known.
        ids: One array (length,) of token ids per row.
        scored: One array (m,) per row: the positions to score, ascending.

    Returns:
        Twice one float32 array (m,) per row, in nats.

    Raises:
        InputError: There is no memory for it, or the model or the adapter cannot be read.
        MissingLibraryError: An adapter needs peft.
    """
    try:
        need = 4 * checkpoints.empty(config).num_parameters()
    except Exception as error:
        raise InputError(f"model {str(model)!r}: {checkpoints.first_line(error)}{_REMEDY}") from error
    free = machine.memory()
    if free is not None and need > free:
        raise InputError(
            f"model {str(model)!r}: to compare the engine with transformers takes {need / 2**30:.0f} GiB of memory, "
            f"and {free / 2**30:.0f} GiB are free; the option compare=false leaves it out"
        )
    with _all_cores():
        try:
            network = checkpoints.network(model, "cpu", dtype or "float32")
        except InputError as error:
            raise InputError(f"{error}{_REMEDY}") from error
        if not getattr(network, "is_quantized", False):  # which cannot be had in another type
            network = network.float()
        plain = _forward(network, ids, scored)
        if adapter is None:
            return plain, []
        network, _ = checkpoints.adapt(network, adapter)
        return _forward(network, ids, scored), plain


def _forward(network: Any, ids: Ids, scored: Ids) -> Values:
    """One row at a time, with no short cut."""
    values = []
    for row, positions in zip(ids, scored, strict=True):
        with torch.no_grad():
            logits = network(input_ids=torch.from_numpy(row[None].astype(np.int64))).logits[0]
        values.append(log_probabilities(logits[positions - 1], row[positions]))
    return values


@contextmanager
def _all_cores() -> Iterator[None]:
    """All cores for torch: Ray leaves a worker that has a GPU a single thread, with which this takes minutes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(machine.threads())
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def apart(values: Values, others: Values, name: str, dtype: str | None) -> str:
    """Where values of the trial are further from others of the same rows than rounding; empty where nowhere.

    Args:
        values: One array (m,) per row.
        others: The same; of fewer rows, the first are compared.
        name: What the others are, for the message.
        dtype: The engine's; None for one that is not known, which may be half precision.
    """
    for row, (result, other) in enumerate(zip(values, others, strict=False)):
        difference = np.abs(result - other)
        found, most = (difference.max(), _EXACT) if dtype == "float32" else (difference.mean(), _HALF)
        # Not "greater than", so that what is no number is wrong too.
        if not found <= most:
            return f"row {row} of the trial has log-probabilities {found:.2g} nats from {name}"
    return ""


def change(engine: str, cause: str, seen: tuple[Values, Values], due: tuple[Values, Values]) -> tuple[str, str]:
    """Whether an engine changes with a cause (an adapter, new weights) as transformers does.

    Args:
        engine: What to call it.
        cause: What changes the numbers.
        seen: The engine's values before and after.
        due: Those of transformers.

    Returns:
        What is wrong, and what there is to note where rounding hides it; empty where nothing is.
    """
    effect = np.concatenate(due[1]) - np.concatenate(due[0])
    part, error = share(np.concatenate(seen[1]) - np.concatenate(seen[0]), effect)
    slack = _SHARE + 3 * error
    if not slack < _UNCLEAR:
        return "", (
            f"{cause} changes the trial's log-probabilities by {np.abs(effect).mean():.2g} nats in the mean: too "
            f"little beside rounding to see whether {engine} applies it rightly"
        )
    if not abs(part - 1) <= slack:
        return f"{engine} applies {part:.2f} of what {cause} changes in transformers", ""
    return "", ""


def share(found: NDArray[np.float32], expected: NDArray[np.float32]) -> tuple[float, float]:
    """The multiple of an expected change (n,) that is nearest to one that is found (n,), and its standard error."""
    a, b = found.astype(np.float64), expected.astype(np.float64)
    power = float(b @ b)
    if not power:
        return 0.0, np.inf
    multiple = float(a @ b) / power
    return multiple, float(np.linalg.norm(a - multiple * b)) / np.sqrt((len(b) - 1) * power)
