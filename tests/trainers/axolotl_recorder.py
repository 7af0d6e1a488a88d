"""A plugin for axolotl that writes down what its model is trained on: the token rows of every training step."""

import hashlib
import json
import os
from pathlib import Path

import torch
from axolotl.integrations.base import BasePlugin
from transformers import TrainerCallback

# A second process on the CPU asks for the optimizer's state at "cpu:1", which torch does not know.
torch.serialization.register_package(0, lambda _: None, lambda kept, place: kept if place.startswith("cpu:") else None)


class Recorder(BasePlugin):
    def load_datasets(self, cfg, preprocess=False):
        if not torch.cuda.is_available():
            cfg.device_map = None  # axolotl puts the model of a second process on a second GPU

    def post_trainer_create(self, cfg, trainer):
        self.epochs, self.losses = [], []
        step = trainer.training_step

        def training_step(model, inputs, *more):
            self.epochs[-1] += rows(inputs)
            loss = step(model, inputs, *more)
            assert model.training
            self.losses.append(loss.item())
            return loss

        trainer.training_step = training_step
        trainer.add_callback(Written(self, cfg))


class Written(TrainerCallback):
    def __init__(self, recorder, cfg):
        self.recorder, self.out = recorder, Path(cfg.output_dir)

    def on_epoch_begin(self, args, state, control, **_):
        self.recorder.epochs.append([])

    def on_train_end(self, args, state, control, model=None, **_):
        digest = hashlib.sha256()
        for name, value in sorted(model.state_dict().items()):
            digest.update(name.removeprefix("module.").encode() + value.numpy().tobytes())
        found = {
            "epochs": self.recorder.epochs,
            "losses": self.recorder.losses,
            "rates": [entry["learning_rate"] for entry in state.log_history if "learning_rate" in entry],
            "steps": [state.global_step, state.max_steps],
            "warmup": args.warmup_steps,
            "processes": args.world_size,
            "weights": digest.hexdigest(),
        }
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / f"recorded-{os.environ.get('RANK', 0)}.json").write_text(json.dumps(found))


def rows(inputs):
    """The token rows of a batch without padding; packed ones begin where positions begin anew."""
    found = []
    for at, ids in enumerate(inputs["input_ids"].tolist()):
        trained = (inputs["labels"][at] != -100).tolist()
        if "position_ids" in inputs:
            starts = [n for n, position in enumerate(inputs["position_ids"][at].tolist()) if position == 0]
            parts = [slice(*ends) for ends in zip(starts, [*starts[1:], len(ids)], strict=True)]
        else:
            parts = [slice(0, int(inputs["attention_mask"][at].sum()))]
        # Where nothing is trained there is padding only.
        found += [ids[part] for part in parts if any(trained[part])]
    return found
