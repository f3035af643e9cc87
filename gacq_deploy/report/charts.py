"""How does a table of numbers become a picture in a page? Inline SVG: axes, lines, bands, dots, heat maps.

Every chart is drawn for 360 px, the width of a phone, so that its text stays readable there; colours come from the
page's style sheet by class, so that one drawing suits light and dark. Text goes through an XML writer, never through
string formatting.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

import numpy as np
from markupsafe import Markup

from gacq_deploy.spec import Floats

WIDTH, HEIGHT = 360, 250
_LEFT, _TOP, _BOTTOM = 46, 14, 42
_RIGHT_BARE, _RIGHT_LABELS = 14, 104
"""Room right of the data: without labels at the ends of the lines, and with them."""
_LABEL_GAP = 13
_STRIP, _STRIP_GAP, _STRIP_LEFT = 74, 22, 56
_NUMBERED_CELLS = 10
"""More cells in a row are too narrow for a number each."""
_BLUE, _WHITE, _ORANGE = (33, 102, 172), (247, 247, 247), (179, 88, 6)


@dataclass(frozen=True)
class Series:
    """One line: ``x`` and ``y`` [K]; the label stands at its end. Values that are not finite leave a gap."""

    label: str
    x: Floats
    y: Floats


@dataclass(frozen=True)
class SpreadBar:
    """A distribution over ``x`` [K]: ``quantiles`` [5, K] are minimum, quartile, median, quartile, maximum."""

    x: Floats
    quantiles: Floats


@dataclass(frozen=True)
class Axes:
    """What the axes say.

    ``falling`` puts the largest x at the left: noisy to clean. ``level`` is a line to compare with.
    """

    x: str
    y: str
    falling: bool = False
    log: bool = False
    level: float | None = None


def line_chart(series: Sequence[Series], axes: Axes, summary: str) -> Markup:
    """Draw lines with markers and direct labels; ``summary`` is what a screen reader says."""
    x = np.concatenate([one.x for one in series])
    y = np.concatenate([one.y for one in series])
    frame = _Frame(x, y, axes, right=_RIGHT_LABELS)
    root = _canvas(summary)
    frame.draw(root)
    ends: list[tuple[float, str, int]] = []
    for number, one in enumerate(series):
        points = _points(frame, one.x, one.y)
        _trace(root, points, number % 6)
        last = [p for p in points if p is not None]
        if last:
            ends.append((max(last)[1], one.label, number % 6))
    _label_ends(root, ends)
    return _markup(root)


def spread_chart(spread: SpreadBar, axes: Axes, summary: str) -> Markup:
    """Draw the median as a line, the quartiles and the extremes as bands around it."""
    low, first, median, third, high = spread.quantiles
    frame = _Frame(spread.x, spread.quantiles.ravel(), axes, right=_RIGHT_LABELS)
    root = _canvas(summary)
    frame.draw(root)
    for style, lower, upper in (("band wide", low, high), ("band", first, third)):
        there = [p for p in _points(frame, spread.x, lower) if p is not None]
        back = [p for p in _points(frame, spread.x, upper) if p is not None]
        _add(root, "polygon", points=_path([*there, *reversed(back)]), **{"class": style})
    points = [p for p in _points(frame, spread.x, median) if p is not None]
    _add(root, "polyline", points=_path(points), **{"class": "line s0"})
    for x, y in points:
        _add(root, "circle", cx=_n(x), cy=_n(y), r="2.4", **{"class": "dot s0"})
    end = int(np.argmin(spread.x) if axes.falling else np.argmax(spread.x))
    names = ("minimum", "quartile", "median", "quartile", "maximum")
    marks = [(frame.at_y(float(v)), n, 0) for n, v in zip(names, spread.quantiles[:, end], strict=True)]
    _label_ends(root, marks)
    return _markup(root)


def dot_chart(x: Floats, y: Floats, axes: Axes, summary: str) -> Markup:
    """Draw one dot for each pair ``x``, ``y`` [K]."""
    frame = _Frame(x, y, axes, right=_RIGHT_BARE)
    root = _canvas(summary)
    frame.draw(root)
    for point in _points(frame, x, y):
        if point is not None:
            _add(root, "circle", cx=_n(point[0]), cy=_n(point[1]), r="3", **{"class": "dot s0"})
    return _markup(root)


def strip_chart(series: Sequence[Series], axis: str, summary: str) -> Markup:
    """Draw every series in a strip of its own, with its own scale, above one shared x axis."""
    height = len(series) * (_STRIP + _STRIP_GAP) + 40
    root = _canvas(summary, height=height)
    x_span = _span(np.concatenate([s.x for s in series]).tolist(), share=0.02)
    for number, one in enumerate(series):
        top = number * (_STRIP + _STRIP_GAP) + _STRIP_GAP
        _strip(root, one, number % 6, top, x_span)
    bottom = height - 40
    for value in (v for v in ticks(*x_span) if v == int(v)):
        _text(
            root,
            _along(value, x_span, _STRIP_LEFT, WIDTH - _RIGHT_BARE),
            bottom + 17,
            f"{value:g}",
            "tick",
            "middle",
        )
    _text(root, (_STRIP_LEFT + WIDTH - _RIGHT_BARE) / 2, height - 6, axis, "axis", "middle")
    return _markup(root)


def heat_map(matrix: Floats, names: Sequence[str], axis: str, summary: str) -> Markup:
    """Draw a square matrix of cosines: blue is 1 (aligned), white 0, orange -1 (opposed)."""
    size = len(names)
    left, top, side = 74, 8, 270
    cell = side / size
    root = _canvas(summary, height=top + side + 40)
    for row in range(size):
        middle = top + (row + 0.5) * cell + 4
        _text(root, left - 6, middle, names[row], "tick", "end")
        _text(root, left + (row + 0.5) * cell, top + side + 14, names[row], "tick", "middle")
        for column in range(size):
            value = float(matrix[row, column])
            _cell(
                root, (left + column * cell, top + row * cell, cell), value, numbered=size <= _NUMBERED_CELLS
            )
    _text(root, left + side / 2, top + side + 33, axis, "axis", "middle")
    return _markup(root)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return round numbers inside ``[low, high]``: steps of 1, 2 or 5 times a power of ten, about ``count``."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    # 1e-9: an end that is itself a round number counts, whatever rounding made of it
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(n * step, 12) for n in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times powers of ten inside ``[low, high]``."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [round(d * 10.0**p, 12) for p in powers for d in (1, 2, 5)]
    return [v for v in found if low * (1 - 1e-9) <= v <= high * (1 + 1e-9)]


class _Frame:
    """Where the data lie on the canvas, and the axes around them."""

    def __init__(self, x: Floats, y: Floats, axes: Axes, *, right: int) -> None:
        shown = [*y.ravel().tolist(), *([] if axes.level is None else [axes.level])]
        self._axes = axes
        self._right = WIDTH - right
        self._x = _span(x.ravel().tolist(), share=0.02)
        self._y = _log_span(shown) if axes.log else _span(shown, share=0.08)

    def at_x(self, value: float) -> float:
        """Return the pixel of an x value."""
        share = (value - self._x[0]) / (self._x[1] - self._x[0])
        share = 1 - share if self._axes.falling else share
        return _LEFT + share * (self._right - _LEFT)

    def at_y(self, value: float) -> float:
        """Return the pixel of a y value."""
        scale: Callable[[float], float] = math.log10 if self._axes.log else float
        low, high = scale(self._y[0]), scale(self._y[1])
        share = (scale(value) - low) / (high - low)
        return HEIGHT - _BOTTOM - share * (HEIGHT - _BOTTOM - _TOP)

    def draw(self, root: ET.Element) -> None:
        """Draw grid, ticks, axis titles and the level to compare with."""
        bottom = HEIGHT - _BOTTOM
        for value in log_ticks(*self._y) if self._axes.log else ticks(*self._y):
            y = self.at_y(value)
            _add(root, "line", x1=_n(_LEFT), x2=_n(self._right), y1=_n(y), y2=_n(y), **{"class": "grid"})
            _text(root, _LEFT - 6, y + 4, f"{value:g}", "tick", "end")
        for value in ticks(*self._x):
            x = self.at_x(value)
            _add(root, "line", x1=_n(x), x2=_n(x), y1=_n(bottom), y2=_n(bottom + 4), **{"class": "rule"})
            _text(root, x, bottom + 17, f"{value:g}", "tick", "middle")
        _add(
            root, "line", x1=_n(_LEFT), x2=_n(self._right), y1=_n(bottom), y2=_n(bottom), **{"class": "rule"}
        )
        if self._axes.level is not None:
            y = self.at_y(self._axes.level)
            _add(root, "line", x1=_n(_LEFT), x2=_n(self._right), y1=_n(y), y2=_n(y), **{"class": "level"})
        _text(root, (_LEFT + self._right) / 2, HEIGHT - 6, self._axes.x, "axis", "middle")
        title = _text(root, 0, 0, self._axes.y, "axis", "middle")
        title.set("transform", f"translate(11 {_n((bottom + _TOP) / 2)}) rotate(-90)")


def _span(values: Sequence[float], share: float) -> tuple[float, float]:
    finite = [v for v in values if math.isfinite(v)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    # values that are all the same need a scale, too
    room = (high - low) * share or max(abs(low) * 0.05, 0.5)
    return low - room, high + room


def _log_span(values: Sequence[float]) -> tuple[float, float]:
    finite = [v for v in values if math.isfinite(v) and v > 0] or [1.0]
    # a factor of two around 1 at least: weights that hardly differ must not look far apart
    return min(min(finite) / 1.15, 0.5), max(max(finite) * 1.15, 2.0)


def _points(frame: _Frame, x: Floats, y: Floats) -> list[tuple[float, float] | None]:
    """Return pixels; None where a value cannot be drawn."""
    points: list[tuple[float, float] | None] = []
    for a, b in zip(x.tolist(), y.tolist(), strict=True):
        drawable = math.isfinite(a) and math.isfinite(b)
        points.append((frame.at_x(a), frame.at_y(b)) if drawable else None)
    return points


def _runs(points: Sequence[tuple[float, float] | None]) -> list[list[tuple[float, float]]]:
    """Split at the gaps."""
    runs: list[list[tuple[float, float]]] = [[]]
    for point in points:
        if point is None:
            runs.append([])
        else:
            runs[-1].append(point)
    return [run for run in runs if run]


def _label_ends(root: ET.Element, ends: Sequence[tuple[float, str, int]]) -> None:
    """Write the labels right of the lines, pushed apart where they would overlap."""
    floor = HEIGHT - _BOTTOM
    placed: list[float] = []
    ordered = sorted(ends)
    for y, _, _ in ordered:
        placed.append(max(y, placed[-1] + _LABEL_GAP) if placed else max(y, _TOP))
    for i in reversed(range(len(placed))):
        ceiling = floor if i == len(placed) - 1 else placed[i + 1] - _LABEL_GAP
        placed[i] = min(placed[i], ceiling)
    for (_, label, number), y in zip(ordered, placed, strict=True):
        _text(root, WIDTH - _RIGHT_LABELS + 8, y + 4, label, f"name s{number}", "start")


def _strip(root: ET.Element, one: Series, number: int, top: float, x_span: tuple[float, float]) -> None:
    """Draw one strip: its label above, its extremes as ticks, its line."""
    right, bottom = WIDTH - _RIGHT_BARE, top + _STRIP
    y_span = _span(one.y.tolist(), share=0.12)
    _text(root, _STRIP_LEFT, top - 6, one.label, f"name s{number}", "start")
    finite = [v for v in one.y.tolist() if math.isfinite(v)]
    for value in sorted({min(finite), max(finite)}) if finite else ():
        y = _along(value, y_span, bottom, top)
        _add(root, "line", x1=_n(_STRIP_LEFT), x2=_n(right), y1=_n(y), y2=_n(y), **{"class": "grid"})
        _text(root, _STRIP_LEFT - 6, y + 4, f"{value:.3g}", "tick", "end")
    _add(root, "line", x1=_n(_STRIP_LEFT), x2=_n(right), y1=_n(bottom), y2=_n(bottom), **{"class": "rule"})
    points: list[tuple[float, float] | None] = []
    for x, y in zip(one.x.tolist(), one.y.tolist(), strict=True):
        drawable = math.isfinite(x) and math.isfinite(y)
        pixel = (_along(x, x_span, _STRIP_LEFT, right), _along(y, y_span, bottom, top))
        points.append(pixel if drawable else None)
    _trace(root, points, number)


def _along(value: float, span: tuple[float, float], first: float, last: float) -> float:
    """Return the pixel of a value between those of the ends of its span."""
    return first + (value - span[0]) / (span[1] - span[0]) * (last - first)


def _trace(root: ET.Element, points: Sequence[tuple[float, float] | None], number: int) -> None:
    """Draw a line with markers, broken where a value cannot be drawn."""
    for run in _runs(points):
        _add(root, "polyline", points=_path(run), **{"class": f"line s{number}"})
    for x, y in (p for p in points if p is not None):
        _add(root, "circle", cx=_n(x), cy=_n(y), r="2.4", **{"class": f"dot s{number}"})


def _cell(root: ET.Element, place: tuple[float, float, float], value: float, *, numbered: bool) -> None:
    x, y, size = place
    red, green, blue = _shade(value)
    fill = f"#{red:02x}{green:02x}{blue:02x}"
    _add(root, "rect", x=_n(x), y=_n(y), width=_n(size - 1), height=_n(size - 1), fill=fill)
    if numbered:
        shown = f"{value:.2f}" if math.isfinite(value) else "–"  # noqa: RUF001 (a dash for no number)
        # by the brightness that an eye sees: black on light cells, white on dark ones
        ink = "#000000" if 0.3 * red + 0.59 * green + 0.11 * blue > 140 else "#ffffff"
        label = _text(root, x + (size - 1) / 2, y + size / 2 + 4, shown, "cell", "middle")
        label.set("fill", ink)


def _shade(value: float) -> tuple[int, int, int]:
    if not math.isfinite(value):
        return (160, 160, 160)
    end = _BLUE if value >= 0 else _ORANGE
    share = min(1.0, abs(value))
    red, green, blue = (round(w + (e - w) * share) for w, e in zip(_WHITE, end, strict=True))
    return red, green, blue


def _canvas(summary: str, height: float = HEIGHT) -> ET.Element:
    return ET.Element(
        "svg",
        {"viewBox": f"0 0 {WIDTH} {_n(height)}", "role": "img", "aria-label": summary, "class": "chart"},
    )


def _add(root: ET.Element, tag: str, **attributes: str) -> ET.Element:
    return ET.SubElement(root, tag, attributes)


def _text(root: ET.Element, x: float, y: float, text: str, style: str, anchor: str) -> ET.Element:
    element = _add(root, "text", x=_n(x), y=_n(y), **{"class": style, "text-anchor": anchor})
    element.text = text
    return element


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{_n(x)},{_n(y)}" for x, y in points)


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _markup(root: ET.Element) -> Markup:
    return Markup(ET.tostring(root, encoding="unicode"))
