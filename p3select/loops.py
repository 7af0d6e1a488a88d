"""The whole training by any command: score → select → run the command → its weights are the next policy."""

from __future__ import annotations

import inspect
import json
import os
import shlex
import signal
import string
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from p3select import embeddings, exporters, fingerprints, progress, refreshing, scores, selection
from p3select.dataset import load
from p3select.errors import InputError, MismatchError, P3Error
from p3select.run import Run, read_json, write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from p3select.dataset import Dataset

PLACES = ("model", "data", "index", "out", "epoch", "epochs", "seed")
# One of each has to be there.
NEEDED = (("out",), ("data", "index"))
# Options of score and select that change nothing in what comes of them, and may change between two calls.
FREE_SCORING = ("columns", "reuse", "engine", "workers", "address", "gpus", "overwrite")
# And the scorers' own: what matters of them is in the scores' settings.
FREE_OPTIONS = (
    *("server", "concurrency", "timeout", "retries"),
    *("memory", "batched_tokens", "tensor_parallel", "compare"),
)
FREE_SELECTING = ("workers", "address", "overwrite")
# Seconds that a command has to end itself, once it is told to.
GRACE = 10


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
    refresh_from: int | None = None,
    seed: int = 0,
    show_progress: bool = False,
) -> list[dict[str, Any]]:
    """In each epoch: score all rows, select, export the selected ones, run a command that trains on them.

    Every step that was finished is kept: the same call goes on where an earlier one was killed. A command that was
    killed is run again. An epoch whose command ended is neither scored nor selected again: it is found to have been
    asked for in the same way, and trained on the index that is there.

    A signal that ends this process (SIGINT, SIGTERM, SIGHUP) ends the command first, with all that it started. Where
    this is called in another thread than the main one, signals are the main thread's, and the command may outlive it.

    Args:
        data: Parquet or JSON Lines; see :func:`p3select.dataset.load`.
        run: The run folder; what belongs to an epoch's training goes to ``loop/epoch-001/`` of it.
        model: The policy that enters the first epoch.
        epochs: T ≥ 1.
        budget: Rows of an epoch: a count, or a share such as ``"20%"``.
        train: A command of the shell, with places to fill: ``{model}`` the policy that enters the epoch, ``{data}`` the
            selected rows, ``{index}`` the index file, ``{out}`` the folder where the new weights must be when it ends
            (a model's, or a LoRA adapter's on the last whole model), ``{epoch}``, ``{epochs}``, ``{seed}``. Paths
            are absolute, and quoted. ``{{`` and ``}}`` are braces. It needs ``{out}``, and ``{data}`` or ``{index}``.
        to: The exporter that writes ``{data}``; see :func:`p3select.exporters.export`.
        encoder: Of the embeddings; None where the run folder has them, or the selector goes by none.
        scoring: Further arguments of :func:`p3select.score`.
        selecting: Further arguments of :func:`p3select.select`. With ``scores_of=1`` the first epoch alone is scored.
        refresh_from: With ``refresh`` in ``scoring``, and only then, the first epoch, from 2, of which a part is
            scored; of those before all rows are. None: epoch 3, as the first epoch of training changes difficulties
            most (docs/evidence.md).
        seed: Of the selection, and ``{seed}``.
        show_progress: Print what is going on, on stderr.

    Returns:
        Per epoch: epoch, lam, eligible, selected, difficulty_all, difficulty_selected, policy, out, and the seconds of
        scoring and training (0 for what was there).

    Raises:
        InputError: Bad data, options or template, or a command that left no weights, or an adapter on other ones.
        MismatchError: The run folder holds another loop's work, or an epoch's index is not the one trained on.
        P3Error: The command failed.
    """
    filled("train", train, dict.fromkeys(PLACES, ""), NEEDED)
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise InputError(f"epochs {epochs!r}: at least 1")
    once = (selecting or {}).get("scores_of")
    if once not in (None, 1):
        raise InputError(f"scores_of {once!r}: the first epoch would have no scores; give 1, or leave it out")
    if once is not None and (scoring or {}).get("refresh") is not None:
        raise InputError("refresh is for later epochs, and with scores_of 1 the first alone is scored: leave one out")
    refresh_from = _refresh_from(scoring or {}, refresh_from, epochs)
    scored = range(1, epochs + 1 if once is None else 2)
    served = (scoring or {}).get("scorer") == "server"
    run = run if isinstance(run, Run) else Run(run)
    dataset = load(data, (scoring or {}).get("columns"))
    run.check(dataset)
    if encoder is not None:
        embeddings.embed(dataset, run, encoder, show_progress=show_progress)
    # Lists of rows are known by what they hold.
    listed = {
        name: fingerprints.of_files(one)
        if name in ("include", "exclude") and isinstance(one, str | Path) and Path(one).is_file()
        else one
        for name, one in (selecting or {}).items()
    }
    options = {name: one for name, one in ((scoring or {}).get("options") or {}).items() if name not in FREE_OPTIONS}
    asked = {
        "train": train,
        "to": to,
        "epochs": epochs,
        "budget": str(budget),
        "seed": seed,
        **({} if refresh_from is None else {"refresh_from": refresh_from}),
        **_asked(scores.score, {**(scoring or {}), "options": options}, FREE_SCORING),
        **_asked(selection.select, listed, FREE_SELECTING),
    }
    done, first = [], run.path / "loop" / "epoch-001" / "done.json"
    # An adapter is scored on the last whole weights; the first epoch is known by the model, the others by the work
    # before them.
    policy, base, adapter, before = str(model), str(model), None, _place(model)
    for epoch in range(1, epochs + 1):
        folder = run.path / "loop" / f"epoch-{epoch:03d}"
        mark, out = folder / "done.json", folder / "weights"
        made = {**asked, "policy": before}
        seconds = trained = 0.0
        # Absolute: the command may go to another folder.
        places = {
            "model": str(Path(policy).absolute()) if Path(policy).exists() else policy,
            "data": str((folder / f"train{exporters.SUFFIXES.get(to, '')}").absolute()),
            "index": str(run.index(epoch).absolute()),
            "out": str(out.absolute()),
            "epoch": str(epoch),
            "epochs": str(epochs),
            "seed": str(seed),
        }
        command = filled("train", train, places, NEEDED)
        if mark.is_file():
            told = _known(mark, made, run.index(epoch))
            _weights(out, command)
        else:
            if epoch in scored:
                given = {"seed": seed, **_scoring(scoring or {}, epoch, refresh_from)}
                # In the next epoch that is scored the weights would have to be others.
                given |= {"epoch": epoch, "adapter": adapter, "verified": len(scored) > 1}
                seconds = _score(dataset, run, base, given, show_progress)
            elif scores.fingerprint(run, 1) != read_json(first)["scores"]:
                raise MismatchError(
                    f"{run.scores(1)}: not the scores that epoch 1 was selected by; give another --run, or "
                    f"{_again(first)}"
                )
            chosen = selection.select(run, epoch=epoch, epochs=epochs, budget=budget, seed=seed, **(selecting or {}))
            told = {
                "epoch": epoch,
                "lam": chosen.metadata["lam"],
                "eligible": chosen.metadata["eligible"],
                "selected": len(chosen),
                "difficulty_all": chosen.summary["difficulty_all"],
                "difficulty_selected": chosen.summary["difficulty_selected"],
            }
            index = fingerprints.of_files(run.index(epoch))
            exporters.export(run, epoch=epoch, to=to, out=places["data"], overwrite=True)
            trained = _train(command, places, show_progress)
            # An epoch that left the wrong adapter is not done.
            if _adapter(out, base) is not None and served and epoch < max(scored):
                raise InputError(
                    f"{out}: an adapter, and a server is compared with whole weights: have the command leave merged "
                    "ones (merge_and_unload), and give the same call again"
                )
            known = {} if once is None else {"scores": scores.fingerprint(run, 1)}
            write_json(mark, {"made": made, "index": index, "epoch": told, "seconds": trained, **known})
        adapter = _adapter(out, base)
        base = str(out) if adapter is None else base
        done.append(
            {**told, "policy": policy, "out": str(out), "seconds_scoring": seconds, "seconds_training": trained}
        )
        policy, before = str(out), fingerprints.of_files(mark)
    return done


def _score(dataset: Dataset, run: Run, model: str, given: Mapping[str, Any], show: bool) -> float:
    """Score an epoch's rows; the seconds that it took, 0 where all scores were there."""
    clock = time.monotonic()
    about = scores.score(dataset, run, model, show_progress=show, **given)
    if show:
        for note in about["notes"]:
            progress.say(f"note: {note}")
    measured = about["rows"] - about["status"].get(scores.PREDICTED, 0)
    return time.monotonic() - clock if about["reused"] < measured else 0.0


def _refresh_from(scoring: Mapping[str, Any], given: int | None, epochs: int) -> int | None:
    """The first epoch that is scored in part; None where none is."""
    if scoring.get("refresh") is None:
        if given is not None:
            raise InputError(f"refresh_from {given}: nothing is scored in part without refresh; leave it out")
        return None
    refreshing.refuse({name: scoring.get(name) for name in ("ifd", "el2n")})
    first = 3 if given is None else given
    if not 2 <= first <= epochs:
        raise InputError(
            f"refresh_from {first}: of {epochs} epochs one from 2 on is scored in part; give one of these, or leave "
            "refresh out"
        )
    return first


def _scoring(given: Mapping[str, Any], epoch: int, refresh_from: int | None) -> dict[str, Any]:
    """Arguments of an epoch's scoring: no other run has scored the later ones' weights, which are trained here."""
    left_out = ["columns"]
    if epoch > 1:
        left_out.append("reuse")
    if refresh_from is not None and epoch < refresh_from:
        left_out.append("refresh")
    return {name: value for name, value in given.items() if name not in left_out}


def _asked(function: Callable[..., Any], given: Mapping[str, Any], free: Sequence[str]) -> dict[str, Any]:
    """Options that are given and are not the defaults, as JSON, but for those that are free to change."""
    defaults = {name: one.default for name, one in inspect.signature(function).parameters.items()}
    counting = {name: value for name, value in given.items() if name not in free}
    plain: dict[str, Any] = json.loads(json.dumps(counting, default=_plain))
    return {name: value for name, value in plain.items() if value not in (defaults.get(name), {})}


def _plain(value: Any) -> Any:
    """What JSON has no form of: rows, paths, functions."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Sequence):
        return list(value)
    return str(value) if isinstance(value, Path) else selection.name_of(value if callable(value) else type(value))


def _place(name: str | Path) -> str:
    """A model's folder or file wherever one stands, or its id."""
    return str(Path(name).resolve()) if Path(name).exists() else str(name)


def _known(mark: Path, made: Mapping[str, Any], index: Path) -> dict[str, Any]:
    """What is told of an epoch that was trained as it is asked for now, on the index that is there."""
    known = read_json(mark)
    before = known.get("made", {})
    changed = sorted(name for name in {*before, *made} if before.get(name) != made.get(name))
    if changed:
        raise MismatchError(
            f"{mark.parent}: trained otherwise (differs in {', '.join(changed)}); give what was given then, or another "
            f"--run, or {_again(mark)}"
        )
    if not index.is_file() or fingerprints.of_files(index) != known["index"]:
        raise MismatchError(
            f"{index}: not the rows that the weights in {mark.parent} were trained on; give another --run, or "
            f"{_again(mark)}"
        )
    told: dict[str, Any] = known["epoch"]
    return told


def _again(mark: Path) -> str:
    name = mark.parent.name
    return f"to train again from there on remove scores/, index/ and loop/ of {name} and of all epochs after it"


def _train(command: str, places: Mapping[str, str], show: bool) -> float:
    """Run the command; the seconds that it took."""
    if show:
        progress.say(f"epoch {places['epoch']} of {places['epochs']}: {command}")
    clock = time.monotonic()
    code = run_command(command)
    if code:
        raise P3Error(
            f"epoch {places['epoch']}: the command ended with {code}: {command}; mend it and give the same call "
            "again: what is scored and selected stays"
        )
    _weights(Path(places["out"]), command)
    return time.monotonic() - clock


def run_command(command: str) -> int:
    """Run a command to its end; where this process is ended by a signal before, so is all that the command started.

    In another thread than the main one a signal does not reach it.
    """
    with _ending() as heed:
        # To stderr: stdout is for results. In a session of its own: what it starts can be ended with it.
        process = subprocess.Popen(command, shell=True, stdout=2, start_new_session=True)
        try:
            heed()
            return process.wait()
        finally:
            if process.returncode is None:
                _end(process)


@contextmanager
def _ending() -> Iterator[Callable[[], None]]:
    """Signals end this process by way of its ``finally`` clauses, and none before what this gives was called."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None  # signals are the main thread's
        return
    heeded = False
    came: list[int] = []

    def end(number: int, _: Any) -> None:
        if not heeded:
            came.append(number)
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            sys.exit(128 + number)

    def heed() -> None:
        nonlocal heeded
        heeded = True
        for number in came:
            end(number, None)

    # One that is ignored, as SIGHUP is under nohup, or has a handler of its own stays as it is.
    plain: dict[int, Any] = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    ours = {number: one for number, one in plain.items() if signal.getsignal(number) is one}
    for number in ours:
        signal.signal(number, end)
    try:
        yield heed
    finally:
        for number, one in ours.items():
            signal.signal(number, one)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a session: in ``GRACE`` seconds by itself, else at once."""
    # Nothing of it is left; on macOS also: nothing but what has ended. Or it may not be ended, and is waited for.
    with suppress(ProcessLookupError, PermissionError):
        try:
            os.killpg(process.pid, signal.SIGTERM)
            stop = time.monotonic() + GRACE
            while time.monotonic() < stop:
                process.poll()
                os.killpg(process.pid, 0)
                time.sleep(0.02)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _weights(out: Path, command: str) -> None:
    if not any((out / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise InputError(
            f"{out}: no config.json or adapter_config.json there, after the command that was to: {command}"
        )


def _adapter(out: Path, base: str) -> Path | None:
    """The folder where it holds an adapter, on the base; None where it holds whole weights."""
    file = out / "adapter_config.json"
    if not file.is_file():
        return None
    named = read_json(file).get("base_model_name_or_path")
    if named is None or _place(named) != _place(base):
        raise InputError(
            f"{file}: an adapter on {named}, and the last whole weights, on which it would be scored, are "
            f"{_place(base)}; have the command train it on those, by that path, or leave whole weights, and remove "
            f"{out}"
        )
    return out


def filled(what: str, template: str, places: Mapping[str, str], needed: Sequence[Sequence[str]]) -> str:
    """A command, its places filled with quoted values.

    Args:
        what: The template's name, for messages.
        template: The command.
        places: What each place is filled with; there are no others.
        needed: One place of each must be there.

    Raises:
        InputError: A place that there is not, one that must be there is not, or braces that do not fit.
    """
    try:
        parts = [part for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise InputError(f"{what} {template!r}: {error}; write {{{{ and }}}} for braces of the command's own") from None
    for _, name, form, conversion in parts:
        if name not in places or form or conversion:
            written = f"{name}{f'!{conversion}' if conversion else ''}{f':{form}' if form else ''}"
            raise InputError(
                f"{what} {template!r}: no place {{{written}}}; there are "
                f"{', '.join(f'{{{place}}}' for place in places)}, as they are written here, and {{{{ and }}}} for "
                "braces of the command's own"
            )
    if not all({name for _, name, _, _ in parts} & {*some} for some in needed):
        said = ", and ".join(" or ".join(f"{{{place}}}" for place in some) for some in needed)
        raise InputError(f"{what} {template!r}: it needs {said}")
    return template.format(**{name: shlex.quote(value) for name, value in places.items()})
