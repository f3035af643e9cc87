"""How do several processes make the images of one request? Each whole batches of it; the first puts them together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from gacq_deploy.artifact.artifact import load_model_record
from gacq_deploy.generate.request import GeneratedImages, ImageRequest
from gacq_deploy.generate.stage import make_images
from gacq_deploy.processes.group import Group, joined_group
from gacq_deploy.progress import SILENT, Reporter
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.sampling.loop import build_conditioning

Item = TypeVar("Item")


def make_images_together(
    directory: RunDirectory, request: ImageRequest, report: Reporter = SILENT
) -> GeneratedImages | None:
    """Generate images in the processes that `torchrun` started; alone, as :func:`make_images` does.

    Returns:
        The images in the first process, None in the others.

    Raises:
        UsageError, ArtifactError, BackendUnavailable, EngineError: as :func:`make_images`.
        ResourceError: another process ended.
    """
    with joined_group() as group:
        if group.size == 1:
            return make_images(directory, request, report)
        share = share_request(directory, request, group)
        made = None if share is None else make_images(directory, share, report)
        parts: list[GeneratedImages] = [part for part in group.gather(made) if part is not None]
        return _joined(parts) if group.is_main else None


def share_request(directory: RunDirectory, request: ImageRequest, group: Group) -> ImageRequest | None:
    """Return this process's part of a request, consecutive whole batches; None if there are none left for it.

    A request that is wrong comes back whole: every process then refuses it, as one would.
    """
    batch = request.batch or directory.load_recipe().runtime.batch
    batches = -(-request.count // batch)
    # whole batches: an image then is the one that a single process would have made
    first, end = (group.rank * batches // group.size, (group.rank + 1) * batches // group.size)
    if batches < 1:
        return request
    if first == end:
        return None
    start, stop = first * batch, min(end * batch, request.count)
    labels = request.labels
    if labels is None:
        model = load_model_record(directory.artifact)
        # a recorded model is conditioned on what its pipeline makes
        conditioning = {} if model.call is not None else build_conditioning(model, request.count)
        labels = [int(x) for x in conditioning.get("class_labels", ())]
    return replace(
        request,
        count=stop - start,
        seed=request.seed + start,
        labels=turned(labels or (), start) or None,
        prompts=turned(request.prompts, start),
        batch=batch,
    )


def turned(items: Sequence[Item], start: int) -> tuple[Item, ...]:
    """Return what repeats in turn over the images, beginning at image ``start``."""
    turn = start % len(items) if items else 0
    return (*items[turn:], *items[:turn])


def _joined(parts: Sequence[GeneratedImages]) -> GeneratedImages:
    images = np.concatenate([part.images for part in parts])
    seeds = tuple(seed for part in parts for seed in part.seeds)
    labels = tuple(label for part in parts for label in part.labels)
    prompts = tuple(prompt for part in parts for prompt in part.prompts)
    seconds = max(part.seconds for part in parts)  # they ran side by side
    return replace(parts[0], images=images, seeds=seeds, labels=labels, prompts=prompts, seconds=seconds)
