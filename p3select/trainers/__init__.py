"""What runs inside trainers: transformers and TRL (:mod:`.hf`), :mod:`.axolotl`, :mod:`.llamafactory`."""
