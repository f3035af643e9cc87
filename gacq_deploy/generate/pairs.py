"""How does an image change when its model runs in INT8? The same seeds from both graphs, and how far apart they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gacq_deploy.artifact.artifact import load_model_record
from gacq_deploy.engines.attributes import import_attribute
from gacq_deploy.engines.catalogue import FLOAT_ENGINE, REFERENCE
from gacq_deploy.generate.request import GeneratedImages, ImageRequest
from gacq_deploy.metrics.images import is_image, psnr
from gacq_deploy.progress import SILENT, Reporter
from gacq_deploy.run_directory import RunDirectory

MOST_IMAGES, COLUMNS = 12, 4
DECODED_IMAGES = 4
"""Of a model of latents: each one also takes text encoders and a decoder."""
SIDE = 192
"""Pixels beyond which an image of a page is reduced."""
PIXELS = 150_000
"""Of all images of one graph on a page, which must stay small."""


@dataclass(frozen=True, kw_only=True)
class ImagePairs:
    """N images of each graph, in the same order; image i of both starts from the same noise."""

    exact: NDArray[np.float32]
    """``[N, C, H, W]`` in [-1, 1], of the float graph."""
    quantized: NDArray[np.float32]
    """``[N, C, H, W]`` in [-1, 1], of the INT8 graph."""
    psnr_db: tuple[float, ...]
    seeds: tuple[int, ...]
    conditions: tuple[str, ...]
    """What each shows: its prompt, ``class 3``, or nothing."""
    graphs: tuple[str, str]
    """File names: float, INT8."""
    engine: str
    """What ran the INT8 graph, with version."""
    steps: int

    @property
    def worst_first(self) -> tuple[int, ...]:
        """Positions in the order of their PSNR, the lowest first."""
        return tuple(int(i) for i in np.argsort(self.psnr_db, kind="stable"))

    @property
    def mean_db(self) -> float:
        """Mean PSNR of these images."""
        return float(np.mean(self.psnr_db))

    @property
    def summary(self) -> str:
        """Which images these are, and how far they are apart, in words."""
        return (
            f"{len(self.seeds)} images, seeds {self.seeds[0]} to {self.seeds[-1]}, {self.steps} steps: "
            f"PSNR {self.mean_db:.1f} dB on average, {min(self.psnr_db):.1f} dB for the worst"
        )


def make_pairs(
    run: RunDirectory,
    *,
    count: int | None = None,
    pipeline: str | None = None,
    report: Reporter = SILENT,
) -> ImagePairs:
    """Generate the same seeds with ``float.onnx`` and with the INT8 graph in ONNX Runtime.

    A graph that failed parity is drawn all the same: the images show what its verdict is about.

    Args:
        run: exported.
        count: of images; None suits a page: see :func:`image_count`, and :data:`DECODED_IMAGES` of latents.
        pipeline: folder or hub id of the pipeline that decodes latents, where it is no longer where the recipe
            found it.
        report: hears of progress.

    Raises:
        UsageError: the model makes latents, and its pipeline is not there.
        ArtifactError: nothing is exported, or a file is stale or altered.
        BackendUnavailable: ONNX Runtime is not installed, or what the pipeline needs.
        ModelError: the pipeline is not whole, cannot be opened, or fails.
        EngineError: the engine failed, or images are not finite.
        ResourceError: out of memory.
    """
    # by name: behind it is the code that opens pipelines, and a page about a pixel model is made without PyTorch
    make: Callable[[RunDirectory, ImageRequest, Reporter], GeneratedImages] = import_attribute(
        "gacq_deploy.generate.stage:make_images",
        what="Making images",
        hint="pip install 'gacq-deploy[cpu]'",
    )
    model = load_model_record(run.artifact)
    if count is None:
        shape = model.sample_shape
        count = image_count(shape[-2:]) if is_image(shape) else DECODED_IMAGES
    exact, quantized = (
        make(run, ImageRequest(count=count, engine=engine, allow_failed=True, pipeline=pipeline), report)
        for engine in (FLOAT_ENGINE, REFERENCE)
    )
    return ImagePairs(
        exact=exact.images,
        quantized=quantized.images,
        psnr_db=tuple(map(float, psnr(exact.images, quantized.images))),
        seeds=quantized.seeds,
        conditions=_conditions(quantized),
        graphs=(exact.graph, quantized.graph),
        engine=quantized.engine,
        steps=len(quantized.timesteps),
    )


def image_count(size: Sequence[int]) -> int:
    """Return how many images of ``size`` (height, width) fit a page: 2 to 12, whole rows if there are several."""
    height, width = (min(SIDE, side) for side in size)
    count = min(MOST_IMAGES, max(2, PIXELS // (height * width)))
    return count if count < COLUMNS else count - count % COLUMNS


def _conditions(made: GeneratedImages) -> tuple[str, ...]:
    classes = tuple(f"class {label}" for label in made.labels)
    return made.prompts or classes or ("",) * len(made.seeds)
