"""How does a float model become a fake-quantized one? Estimate ranges, wrap the planned layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from gacq_deploy.errors import CalibrationError
from gacq_deploy.models.placement import home_of
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
    # reversed: the first site of a tie decides how its scale is found
    specs = {e.tie: e for e in reversed(entries)}
    ranges = {e.tie: ActivationRange() for e in entries}
    largest = _largest_values(module, entries, run, smoothing)
    for entry in entries:
        ranges[entry.tie].largest = max(ranges[entry.tie].largest, largest.get(entry.site, 0.0))
    with _watching(module, entries, smoothing, lambda e, x: ranges[e.tie].observe_histogram(x)):
        for _ in run():
            pass
    return {
        tie: r.scale(specs[tie].spec, RangeMethod.parse(specs[tie].range_method)) for tie, r in ranges.items()
    }


def _largest_values(
    module: nn.Module, entries: Sequence[PlannedSite], run: Pass, smoothing: Mapping[str, Smoothing]
) -> dict[Site, float]:
    """Return max|x| of every site; the device is asked once a chunk.

    Raises:
        CalibrationError: an activation is not finite.
    """
    tops: dict[Site, Tensor] = {}
    found: dict[Site, float] = {}

    def observe(entry: PlannedSite, x: Tensor) -> None:
        # of what is not finite this is not finite either
        top = x.abs().amax()
        tops[entry.site] = torch.maximum(tops[entry.site], top) if entry.site in tops else top

    with _watching(module, entries, smoothing, observe):
        for _ in run():
            found = dict(zip(tops, torch.stack(list(tops.values())).cpu().tolist(), strict=True))
            if wrong := [site for site, top in found.items() if not math.isfinite(top)]:
                raise CalibrationError(
                    f"The float activation at '{wrong[0]}' holds NaN or Inf.",
                    "Check the model's weights and the samples.",
                )
    return found


@contextmanager
def _watching(
    module: nn.Module,
    entries: Sequence[PlannedSite],
    smoothing: Mapping[str, Smoothing],
    observe: Callable[[PlannedSite, Tensor], None],
) -> Iterator[None]:
    """Show ``observe`` the tensor of every site, smoothed where it is, while the float model runs."""

    def hook(entry: PlannedSite, smooth: Smoothing | None) -> Callable[..., None]:
        def seen(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            tensor = args[0] if entry.site.role == "input" else output
            observe(entry, tensor if smooth is None else smooth.input(tensor))

        return seen

    with ExitStack() as stack:
        for entry in entries:
            layer = module.get_submodule(entry.site.module)
            smooth = smoothing.get(entry.site.module) if entry.site.role == "input" else None
            stack.callback(layer.register_forward_hook(hook(entry, smooth)).remove)
        yield


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
    device = home_of(module)
    quantizers = {
        e.tie: ActivationQuantizer(e.spec, scales[e.tie], device) for e in plan if e.site.role != "weight"
    }

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
