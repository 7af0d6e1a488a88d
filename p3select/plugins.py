"""The one way to extend p3select: a name is a built-in, an entry point, or ``module:attribute``."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from p3select.errors import InputError, MissingLibraryError

if TYPE_CHECKING:
    from collections.abc import Mapping


def find(kind: str, name: str, builtin: Mapping[str, tuple[str, str]]) -> Any:
    """What a name of a scorer, encoder, selector or exporter stands for.

    Args:
        kind: "scorer", "selector", …; entry points are of the group ``p3select.scorers`` and so on.
        name: A built-in's name, an entry point's, or ``module:attribute``.
        builtin: Name → (``module:attribute``, the extra that installs what the module imports).

    Raises:
        InputError: There is no such name; the message lists those that there are.
        MissingLibraryError: The built-in needs a library that is not installed.
    """
    if name in builtin:
        target, extra = builtin[name]
        try:
            return _attribute(target)
        except ModuleNotFoundError as error:
            if extra and error.name and not error.name.startswith("p3select"):
                raise MissingLibraryError(f"{kind} {name!r}", error.name.partition(".")[0], extra) from None
            raise
    installed = entry_points(group=f"p3select.{kind}s")
    if name in installed.names:
        return installed[name].load()
    if ":" in name:
        try:
            return _attribute(name)
        except (ImportError, AttributeError) as error:
            raise InputError(f"{kind} {name!r}: {error}") from None
    known = ", ".join(sorted({*builtin, *installed.names}))
    raise InputError(f"no {kind} {name!r}; there are {known}, or give one as module:attribute")


def _attribute(target: str) -> Any:
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)
