"""Progress of long work on stderr: rate and time left."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Where stderr is a file or a pipe, a line as often as this (seconds).
_EVERY = 15.0


@contextmanager
def track(what: str, rows: int, *, done: int = 0, show: bool = True) -> Iterator[Callable[[int, int], None]]:
    """Show how far some rows are.

    Args:
        what: The work, such as "scoring".
        rows: All of them.
        done: Those done by an earlier call; they do not count in the rate.
        show: Whether to print at all.

    Yields:
        A function that takes the (rows, tokens) done since its last call.
    """
    if not show:
        yield silent
    elif sys.stderr.isatty():
        with _bar(what, rows, done) as advance:
            yield advance
    else:
        with _lines(what, rows, done) as advance:
            yield advance


def say(text: str) -> None:
    """One line on stderr."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def silent(rows: int, tokens: int) -> None:
    """For those who do not want to see anything."""


def left(seconds: float) -> str:
    """A duration for people: 42 s, 3 min 05 s, 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _state(rows: int, fresh: int, tokens: int, total: int, seconds: float) -> str:
    rate = fresh / seconds if seconds > 0 else 0.0
    text = f"{rows:,} of {total:,} rows · {rate:,.1f} rows/s"
    if tokens:
        text += f" · {tokens / seconds:,.0f} tokens/s"
    if rate > 0 and rows < total:
        text += f" · {left((total - rows) / rate)} left"
    return text


@contextmanager
def _bar(what: str, total: int, done: int) -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[state]}"))
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=4) as bar:
        task = bar.add_task(what, total=total, completed=done, state="")
        counts, start = [0, 0], time.monotonic()

        def advance(rows: int, tokens: int) -> None:
            counts[0] += rows
            counts[1] += tokens
            state = _state(done + counts[0], counts[0], counts[1], total, time.monotonic() - start)
            bar.update(task, completed=done + counts[0], state=state)

        yield advance


@contextmanager
def _lines(what: str, total: int, done: int) -> Iterator[Callable[[int, int], None]]:
    counts, start = [0, 0], time.monotonic()
    printed = start

    def advance(rows: int, tokens: int) -> None:
        nonlocal printed
        counts[0] += rows
        counts[1] += tokens
        now = time.monotonic()
        if now - printed >= _EVERY or (done + counts[0] == total and now - start >= _EVERY):
            printed = now
            state = _state(done + counts[0], counts[0], counts[1], total, now - start)
            say(f"{what}: {state}")

    yield advance
