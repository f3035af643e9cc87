"""Which numbers of a fake-quantized model may still move once its codes are fixed? The graph stays the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gacq_deploy.quant.layers import QuantizedLayer, RetrainedNorm, input_quantizers
from gacq_deploy.recipe.calibration import PolishParameter

NORMS = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@dataclass(frozen=True)
class Trainables:
    """Parameters by their name in the fake-quantized module; a scale that sites share stands once.

    ``sources`` maps the dotted name of a float model's parameter (``conv_in.bias``) to the name of its learned copy.
    """

    module: nn.Module
    layers: Mapping[str, QuantizedLayer]
    parameters: Mapping[str, nn.Parameter]
    sources: Mapping[str, str]

    def values(self) -> dict[str, Tensor]:
        """Return copies of the current values."""
        return {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        """Set the values that :meth:`values` returned."""
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])

    def freeze(self) -> None:
        """End the learning: gains go into the static scales."""
        for parameter in self.parameters.values():
            parameter.requires_grad_(False)
        for quantizer in input_quantizers(self.layers).values():
            quantizer.freeze()
        for layer in self.layers.values():
            layer.freeze()

    def retrained(self) -> dict[str, Tensor]:
        """Return the learned float parameters by their name in the float model."""
        return {source: self.parameters[name].detach() for source, name in self.sources.items()}


def make_trainable(
    module: nn.Module, layers: Mapping[str, QuantizedLayer], kinds: Sequence[PolishParameter]
) -> Trainables:
    """Prepare the wanted kinds of parameters for learning; they start where the model stands."""
    sources: dict[str, str] = {}
    names: list[str] = []
    if "norm_affines" in kinds:
        sources |= _affines(module)
    if "biases" in kinds:
        sources |= _biases(layers)
    if "weight_scales" in kinds:
        names += _weight_scales(layers)
    if "activation_scales" in kinds:
        names += [f"{name}.input_quantizer.log_gain" for name in input_quantizers(layers)]
    parameters = {name: module.get_parameter(name) for name in sorted([*sources.values(), *names])}
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    return Trainables(module, layers, parameters, sources)


def _biases(layers: Mapping[str, QuantizedLayer]) -> dict[str, str]:
    """Give every layer with a bias a copy to learn; return float name -> name."""
    for layer in layers.values():
        if layer.float_bias is not None:
            layer.bias = nn.Parameter(layer.float_bias.detach().clone())
    return {f"{name}.bias": f"{name}.bias" for name, layer in layers.items() if layer.bias is not None}


def _weight_scales(layers: Mapping[str, QuantizedLayer]) -> list[str]:
    """Give every layer a gain of its weight scale; return their names."""
    for layer in layers.values():
        layer.scale_log_gain = nn.Parameter(torch.zeros_like(layer.weight_scale))
    return [f"{name}.scale_log_gain" for name in layers]


def _affines(module: nn.Module) -> dict[str, str]:
    """Wrap every normalization layer; return float name -> name of the copies to learn."""
    found = {}
    for name in _replace_norms(module):
        for kind in module.get_submodule(name).get_submodule("affine").state_dict():
            found[f"{name}.{kind}"] = f"{name}.affine.{kind}"
    return found


def _replace_norms(module: nn.Module) -> list[str]:
    """Wrap every normalization layer that has parameters, unless smoothing did; return their names."""
    wrapped = retrained_norms(module)
    inner = {id(norm.norm) for norm in wrapped.values()}
    found = [
        name
        for name, norm in module.named_modules()
        if isinstance(norm, NORMS) and id(norm) not in inner and _has_parameters(norm)
    ]
    for name in found:
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, RetrainedNorm(module.get_submodule(name)))
    return [*wrapped, *found]


def _has_parameters(norm: nn.Module) -> bool:
    return any(True for _ in norm.parameters(recurse=False))


def retrained_norms(module: nn.Module) -> dict[str, RetrainedNorm]:
    """Return the norms with parameters beside the float model's own, by the norm's name."""
    return {name: norm for name, norm in module.named_modules() if isinstance(norm, RetrainedNorm)}


@contextmanager
def free_weights(layers: Mapping[str, QuantizedLayer]) -> Iterator[dict[str, nn.Parameter]]:
    """Let the fake-quantized weights be parameters of their own inside the context, by the layer's name."""
    for layer in layers.values():
        layer.weight_override = nn.Parameter(layer.weight().detach().clone())
    try:
        yield {
            name: layer.weight_override for name, layer in layers.items() if layer.weight_override is not None
        }
    finally:
        for layer in layers.values():
            layer.weight_override = None
