"""What models learn by each strategy: trainings with several seeds, their evaluations, and what both cost."""

from __future__ import annotations

import math
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow.compute as pc
from scipy import stats

from p3select import __version__, embeddings, index, loops, progress, scores, shards, strategies, tokenised
from p3select.errors import InputError, MismatchError, P3Error
from p3select.run import Lent, Run, read_json, write_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from p3select.dataset import Dataset
    from p3select.strategies import Strategies

# Of the evaluation's command.
PLACES = ("model", "out", "seed")
NEEDED = (("model",), ("out",))
# In the folder of a training, once it is finished.
MARK = "trained.json"
# Interval of a mean over seeds.
LEVEL = 0.95


class Plan(NamedTuple):
    """Trainings: the run folder with the first epoch's scores and its rows, where they go, strategies and seeds."""

    run: Run
    dataset: Dataset
    folder: Path
    arms: Strategies
    seeds: Sequence[int]
    call: Mapping[str, Any]
    """What :func:`asked` gave."""
    scoring: Mapping[str, Any]
    """Arguments of :func:`p3select.score`."""


def asked(
    run: Run, call: dict[str, Any], evaluate: str | None, model: str | Path | None, scoring: Mapping[str, Any]
) -> dict[str, Any] | None:
    """What trainings depend on, and the command of their evaluation; None where there are none.

    Args:
        run: A run folder with scores of the first epoch.
        call: ``epochs``, ``budget``, ``train`` and ``to`` of :func:`p3select.loop`.
        evaluate: See :func:`p3select.compare`, as for ``model``.
        model: The policy that enters the first epoch.
        scoring: Arguments of :func:`p3select.score`.

    Raises:
        InputError: One command without the other, one that lacks a place, a policy that cannot be trained, or scoring
            in part, whose cost would not be that of a pass.
    """
    if (call["train"] is None) is not (evaluate is None):
        raise InputError("train and evaluate go together: give both commands, or neither")
    if evaluate is None:
        return None
    if scoring.get("refresh") is not None:
        raise InputError("refresh: strategies are compared on scores of all rows; leave it out")
    loops.filled("train", call["train"], dict.fromkeys(loops.PLACES, ""), loops.NEEDED)
    loops.filled("evaluate", evaluate, dict.fromkeys(PLACES, ""), NEEDED)
    policy = scores.policy(run, 1) if model is None else str(model)
    if policy is None:
        raise InputError(f"{run.scores(1)}: scored by an object, which has no name; give the model")
    if model is None and "adapter" in (shards.manifest(run.scores(1)) or {}).get("about", {}):
        raise InputError(f"{run.scores(1)}: scored with an adapter, and trainings begin with whole weights: merge it")
    return call | {"model": policy, "evaluate": evaluate}


def refuse(plan: Plan) -> None:
    """Refuse what :func:`trained` could not go on with.

    Raises:
        MismatchError: A training in the folder was made otherwise.
    """
    for name, arguments in plan.arms.items():
        for seed in plan.seeds:
            _record(_place(plan.folder, name, seed), _made(plan, arguments))


def trained(plan: Plan, *, discard: bool, show_progress: bool) -> dict[str, Any]:
    """Train and evaluate by every strategy with every seed; what was finished before is not done again.

    Args:
        plan: The trainings.
        discard: Remove weights that are evaluated.
        show_progress: Print what is going on, on stderr.

    Returns:
        ``trained`` of :func:`p3select.compare`.

    Raises:
        P3Error: A command failed.
        MismatchError: A training in the folder was made otherwise.
    """
    run, arms, seeds, evaluate = plan.run, plan.arms, plan.seeds, plan.call["evaluate"]
    before = _evaluated(evaluate, plan.call["model"], plan.folder / "before", seeds[0])
    records = []
    for seed in seeds:  # all strategies with the first one, so that there is something to see early
        for name in arms:
            if show_progress:
                progress.say(f"training by {name}, seed {seed}")
            try:
                one = _arm(plan, name, seed, show_progress)
                one["results"] = _evaluated(evaluate, one["weights"], Path(one["folder"]), seed)
                if one["results"].keys() != before.keys():
                    raise InputError(f"the evaluation gave {[*one['results']]}, and {[*before]} before training")
            except P3Error as error:
                raise P3Error(f"strategy {name}, seed {seed}: {error}") from None
            if discard:
                for weights in Path(one["folder"]).glob("loop/epoch-*/weights"):
                    shutil.rmtree(weights)
            records.append(one)
            if show_progress:
                told = ", ".join(f"{key} {value:.4f}" for key, value in one["results"].items())
                progress.say(f"trained by {name}, seed {seed}: {told}")
    each, twice = _tokens(run), [name for name, arguments in arms.items() if arguments.get("difficulty") == "ifd"]
    tokens = dict.fromkeys(arms, each) | dict.fromkeys(twice, _tokens(run, second=bool(twice)))
    once = _seconds(records, [name for name in arms if name not in twice]) or _first_pass(run)
    seconds = dict.fromkeys(arms, once) | dict.fromkeys(twice, _seconds(records, twice))
    return {
        **plan.call,
        "seeds": list(seeds),
        "tokens_a_pass": each,
        "targets_a_pass": int(pc.sum(scores.read(run, 1, ["tokens"]).column("tokens")).as_py()),
        "seconds_a_pass": once,
        "before": before,
        "strategies": [_summed(records, name, tokens[name], seconds[name]) for name in arms],
        **fingerprints(run, plan.dataset),
        "version": __version__,
    }


def fingerprints(run: Run, dataset: Dataset) -> dict[str, str]:
    """Of what trainings begin with."""
    return {
        "dataset_fingerprint": dataset.fingerprint,
        "embeddings_fingerprint": embeddings.read(run)[1],
        "scores_fingerprint": scores.fingerprint(run, 1),
    }


def _arm(plan: Plan, name: str, seed: int, show_progress: bool) -> dict[str, Any]:
    """One strategy's training with one seed; what was done before is not done again."""
    run, call, arguments = plan.run, plan.call, plan.arms[name]
    lent = Lent(_place(plan.folder, name, seed), run, scored=False)
    made = _made(plan, arguments)
    record = _record(lent.path, made)
    if record is not None:
        return record
    passes, selecting = 1 if "scores_of" in arguments else call["epochs"], dict(arguments)
    if strategies.unscored(arguments):  # the first policy's scores serve it, which everybody has
        passes, selecting["scores_of"] = 0, 1
    done = loops.loop(
        plan.dataset,
        lent,
        call["model"],
        epochs=call["epochs"],
        budget=selecting.pop("budget", call["budget"]),
        train=call["train"],
        to=call["to"],
        scoring=_scoring(plan, arguments.get("difficulty")) | dict(plan.scoring),
        selecting=selecting,
        seed=seed,
        show_progress=show_progress,
    )
    record = {
        "strategy": name,
        "seed": seed,
        "made": made,
        "folder": str(lent.path),
        "weights": done[-1]["out"],
        "rows": sum(one["selected"] for one in done),
        "tokens": sum(int(index.read(lent.index(one["epoch"])).metadata["tokens"]) for one in done),
        "passes": passes,
        # Of the first epoch the scores are taken over.
        "seconds_scoring": [one["seconds_scoring"] for one in done[1:]],
        "seconds_training": sum(read_json(Path(one["out"]).parent / "done.json")["seconds"] for one in done),
    }
    write_json(lent.path / MARK, record)
    return record


def _place(folder: Path, name: str, seed: int) -> Path:
    return folder / strategies.folder(name) / f"seed-{seed}"


def _made(plan: Plan, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What a training depends on, but for its seed."""
    return {
        **{key: value for key, value in plan.call.items() if key != "evaluate"},
        "scoring": {key: str(value) for key, value in plan.scoring.items() if value},
        "selecting": strategies.plain(arguments),
        **{name.removesuffix("_fingerprint"): value for name, value in fingerprints(plan.run, plan.dataset).items()},
    }


def _record(place: Path, made: Mapping[str, Any]) -> dict[str, Any] | None:
    """What is known of a training that was finished; None of one that was not."""
    if not (place / MARK).is_file():
        return None
    record = read_json(place / MARK)
    changed = sorted(key for key in made if record["made"].get(key) != made[key])
    if changed:
        raise MismatchError(f"{place}: made otherwise (differs in {', '.join(changed)}); give another --out")
    return record


def _scoring(plan: Plan, difficulty: str | None) -> dict[str, Any]:
    """How the rows were scored under the first policy, so that these scores can be taken over; for a difficulty alone.

    What another difficulty needs besides is not paid for.
    """
    settings, rows = scores.settings(plan.run, 1), scores.read(plan.run, 1, ["tokens"]).num_rows
    return {
        **tokenised.rules(settings),
        "shard_rows": settings["shard_rows"],
        **{name: name == difficulty for name in ("ifd", "el2n")},
        "limit": None if rows == len(plan.dataset) else rows,
        "reuse": plan.run,
    }


def _seconds(records: Sequence[Mapping[str, Any]], names: Sequence[str]) -> float | None:
    """The median pass of some strategies; None where none was measured."""
    found = [seconds for one in records if one["strategy"] in names for seconds in one["seconds_scoring"] if seconds]
    return float(np.median(found)) if found else None


def _first_pass(run: Run) -> float | None:
    """The seconds that the run's own scoring took; None where they are not known, or for more than a difficulty."""
    file, settings = run.cost("score", 1), scores.settings(run, 1)
    if not file.is_file() or any(settings.get(name) for name in ("ifd", "el2n")):
        return None
    return read_json(file).get("seconds") or None


def _tokens(run: Run, *, second: bool = False) -> int | None:
    """Tokens that a pass over all rows has, or both passes of ``ifd``; None where they are not kept any more."""
    settings, rows = scores.settings(run, 1), scores.read(run, 1, ["tokens"]).num_rows
    folder, parts = tokenised.folder(run, settings, rows), shards.ranges(rows, settings["shard_rows"])
    if shards.missing(folder, parts):
        return None
    return sum(tokenised.plan(folder, part, second=range(part.rows) if second else None).tokens for part in parts)


def _evaluated(template: str, model: str, folder: Path, seed: int) -> dict[str, float]:
    """The numbers that the command has of a model; it is not run again."""
    out, mark = folder / "evaluation.json", folder / "evaluated.json"
    command = loops.filled("evaluate", template, {"model": model, "out": str(out), "seed": str(seed)}, NEEDED)
    if mark.is_file():
        known = read_json(mark)
        if known["command"] == command:
            return dict(known["results"])
        if not Path(model).exists() and folder in Path(model).parents:
            raise InputError(f"{model}: discarded, and evaluated by another command: {known['command']}")
    folder.mkdir(parents=True, exist_ok=True)
    out.unlink(missing_ok=True)
    code = loops.run_command(command)
    if code:
        raise P3Error(
            f"the evaluation ended with {code}: {command}; mend it and give the same call again: what is trained stays"
        )
    if not out.is_file():
        raise InputError(f"{out}: not there, after the command that was to write it: {command}")
    results: dict[str, Any] = {}
    with suppress(InputError):
        results = read_json(out)
    bad = [name for name, value in results.items() if not _finite(value)]
    if not results or bad:
        what = f"{bad[0]!r} is no finite number" if bad else "no object of numbers"
        raise InputError(f'{out}: {what}; the evaluation has to write such as {{"loss": 1.25}}')
    write_json(mark, {"command": command, "results": results})
    return results


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _summed(
    records: Sequence[Mapping[str, Any]], strategy: str, tokens: int | None, seconds: float | None
) -> dict[str, Any]:
    """A strategy over its seeds, of the records of all."""
    own, first = ([one for one in records if one["strategy"] == name] for name in (strategy, records[0]["strategy"]))
    results, passes = {}, own[0]["passes"]
    for name in own[0]["results"]:
        values, others = ([one["results"][name] for one in some] for some in (own, first))
        results[name] = mean(values)
        results[name]["difference"] = mean([a - b for a, b in zip(values, others, strict=True)])
    return {
        "strategy": strategy,
        "results": results,
        **{name: float(np.mean([one[name] for one in own])) for name in ("rows", "tokens", "seconds_training")},
        "tokens_scored": _times(passes, tokens),
        "seconds_scoring": _times(passes, seconds),
        "passes": passes,
    }


def _times(count: int, each: float | None) -> float | None:
    """The cost of some passes; None where that of one is not known."""
    return 0.0 if not count else None if each is None else count * each


def mean(values: Sequence[float]) -> dict[str, Any]:
    """A mean over seeds.

    Args:
        values: (s,).

    Returns:
        ``mean``; ``half``, half of the 95 % interval of Student's t with s − 1 degrees of freedom, None of one value;
        ``values``.
    """
    n = len(values)
    spread = stats.t.ppf((1 + LEVEL) / 2, n - 1) * np.std(values, ddof=1) / math.sqrt(n) if n > 1 else None
    return {"mean": float(np.mean(values)), "half": None if spread is None else float(spread), "values": list(values)}
