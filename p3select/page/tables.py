"""Tables of a page, as HTML."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

# Characters of a text that may stand on one line.
LONG = 48


def html(head: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    """A table; whatever is in it is escaped.

    Args:
        head: Names of the columns.
        lines: Their values, NaN where there is none; numbers stand to the right, and long texts are broken into lines.
            The first of each names its line.
    """
    top = "".join(f'<th scope="col"{_side(lines, place)}>{escape(name)}</th>' for place, name in enumerate(head))
    body = "".join(
        f'<tr><th scope="row"{_side(lines, 0)}>{_cell(line[0])}</th>'
        + "".join(f"<td{_side(lines, place)}>{_cell(line[place])}</td>" for place in range(1, len(head)))
        + "</tr>"
        for line in lines
    )
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def signed(value: float, form: str = "+.1%") -> str:
    """A number with its sign, a minus for people."""
    return f"{value:{form}}".replace("-", "−")


def _side(lines: Sequence[Sequence[Any]], place: int) -> str:
    values = [line[place] for line in lines]
    if values and all(isinstance(value, int | float) for value in values):
        return ' class="num"'
    return ' class="long"' if any(len(str(value)) > LONG for value in values) else ""


def _cell(value: Any) -> str:
    if not isinstance(value, int | float):
        return escape(str(value))
    if math.isnan(value):
        return "–"
    return signed(value, ".4f" if isinstance(value, float) else ",")
