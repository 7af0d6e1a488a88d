"""Choose fine-tuning data anew each epoch (P3, arXiv 2408.05541): difficulty, pace, diversity.

The public names below load their module when they are first used, so that ``import p3select`` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from p3select.comparison import compare
    from p3select.dataset import Dataset
    from p3select.difficulties import difficulty
    from p3select.embeddings import embed
    from p3select.errors import InputError, MismatchError, MissingLibraryError, P3Error
    from p3select.exporters import export
    from p3select.index import Selection
    from p3select.loops import loop
    from p3select.paces import pace
    from p3select.page import report
    from p3select.run import Run
    from p3select.scores import score
    from p3select.selection import select
    from p3select.selectors.dpp import dpp
    from p3select.validation import validate

__version__ = "0.1.0"

_MODULES = {
    "Dataset": "dataset",
    "InputError": "errors",
    "MismatchError": "errors",
    "MissingLibraryError": "errors",
    "P3Error": "errors",
    "Run": "run",
    "Selection": "index",
    "compare": "comparison",
    "difficulty": "difficulties",
    "dpp": "selectors.dpp",
    "embed": "embeddings",
    "export": "exporters",
    "loop": "loops",
    "pace": "paces",
    "report": "page",
    "score": "scores",
    "select": "selection",
    "validate": "validation",
}

__all__ = [
    "Dataset",
    "InputError",
    "MismatchError",
    "MissingLibraryError",
    "P3Error",
    "Run",
    "Selection",
    "compare",
    "difficulty",
    "dpp",
    "embed",
    "export",
    "loop",
    "pace",
    "report",
    "score",
    "select",
    "validate",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'p3select' has no attribute {name!r}")
    value = getattr(import_module(f"p3select.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
