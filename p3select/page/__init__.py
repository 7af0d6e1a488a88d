"""The report: a run folder → one HTML page, for people who would rather look than read.

The page is one file. It loads nothing, runs no script and has no time stamp: a run gives the same bytes again. Its size
does not grow with the rows: it has histograms, drawn points and a few rows' texts. Text of the data is escaped.
"""

from __future__ import annotations

from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from p3select.errors import InputError
from p3select.page import facts, sections, signatures
from p3select.run import Run, write_whole

if TYPE_CHECKING:
    from collections.abc import Sequence

# Not even what has slipped through the escaping could run or load anything.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def report(
    run: Run | str | Path,
    *,
    out: str | Path,
    columns: Sequence[str] | None = None,
    tokenizer: str | Path | None = None,
    overhead: float = signatures.OVERHEAD,
) -> dict[str, Any]:
    """Draw a run: difficulties, selections, coverage, shift, cost, rows, and signs that something goes wrong.

    Args:
        run: The run folder, with the scores of at least one epoch.
        out: The HTML file to write.
        columns: Columns of the data by whose values selections are compared with all rows; None for those of
            ``facts.COLUMNS`` that the data have.
        tokenizer: The policy's tokenizer (a folder, a GGUF file or a Hugging Face id), by which actions are found in
            the text whatever their rule and the chat template; None for what the text alone allows.
        overhead: The share of choosing (score, embed, select) in the whole above which the page warns, 0 to 1.

    Returns:
        ``report`` (the path), ``bytes``, ``epochs``, each failure signature with ``seen``, ``not seen`` or ``cannot be
        told``, and ``notes``.

    Raises:
        InputError: No such run folder, no epoch scored, no such column, or ``out`` is a folder.
        MismatchError: The data changed since they were scored, or the tokenizer is not that of the scores.
    """
    if not 0 < overhead < 1:
        raise InputError(f"overhead {overhead}: a share between 0 and 1")
    out = Path(out)
    if out.is_dir():
        raise InputError(f"{out}: a folder; give the HTML file to write")
    run = run if isinstance(run, Run) else Run(run)
    dataset = run.dataset()
    epochs, kind, notes = facts.epochs(run, len(dataset))
    empty = [np.isnan(epoch.difficulty).all() for epoch in epochs]
    notes += [f"epoch {one.number}: no row has a difficulty" for one, none in zip(epochs, empty, strict=True) if none]
    scored = [one for one, none in zip(epochs, empty, strict=True) if not none]
    if not scored:
        raise InputError(f"{run.path}: {notes[0]}; see the column status of the scores")
    steps = facts.steps(scored)
    costs = facts.costs(run, scored)
    signs = signatures.all_of(scored, steps, costs, overhead)
    x = facts.vectors(run)
    parts = (
        ("signs", "Failure signatures", "What goes wrong most often when data are chosen anew each epoch.",
         sections.signs(signs)),
        ("difficulty", "Difficulty", f"Of each row under the policy that enters the epoch ({sections.UNITS[kind]}). "
         "Up to λ rows are eligible; paler bars are above it.", sections.difficulty(scored)),
        ("change", "What became easier", "The same rows under the policies of two epochs, and which of them were "
         "trained on in between.", sections.change(scored, steps, dataset)),
        ("map", "Where the selections lie", "", sections.plane(scored, x)),
        ("coverage", "Coverage and overlap", "How much of the data the selections reach, and how far they are the "
         "same rows.", sections.coverage(scored, x)),
        ("shift", "Length and source", "Whether the selected rows are longer than all, or of other kinds.",
         sections.shift(scored, facts.columns(dataset, columns))),
        ("cost", "Cost", "What choosing took, beside training.",
         sections.cost(scored, costs) + sections.less(run, scored, kind)),
        ("rows", "Rows to look at", "", sections.rows(run, scored, dataset, x, tokenizer)),
        ("sources", "What was read", "", sections.sources(scored, dataset, notes)),
    )  # fmt: skip
    text = _page(sections.name(run), sections.head(run, dataset, scored, signs), parts)
    write_whole(out, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return {
        "report": str(out),
        "bytes": len(text.encode()),
        "epochs": len(scored),
        **{sign.name: sign.state for sign in signs},
        "notes": notes,
    }


def _page(name: str, head: str, parts: Sequence[tuple[str, str, str, str]]) -> str:
    style = files(__package__).joinpath("page.css").read_text(encoding="utf-8")
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title, _, _ in parts)
    body = "\n".join(
        f'<section id="{key}"><h2>{title}</h2>{_lead(about)}{content}</section>' for key, title, about, content in parts
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(name)} · p3select report</title>\n'
        f'<style>\n{style}</style></head>\n<body><header class="top">{head}'
        f'<nav aria-label="Sections">{links}</nav></header>\n<main>\n{body}\n</main>\n'
        "<footer>Made by p3select from the run folder. The page loads nothing and runs no script.</footer>"
        "</body></html>\n"
    )


def _lead(about: str) -> str:
    return f'<p class="what">{escape(about)}</p>' if about else ""
