"""A training as torchrun or accelerate starts it; every process writes the token rows that reach its model."""

import json
import os
import sys
from pathlib import Path

import torch
import transformers
import trl
from transformers import AutoTokenizer, LlamaForCausalLM

from p3select.trainers import hf


class Recorder(transformers.TrainerCallback):
    def __init__(self, trainer, out):
        self.out, self.epochs, self.step = out, [], trainer.training_step
        trainer.training_step = self.training_step
        trainer.add_callback(self)

    def on_epoch_begin(self, args, state, control, **_):
        self.epochs.append([])

    def training_step(self, model, inputs, *more):
        for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True):
            self.epochs[-1].append(ids[mask].tolist())
        return self.step(model, inputs, *more)

    def on_train_end(self, args, state, control, model, **_):
        rank = int(os.environ.get("RANK", "0"))
        weight = next(iter(model.parameters())).double().sum().item()
        found = {"epochs": self.epochs, "world": args.world_size, "steps": state.global_step, "weight": weight}
        (self.out / f"rank-{rank}.json").write_text(json.dumps(found))


def main(run, model, out, **options):
    torch.set_num_threads(1)
    resume = options.pop("resume", None)
    trainer = trl.SFTTrainer(
        model=LlamaForCausalLM.from_pretrained(model),
        args=trl.SFTConfig(
            output_dir=out,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            learning_rate=1e-2,
            **options,
        ),
        train_dataset=hf.dataset(run),
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    hf.attach(trainer, run)
    Recorder(trainer, Path(out))
    trainer.train(resume_from_checkpoint=resume)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
