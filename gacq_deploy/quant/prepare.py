"""How does a float model become a fake-quantized one? Estimate ranges, wrap the planned layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from gacq_deploy.errors import CalibrationError
from gacq_deploy.quant.layers import ActivationQuantizer, QuantizedLayer, fold_into_norm
from gacq_deploy.quant.ranges import ActivationRange, RangeMethod, weight_scale
from gacq_deploy.quant.rounding import nearest_codes
from gacq_deploy.quant.smoothing import Smoothing
from gacq_deploy.spec import PlannedSite, QuantPlan, Site

Pass = Callable[[], Iterable[object]]
"""Runs the float model over all calibration data, yielding after each chunk."""
NOTHING_SMOOTHED: Mapping[str, Smoothing] = MappingProxyType({})


def estimate_activation_scales(
    module: nn.Module,
    plan: QuantPlan,
    run: Pass,
    smoothing: Mapping[str, Smoothing] = NOTHING_SMOOTHED,
) -> dict[str, float]:
    """Return the scale of every tie group of activation sites, from two float passes over the data.

    ``smoothing`` maps a layer's name to how its input is smoothed; what is observed is the smoothed tensor.

    Raises:
        CalibrationError: an activation is not finite.
    """
    entries = [e for e in plan if e.site.role != "weight"]
    if not entries:
        return {}
    ranges = {e.tie: ActivationRange() for e in entries}
    # reversed: the first site of a tie decides how its scale is found
    specs = {e.tie: e for e in reversed(entries)}

    def observed(observe: Callable[[ActivationRange, Tensor], None]) -> None:
        with ExitStack() as stack:
            for entry in entries:
                layer = module.get_submodule(entry.site.module)
                smooth = smoothing.get(entry.site.module) if entry.site.role == "input" else None
                hook = _observer(entry.site, ranges[entry.tie], observe, smooth)
                stack.callback(layer.register_forward_hook(hook).remove)
            for _ in run():
                pass

    observed(ActivationRange.observe_largest)
    observed(ActivationRange.observe_histogram)
    return {
        tie: r.scale(specs[tie].spec, RangeMethod.parse(specs[tie].range_method)) for tie, r in ranges.items()
    }


def _observer(
    site: Site,
    target: ActivationRange,
    observe: Callable[[ActivationRange, Tensor], None],
    smoothing: Smoothing | None,
) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
    def hook(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        tensor = args[0] if site.role == "input" else output
        if not bool(torch.isfinite(tensor).all()):
            raise CalibrationError(
                f"The float activation at '{site}' holds NaN or Inf.",
                "Check the model's weights and the samples.",
            )
        observe(target, tensor if smoothing is None else smoothing.input(tensor))

    return hook


def insert_quantizers(
    module: nn.Module,
    plan: QuantPlan,
    scales: Mapping[str, float],
    smoothing: Mapping[str, Smoothing] = NOTHING_SMOOTHED,
) -> dict[str, QuantizedLayer]:
    """Replace every planned layer in place by a :class:`QuantizedLayer` with nearest rounding.

    ``scales`` maps tie -> activation scale, ``smoothing`` a layer's name to how it is smoothed; norms that carry
    smoothing are replaced too. Returns the layers by module name, in execution order.
    """
    quantizers = {e.tie: ActivationQuantizer(e.spec, scales[e.tie]) for e in plan if e.site.role != "weight"}

    def quantizer(activation: PlannedSite | None) -> ActivationQuantizer | None:
        return None if activation is None else quantizers[activation.tie]

    layers: dict[str, QuantizedLayer] = {}
    for entry in plan.of_role("weight"):
        name = entry.site.module
        layer = module.get_submodule(name)
        weight: Tensor = layer.get_parameter("weight")
        smooth = smoothing.get(name)
        if smooth is not None:
            weight = smooth.weight(weight)
        scale = weight_scale(weight, entry.spec, RangeMethod.parse(entry.range_method))
        source = plan.get(Site(name, "input"))
        target = plan.get(Site(name, "output"))
        assert source is not None or entry.spec.block is not None, f"{name}: planned without its input"
        layers[name] = QuantizedLayer(
            layer,
            entry.spec,
            scale,
            nearest_codes(weight, scale, entry.spec),
            quantizer(source),
            quantizer(target),
        )
        layers[name].smoothing = smooth
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, layers[name])
    for norm, factor in {s.norm: s.factor for s in smoothing.values() if s.norm is not None}.items():
        fold_into_norm(module, norm, factor)
    return layers
