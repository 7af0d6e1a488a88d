r"""A command for `p3select loop` with which optimizer and learning rates go on through all epochs.

    make models
    p3select loop examples/gsm8k.parquet --run runs/loop-schedule --model models/SmolLM2-135M-Instruct \
        --encoder models/all-MiniLM-L6-v2 --epochs 3 --budget 6 \
        --train 'python examples/loop_schedule.py {model} {index} {out} {epoch} {epochs}'

Each call trains one epoch: of a schedule that is made for all of them, from the checkpoint that the call before left.
"""

import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig, SFTTrainer

from p3select import Run
from p3select.index import read
from p3select.trainers import hf

model, index, out, epoch, epochs = sys.argv[1:]
run = Run(Path(index).parents[1])
BATCH, ACCUMULATION = 3, 1
# All epochs have the same budget; where they have not, add up the steps of each.
steps = int(epochs) * hf.steps_per_epoch(len(read(Path(index))), BATCH, 1, ACCUMULATION)
checkpoint = None if epoch == "1" else get_last_checkpoint(model)

trainer = SFTTrainer(
    model=AutoModelForCausalLM.from_pretrained(model, dtype="float32"),
    args=SFTConfig(
        output_dir=out,
        max_steps=steps,
        ignore_data_skip=checkpoint is not None,
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=ACCUMULATION,
        learning_rate=2e-5,
        lr_scheduler_type="linear",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
    ),
    train_dataset=hf.dataset(run),
    processing_class=AutoTokenizer.from_pretrained(model),
)
# It trains the rows of this epoch's index, saves a checkpoint into {out}, and stops.
hf.attach(trainer, run, epoch=int(epoch))
trainer.train(resume_from_checkpoint=checkpoint)
trainer.save_model(out)
