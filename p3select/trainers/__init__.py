"""What runs inside a trainer: :mod:`p3select.trainers.hf` for transformers and TRL."""
