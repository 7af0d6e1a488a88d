"""Scorers: what turns token ids into log-probabilities.

A scorer never sees text. It is given token ids and the positions to score, both made by
:mod:`p3select.tokens`, and gives back one log-probability (nats) per position. This module is the door: it
names the built-in scorers and imports the chosen one only when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, cast

from p3select import plugins

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

BUILTIN = {"transformers": ("p3select.scorers.transformers:TransformersScorer", "hf")}


class Scorer(Protocol):
    """What scoring needs of a backend."""

    tokenizer: Any
    """The policy's Hugging Face tokenizer (a fast one)."""

    @property
    def max_length(self) -> int | None:
        """The longest row, in tokens, that the model takes; None where it has no limit."""
        ...

    @property
    def provenance(self) -> Mapping[str, str]:
        """What the numbers depend on: scorer, model fingerprint, dtype, device, versions. Stored and compared."""
        ...

    def score(
        self,
        ids: Sequence[NDArray[np.int32]],
        scored: Sequence[NDArray[np.int32]],
        advance: Callable[[int, int], None],
    ) -> list[NDArray[np.float32]]:
        """Log-probabilities of chosen tokens, each given all the tokens before it in its row.

        Args:
            ids: One array (length,) of token ids per row, each length from 2 to ``max_length``.
            scored: One array (m,) per row: the positions to score, ascending, each at least 1.
            advance: Called with (rows, tokens) as they are done, for progress.

        Returns:
            One float32 array (m,) per row, in the order given: log p(ids[i] | ids[:i]) in nats for i in scored.
        """
        ...


def make(name: str, model: str | Path, *, adapter: str | Path | None = None) -> Scorer:
    """Load a policy into a scorer.

    Args:
        name: A built-in scorer, an entry point of the group ``p3select.scorers``, or ``module:attribute``.
        model: The weights: a local folder, a GGUF file or a Hugging Face id.
        adapter: A PEFT adapter's folder.

    Raises:
        InputError: No such scorer or no such model.
        MissingLibraryError: The scorer's library is not installed.
    """
    return cast("Scorer", plugins.find("scorer", name, BUILTIN)(model, adapter=adapter))
