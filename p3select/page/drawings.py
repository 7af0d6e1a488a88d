"""Figures as SVG: strings, drawn by the page's own classes, so that they follow its colours, light or dark.

All have one width in their own units, near the width at which they are shown, so that their text is as large as the
page's.
"""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from p3select.page.tables import signed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Values = NDArray[np.float64]

WIDTH = 340
_LEFT, _RIGHT = 10, 10
# Points of a layer above which they are drawn smaller.
DENSE = 250


def mirrored(
    label: str,
    edges: Values,
    up: Values,
    down: Values | None,
    names: tuple[str, str],
    *,
    mark: tuple[float, str] | None = None,
    zero: bool = False,
) -> str:
    """Two histograms over one axis, one upwards and one downwards, each to its own peak.

    Args:
        label: What is to be seen, in a sentence.
        edges: (b + 1,) of the bins.
        up: (b,) shares.
        down: (b,) shares; None for nothing below.
        names: Of what is above and what is below.
        mark: A place on the axis and its name; bins from there on are pale.
        zero: Draw a line at 0.
    """
    top, middle, bottom, height = 34.0, 128.0, 194.0, 236.0
    at = _scale(edges[0], edges[-1], _LEFT, WIDTH - _RIGHT)
    parts = []
    for values, name, color, base, end in (
        (up, names[0], "bar", middle - 0.5, top),
        (down, names[1], "accent", middle + 0.5, bottom),
    ):
        if values is None:
            continue
        peak = max(float(values.max()), 1e-12)
        for low, high, value in zip(edges[:-1], edges[1:], values, strict=True):
            if value:
                between = f"{signed(low, '.3g')} to {signed(high, '.3g')}"
                size = abs(end - base) * value / peak
                y = base - size if end < base else base
                pale = color == "bar" and mark is not None and low >= mark[0]
                parts.append(
                    f'<rect class="{"pale" if pale else color}" x="{_n(at(low) + 0.3)}" y="{_n(y)}" '
                    f'width="{_n(max(at(high) - at(low) - 0.6, 0.5))}" height="{_n(size)}">'
                    f"<title>{between}: {value:.1%} of {escape(name)}</title></rect>"
                )
        where = 11 if end < base else bottom + 16
        parts.append(_text(_LEFT, where, f"{name}, up to {_percent(peak)}", "soft" if color == "bar" else "hot"))
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{middle}" y2="{middle}"/>')
    if zero and edges[0] < 0 < edges[-1]:
        parts.append(f'<line class="dash" x1="{_n(at(0))}" x2="{_n(at(0))}" y1="{top}" y2="{bottom}"/>')
    if mark is not None:
        x = at(min(max(mark[0], edges[0]), edges[-1]))
        parts.append(f'<line class="mark" x1="{_n(x)}" x2="{_n(x)}" y1="{top - 4}" y2="{bottom}"/>')
        parts.append(_text(min(max(x, 44), WIDTH - 44), top - 8, mark[1], "strong", "middle"))
    for tick, name in ticks(edges[0], edges[-1]):
        parts.append(
            f'<line class="axis" x1="{_n(at(tick))}" x2="{_n(at(tick))}" y1="{bottom + 22}" y2="{bottom + 26}"/>'
        )
        parts.append(_text(at(tick), height - 4, name, "soft", "middle"))
    return _svg(label, height, parts)


def trend(label: str, places: Sequence[int], series: Sequence[tuple[str, str, Sequence[float]]]) -> str:
    """Lines over epochs; NaN leaves a gap.

    Args:
        label: What is to be seen.
        places: (e,) numbers of the epochs.
        series: For each line its name, its class, and its values (e,).
    """
    top, bottom, height, left = 14.0, 160.0, 184.0, 40.0
    values = np.concatenate([np.asarray(one[2], float) for one in series])
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    pad = (high - low or abs(high) or 1.0) * 0.12
    y = _scale(low - pad, high + pad, bottom, top)
    x = _scale(places[0], places[-1], left + 16, WIDTH - _RIGHT - 16)
    parts = []
    for tick, name in ticks(low - pad, high + pad):
        parts.append(f'<line class="guide" x1="{left}" x2="{WIDTH - _RIGHT}" y1="{_n(y(tick))}" y2="{_n(y(tick))}"/>')
        parts.append(_text(left - 6, y(tick) + 4, name, "soft", "end"))
    every = math.ceil(len(places) / 10)
    parts += [_text(x(place), height - 6, str(place), "soft", "middle") for place in places[::every]]
    for name, color, line in series:
        points = [(x(place), y(value)) for place, value in zip(places, line, strict=True) if not math.isnan(value)]
        path = "M" + "L".join(f"{_n(a)} {_n(b)}" for a, b in points)
        parts.append(f'<path class="line {color}" d="{path}"><title>{escape(name)}</title></path>' if points else "")
        parts += [f'<circle class="dot {color}" cx="{_n(a)}" cy="{_n(b)}" r="3.5"/>' for a, b in points]
    return _svg(label, height, parts)


def density(label: str, edges: Values, counts: NDArray[np.int64], names: tuple[str, str]) -> str:
    """How many rows are at each pair of values, the diagonal drawn in.

    Args:
        label: What is to be seen.
        edges: (b + 1,) of both axes.
        counts: (b, b), the first axis to the right and the second upwards.
        names: Of the axes.
    """
    left, top, bottom, height = 58.0, 6.0, 230.0, 264.0
    x, y = _scale(edges[0], edges[-1], left, left + bottom - top), _scale(edges[0], edges[-1], bottom, top)
    size = (bottom - top) / (len(edges) - 1)
    peak = max(int(counts.max()), 1)
    parts = [f'<rect class="frame" x="{left}" y="{top}" width="{bottom - top}" height="{bottom - top}"/>']
    for i, j in zip(*np.nonzero(counts), strict=True):
        parts.append(
            f'<rect class="accent" x="{_n(left + i * size)}" y="{_n(bottom - (j + 1) * size)}" width="{_n(size)}" '
            f'height="{_n(size)}" fill-opacity="{_n(0.12 + 0.88 * math.sqrt(counts[i, j] / peak), 2)}">'
            f"<title>{counts[i, j]:,} rows</title></rect>"
        )
    parts.append(f'<path class="dash" d="M{left} {bottom}L{left + bottom - top} {top}"/>')
    for tick, name in ticks(edges[0], edges[-1]):
        parts.append(_text(x(tick), bottom + 14, name, "soft", "middle"))
        parts.append(_text(left - 5, y(tick) + 4, name, "soft", "end"))
    parts.append(_text(left + (bottom - top) / 2, height - 4, names[0], "soft", "middle"))
    parts.append(
        f'<text class="soft" text-anchor="middle" transform="translate(12 {_n((top + bottom) / 2)}) rotate(-90)">'
        f"{escape(names[1])}</text>"
    )
    return _svg(label, height, parts)


def scatter(label: str, low: Values, high: Values, layers: Sequence[tuple[str, Values]], key: str | None = None) -> str:
    """Points on a plane.

    Args:
        label: What is to be seen.
        low: (2,) the lower corner.
        high: (2,) the upper corner.
        layers: For each its class and its points (m, 2).
        key: A name for the first layer. The first figure with a key draws it; ones that are given no points for it
            show it again.
    """
    height = 240.0
    x, y = _scale(low[0], high[0], 8, WIDTH - 8), _scale(low[1], high[1], height - 8, 8)
    parts = [f'<rect class="frame" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="6"/>']
    for number, (color, points) in enumerate(layers):
        if number == 0 and key is not None and not len(points):
            parts.append(f'<use href="#{key}"/>')
            continue
        path = "".join(f"M{_n(x(a))} {_n(y(b))}h0" for a, b in points)
        name = f' id="{key}"' if number == 0 and key is not None else ""
        dense = " dense" if len(points) > DENSE else ""
        parts.append(f'<path{name} class="points{dense} {color}" d="{path}"/>')
    return _svg(label, height, parts)


def bars(label: str, lines: Sequence[tuple[str, float, float | None, str]], limit: float | None = None) -> str:
    """Horizontal bars with their values at the end.

    Args:
        label: What is to be seen.
        lines: For each bar its name, its length, a length to compare it with (a tick across it) or None, and what is
            written behind it.
        limit: The length of a full line; None for the largest.
    """
    left, right, step = 104.0, 62.0, 24.0
    limit = limit or max((max(value, mark or 0.0) for _, value, mark, _ in lines), default=0.0) or 1.0
    x = _scale(0.0, limit, left, WIDTH - right)
    parts = []
    for number, (name, value, mark, text) in enumerate(lines):
        y = 4 + number * step
        parts.append(_text(left - 8, y + 12, name if len(name) <= 15 else name[:13] + "…", "", "end", name))
        parts.append(
            f'<rect class="track" x="{left}" y="{y + 2}" width="{_n(WIDTH - right - left)}" height="13" rx="2"/>'
        )
        parts.append(f'<rect class="accent" x="{left}" y="{y + 2}" width="{_n(x(value) - left)}" height="13" rx="2"/>')
        if mark is not None:
            parts.append(f'<line class="mark" x1="{_n(x(mark))}" x2="{_n(x(mark))}" y1="{y - 1}" y2="{y + 18}"/>')
        parts.append(_text(WIDTH - right + 6, y + 12, text, "soft"))
    return _svg(label, 4 + len(lines) * step, parts)


def intervals(label: str, lines: Sequence[tuple[str, Sequence[float], str]]) -> str:
    """Spreads: the 10th to the 90th percentile as a line, the middle half as a bar, the median as a tick.

    Args:
        label: What is to be seen.
        lines: For each its name, the percentiles 10, 25, 50, 75, 90, and its class.
    """
    left, step, bottom = 104.0, 26.0, 24.0
    height = len(lines) * step + bottom
    limit = max((line[1][-1] for line in lines), default=1.0)
    x = _scale(0.0, limit, left, WIDTH - 14)
    parts = []
    for tick, name in ticks(0.0, limit):
        parts.append(f'<line class="guide" x1="{_n(x(tick))}" x2="{_n(x(tick))}" y1="0" y2="{height - bottom}"/>')
        parts.append(_text(x(tick), height - 6, name, "soft", "middle"))
    for number, (name, at, color) in enumerate(lines):
        y = number * step + step / 2
        a, b, c, d, e = (x(value) for value in at)
        parts.append(_text(left - 8, y + 4, name, "", "end"))
        parts.append(f'<line class="line {color}" x1="{_n(a)}" x2="{_n(e)}" y1="{y}" y2="{y}"/>')
        parts.append(f'<rect class="{color}" x="{_n(b)}" y="{y - 6}" width="{_n(max(d - b, 1))}" height="12" rx="2"/>')
        parts.append(f'<line class="mark" x1="{_n(c)}" x2="{_n(c)}" y1="{y - 8}" y2="{y + 8}"/>')
    return _svg(label, height, parts)


def matrix(label: str, names: Sequence[str], values: Values) -> str:
    """Shares between each and each, as shades with their numbers.

    Args:
        label: What is to be seen.
        names: (e,) of rows and columns.
        values: (e, e) from 0 to 1.
    """
    left = top = 26.0
    size = min(46.0, (WIDTH - left - 4) / len(names))
    parts = []
    for i, name in enumerate(names):
        parts.append(_text(left + (i + 0.5) * size, 17, name, "soft", "middle"))
        parts.append(_text(left - 7, top + (i + 0.5) * size + 4, name, "soft", "end"))
        for j in range(len(names)):
            at, value = (left + j * size, top + i * size), float(values[i, j])
            parts.append(
                f'<rect class="accent" x="{_n(at[0] + 1)}" y="{_n(at[1] + 1)}" width="{_n(size - 2)}" '
                f'height="{_n(size - 2)}" rx="3" fill-opacity="{_n(0.05 + 0.55 * value, 2)}">'
                f"<title>epochs {escape(names[i])} and {escape(names[j])}: {value:.0%}</title></rect>"
            )
            if size >= 30:
                parts.append(_text(at[0] + size / 2, at[1] + size / 2 + 4, f"{value:.0%}", "", "middle"))
    return _svg(label, top + len(names) * size + 4, parts)


def ticks(low: float, high: float, count: int = 5) -> list[tuple[float, str]]:
    """Round numbers from low to high, at most about ``count``, and how they are written."""
    span = high - low or 1.0
    unit = 10.0 ** math.floor(math.log10(span / count))
    step = next(unit * factor for factor in (1, 2, 5, 10) if span / (unit * factor) <= count)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [
        (number * step, f"{number * step + 0.0:,.{digits}f}".replace("-", "−")) for number in range(first, last + 1)
    ]


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """A linear scale; of one value alone, its middle."""
    if high == low:
        return lambda _: (start + end) / 2
    return lambda value: start + (end - start) * (float(value) - low) / (high - low)


def _svg(label: str, height: float, parts: Sequence[str]) -> str:
    text = escape(label)
    return f'<svg viewBox="0 0 {WIDTH} {_n(height)}" role="img" aria-label="{text}">{"".join(parts)}</svg>'


def _text(x: float, y: float, text: str, color: str = "", anchor: str = "", title: str = "") -> str:
    anchored = f' text-anchor="{anchor}"' if anchor else ""
    named = f' class="{color}"' if color else ""
    whole = f"<title>{escape(title)}</title>" if title and title != text else ""
    return f'<text{named} x="{_n(x)}" y="{_n(y)}"{anchored}>{whole}{escape(text)}</text>'


def _percent(share: float) -> str:
    return f"{share:.1%}" if share < 0.1 else f"{share:.0%}"


def _n(value: float, digits: int = 1) -> str:
    """Short: the file holds thousands of these."""
    return f"{value:.{digits}f}".rstrip("0").rstrip(".")
