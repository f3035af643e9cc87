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

WIDTH = 360
_LEFT, _RIGHT, _BOTTOM = 46, 14, 42
_TITLE, _PLOT = 24, 194
"""Heights: of the line above the data on which the y axis says what it is, and of the data."""
_KEY_ROW, _KEY_MARK, _KEY_GAP = 17, 22, 14
"""Of the key above a chart: height of a row, width of the sample of a line, room behind a label."""
_LETTER = 6.4
"""Width of a letter of a label, at most, on average."""
_MOST_LOG_TICKS = 9
_STRIP, _STRIP_GAP, _STRIP_LEFT = 74, 22, 56
_NUMBERED_CELLS = 10
"""More cells in a row are too narrow for a number each."""
_BLUE, _WHITE, _ORANGE = (33, 102, 172), (247, 247, 247), (179, 88, 6)


@dataclass(frozen=True)
class Series:
    """One line: ``x`` and ``y`` [K]; the key above says its label. Values that are not finite leave a gap."""

    label: str
    x: Floats
    y: Floats
    colour: int = 0
    """Class ``s<colour>`` of the style sheet."""
    mixed: bool = False
    """Drawn finer: a variant of the line of the same colour."""

    @property
    def style(self) -> str:
        """Classes of the line in the style sheet."""
        return f"s{self.colour} mixed" if self.mixed else f"s{self.colour}"


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
    """Draw lines with markers under a key; ``summary`` is what a screen reader says."""
    x = np.concatenate([one.x for one in series])
    y = np.concatenate([one.y for one in series])
    key = _placed_key([(one.label, f"line {one.style}") for one in series])
    frame = _Frame(x, y, axes, top=_key_height(key))
    root = _canvas(summary, height=frame.height)
    _draw_key(root, key)
    frame.draw(root)
    for one in series:
        _trace(root, _points(frame, one.x, one.y), one.style)
    return _markup(root)


def spread_chart(spread: SpreadBar, axes: Axes, summary: str) -> Markup:
    """Draw the median as a line, the quartiles and the extremes as bands around it."""
    low, first, median, third, high = spread.quantiles
    key = _placed_key([("median", "line s0"), ("quartiles", "band"), ("minimum to maximum", "band wide")])
    frame = _Frame(spread.x, spread.quantiles.ravel(), axes, top=_key_height(key))
    root = _canvas(summary, height=frame.height)
    _draw_key(root, key)
    frame.draw(root)
    for style, lower, upper in (("band wide", low, high), ("band", first, third)):
        there = [p for p in _points(frame, spread.x, lower) if p is not None]
        back = [p for p in _points(frame, spread.x, upper) if p is not None]
        _add(root, "polygon", points=_path([*there, *reversed(back)]), **{"class": style})
    _trace(root, _points(frame, spread.x, median), "s0")
    return _markup(root)


def dot_chart(x: Floats, y: Floats, axes: Axes, summary: str) -> Markup:
    """Draw one dot for each pair ``x``, ``y`` [K]."""
    frame = _Frame(x, y, axes, top=0)
    root = _canvas(summary, height=frame.height)
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
        _strip(root, one, top, x_span)
    bottom = height - 40
    for value in (v for v in ticks(*x_span) if v == int(v)):
        _text(
            root,
            _along(value, x_span, _STRIP_LEFT, WIDTH - _RIGHT),
            bottom + 17,
            f"{value:g}",
            "tick",
            "middle",
        )
    _text(root, (_STRIP_LEFT + WIDTH - _RIGHT) / 2, height - 6, axis, "axis", "middle")
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
    """Return 1, 2 and 5 times powers of ten inside ``[low, high]``, the powers alone where there are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [round(d * 10.0**p, 12) for p in powers for d in (1, 2, 5)]
    inside = [v for v in found if low * (1 - 1e-9) <= v <= high * (1 + 1e-9)]
    if len(inside) <= _MOST_LOG_TICKS:
        return inside
    return [v for v in inside if math.isclose(math.log10(v), round(math.log10(v)), abs_tol=1e-9)]


class _Frame:
    """Where the data lie on the canvas, and the axes around them."""

    def __init__(self, x: Floats, y: Floats, axes: Axes, *, top: float) -> None:
        shown = [*y.ravel().tolist(), *([] if axes.level is None else [axes.level])]
        self._axes = axes
        self._right = WIDTH - _RIGHT
        self._title = top + 12
        self._top = top + _TITLE
        self._bottom = self._top + _PLOT
        self.height = self._bottom + _BOTTOM
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
        return self._bottom - share * _PLOT

    def draw(self, root: ET.Element) -> None:
        """Draw grid, ticks, axis titles and the level to compare with."""
        for value in log_ticks(*self._y) if self._axes.log else ticks(*self._y):
            self._across(root, self.at_y(value), "grid")
            _text(root, _LEFT - 6, self.at_y(value) + 4, f"{value:g}", "tick", "end")
        for value in ticks(*self._x):
            x = self.at_x(value)
            ends = {"x1": _n(x), "x2": _n(x), "y1": _n(self._bottom), "y2": _n(self._bottom + 4)}
            _add(root, "line", **ends, **{"class": "rule"})
            _text(root, x, self._bottom + 17, f"{value:g}", "tick", "middle")
        self._across(root, self._bottom, "rule")
        if self._axes.level is not None:
            self._across(root, self.at_y(self._axes.level), "level")
        _text(root, (_LEFT + self._right) / 2, self.height - 6, self._axes.x, "axis", "middle")
        # above the data, where it meets no number of the axis
        _text(root, 2, self._title, self._axes.y, "axis", "start")

    def _across(self, root: ET.Element, y: float, style: str) -> None:
        _add(root, "line", x1=_n(_LEFT), x2=_n(self._right), y1=_n(y), y2=_n(y), **{"class": style})


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


@dataclass(frozen=True)
class _KeyEntry:
    label: str
    style: str
    x: float
    row: int


def _placed_key(entries: Sequence[tuple[str, str]]) -> list[_KeyEntry]:
    """Place (label, style) side by side, in as many rows as they need."""
    placed: list[_KeyEntry] = []
    x, row = 2.0, 0
    for label, style in entries:
        width = _KEY_MARK + len(label) * _LETTER
        if x > 2 and x + width > WIDTH:
            x, row = 2.0, row + 1
        placed.append(_KeyEntry(label, style, x, row))
        x += width + _KEY_GAP
    return placed


def _key_height(key: Sequence[_KeyEntry]) -> float:
    return (key[-1].row + 1) * _KEY_ROW + 4 if key else 0


def _draw_key(root: ET.Element, key: Sequence[_KeyEntry]) -> None:
    for entry in key:
        middle = entry.row * _KEY_ROW + 9.0
        if entry.style.startswith("band"):
            box = {"x": _n(entry.x), "y": _n(middle - 5), "width": "16", "height": "10"}
            _add(root, "rect", **box, **{"class": entry.style})
        else:
            ends = _path([(entry.x, middle), (entry.x + 16, middle)])
            _add(root, "polyline", points=ends, **{"class": entry.style})
        _text(root, entry.x + _KEY_MARK, middle + 4, entry.label, "name", "start")


def _strip(root: ET.Element, one: Series, top: float, x_span: tuple[float, float]) -> None:
    """Draw one strip: its label above, its extremes as ticks, its line."""
    right, bottom = WIDTH - _RIGHT, top + _STRIP
    y_span = _span(one.y.tolist(), share=0.12)
    _text(root, _STRIP_LEFT, top - 6, one.label, f"name s{one.colour}", "start")
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
    _trace(root, points, one.style)


def _along(value: float, span: tuple[float, float], first: float, last: float) -> float:
    """Return the pixel of a value between those of the ends of its span."""
    return first + (value - span[0]) / (span[1] - span[0]) * (last - first)


def _trace(root: ET.Element, points: Sequence[tuple[float, float] | None], style: str) -> None:
    """Draw a line with markers, broken where a value cannot be drawn."""
    for run in _runs(points):
        _add(root, "polyline", points=_path(run), **{"class": f"line {style}"})
    for x, y in (p for p in points if p is not None):
        _add(root, "circle", cx=_n(x), cy=_n(y), r="2.4", **{"class": f"dot {style}"})


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


def _canvas(summary: str, *, height: float) -> ET.Element:
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
