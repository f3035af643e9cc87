"""What does the customer see? The same images from the float and the INT8 graph, and their difference, as PNG."""

from __future__ import annotations

import base64
import io
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from gacq_deploy.artifact.artifact import load_artifact
from gacq_deploy.engines.catalogue import FLOAT_ENGINE
from gacq_deploy.errors import ArtifactError, UsageError
from gacq_deploy.generate.grid import to_uint8, write_grid
from gacq_deploy.generate.request import ImageRequest
from gacq_deploy.generate.sampled import make_sampled_images
from gacq_deploy.metrics.images import psnr
from gacq_deploy.progress import SILENT, Reporter
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.spec import Floats

MOST_IMAGES, COLUMNS = 12, 4
SIDE = 192
"""Larger images are reduced to this many pixels, for the page must stay small."""
PIXELS = 150_000
"""Of one grid, before small images are enlarged."""
GAIN = 8.0
"""A difference of 1/8 of the range shows white."""


@dataclass(frozen=True)
class Pictures:
    """PNG images as data URIs: three grids of the same seeds, or one sheet with the three side by side."""

    exact: str = ""
    quantized: str = ""
    difference: str = ""
    sheet: str = ""
    size: tuple[int, int] = (0, 0)
    """Width and height of a grid in pixels."""
    caption: str = ""


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


def make_pictures(run: RunDirectory, report: Reporter = SILENT) -> Pictures:
    """Generate the same seeds with ``float.onnx`` and the INT8 graph in ONNX Runtime.

    Raises:
        UsageError: the model's output is no grey or RGB image.
        ArtifactError: nothing is exported, or a file is stale or altered.
        BackendUnavailable: ONNX Runtime is not installed.
        EngineError: the engine failed.
    """
    shape = _image_shape(run)
    count = image_count(shape[-2:])
    exact = make_sampled_images(run, ImageRequest(count=count, engine=FLOAT_ENGINE), report)
    quantized = make_sampled_images(run, ImageRequest(count=count), report)
    gaps = np.clip(np.abs(np.clip(exact.images, -1, 1) - np.clip(quantized.images, -1, 1)) * GAIN, 0, 2) - 1
    grids = [_grid_png(reduced(images)) for images in (exact.images, quantized.images, gaps)]
    with Image.open(io.BytesIO(grids[0])) as picture:
        size = picture.size
    quality = psnr(exact.images, quantized.images)
    return Pictures(
        exact=_uri(grids[0]),
        quantized=_uri(grids[1]),
        difference=_uri(grids[2]),
        size=size,
        caption=(
            f"{count} images, seeds 0 to {count - 1}, {len(quantized.timesteps)} steps; {exact.graph} and "
            f"{quantized.graph} in {quantized.engine}. PSNR {float(np.mean(quality)):.1f} dB on average, "
            f"{float(np.min(quality)):.1f} dB for the worst image. The difference is amplified {GAIN:g} times."
        ),
    )


def _image_shape(run: RunDirectory) -> tuple[int, ...]:
    """Return the model's sample shape ``[C, H, W]``.

    Raises:
        ArtifactError: there is no artifact, or it is damaged.
        UsageError: the samples are no grey or RGB images, such as latents.
    """
    shape = load_artifact(run.artifact).model.sample_shape
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise UsageError(
            f"The model makes arrays of shape {list(shape)}, which are no grey or RGB images.",
            "Latents need their decoder before they can be shown.",
        )
    return shape


def image_count(size: tuple[int, ...]) -> int:
    """Return how many images of ``size`` (height, width) fit the page: 2 to 12, whole rows if there are several."""
    height, width = (min(SIDE, side) for side in size)
    count = min(MOST_IMAGES, max(2, PIXELS // (height * width)))
    return count if count < COLUMNS else count - count % COLUMNS


def reduced(images: Floats) -> Floats:
    """Return images ``[N, C, H, W]`` in [-1, 1] with no side above :data:`SIDE`, averaged over areas."""
    height, width = images.shape[-2:]
    factor = math.ceil(max(height, width) / SIDE)
    if factor == 1:
        return images
    planes = to_uint8(images).transpose(0, 3, 1, 2)
    flat = planes.reshape(-1, height, width)
    small = np.stack([np.asarray(Image.fromarray(plane).reduce(factor)) for plane in flat])
    smaller = small.reshape(*planes.shape[:2], *small.shape[1:])
    return np.asarray(smaller, np.float32) / np.float32(127.5) - 1


def _grid_png(images: Floats) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "grid.png"
        write_grid(path, images, columns=COLUMNS)
        return path.read_bytes()


def _uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
