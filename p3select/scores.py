"""Scoring: dataset × scorer → log-probabilities per action, in shards that are complete or absent."""

from __future__ import annotations

import itertools
import shutil
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from p3select import actions as action_rules
from p3select import (
    distributed,
    embeddings,
    fingerprints,
    progress,
    refreshing,
    scorers,
    shards,
    tokenised,
    tokens,
)
from p3select.dataset import Dataset, Slice, load
from p3select.difficulties import difficulty
from p3select.errors import EngineError, InputError, MismatchError, RowError
from p3select.run import Run, read_json, write_json
from p3select.tokenised import SCORED

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from p3select.shards import Shard
    from p3select.tokens import TokenRow

# Rows in a shard: what a kill can lose, and the window in which batches are sorted by length.
SHARD_ROWS = 512
# What may differ between two scorings of which one takes over rows of the other: a row's hash covers its tokens.
_ELSEWHERE = (
    *("dataset", "max_length", "truncate", "actions", "shard_rows", "ifd"),
    *("refresh", "refresh_seed", "refresh_past"),
)

PREDICTED = "predicted"
"""The status of rows that were not scored, and have a difficulty that was predicted from others and from before."""

# Where the rows that a partial re-scoring measures go until it is done, and what they are.
_STAGES = {"drawn": "drawn to learn from", "near": "near the threshold"}

# With --ifd, of the second pass.
_SECOND = {"alone_logprob": pa.float64(), "alone_tokens": pa.int32()}


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
    that was scored without it only the second pass is made.

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
    dataset, arguments = _prepare(data, model, scorer, adapter, options, actions, max_length, truncate, columns)
    run = run if isinstance(run, Run) else Run(run)
    rows = _limited(limit, len(dataset))
    parts = shards.ranges(rows, shard_rows)
    folder = run.scores(epoch)
    arguments |= {"ifd": ifd, "shard_rows": shard_rows}
    about = {name: str(value) for name, value in {"model": model, "adapter": adapter}.items() if value is not None}
    # Again what can be refused before a model is loaded.
    run.check(dataset)
    if reuse is not None:
        reuse = reuse if isinstance(reuse, Run) else Run(reuse)
        reuse.info()
    past = None if refresh is None else _Past(run, epoch, rows, refresh, seed, ifd)
    chosen = dict.fromkeys(("refresh", "refresh_seed", "refresh_past")) if past is None else past.settings
    if not overwrite:
        asked = {"dataset": dataset.fingerprint, "actions": actions, "truncate": truncate, "shard_rows": shard_rows}
        asked["ifd"] = ifd or None
        shards.check(folder, asked | chosen, rows, about)
    if engine == "ray" and gpus is None:
        gpus = _parallel(options)
    if engine != "local" and not isinstance(scorer, str):
        raise InputError(f"engine {engine!r}: its workers load the scorer by name; give its name and the model")
    if engine != "local":
        # Workers have another working directory.
        run, folder = run.absolute(), run.absolute().scores(epoch)
        arguments |= {name: distributed.everywhere(arguments[name]) for name in ("model", "adapter")}
    crew = distributed.crew(engine, Worker, arguments, workers=workers, address=address, gpus=gpus)
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
        with progress.track("tokenising", rows, done=rows - _rows(new), show=show_progress) as advance:
            given = ((there, part, dataset.source(*part, here=engine == "local")) for part in new)
            crew.each("tokenise", given, advance)
        known = _Known(run, settings, reuse, folder)
        work = _Work(crew, folder, there, parts, known, settings, show_progress)
        counted = _all(work, ifd) if past is None else past.score(work, claim)
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
    summary |= {"scorer": _described(settings), **counted, "scores": str(folder)}
    seconds = time.monotonic() - start
    if summary["reused"] < rows - summary["status"].get(PREDICTED, 0):
        run.spend("score", epoch, seconds)
    return {**summary, "seconds": seconds, "notes": notes}


class _Work(NamedTuple):
    """What scoring goes by once rows are tokenised."""

    crew: distributed.Crew
    folder: Path
    there: Path
    parts: list[Shard]
    known: _Known
    settings: Mapping[str, Any]
    show: bool


def _all(work: _Work, ifd: bool) -> dict[str, Any]:
    """Score all rows; how many did not have to be."""
    crew, folder, there, parts, known, settings, show = work
    rows, absent = _rows(parts), shards.missing(folder, parts)
    items = [(folder, there, part, known.of(there, part), None) for part in absent]
    reused = rows - _rows(absent) + sum(len(_whole(table, ifd)) for *_, table, _ in items)
    halves = sum(0 if table is None else table.num_rows - len(_whole(table, ifd)) for *_, table, _ in items)
    if show and absent:
        plan = _plan(items, crew.ask("before") if ifd else None)
        _announce(plan, settings, _taken(rows, reused, halves))
    with progress.track("scoring", rows, done=reused, show=show) as advance:
        crew.each("score", items, advance)
    return {"reused": reused, "reused_first_pass": halves}


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
    dataset, arguments = _prepare(data, model, scorer, adapter, options, actions, max_length, truncate, columns)
    rows = _limited(limit, len(dataset))
    worker = Worker(**arguments, ifd=ifd, shard_rows=shard_rows)
    there = None if run is None else _There(dataset, run, epoch, reuse, worker.settings, rows, overwrite)
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
        "scorer": _described(worker.settings),
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


class Worker:
    """Tokenises and scores shards, each into its file.

    Attributes:
        settings: What the scores depend on.
    """

    def __init__(
        self,
        dataset: str,
        messages: bool,
        scorer: str | scorers.Scorer,
        model: str | Path | None,
        adapter: str | Path | None,
        options: Mapping[str, Any] | None,
        actions: str,
        max_length: int | None,
        truncate: str,
        ifd: bool,
        shard_rows: int,
    ) -> None:
        from p3select import __version__

        self._made = isinstance(scorer, str)
        if isinstance(scorer, str):
            assert model is not None  # _prepare has seen to it
            scorer = scorers.make(scorer, model, adapter=adapter, options=options, max_length=max_length)
        self._scorer, self._ifd = scorer, ifd
        self.settings: dict[str, Any] = {
            "dataset": dataset,
            **scorer.provenance,
            **tokens.fingerprint(scorer.tokenizer, messages=messages),
            "actions": actions,
            "max_length": _length(max_length, scorer),
            "truncate": truncate,
            "difficulty": "p3",
            "shard_rows": shard_rows,
            "p3select": __version__,
        }
        if ifd:
            self.settings["ifd"] = True

    def close(self) -> None:
        """Let a scorer go that was made here."""
        if self._made and hasattr(self._scorer, "close"):
            self._scorer.close()

    @property
    def notes(self) -> list[str]:
        """What there is to know of the scorer."""
        return list(getattr(self._scorer, "notes", []))

    @property
    def before(self) -> int:
        """Tokens that the tokenizer puts before any text, 0 or 1."""
        return len(self._before())

    def encode(self, rows: Dataset, first: int) -> list[TokenRow]:
        """Token rows of a part of the dataset that begins with a row."""
        return tokens.encode(rows.rows(), self._scorer.tokenizer, first_row=first, **tokenised.rules(self.settings))

    def tokenise(
        self, folder: Path, shard: Shard, source: Dataset | Slice, advance: Callable[[int, int], None]
    ) -> None:
        """Write a shard of tokens."""
        rows = source.read() if isinstance(source, Slice) else source
        tokenised.write(folder, shard, self.encode(rows, shard.first), rows.ids)
        advance(shard.rows, 0)

    def score(
        self,
        folder: Path,
        there: Path,
        shard: Shard,
        known: pa.Table | None,
        wanted: NDArray[np.bool_] | None,
        advance: Callable[[int, int], None],
    ) -> None:
        """Write a shard of scores.

        Args:
            folder: Where the scores go.
            there: Where the tokens are.
            shard: Which rows.
            known: Rows that need not be scored: see :class:`_Known`.
            wanted: Which of the shard's rows to score; None for all. The others have no values.
            advance: For progress over the rows that are wanted.
        """
        encoded, about = tokenised.read(there, shard)
        values = {} if known is None else {row.pop("at"): row for row in known.to_pylist()}
        half = sorted(set(values) - set(_whole(known, self._ifd)))
        chosen = [number for number, row in enumerate(encoded) if row.status in SCORED and number not in values]
        if wanted is None:
            advance(sum(row.status not in SCORED for row in encoded), 0)
        else:
            chosen = [number for number in chosen if wanted[number]]
        try:
            scored, alone = self.log_probabilities(
                [encoded[number] for number in chosen], advance, [encoded[number] for number in half]
            )
        except RowError as error:
            raise InputError(
                f"row {shard.first + [*chosen, *half][error.row]} of the dataset: {error.reason}"
            ) from error
        except EngineError as error:
            raise EngineError(f"rows {shard.first} to {shard.stop - 1} of the dataset: {error}") from error
        except InputError as error:
            skipped = (
                f", without {len(encoded) - len(chosen)} that are not scored now" if len(chosen) < len(encoded) else ""
            )
            raise InputError(f"rows {shard.first} to {shard.stop - 1} of the dataset{skipped}: {error}") from error
        values |= {number: _sums(encoded[number], single) for number, single in zip(chosen, scored, strict=True)}
        for number, single in zip([*chosen, *half], alone, strict=True) if self._ifd else ():
            values[number] |= {"alone_logprob": float(single.astype(np.float64).sum()), "alone_tokens": len(single)}
        shards.write(folder, shard, _table(shard, encoded, about, values, self._ifd))

    def log_probabilities(
        self, rows: list[TokenRow], advance: Callable[[int, int], None], half: Sequence[TokenRow] = ()
    ) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]]:
        """Of each row's scored tokens (m,); and with ``ifd`` of the same tokens without what comes before them.

        Args:
            rows: Rows to score.
            advance: For progress.
            half: Rows of which only the second is wanted.

        Returns:
            One array for each of ``rows``; and, with ``ifd``, one for each of ``rows`` and ``half``.
        """
        ids, positions = [row.ids for row in rows], [row.scored for row in rows]
        alone = self._alone([*rows, *half]) if self._ifd else []
        kept = [number for number, row in enumerate(alone) if len(row) > 1]
        # In one call, so that short rows fill the batches of long ones.
        try:
            values = self._scorer.score(
                ids + [alone[number] for number in kept],
                positions + [np.arange(1, len(alone[number]), dtype=np.int32) for number in kept],
                advance if not kept else _counted(advance, len(rows) + len(half), len(rows) + len(kept)),
            )
        except RowError as error:
            if error.row < len(rows):
                raise
            raise RowError(kept[error.row - len(rows)], f"without its prompt: {error.reason}") from error
        second = dict(zip(kept, values[len(rows) :], strict=True))
        return values[: len(rows)], [second.get(i, np.empty(0, np.float32)) for i in range(len(alone))]

    def _alone(self, rows: list[TokenRow]) -> list[NDArray[np.int32]]:
        """The scored tokens by themselves, after what the tokenizer puts before any text."""
        before = np.array(self._before(), np.int32)
        return [np.concatenate([before, row.ids[row.scored]]) for row in rows]

    def _before(self) -> list[int]:
        first: list[int] = self._scorer.tokenizer("")["input_ids"][:1]
        return first


class _Past:
    """What a partial re-scoring goes by, and the work itself: :mod:`p3select.refreshing` on the run folder.

    Attributes:
        settings: What its choices depend on.
    """

    def __init__(self, run: Run, epoch: int, rows: int, refresh: float | str, seed: int, ifd: bool) -> None:
        share = refreshing.fraction(refresh)
        if ifd:
            raise InputError("refresh predicts the difficulty p3 alone: leave ifd out, or score all rows")
        if epoch < 2:
            raise InputError("refresh: epoch 1 has none before it to predict from; score all of its rows")
        used = [epoch - 1, *([epoch - 2] if shards.manifest(run.scores(epoch - 2)) else [])] if epoch > 2 else [1]
        self._hash = read(run, epoch - 1, ["hash"]).column("hash")
        if len(self._hash) < rows:
            raise InputError(
                f"refresh: epoch {epoch - 1} has scores of {len(self._hash)} of the {rows} rows; give a limit of as "
                "many, or score it to its end"
            )
        tables = []
        for earlier in used:
            names = ["difficulty", *(["measured"] if "refresh" in settings(run, earlier) else [])]
            tables.append(read(run, earlier, names).slice(0, rows))
        past, indices = refreshing.past(run, epoch, tables)
        self._past, self._epoch, self._share, self._seed = past, epoch, share, seed
        self._vectors: NDArray[np.float32] | None = None
        vectors = None
        if run.embeddings.is_file():
            self._vectors, vectors = embeddings.read(run)
        self.settings = {
            "refresh": share,
            "refresh_seed": seed,
            "refresh_past": fingerprints.of_json([rows, [fingerprint(run, one) for one in used], indices, vectors]),
        }

    def score(self, work: _Work, claim: Callable[[], None]) -> dict[str, Any]:
        """Score some rows, predict the others; what it did. A call that was killed and is made again goes on.

        Args:
            work: The work.
            claim: Makes the folder its own.
        """
        folder, parts, scored = work.folder, work.parts, 0
        done, measured = folder / "refresh.json", [folder / f".{name}" for name in _STAGES]
        same = (shards.manifest(folder) or {}).get("settings") == work.settings
        if not same or shards.missing(folder, parts) or not done.is_file():
            self._compare(shards.read(work.there, parts, ["hash"]).column("hash"))

            def measure(name: str, wanted: NDArray[np.bool_]) -> NDArray[np.float64]:
                nonlocal scored
                # Not before: what is refused until here leaves the folder as it was.
                claim()
                values, now = self._measured(work, name, wanted)
                scored += now
                return values

            sizes = tokenised.sizes(work.there, parts)
            given = (self._past, self._epoch, sizes, self._vectors, self._share, self._seed)
            found = refreshing.refreshed(*given, measure)
            for part in shards.missing(folder, parts):
                self._write(folder, part, [path for path in measured if path.is_dir()], found)
            write_json(done, found.about)
        # Once all is there; hidden, as they are no part of the scores.
        for path in measured:
            shutil.rmtree(path, ignore_errors=True)
        about = read_json(done)
        reused = sum(count for name, count in about["parts"].items() if name != "predicted") - scored
        about = {name: value for name, value in about.items() if name not in ("share", "seed")}
        return {"reused": reused, "reused_first_pass": 0, **about, "notes": self._past.notes}

    def _compare(self, hashes: pa.ChunkedArray) -> None:
        """Refuse rows that are not those of the epoch before."""
        now, before = _bytes(hashes), _bytes(self._hash)[: len(hashes)]
        other = np.flatnonzero(now != before)
        if other.size:
            raise MismatchError(
                f"refresh: row {other[0]} is tokenised otherwise than in epoch {self._epoch - 1} (another tokenizer or "
                "template, --actions, --max-length, --truncate?); score all rows, or as that epoch was scored"
            )

    def _measured(self, work: _Work, name: str, wanted: NDArray[np.bool_]) -> tuple[NDArray[np.float64], int]:
        """The difficulties of rows, and how many were scored now; rows known besides are taken along, once."""
        folder = work.folder / f".{name}"
        shards.claim(folder, work.settings, len(wanted), overwrite=True)
        absent = shards.missing(folder, work.parts)
        free = [work.known.of(work.there, part) if name == "drawn" else None for part in absent]
        own = [wanted[part.first : part.stop] for part in absent]
        items = [(folder, work.there, part, *one) for part, *one in zip(absent, free, own, strict=True)]
        rows = sum(
            int(one.sum() - (0 if table is None else one[table.column("at").to_numpy()].sum()))
            for table, one in zip(free, own, strict=True)
        )
        if work.show and rows:
            progress.say(f"scoring {rows:,} of {len(wanted):,} rows, {_STAGES[name]}")
        with progress.track("scoring", rows, show=work.show) as advance:
            work.crew.each("score", items, advance)
        return shards.read(folder, work.parts, ["difficulty"]).column("difficulty").to_numpy(), rows

    def _write(self, folder: Path, part: Shard, measured: Sequence[Path], found: refreshing.Refreshed) -> None:
        """Write a shard of measured and predicted rows."""
        tables = [shards.read(path, [part]) for path in measured]
        table = pa.concat_tables(tables, promote_options="permissive")
        # Of each row the one that has values, or the first.
        valid = [one.column("logprob").is_valid().to_numpy() for one in tables]
        table = table.take(np.argmax(valid, axis=0) * part.rows + np.arange(part.rows))
        own = slice(part.first, part.stop)
        difficulty, error = found.difficulty[own], found.error[own]
        guessed = np.isfinite(difficulty) & ~np.any(valid, axis=0)
        status = np.where(guessed, PREDICTED, table.column("status").to_numpy(zero_copy_only=False))
        when = np.where(guessed, self._past.measured[own], self._epoch)
        columns = {
            "difficulty": pa.array(difficulty, pa.float64(), mask=np.isnan(difficulty)),
            "status": pa.array(status, pa.string()),
        }
        for name, column in columns.items():
            table = table.set_column(table.column_names.index(name), name, column)
        table = table.append_column("measured", pa.array(when, pa.int32(), mask=np.isnan(difficulty)))
        shards.write(folder, part, table.append_column("error", pa.array(error, pa.float64(), mask=np.isnan(error))))


class _There:
    """What a scoring would find done."""

    def __init__(
        self,
        dataset: Dataset,
        run: Run | str | Path,
        epoch: int,
        reuse: Run | str | Path | None,
        settings: Mapping[str, Any],
        rows: int,
        overwrite: bool,
    ) -> None:
        run = run if isinstance(run, Run) else Run(run)
        run.check(dataset)
        self._folder, self._ifd = run.scores(epoch), bool(settings.get("ifd"))
        if not overwrite:
            shards.check(self._folder, {"refresh": None, "ifd": None, **settings}, rows)
        manifest = shards.manifest(self._folder)
        # Otherwise it is removed, with all that might be taken over from it.
        self._same = manifest is not None and manifest["settings"] == settings and rows >= manifest["rows"]
        other = None if reuse is None else reuse if isinstance(reuse, Run) else Run(reuse)
        if other is not None:
            other.info()
        self._known = _Known(run, settings, other, self._folder, there=self._same)

    def of(self, shard: Shard, encoded: Sequence[TokenRow]) -> tuple[list[int], list[int]]:
        """Rows of a shard of which the first pass is there, and those of which both are."""
        if self._same and shards.complete(self._folder, shard):
            return [*range(shard.rows)], [*range(shard.rows)]
        hashes = np.array([tokenised.hashed(row) for row in encoded], "S16")
        known = self._known.among(shard, hashes, np.array([row.status for row in encoded]))
        return [] if known is None else known.column("at").to_pylist(), _whole(known, self._ifd)


class _Known:
    """Rows that were scored before under the same weights, found by the hash of their tokens."""

    def __init__(
        self, run: Run, settings: Mapping[str, Any], reuse: Run | None, target: Path, *, there: bool = True
    ) -> None:
        # By the hash not of the folder that is being written: a run that is killed and goes on would take over rows
        # that an uninterrupted one scores, and differ from it by rounding.
        self._target, self._ifd = target if there else None, bool(settings.get("ifd"))
        self.notes: list[str] = []
        sources = [folder for folder in self._sources(run, settings, reuse) if folder != target]
        found = [_hashed(sorted(folder.glob("part-*.parquet")), self._ifd) for folder in sources]
        tables = [table for table in found if table is not None and table.num_rows]
        self._table = pa.concat_tables(tables) if tables else None
        if self._table is not None:
            hashes = _bytes(self._table.column("hash"))
            # The first of equals, so that it does not matter how many there are.
            self._sorted, self._at = np.unique(hashes, return_index=True)

    def _sources(self, run: Run, settings: Mapping[str, Any], reuse: Run | None) -> list[Path]:
        """Folders of scores under the same weights; those with ``ifd`` first, as they have more."""
        if settings.get("verified") is False:
            if reuse is not None:
                self.notes.append(f"nothing of {reuse.path} was taken over: the scorer's weights are not verified")
            return []
        wanted = {name: value for name, value in settings.items() if name not in _ELSEWHERE}
        found = []
        for one in [run] if reuse is None else [run, reuse]:
            others = set()
            for folder in sorted((one.path / "scores").glob("epoch-*")):
                if (manifest := shards.manifest(folder)) is None:
                    continue
                there = {name: value for name, value in manifest["settings"].items() if name not in _ELSEWHERE}
                if there == wanted:
                    found.append((not manifest["settings"].get("ifd"), folder))
                else:
                    others |= {name for name in {*there, *wanted} if there.get(name) != wanted.get(name)}
            if one is reuse and not any(folder.parent.parent == one.path for _, folder in found):
                why = f"its scores differ in {', '.join(sorted(others))}" if others else "it has no scores"
                self.notes.append(f"nothing of {one.path} was taken over: {why}")
        return [folder for _, folder in sorted(found, key=lambda one: one[0])]

    def of(self, there: Path, shard: Shard) -> pa.Table | None:
        """What is known of a shard's rows: their values, and ``at``, their number in the shard; None for nothing.

        With ``ifd`` the values of the second pass are null where only the first is known.
        """
        tokens_ = shards.read(there, [shard], ["hash", "status"])
        return self.among(shard, _bytes(tokens_.column("hash")), tokens_.column("status").to_numpy())

    def among(self, shard: Shard, hashes: NDArray[np.bytes_], status: NDArray[Any]) -> pa.Table | None:
        """The same, by the hashes and statuses of the shard's rows."""
        scored, places, found = np.isin(status, SCORED), [], []
        short = None if self._target is None else shards.file(self._target, shard)
        if short is not None and short.is_file() and (own := _hashed([short], self._ifd)) is not None:
            # Cut short by a smaller limit: whole shards are not asked for.
            where = dict(zip(_bytes(own.column("hash")).tolist(), range(own.num_rows), strict=True))
            with shards.opened(short) as reader:
                count = reader.metadata.num_rows
            at = np.array([i for i in range(count) if scored[i] and hashes[i] in where], np.int64)
            found.append(own.take(pa.array([where[hashes[i]] for i in at], pa.int64())))
            places.append(at)
        if self._table is not None:
            near = np.minimum(np.searchsorted(self._sorted, hashes), len(self._sorted) - 1)
            at = np.flatnonzero((self._sorted[near] == hashes) & scored)
            at = np.setdiff1d(at, np.concatenate([[], *places]))
            found.append(self._table.take(self._at[near[at]]))
            places.append(at)
        if not sum(map(len, places)):
            return None
        table = pa.concat_tables(found).drop_columns("hash")
        return table.append_column("at", pa.array(np.concatenate(places).astype(np.int64)))


def _hashed(files: Sequence[Path], ifd: bool) -> pa.Table | None:
    """The values of the rows that are scored in shards, with their hashes; None where there are no shards."""
    names, tables = ["hash", "logprob", "action_logprobs", "action_tokens"], []
    for file in files:  # of any size: a smaller limit may have cut the last one short
        with shards.opened(file) as reader:
            table = reader.read(names)
            second = reader.read([name for name in _SECOND if ifd and name in reader.schema_arrow.names])
        for name, kind in _SECOND.items() if ifd else ():
            null = pa.nulls(table.num_rows, kind)
            table = table.append_column(name, second.column(name) if name in second.column_names else null)
        tables.append(table.filter(pc.is_valid(table.column("logprob"))))
    return pa.concat_tables(tables) if tables else None


def _whole(known: pa.Table | None, ifd: bool) -> list[int]:
    """Which rows of a shard need no pass at all."""
    if known is None:
        return []
    found = known.filter(pc.is_valid(known.column("alone_tokens"))) if ifd else known
    places: list[int] = found.column("at").to_pylist()
    return places


def _plan(items: Sequence[tuple[Path, Path, Shard, pa.Table | None, None]], before: int | None) -> tokenised.Plan:
    """What there is to score in all shards, with second passes after so many tokens each, or None for none."""
    total = scored = 0
    for _, there, part, known, _ in items:
        taken = [] if known is None else known.column("at").to_pylist()
        second = None if before is None else sorted({*range(part.rows)} - {*_whole(known, ifd=True)})
        one = tokenised.plan(there, part, taken, second, before or 0)
        total, scored = total + one.tokens, scored + one.scored_tokens
    return tokenised.Plan(total, scored)


def _bytes(column: pa.ChunkedArray) -> NDArray[np.bytes_]:
    """Hashes of 16 bytes (n,), to be sorted and compared."""
    return np.array(column.to_pylist(), "S16")


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


def _length(max_length: int | None, scorer: scorers.Scorer) -> int | None:
    if max_length is not None and scorer.max_length is not None and max_length > scorer.max_length:
        raise InputError(f"max_length {max_length}: the model takes {scorer.max_length} tokens at most")
    return scorer.max_length if max_length is None else max_length


def _rows(parts: Sequence[Shard]) -> int:
    return sum(part.rows for part in parts)


def _manifest(run: Run, epoch: int) -> dict[str, Any]:
    known = shards.manifest(run.scores(epoch))
    if known is None:
        raise InputError(f"{run.scores(epoch)}: not scored yet; run 'p3select score DATA --epoch {epoch} …' first")
    return known


def _announce(plan: tokenised.Plan, settings: Mapping[str, Any], taken: str) -> None:
    """Say what is about to be done, before it costs anything."""
    progress.say(
        f"scoring with {_described(settings)}: {plan.tokens:,} tokens, {plan.scored_tokens:,} of them scored{taken}"
    )


def _taken(rows: int, reused: int, halves: int) -> str:
    """What need not be scored, for people."""
    taken = f"; {reused:,} of {rows:,} rows are there" if reused else ""
    return taken + (f"; of {halves:,} rows the first pass is there" if halves else "")


def _described(settings: Mapping[str, Any]) -> str:
    """Such as ``transformers, float32, cpu``."""
    return ", ".join(str(settings[name]) for name in ("scorer", "dtype", "device") if name in settings)


def _counted(advance: Callable[[int, int], None], rows: int, all_: int) -> Callable[[int, int], None]:
    """Progress over another number of passes than rows: a row counts when its share of them is done."""
    done = told = 0

    def count(passes: int, tokens: int) -> None:
        nonlocal done, told
        done += passes
        now = done * rows // all_
        advance(now - told, tokens)
        told = now

    return count


def _sums(row: TokenRow, single: NDArray[np.float32]) -> dict[str, Any]:
    """What is stored of a row: float64 sums, those of actions as float32."""
    values = single.astype(np.float64)
    return {
        "logprob": float(values.sum()),
        "action_logprobs": np.bincount(row.actions, weights=values).astype(np.float32),
        "action_tokens": np.bincount(row.actions).astype(np.int32),
    }


def _table(
    shard: Shard,
    encoded: list[TokenRow],
    about: Mapping[str, Any],
    values: Mapping[int, Mapping[str, Any]],
    ifd: bool,
) -> pa.Table:
    """A shard of scores; rows that have no values have their status and nulls."""

    def column(name: str, kind: pa.DataType) -> pa.Array:
        return pa.array([values[number][name] if number in values else None for number in range(len(encoded))], kind)

    # The difficulty is that of the stored values, so that it can be checked.
    found: list[float | None] = [None] * len(encoded)
    if values:
        numbers = sorted(values)
        sums = [np.asarray(values[number]["action_logprobs"], np.float32) for number in numbers]
        counts = [np.asarray(values[number]["action_tokens"], np.int32) for number in numbers]
        for number, value in zip(numbers, difficulty(sums, counts), strict=True):
            found[number] = float(value)
    columns: dict[str, Any] = {"row": pa.array(np.arange(shard.first, shard.stop))}
    if "id" in about:
        columns["id"] = about["id"]
    columns |= {
        "difficulty": pa.array(found, pa.float64()),
        "logprob": column("logprob", pa.float64()),
        "tokens": pa.array([len(row.scored) for row in encoded], pa.int32()),
        "action_logprobs": column("action_logprobs", pa.list_(pa.float32())),
        "action_tokens": column("action_tokens", pa.list_(pa.int32())),
        "status": pa.array([row.status for row in encoded], pa.string()),
        "boundary_shift": pa.array([row.shift for row in encoded], pa.int32()),
        "hash": about["hash"],
    }
    if ifd:
        columns["alone_logprob"] = column("alone_logprob", pa.float64())
        columns["alone_tokens"] = column("alone_tokens", pa.int32())
    return pa.table(columns)


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
