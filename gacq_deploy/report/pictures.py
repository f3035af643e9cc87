"""What does the customer see? The same image from the float and the INT8 graph, and their difference, tile by tile."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gacq_deploy.engines.catalogue import REFERENCE, engine_named
from gacq_deploy.errors import ArtifactError
from gacq_deploy.generate.difference import PALETTE, difference_maps
from gacq_deploy.generate.grid import to_uint8
from gacq_deploy.generate.pairs import PIXELS, SIDE, ImagePairs, make_pairs
from gacq_deploy.progress import SILENT, Reporter
from gacq_deploy.run_directory import RunDirectory

DRAWN = f"{engine_named(REFERENCE).best_graph}@{REFERENCE}"
"""The INT8 graph of the tiles and its engine, as parity names them."""


@dataclass(frozen=True)
class Tile:
    """One seed: three PNG images of one size as data URIs."""

    exact: str
    quantized: str
    difference: str
    condition: str
    """Its prompt or class, "" for neither."""
    seed: int
    psnr_db: float
    worst: bool


@dataclass(frozen=True)
class Pictures:
    """Tiles, the worst first; or the one sheet that `quickstart` drew."""

    tiles: tuple[Tile, ...] = ()
    sheet: str = ""
    size: tuple[int, int] = (0, 0)
    """Width and height in pixels: of an image in a tile, or of the sheet."""
    caption: str = ""
    mean_db: float | None = None
    """Mean PSNR of the tiles."""


def read_sheet(path: Path) -> Pictures:
    """Show the picture that `quickstart` drew as it is.

    Raises:
        ArtifactError: it is no PNG.
    """
    png = path.read_bytes()
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as picture:
            size = picture.size
    except (OSError, Image.DecompressionBombError) as error:
        raise ArtifactError(f"{path} is no PNG: {error}.", "Run `gacq-deploy quickstart` again.") from error
    return Pictures(sheet=_uri(png), size=size, caption="Drawn by `gacq-deploy quickstart`.")


def make_pictures(run: RunDirectory, *, pipeline: str | None = None, report: Reporter = SILENT) -> Pictures:
    """Draw the same seeds from the float and the INT8 graph, the worst first.

    Raises:
        GacqError: as for :func:`~gacq_deploy.generate.pairs.make_pairs`.
    """
    return draw_tiles(make_pairs(run, pipeline=pipeline, report=report))


def draw_tiles(pairs: ImagePairs) -> Pictures:
    """Return one tile a pair, all together small enough for a page."""
    maps, largest = difference_maps(pairs.exact, pairs.quantized)
    side = min(SIDE, math.isqrt(PIXELS // len(pairs.seeds)))
    exact, quantized = (
        [reduced(p, side) for p in to_uint8(images)] for images in (pairs.exact, pairs.quantized)
    )
    gaps = [reduced(level, side) for level in maps]
    order = pairs.worst_first
    tiles = tuple(
        Tile(
            exact=_uri(_png(Image.fromarray(exact[i]))),
            quantized=_uri(_png(Image.fromarray(quantized[i]))),
            difference=_uri(_png(_coloured(gaps[i]))),
            condition=pairs.conditions[i],
            seed=pairs.seeds[i],
            psnr_db=pairs.psnr_db[i],
            worst=i == order[0],
        )
        for i in order
    )
    height, width = gaps[0].shape
    graphs = f"{pairs.graphs[0]} and {pairs.graphs[1]} in {pairs.engine}"
    caption = (
        f"{pairs.summary}; {graphs}. Difference: from black (none) to light ({largest:.1%} of the range, the largest "
        "of all these images)."
    )
    return Pictures(tiles, "", (width, height), caption, pairs.mean_db)


def reduced(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Return an image ``[H, W]`` or ``[H, W, C]`` without a side above ``side``, averaged over whole areas.

    Grey images lose their channel axis.
    """
    flat = pixels.squeeze(-1) if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels
    factor = math.ceil(max(flat.shape[:2]) / side)
    return flat if factor == 1 else np.asarray(Image.fromarray(flat).reduce(factor))


def _coloured(levels: NDArray[np.uint8]) -> Image.Image:
    picture = Image.fromarray(levels)
    picture.putpalette(PALETTE.tobytes())
    return picture


def _png(picture: Image.Image) -> bytes:
    data = io.BytesIO()
    picture.save(data, format="PNG", optimize=True)
    return data.getvalue()


def _uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
