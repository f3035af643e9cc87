"""How does a float layer pretend to be INT8?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gacq_deploy.quant.affine import fake_quantize, half_exact, spread_scale
from gacq_deploy.quant.rounding import AdaRound
from gacq_deploy.quant.smoothing import Smoothing
from gacq_deploy.spec import TensorSpec


class ActivationQuantizer(nn.Module):
    """A static per-tensor activation quantizer; sites of one tie share one object.

    The scale is ``initial * exp(log_gain)``: positive whatever the optimiser does.
    """

    def __init__(self, spec: TensorSpec, scale: float, device: torch.device | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.initial = torch.tensor(scale, dtype=torch.float32, device=device)
        self.log_gain = nn.Parameter(torch.zeros((), device=device), requires_grad=False)

    @property
    def scale(self) -> Tensor:
        """Current scale, float32 scalar."""
        return self.initial * self.log_gain.exp()

    def freeze(self) -> None:
        """Make the current scale the static one; learning ends."""
        self.set_scale(self.scale.detach())

    def set_scale(self, scale: float | Tensor) -> None:
        """Fix the scale: a number, or a float32 scalar where the layer lies."""
        self.initial = torch.as_tensor(scale, dtype=torch.float32, device=self.log_gain.device)
        self.log_gain.requires_grad_(False)
        self.log_gain.data.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantize ``x``."""
        return fake_quantize(x, self.scale, self.spec.qmin, self.spec.qmax)


class Switchable(nn.Module):
    """A module that stands in for a float one; ``enabled = False`` gives the float module back."""

    def __init__(self) -> None:
        super().__init__()
        self.enabled = True


class QuantizedLayer(Switchable):
    """A Conv or Linear with fake-quantized weight and input, and, for the CPU flavour, output.

    ``codes`` [as weight] int8 and ``weight_scale`` [channels] or [out, in / block] float32 are the deployable weight;
    ``scale_log_gain``, of its shape, scales it while it is learned. Without ``input_quantizer`` (weights in blocks)
    the input stays float. While ``rounding`` is set, its soft weight is used instead, and while ``weight_override`` is,
    that. ``bias`` [channels], once set, takes the place of the layer's own. With ``smoothing``, codes are those of the
    smoothed weight, and the input is smoothed before its quantizer unless a norm did that.
    """

    def __init__(
        self,
        layer: nn.Module,
        spec: TensorSpec,
        weight_scale: Tensor,
        codes: Tensor,
        input_quantizer: ActivationQuantizer | None,
        output_quantizer: ActivationQuantizer | None,
    ) -> None:
        super().__init__()
        self.layer = layer
        self.spec = spec
        self.weight_scale = weight_scale
        self.codes = codes
        self.input_quantizer = input_quantizer
        self.output_quantizer = output_quantizer
        self.rounding: AdaRound | None = None
        self.weight_override: nn.Parameter | None = None
        self.scale_log_gain: nn.Parameter | None = None
        self.bias: nn.Parameter | None = None
        self.smoothing: Smoothing | None = None
        self.quantize_output = False

    @property
    def float_weight(self) -> Tensor:
        """The float weight that the codes stand for, smoothed if the layer is."""
        weight: Tensor = self.layer.get_parameter("weight")
        return weight if self.smoothing is None else self.smoothing.weight(weight)

    @property
    def float_bias(self) -> Tensor | None:
        """The float model's bias, if the layer has one."""
        return dict(self.layer.named_parameters(recurse=False)).get("bias")

    def weight(self) -> Tensor:
        """Return the weight the engine computes with: codes times scale, or the soft weight while learning."""
        if self.weight_override is not None:
            return self.weight_override
        if self.rounding is not None:
            return self.rounding.soft_weight()
        return self.codes.float() * spread_scale(self.current_weight_scale(), self.codes.ndim, self.spec)

    def current_weight_scale(self) -> Tensor:
        """Return the weight's scale with the gain being learned."""
        gain = self.scale_log_gain
        return self.weight_scale if gain is None else self.weight_scale * gain.exp()

    def freeze(self) -> None:
        """Make the learned weight scale the static one."""
        scale = self.current_weight_scale().detach()
        self.weight_scale = scale if self.spec.block is None else half_exact(scale)
        self.scale_log_gain = None

    def quantized_input(self, x: Tensor) -> Tensor:
        """Return what the layer computes with instead of ``x``: smoothed where it is, and fake-quantized."""
        if self.smoothing is not None and self.smoothing.norm is None:
            x = self.smoothing.input(x)
        return x if self.input_quantizer is None else self.input_quantizer(x)

    def forward(self, x: Tensor) -> Tensor:
        """Run the layer on the fake-quantized input."""
        if not self.enabled:
            float_output: Tensor = self.layer(x)
            return float_output
        parameters = {"weight": self.weight()}
        if self.bias is not None:
            parameters["bias"] = self.bias
        if self.quantize_output and self.output_quantizer is not None:
            parameters |= self._integer_bias()
            raw = functional_call(self.layer, parameters, (self.quantized_input(x),))
            return self.output_quantizer(raw)  # type: ignore[no-any-return]
        return functional_call(self.layer, parameters, (self.quantized_input(x),))  # type: ignore[no-any-return]

    def _integer_bias(self) -> dict[str, Tensor]:
        """Return the bias on the int32 accumulator's grid, as the CPU flavour stores it; empty if there is none.

        With a float bias, one value in a thousand of a small convolution would round to another output code.
        """
        bias = self.float_bias if self.bias is None else self.bias
        if bias is None or self.input_quantizer is None:
            return {}
        step = self.input_quantizer.scale * self.weight_scale
        return {"bias": (torch.round(bias.double() / step.double()) * step.double()).float()}


class RetrainedNorm(Switchable):
    """A normalization layer with affine parameters beside the float model's own: smoothed, learned, or both.

    ``affine`` maps "weight" and "bias", as far as the layer has them, to copies that may change.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.affine = nn.ParameterDict(
            {
                name: nn.Parameter(value.detach().clone())
                for name, value in norm.named_parameters(recurse=False)
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        """Normalize."""
        if not self.enabled:
            float_output: Tensor = self.norm(x)
            return float_output
        # torch's forward-mode rule of group norm takes contiguous input only
        return functional_call(self.norm, dict(self.affine.items()), (x.contiguous(),))  # type: ignore[no-any-return]


def fold_into_norm(module: nn.Module, name: str, factor: Tensor) -> RetrainedNorm:
    """Let the norm ``name`` of ``module`` give its output times ``factor`` [channels], which must be its last axis."""
    norm = RetrainedNorm(module.get_submodule(name))
    with torch.no_grad():
        for parameter in norm.affine.values():
            parameter.requires_grad_(False).mul_(factor)
    parent, _, child = name.rpartition(".")
    setattr(module.get_submodule(parent), child, norm)
    return norm


def quantized_layers(module: nn.Module) -> dict[str, QuantizedLayer]:
    """Return the quantized layers inside ``module`` by their name there."""
    return {name: m for name, m in module.named_modules() if isinstance(m, QuantizedLayer)}


def input_quantizers(layers: Mapping[str, QuantizedLayer]) -> dict[str, ActivationQuantizer]:
    """Return every quantizer of an input once, by the name of the first layer that reads it."""
    found: dict[int, tuple[str, ActivationQuantizer]] = {}
    for name, layer in layers.items():
        if layer.input_quantizer is not None:
            found.setdefault(id(layer.input_quantizer), (name, layer.input_quantizer))
    return dict(found.values())


@contextmanager
def float_mode(module: nn.Module) -> Iterator[None]:
    """Run ``module`` as the float model inside the context."""
    layers = [layer for layer in module.modules() if isinstance(layer, Switchable) and layer.enabled]
    for layer in layers:
        layer.enabled = False
    try:
        yield
    finally:
        for layer in layers:
            layer.enabled = True


@contextmanager
def output_mode(module: nn.Module) -> Iterator[None]:
    """Quantize convolution outputs too inside the context (the placement of the CPU flavour)."""
    layers = list(quantized_layers(module).values())
    for layer in layers:
        layer.quantize_output = True
    try:
        yield
    finally:
        for layer in layers:
            layer.quantize_output = False
