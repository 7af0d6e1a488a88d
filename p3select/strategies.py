"""Strategies: names for arguments of :func:`p3select.select`, P3's own, its ablations, and what it is compared with.

``NAME+OPTION=VALUE`` changes some of them, as in ``p3+pace=cosine:50:95`` or ``p3+selector=kdpp+quality_weight=0``.
"""

from __future__ import annotations

import inspect
import json
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from p3select import constraints, embeddings, fingerprints, scores, selection, selectors, shards
from p3select import dataset as data
from p3select.errors import InputError, MismatchError
from p3select.run import Run, read_json
from p3select.selectors.rds import rds

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from p3select.dataset import Dataset

    Strategies = dict[str, dict[str, Any]]

# Every row that has a score is eligible: pacing is P3's, and a threshold that leaves nothing out is the one that needs
# no choice.
EVERY = {"pace": "constant:100"}
STRATEGIES: Strategies = {
    "p3": {},
    "pace-only": {"selector": "topk"},
    "dpp-only": EVERY,
    "reversed": {"pace": "linear:95:50"},
    "static": {"scores_of": 1},
    "uniform": EVERY | {"selector": "uniform"},
    "longest": EVERY | {"selector": "longest"},
    "nll-high": EVERY | {"selector": "topk", "difficulty": "nll"},
    "nll-middle": EVERY | {"selector": "middle", "difficulty": "nll"},
    "nll-low": EVERY | {"selector": "topk", "difficulty": "nll", "quality": "easier"},
    "ifd": EVERY | {"selector": "ifd", "difficulty": "ifd"},
    "el2n": EVERY | {"selector": "topk", "difficulty": "el2n"},
    "kcenter": EVERY | {"selector": "kcenter", "quality": "none"},
    "facility": EVERY | {"selector": "facility", "quality": "none"},
    "d2": EVERY | {"selector": "d2"},
    "deita": EVERY | {"selector": "deita"},
    "rds": EVERY | {"selector": "rds", "quality": "none"},
    "full": EVERY | {"selector": "uniform", "budget": "100%"},
}
"""Name → arguments of :func:`p3select.select`, ``rds`` (RDS+) being bound to its queries.

``uniform`` draws anew in each epoch (RS2: Okanovic et al., ICLR 2024, arXiv 2305.18424); ``static`` scores once;
``full`` takes every row, whatever the budget, in a new order each epoch, whose first rows are those of ``uniform``.
"""

# Ablations of P3, which weigh gain against tokens as it does. The others are as published: by their score alone.
ABLATIONS = ("p3", "pace-only", "dpp-only", "reversed", "static")
# Selectors that do not go by quality.
BLIND = ("uniform", "longest", "rds")
# Options of select that are the comparison's own to give, or are of no use to it.
OWN = ("run", "epoch", "epochs", "budget", "seed", "parts", "engine", "workers", "address", "overwrite")
# What embeddings have to have in common to be compared.
ENCODED = ("encoder", "encoder_fingerprint", "dimension", "text")


def resolved(
    run: Run,
    dataset: Dataset,
    epochs: Sequence[int],
    names: Sequence[str] | None,
    *,
    budget: int | str,
    queries: str | Path | None = None,
    per: str | None = None,
) -> tuple[Strategies, dict[str, str]]:
    """The arguments of :func:`p3select.select` that strategies are, with what depends on the data and on the budget.

    Args:
        run: A run folder with embeddings and scores.
        dataset: Its rows.
        epochs: Those to be selected for.
        names: As they are written; None for all that can be had, and ``uniform`` by the column ``per``.
        budget: Of an epoch.
        queries: For ``rds``; see :func:`p3select.compare`.
        per: A column of the data.

    Returns:
        Arguments by name; and of the strategies that nobody asked for and that cannot be had, why not.

    Raises:
        InputError: One that was asked for is unknown, or cannot be had; or queries that none goes by.
        MismatchError: The query set was embedded otherwise.
    """
    wanted = [*STRATEGIES] if names is None else [*dict.fromkeys(names)]
    if not wanted:
        raise InputError(f"strategies: name some of {', '.join(STRATEGIES)}")
    left_out: dict[str, str] = {}
    if names is None and per is not None:
        wanted.insert(wanted.index("uniform") + 1, f"uniform+per={per}")
    if names is None and list(epochs) == [1]:
        wanted.remove("static")
        left_out["static"] = "in the first epoch it is p3"
    found: Strategies = {}
    for name in wanted:
        arguments = _arguments(name)
        lack = _lack(run, epochs, arguments, budget, queries)
        if lack is None:
            found[name] = _ready(run, dataset, epochs[0], name, arguments, budget, queries)
        elif names is None:
            left_out[name] = lack
        else:
            raise InputError(f"strategy {name}: {lack}")
    if queries is not None and not any(isinstance(one.get("selector"), partial) for one in found.values()):
        raise InputError("queries: none of these strategies goes by them; name rds, too, or leave --queries out")
    places = [folder(name) for name in found]
    twice = [name for name in found if places.count(folder(name)) > 1]
    if twice:
        raise InputError(f"strategies {' and '.join(twice)}: they would have one folder; compare them one by one")
    return found, left_out


def unscored(arguments: Mapping[str, Any]) -> bool:
    """Whether what a strategy picks does not depend on scores, so that it needs none."""
    selector = selection.name_of(arguments.get("selector", "auto")).rpartition(":")[2]
    return arguments.get("pace") == EVERY["pace"] and (selector in BLIND or arguments.get("quality") == "none")


def plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A strategy's arguments as JSON."""
    plain = dict(arguments)
    if isinstance(plain.get("selector"), partial):
        bound = plain["selector"]
        given = {name: fingerprints.of_json(array.tolist()) for name, array in bound.keywords.items()}
        plain["selector"] = {"name": selection.name_of(bound), **given}
    if plain.get("exclude") is not None and not isinstance(plain["exclude"], str):
        plain["exclude"] = constraints.described(np.asarray(plain["exclude"], np.int64))
    return plain


def folder(name: str) -> str:
    """The name of a strategy's folder."""
    return re.sub(r"[^\w+=.,-]", "-", name)


def _arguments(text: str) -> dict[str, Any]:
    """The arguments of select that a strategy is, as they are written."""
    name, *changes = text.split("+")
    if name not in STRATEGIES:
        raise InputError(f"no strategy {name!r}; there are {', '.join(STRATEGIES)}")
    return STRATEGIES[name] | dict(_change(text, change) for change in changes)


def _lack(
    run: Run, epochs: Sequence[int], arguments: Mapping[str, Any], budget: int | str, queries: str | Path | None
) -> str | None:
    """What a strategy needs and has not; None for nothing."""
    selector = arguments.get("selector")
    once = arguments.get("scores_of")
    if once is not None and shards.manifest(run.scores(once)) is None:
        return f"epoch {once} is not scored"
    asked = arguments.get("difficulty", "p3")
    settings = {epoch: scores.settings(run, epoch) for epoch in ([once] if once else epochs)}
    if asked in ("ifd", "el2n") and not all(one.get(asked) for one in settings.values()):
        return f"the rows were scored without --{asked}: score them again with it"
    in_part = [epoch for epoch, one in settings.items() if "refresh" in one]
    if asked != "p3" and in_part:
        return f"epoch {in_part[0]} was scored in part (--refresh), and p3 alone is predicted: score all of its rows"
    if selector == "rds" and queries is None:
        return "it needs a query set: give --queries, another run folder or COLUMN=VALUE"
    if constraints.budget_tokens(arguments.get("budget", budget)) and isinstance(selector, str) and selector != "auto":
        function = rds if selector == "rds" else selectors.find(selector)
        if "limits" not in inspect.signature(function).parameters:
            return "its selector takes no budget in tokens: give one in rows"
    return None


def _ready(
    run: Run,
    dataset: Dataset,
    epoch: int,
    text: str,
    arguments: dict[str, Any],
    budget: int | str,
    queries: str | Path | None,
) -> dict[str, Any]:
    """The arguments with what depends on the data and on the budget."""
    tokens = constraints.budget_tokens(arguments.get("budget", budget))
    table = scores.read(run, arguments.get("scores_of", epoch), ["difficulty", "tokens"])
    table = table.append_column("row", pa.array(np.arange(table.num_rows))).filter(
        table.column("difficulty").is_valid()
    )
    if tokens and text.partition("+")[0] not in ABLATIONS and arguments["selector"] != "uniform":
        arguments.setdefault("cost_weight", 0.0)
    if "per" in arguments and "at_most" not in arguments:
        wanted = tokens or constraints.budget_rows(arguments.get("budget", budget), len(dataset))
        arguments["at_most"] = _level(dataset, table, arguments["per"], wanted, in_tokens=tokens is not None)
    if arguments.get("selector") == "rds":
        vectors, rows = _queries(run, dataset, str(queries))
        arguments["selector"] = _bound(rds, queries=vectors)
        if rows:
            also = constraints.listed("exclude", arguments.get("exclude"), run).tolist()
            arguments["exclude"] = sorted({*rows, *also})
    return arguments


def _change(text: str, change: str) -> tuple[str, Any]:
    """An option of select and its value."""
    option, equals, value = change.partition("=")
    known = [name for name in inspect.signature(selection.select).parameters if name not in OWN]
    if option not in known or not equals:
        raise InputError(f"strategy {text}: {change!r} should be OPTION=VALUE, with one of {', '.join(known)}")
    try:
        return option, json.loads(value)
    except ValueError:
        return option, value


def _bound(function: Callable[..., Any], **given: Any) -> Callable[..., Any]:
    """A selector with what it needs, under its own name."""
    bound = partial(function, **given)
    for name in ("__module__", "__qualname__"):
        setattr(bound, name, getattr(function, name))
    return bound


def _level(dataset: Dataset, table: pa.Table, column: str, wanted: int, *, in_tokens: bool) -> int:
    """The least N so that N rows of each value of a column, or all that it has, make up what is wanted."""
    values = data.text(data.column(dataset, column))[table.column("row").to_numpy()]
    _, group, count = np.unique(values, return_inverse=True, return_counts=True)
    cost = table.column("tokens").to_numpy().astype(np.float64) if in_tokens else np.ones(len(values))
    mean = np.bincount(group, cost) / count
    # Of rows up to N of each value, what they come to in the mean.
    total = np.cumsum([mean[count >= n].sum() for n in range(1, int(count.max()) + 1)])
    return min(int(np.searchsorted(total, wanted - 1e-6)), len(total) - 1) + 1


def _queries(run: Run, dataset: Dataset, given: str) -> tuple[NDArray[np.float32], list[int]]:
    """The query set's vectors (m, d), and the rows of the dataset that it is, if any."""
    if (Path(given) / "run.json").is_file():
        other = Run(given)
        vectors, _ = embeddings.read(other)
        made = [read_json(one.embeddings.with_suffix(".json")) for one in (run, other)]
        # The name is for people where there is a fingerprint.
        names = ENCODED[1:] if "encoder_fingerprint" in made[0] else ENCODED
        differ = [name for name in names if made[0].get(name) != made[1].get(name)]
        if differ:
            raise MismatchError(
                f"{given}: embedded otherwise than {run.path} (differs in {', '.join(differ)}); embed the "
                "query set with the same encoder and --text"
            )
        return np.asarray(vectors), []
    column, _, value = given.partition("=")
    if not value:
        raise InputError(
            f"queries {given!r}: no run folder, nor COLUMN=VALUE; 'p3select embed FILE --run DIR --encoder M' makes a "
            "run folder of a query set"
        )
    rows = np.flatnonzero(data.text(data.column(dataset, column)) == value)
    if not len(rows):
        raise InputError(f"queries {given!r}: no row has {value!r} in column {column!r}")
    return np.asarray(embeddings.read(run)[0][rows]), rows.tolist()
