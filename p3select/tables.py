"""Results as tables for people, on stdout."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from p3select import progress

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from p3select.index import Selection


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
    return Console(highlight=False, soft_wrap=True)


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
    table.add_row("selected", f"{len(chosen):,} by {meta['selector']}{parts}{why}{_shortage(meta)}")
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
    left = ", ".join(f"{count:,} with {why}" for why, count in found["left_out"].items() if count) or "none"
    head = _plain()
    if found["against"] is not None:
        head.add_row("against", found["against"] + ("" if found["ordered"] else " (categories without an order)"))
    head.add_row("rows", f"{found['rows']:,}; left out: {left}")
    out.print(head)
    out.print(_spreads(found["spread"], found["between"]))
    if found["ordered"]:
        for group in dict.fromkeys(one["group"] for one in found["agreement"]):
            ones = [one for one in found["agreement"] if one["group"] == group]
            title = f"{group}, {ones[0]['rows']:,} rows: rank correlation [95 % interval]"
            table = Table(title=title, title_justify="left", box=None, pad_edge=False)
            for name in ("", "Spearman ρ", "Kendall τ", "ρ given length"):
                table.add_column(name)
            for one in ones:
                values = (one.get(name) for name in ("spearman", "kendall", "given_length"))
                table.add_row(one["measure"], *("" if value is None else _with_interval(value) for value in values))
            out.print(table)
        for name, count in found["groups_left_out"].items():
            out.print(f"group {name}: {count:,} rows, too few or of one value")
    if "levels" in found:
        measures = [name for name in found["levels"][0] if name not in ("level", "rows")]
        table = Table(title="mean ± half the 95 % interval", title_justify="left", box=None, pad_edge=False)
        for name in (found["against"], "rows", *measures):
            table.add_column(name, justify="right" if name in ("rows", found["against"]) else "left")
        for one in found["levels"]:
            level = f"{one['level']:g}" if isinstance(one["level"], float) else one["level"]
            table.add_row(level, f"{one['rows']:,}", *(_with_half(one[name]) for name in measures))
        if found["ordered"]:
            table.add_row("p of no trend", "", *(f"{found['trend'][name]:.2g}" for name in measures))
        out.print(table)


def _spreads(spread: Mapping[str, Any], between: Mapping[str, Any]) -> Table:
    """How measures are distributed, and how far their orders agree."""
    title = "over the rows, and Spearman ρ with"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    names = between["measures"]
    for name in ("", "mean", "5 %", "median", "95 %", *names[:-1]):
        table.add_column(name, justify="right" if name else "left")
    for number, (name, row) in enumerate(zip(names, between["spearman"], strict=True)):
        low, _, median, _, high = spread[name]["quantiles"]
        table.add_row(name, *(_short(value) for value in (spread[name]["mean"], low, median, high, *row[:number])))
    return table


def comparison(found: Mapping[str, Any]) -> None:
    """What strategies select at an equal budget; and what was learned from it, where that was asked for."""
    out = console()
    for number, everything in enumerate(found["all"]):
        ones = [one for one in found["selections"] if one["epoch"] == everything["epoch"]]
        out.print(
            f"epoch {everything['epoch']} of {found['epochs']}, budget {found['budget']}, of "
            f"{everything['rows']:,} rows of {everything['length']:.1f} tokens and difficulty "
            f"{everything['difficulty']:.4f} in the mean"
        )
        out.print(_selections(ones, found["seconds"][number]["strategies"]))
        out.print(_diverse(ones))
        out.print(_common([one["strategy"] for one in ones], found["jaccard"][number]["values"]))
    for name, why in found["left_out"].items():
        out.print(f"left out: {name}: {why}")
    if "trained" in found:
        _trainings(found["trained"])


def _selections(ones: Sequence[Mapping[str, Any]], seconds: Mapping[str, float]) -> Table:
    """How much strategies select, and of what."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("selected", no_wrap=True)
    columns = [*ones[0]["shift"]]
    for name in ("rows", "tokens", "per row", "difficulty", *(f"Δ {column}" for column in columns), "time"):
        table.add_column(name, justify="right")
    for one in ones:
        table.add_row(
            one["strategy"],
            *(f"{one[name]:,}" for name in ("rows", "tokens")),
            f"{one['length']:.1f}",
            f"{one['difficulty']:.4f}",
            *(f"{one['shift'][column]:.1%}" for column in columns),
            f"{seconds[one['strategy']]:.1f} s",
        )
    return table


def _diverse(ones: Sequence[Mapping[str, Any]]) -> Table:
    """How diverse strategies' selections are."""
    table = Table(box=None, pad_edge=False)
    table.add_column("diversity", no_wrap=True)
    for name in ("cells hit", "near-duplicates", "log det / row", "to the nearest"):
        table.add_column(name, justify="right")
    for one in ones:
        table.add_row(
            one["strategy"],
            f"{one['cells']:.1%}",
            f"{one['near_duplicates']:,}",
            *(f"{one[name]:.4f}" if name in one else "" for name in ("log_det", "distance")),
        )
    return table


def _common(names: Sequence[str], values: Sequence[Sequence[float]]) -> Table:
    """Which selections have rows in common, in percent of the rows of both."""
    table = Table(box=None, pad_edge=False)
    table.add_column("rows in common, %", no_wrap=True)
    for number in range(1, len(names)):
        table.add_column(str(number), justify="right")
    for number, (name, row) in enumerate(zip(names, values, strict=True), start=1):
        table.add_row(f"{number} {name}", *(f"{100 * value:.0f}" for value in row[: number - 1]))
    return table


def _trainings(trained: Mapping[str, Any]) -> None:
    """What models learned by each strategy, and at what cost."""
    title = f"trained for {trained['epochs']} epochs, seeds {', '.join(map(str, trained['seeds']))}: mean ± 95 %"
    results = Table(title=title, title_justify="left", box=None, pad_edge=False)
    costs = Table(box=None, pad_edge=False)
    first = trained["strategies"][0]["strategy"]
    results.add_column("trained by", no_wrap=True)
    for name in trained["before"]:
        for column in (name, f"above {first}"):
            results.add_column(column, justify="right", no_wrap=True)
    costs.add_column("cost", no_wrap=True)
    for name in ("rows", "tokens", "training", "tokens to score", "scoring"):
        costs.add_column(name, justify="right")
    for one in trained["strategies"]:
        values = [
            "" if part == "difference" and one["strategy"] == first else _with_spread(found)
            for result in one["results"].values()
            for part, found in (("value", result), ("difference", result["difference"]))
        ]
        results.add_row(one["strategy"], *values)
        costs.add_row(
            one["strategy"],
            *(f"{one[name]:,.0f}" for name in ("rows", "tokens")),
            progress.left(one["seconds_training"]),
            "?" if one["tokens_scored"] is None else f"{one['tokens_scored']:,.0f}",
            "?" if one["seconds_scoring"] is None else progress.left(one["seconds_scoring"]),
        )
    before = (text for value in trained["before"].values() for text in (f"{value:.4f}", ""))
    results.add_row("nothing", *before, style="dim")
    out = console()
    out.print(results)
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


def _shortage(meta: Mapping[str, Any]) -> str:
    text = ""
    if meta["shortfall"]:
        unit = "tokens" if str(meta["budget"]).endswith("tok") else "rows"
        limited = meta["at_most"] or meta["share"]
        why = "the limits let no more in" if limited else "no more rows are eligible"
        text += f"; {meta['shortfall']:,} {unit} fewer than the budget, as {why}"
    if meta["selector"] in ("dpp", "dpp-local", "dpp-torch") and meta["dependent"]:
        text += f"; {meta['dependent']:,} of them copies of others or of quality next to 0, added by quality"
    return text


def _with_interval(values: Sequence[float]) -> str:
    digits = _digits(values[0])
    return "{} [{}, {}]".format(*(_short(value, digits) for value in values))


def _with_half(values: Sequence[float]) -> str:
    value, low, high = values
    digits = _digits(value)
    return f"{value:.{digits}f} ± {(high - low) / 2:.{digits}f}"


def _short(value: float, digits: int | None = None) -> str:
    """Without the zero before the point."""
    return re.sub(r"^(-?)0\.", r"\1.", f"{value:.{_digits(value) if digits is None else digits}f}")


def _digits(value: float) -> int:
    return 3 if abs(value) < 10 else 1


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
