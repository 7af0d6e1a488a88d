"""Checkpoints: a name or a path → model, tokenizer and fingerprint, with one clear error where that fails."""

from __future__ import annotations

import hashlib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers

from p3select import fingerprints
from p3select.errors import InputError, MissingLibraryError

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?(?<!\.gguf)")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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
    place, kind = _device(device), _dtype(dtype)
    if place.type == "cuda" and dtype is None:
        kind = torch.bfloat16
    try:
        own = transformers.AutoTokenizer.from_pretrained(source, **options) if tokenizer is None else tokenizer
        if isinstance(own, (str, Path)):
            own = transformers.AutoTokenizer.from_pretrained(str(own))
        if options and hasattr(transformers, "GgufConfig"):
            options["quantization_config"] = transformers.GgufConfig(dequantize=True)
        loaded, report = transformers.AutoModelForCausalLM.from_pretrained(
            source, dtype=kind, output_loading_info=True, **options
        )
        loaded.to(place).eval().requires_grad_(False)
    except Exception as error:
        there = "" if path.exists() else "no folder here, and not to be had from the Hugging Face Hub: "
        raise InputError(f"model {str(model)!r}: {there}{first_line(error)}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise InputError(f"model {str(model)!r}: its files lack {len(missing)} weights ({missing[0]} first)")
    return loaded, own, _of_path(path) if path.exists() else f"{source}@{loaded.config._commit_hash}"


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


def _dtype(dtype: str | None) -> torch.dtype:
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r}: one of {', '.join(DTYPES)}")
    return DTYPES[dtype or "float32"]


def adapt(model: Any, folder: Path) -> tuple[Any, str]:
    """The model with an adapter on it, not merged, and the adapter's fingerprint."""
    if find_spec("peft") is None:
        raise MissingLibraryError("an adapter", "peft", "peft")
    import peft

    if not (folder / "adapter_config.json").is_file():
        raise InputError(f"adapter {folder}: no adapter_config.json there")
    outer = (part(model, "get_input_embeddings"), part(model, "get_output_embeddings"))
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if module in outer}
    try:
        weights = peft.utils.load_peft_weights(str(folder), device="cpu")
        touched = sorted(names & {piece for key in weights for piece in key.split(".")})
        if not touched:
            model = peft.PeftModel.from_pretrained(model, str(folder)).eval().requires_grad_(False)
    except Exception as error:
        raise InputError(f"adapter {folder}: {first_line(error)}") from error
    if touched:
        raise InputError(
            f"adapter {folder}: it changes {', '.join(touched)}, which not every scorer can apply; merge it into the "
            "model (merge_and_unload) and score the merged model"
        )
    return model, _of_path(folder)


def _of_path(path: Path) -> str:
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
    settings = json.loads(config.to_json_string(use_diff=False)) if hasattr(config, "to_json_string") else {}
    # Where it came from, what saved it, and what trainers set: none of it changes a log-probability.
    idle = ("_name_or_path", "architectures", "dtype", "transformers_version", "use_cache")
    settings = {name: value for name, value in settings.items() if name not in idle and not name.endswith("token_id")}
    return fingerprints.of_json([settings, weights])


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
