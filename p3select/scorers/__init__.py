"""Scorers: what turns token ids into log-probabilities.

A scorer never sees text. It is given token ids and the positions to score, both made by
:mod:`p3select.tokens`, and gives back one log-probability (nats) per position. This module is the door: it
names the built-in scorers and imports the chosen one only when it is asked for.
"""

from __future__ import annotations

import inspect
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol, cast

from p3select import plugins
from p3select.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

BUILTIN = {
    "transformers": ("p3select.scorers.transformers:TransformersScorer", "hf"),
    "vllm": ("p3select.scorers.vllm:VllmScorer", "vllm"),
    "server": ("p3select.scorers.server:ServerScorer", "hf"),
}


class Scorer(Protocol):
    """What scoring needs of a backend."""

    tokenizer: Any
    """The policy's Hugging Face tokenizer (a fast one)."""

    @property
    def max_length(self) -> int | None:
        """The longest row, in tokens, that the model takes; None where it has no limit."""
        ...

    @property
    def provenance(self) -> Mapping[str, Any]:
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


class ScorerWithErrors(Scorer, Protocol):
    """A scorer that has the probabilities of all tokens, not of the chosen ones alone: for the difficulty ``el2n``."""

    def score_with_errors(
        self,
        ids: Sequence[NDArray[np.int32]],
        scored: Sequence[NDArray[np.int32]],
        advance: Callable[[int, int], None],
    ) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]]:
        """What :meth:`Scorer.score` gives, and how far the probabilities are from the tokens that are there.

        Args:
            ids: As for :meth:`Scorer.score`.
            scored: As for :meth:`Scorer.score`.
            advance: As for :meth:`Scorer.score`.

        Returns:
            The log-probabilities; and one float32 array (m,) per row: ‖p − onehot(ids[i])‖, the L2 norm over the
            vocabulary, of the probabilities p given ids[:i], for i in scored.
        """
        ...


def with_errors(scorer: Any, name: str) -> ScorerWithErrors:
    """A scorer, or the class of one, as what it has to be for ``el2n``.

    Args:
        scorer: The scorer or its class.
        name: What messages call it.

    Raises:
        InputError: It is not.
    """
    if not hasattr(scorer, "score_with_errors"):
        raise InputError(
            f"scorer {name!r} gives no el2n, for which all tokens' probabilities are needed (score_with_errors): score "
            "with --scorer transformers, or leave el2n out"
        )
    return cast("ScorerWithErrors", scorer)


def choose(name: str, model: str | Path, *, errors: bool = False) -> str:
    """The scorer's name: for ``auto``, ``vllm`` where vLLM and a GPU are found, else ``transformers``.

    A GGUF file goes to ``transformers`` in any case, as vLLM reads only some of them; so does ``el2n``, for which
    ``errors`` are asked, as vLLM gives no probabilities of all tokens.
    """
    if name != "auto":
        return name
    if errors or find_spec("vllm") is None or str(model).endswith(".gguf"):
        return "transformers"
    import torch

    return "vllm" if torch.cuda.is_available() else "transformers"


def make(
    name: str,
    model: str | Path,
    *,
    adapter: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    max_length: int | None = None,
    errors: bool = False,
) -> Scorer:
    """Load a policy into a scorer.

    Args:
        name: ``auto`` (see :func:`choose`), a built-in scorer, an entry point of the group ``p3select.scorers``, or
            ``module:attribute``.
        model: The weights: a local folder, a GGUF file or a Hugging Face id.
        adapter: A PEFT adapter's folder.
        options: The scorer's own options by name: the keyword arguments of its class, such as ``dtype``. Text is
            read as the type that the argument is declared with.
        max_length: The longest row that there will be, for scorers that have an option ``max_length`` (an engine sets
            memory aside by it); an option of that name goes before.
        errors: It has to be one with errors, which is found before the model is loaded.

    Raises:
        InputError: No such scorer, model or option, an option that is not of its type, or a scorer without errors.
        MissingLibraryError: The scorer's library is not installed.
    """
    name = choose(name, model, errors=errors)
    found = plugins.find("scorer", name, BUILTIN)
    if errors and isinstance(found, type):  # of another factory it is found when it has made one
        with_errors(found, name)
    own = {
        parameter.name: parameter
        for parameter in inspect.signature(found).parameters.values()
        if parameter.kind == parameter.KEYWORD_ONLY and parameter.name not in ("adapter", "tokenizer")
    }
    given = {} if max_length is None or "max_length" not in own else {"max_length": max_length}
    for option, value in (options or {}).items():
        if option not in own:
            raise InputError(f"scorer {name!r} has no option {option!r}; it has {', '.join(sorted(own)) or 'none'}")
        given[option] = _typed(option, value, own[option].annotation) if isinstance(value, str) else value
    missing = [option for option in own if own[option].default is inspect.Parameter.empty and option not in given]
    if missing:
        raise InputError(f"scorer {name!r} needs the option {missing[0]!r}")
    made = cast("Scorer", found(model, adapter=adapter, **given))
    return with_errors(made, name) if errors else made


def _typed(option: str, text: str, annotation: Any) -> Any:
    """Text of a command line as the type of an argument that is declared as, say, ``int | None``."""
    declared = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    kinds: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "bool": _truth}
    kind = next((kind for kind in kinds if kind in declared.replace(" ", "").split("|")), None)
    if kind is None:
        return text
    try:
        return kinds[kind](text)
    except ValueError:
        raise InputError(f"option {option}={text!r}: not {'an' if kind == 'int' else 'a'} {kind}") from None


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"
