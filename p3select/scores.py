"""Scoring: dataset × scorer → log-probabilities per action, in shards that are complete or absent."""

from __future__ import annotations

import itertools
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from p3select import actions as action_rules
from p3select import (
    distributed,
    embeddings,
    fingerprints,
    progress,
    refreshing,
    rescoring,
    scorers,
    scoring,
    shards,
    tokenised,
    tokens,
)
from p3select.dataset import Dataset, load
from p3select.errors import InputError, check_seed
from p3select.rescoring import Rescoring
from p3select.reuse import Known, There
from p3select.run import Run
from p3select.tokenised import SCORED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

    from p3select.tokens import TokenRow

# Rows in a shard: what a kill can lose, and the window in which batches are sorted by length.
SHARD_ROWS = 512

PREDICTED = rescoring.PREDICTED
"""The status of rows whose difficulty is predicted: see :mod:`p3select.rescoring`."""


def score(
    data: str | Path | Sequence[str | Path] | Dataset,
    run: Run | str | Path,
    model: str | Path | None = None,
    *,
    epoch: int = 1,
    scorer: str | scorers.Scorer = "auto",
    adapter: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    actions: str = "line",
    max_length: int | None = None,
    truncate: str = "keep-start",
    ifd: bool = False,
    el2n: bool = False,
    refresh: float | str | None = None,
    limit: int | None = None,
    columns: Mapping[str, str] | None = None,
    reuse: Run | str | Path | None = None,
    seed: int = 0,
    engine: str = "local",
    workers: int | None = None,
    address: str | None = None,
    gpus: float | None = None,
    shard_rows: int = SHARD_ROWS,
    verified: bool = False,
    overwrite: bool = False,
    show_progress: bool = False,
) -> dict[str, Any]:
    """Log-probabilities of every row's actions under the policy that enters an epoch (stage I of P3).

    A call that was killed and is made again scores only the shards that are missing; the files are the same,
    byte for byte, as those of an uninterrupted call.

    A row that was scored before with the same tokens under the same weights, in another epoch of the run folder or in
    ``reuse``, or here with a smaller ``limit``, is not scored again: its values are taken over. With ``ifd``, of a row
    that was scored without it only the second pass is made; with ``el2n`` it is scored again.

    Args:
        data: Parquet or JSON Lines; see :func:`p3select.dataset.load`.
        run: The run folder; the shards go to ``scores/epoch-001/`` of it, the tokens, which later epochs use again,
            to ``tokens/``.
        model: The policy's weights: a local folder, a GGUF file or a Hugging Face id. None where ``scorer`` is
            an object, which has its model.
        epoch: The epoch that this policy enters, from 1.
        scorer: ``auto`` (vLLM where it and a GPU are found, else transformers), ``transformers``, ``vllm``,
            ``server``, another name (see :mod:`p3select.scorers`), or a Scorer.
        adapter: A PEFT adapter's folder, applied without merging.
        options: The scorer's own options by name, such as ``{"dtype": "bfloat16"}``; see its class.
        actions: ``line``, ``sentence``, ``token``, ``whole`` or ``re:PATTERN``; see :mod:`p3select.actions`.
        max_length: Tokens of a row that are kept; None for the model's own limit.
        truncate: What becomes of a longer row: ``keep-start``, ``skip`` or ``error``.
        ifd: Score each row's target a second time, without what comes before it, for the difficulty ``ifd``.
        el2n: Also take, in the same pass, how far all tokens' probabilities are from the target's tokens, for the
            difficulty ``el2n``. Of the scorers that come with p3select ``transformers`` alone can; ``auto`` takes it.
        refresh: From epoch 2: score rows with so much of all tokens alone (``"25%"`` or 0.25), and predict the
            difficulty of the others from them and from earlier epochs; see :mod:`p3select.refreshing`. Such rows have
            the status ``predicted``.
        limit: Score the first rows only.
        columns: Role → column name, where they are not the usual ones.
        reuse: Another run folder whose scores may be taken over, row by row.
        seed: Of the rows that ``refresh`` draws.
        engine: ``local``, or ``ray`` for several workers, on one machine or on a cluster; see
            :mod:`p3select.distributed`.
        workers: With ``ray``: how many; None for as many as there are GPUs, or one.
        address: With ``ray``: a cluster's address; None for a Ray of this machine's own.
        gpus: With ``ray``: GPUs of a worker; None for one where there are any.
        shard_rows: Rows in a shard.
        verified: Refuse a scorer that cannot tell that it has the policy's weights, as a server whose weights are not
            at hand; nothing of such a one is taken over in any case.
        overwrite: Score anew where scores of other weights or settings are in the epoch's place.
        show_progress: Print the tokens to score, rows/s, tokens/s and the time left on stderr.

    Returns:
        A summary: rows, status (status → rows), scored_tokens, boundary_shifts (rows whose completion starts inside
        the prompt's tokens), difficulty (mean), scorer, reused (rows that did not have to be scored),
        reused_first_pass (with ``ifd``: of which only the second pass was made), scores (the folder), seconds, notes
        (what there is to know); with ``refresh`` also what :func:`p3select.refreshing.refreshed` says of it.

    Raises:
        InputError: Bad data, options or model; it names the row where there is one.
        MismatchError: The folder holds scores of other data, weights or settings.
        P3Error: A worker of Ray's died again and again.
    """
    start = time.monotonic()
    check_seed(seed)
    dataset, arguments = _prepare(data, model, scorer, adapter, options, actions, max_length, truncate, columns)
    run = run if isinstance(run, Run) else Run(run)
    rows = _limited(limit, len(dataset))
    parts = shards.ranges(rows, shard_rows)
    folder = run.scores(epoch)
    arguments |= {"ifd": ifd, "el2n": el2n, "shard_rows": shard_rows}
    about = {name: str(value) for name, value in {"model": model, "adapter": adapter}.items() if value is not None}
    # Again what can be refused before a model is loaded.
    run.check(dataset)
    if reuse is not None:
        reuse = reuse if isinstance(reuse, Run) else Run(reuse)
        reuse.info()
    also = {"ifd": ifd or None, "el2n": el2n or None}
    past = None if refresh is None else _rescoring(run, epoch, rows, refresh, seed, also)
    chosen = dict.fromkeys(("refresh", "refresh_seed", "refresh_past")) if past is None else past.settings
    if not overwrite:
        asked = {"dataset": dataset.fingerprint, "actions": actions, "truncate": truncate, "shard_rows": shard_rows}
        shards.check(folder, asked | also | chosen, rows, about)
    if engine == "ray" and gpus is None:
        gpus = _parallel(options)
    if engine != "local" and not isinstance(scorer, str):
        raise InputError(f"engine {engine!r}: its workers load the scorer by name; give its name and the model")
    if engine != "local":
        # Workers have another working directory.
        run, folder = run.absolute(), run.absolute().scores(epoch)
        arguments |= {name: distributed.everywhere(arguments[name]) for name in ("model", "adapter")}
    crew = distributed.crew(engine, scoring.Worker, arguments, workers=workers, address=address, gpus=gpus)
    try:
        settings = crew.ask("settings")
        if settings.get("verified") is False:
            _unverified(crew, verified, engine != "local" and show_progress)
        # Not in place: workers are compared with what they said.
        settings = settings | ({} if past is None else past.settings)
        run.bind(dataset)
        claim = partial(shards.claim, folder, settings, rows, overwrite=overwrite, about=about)
        if past is None:
            claim()
        there = tokenised.folder(run, settings, rows)
        new = shards.missing(there, parts)
        with progress.track("tokenising", rows, done=rows - scoring.rows_of(new), show=show_progress) as advance:
            given = ((there, part, dataset.source(*part, here=engine == "local")) for part in new)
            crew.each("tokenise", given, advance)
        known = Known(run, settings, reuse, folder)
        work = scoring.Work(crew, folder, there, parts, known, settings, show_progress)
        counted = scoring.everything(work, ifd) if past is None else past.score(work, claim)
        # Workers may have different ones: of the rows that they met, or with measured numbers.
        notes = list(dict.fromkeys([*counted.pop("notes", ()), *known.notes, *itertools.chain(*crew.told("notes"))]))
    finally:
        crew.close()
    summary = _summary(read(run, epoch, columns=["difficulty", "tokens", "status", "boundary_shift"]))
    if summary["boundary_shifts"]:
        notes.append(
            f"in {summary['boundary_shifts']} rows the end of the prompt (a space, line breaks?) tokenises otherwise "
            "before the completion; they are scored from where the two part, as TRL trains them"
        )
    if summary["difficulty"] is None:
        notes.append("no row could be scored: see the column status for the reasons")
    summary |= {"scorer": scoring.described(settings), **counted, "scores": str(folder)}
    seconds = time.monotonic() - start
    if summary["reused"] < rows - summary["status"].get(PREDICTED, 0):
        run.spend("score", epoch, seconds)
    return {**summary, "seconds": seconds, "notes": notes}


def estimate(
    data: str | Path | Sequence[str | Path] | Dataset,
    model: str | Path | None = None,
    *,
    scorer: str | scorers.Scorer = "auto",
    adapter: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    actions: str = "line",
    max_length: int | None = None,
    truncate: str = "keep-start",
    ifd: bool = False,
    el2n: bool = False,
    limit: int | None = None,
    columns: Mapping[str, str] | None = None,
    run: Run | str | Path | None = None,
    epoch: int = 1,
    reuse: Run | str | Path | None = None,
    shard_rows: int = SHARD_ROWS,
    overwrite: bool = False,
    seed: int = 0,
    sample: int = 32,
) -> dict[str, Any]:
    """What :func:`score` would do and take, from scoring a sample; nothing is written.

    Args:
        data: As for :func:`score`, like all the others that it has too.
        model: See :func:`score`.
        scorer: See :func:`score`.
        adapter: See :func:`score`.
        options: See :func:`score`.
        actions: See :func:`score`.
        max_length: See :func:`score`.
        truncate: See :func:`score`.
        ifd: See :func:`score`.
        el2n: See :func:`score`.
        limit: See :func:`score`.
        columns: See :func:`score`.
        run: The run folder, whose rows that are scored already are not counted; None for none.
        epoch: See :func:`score`.
        reuse: See :func:`score`.
        shard_rows: See :func:`score`.
        overwrite: See :func:`score`.
        seed: Chooses the sample.
        sample: Rows to score for the estimate.

    Returns:
        rows, status (status → rows), tokens (of the passes to make, with ``ifd`` of both), scored_tokens, reused (rows
        that need no pass), scorer, sample_rows,
        tokens_per_second (on the sample), seconds (estimate for all), memory_bytes (peak of this process, or of the
        CUDA device; None where the model is in other processes).
    """
    check_seed(seed)
    dataset, arguments = _prepare(data, model, scorer, adapter, options, actions, max_length, truncate, columns)
    rows = _limited(limit, len(dataset))
    worker = scoring.Worker(**arguments, ifd=ifd, el2n=el2n, shard_rows=shard_rows)
    there = None if run is None else There(dataset, run, epoch, reuse, worker.settings, rows, overwrite)
    chosen = np.sort(np.random.default_rng(seed).choice(rows, min(sample, rows), replace=False))
    status: dict[str, int] = {}
    picked: list[TokenRow] = []
    total = scored = reused = 0
    for part in shards.ranges(rows, shard_rows):
        encoded = worker.encode(dataset.part(*part), part.first)
        for row in encoded:
            status[row.status] = status.get(row.status, 0) + 1
        known, whole = ([], []) if there is None else there.of(part, encoded)
        second = sorted({*range(part.rows)} - {*whole}) if ifd else None
        one = tokenised.work(*tokenised.counts(encoded), known, second, worker.before)
        total, scored, reused = total + one.tokens, scored + one.scored_tokens, reused + len(whole)
        picked += [encoded[row - part.first] for row in chosen[(chosen >= part.first) & (chosen < part.stop)]]
    picked = [row for row in picked if row.status in SCORED]
    if not picked:
        raise InputError(f"none of {len(chosen)} sampled rows can be scored: {status}")
    worker.log_probabilities(picked[:2], progress.silent)  # warm-up
    start = time.monotonic()
    worker.log_probabilities(picked, progress.silent)
    seconds = time.monotonic() - start
    both = range(len(picked)) if ifd else None
    rate = tokenised.work(*tokenised.counts(picked), second=both, before=worker.before).tokens / seconds
    memory = _memory(worker.settings)
    worker.close()
    return {
        "rows": rows,
        "status": status,
        "tokens": total,
        "scored_tokens": scored,
        "reused": reused,
        "scorer": scoring.described(worker.settings),
        "sample_rows": len(picked),
        "tokens_per_second": rate,
        "seconds": total / rate,
        "memory_bytes": memory,
    }


def read(run: Run, epoch: int, columns: list[str] | None = None) -> pa.Table:
    """An epoch's scores, in row order.

    Args:
        run: The run folder.
        epoch: From 1.
        columns: The columns to read; None for all.

    Raises:
        InputError: The epoch was not scored, or not to its end.
    """
    folder = run.scores(epoch)
    manifest = _manifest(run, epoch)
    parts = shards.ranges(manifest["rows"], manifest["settings"]["shard_rows"])
    absent = shards.missing(folder, parts)
    if absent:
        raise InputError(
            f"{folder}: {len(absent)} of {len(parts)} shards are missing ({shards.file(folder, absent[0]).name} first);"
            f" run the same 'p3select score --epoch {epoch}' command again to finish it"
        )
    return shards.read(folder, parts, columns)


def fingerprint(run: Run, epoch: int) -> str:
    """The sha256 of an epoch's scores with the settings that made them."""
    return fingerprints.of_files(run.scores(epoch))


def settings(run: Run, epoch: int) -> dict[str, Any]:
    """What an epoch's scores were made with: dataset, model, tokenizer, template, actions, lengths, versions.

    Raises:
        InputError: The epoch was not scored.
    """
    found: dict[str, Any] = _manifest(run, epoch)["settings"]
    return found


def policy(run: Run, epoch: int) -> str | None:
    """The model's name or path when an epoch was scored, for people; None for a scorer that was given as an object."""
    name: str | None = _manifest(run, epoch).get("about", {}).get("model")
    return name


def _rescoring(run: Run, epoch: int, rows: int, refresh: float | str, seed: int, also: Mapping[str, Any]) -> Rescoring:
    """What a partial re-scoring goes by, as the run folder has it."""
    share = refreshing.fraction(refresh)
    refreshing.refuse(also)
    if epoch < 2:
        raise InputError("refresh: epoch 1 has none before it to predict from; score all of its rows")
    used = [epoch - 1, *([epoch - 2] if shards.manifest(run.scores(epoch - 2)) else [])] if epoch > 2 else [1]
    hashes = read(run, epoch - 1, ["hash"]).column("hash")
    if len(hashes) < rows:
        raise InputError(
            f"refresh: epoch {epoch - 1} has scores of {len(hashes)} of the {rows} rows; give a limit of as "
            "many, or score it to its end"
        )
    tables = []
    for earlier in used:
        names = ["difficulty", *(["measured"] if "refresh" in settings(run, earlier) else [])]
        tables.append(read(run, earlier, names).slice(0, rows))
    past, indices = refreshing.past(run, epoch, tables)
    vectors, embedded = embeddings.read(run) if run.embeddings.is_file() else (None, None)
    settings_ = {
        "refresh": share,
        "refresh_seed": seed,
        "refresh_past": fingerprints.of_json([rows, [fingerprint(run, one) for one in used], indices, embedded]),
    }
    return Rescoring(past, hashes, epoch, share, seed, vectors, settings_)


def _prepare(
    data: Any,
    model: str | Path | None,
    scorer: str | scorers.Scorer,
    adapter: str | Path | None,
    options: Mapping[str, Any] | None,
    actions: str,
    max_length: int | None,
    truncate: str,
    columns: Mapping[str, str] | None,
) -> tuple[Dataset, dict[str, Any]]:
    """The dataset, and a worker's arguments; what can be refused before the model is loaded is refused here."""
    action_rules.spans("", actions)
    if truncate not in tokens.TRUNCATE:
        raise InputError(f"truncate {truncate!r}: one of {', '.join(tokens.TRUNCATE)}")
    if max_length is not None and max_length < 2:
        raise InputError(f"max_length {max_length}: at least 2 tokens")
    dataset = load(data, columns)
    if adapter is not None and not (Path(adapter) / "adapter_config.json").is_file():
        raise InputError(f"adapter {adapter}: no adapter_config.json there")
    if isinstance(scorer, str) and model is None:
        raise InputError("no model: give the policy's folder, GGUF file or Hugging Face id")
    if not isinstance(scorer, str) and not (model is None and adapter is None and not options):
        raise InputError("a scorer object has its own model: leave model, adapter and options out")
    return dataset, {
        "dataset": dataset.fingerprint,
        "messages": bool({"messages", "conversations"} & set(dataset.columns)),
        "scorer": scorer,
        "model": model,
        "adapter": adapter,
        "options": options,
        "actions": actions,
        "max_length": max_length,
        "truncate": truncate,
    }


def _unverified(crew: distributed.Crew, refused: bool, show: bool) -> None:
    """Refuse a scorer that cannot tell whose weights it has, or say so: what a worker elsewhere says is not seen."""
    if refused:
        raise InputError(
            "the scorer cannot tell that it has this policy's weights: serve the policy's own folder under its path, "
            "give --option dtype=float32 for a server in float32, leave compare=false out, or score in this process "
            "(--scorer transformers or vllm)"
        )
    for note in dict.fromkeys(itertools.chain(*crew.gather("notes"))) if show else ():
        progress.say(f"note: {note}")


def _parallel(options: Mapping[str, Any] | None) -> int | None:
    """GPUs that an engine of these options needs, where it is more than one."""
    told = (options or {}).get("tensor_parallel", 1)
    try:
        parallel = int(told)
    except (TypeError, ValueError):
        raise InputError(f"option tensor_parallel={told!r}: not a whole number") from None
    return parallel if parallel > 1 else None


def _limited(limit: int | None, rows: int) -> int:
    if limit is not None and limit < 1:
        raise InputError(f"limit {limit}: at least 1 row")
    return rows if limit is None else min(limit, rows)


def _manifest(run: Run, epoch: int) -> dict[str, Any]:
    known = shards.manifest(run.scores(epoch))
    if known is None:
        raise InputError(f"{run.scores(epoch)}: not scored yet; run 'p3select score DATA --epoch {epoch} …' first")
    return known


def _summary(table: pa.Table) -> dict[str, Any]:
    status = {item["values"]: item["counts"] for item in table.column("status").value_counts().to_pylist()}
    difficulties = table.column("difficulty").drop_null().to_numpy()
    return {
        "rows": table.num_rows,
        "status": status,
        "scored_tokens": int(table.column("tokens").to_numpy()[table.column("status").to_numpy() != PREDICTED].sum()),
        "boundary_shifts": int(np.count_nonzero(table.column("boundary_shift").to_numpy())),
        "difficulty": float(difficulties.mean()) if len(difficulties) else None,
    }


def _memory(settings: Mapping[str, Any]) -> int | None:
    """The peak so far: of the CUDA device where the scorer is on one, else of this process; None if it is elsewhere."""
    if settings["scorer"] in ("vllm", "server"):
        return None
    if settings.get("device") == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    import resource

    # Kibibytes on Linux.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
