"""Which rows an epoch may choose from: schedules of λ (P3, arXiv 2408.05541, stage II).

A schedule gives, for epoch e of T, a percentile of that epoch's difficulties; the rows at or below it are
eligible. Written as ``NAME:NUMBERS``:

- ``linear:A:B``   A at epoch 1, B at epoch T, evenly between (the paper's text: ``linear:50:95``);
- ``cosine:A:B``   the same ends along half a cosine, slow at both;
- ``step:P1:…:Pm`` m stages of equal length, as far as whole epochs allow; needs T ≥ m;
- ``constant:P``   P in every epoch;
- ``paper-code``   ``45 + (95 − 45)/T · (e − 1)``, as the released code computes it: 45, 55, 65, 75, 85 for T = 5,
  so that 95 is never reached.

With ``linear`` and ``cosine`` the last epoch has B. A run of a single epoch is its own last epoch and has B as well: no
later epoch will take up what it leaves out. ``paper-code`` has 45 there.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from p3select.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

SCHEDULES = "linear:A:B, cosine:A:B, step:P1:P2:…, constant:P, paper-code"


def pace(epoch: int, epochs: int, schedule: str = "linear:50:95") -> float:
    """The percentile of difficulty up to which rows are eligible in an epoch.

    Args:
        epoch: From 1 to ``epochs``.
        epochs: T ≥ 1.
        schedule: See the module. Percentiles are from 0 to 100.

    Returns:
        A percentile, 0 to 100.

    Raises:
        InputError: The epoch is outside 1…T, or the schedule is malformed; the message names it.
    """
    for number in (epoch, epochs):
        if not isinstance(number, int | np.integer):
            raise InputError(f"epoch {epoch!r} of {epochs!r}: give whole numbers")
    if not isinstance(schedule, str):
        raise InputError(f"pace {schedule!r}: write one of {SCHEDULES}")
    if not 1 <= epoch <= epochs:
        raise InputError(f"epoch {epoch} of {epochs}: epochs count from 1 to {max(epochs, 1)}")
    name, values = _parse(schedule)
    done = 1.0 if epochs == 1 else (epoch - 1) / (epochs - 1)
    match name, values:
        case "linear", [start, end]:
            return _between(start, end, done)
        case "cosine", [start, end]:
            return _between(start, end, (1 - math.cos(math.pi * done)) / 2)
        case "constant", [value]:
            return value
        case "step", [_, *_]:
            if epochs < len(values):
                raise InputError(f"pace {schedule!r} has {len(values)} stages and needs as many epochs, got {epochs}")
            return values[(epoch - 1) * len(values) // epochs]
        case "paper-code", []:
            return 45 + (95 - 45) / epochs * (epoch - 1)
    raise InputError(f"unknown pace {schedule!r}: write one of {SCHEDULES}")


def _parse(schedule: str) -> tuple[str, list[float]]:
    name, *texts = schedule.split(":")
    try:
        values = [float(text) for text in texts]
    except ValueError:
        raise InputError(f"pace {schedule!r}: not a number; write one of {SCHEDULES}") from None
    for value in values:
        if not 0 <= value <= 100:
            raise InputError(f"pace {schedule!r}: {value:g} is not a percentile from 0 to 100")
    return name, values


def _between(start: float, end: float, part: float) -> float:
    # Rounding must not miss the end: 100.00000000000001 is no percentile.
    return end if part == 1 else start + (end - start) * part


def eligible(difficulty: ArrayLike, percentile: float) -> tuple[float, NDArray[np.bool_]]:
    """λ of an epoch, and the rows at or below it.

    Args:
        difficulty: (n,) one value for every row that has a difficulty, n ≥ 1.
        percentile: 0 to 100, from :func:`pace`.

    Returns:
        (lam, mask): the percentile of the difficulties, interpolated linearly, and (n,) ``difficulty <= lam``.
        At least one row is eligible, and ties with λ are.

    Raises:
        InputError: No rows, a value that is not finite (the message names the row), or a percentile outside
            0 to 100.
    """
    values = np.asarray(difficulty, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise InputError(f"difficulty must be 1-D and not empty, got shape {values.shape}")
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise InputError(f"row {bad[0]} has difficulty {values[bad[0]]}: leave out rows without one")
    if not 0 <= percentile <= 100:
        raise InputError(f"{percentile} is not a percentile from 0 to 100")
    lam = float(np.percentile(values, percentile))
    return lam, values <= lam
