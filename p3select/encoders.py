"""The sentence-transformers encoder. Imported only when it is used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import sentence_transformers
import torch
import transformers

from p3select import fingerprints
from p3select.errors import InputError
from p3select.scorers.checkpoints import no_bars

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

BATCH = 32


class SentenceTransformersEncoder:
    """A sentence-transformers model, on CUDA where there is one, in float32.

    Args:
        model: A local folder, or a Hugging Face id.

    Raises:
        InputError: There is no such model.
    """

    def __init__(self, model: str | Path) -> None:
        try:
            with no_bars():
                self._model = sentence_transformers.SentenceTransformer(str(model))
        except (OSError, ValueError) as error:
            there = "no sentence encoder" if Path(model).exists() else "not a folder here and not to be had"
            raise InputError(f"encoder {str(model)!r}: {there}: {_first(error)}") from None
        self.dimension = int(self._model.get_embedding_dimension())
        local = Path(model)
        if local.is_dir():
            revision, fingerprint = "local", fingerprints.of_files(local)
        else:
            revision = str(getattr(self._model[0].auto_model.config, "_commit_hash", None))
            fingerprint = f"{model}@{revision}"
        self.provenance = {
            "encoder": Path(model).absolute().name if local.is_dir() else str(model),
            "revision": revision,
            "encoder_fingerprint": fingerprint,
            "device": str(self._model.device.type),
            "sentence_transformers": sentence_transformers.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], int]:
        """Vectors float32 (n, d), and how many texts were longer than the model reads."""
        limit = self._model.max_seq_length
        cut = 0
        if limit is not None:
            ids = self._model.tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
            cut = sum(len(row) > limit for row in ids)
        # It sorts by length itself.
        vectors = self._model.encode(list(texts), batch_size=BATCH, show_progress_bar=False, convert_to_numpy=True)
        return np.asarray(vectors, np.float32), cut


def _first(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
