"""Make folders of the two small models that come as packages: python examples/models.py models."""

import sys
from pathlib import Path

from p3select import demo
from p3select.scorers.transformers import TransformersScorer

folder = Path(sys.argv[1])
policy = TransformersScorer(demo.packaged_model(), device="cpu")
policy.model.save_pretrained(folder / "SmolLM2-135M-Instruct")
policy.tokenizer.save_pretrained(folder / "SmolLM2-135M-Instruct")
encoder = folder / "all-MiniLM-L6-v2"
if not encoder.exists():
    encoder.symlink_to(demo.packaged_encoder())
print(f"{folder}/SmolLM2-135M-Instruct, {encoder}")
