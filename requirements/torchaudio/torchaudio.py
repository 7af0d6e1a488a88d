"""Nothing, in the place of torchaudio: see pyproject.toml."""
