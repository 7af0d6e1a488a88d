"""The whole training by any command: score → select → run the command → its weights are the next policy."""

from __future__ import annotations

import shlex
import string
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from p3select import embeddings, exporters, progress, scores, selection
from p3select.dataset import load
from p3select.errors import InputError, MismatchError, P3Error
from p3select.run import Run, read_json, write_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from p3select.dataset import Dataset

PLACES = ("model", "data", "index", "out", "epoch", "epochs", "seed")
# What an exporter's file is called; the others write folders.


def loop(
    data: str | Path | Sequence[str | Path] | Dataset,
    run: Run | str | Path,
    model: str | Path,
    *,
    epochs: int,
    budget: int | str,
    train: str,
    to: str = "jsonl",
    encoder: str | Path | None = None,
    scoring: Mapping[str, Any] | None = None,
    selecting: Mapping[str, Any] | None = None,
    seed: int = 0,
    show_progress: bool = False,
) -> list[dict[str, Any]]:
    """In each epoch: score all rows, select, export the selected ones, run a command that trains on them.

    Every step that was finished is kept: the same call goes on where an earlier one was killed. A command that was
    killed is run again.

    Args:
        data: Parquet or JSON Lines; see :func:`p3select.dataset.load`.
        run: The run folder; what belongs to an epoch's training goes to ``loop/epoch-001/`` of it.
        model: The policy that enters the first epoch.
        epochs: T ≥ 1.
        budget: Rows of an epoch: a count, or a share such as ``"20%"``.
        train: A command of the shell, with places to fill: ``{model}`` the policy that enters the epoch, ``{data}`` the
            selected rows, ``{index}`` the index file, ``{out}`` the folder where the new weights must be when it ends
            (a model's, or a LoRA adapter's on the first model), ``{epoch}``, ``{epochs}``, ``{seed}``. Paths are
            quoted. ``{{`` and ``}}`` are braces. It needs ``{out}``, and ``{data}`` or ``{index}``.
        to: The exporter that writes ``{data}``; see :func:`p3select.exporters.export`.
        encoder: Of the embeddings; None where the run folder has them, or the selector goes by none.
        scoring: Further arguments of :func:`p3select.score`.
        selecting: Further arguments of :func:`p3select.select`.
        seed: Of the selection, and ``{seed}``.
        show_progress: Print what is going on, on stderr.

    Returns:
        Per epoch: epoch, lam, eligible, selected, difficulty_all, difficulty_selected, policy, out, and the seconds of
        scoring and training (0 for what was there).

    Raises:
        InputError: Bad data, options or template, or a command that left no weights.
        MismatchError: The run folder holds another loop's work.
        P3Error: The command failed.
    """
    _filled(train, dict.fromkeys(PLACES, ""))
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise InputError(f"epochs {epochs!r}: at least 1")
    run = run if isinstance(run, Run) else Run(run)
    dataset = load(data, (scoring or {}).get("columns"))
    run.check(dataset)
    if encoder is not None:
        embeddings.embed(dataset, run, encoder, show_progress=show_progress)
    done = []
    policy, adapter = str(model), None
    for epoch in range(1, epochs + 1):
        clock = time.monotonic()
        about = scores.score(
            dataset,
            run,
            str(model) if adapter else policy,
            epoch=epoch,
            adapter=adapter,
            show_progress=show_progress,
            **{name: value for name, value in (scoring or {}).items() if name != "columns"},
        )
        seconds = time.monotonic() - clock if about["reused"] < about["rows"] else 0.0
        chosen = selection.select(run, epoch=epoch, epochs=epochs, budget=budget, seed=seed, **(selecting or {}))
        folder = run.path / "loop" / f"epoch-{epoch:03d}"
        out = folder / "weights"
        places = {
            "model": policy,
            "data": str(folder / f"train{exporters.SUFFIXES.get(to, '')}"),
            "index": str(run.index(epoch)),
            "out": str(out),
            "epoch": str(epoch),
            "epochs": str(epochs),
            "seed": str(seed),
        }
        trained = _train(run, epoch, to, _filled(train, places), places, folder, show_progress)
        adapter = out if (out / "adapter_config.json").is_file() else None
        done.append(
            {
                "epoch": epoch,
                "lam": chosen.metadata["lam"],
                "eligible": chosen.metadata["eligible"],
                "selected": len(chosen),
                "difficulty_all": chosen.summary["difficulty_all"],
                "difficulty_selected": chosen.summary["difficulty_selected"],
                "policy": policy,
                "out": str(out),
                "seconds_scoring": seconds,
                "seconds_training": trained,
            }
        )
        policy = str(out)
    return done


def _train(run: Run, epoch: int, to: str, command: str, places: Mapping[str, str], folder: Path, show: bool) -> float:
    """Run the command unless its work is done; the seconds that it took now."""
    mark, out = folder / "done.json", Path(places["out"])
    if mark.is_file():
        known = read_json(mark)
        if known["command"] != command:
            raise MismatchError(
                f"{folder}: trained by another command ({known['command']}); give another --run, or the same command"
            )
        _weights(out, command)
        return 0.0
    exporters.export(run, epoch=epoch, to=to, out=places["data"], overwrite=True)
    if show:
        progress.say(f"epoch {places['epoch']} of {places['epochs']}: {command}")
    clock = time.monotonic()
    # To stderr: stdout is for results.
    code = subprocess.run(command, shell=True, stdout=2, check=False).returncode
    if code:
        raise P3Error(
            f"epoch {epoch}: the command ended with {code}: {command}; mend it and give the same call again: what is "
            "scored and selected stays"
        )
    _weights(out, command)
    seconds = time.monotonic() - clock
    write_json(mark, {"command": command, "seconds": seconds})
    return seconds


def _weights(out: Path, command: str) -> None:
    if not any((out / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise InputError(
            f"{out}: no config.json or adapter_config.json there, after the command that was to: {command}"
        )


def _filled(template: str, places: Mapping[str, str]) -> str:
    """The command, its places filled with quoted values.

    Raises:
        InputError: A place that there is not, one that must be there is not, or braces that do not fit.
    """
    try:
        named = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise InputError(f"train {template!r}: {error}; write {{{{ and }}}} for braces of the command's own") from None
    for name in named:
        if name not in PLACES:
            raise InputError(
                f"train {template!r}: no place {{{name}}}; there are {', '.join(f'{{{place}}}' for place in PLACES)}, "
                "and {{ and }} for braces of the command's own"
            )
    if "out" not in named or not {"data", "index"} & set(named):
        raise InputError(f"train {template!r}: it needs {{out}}, and {{data}} or {{index}}")
    return template.format(**{name: shlex.quote(value) for name, value in places.items()})
