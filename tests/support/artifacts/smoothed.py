"""A fake-quantized model with smoothed inputs and the artifact of it: nothing learned, ranges of random inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from benchmarks.nearest import nearest_artifact
from gacq_deploy.artifact.artifact import CalibrationArtifact, RetrainedParameter
from gacq_deploy.artifact.smoothing import InputSmoothing
from gacq_deploy.calibration.planning import make_plan
from gacq_deploy.calibration.smoothing import smoothing_groups
from gacq_deploy.export.qdq import Placement, insert_qdq
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.structure.graph import trace_model
from gacq_deploy.models.structure.norms import norms_of_linears
from gacq_deploy.quant.layers import QuantizedLayer, output_mode, quantized_layers
from gacq_deploy.quant.prepare import estimate_activation_scales, insert_quantizers
from gacq_deploy.quant.smoothing import Smoothing, channel_range, smoothing_factor
from gacq_deploy.quant.trainable import retrained_norms
from gacq_deploy.recipe.load import load_recipe
from gacq_deploy.spec import Array, Site, TensorParams
from gacq_deploy.storage.digests import digest_array
from tests.support.artifacts.nearest import ARCHITECTURES, exported


@dataclass(frozen=True)
class SmoothedModel:
    """The fake-quantized denoiser, its artifact, an artifact of the same plan without smoothing, the float graph."""

    denoiser: Denoiser
    artifact: CalibrationArtifact
    plain: CalibrationArtifact
    float_model: onnx.ModelProto

    def graph(self, placement: Placement = "input") -> onnx.ModelProto:
        """Return the Q/DQ graph."""
        return insert_qdq(self.float_model, self.artifact, placement=placement)

    def inputs(self) -> dict[str, Array]:
        """Return inputs that nothing was estimated on."""
        return {k: v.numpy() for k, v in self.denoiser.example_inputs(3, seed=5).items()}

    def answer(self, placement: Placement = "input") -> Array:
        """Return what torch answers to them."""
        if placement == "output":
            with output_mode(self.denoiser.module):
                return _answer(self.denoiser, 3, 5).numpy()
        return _answer(self.denoiser, 3, 5).numpy()

    def recording(self) -> tuple[dict[str, Array], Array]:
        """Return every layer's fake-quantized input by site, and torch's answer, of one pass over the inputs."""
        found: dict[str, Array] = {}

        def look(name: str, layer: QuantizedLayer) -> Any:
            def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
                found[f"{name}:input"] = layer.quantized_input(args[0]).numpy()

            return hook

        layers = quantized_layers(self.denoiser.module).items()
        handles = [layer.register_forward_pre_hook(look(name, layer)) for name, layer in layers]
        try:
            return found, self.answer()
        finally:
            for handle in handles:
                handle.remove()


def smooth(recipe: str, alpha: float = 0.5) -> SmoothedModel:
    """Return the small model for a built-in recipe, smoothed and quantized by that recipe."""
    denoiser, float_model = ARCHITECTURES[recipe](), exported(recipe).float_model
    asked = load_recipe(recipe, [f"quantization.smoothing={{alpha: {alpha}}}"])
    graph, section = trace_model(denoiser), asked.quantization.smoothing
    assert section is not None
    plan = make_plan(asked, graph)
    plain = nearest_artifact(denoiser, plan)
    norms = {readers: norm for norm, readers in norms_of_linears(denoiser).items()}
    ranges = _ranges(denoiser, plan.modules)
    smoothing: dict[str, Smoothing] = {}
    for names in smoothing_groups(section, plan, graph):
        weights = [denoiser.module.get_submodule(n).get_parameter("weight") for n in names]
        factor = smoothing_factor(ranges[names[0]], channel_range(torch.cat(weights)), alpha)
        assert factor is not None
        smoothing |= dict.fromkeys(names, Smoothing(factor, alpha, norms.get(frozenset(names))))
    own = {name: digest_array(value.numpy()) for name, value in denoiser.module.named_parameters()}

    def run() -> Iterator[object]:
        yield _answer(denoiser, 4, 1)

    scales = estimate_activation_scales(denoiser.module, plan, run, smoothing)
    layers = insert_quantizers(denoiser.module, plan, scales, smoothing)
    params: dict[Site, TensorParams] = {}
    for entry in plan:
        layer = layers[entry.site.module]
        if entry.site.role == "weight":
            params[entry.site] = TensorParams(layer.weight_scale.numpy(), layer.codes.numpy())
        else:
            params[entry.site] = TensorParams(np.array(scales[entry.tie], np.float32))
    affine = {
        f"{name}.{kind}": RetrainedParameter(value.detach().numpy(), own[f"{name}.{kind}"])
        for name, norm in retrained_norms(denoiser.module).items()
        for kind, value in norm.affine.items()
    }
    artifact = CalibrationArtifact(
        model=denoiser.record,
        plan=plan,
        params=params,
        weight_digests=plain.weight_digests,
        recipe={},
        samples_sha256="0" * 64,
        history=(),
        probe=None,
        parameters=affine,
        smoothing={
            Site(name, "input"): InputSmoothing(s.factor.numpy(), s.alpha, s.norm)
            for name, s in smoothing.items()
        },
    )
    return SmoothedModel(denoiser, artifact, plain, float_model)


def _answer(denoiser: Denoiser, batch: int, seed: int) -> Tensor:
    inputs = denoiser.example_inputs(batch, seed=seed)
    sample, timestep = inputs.pop("sample"), inputs.pop("timestep")
    with torch.no_grad():
        return denoiser(sample, timestep, inputs)


def _ranges(denoiser: Denoiser, modules: tuple[str, ...]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def look(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            found[name] = channel_range(args[0])

        return look

    handles = [denoiser.module.get_submodule(m).register_forward_pre_hook(hook(m)) for m in modules]
    _answer(denoiser, 4, 1)
    for handle in handles:
        handle.remove()
    return found
