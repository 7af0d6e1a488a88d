"""TRL's SFTTrainer, each epoch on the rows that p3select chooses with the model in training.

Two epochs of SmolLM2-135M-Instruct on 6 of 24 rows of GSM8K, one to three minutes on a CPU:

    make models
    python examples/trl_attach.py
"""

from pathlib import Path

import polars as pl
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

import p3select
from p3select.index import read
from p3select.trainers import hf

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "models" / "SmolLM2-135M-Instruct"
ENCODER = ROOT / "models" / "all-MiniLM-L6-v2"
OUT = Path("runs/trl-attach")
EPOCHS = 2

# The data: any Parquet file with columns prompt and completion (or messages, …).
OUT.mkdir(parents=True, exist_ok=True)
data = OUT / "train.parquet"
pl.read_parquet(ROOT / "examples" / "gsm8k.parquet").head(24).write_parquet(data)

# Embeddings, once for the run: by them the selection tells alike from different.
run = p3select.Run(OUT / "run")
p3select.embed(data, run, ENCODER)

# A trainer as always, on all the rows.
trainer = SFTTrainer(
    model=AutoModelForCausalLM.from_pretrained(MODEL, dtype="float32"),
    args=SFTConfig(
        output_dir=str(OUT / "weights"),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=3,
        learning_rate=2e-5,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
    ),
    train_dataset=hf.dataset(run),
    processing_class=AutoTokenizer.from_pretrained(MODEL),
)

# The one line: when an epoch begins, score all rows with the weights as they are, and train on 6 of them.
# overwrite: this example can be run again.
hf.attach(trainer, run, budget=6, overwrite=True, show_progress=True)
trainer.train()

for epoch in range(1, EPOCHS + 1):
    index = read(run.index(epoch))
    print(f"\nEpoch {epoch}: λ = {index.metadata['lam']:.3f}, {index.metadata['eligible']} rows eligible; trained on")
    for row, name, difficulty in zip(index.rows, index.ids.to_pylist(), index.difficulty, strict=True):
        print(f"  row {row:2d}  difficulty {difficulty:.3f}  {name}")
