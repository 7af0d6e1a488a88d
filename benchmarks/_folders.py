"""Options that several benchmarks have: folders of data, of what is kept, and of models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

ROOT = Path(__file__).parents[1]


def data(parser: argparse.ArgumentParser) -> None:
    """``--data`` and ``--runs``, both needed."""
    parser.add_argument("--data", type=Path, required=True, help="folder of the Parquet files")
    parser.add_argument("--runs", type=Path, required=True, help="folder that keeps what is finished")


def model(parser: argparse.ArgumentParser) -> None:
    """``--model``; what ``make models`` makes."""
    parser.add_argument("--model", default=str(ROOT / "models" / "SmolLM2-135M-Instruct"), help="folder")


def encoder(parser: argparse.ArgumentParser) -> None:
    """``--encoder``; what ``make models`` makes."""
    parser.add_argument("--encoder", default=str(ROOT / "models" / "all-MiniLM-L6-v2"), help="folder")
