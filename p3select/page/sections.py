"""The page's sections: what a run folder says, in words, figures and the numbers behind them."""

from __future__ import annotations

import re
from contextlib import suppress
from html import escape
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from p3select import tradeoff
from p3select.errors import InputError, P3Error
from p3select.page import drawings, examples, facts, signatures, tables

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from p3select.dataset import Dataset
    from p3select.page.facts import Epoch, Step, Values
    from p3select.page.signatures import Signature
    from p3select.run import Run

BINS = 40
# On each side of the figure of before and after.
PLACES = 32
# Points of a map: rows drawn from all, and from each selection.
DRAWN_ALL, DRAWN_SELECTED = 2_000, 600
# Rows that are shown of each kind.
SHOWN = 5
# This share of the values at each end is counted in a histogram's outermost bars.
TAIL = 0.001
SPREAD = (10, 25, 50, 75, 90)
# Of a path that is shown in short.
PATH_PARTS = 3
UNITS = {
    "p3": "1 − the mean probability of an action: from 0, certain, to 1",
    "nll": "nats per token of the target: from 0, certain",
    "ifd": "perplexity of the target with its prompt ÷ without it: above 1 the prompt does not help",
    "el2n": "the norm of probabilities − one-hot, mean over the target's tokens: from 0, certain, to √2",
}
# Rows of which it is told what scoring less would have given.
TRADEOFF_ROWS = 5_000
_LESS = (
    "`p3select score --refresh 25%` scores rows with so many of the tokens and predicts the difficulty of the others. "
    "Here it is done over again on the scores that there are, as if the epochs up to the first, or the second, had "
    "been scored whole, and those after it in part. 0 % is to score nothing, and go on with the last scores."
)
NO_INDEX = "<p>No epoch has an index yet: <code>p3select select</code> makes one.</p>"
NO_VECTORS = "<p>The run folder has no embeddings: <code>p3select embed</code> makes them.</p>"


def name(run: Run) -> str:
    """The run folder's name, and that of the folder it is in."""
    return "/".join(run.path.resolve().parts[-2:])


def head(run: Run, dataset: Dataset, epochs: Sequence[Epoch], signs: Sequence[Signature]) -> str:
    """Name, one sentence, and the numbers to know."""
    first, last = epochs[0], epochs[-1]
    means = [float(np.nanmean(epoch.difficulty)) for epoch in (first, last)]
    chosen = facts.selected(epochs)
    ever = int(np.logical_or.reduce([epoch.picked for epoch in epochs]).sum())
    picked = [int(epoch.picked.sum()) for epoch in chosen]
    seen = [sign for sign in signs if sign.state == signatures.SEEN]
    planned = (
        f"of {chosen[-1].selection.metadata['epochs']} planned" if chosen and chosen[-1].selection else "none selected"
    )
    files = ", ".join(PurePath(path).name for path in dataset.paths[:3]) + (" …" if len(dataset.paths) > 3 else "")
    lead = f"{len(dataset):,} rows of {files}, scored in {len(epochs)} epoch{'s' * (len(epochs) > 1)}. "
    if len(epochs) > 1:
        lead += f"Mean difficulty went from {means[0]:.3f} to {means[1]:.3f}. "
    lead += f"Seen: {'; '.join(_lower(sign.name) for sign in seen)}." if seen else "No failure signature was seen."
    tiles = [
        ("Rows", f"{len(dataset):,}", f"{(~np.isnan(last.difficulty)).sum():,} with a difficulty"),
        ("Epochs scored", f"{len(epochs)}", planned),
        (
            "Selected",
            "… " * (len(picked) > 3) + " · ".join(f"{k:,}" for k in picked[-3:]) or "–",
            f"{ever:,} rows at least once",
        ),
        (
            "Mean difficulty",
            f"{means[-1]:.3f}",
            f"{means[0]:.3f} in epoch {first.number}" if len(epochs) > 1 else "all rows",
        ),
        ("Failure signatures", f"{len(seen)}", f"seen, of {len(signs)}"),
    ]
    return (
        f'<p class="eyebrow">p3select report</p><h1>{escape(name(run))}</h1>'
        f'<p class="lead">{escape(lead)}</p><dl class="tiles">'
        + "".join(f"<div><dt>{a}</dt><dd>{escape(b)}<small>{escape(c)}</small></dd></div>" for a, b, c in tiles)
        + "</dl>"
    )


def signs(found: Sequence[Signature]) -> str:
    """A box for each failure signature."""
    kinds = {signatures.SEEN: "seen", signatures.NOT_SEEN: "clear", signatures.UNKNOWN: "unknown"}
    boxes = [
        f'<article class="box {kinds[sign.state]}"><span class="state">{sign.state}</span><h3>{escape(sign.name)}</h3>'
        + "".join(f"<p>{escape(line)}</p>" for line in sign.found)
        + f'<p class="rule">Threshold: {escape(sign.threshold)}</p>'
        + f"<p{'' if sign.state == signatures.SEEN else ' class=rule'}><b>What to try:</b> {_options(sign.advice)}</p>"
        "</article>"
        for sign in found
    ]
    return f'<div class="pair">{"".join(boxes)}</div>'


def difficulty(epochs: Sequence[Epoch]) -> str:
    """The distribution in each epoch, with λ and the selection; and the means over epochs."""
    edges = _edges(np.concatenate([epoch.difficulty for epoch in epochs]))
    figures = []
    if len(epochs) > 1:
        series = [
            ("all rows", "bar", [float(np.nanmean(epoch.difficulty)) for epoch in epochs]),
            ("selected rows", "accent", [_mean(_known(epoch.difficulty[epoch.picked])) for epoch in epochs]),
            ("λ", "ink", [np.nan if epoch.lam is None else epoch.lam for epoch in epochs]),
        ]
        lines = [(epoch.number, *(one[2][place] for one in series)) for place, epoch in enumerate(epochs)]
        drawing = drawings.trend(
            "Over epochs: mean difficulty of all rows, of the selected rows, and λ. "
            + "; ".join(f"epoch {number}: {', '.join(map(_read, values))}" for number, *values in lines[:20]),
            [epoch.number for epoch in epochs],
            series,
        )
        note = "mean over all rows (grey) and over the selected rows (accent); λ dashed"
        figures.append(
            _figure("Over epochs", note, drawing, tables.html(("epoch", *(one[0] for one in series)), lines))
        )
    for epoch in epochs:
        known = _known(epoch.difficulty)
        # A bin ends at λ: what is above it is not eligible, and nothing else is.
        cut = edges if epoch.lam is None else np.unique([*edges, np.clip(epoch.lam, edges[0], edges[-1])])
        parts = {"all rows": known}
        if epoch.lam is not None:
            parts |= {"eligible": epoch.difficulty[epoch.eligible], "above λ": known[known > epoch.lam]}
        if epoch.selection is not None:
            parts["selected"] = _known(epoch.difficulty[epoch.picked])
        counts = {name: _counts(values, cut) for name, values in parts.items()}
        chosen = counts.get("selected")
        note = f"{_end(_policy(epoch))}; {len(known):,} rows"
        if epoch.selection is not None:
            meta = epoch.selection.metadata
            note += f", {meta['eligible']:,} eligible, {len(epoch.selection):,} selected by {meta['selector']}"
        drawing = drawings.mirrored(
            f"Difficulty in epoch {epoch.number}: all rows above the axis, the selected ones below. " + _about(parts),
            cut,
            _normal(counts["all rows"]),
            None if chosen is None else _normal(chosen),
            ("all rows", "selected"),
            mark=None if epoch.lam is None else (epoch.lam, f"λ = {epoch.lam:.3f}"),
        )
        figures.append(_figure(f"Epoch {epoch.number}", note, drawing, _spread_table(parts)))
    return f'<div class="grid">{"".join(figures)}</div>'


def change(epochs: Sequence[Epoch], steps: Sequence[Step], dataset: Dataset) -> str:
    """What became easier from epoch to epoch, and what did not."""
    usable = [step for step in steps if step.reason is None]
    notes = "".join(
        f'<p class="note">{escape(step.reason)}: left out.</p>' for step in steps if step.reason is not None
    )
    if not usable:
        return f"<p>Cannot be told: it needs two epochs whose scores can be compared.</p>{notes}"
    changes = [step.change("difficulty") for step in usable]
    edges = _edges(np.concatenate(changes))
    figures = []
    for step, moved in zip(usable, changes, strict=True):
        parts = {"all rows": moved, "trained on": moved[step.trained], "not trained on": moved[~step.trained]}
        parts = {name: values for name, values in parts.items() if len(values)}
        lines = [
            (
                name,
                len(values),
                f"{(values < 0).mean():.1%}",
                tables.signed(values.mean(), "+.4f"),
                *_percentiles(values),
            )
            for name, values in parts.items()
        ]
        above = "not trained on" if "not trained on" in parts else "trained on"
        below = parts.get("trained on") if above == "not trained on" else None
        drawing = drawings.mirrored(
            f"Change of difficulty from epoch {step.before.number} to {step.after.number}: {_about(parts)}",
            edges,
            _normal(_counts(parts[above], edges)),
            None if below is None else _normal(_counts(below, edges)),
            (above, "trained on"),
            zero=True,
        )
        title = f"Change, epoch {step.before.number} → {step.after.number}"
        table = tables.html(("rows", "number", "easier", "mean", *(f"{p} %" for p in SPREAD)), lines)
        note = f"{(moved < 0).mean():.0%} of {len(moved):,} rows became easier; left of the dashed line is easier"
        figures.append(_figure(title, note, drawing, table))
    whole = facts.step(usable[0].before, usable[-1].after, epochs)
    first, last = (epoch.difficulty[whole.rows] for epoch in (whole.before, whole.after))
    both = _edges(np.concatenate([first, last]), PLACES)
    joint = np.histogram2d(np.clip(first, *both[[0, -1]]), np.clip(last, *both[[0, -1]]), [both, both])[0]
    names = tuple(f"difficulty in epoch {one.number}" for one in (whole.before, whole.after))
    below_ = float((last < first).mean())
    drawing = drawings.density(
        f"{names[0]} to the right and {names[1]} upwards: {below_:.0%} of the rows are below the diagonal, easier now.",
        both,
        joint.astype(np.int64),
        (names[0], names[1]),
    )
    between = f"epoch {whole.before.number} → {whole.after.number}"
    figures.append(
        _figure(f"Before and after, {between}", "below the diagonal: easier now", drawing, _quarters(first, last))
    )
    moved = last - first
    # Of predicted rows there is no loss.
    measured = ~np.isnan(whole.before.nll + whole.after.nll)[whole.rows]
    order = np.argsort(moved, kind="stable")
    order = order[measured[order]]
    lists = []
    for title, places in (("Became easier most", order[:SHOWN]), ("Became harder most", order[::-1][:SHOWN])):
        places = places[moved[places] < 0] if "easier" in title else places[moved[places] > 0]
        lines = [
            (int(whole.rows[at]), _brief(dataset, int(whole.rows[at])), float(first[at]), float(last[at]),
             tables.signed(moved[at], "+.4f"), "yes" if whole.trained[at] else "no")
            for at in places
        ]  # fmt: skip
        table = tables.html(("row", "text", "before", "after", "change", "trained on"), lines)
        lists.append(f"<div><h3>{title}, {between}</h3>{table if lines else '<p>No row.</p>'}</div>")
    return f'<div class="grid">{"".join(figures)}</div>{notes}<div class="pair">{"".join(lists)}</div>'


def plane(epochs: Sequence[Epoch], x: NDArray[np.float32] | None) -> str:
    """The selections on a map of the embeddings."""
    chosen = facts.selected(epochs)
    if x is None or not chosen:
        return NO_VECTORS if x is None else NO_INDEX
    mean, axes, shares = facts.plane(x)
    rng = np.random.default_rng(0)
    background = _drawn(rng, np.arange(len(x)), DRAWN_ALL)
    picked = [_drawn(rng, np.flatnonzero(epoch.picked), DRAWN_SELECTED) for epoch in chosen]
    points = [(np.asarray(x[rows], np.float64) - mean) @ axes for rows in (background, *picked)]
    low, high = (edge(np.concatenate(points), axis=0) for edge in (np.min, np.max))
    figures, none = [], np.empty((0, 2))
    for number, (epoch, rows, own) in enumerate(zip(chosen, picked, points[1:], strict=True)):
        total = int(epoch.picked.sum())
        drawing = drawings.scatter(
            f"Map of the embeddings, epoch {epoch.number}: {len(rows):,} selected rows among {len(background):,}.",
            low,
            high,
            [("", points[0] if number == 0 else none), ("accent", own)],
            "map-all",
        )
        note = f"{'all ' if len(rows) == total else f'{len(rows):,} drawn of '}{total:,} selected rows (accent)"
        lines = [
            (name, len(those), *map(float, (*those.mean(axis=0), *those.std(axis=0))))
            for name, those in (("rows in the background", points[0]), ("selected", own))
        ]
        heads = ("rows", "drawn", "mean, axis 1", "mean, axis 2", "spread, axis 1", "spread, axis 2")
        figures.append(_figure(f"Epoch {epoch.number}", note, drawing, tables.html(heads, lines)))
    all_ = "all" if len(background) == len(x) else f"{len(background):,} drawn at random of"
    return (
        f'<p class="what">Grey: {all_} {len(x):,} rows. The two axes are the first principal components of '
        f"{min(len(x), facts.PROJECTED_ROWS):,} rows{'' if len(x) <= facts.PROJECTED_ROWS else ' drawn at random'}; "
        f"they hold {shares[0]:.1%} and {shares[1]:.1%} of the variance, so rows that are near here may be far "
        f'apart in the other {x.shape[1] - 2:,} dimensions.</p><div class="grid">{"".join(figures)}</div>'
    )


def coverage(epochs: Sequence[Epoch], x: NDArray[np.float32] | None) -> str:
    """How much of the data the selections reach, and how far they are the same."""
    chosen = facts.selected(epochs)
    if not chosen:
        return NO_INDEX
    figures, masks = [], [epoch.picked for epoch in chosen]
    union = np.logical_or.accumulate(masks)
    if x is not None:
        cell = facts.cells(x)
        sizes = np.unique(cell, return_counts=True)[1]
        lines: list[tuple[str, float, float | None, str]] = []
        for name, mask in [
            *((f"epoch {e.number}", m) for e, m in zip(chosen, masks, strict=True)),
            ("all epochs", union[-1]),
        ]:
            share = len(np.unique(cell[mask])) / len(sizes)
            lines.append((name, share, facts.expected_cells(sizes, int(mask.sum())) / len(sizes), f"{share:.0%}"))
        drawing = drawings.bars("Share of cells with a selected row: " + _listed(lines), lines, 1.0)
        note = f"of {len(sizes)} cells (spherical k-means of the embeddings); tick: a uniform draw of as many rows"
        table = tables.html(
            ("", "cells reached", "a uniform draw, expected"), [(a, f"{b:.1%}", f"{c:.1%}") for a, b, c, _ in lines]
        )
        figures.append(_figure("Cells with a selected row", note, drawing, table))
    reached = [
        ("to epoch " + str(e.number), float(mask.mean()), None, f"{mask.mean():.0%}")
        for e, mask in zip(chosen, union, strict=True)
    ]
    table = tables.html(
        ("", "rows", "share"), [(one[0], int(mask.sum()), one[3]) for one, mask in zip(reached, union, strict=True)]
    )
    drawing = drawings.bars("Share of all rows that were selected at least once: " + _listed(reached), reached, 1.0)
    figures.append(_figure("Rows selected at least once", f"of {len(union[0]):,} rows", drawing, table))
    if len(chosen) > 1:
        names = [str(epoch.number) for epoch in chosen]
        values = np.array([[(a & b).sum() / max((a | b).sum(), 1) for b in masks] for a in masks])
        pairs = "; ".join(f"{names[i]} and {names[i + 1]}: {values[i, i + 1]:.0%}" for i in range(len(names) - 1))
        drawing = drawings.matrix(f"Overlap of the selections of each two epochs (Jaccard): {pairs}", names, values)
        table = tables.html(
            ("epoch", *names), [(name, *(f"{v:.1%}" for v in line)) for name, line in zip(names, values, strict=True)]
        )
        figures.append(_figure("Overlap between epochs", "rows in both ÷ rows in either (Jaccard)", drawing, table))
        times = np.bincount(np.sum(masks, axis=0), minlength=len(masks) + 1)
        counted = [
            ({1: "once", 2: "twice"}.get(n, f"{n} times"), float(k), None, f"{k:,}") for n, k in enumerate(times) if n
        ]
        table = tables.html(("selected", "rows"), [("never", int(times[0])), *((a, int(b)) for a, b, _, _ in counted)])
        drawing = drawings.bars("How often rows were selected: " + _listed(counted), counted[:20])
        figures.append(_figure("How often a row was selected", f"{times[0]:,} rows never", drawing, table))
    return f'<div class="grid">{"".join(figures)}</div>'


def shift(epochs: Sequence[Epoch], groups: Mapping[str, tuple[list[str], NDArray[np.int64]]]) -> str:
    """Whether the selected rows are longer than all, or of other sources."""
    chosen = facts.selected(epochs)
    if not chosen:
        return NO_INDEX
    last = chosen[-1]
    parts = {"all rows": last.tokens[last.tokens > 0]}
    parts |= {f"epoch {epoch.number}": epoch.tokens[epoch.picked] for epoch in chosen}
    spreads = [
        (name, _percentiles(values), "accent" if number else "bar")
        for number, (name, values) in enumerate(parts.items())
    ]
    drawing = drawings.intervals(
        "Tokens of the target: " + "; ".join(f"{name}: median {at[2]:.0f}" for name, at, _ in spreads),
        spreads,
    )
    note = "scored tokens of a row: median, middle half, 10th to 90th percentile"
    lines = [
        (name, len(values), f"{values.mean():.1f}", *(f"{value:.0f}" for value in _percentiles(values)))
        for name, values in parts.items()
    ]
    table = tables.html(("", "rows", "mean", *(f"{p} %" for p in SPREAD)), lines)
    figures = [_figure("Length", note, drawing, table)]
    for column, (names, group) in groups.items():
        base = np.bincount(group, minlength=len(names)) / len(group)
        shares = [
            np.bincount(group[epoch.picked], minlength=len(names)) / max(epoch.picked.sum(), 1) for epoch in chosen
        ]
        lines = [(name, f"{base[i]:.1%}", *(f"{one[i]:.1%}" for one in shares)) for i, name in enumerate(names)]
        table = tables.html((column, "all rows", *(f"epoch {epoch.number}" for epoch in chosen)), lines)
        for epoch, share in zip(chosen, shares, strict=True):
            shown = [(name, float(share[i]), float(base[i]), f"{share[i]:.0%}") for i, name in enumerate(names)]
            moved = 0.5 * np.abs(share - base).sum()
            drawing = drawings.bars(f"Selected rows of epoch {epoch.number} by {column}: " + _listed(shown), shown)
            note = f"share of the selected rows, tick: of all rows; {moved:.0%} of the selection is out of proportion"
            figures.append(_figure(f"{column}, epoch {epoch.number}", note, drawing, table))
    return f'<div class="grid">{"".join(figures)}</div>'


def cost(epochs: Sequence[Epoch], costs: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> str:
    """Where time and tokens went, as far as the run folder has it."""
    times = facts.times(epochs, costs)
    # Where nothing can be compared there are no shares either.
    seconds = times.seconds or {name: sum(one["seconds"] for one in by.values()) for name, by in costs.items()}
    total = sum(seconds.values())
    known = [
        (name, seconds[name], None, f"{seconds[name] / total:.0%}" if times.epochs else f"{seconds[name]:,.1f} s")
        for name in facts.STEPS
        if seconds.get(name)
    ]
    lines, share = [], []
    for epoch in epochs:
        scored, picked = (int(epoch.tokens[mask].sum()) for mask in (~np.isnan(epoch.nll), epoch.picked))
        own = [costs.get(name, {}).get(epoch.number) for name in ("score", "select", "train")]
        said = ["not recorded" if one is None else f"{one['seconds']:,.1f} s" for one in own]
        if epoch.source != epoch.number:
            said[0] = f"that of epoch {epoch.source}"
        lines.append((epoch.number, scored, picked, *said))
        if scored and picked:
            share.append((f"epoch {epoch.number}", picked / scored, None, f"{picked / scored:.0%}"))
    heads = ("epoch", "target tokens scored", "target tokens selected", "score", "select", "train")
    which = f"of {facts.listed(times.epochs)}" if times.epochs else "all that is recorded, not of the same epochs"
    compared = [f"Time is compared over {facts.listed(times.epochs)}."] if times.epochs else []
    note = " ".join([*compared, *times.notes, "Embedding is done once for a run."])
    note += f" It took {costs['embed'][0]['seconds']:,.1f} s." if "embed" in costs else ""
    tokens = tables.html(heads, lines)
    figures = []
    if known:
        drawing = drawings.bars("Seconds of each step: " + _listed(known), known)
        columns = ("step", "seconds", "share") if times.epochs else ("step", "seconds")
        table = tables.html(columns, [(a, f"{b:,.1f}", d) for a, b, _, d in known])
        figures.append(_figure("Time", f"{total:,.0f} s, {which}", drawing, table))
    if share:
        drawing = drawings.bars("Tokens selected for training, of those scored: " + _listed(share), share, 1.0)
        figures.append(
            _figure("Tokens", "target tokens selected for training ÷ scored to choose them", drawing, tokens)
        )
    return f'<p class="what">{escape(note)}</p><div class="grid">{"".join(figures)}</div><h3>By epoch</h3>{tokens}'


def less(run: Run, epochs: Sequence[Epoch], kind: str) -> str:
    """What scoring a part of the rows (``score --refresh``) gave, and would have given on the epochs scored whole."""
    done = facts.refreshed(run, epochs)
    parts = []
    if done:
        heads = ("epoch", "tokens scored", "rows predicted", "held back: error", "held back: ρ", "right side of λ")
        parts.append("<h3>Scored in part</h3>" + tables.html(heads, done))
    parts.append("<h3>What scoring less would have given</h3>")
    if kind != "p3":
        return "".join(parts) + f"<p>Only p3 can be predicted, and this run goes by {escape(kind)}.</p>"
    try:
        found = tradeoff.tradeoff(run, rows=TRADEOFF_ROWS)
    except InputError as error:
        return "".join(parts) + f"<p>It cannot be told: {escape(str(error))}.</p>"
    parts.append(
        f'<p class="what">{_options(_LESS)} Of {found["rows"]:,} rows, epochs 1 to {found["epochs"]}; shares are of '
        f"the {escape(found['cost'])}.</p>"
    )
    results, figures = found["results"], []
    later = sorted({one["epoch"] for one in results})
    for key, title, what in (
        ("spearman", "Order of all rows", "Spearman's ρ with the full re-score"),
        ("jaccard", "Eligible rows", "Jaccard index with those of the full re-score"),
    ):
        known = {(one["whole"], one["share"], one["epoch"]): one[key] for one in results if one[key] is not None}
        if not known:
            figures.append(f"<p>{escape(title)}: no index says where λ is.</p>")
            continue
        wholes, shares = (sorted({one[place] for one in known}) for place in (0, 1))
        series = [
            (f"whole up to epoch {whole}", color, [_mean(_of(known, whole, share)) for share in shares])
            for whole, color in zip(wholes, ("bar", "accent"), strict=False)
        ]
        about = (
            f"{share:.0%}: " + ", ".join(_read(line[place]) for *_, line in series)
            for place, share in enumerate(shares)
        )
        colors = " and ".join(f"{name} ({'grey' if color == 'bar' else 'accent'})" for name, color, _ in series)
        note = f"{what}, by % of the tokens scored, mean of the epochs after those scored {colors}"
        drawing = drawings.trend(f"{note}. {'; '.join(about)}.", [round(100 * share) for share in shares], series)
        lines = [
            (whole, f"{share:.0%}", *(known.get((whole, share, epoch), np.nan) for epoch in later))
            for whole in wholes
            for share in shares
            if len(_of(known, whole, share))
        ]
        table = tables.html(("whole up to epoch", "tokens scored", *(f"epoch {epoch}" for epoch in later)), lines)
        figures.append(_figure(title, note, drawing, table))
    parts.append(f'<div class="grid">{"".join(figures)}</div>')
    none: dict[float, list[Mapping[str, Any]]] = {}
    for one in results:
        if not one["draws"]:
            none.setdefault(one["share"], []).append(one)
    parts += [
        f'<p class="note">{share:.0%} of the tokens is left out of {facts.listed(sorted({e["epoch"] for e in ones}))} '
        f"and what follows from it: {escape(ones[0]['failed'])}.</p>"
        for share, ones in none.items()
    ]
    return "".join(parts)


def _of(known: Mapping[tuple[int, float, int], float], whole: int, share: float) -> Values:
    """The values of all epochs."""
    return np.array([value for (one, other, _), value in known.items() if (one, other) == (whole, share)])


def rows(
    run: Run,
    epochs: Sequence[Epoch],
    dataset: Dataset,
    x: NDArray[np.float32] | None,
    tokenizer: str | Path | None,
) -> str:
    """The hardest, the easiest and the most atypical rows of the last epoch, with their text."""
    epoch = epochs[-1]
    known = np.flatnonzero(~np.isnan(epoch.difficulty + epoch.nll))  # of predicted rows there are no actions to show
    order = known[np.argsort(epoch.difficulty[known], kind="stable")]
    kinds = {"Hardest": order[::-1][:SHOWN], "Easiest": order[:SHOWN]}
    far: Values | None = None
    if x is not None:
        far = facts.atypicality(x)
        kinds["Most atypical"] = known[np.argsort(-far[known], kind="stable")][:SHOWN]
    values = facts.actions(run, epoch.source, [int(row) for some in kinds.values() for row in some])
    loaded = None if tokenizer is None else examples.tokenizer(tokenizer, epoch.settings, dataset.rows(0, 1)[0])
    if loaded is None and epoch.settings["actions"] == "token" and epoch.policy and Path(epoch.policy).exists():
        # Of tokens the text says nothing. A policy that is there has its tokenizer, unless it was replaced since.
        with suppress(P3Error):
            loaded = examples.tokenizer(epoch.policy, epoch.settings, dataset.rows(0, 1)[0])
    parts = []
    for name, some in kinds.items():
        cards: list[str] = []
        for row in some.tolist():
            about = (
                [f"row {row}"] if dataset.ids is None else [f"row {row}", str(dataset.ids[row].as_py())[: facts.NAME]]
            )
            about += [f"difficulty {epoch.difficulty[row]:.3f}"]
            about += (
                [f"mean cosine {tables.signed(1 - far[row], '.3f')}"]
                if far is not None and name == "Most atypical"
                else []
            )
            times = [one.number for one in epochs if one.picked[row]]
            about += [f"selected in epoch{'s' * (len(times) > 1)} {', '.join(map(str, times))}"] if times else []
            line = dataset.rows(row, row + 1)[0]
            cards.append(examples.row(line, epoch.settings, values[row], loaded, about, opened=not cards))
        why = " (lowest mean cosine of the embedding to all rows)" if name == "Most atypical" else ""
        parts.append(f"<h3>{name}{why}</h3>{''.join(cards)}")
    shades = "".join(f'<i class="h{shade}"></i>' for shade in range(examples.SHADES))
    return (
        f'<p class="what">Under the policy of epoch {epoch.number}. Each action is shaded by how uncertain the policy '
        f'was of it, by the mean probability of its tokens: certain <span class="legend">{shades}</span> uncertain. '
        f"Actions are cut by the rule <code>{escape(epoch.settings['actions'])}</code>.</p>" + "".join(parts)
        + ("" if x is not None else f"<h3>Most atypical</h3>{NO_VECTORS}")
    )  # fmt: skip


def sources(epochs: Sequence[Epoch], dataset: Dataset, notes: Sequence[str]) -> str:
    """What was read, so that the figures can be made again."""
    names = sorted({name for epoch in epochs for name in epoch.settings} - {"dataset"})
    lines = [("policy", *(_policy(epoch) for epoch in epochs))]
    lines += [("rows", *(", ".join(f"{k:,} {s}" for s, k in sorted(epoch.status.items())) for epoch in epochs))]
    lines += [(name, *(_setting(epoch.settings.get(name)) for epoch in epochs)) for name in names]
    heads = ("scores", *(f"epoch {epoch.number}" for epoch in epochs))
    chosen = facts.selected(epochs)
    metas = [epoch.selection.metadata for epoch in chosen if epoch.selection is not None]
    parts = [f'<p class="note">{escape(note)}</p>' for note in notes]
    parts += [f"<p>Dataset fingerprint <code>{dataset.fingerprint[:16]}</code>, {len(dataset):,} rows.</p>"]
    parts += [f"<details><summary>Scores</summary>{tables.html(heads, lines)}</details>"]
    if metas:
        own = sorted({name for meta in metas for name in meta} - {"scores", "epoch"})
        lines = [(name, *(_setting(meta.get(name)) for meta in metas)) for name in own]
        heads = ("index", *(f"epoch {epoch.number}" for epoch in chosen))
        parts.append(f"<details><summary>Selections</summary>{tables.html(heads, lines)}</details>")
    return "".join(parts)


def _figure(title: str, note: str, drawing: str, table: str) -> str:
    """A figure, its caption, and the numbers behind it."""
    return (
        f"<figure><figcaption><b>{escape(title)}</b><span>{escape(note)}</span></figcaption>{drawing}"
        f"<details><summary>Numbers</summary>{table}</details></figure>"
    )


def _edges(values: Values, bins: int = BINS) -> Values:
    low, high = np.nanquantile(values, [TAIL, 1 - TAIL])
    if low == high:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, bins + 1)


def _counts(values: Values, edges: Values) -> Values:
    """How many are in each bin, (low, high]; the outermost hold what is beyond, too."""
    places = np.clip(np.searchsorted(edges, values, "left") - 1, 0, len(edges) - 2)
    return np.bincount(places, minlength=len(edges) - 1).astype(np.float64)


def _normal(counts: Values) -> Values:
    return counts / max(float(counts.sum()), 1.0)


def _percentiles(values: NDArray[Any]) -> list[float]:
    return [float(value) for value in np.percentile(values, SPREAD)]


def _spread_table(parts: Mapping[str, Values]) -> str:
    lines = [(name, len(v), float(v.mean()), *_percentiles(v)) for name, v in parts.items() if len(v)]
    return tables.html(("", "rows", "mean", *(f"{p} %" for p in SPREAD)), lines)


def _quarters(first: Values, last: Values) -> str:
    """What became of each quarter of the rows."""
    quarter = np.searchsorted(np.quantile(first, [0.25, 0.5, 0.75]), first)
    names = ("easiest quarter before", "second", "third", "hardest quarter before")
    lines = [
        (
            name,
            int(own.sum()),
            float(first[own].mean()),
            float(last[own].mean()),
            f"{(last[own] < first[own]).mean():.0%}",
        )
        for number, name in enumerate(names)
        for own in [quarter == number]
        if own.any()
    ]
    return tables.html(("", "rows", "mean before", "mean after", "easier"), lines)


def _about(parts: Mapping[str, Values]) -> str:
    return "; ".join(f"{name}: {len(v):,} rows, mean {_read(v.mean())}" for name, v in parts.items() if len(v)) + "."


def _listed(lines: Sequence[tuple[str, float, float | None, str]]) -> str:
    return ", ".join(f"{name} {text}" for name, _, _, text in lines[:20]) + "."


def _drawn(rng: np.random.Generator, from_: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    return from_ if len(from_) <= count else np.sort(rng.choice(from_, count, replace=False))


def _brief(dataset: Dataset, row: int) -> str:
    text = " ".join(examples.beginning(dataset.rows(row, row + 1)[0]).split())
    return text[:90] + ("…" if len(text) > 90 else "")


def _known(values: Values) -> Values:
    return values[~np.isnan(values)]


def _mean(values: Values) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _read(value: float) -> str:
    """A number in the text that says what a figure shows; – where there is none."""
    return "–" if np.isnan(value) else tables.signed(value, ".3f")


def _policy(epoch: Epoch) -> str:
    return epoch.policy or str(epoch.settings.get("scorer", "a scorer")) + " " + _setting(epoch.settings.get("model"))


def _end(path: str) -> str:
    """The last parts of a path, by which policies of one training are told apart; the whole is among what was read."""
    parts = path.split("/")
    return path if len(parts) <= PATH_PARTS else "…/" + "/".join(parts[-PATH_PARTS:])


def _setting(value: Any) -> str:
    text = "–" if value is None else str(value)
    return text[:12] + "…" if len(text) > 48 else text


def _options(text: str) -> str:
    """Text with its options of commands as code."""
    return re.sub(r"`(.+?)`", r"<code>\1</code>", escape(text))


def _lower(name: str) -> str:
    return name[0].lower() + name[1:]
