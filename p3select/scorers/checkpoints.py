"""Checkpoints: a name or a path → model, tokenizer and fingerprint, with one clear error where that fails."""

from __future__ import annotations

import hashlib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers

from p3select import fingerprints
from p3select.errors import InputError, MissingLibraryError, RowError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?(?<!\.gguf)")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Where a model came from, what saved it, and what trainers set: none of it changes a log-probability.
_IDLE = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache")


def load(model: str | Path, tokenizer: Any, device: str | None, dtype: str | None) -> tuple[Any, Any, str]:
    """A model for scoring, its tokenizer and its fingerprint.

    Args:
        model: A local folder, a GGUF file (its weights are unpacked) or a Hugging Face id.
        tokenizer: A tokenizer, its folder or its id; None for the model's own.
        device: As torch names it; None takes CUDA where there is one.
        dtype: A name of ``DTYPES``; None for bfloat16 on CUDA and float32 elsewhere.

    Raises:
        InputError: Something of it does not exist, or is not a causal language model.
        MissingLibraryError: A GGUF file needs gguf.
    """
    path = Path(model)
    source, options = _source(str(model), path)
    place = _device(device)
    dtype = dtype_for(place.type, dtype)
    try:
        own = _tokenizer(tokenizer, source, options)
    except Exception as error:
        raise _unreadable(str(model), error) from error
    return network(model, place, dtype), own, _of_model(source, path)


def network(model: str | Path, device: str | torch.device, dtype: str) -> Any:
    """A model for scoring, by itself.

    Args:
        model: A local folder, a GGUF file or a Hugging Face id.
        device: As torch names it.
        dtype: A name of ``DTYPES``.

    Raises:
        InputError: It does not exist, lacks weights, or is not a causal language model.
        MissingLibraryError: A GGUF file needs gguf.
    """
    source, options = _source(str(model), Path(model))
    try:
        if options and hasattr(transformers, "GgufConfig"):
            options["quantization_config"] = transformers.GgufConfig(dequantize=True)
        with no_bars():
            loaded, report = transformers.AutoModelForCausalLM.from_pretrained(
                source, dtype=DTYPES[dtype], output_loading_info=True, **options
            )
        loaded.to(device).eval().requires_grad_(False)
    except Exception as error:
        raise _unreadable(str(model), error) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise InputError(f"model {str(model)!r}: its files lack {len(missing)} weights ({missing[0]} first)")
    return loaded


def describe(model: str | Path, tokenizer: Any) -> tuple[Any, Any, str]:
    """A model's configuration, its tokenizer and its fingerprint: all that :func:`load` gives but the weights.

    Args:
        model: A local folder or a Hugging Face id.
        tokenizer: A tokenizer, its folder or its id; None for the model's own.

    Raises:
        InputError: Something of it does not exist.
    """
    path = Path(model)
    source, options = _source(str(model), path)
    try:
        config = transformers.AutoConfig.from_pretrained(source, **options)
        own = _tokenizer(tokenizer, source, options)
    except Exception as error:
        raise _unreadable(str(model), error) from error
    return config, own, _of_model(source, path)


def _tokenizer(tokenizer: Any, source: str, options: dict[str, Any]) -> Any:
    if tokenizer is None:
        return transformers.AutoTokenizer.from_pretrained(source, **options)
    if isinstance(tokenizer, (str, Path)):
        return transformers.AutoTokenizer.from_pretrained(str(tokenizer))
    return tokenizer


def _of_model(source: str, path: Path) -> str:
    return of_path(path) if path.exists() else f"{source}@{files(source).name}"


def files(model: str | Path) -> Path:
    """Where a model's files are: its folder or its GGUF file; for an id, its commit's folder in the Hub's cache."""
    path = Path(model)
    # The Hub's cache keeps each commit in a folder of its name.
    return path if path.exists() else Path(transformers.utils.cached_file(str(model), "config.json")).parent


def _unreadable(model: str, error: Exception) -> InputError:
    there = "" if Path(model).exists() else "no folder here, and not to be had from the Hugging Face Hub: "
    return InputError(f"model {model!r}: {there}{first_line(error)}")


def _source(model: str, path: Path) -> tuple[str, dict[str, Any]]:
    """What transformers is to load from, with which options."""
    if path.is_file():
        if path.suffix != ".gguf":
            raise InputError(f"model {model!r}: a file must be .gguf; else give the model's folder")
        if find_spec("gguf") is None:
            raise MissingLibraryError("a GGUF file", "gguf", "hf")
        return str(path.parent), {"gguf_file": path.name}
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"model {model!r}: no config.json there{_hint(path)}")
    elif not _HUB_ID.fullmatch(model):
        raise InputError(f"model {model!r}: no such file or folder")
    return model, {}


def _device(device: str | None) -> torch.device:
    try:
        return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise InputError(f"device {device!r}: {first_line(error)}") from None


def dtype_for(device: str, dtype: str | None) -> str:
    """A name of ``DTYPES``: the one given, else bfloat16 on CUDA and float32 elsewhere."""
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r}: one of {', '.join(DTYPES)}")
    return dtype or ("bfloat16" if device == "cuda" else "float32")


def adapt(model: Any, folder: Path) -> tuple[Any, str]:
    """The model with an adapter on it, not merged, and the adapter's fingerprint."""
    _, fingerprint = adapter_weights(model, folder)
    import peft

    try:
        model = peft.PeftModel.from_pretrained(model, str(folder)).eval().requires_grad_(False)
    except Exception as error:
        raise InputError(f"adapter {folder}: {first_line(error)}") from error
    return model, fingerprint


def adapter_weights(model: Any, folder: Path) -> tuple[dict[str, torch.Tensor], str]:
    """An adapter's weights by name and its fingerprint.

    Args:
        model: The model that it is for; without its weights (on the meta device) will do.
        folder: The adapter's.

    Raises:
        InputError: It cannot be read, or it changes the model's embeddings or head.
        MissingLibraryError: peft is missing.
    """
    if find_spec("peft") is None:
        raise MissingLibraryError("an adapter", "peft", "peft")
    import peft

    if not (folder / "adapter_config.json").is_file():
        raise InputError(f"adapter {folder}: no adapter_config.json there")
    outer = (part(model, "get_input_embeddings"), part(model, "get_output_embeddings"))
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if module in outer}
    try:
        weights: dict[str, torch.Tensor] = peft.utils.load_peft_weights(str(folder), device="cpu")
    except Exception as error:
        raise InputError(f"adapter {folder}: {first_line(error)}") from error
    touched = sorted(names & {piece for key in weights for piece in key.split(".")})
    if touched:
        raise InputError(
            f"adapter {folder}: it changes {', '.join(touched)}, which not every scorer can apply; merge it into the "
            "model (merge_and_unload) and score the merged model"
        )
    return weights, of_path(folder)


def of_path(path: Path) -> str:
    """The sha256 over a GGUF file, or over the configuration and the weights in a model's or an adapter's folder."""
    files = [path]
    if path.is_dir():
        weights = sorted(path.glob("*.safetensors")) or sorted(path.glob("*model*.bin"))
        files = [*(file for file in (path / "config.json", path / "adapter_config.json") if file.is_file()), *weights]
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(fingerprints.of_files, files))
    names = [file.name if path.is_dir() else "" for file in files]
    return fingerprints.of_json(list(zip(names, digests, strict=True)))


def of_weights(model: Any) -> str:
    """The sha256 over a live model's configuration, parameters and buffers."""

    def digest(item: tuple[str, torch.Tensor]) -> list[Any]:
        name, weight = item
        flat = weight.detach().reshape(-1).contiguous().cpu().view(torch.uint8).numpy()
        return [name, name_of(weight.dtype), list(weight.shape), hashlib.sha256(flat).hexdigest()]

    with ThreadPoolExecutor() as pool:
        weights = list(pool.map(digest, sorted(model.state_dict().items())))
    config: Any = getattr(model, "config", None)
    return fingerprints.of_json([settings(config) if hasattr(config, "to_json_string") else {}, weights])


def settings(config: Any) -> dict[str, Any]:
    """What a model's configuration says that can change a log-probability."""
    told = json.loads(config.to_json_string(use_diff=False))
    return {name: value for name, value in told.items() if name not in _IDLE and not name.endswith("token_id")}


def check_rows(
    ids: Sequence[NDArray[np.int32]], scored: Sequence[NDArray[np.int32]], longest: int | None, vocabulary: int
) -> None:
    """Refuse rows that a model cannot score.

    Args:
        ids: One array (length,) of token ids per row.
        scored: One array (m,) per row: the positions to score, ascending.
        longest: Tokens of the longest row that the model takes; None where it has no limit.
        vocabulary: How many tokens the model has.

    Raises:
        InputError: A row is too long, has no positions or such as are out of range, or a token that the model lacks.
    """
    for row, (tokens, positions) in enumerate(zip(ids, scored, strict=True)):
        if longest is not None and len(tokens) > longest:
            raise RowError(row, f"{len(tokens)} tokens, and the model takes {longest}; cut it")
        if not len(positions) or positions[0] < 1 or positions[-1] >= len(tokens):
            raise RowError(row, f"positions to score must be from 1 to {len(tokens) - 1}")
        if tokens.min() < 0 or tokens.max() >= vocabulary:
            wrong = tokens[(tokens < 0) | (tokens >= vocabulary)][0]
            raise RowError(row, f"token {wrong}, and the model has 0 to {vocabulary - 1}: use the model's tokenizer")


def check_finite(
    row: int, ids: NDArray[np.int32], scored: NDArray[np.int32], values: NDArray[np.float32], dtype: str
) -> None:
    """Refuse a row's log-probabilities (m,) at the positions scored (m,) where one is not finite."""
    if not np.isfinite(values).all():
        place = int(scored[~np.isfinite(values)][0])
        raise RowError(
            row,
            f"the log-probability of token {ids[place]} at position {place} is not finite in {dtype}; check the "
            "weights, or use another dtype",
        )


def empty(config: Any) -> Any:
    """The model of a configuration, without its weights."""
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


@contextmanager
def no_bars() -> Iterator[None]:
    """Without transformers' progress bars: a line of its own for each model tells nobody anything."""
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()


def _hint(path: Path) -> str:
    if (path / "adapter_config.json").is_file():
        return ": it is an adapter; give its base as the model and this folder as the adapter"
    if any(path.glob("*.gguf")):
        return "; give the path of the .gguf file itself"
    return ", so it is no model's folder"


def part(model: Any, getter: str) -> Any:
    """The model's input embeddings or output head; None where it has none or does not say."""
    try:
        return getattr(model, getter)()
    except (AttributeError, NotImplementedError):
        return None


def name_of(dtype: torch.dtype) -> str:
    """Such as float32."""
    return str(dtype).removeprefix("torch.")


def first_line(error: BaseException) -> str:
    """What went wrong, without the trace that libraries put into their messages."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
