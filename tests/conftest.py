"""Fixtures shared by the tests: real rows, the two small models from the package registry."""

from pathlib import Path

import pytest
from hypothesis import settings

# The same examples each time: a test that fails was made to fail by a change.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")

ROOT = Path(__file__).parents[1]


def models(name: str) -> Path:
    path = ROOT / "models" / name
    if not path.exists():
        pytest.fail(f"{path} is missing: run 'make models' first ('make test' does)")
    return path


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder (float32 safetensors and tokenizer)."""
    return models("SmolLM2-135M-Instruct")


@pytest.fixture(scope="session")
def minilm() -> Path:
    """all-MiniLM-L6-v2 as a sentence-transformers folder."""
    return models("all-MiniLM-L6-v2")


@pytest.fixture(scope="session")
def gsm8k() -> Path:
    """The committed excerpt of GSM8K train: id, prompt, completion, level, level_label, subject."""
    return ROOT / "examples" / "gsm8k.parquet"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of larger real data, which is not committed."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"needs the data folder {path}")
    return path
