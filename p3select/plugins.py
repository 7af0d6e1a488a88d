"""The one way to extend p3select: a name is a built-in, an entry point, or ``module:attribute``."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from p3select.errors import InputError, MissingLibraryError, P3Error

if TYPE_CHECKING:
    from collections.abc import Mapping


def find(kind: str, name: str, builtin: Mapping[str, tuple[str, str]]) -> Any:
    """What a name of a scorer, encoder, selector or exporter stands for.

    Args:
        kind: "scorer", "selector", …; entry points are of the group ``p3select.scorers`` and so on.
        name: A built-in's name, an entry point's, or ``module:attribute``.
        builtin: Name → (``module:attribute``, the extra that installs what the module imports).

    Raises:
        InputError: There is no such name, and the message lists those that there are; or what stands for it cannot be
            imported, as with a library of another version.
        MissingLibraryError: The built-in needs a library that is not installed.
    """
    if name in builtin:
        target, extra = builtin[name]
        try:
            return _attribute(target)
        except ImportError as error:
            if not extra or (error.name or "").startswith("p3select") or isinstance(error, P3Error):
                raise
            raise _not_importable(f"{kind} {name!r}", error, extra) from error
    installed = entry_points(group=f"p3select.{kind}s")
    if name in installed.names or ":" in name:
        try:
            return installed[name].load() if name in installed.names else _attribute(name)
        except (ImportError, AttributeError) as error:
            raise InputError(f"{kind} {name!r}: {error}") from None
    known = ", ".join(sorted({*builtin, *installed.names}))
    raise InputError(f"no {kind} {name!r}; there are {known}, or give one as module:attribute")


def _not_importable(what: str, error: ImportError, extra: str) -> P3Error:
    """A library that is missing, or one whose version is another than what p3select was made for."""
    library = (error.name or "").partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and library and find_spec(library) is None:
        return MissingLibraryError(what, library, extra)
    said = " ".join(str(error).split())
    return InputError(
        f"{what}: {said}; it needs another version of {library or 'a library'}: pip install -U 'p3select[{extra}]'"
    )


def _attribute(target: str) -> Any:
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)
