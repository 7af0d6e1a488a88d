"""Scoring: dataset × scorer → log-probabilities per action, in shards that are complete or absent."""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from p3select import actions as action_rules
from p3select import fingerprints, progress, scorers, tokens
from p3select.dataset import Dataset, load
from p3select.difficulties import difficulty
from p3select.errors import InputError, MismatchError
from p3select.run import Run, read_json, write_json, write_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from p3select.tokens import TokenRow

SCORED = ("ok", "truncated")
# Rows in a shard: what a kill can lose, and the window in which batches are sorted by length.
SHARD_ROWS = 512


def score(
    data: str | Path | Sequence[str | Path] | Dataset,
    run: Run | str | Path,
    model: str | Path | None = None,
    *,
    epoch: int = 1,
    scorer: str | scorers.Scorer = "transformers",
    adapter: str | Path | None = None,
    actions: str = "line",
    max_length: int | None = None,
    truncate: str = "keep-start",
    limit: int | None = None,
    columns: Mapping[str, str] | None = None,
    shard_rows: int = SHARD_ROWS,
    overwrite: bool = False,
    show_progress: bool = False,
) -> dict[str, Any]:
    """Log-probabilities of every row's actions under the policy that enters an epoch (stage I of P3).

    A call that was killed and is made again scores only the shards that are missing; the files are the same,
    byte for byte, as those of an uninterrupted call.

    Args:
        data: Parquet or JSON Lines; see :func:`p3select.dataset.load`.
        run: The run folder; the shards go to ``scores/epoch-001/`` of it.
        model: The policy's weights: a local folder, a GGUF file or a Hugging Face id. None where ``scorer`` is
            an object, which has its model.
        epoch: The epoch that this policy enters, from 1.
        scorer: ``transformers``, another name (see :mod:`p3select.scorers`), or a Scorer.
        adapter: A PEFT adapter's folder, applied without merging.
        actions: ``line``, ``sentence``, ``token``, ``whole`` or ``re:PATTERN``; see :mod:`p3select.actions`.
        max_length: Tokens of a row that are kept; None for the model's own limit.
        truncate: What becomes of a longer row: ``keep-start``, ``skip`` or ``error``.
        limit: Score the first rows only.
        columns: Role → column name, where they are not the usual ones.
        shard_rows: Rows in a shard.
        overwrite: Score anew where scores of other weights or settings are in the epoch's place.
        show_progress: Print rows/s, tokens/s and the time left on stderr.

    Returns:
        A summary: rows, reused, status (status → rows), scored_tokens, boundary_shifts (rows whose completion
        starts inside the prompt's tokens), difficulty (mean), seconds, notes (what there is to know).

    Raises:
        InputError: Bad data, options or model; it names the row where there is one.
        MismatchError: The folder holds scores of other data, weights or settings.
    """
    start = time.monotonic()
    dataset, engine = _prepare(data, model, scorer, adapter, actions, columns)
    run = run if isinstance(run, Run) else Run(run)
    rows = _limited(limit, len(dataset))
    if shard_rows < 1:
        raise InputError(f"shard_rows {shard_rows}: at least 1")
    length = _length(max_length, engine)
    settings = _settings(dataset, engine, actions, length, truncate, shard_rows)
    run.bind(dataset)
    folder = run.scores(epoch)
    _claim(folder, settings, rows, overwrite)

    shards = [(first, min(first + shard_rows, rows)) for first in range(0, rows, shard_rows)]
    missing = [shard for shard in shards if not _complete(_file(folder, shard[0]), shard)]
    reused = rows - sum(stop - first for first, stop in missing)

    def encode(first: int, stop: int) -> list[TokenRow]:
        return tokens.encode(
            dataset.rows(first, stop),
            engine.tokenizer,
            actions=actions,
            max_length=length,
            truncate=truncate,
            first_row=first,
        )

    with progress.track("scoring", rows, done=reused, show=show_progress) as advance:
        for first, stop in missing:
            table = _shard(encode(first, stop), engine, first, dataset, advance)
            _write(table, _file(folder, first))
    summary = _summary(read(run, epoch, columns=["difficulty", "tokens", "status", "boundary_shift"]))
    notes = list(getattr(engine, "notes", []))
    if summary["boundary_shifts"]:
        notes.append(
            f"in {summary['boundary_shifts']} rows the end of the prompt (a space, line breaks?) tokenises otherwise "
            "before the completion; they are scored from where the two part, as TRL trains them"
        )
    return {**summary, "reused": reused, "seconds": time.monotonic() - start, "notes": notes}


def estimate(
    data: str | Path | Sequence[str | Path] | Dataset,
    model: str | Path | None = None,
    *,
    scorer: str | scorers.Scorer = "transformers",
    adapter: str | Path | None = None,
    actions: str = "line",
    max_length: int | None = None,
    truncate: str = "keep-start",
    limit: int | None = None,
    columns: Mapping[str, str] | None = None,
    seed: int = 0,
    sample: int = 32,
) -> dict[str, Any]:
    """What :func:`score` would do and take, from scoring a sample; nothing is written.

    Args:
        data: As for :func:`score`, like all the others that it has too.
        model: See :func:`score`.
        scorer: See :func:`score`.
        adapter: See :func:`score`.
        actions: See :func:`score`.
        max_length: See :func:`score`.
        truncate: See :func:`score`.
        limit: See :func:`score`.
        columns: See :func:`score`.
        seed: Chooses the sample.
        sample: Rows to score for the estimate.

    Returns:
        rows, status (status → rows), tokens (of the rows to score), scored_tokens, sample_rows, tokens_per_second
        (on the sample), seconds (estimate for all), memory_bytes (peak of this process, or of the CUDA device).
    """
    dataset, engine = _prepare(data, model, scorer, adapter, actions, columns)
    rows = _limited(limit, len(dataset))
    length = _length(max_length, engine)
    chosen = np.sort(np.random.default_rng(seed).choice(rows, min(sample, rows), replace=False))
    status: dict[str, int] = {}
    picked: list[TokenRow] = []
    total = scored = 0
    for first in range(0, rows, SHARD_ROWS):
        stop = min(first + SHARD_ROWS, rows)
        encoded = tokens.encode(
            dataset.rows(first, stop),
            engine.tokenizer,
            actions=actions,
            max_length=length,
            truncate=truncate,
            first_row=first,
        )
        for row in encoded:
            status[row.status] = status.get(row.status, 0) + 1
            if row.status in SCORED:
                total += len(row.ids)
                scored += len(row.scored)
        picked += [encoded[row - first] for row in chosen[(chosen >= first) & (chosen < stop)]]
    picked = [row for row in picked if row.status in SCORED]
    if not picked:
        raise InputError(f"none of {len(chosen)} sampled rows can be scored: {status}")
    ids, positions = [row.ids for row in picked], [row.scored for row in picked]
    engine.score(ids[:2], positions[:2], progress.silent)  # warm-up
    start = time.monotonic()
    engine.score(ids, positions, progress.silent)
    rate = sum(map(len, ids)) / (time.monotonic() - start)
    return {
        "rows": rows,
        "status": status,
        "tokens": total,
        "scored_tokens": scored,
        "sample_rows": len(picked),
        "tokens_per_second": rate,
        "seconds": total / rate,
        "memory_bytes": _memory(engine),
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
    manifest = _manifest(folder)
    rows, step = manifest["rows"], manifest["settings"]["shard_rows"]
    files = [_file(folder, first) for first in range(0, rows, step)]
    missing = [
        file
        for first, file in zip(range(0, rows, step), files, strict=True)
        if not _complete(file, (first, min(first + step, rows)))
    ]
    if missing:
        raise InputError(
            f"{folder}: {len(missing)} of {len(files)} shards are missing ({missing[0].name} first); run the same "
            f"'p3select score --epoch {epoch}' command again to finish it"
        )
    return pa.concat_tables(pq.ParquetFile(file).read(columns) for file in files)


def fingerprint(run: Run, epoch: int) -> str:
    """The sha256 of an epoch's scores with the settings that made them."""
    return fingerprints.of_files(run.scores(epoch))


def settings(run: Run, epoch: int) -> dict[str, Any]:
    """What an epoch's scores were made with: dataset, model, tokenizer, template, actions, lengths, versions.

    Raises:
        InputError: The epoch was not scored.
    """
    found: dict[str, Any] = _manifest(run.scores(epoch))["settings"]
    return found


def _prepare(
    data: Any,
    model: str | Path | None,
    scorer: str | scorers.Scorer,
    adapter: str | Path | None,
    actions: str,
    columns: Mapping[str, str] | None,
) -> tuple[Dataset, scorers.Scorer]:
    """Everything that can be refused before the model is loaded is refused here."""
    action_rules.spans("", actions)
    dataset = load(data, columns)
    if isinstance(scorer, str):
        if model is None:
            raise InputError("no model: give the policy's folder, GGUF file or Hugging Face id")
        return dataset, scorers.make(scorer, model, adapter=adapter)
    if model is not None or adapter is not None:
        raise InputError("a scorer object has its own model: leave model and adapter out")
    return dataset, scorer


def _limited(limit: int | None, rows: int) -> int:
    if limit is not None and limit < 1:
        raise InputError(f"limit {limit}: at least 1 row")
    return rows if limit is None else min(limit, rows)


def _length(max_length: int | None, engine: scorers.Scorer) -> int | None:
    if max_length is None:
        return engine.max_length
    if max_length < 2:
        raise InputError(f"max_length {max_length}: at least 2 tokens")
    if engine.max_length is not None and max_length > engine.max_length:
        raise InputError(f"max_length {max_length}: the model takes {engine.max_length} tokens at most")
    return max_length


def _settings(
    dataset: Dataset, engine: scorers.Scorer, actions: str, length: int | None, truncate: str, shard_rows: int
) -> dict[str, Any]:
    from p3select import __version__

    return {
        "dataset": dataset.fingerprint,
        **engine.provenance,
        **tokens.fingerprint(engine.tokenizer, messages=bool({"messages", "conversations"} & set(dataset.columns))),
        "actions": actions,
        "max_length": length,
        "truncate": truncate,
        "difficulty": "p3",
        "shard_rows": shard_rows,
        "p3select": __version__,
    }


def _claim(folder: Path, settings: dict[str, Any], rows: int, overwrite: bool) -> None:
    """Write the manifest, or find that it says the same; a larger limit continues a smaller one."""
    file = folder / "manifest.json"
    if file.is_file():
        known = read_json(file)
        before = {**known["settings"], "rows": known["rows"]}
        now = {**settings, "rows": rows}
        changed = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
        if not changed:
            return
        if changed == ["rows"] and rows > known["rows"]:
            pass
        elif not overwrite:
            details = "; ".join(
                f"{key}: {_short(before.get(key))} there, {_short(now.get(key))} now" for key in changed
            )
            raise MismatchError(
                f"{folder} holds scores made otherwise ({details}); give another --epoch or --run, or --overwrite "
                "to score again"
            )
        else:
            shutil.rmtree(folder)
    write_json(file, {"settings": settings, "rows": rows})


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] + "…" if len(text) > 48 else text


def _manifest(folder: Path) -> dict[str, Any]:
    file = folder / "manifest.json"
    if not file.is_file():
        epoch = int(folder.name.removeprefix("epoch-"))
        raise InputError(f"{folder}: not scored yet; run 'p3select score DATA --epoch {epoch} …' first")
    return read_json(file)


def _file(folder: Path, first: int) -> Path:
    return folder / f"part-{first:09d}.parquet"


def _complete(file: Path, shard: tuple[int, int]) -> bool:
    """Whether a shard has all its rows; one that a smaller --limit cut short has not."""
    if not file.is_file():
        return False
    try:
        return int(pq.ParquetFile(file).metadata.num_rows) == shard[1] - shard[0]
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file}: damaged ({error}); remove it and score again") from None


def _shard(
    encoded: list[TokenRow],
    engine: scorers.Scorer,
    first: int,
    dataset: Dataset,
    advance: Callable[[int, int], None],
) -> pa.Table:
    """Score the rows of a shard that can be scored; the others have their status and nulls."""
    chosen = [number for number, row in enumerate(encoded) if row.status in SCORED]
    advance(len(encoded) - len(chosen), 0)
    ids, positions = [encoded[number].ids for number in chosen], [encoded[number].scored for number in chosen]
    try:
        logprobs = engine.score(ids, positions, advance)
    except InputError as error:
        skipped = f", without {len(encoded) - len(chosen)} that have no score" if len(chosen) < len(encoded) else ""
        raise InputError(f"rows {first} to {first + len(encoded) - 1} of the dataset{skipped}: {error}") from error
    # float64 sums, stored as float32: the difficulty is that of the stored values, so that it can be checked.
    sums: list[Any] = [None] * len(encoded)
    counts: list[Any] = [None] * len(encoded)
    totals: list[float | None] = [None] * len(encoded)
    for number, single in zip(chosen, logprobs, strict=True):
        row, values = encoded[number], single.astype(np.float64)
        sums[number] = np.bincount(row.actions, weights=values).astype(np.float32)
        counts[number] = np.bincount(row.actions).astype(np.int32)
        totals[number] = float(values.sum())
    difficulties: list[float | None] = [None] * len(encoded)
    if chosen:
        values = difficulty([sums[number] for number in chosen], [counts[number] for number in chosen])
        for number, value in zip(chosen, values, strict=True):
            difficulties[number] = float(value)
    stop = first + len(encoded)
    data: dict[str, Any] = {"row": pa.array(np.arange(first, stop))}
    if dataset.ids is not None:
        data["id"] = dataset.ids.slice(first, len(encoded)).combine_chunks()
    data |= {
        "difficulty": pa.array(difficulties, pa.float64()),
        "logprob": pa.array(totals, pa.float64()),
        "tokens": pa.array([len(row.scored) for row in encoded], pa.int32()),
        "action_logprobs": pa.array(sums, pa.list_(pa.float32())),
        "action_tokens": pa.array(counts, pa.list_(pa.int32())),
        "status": pa.array([row.status for row in encoded], pa.string()),
        "boundary_shift": pa.array([row.shift for row in encoded], pa.int32()),
    }
    return pa.table(data)


def _write(table: pa.Table, file: Path) -> None:
    write_whole(file, lambda temporary: pq.write_table(table, temporary, compression="zstd"))


def _summary(table: pa.Table) -> dict[str, Any]:
    status = {item["values"]: item["counts"] for item in table.column("status").value_counts().to_pylist()}
    difficulties = table.column("difficulty").drop_null().to_numpy()
    return {
        "rows": table.num_rows,
        "status": status,
        "scored_tokens": int(sum(table.column("tokens").to_numpy())),
        "boundary_shifts": int(np.count_nonzero(table.column("boundary_shift").to_numpy())),
        "difficulty": float(difficulties.mean()) if len(difficulties) else None,
    }


def _memory(engine: scorers.Scorer) -> int:
    """The peak so far: of the CUDA device where the scorer is on one, else of this process."""
    if engine.provenance.get("device") == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    import resource

    # Kibibytes on Linux.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
