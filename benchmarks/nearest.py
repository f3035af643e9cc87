"""What does an artifact hold that nothing was learned for? Nearest rounding, ranges of a few random inputs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from gacq_deploy.artifact.artifact import CalibrationArtifact
from gacq_deploy.artifact.records import ModelRecord
from gacq_deploy.models.base import Denoiser
from gacq_deploy.quant.prepare import estimate_activation_scales
from gacq_deploy.quant.ranges import RangeMethod, weight_scale
from gacq_deploy.quant.rounding import nearest_codes
from gacq_deploy.spec import QuantPlan, Site, TensorParams
from gacq_deploy.storage.digests import digest_array
from gacq_deploy.storage.files import map_scratch


def nearest_artifact(
    denoiser: Denoiser,
    plan: QuantPlan,
    *,
    batch: int = 4,
    record: ModelRecord | None = None,
    folder: Path | None = None,
) -> CalibrationArtifact:
    """Return an artifact without probe; the denoiser stays float.

    Args:
        denoiser: gives weights, and ranges on ``batch`` seeded random inputs.
        plan: the sites to quantize.
        batch: rows of random input.
        record: what the artifact says of the model; default: the denoiser's own.
        folder: for files that hold the codes, of a model whose codes are many; default: they are in memory.
    """

    def run() -> Iterator[object]:
        inputs = denoiser.example_inputs(batch, seed=1)
        sample, timestep = inputs.pop("sample"), inputs.pop("timestep")
        with torch.no_grad():
            yield denoiser(sample, timestep, inputs)

    scales = estimate_activation_scales(denoiser.module, plan, run)
    params: dict[Site, TensorParams] = {}
    digests: dict[str, str] = {}
    for entry in plan:
        if entry.site.role != "weight":
            params[entry.site] = TensorParams(np.array(scales[entry.tie], np.float32))
            continue
        weight = denoiser.module.get_submodule(entry.site.module).get_parameter("weight")
        with torch.no_grad():
            scale = weight_scale(weight, entry.spec, RangeMethod.parse(entry.range_method))
            codes = nearest_codes(weight, scale, entry.spec).numpy()
        if folder is not None:
            mapped = map_scratch(folder / f"{entry.site}.codes", codes.dtype, codes.shape)
            mapped[...] = codes
            codes = mapped
        params[entry.site] = TensorParams(scale.numpy(), codes)
        digests[str(entry.site)] = digest_array(weight.numpy())
    return CalibrationArtifact(
        model=record or denoiser.record,
        plan=plan,
        params=params,
        weight_digests=digests,
        recipe={},
        samples_sha256="0" * 64,
        history=(),
        probe=None,
    )
