"""How do several curves with error bars become one SVG that a README can show? Panels side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from gacq_deploy.report.charts import ticks

_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM, _GAP = 330, 250, 48, 26, 42, 12
_COLOURS = ("#b2182b", "#2166ac", "#1b7837", "#762a83", "#8c510a")
_DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 2")


@dataclass(frozen=True)
class Curve:
    """One line: ``x``, ``y`` and ``spread`` (half an error bar) of equal length."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    spread: tuple[float, ...]


@dataclass(frozen=True)
class Panel:
    """A title and its curves."""

    title: str
    curves: tuple[Curve, ...]


def draw_panels(panels: Sequence[Panel], x: str, y: str, columns: int = 2) -> str:
    """Return the panels as one SVG with a legend below; every panel has its own y scale."""
    rows = -(-len(panels) // columns)
    width, height = min(columns, len(panels)) * (_WIDTH + _GAP), rows * (_HEIGHT + _GAP) + 28
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for number, panel in enumerate(panels):
        row, column = divmod(number, columns)
        parts.append(f'<g transform="translate({column * (_WIDTH + _GAP)} {row * (_HEIGHT + _GAP)})">')
        parts += [*_panel(panel, x, y), "</g>"]
    left = _LEFT
    for number, curve in enumerate(panels[0].curves):
        top = height - 12
        parts.append(_line([(left, top - 4), (left + 28, top - 4)], number))
        parts.append(f'<text x="{left + 34}" y="{top}">{escape(curve.label)}</text>')
        left += 110
    return "\n".join([*parts, "</svg>\n"])


def _panel(panel: Panel, x: str, y: str) -> list[str]:
    low = min(v - s for c in panel.curves for v, s in zip(c.y, c.spread, strict=True))
    high = max(v + s for c in panel.curves for v, s in zip(c.y, c.spread, strict=True))
    right, bottom = _WIDTH - 8, _HEIGHT - _BOTTOM

    def at(a: float, b: float) -> tuple[float, float]:
        share = (b - low) / ((high - low) or 1)
        return _LEFT + a / 100 * (right - _LEFT), bottom - 6 - share * (bottom - 12 - _TOP)

    parts = [f'<text x="{_LEFT}" y="16" font-weight="bold">{escape(panel.title)}</text>']
    for value in ticks(low, high):
        level = at(0, value)[1]
        parts.append(f'<line x1="{_LEFT}" x2="{right}" y1="{level:.1f}" y2="{level:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{level + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in range(0, 101, 20):
        place = at(value, low)[0]
        parts.append(f'<text x="{place:.1f}" y="{bottom + 16}" text-anchor="middle">{value}</text>')
    parts.append(f'<line x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}" stroke="#666"/>')
    parts.append(f'<text x="{(_LEFT + right) / 2}" y="{bottom + 34}" text-anchor="middle">{escape(x)}</text>')
    middle = (bottom + _TOP) / 2
    turned = f'transform="translate(12 {middle}) rotate(-90)" text-anchor="middle"'
    parts.append(f"<text {turned}>{escape(y)}</text>")
    for number, curve in enumerate(panel.curves):
        points = [at(a, b) for a, b in zip(curve.x, curve.y, strict=True)]
        parts.append(_line(points, number))
        for a, b, half in zip(curve.x, curve.y, curve.spread, strict=True):
            (place, top), (_, end) = at(a, b + half), at(a, b - half)
            colour = _COLOURS[number % len(_COLOURS)]
            parts.append(
                f'<line x1="{place:.1f}" x2="{place:.1f}" y1="{top:.1f}" y2="{end:.1f}" stroke="{colour}"/>'
            )
    return parts


def _line(points: Sequence[tuple[float, float]], number: int) -> str:
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
    dash = f' stroke-dasharray="{_DASHES[number % len(_DASHES)]}"' if number else ""
    colour = _COLOURS[number % len(_COLOURS)]
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>'
