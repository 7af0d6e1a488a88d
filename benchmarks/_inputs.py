"""What rows are picked from: made by rule from a seed, or embedded from data sets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

import p3select

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

MADE = ("clustered", "power-law", "near-duplicates")
"""Groups of one size; groups whose sizes fall as 1 / rank; the same, and a tenth of the rows near-duplicates."""

REAL = "real"
REAL_FILES = ("gsm8k_train.parquet", "math_train.parquet")
REAL_ROWS = 14_973

DIMENSIONS = 384


def stored(name: str, n: int, cache: Path, data: Path | None, encoder: Path) -> Path:
    """The folder with ``x.npy``, (n, 384) float32 of norm 1, and ``q.npy``, (n,) float64 in [0, 1].

    Args:
        name: One of ``MADE``, or ``REAL``: the first n of its rows, which are shuffled.
        n: Rows.
        cache: Where it is kept.
        data: The folder with ``REAL_FILES``.
        encoder: Of the real rows.
    """
    folder = cache / "inputs" / f"{name}-{n}"
    if not (folder / "q.npy").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        x, q = real(n, cache, data, encoder) if name == REAL else made(name, n, DIMENSIONS)
        np.save(folder / "x.npy", x)
        np.save(folder / "q.npy", q)
    return folder


def real(n: int, cache: Path, data: Path | None, encoder: Path) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Prompts of GSM8K and MATH in a sentence encoder's embedding. Quality is drawn: no policy has read them."""
    if data is None or not 1 <= n <= REAL_ROWS:
        raise SystemExit(f"the input {REAL!r} needs --data, a folder with {' and '.join(REAL_FILES)}: {REAL_ROWS} rows")
    run = cache / "real"
    if not (run / "embeddings" / "embeddings.npy").is_file():
        p3select.embed([data / file for file in REAL_FILES], run, encoder, show_progress=True)
    rng = np.random.default_rng(0)
    x = np.load(run / "embeddings" / "embeddings.npy")[rng.permutation(REAL_ROWS)[:n]]
    return x, rng.beta(5, 2, n)


def made(name: str, n: int, d: int, seed: int | Sequence[int] = 0) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Rows in 300 groups (600 from 1,000,000 rows on), each spread in 24 directions of its own around a centre.

    All have a direction in common, as sentence embeddings do (mean cosine 0.1). Of ``near-duplicates``, a tenth are
    those of others (cosine about 0.98), a tenth of which exact copies. Quality is Beta(5, 2).
    """
    rng = np.random.default_rng(seed)
    groups, directions = (600 if n >= 1_000_000 else 300), 24
    share = np.ones(groups) if name == "clustered" else 1 / np.arange(1, groups + 1)
    group = rng.choice(groups, n, p=share / share.sum())
    centre = rng.standard_normal((groups, d), np.float32) / np.float32(np.sqrt(d))
    common = 0.36 * rng.standard_normal(d, np.float32) / np.float32(np.sqrt(d))
    fall = (0.45 / np.sqrt(1 + np.arange(directions))).astype(np.float32)
    x = rng.standard_normal((n, d), np.float32)
    x *= 0.012
    for one in range(groups):
        rows = np.flatnonzero(group == one)
        basis = rng.standard_normal((directions, d), np.float32) / np.float32(np.sqrt(d))
        x[rows] += centre[one] + common + (rng.standard_normal((len(rows), directions), np.float32) * fall) @ basis
    if name == "near-duplicates":
        twins, of = np.split(rng.permutation(n)[: n // 10 * 2], 2)
        exact = len(twins) // 10
        x[twins] = x[of]
        x[twins[exact:]] += 0.01 * rng.standard_normal((len(twins) - exact, d), np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x, rng.beta(5, 2, n)
