"""A scorer and an encoder without a model, for tests that are not about models.

The log-probabilities are a hash of the ids.
"""

import os
import signal
import time
from pathlib import Path

import numpy as np

from p3select.errors import EngineError, InputError


class FakeScorer:
    def __init__(self, tokenizer, *, model="fake-1", max_length=None, fail_after=None):
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.provenance = {"scorer": "fake", "model": model, "dtype": "float32", "device": "cpu"}
        self.notes = []
        self.calls = 0
        self.rows = 0
        self.fail_after = fail_after

    def score(self, ids, scored, advance):
        self.calls += 1
        self.rows += len(ids)
        if self.fail_after is not None and self.calls > self.fail_after:
            raise RuntimeError("the machine went away")
        salt = sum(map(ord, self.provenance["model"]))
        results = []
        for row, positions in zip(ids, scored, strict=True):
            mixed = (row.astype(np.int64) * 2654435761 + np.arange(len(row)) * 40503 + salt) % 1000
            results.append((-mixed[positions] / 500).astype(np.float32))
            advance(1, len(row))
        return results


class Unlucky(FakeScorer):
    """By name, for other processes; its model is a tokenizer's folder. It kills its process, fails or refuses a row."""

    def __init__(
        self,
        model,
        *,
        adapter: str | None = None,
        delay: float = 0.0,
        once: str | None = None,
        deadly: int | None = None,
        refused: int | None = None,
        fault: str | None = None,
        version: str | None = None,
    ):
        from transformers import AutoTokenizer

        super().__init__(AutoTokenizer.from_pretrained(model))
        self.delay, self.once, self.deadly, self.refused, self.fault = delay, once, deadly, refused, fault
        self.version = version
        if version:
            self.provenance["model"] = Path(version).read_text()
            self.notes.append(f"process {os.getpid()}")
        if fault == "in init":
            raise RuntimeError("no driver\nand a trace")

    def score(self, ids, scored, advance):
        time.sleep(self.delay)
        if self.fault == "engine" and not Path(self.once).exists():
            Path(self.once).touch()
            raise EngineError("the engine stopped")
        if self.fault == "in score":
            raise RuntimeError("out of memory\nand a trace")
        if self.deadly in map(len, ids):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.refused in map(len, ids):
            raise InputError(f"row {list(map(len, ids)).index(self.refused)}: not this one")
        if self.once and not Path(self.once).exists():
            Path(self.once).touch()
            if self.version:
                Path(self.version).write_text("other weights")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().score(ids, scored, advance)


class Patient(Unlucky):
    """With an option that changes nothing in what it gives."""

    def __init__(self, model, *, adapter: str | None = None, timeout: float = 1.0):
        super().__init__(model, adapter=adapter)


class Unverified(Unlucky):
    """As a server whose weights nobody could compare."""

    def __init__(self, model, *, adapter: str | None = None):
        super().__init__(model, adapter=adapter)
        self.provenance["verified"] = False
        self.notes.append("the weights are not verified")


class FakeEncoder:
    """An encoder without a model: vectors drawn by the text."""

    dimension = 24

    def __init__(self, name="fake", broken=None):
        self.provenance = {"encoder": name}
        self.broken = broken

    def encode(self, texts):
        vectors = np.stack([np.random.default_rng(list(text.encode())).normal(size=24) for text in texts])
        if self.broken is not None:
            vectors[5] = self.broken
        return vectors.astype(np.float32), 0
