"""An artifact whose biases and norms calibration changed, and what torch answers with them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch

from gacq_deploy.artifact.artifact import CalibrationArtifact, RetrainedParameter, load_artifact
from gacq_deploy.calibration.probe import record_probe
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.source import load_float_denoiser
from gacq_deploy.models.structure.graph import trace_model
from gacq_deploy.models.trajectories.collect import DrawnTrajectories
from gacq_deploy.progress import SILENT
from gacq_deploy.quant.layers import output_mode
from gacq_deploy.quant.prepare import insert_quantizers
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.spec import Array
from gacq_deploy.storage.digests import digest_array

CONV_BIAS = "mid_block.resnets.0.conv1.bias"
LINEAR_BIAS = "mid_block.attentions.0.to_q.bias"
FLOAT_LAYER_BIAS = "conv_in.bias"
NORM_WEIGHT = "mid_block.resnets.0.norm1.weight"
NORM_BIAS = "mid_block.attentions.0.group_norm.bias"
RETRAINED = (CONV_BIAS, LINEAR_BIAS, FLOAT_LAYER_BIAS, NORM_WEIGHT, NORM_BIAS)


def retrained(denoiser: Denoiser, names: Iterable[str] = RETRAINED) -> dict[str, RetrainedParameter]:
    """Return parameters of a float model, each moved by seeded noise that shows in every output."""
    rng = np.random.default_rng(7)
    found = {}
    for name in names:
        own = denoiser.module.get_parameter(name).numpy()
        noise = rng.normal(0, 0.2, own.shape).astype(np.float32)
        found[name] = RetrainedParameter(own + noise, digest_array(own))
    return found


def prepare_torch(denoiser: Denoiser, artifact: CalibrationArtifact) -> None:
    """Turn a float model in place into the fake-quantized one that an artifact describes."""
    with torch.no_grad():
        for name, parameter in artifact.parameters.items():
            denoiser.module.get_parameter(name).copy_(torch.tensor(parameter.value))
    activations = [e for e in artifact.plan if e.site.role != "weight"]
    scales = {e.tie: float(artifact.params[e.site].scale) for e in activations}
    layers = insert_quantizers(denoiser.module, artifact.plan, scales)
    for entry in artifact.plan.of_role("weight"):
        params, layer = artifact.params[entry.site], layers[entry.site.module]
        layer.weight_scale = torch.tensor(params.scale)
        layer.codes = torch.tensor(params.codes)


def torch_answers(denoiser: Denoiser, inputs: dict[str, torch.Tensor]) -> Array:
    """Return what the model answers, float32 [batch, C, H, W]."""
    rest = {k: v for k, v in inputs.items() if k not in ("sample", "timestep")}
    with torch.no_grad():
        return np.asarray(denoiser(inputs["sample"], inputs["timestep"], rest).numpy())


def retrained_artifact(directory: RunDirectory) -> CalibrationArtifact:
    """Return the artifact of a finished run with retrained parameters, and a probe that knows them."""
    recipe, artifact = directory.load_recipe(), load_artifact(directory.artifact)
    before = artifact.probe
    assert before is not None
    denoiser = load_float_denoiser(recipe.model)
    graph = trace_model(denoiser)
    changed = replace(artifact, parameters=retrained(denoiser))
    prepare_torch(denoiser, changed)
    trajectories = DrawnTrajectories(denoiser, recipe, directory)
    rows = len(before.inputs["sample"])
    probe = record_probe(trajectories, graph, recipe.parity.probe, rows, SILENT)
    # states and float answers are those of the model as it was before calibration
    inputs = {k: torch.tensor(np.asarray(v)) for k, v in before.inputs.items()}
    answers = {"float": before.outputs["float"], "input_quant": torch_answers(denoiser, inputs)}
    with output_mode(denoiser.module):
        answers["output_quant"] = torch_answers(denoiser, inputs)
    return replace(changed, probe=replace(probe, inputs=before.inputs, outputs=answers))
