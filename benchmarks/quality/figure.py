"""Do the timestep groups pull one way? The groups' gradient cosines, mean over blocks, before and after learning."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from gacq_deploy.artifact.artifact import load_artifact
from gacq_deploy.artifact.diagnostics import Diagnostics
from gacq_deploy.errors import UsageError
from gacq_deploy.storage.files import write_bytes

_CELL, _MARGIN, _TOP = 56, 28, 44
Matrix = NDArray[np.float64]


def mean_cosines(diagnostics: Sequence[Diagnostics]) -> tuple[Matrix, Matrix]:
    """Return the ``[G, G]`` cosines before and after, mean over all stages that have both.

    Raises:
        UsageError: no stage has them (uniform weights learn nothing), or the numbers of groups differ.
    """
    stages = [s for d in diagnostics for s in d.stages]
    pairs = [(s.cosine_before, s.cosine_after) for s in stages]
    both = [(a, b) for a, b in pairs if a is not None and b is not None]
    if not both or len({a.shape for a, _ in both}) != 1:
        raise UsageError(
            f"{len(both)} of {len(stages)} stages hold gradient cosines of one shape.",
            "Name rows whose weights were learned, with equal weighting.groups.",
        )
    before, after = (np.nanmean(np.stack(list(m)), axis=0) for m in zip(*both, strict=True))
    return before.astype(np.float64), after.astype(np.float64)


def draw_cosines(artifacts: Sequence[Path], path: Path) -> None:
    """Draw the cosines of the given artifacts to ``.svg`` or ``.png``.

    Raises:
        UsageError: as for :func:`mean_cosines`, or another kind of file.
        ArtifactError: an artifact is missing or damaged.
    """
    found = [load_artifact(folder).diagnostics for folder in artifacts]
    before, after = mean_cosines([d for d in found if d is not None])
    panels = {"before": before, "after": after}
    match path.suffix.lower():
        case ".svg":
            write_bytes(path, _svg(panels).encode())
        case ".png":
            write_bytes(path, _png(panels))
        case kind:
            raise UsageError(f"A figure is .svg or .png, not '{kind}'.", "Name another file.")


def colour(value: float) -> tuple[int, int, int]:
    """Return blue for 1, white for 0, red for -1."""
    share = min(1.0, abs(value))
    full = (33, 102, 172) if value >= 0 else (178, 24, 43)
    red, green, blue = (round(255 + (c - 255) * share) for c in full)
    return red, green, blue


def _title(name: str, matrix: Matrix) -> str:
    pairs = matrix[~np.eye(len(matrix), dtype=bool)]
    return f"{name}: mean {pairs.mean():.2f}"


def _layout(panels: dict[str, Matrix]) -> tuple[int, int, list[tuple[int, str, Matrix]]]:
    groups = len(next(iter(panels.values())))
    side = groups * _CELL
    placed = [(_MARGIN + i * (side + 2 * _MARGIN), name, m) for i, (name, m) in enumerate(panels.items())]
    return len(panels) * (side + 2 * _MARGIN), side + _TOP + _MARGIN, placed


def _svg(panels: dict[str, Matrix]) -> str:
    width, height, placed = _layout(panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="13">'
    ]
    for left, name, matrix in placed:
        parts.append(f'<text x="{left}" y="18">{_title(name, matrix)}</text>')
        parts.append(f'<text x="{left}" y="36" font-size="11">groups, noisiest first</text>')
        for (row, column), value in np.ndenumerate(matrix):
            x, y = left + column * _CELL, _TOP + row * _CELL
            ink = "white" if abs(value) > 0.6 else "black"
            shade = "#{:02x}{:02x}{:02x}".format(*colour(float(value)))
            parts.append(f'<rect x="{x}" y="{y}" width="{_CELL}" height="{_CELL}" fill="{shade}"/>')
            parts.append(
                f'<text x="{x + _CELL // 2}" y="{y + _CELL // 2 + 5}" text-anchor="middle" '
                f'fill="{ink}">{value:.2f}</text>'
            )
    return "\n".join([*parts, "</svg>\n"])


def _png(panels: dict[str, Matrix]) -> bytes:
    width, height, placed = _layout(panels)
    picture = Image.new("RGB", (width, height), (255, 255, 255))
    pen: Any = ImageDraw.Draw(picture)
    font = ImageFont.load_default()
    for left, name, matrix in placed:
        pen.text((left, 8), _title(name, matrix), font=font, fill=(0, 0, 0))
        pen.text((left, 26), "groups, noisiest first", font=font, fill=(0, 0, 0))
        for (row, column), value in np.ndenumerate(matrix):
            x, y = left + column * _CELL, _TOP + row * _CELL
            ink = (255, 255, 255) if abs(value) > 0.6 else (0, 0, 0)
            pen.rectangle((x, y, x + _CELL - 1, y + _CELL - 1), fill=colour(float(value)))
            pen.text((x + _CELL // 2 - 12, y + _CELL // 2 - 6), f"{value:.2f}", font=font, fill=ink)
    data = io.BytesIO()
    picture.save(data, format="PNG")
    return data.getvalue()
