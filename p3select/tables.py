"""Results as tables for people, on stdout."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from p3select import progress
from p3select.validation import LEVELS, named

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from p3select.index import Selection


# Pairs of strategies that are shown where there is no room for each two.
ALIKE = 10


def summary(values: Mapping[str, Any]) -> None:
    """A summary as two columns, a line per value."""
    table = _plain()
    for name, value in values.items():
        if name == "notes":
            for note in value:
                table.add_row("note", note)
        elif name == "seconds":
            table.add_row("time", progress.left(value))
        elif name == "difficulty":
            table.add_row("mean difficulty", "none" if value is None else _text(value))
        elif name == "memory_bytes":
            table.add_row("memory", "in other processes" if value is None else f"{value / 2**30:.1f} GiB")
        else:
            table.add_row(name.replace("_", " "), _text(value))
    console().print(table)


def console() -> Console:
    """Results on stdout; what is to be copied, paths and commands, is never broken into lines."""
    return Console(highlight=False, soft_wrap=True, markup=False)


def selection(chosen: Selection, path: Path) -> None:
    """What an epoch's selection is like."""
    meta, about = chosen.metadata, chosen.summary
    table = _plain()
    table.add_row("epoch", f"{meta['epoch']} of {meta['epochs']}")
    table.add_row("λ", f"{meta['lam']:.4f} (percentile {meta['percentile']:g}, pace {meta['pace']})")
    unscored = f", {_text(about['unscored'])} without a score" if about["unscored"] else ""
    part = f" of the dataset's {about['rows_dataset']:,}" if about["rows"] < about["rows_dataset"] else ""
    guessed = about.get("rows_predicted", 0)
    table.add_row("rows scored", f"{about['rows'] - sum(about['unscored'].values()) - guessed:,}{part}{unscored}")
    if guessed:
        table.add_row("rows predicted", f"{guessed:,}; of the selected ones {meta['predicted']:,}")
    table.add_row("budget", str(meta["budget"]))
    table.add_row("eligible", f"{meta['eligible']:,}")
    why = f" ({about['selector_reason']})" if about["selector_reason"] else ""
    parts = f" in {meta['parts']} parts and from their union" if meta["parts"] else ""
    table.add_row("selected", f"{len(chosen):,} by {meta['selector']}{parts}{why}{_shortage(chosen)}")
    mean, pool = meta["tokens"] / len(chosen), about["tokens_eligible"] / about["pool"]
    table.add_row("tokens", f"{meta['tokens']:,}: {mean:,.1f} a row, of the rows to choose from {pool:,.1f}")
    for name in ("include", "exclude"):
        if meta[name]:
            table.add_row(f"{name}d", f"{meta[name]['rows']:,} rows")
    if about["accuracy"] is not None:
        found = about["accuracy"]
        sure = f" ± {found['error']:.3f}" if found["error"] else ""
        table.add_row(
            "log det per pick",
            f"{found['log_gain']:.3f}{sure}; by the gains, which know the nearest picks alone, {found['claimed']:.3f}",
        )
    for part in ("all", "eligible", "selected"):
        table.add_row(f"mean difficulty, {part}", f"{about[f'difficulty_{part}']:.4f}")
    table.add_row("same rows as plain top quality", f"{about['overlap_top']:.0%}")
    if about["overlap_before"] is not None:
        table.add_row("same rows as the epoch before", f"{about['overlap_before']:.0%}")
    table.add_row("index", str(path))
    out = console()
    out.print(table)
    if about["diversity"] is not None:
        out.print(diversity(about["diversity"]))


def epochs(done: Sequence[Mapping[str, Any]]) -> None:
    """A line for each epoch of a loop."""
    table = Table(box=None, pad_edge=False)
    for name in ("epoch", "λ", "eligible", "selected", "difficulty, all", "selected", "scoring", "training", "weights"):
        table.add_column(name, justify="left" if name == "weights" else "right")
    for one in done:
        table.add_row(
            str(one["epoch"]),
            f"{one['lam']:.4f}",
            f"{one['eligible']:,}",
            f"{one['selected']:,}",
            f"{one['difficulty_all']:.4f}",
            f"{one['difficulty_selected']:.4f}",
            *(
                progress.left(one[name]) if one[name] else "done before"
                for name in ("seconds_scoring", "seconds_training")
            ),
            one["out"],
        )
    console().print(table)


def validation(found: Mapping[str, Any]) -> None:
    """How far difficulties agree with a ground truth."""
    out = console()
    out.print(_validated(found))
    out.print(_spreads(found["spread"]))
    out.print(_between(found["between"]))
    if found["ordered"]:
        for group in dict.fromkeys(one["group"] for one in found["agreement"]):
            out.print(_correlations([one for one in found["agreement"] if one["group"] == group]))
    elif found.get("kruskal"):
        for measures in _abreast(out, (one["measure"] for one in found["kruskal"])):
            out.print(_differences([one for one in found["kruskal"] if one["measure"] in measures]))
    why = "too few or of one value" if found["ordered"] else "too few, of one category or each of another"
    for one in found.get("groups_left_out", []):
        name = named(one["group"]) if one["group"] is None else f"group {one['group']}"
        out.print(f"{name}: {one['rows']:,} rows, {why}")
    if found["against"] is not None and "levels" not in found:
        out.print(f"{found['against']} has more than {LEVELS} values: no means of each")
    for group in dict.fromkeys(one["group"] for one in found.get("levels", [])):
        ones = [one for one in found["levels"] if one["group"] == group]
        names = [name for name in ones[0] if name not in ("group", "level", "rows")]
        for measures in _abreast(out, names):
            out.print(_levels(ones, measures, found["against"], found["trend"] if found["ordered"] else None))


def _validated(found: Mapping[str, Any]) -> Table:
    """Against what, of which rows, by which actions."""
    example = " ".join(found.get("no_number", "").split())[:40]
    left = ", ".join(
        f"{count:,} with {why}" + (f', such as "{example}"' if why == "no number" else "")
        for why, count in found["left_out"].items()
        if count
    )
    table = _plain()
    if found["against"] is not None:
        table.add_row("against", found["against"] + ("" if found["ordered"] else " (categories without an order)"))
    table.add_row("rows", f"{found['rows']:,}; left out: {left or 'none'}")
    if "p3" in found["spread"]:
        table.add_row("actions", f"{found['scores']['actions']}, as the rows were scored")
    if found["left_out"].get("predicted difficulty"):
        drawn = "not drawn evenly: those near the threshold and short ones are likelier. Score all rows for this"
        table.add_row("measured rows", drawn)
    return table


def _correlations(ones: Sequence[Mapping[str, Any]]) -> Table:
    """How far measures agree with the ground truth in a group's rows."""
    title = f"{named(ones[0]['group'])}, {ones[0]['rows']:,} rows: rank correlation [95 % interval]"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in ("", "Spearman ρ", "Kendall τ", "ρ given length"):
        table.add_column(name)
    for one in ones:
        values = (one.get(name) for name in ("spearman", "kendall", "given_length"))
        table.add_row(one["measure"], *("" if value is None else _with_interval(value) for value in values))
    return table


def _abreast(out: Console, names: Iterable[str]) -> list[list[str]]:
    """Measures that have room side by side, each with a mean and half an interval."""
    names = [*dict.fromkeys(names)]
    # To the left of them are a name and a number of rows.
    count = max(1, (out.width - 22) // (2 + max(12, *map(len, names))))
    return [names[start : start + count] for start in range(0, len(names), count)]


def _differences(tests: Sequence[Mapping[str, Any]]) -> Table:
    """Whether categories differ, for each group and measure."""
    measures = [*dict.fromkeys(one["measure"] for one in tests)]
    table = Table(title="Kruskal–Wallis, p of no difference", title_justify="left", box=None, pad_edge=False)
    for name in ("", "rows", *measures):
        table.add_column(name, justify="right" if name else "left")
    for group in dict.fromkeys(one["group"] for one in tests):
        ones = [one for one in tests if one["group"] == group]
        table.add_row(named(group), f"{ones[0]['rows']:,}", *(_p(one["p"]) for one in ones))
    return table


def _levels(
    ones: Sequence[Mapping[str, Any]], measures: Sequence[str], column: str, trend: Mapping[str, float | None] | None
) -> Table:
    """The means of measures at each level of a group's rows."""
    title = f"{named(ones[0]['group'])}: mean ± half the 95 % interval"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in (column, "rows", *measures):
        table.add_column(name, justify="right" if name in ("rows", column) else "left")
    for one in ones:
        level = f"{one['level']:g}" if isinstance(one["level"], float) else one["level"]
        table.add_row(level, f"{one['rows']:,}", *(_with_half(one[name]) for name in measures))
    if trend is not None:
        table.add_row("p of no trend", "", *(_p(trend[name]) for name in measures))
    return table


def _spreads(spread: Mapping[str, Any]) -> Table:
    """How measures are distributed."""
    table = _numbers("over the rows", ["mean", "5 %", "median", "95 %"])
    for name, one in spread.items():
        low, _, median, _, high = one["quantiles"]
        table.add_row(name, *map(_short, (one["mean"], low, median, high)))
    return table


def _between(between: Mapping[str, Any]) -> Table:
    """How far the orders of measures agree; numbered, as their names side by side would be wider than a terminal."""
    names = between["measures"]
    table = _numbers("Spearman ρ with", [str(number) for number in range(1, len(names))])
    for number, (name, row) in enumerate(zip(names, between["spearman"], strict=True)):
        table.add_row(f"{number + 1} {name}", *map(_short, row[:number]))
    return table


def comparison(found: Mapping[str, Any]) -> None:
    """What strategies select at an equal budget; and what was learned from it, where that was asked for."""
    out = console()
    for number, everything in enumerate(found["all"]):
        ones = [one for one in found["selections"] if one["epoch"] == everything["epoch"]]
        out.print(
            f"epoch {everything['epoch']} of {found['epochs']}, budget {found['budget']}\n"
            f"all {everything['rows']:,} rows: {everything['length']:.1f} tokens, difficulty "
            f"{everything['difficulty']:.4f} in the mean"
        )
        out.print(_selections(ones, found["seconds"][number]["strategies"]))
        for note in _short_of(ones, found):
            out.print(note)
        out.print(_diverse(ones))
        if ones[0]["shift"]:
            out.print(_shifts(ones))
        _common(out, [one["strategy"] for one in ones], found["jaccard"][number]["values"])
    for name, why in found["left_out"].items():
        out.print(f"left out: {name}: {why}")
    if "trained" in found:
        _trainings(found["trained"])


def _selections(ones: Sequence[Mapping[str, Any]], seconds: Mapping[str, float]) -> Table:
    """How much strategies select, and of what."""
    short = any(one["shortfall"] for one in ones)
    table = _numbers("selected", ["rows", *(["short"] if short else []), "tokens", "per row", "difficulty", "time"])
    for one in ones:
        table.add_row(
            one["strategy"],
            f"{one['rows']:,}",
            *([f"{one['shortfall']:,}" if one["shortfall"] else ""] if short else []),
            f"{one['tokens']:,}",
            f"{one['length']:.1f}",
            f"{one['difficulty']:.4f}",
            f"{seconds[one['strategy']]:.1f} s",
        )
    return table


def _short_of(ones: Sequence[Mapping[str, Any]], found: Mapping[str, Any]) -> list[str]:
    """Which selections are not at an equal budget, and why."""
    by: dict[str, list[str]] = {}
    for one in ones:
        if one["shortfall"]:
            given = found["strategies"][one["strategy"]]
            why = _why_short(given, all_taken=one["rows"] == one["pool"])
            what = f"{_unit(given.get('budget', found['budget']))} fewer than the budget, as {why}"
            by.setdefault(what, []).append(one["strategy"])
    return [f"short: {what}: {', '.join(names)}" for what, names in by.items()]


def _diverse(ones: Sequence[Mapping[str, Any]]) -> Table:
    """How diverse strategies' selections are."""
    table = _numbers("diversity", ["cells hit", "near-duplicates", "log det / row", "to the nearest"])
    for one in ones:
        table.add_row(
            one["strategy"],
            f"{one['cells']:.1%}",
            f"{one['near_duplicates']:,}",
            *(f"{one[name]:.4f}" if name in one else "" for name in ("log_det", "distance")),
        )
    return table


def _shifts(ones: Sequence[Mapping[str, Any]]) -> Table:
    """How far columns' values are from those of all rows."""
    table = _numbers("other than all rows", [f"Δ {column}" for column in ones[0]["shift"]])
    for one in ones:
        table.add_row(one["strategy"], *(f"{value:.1%}" for value in one["shift"].values()))
    return table


def _common(out: Console, names: Sequence[str], values: Sequence[Sequence[float]]) -> None:
    """Which selections have rows in common, in percent of the rows of both: each two, or the most alike."""
    numbered = [f"{number} {name}" for number, name in enumerate(names, start=1)]
    head = "rows in common, %"
    width = max(len(head), *map(len, numbered)) + 3 * (len(names) - 1)
    if width <= out.width:
        table = _numbers(head, [str(number) for number in range(1, len(names))], gap=1)
        for number, (name, row) in enumerate(zip(numbered, values, strict=True)):
            table.add_row(name, *map(_percent, row[:number]))
        out.print(table)
        if any(1 in row[:number] for number, row in enumerate(values)):
            out.print("=: the same rows")
        return
    table = _numbers("most rows in common", ["%"])
    pairs = [(row[place], place, number) for number, row in enumerate(values) for place in range(number)]
    for value, one, other in sorted(pairs, key=lambda pair: -pair[0])[:ALIKE]:
        table.add_row(f"{names[one]}, {names[other]}", _percent(value))
    out.print(table)
    out.print(f"each two: in compare.json (jaccard), and here on {width} columns")


def _percent(share: float) -> str:
    """In two places: 100 is a sign."""
    return "=" if share == 1 else f"{min(100 * share, 99):.0f}"


def _numbers(head: str, columns: Sequence[str], gap: int = 2) -> Table:
    """A table of numbers, which are not broken or cut: long names are."""
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0))
    table.add_column(head, overflow="fold")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _trainings(trained: Mapping[str, Any]) -> None:
    """What models learned by each strategy, and at what cost."""
    out = console()
    out.print(f"trained for {trained['epochs']} epochs, seeds {', '.join(map(str, trained['seeds']))}: mean ± 95 %")
    first = trained["strategies"][0]["strategy"]
    for name, before in trained["before"].items():
        results = _numbers("trained by", [name, f"above {first}"])
        for one in trained["strategies"]:
            result = one["results"][name]
            above = "" if one["strategy"] == first else _with_spread(result["difference"])
            results.add_row(one["strategy"], _with_spread(result), above)
        results.add_row("nothing", f"{before:.4f}", "", style="dim")
        out.print(results)
    costs = _numbers("cost", ["rows", "targets", "training", "to score, prompts too", "scoring"])
    for one in trained["strategies"]:
        costs.add_row(
            one["strategy"],
            *(f"{one[name]:,.0f}" for name in ("rows", "tokens")),
            progress.left(one["seconds_training"]),
            "?" if one["tokens_scored"] is None else f"{one['tokens_scored']:,.0f}",
            "?" if one["seconds_scoring"] is None else progress.left(one["seconds_scoring"]),
        )
    out.print(costs)


def _with_spread(found: Mapping[str, Any]) -> str:
    return f"{found['mean']:.4f}" + ("" if found["half"] is None else f" ± {found['half']:.4f}")


def diversity(parts: Mapping[str, Mapping[str, float]]) -> Table:
    """The diversity of a selection beside a random and a top-quality one of its size."""
    table = Table(title="diversity (higher is more diverse)", title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    table.add_column("log det S / rows", justify="right")
    table.add_column("distance to the nearest", justify="right")
    for name, values in parts.items():
        table.add_row(name, f"{values['log_det']:.4f}", f"{values['distance']:.4f}")
    return table


def _shortage(chosen: Selection) -> str:
    meta, text = chosen.metadata, ""
    if meta["shortfall"]:
        why = _why_short(meta, all_taken=len(chosen) == chosen.summary["pool"])
        text += f"; {meta['shortfall']:,} {_unit(meta['budget'])} fewer than the budget, as {why}"
    if meta["selector"] in ("dpp", "dpp-local", "dpp-torch") and meta["dependent"]:
        text += f"; {meta['dependent']:,} of them copies of others or of quality next to 0, added by quality"
    return text


def _why_short(given: Mapping[str, Any], *, all_taken: bool) -> str:
    limited = not all_taken and (given.get("at_most") or given.get("share"))
    return "the limits let no more in" if limited else "no more rows are eligible"


def _unit(budget: int | str) -> str:
    return "tokens" if str(budget).endswith("tok") else "rows"


def _with_interval(values: Sequence[float | None]) -> str:
    digits = _digits(values[0])
    return "{} [{}, {}]".format(*(_short(value, digits) for value in values))


def _with_half(values: Sequence[float | None]) -> str:
    value, low, high = values
    if low is None or high is None:
        return f"{value:.{_digits(value)}f}"
    half = (high - low) / 2
    # Two digits of what is not sure, and no fewer of it than of a number alone.
    digits = _digits(value) if half == 0 else max(_digits(value), 1 - math.floor(math.log10(half)))
    return f"{value:.{digits}f} ± {half:.{digits}f}"


def _short(value: float | None, digits: int | None = None) -> str:
    """Without the zero before the point."""
    if value is None:
        return "–"
    return re.sub(r"^(-?)0\.", r"\1.", f"{value:.{_digits(value) if digits is None else digits}f}")


def _p(value: float | None) -> str:
    return "–" if value is None else f"{value:.2g}"


def _digits(value: float | None) -> int:
    return 3 if value is None or abs(value) < 10 else 1


def _plain() -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    return table


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{count:,} {name}" for name, count in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.4f}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
