"""Errors that p3select raises on purpose.

::

    P3Error                 anything that the user can mend; the CLI prints it in one line and exits with 2
    ├── InputError          bad data, option or file: the message names it and the remedy
    │   └── RowError        a row that a scorer cannot score
    ├── EngineError         what a scorer runs on has failed: a new one may do it
    ├── MismatchError       stored work belongs to other data, weights or settings than the ones given
    └── MissingLibraryError an optional library is not installed: the message has the pip command
"""


class P3Error(Exception):
    """Base of every error that p3select raises on purpose."""


class InputError(P3Error, ValueError):
    """Bad data, option or file; the message names the place and the remedy."""


class RowError(InputError):
    """A row that a scorer cannot score.

    Attributes:
        row: Its number among the rows that the scorer was given.
        reason: What is wrong with it.
    """

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(row, reason)
        self.row, self.reason = row, reason

    def __str__(self) -> str:
        return f"row {self.row} of those to score: {self.reason}"


class EngineError(P3Error):
    """What a scorer runs on has failed, and a new one may do it: on Ray the worker is started again, so many times."""


class MismatchError(P3Error):
    """What is stored was made from other data, weights or settings than what is asked for now."""


class MissingLibraryError(P3Error, ImportError):
    """An optional library is not installed."""

    def __init__(self, feature: str, library: str, extra: str) -> None:
        super().__init__(feature, library, extra)

    def __str__(self) -> str:
        feature, library, extra = self.args
        return f"{feature} needs {library}: pip install 'p3select[{extra}]'"


def check_seed(seed: object) -> None:
    """Refuse, with an :class:`InputError`, a seed that nothing can be drawn with."""
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed {seed!r}: a whole number from 0")
