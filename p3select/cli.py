"""The command line: one command per public function, no arithmetic."""

from __future__ import annotations

import json
import math
import re
import sys
from typing import TYPE_CHECKING, Any, TypeVar

import click

import p3select
from p3select.errors import InputError, P3Error

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    F = TypeVar("F", bound=Callable[..., Any])

RUN = click.option("--run", required=True, metavar="DIR", help="The run folder: all that belongs to one training run.")
EPOCH = click.option("--epoch", type=int, default=1, show_default=True, help="The epoch to come, counted from 1.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout instead of a table.")
OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace what was made otherwise.")
COLUMN = click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="ROLE=NAME",
    help="Name a column: prompt=question, completion=answer, messages=chat, id=uid …; can be given again.",
)
ENGINE = click.option(
    "--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True, help="Where the work is done."
)
WORKERS = click.option(
    "--workers", type=int, metavar="N", help="With --engine ray: how many. [default: one for each GPU, or one]"
)
ADDRESS = click.option(
    "--address", metavar="A", help="With --engine ray: a cluster's. [default: a Ray of this machine's own]"
)
GPUS = click.option("--gpus", type=float, metavar="G", help="With --engine ray: GPUs of a worker. [default: 1 if any]")
REFRESH = click.option(
    "--refresh",
    metavar="SHARE",
    help="Score rows with 25% of the tokens, say, and predict the others; not in epoch 1. [default: score all]",
)
# The files that Matplotlib writes as pixels, SVG or PDF.
DRAWN = ("png", "jpg", "jpeg", "tif", "tiff", "webp", "svg", "svgz", "pdf")
# No name of a strategy has a colon: p3+share=source=a:40%,b:60% goes on after its comma, and so does exclude=[1,2].
STRATEGY_ENDS = r",(?![^,+]*:|[^\[]*\])"
SEED = click.option("--seed", type=int, default=0, show_default=True, help="For what is drawn.")


def _together(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Options that several commands have."""

    def apply(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return apply


SCORER = _together(
    click.option(
        "--scorer",
        default="auto",
        show_default=True,
        help="What reads log-probabilities: transformers, vllm, server, NAME; auto: vllm where it and a GPU are found.",
    ),
    click.option(
        "--server", metavar="URL", help="A vLLM server, such as http://127.0.0.1:8000/v1; implies --scorer server."
    ),
    click.option(
        "--option",
        "options",
        multiple=True,
        metavar="NAME=VALUE",
        help="An option of the scorer's own, such as dtype=bfloat16 or tensor_parallel=2; can be given again.",
    ),
)
SCORING = _together(
    SCORER,
    click.option(
        "--actions", default="line", show_default=True, help="What is a step: line, sentence, token, whole, re:PATTERN."
    ),
    click.option(
        "--max-length", type=int, metavar="N", help="Tokens of a row that are kept. [default: the model's limit]"
    ),
    click.option(
        "--truncate",
        type=click.Choice(["keep-start", "skip", "error"]),
        default="keep-start",
        show_default=True,
        help="What becomes of a longer row.",
    ),
    click.option(
        "--ifd", is_flag=True, help="Score targets a second time, without their prompts: for --difficulty ifd."
    ),
    click.option(
        "--el2n", is_flag=True, help="Take the errors of all tokens' probabilities, too: for --difficulty el2n."
    ),
)
SELECTING = _together(
    click.option(
        "--scores-of",
        type=int,
        metavar="E",
        help="Go by the scores of another epoch: 1 where rows are scored once, before the training.",
    ),
    click.option(
        "--pace",
        default="linear:50:95",
        show_default=True,
        help="The percentile of difficulty up to which rows are eligible: linear:A:B, constant:P, paper-code …",
    ),
    click.option(
        "--difficulty",
        default="p3",
        show_default=True,
        help="p3 (the paper's), nll (nats per token), ifd (after score --ifd) or el2n (after score --el2n).",
    ),
    click.option(
        "--quality",
        type=click.Choice(["harder", "easier", "none"]),
        default="harder",
        show_default=True,
        help="Which of the eligible rows the DPP prefers.",
    ),
    click.option(
        "--quality-weight",
        type=float,
        default=1.0,
        show_default=True,
        help="Exponent of quality: 0 for diversity alone.",
    ),
    click.option(
        "--fresh",
        type=float,
        default=0.0,
        show_default=True,
        metavar="W",
        help="Put back what earlier epochs picked: q times (1 − W) for each of them; 1: it comes last.",
    ),
    click.option(
        "--selector",
        default="auto",
        show_default=True,
        help="dpp, dpp-local, dpp-torch (CUDA), kdpp, topk, middle, ifd (with --difficulty ifd), longest, uniform, "
        "kcenter, facility, d2, deita, "
        "module:function; auto: dpp if it fits, or dpp-local.",
    ),
    click.option(
        "--similarity",
        default="gaussian",
        show_default=True,
        help="Of the DPP's kernel: gaussian, cauchy (repels from afar) or linear (the paper's; of low rank).",
    ),
    click.option("--scale", type=float, metavar="H", help="The similarity's scale. [default: from the data]"),
    click.option("--whiten", is_flag=True, help="Take the common direction out of the embeddings first."),
    click.option("--neighbours", type=int, metavar="N", help="Of dpp-local: picks that a row is judged by. [by rule]"),
    click.option("--probes", type=int, metavar="N", help="Of dpp-local: cells in which they are sought. [by rule]"),
    click.option("--cells", type=int, metavar="N", help="Of dpp-local: all cells. [by rule]"),
    click.option(
        "--cost-weight",
        type=float,
        default=1.0,
        show_default=True,
        metavar="W",
        help="With a budget in tokens: prefer gain per tokens^W; 0: by gain alone, what fits.",
    ),
    click.option("--at-most", type=int, metavar="N", help="With --per: so many rows for each value of a column."),
    click.option("--per", metavar="COLUMN", help="The column of --at-most, such as prompt."),
    click.option(
        "--share", metavar="SHARES", help="Shares of the budget for values of a column: source=math:40%,code:60%."
    ),
    click.option(
        "--include",
        metavar="FILE",
        help="Rows that have to be selected: Parquet or JSON Lines with row or id, or .txt.",
    ),
    click.option("--exclude", metavar="FILE", help="Rows that may not be selected; a file as for --include."),
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(p3select.__version__, prog_name="p3select")
def cli() -> None:
    """Choose fine-tuning data anew each epoch: difficulty under the policy, pace, diversity (P3).

    \b
    p3select score  train.parquet --run runs/a --model checkpoints/0
    p3select embed  train.parquet --run runs/a --encoder sentence-transformers/all-MiniLM-L6-v2
    p3select select --run runs/a --epoch 1 --epochs 5 --budget 1000
    p3select export --run runs/a --epoch 1 --to trl --out runs/a/epoch-1
    """


@cli.command()
@click.argument("data", nargs=-1, required=True)
@RUN
@click.option("--model", required=True, metavar="M", help="The policy: a folder, a GGUF file or a Hugging Face id.")
@EPOCH
@SCORING
@click.option("--adapter", metavar="DIR", help="A PEFT adapter to put on the model, unmerged.")
@REFRESH
@click.option("--limit", type=int, metavar="N", help="Score the first N rows only.")
@click.option(
    "--reuse", metavar="DIR", help="Another run folder; rows scored there with the same weights are taken over."
)
@ENGINE
@WORKERS
@ADDRESS
@GPUS
@click.option(
    "--dry-run", is_flag=True, help="Count tokens, score a sample, print the time it would take; write nothing."
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Chooses the sample of --dry-run, the rows of --refresh."
)
@click.option("--shard-rows", type=int, default=512, show_default=True, help="Rows in a shard: what a kill can lose.")
@COLUMN
@OVERWRITE
@JSON
def score(data: tuple[str, ...], dry_run: bool, as_json: bool, **options: Any) -> None:
    """Read log-probabilities of the rows in DATA.

    Of every row's completion (or assistant turns), under the model, action by action.

    DATA is Parquet or JSON Lines: files, folders or globs. A killed run goes on where it was when the command is
    given again.

    \b
    p3select score train.parquet --run runs/a --model checkpoints/epoch-1 --epoch 2
    """
    from p3select import scores

    options["columns"] = _pairs("--column", options["columns"], "prompt=question")
    _scorer(options)
    if dry_run:
        if options.pop("refresh") is not None:
            raise InputError("--dry-run is of all rows: leave --refresh out, and take its share of the time")
        if options["engine"] != "local":
            raise InputError("--dry-run measures on this machine: leave --engine out, and divide by the workers")
        for name in ("engine", "workers", "address", "gpus"):
            del options[name]
        _print(scores.estimate(list(data), **options), as_json)
    else:
        _print(p3select.score(list(data), show_progress=True, **options), as_json)


@cli.command()
@click.argument("data", nargs=-1, required=True)
@RUN
@click.option("--encoder", metavar="M", help="A sentence-transformers folder or Hugging Face id.")
@click.option("--vectors", metavar="FILE", help="Vectors made before, in its place: FILE.npy or FILE.parquet:COLUMN.")
@click.option(
    "--text",
    type=click.Choice(["prompt", "completion", "both"]),
    default="prompt",
    show_default=True,
    help="What of a row is embedded.",
)
@ENGINE
@WORKERS
@ADDRESS
@GPUS
@COLUMN
@OVERWRITE
@JSON
def embed(data: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Embed every row of DATA, once for a run.

    \b
    p3select embed train.parquet --run runs/a --encoder sentence-transformers/all-MiniLM-L6-v2
    """
    options["columns"] = _pairs("--column", options["columns"], "prompt=question")
    _print(p3select.embed(list(data), show_progress=True, **options), as_json)


@cli.command()
@RUN
@click.option("--epoch", type=int, required=True, help="The epoch to select for, counted from 1.")
@click.option("--epochs", type=int, required=True, metavar="T", help="The epochs of the whole training.")
@click.option(
    "--budget",
    required=True,
    metavar="K",
    help="Rows: a count such as 1000, or a share of the dataset: 20%. Or completion tokens: 2Mtok.",
)
@SELECTING
@click.option(
    "--parts",
    type=int,
    metavar="P",
    help="Select in P random parts, then from their union. [default: none; 8 with ray]",
)
@ENGINE
@WORKERS
@ADDRESS
@SEED
@OVERWRITE
@JSON
def select(as_json: bool, **options: Any) -> None:
    """Choose the rows of an epoch and write the run's index file for it.

    \b
    p3select select --run runs/a --epoch 1 --epochs 5 --budget 20%
    """
    selection = p3select.select(**options)
    path = p3select.Run(options["run"]).index(options["epoch"])
    if as_json:
        _print({**selection.metadata, **selection.summary, "index": str(path)}, as_json)
        return
    from p3select import tables

    tables.selection(selection, path)


@cli.command()
@RUN
@click.option("--epoch", type=int, required=True, help="The epoch whose index is exported.")
@click.option("--to", required=True, help="jsonl, parquet; trl, axolotl or llamafactory (folders).")
@click.option(
    "--out",
    required=True,
    metavar="PATH",
    help="The file or folder to write; a folder for many epochs with / at its end.",
)
@OVERWRITE
@JSON
def export(as_json: bool, **options: Any) -> None:
    """Write the selected rows, every column of them, for a trainer.

    \b
    p3select export --run runs/a --epoch 1 --to jsonl --out epoch-1.jsonl
    """
    _print(p3select.export(**options), as_json)


@cli.command()
@RUN
@click.option(
    "--against",
    metavar="COLUMN",
    help="The ground truth: numbers, 'Level 3', or categories (fewer than 90% with one number). [default: none: how "
    "difficulties spread and agree]",
)
@EPOCH
@click.option("--by", metavar="COLUMN", help="Look at each value of a column by itself, too.")
@click.option("--difficulty", default="p3", show_default=True, metavar="LIST", help="Some of p3,nll,ifd,el2n.")
@click.option(
    "--actions",
    default="",
    metavar="LIST",
    help="Rules for p3: whole, and after score --actions token any: line,sentence.",
)
@click.option("--tokenizer", metavar="M", help="With such rules: the policy's tokenizer. [default: the policy's name]")
@click.option("--resamples", type=int, default=1000, show_default=True, metavar="N", help="Of the bootstrap.")
@SEED
@click.option("--out", metavar="FILE", help="Draw it: a .png, .svg or .pdf file.")
@JSON
def validate(as_json: bool, out: str | None, **options: Any) -> None:
    """Compare difficulty with a ground truth, beside length.

    \b
    p3select validate --run runs/a --against level --by subject --difficulty p3,nll --out level.png
    """
    for name in ("difficulty", "actions"):
        options[name] = _list(options[name])
    draw = _drawing("validation", out)
    found = p3select.validate(**options)
    _show("validation", found, as_json)
    draw(found)


@cli.command()
@RUN
@click.option("--epochs", type=int, required=True, metavar="T", help="The epochs of the whole training.")
@click.option("--budget", required=True, metavar="K", help="Of an epoch: 1000 rows, 20% of them, or 2Mtok.")
@click.option("--out", required=True, metavar="DIR", help="Where the selections and results go.")
@click.option("--epoch", type=int, metavar="E", help="Compare for this epoch. [default: all that have scores]")
@click.option(
    "--strategies",
    metavar="LIST",
    help="Some of p3, pace-only, dpp-only, reversed, static, uniform, longest, nll-high, nll-middle, nll-low, ifd, "
    "el2n, kcenter, facility, d2, deita, rds, full; with options of select as in p3,p3+pace=constant:80. [default: all "
    "for which there is what they need]",
)
@click.option("--columns", default="", metavar="LIST", help="Columns whose values are counted, such as source,level.")
@click.option("--queries", metavar="Q", help="For rds: a run folder with embeddings, or COLUMN=VALUE.")
@SEED
@click.option("--train", metavar="COMMAND", help="Train by each strategy, too: as with loop --train.")
@click.option("--eval", "evaluate", metavar="COMMAND", help="Reads {model}, writes a JSON object of numbers to {out}.")
@click.option("--seeds", default="0,1,2", show_default=True, metavar="LIST", help="Of the trainings.")
@click.option("--model", metavar="M", help="The policy that enters training. [default: the one of the scores]")
@click.option("--to", default="jsonl", show_default=True, help="How {data} is written: as with export --to.")
@click.option("--discard", is_flag=True, help="Remove a training's weights once they are evaluated.")
@click.option("--plot", metavar="FILE", help="Draw it: a .png, .svg or .pdf file.")
@SCORER
@JSON
def compare(as_json: bool, plot: str | None, **options: Any) -> None:
    """Compare strategies at an equal budget.

    What their selections are like; and, with --train and --eval, what models learn from them.

    \b
    p3select compare --run runs/a --epochs 5 --budget 20% --columns source --out runs/a-compared
    """
    _scorer(options)
    options["scoring"] = {name: options.pop(name) for name in ("scorer", "options")}
    if options["strategies"] is not None:
        options["strategies"] = _list(options["strategies"], STRATEGY_ENDS)
    options["columns"] = _list(options["columns"])
    options["seeds"] = _numbers("--seeds", _list(options["seeds"]))
    draw = _drawing("comparison", plot)
    found = p3select.compare(show_progress=True, **options)
    _show("comparison", found, as_json)
    draw(found)


@cli.command()
@RUN
@click.option("--out", required=True, metavar="FILE", help="The HTML file to write.")
@click.option(
    "--columns",
    metavar="LIST",
    help="Columns by which selections are compared with all rows. [default: source, subject, level … where there]",
)
@click.option("--tokenizer", metavar="M", help="The policy's, to shade actions that the text alone does not give.")
@click.option("--overhead", type=float, default=0.5, show_default=True, help="The share of choosing to warn above.")
@JSON
def report(as_json: bool, **options: Any) -> None:
    """Draw a run as one HTML page: difficulties, selections, coverage, cost, rows, failure signatures.

    \b
    p3select report --run runs/a --out report.html
    """
    if options["columns"] is not None:
        options["columns"] = _list(options["columns"])
    _print(p3select.report(**options), as_json)


@cli.command()
@click.argument("data", nargs=-1, required=True)
@RUN
@click.option("--model", required=True, metavar="M", help="The policy that enters the first epoch.")
@click.option("--epochs", type=int, required=True, metavar="T", help="The epochs of the whole training.")
@click.option("--budget", required=True, metavar="K", help="Of an epoch: 1000 rows, 20% of them, or 2Mtok.")
@click.option(
    "--train",
    required=True,
    metavar="COMMAND",
    help="Trains on {data} (or {index}) from {model} and leaves weights in {out}; also {epoch}, {epochs}, {seed}.",
)
@click.option("--to", default="jsonl", show_default=True, help="How {data} is written: as with export --to.")
@click.option("--encoder", metavar="M", help="Embeds the rows first, where the run folder has no embeddings.")
@SCORING
@REFRESH
@click.option(
    "--refresh-from",
    type=int,
    metavar="EPOCH",
    help="With --refresh: the first epoch that is scored in part. [default: 3]",
)
@SELECTING
@SEED
@COLUMN
@JSON
def loop(data: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Run a whole training by any command.

    Score, select, run the command on the selected rows, take its weights as the next policy: for every epoch. Given
    again, it goes on where it was.

    \b
    p3select loop train.parquet --run runs/a --model M --encoder E --epochs 3 --budget 20% \\
        --train 'python train.py --model {model} --data {data} --out {out}'
    """
    _scorer(options)
    names = ("scorer", "options", "actions", "max_length", "truncate", "ifd", "el2n", "refresh")
    scoring = {name: options.pop(name) for name in names}
    scoring["columns"] = _pairs("--column", options.pop("columns"), "prompt=question")
    named = ("data", "run", "model", "epochs", "budget", "train", "to", "encoder", "refresh_from", "seed")
    selecting = {name: options.pop(name) for name in [*options] if name not in named}
    done = p3select.loop(list(data), scoring=scoring, selecting=selecting, show_progress=True, **options)
    if as_json:
        _print({"epochs": done}, as_json)
        return
    from p3select import tables

    tables.epochs(done)


@cli.command()
@click.option("--out", default="runs/demo", show_default=True, metavar="DIR", help="Where everything goes.")
@click.option("--data", metavar="FILE", help="Your rows. [default: an excerpt of GSM8K]")
@click.option("--model", metavar="M", help="Your policy. [default: SmolLM2-135M-Instruct]")
@click.option("--encoder", metavar="M", help="Your encoder. [default: all-MiniLM-L6-v2]")
@SEED
@JSON
def demo(as_json: bool, **options: Any) -> None:
    """Run two epochs of the whole loop, in minutes.

    On real rows with a real model, on a CPU: score, embed, select, fine-tune, score, select.

    \b
    p3select demo --data train.parquet --model checkpoints/0 --encoder sentence-transformers/all-MiniLM-L6-v2
    """
    import os

    from p3select import plugins

    # Read when torch is loaded: threads that wait give their core away, which training on a busy CPU lives by.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    result = plugins.find("demo", "demo", {"demo": ("p3select.demo:demo", "trl,report")})(**options, show=not as_json)
    if as_json:
        _print(result, as_json)


def _scorer(options: dict[str, Any]) -> None:
    """--option and --server as a scorer's name and options."""
    options["options"] = _pairs("--option", options["options"], "dtype=bfloat16")
    server = options.pop("server")
    if server is not None:
        if options["scorer"] not in ("auto", "server"):
            raise InputError(f"--server goes with --scorer server, not {options['scorer']}")
        options["scorer"] = "server"
        options["options"]["server"] = server


def _pairs(flag: str, given: tuple[str, ...], example: str) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in given]
    for left, equals, right in pairs:
        if not (left and equals and right):
            raise InputError(f"{flag} {left}{equals}{right}: give it as in {flag} {example}")
    return {left: right for left, _, right in pairs}


def _show(table: str, found: Mapping[str, Any], as_json: bool) -> None:
    """A result as tables, or as JSON: before it is drawn, as a drawing that fails should not take it along."""
    if as_json:
        _print(found, as_json)
        return
    from p3select import tables

    getattr(tables, table)(found)


def _drawing(name: str, out: str | None) -> Callable[[Mapping[str, Any]], object]:
    """What draws a result; found before the work, which may be long, is done."""
    if out is None:
        return lambda _: None
    from pathlib import Path

    from p3select import plugins

    if Path(out).suffix.lower().removeprefix(".") not in DRAWN:
        raise InputError(f"{out}: no drawing ends so; give a file that ends in .{', .'.join(DRAWN)}")

    figure = plugins.find("figure", name, {name: (f"p3select.figures:{name}", "report")})
    return lambda found: figure(found, Path(out))


def _list(text: str, ends: str = ",") -> list[str]:
    return [part.strip() for part in re.split(ends, text) if part.strip()]


def _numbers(flag: str, given: list[str]) -> list[int]:
    bad = next((part for part in given if not part.isdecimal()), None)
    if bad is not None:
        raise InputError(f"{flag}: {bad!r} is no whole number; give such as 0,1,2")
    return [int(part) for part in given]


def _print(summary: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(_finite(summary), ensure_ascii=False, allow_nan=False))
        return
    from p3select import tables

    tables.summary(summary)


def _finite(value: Any) -> Any:
    """None for what is no number in JSON: NaN and infinity."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main(arguments: list[str] | None = None) -> None:
    """Run the command line: 0 done, 2 bad input, 1 a fault inside, 130 interrupted."""
    try:
        cli.main(arguments, prog_name="p3select", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "p3select"
        _fail(f"{error.format_message()} (see '{where} --help')")
    except click.ClickException as error:
        _fail(error.format_message())
    except P3Error as error:
        _fail(str(error))
    except (click.Abort, KeyboardInterrupt):
        sys.stderr.write("interrupted: what was finished stays; give the same command again to go on\n")
        sys.exit(130)


def _fail(message: str) -> None:
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
    sys.exit(2)
