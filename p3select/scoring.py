"""The work of scoring, shard by shard: a worker tokenises rows and scores them, and writes what it found.

It is given descriptors, so that it may be in another process or on another machine (:mod:`p3select.distributed`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import pyarrow as pa

from p3select import progress, reuse, scorers, shards, tokenised, tokens
from p3select.dataset import Slice
from p3select.difficulties import difficulty
from p3select.errors import EngineError, InputError, RowError
from p3select.tokenised import SCORED

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from p3select.dataset import Dataset
    from p3select.distributed import Crew
    from p3select.shards import Shard
    from p3select.tokens import TokenRow

    Values = list[NDArray[np.float32]]


class Work(NamedTuple):
    """What scoring goes by once rows are tokenised."""

    crew: Crew
    folder: Path
    there: Path
    parts: list[Shard]
    known: reuse.Known
    settings: Mapping[str, Any]
    show: bool


def everything(work: Work, ifd: bool) -> dict[str, Any]:
    """Score all rows; how many did not have to be, and, with ``ifd``, of how many the first pass did not."""
    crew, folder, there, parts, known, settings, show = work
    rows, absent = rows_of(parts), shards.missing(folder, parts)
    items = [(folder, there, part, known.of(there, part), None) for part in absent]
    reused = rows - rows_of(absent) + sum(len(reuse.whole(table, ifd)) for *_, table, _ in items)
    halves = sum(0 if table is None else table.num_rows - len(reuse.whole(table, ifd)) for *_, table, _ in items)
    if show and absent:
        plan = _plan(items, crew.ask("before") if ifd else None)
        _announce(plan, settings, _taken(rows, reused, halves))
    with progress.track("scoring", rows, done=reused, show=show) as advance:
        crew.each("score", items, advance)
    return {"reused": reused, "reused_first_pass": halves}


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
        el2n: bool,
        shard_rows: int,
    ) -> None:
        from p3select import __version__

        self._made = isinstance(scorer, str)
        if isinstance(scorer, str):
            assert model is not None  # _prepare has seen to it
            scorer = scorers.make(scorer, model, adapter=adapter, options=options, max_length=max_length, errors=el2n)
        elif el2n:
            scorers.with_errors(scorer, type(scorer).__name__)
        self._scorer, self._ifd, self._el2n = scorer, ifd, el2n
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
        self.settings |= {name: True for name, asked in {"ifd": ifd, "el2n": el2n}.items() if asked}

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
            known: Rows that need not be scored: see :class:`p3select.reuse.Known`.
            wanted: Which of the shard's rows to score; None for all. The others have no values.
            advance: For progress over the rows that are wanted.
        """
        encoded, about = tokenised.read(there, shard)
        values = {} if known is None else {row.pop("at"): row for row in known.to_pylist()}
        half = sorted(set(values) - set(reuse.whole(known, self._ifd)))
        chosen = [number for number, row in enumerate(encoded) if row.status in SCORED and number not in values]
        if wanted is None:
            advance(sum(row.status not in SCORED for row in encoded), 0)
        else:
            chosen = [number for number in chosen if wanted[number]]
        try:
            scored, errors, alone = self.log_probabilities(
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
        for number, single in zip(chosen, errors, strict=True) if self._el2n else ():
            values[number]["el2n"] = float(single.astype(np.float64).mean())
        for number, single in zip([*chosen, *half], alone, strict=True) if self._ifd else ():
            values[number] |= {"alone_logprob": float(single.astype(np.float64).sum()), "alone_tokens": len(single)}
        more = ({"el2n": pa.float64()} if self._el2n else {}) | (reuse.SECOND if self._ifd else {})
        shards.write(folder, shard, _table(shard, encoded, about, values, more))

    def log_probabilities(
        self, rows: list[TokenRow], advance: Callable[[int, int], None], half: Sequence[TokenRow] = ()
    ) -> tuple[Values, Values, Values]:
        """Of each row's scored tokens (m,); with ``el2n`` their errors; with ``ifd`` of the tokens by themselves.

        Args:
            rows: Rows to score.
            advance: For progress.
            half: Rows of which only the last is wanted.

        Returns:
            One array for each of ``rows``; with ``el2n`` another for each; and, with ``ifd``, without what comes before
            the tokens, one for each of ``rows`` and ``half``.
        """
        alone = self._alone([*rows, *half]) if self._ifd else []
        kept = [number for number, row in enumerate(alone) if len(row) > 1]
        # In one call, so that short rows fill the batches of long ones.
        given = (
            [*(row.ids for row in rows), *(alone[number] for number in kept)],
            [*(row.scored for row in rows), *(np.arange(1, len(alone[number]), dtype=np.int32) for number in kept)],
            advance if not kept else _counted(advance, len(rows) + len(half), len(rows) + len(kept)),
        )
        errors: Values = []
        try:
            if self._el2n:
                values, errors = cast("scorers.ScorerWithErrors", self._scorer).score_with_errors(*given)
            else:
                values = self._scorer.score(*given)
        except RowError as error:
            if error.row < len(rows):
                raise
            raise RowError(kept[error.row - len(rows)], f"without its prompt: {error.reason}") from error
        second = dict(zip(kept, values[len(rows) :], strict=True))
        last = [second.get(i, np.empty(0, np.float32)) for i in range(len(alone))]
        return values[: len(rows)], errors[: len(rows)], last

    def _alone(self, rows: list[TokenRow]) -> list[NDArray[np.int32]]:
        """The scored tokens by themselves, after what the tokenizer puts before any text."""
        before = np.array(self._before(), np.int32)
        return [np.concatenate([before, row.ids[row.scored]]) for row in rows]

    def _before(self) -> list[int]:
        first: list[int] = self._scorer.tokenizer("")["input_ids"][:1]
        return first


def _plan(items: Sequence[tuple[Path, Path, Shard, pa.Table | None, None]], before: int | None) -> tokenised.Plan:
    """What there is to score in all shards, with second passes after so many tokens each, or None for none."""
    total = scored = 0
    for _, there, part, known, _ in items:
        taken = [] if known is None else known.column("at").to_pylist()
        second = None if before is None else sorted({*range(part.rows)} - {*reuse.whole(known, ifd=True)})
        one = tokenised.plan(there, part, taken, second, before or 0)
        total, scored = total + one.tokens, scored + one.scored_tokens
    return tokenised.Plan(total, scored)


def _announce(plan: tokenised.Plan, settings: Mapping[str, Any], taken: str) -> None:
    """Say what is about to be done, before it costs anything."""
    progress.say(
        f"scoring with {described(settings)}: {plan.tokens:,} tokens, {plan.scored_tokens:,} of them scored{taken}"
    )


def _taken(rows: int, reused: int, halves: int) -> str:
    """What need not be scored, for people."""
    taken = f"; {reused:,} of {rows:,} rows are there" if reused else ""
    return taken + (f"; of {halves:,} rows the first pass is there" if halves else "")


def described(settings: Mapping[str, Any]) -> str:
    """Such as ``transformers, float32, cpu``."""
    return ", ".join(str(settings[name]) for name in ("scorer", "dtype", "device") if name in settings)


def _length(max_length: int | None, scorer: scorers.Scorer) -> int | None:
    if max_length is not None and scorer.max_length is not None and max_length > scorer.max_length:
        raise InputError(f"max_length {max_length}: the model takes {scorer.max_length} tokens at most")
    return scorer.max_length if max_length is None else max_length


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
    more: Mapping[str, pa.DataType],
) -> pa.Table:
    """A shard of scores, with more columns than all have; rows that have no values have their status and nulls."""

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
    return pa.table(columns | {name: column(name, kind) for name, kind in more.items()})


def rows_of(parts: Sequence[Shard]) -> int:
    """How many rows shards have in all."""
    return sum(part.rows for part in parts)
