"""How does a fake-quantized model behave with one activation scale per timestep group? For research only.

An engine could run it: a static Q/DQ between a multiplication by r(t) before and by 1/r(t) after the layer is a scale
that depends on the timestep. Here the scale is looked up row by row; rounding and weights stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gacq_deploy.artifact.artifact import CalibrationArtifact
from gacq_deploy.calibration.output_error import output_loss, output_losses
from gacq_deploy.calibration.replay import full_pass
from gacq_deploy.models.base import Denoiser
from gacq_deploy.quant.affine import fake_quantize
from gacq_deploy.quant.layers import ActivationQuantizer, QuantizedLayer
from gacq_deploy.quant.prepare import insert_quantizers
from gacq_deploy.quant.ranges import ActivationRange, RangeMethod
from gacq_deploy.quant.smoothing import Smoothing
from gacq_deploy.quant.trainable import make_trainable
from gacq_deploy.recipe.calibration import PolishSection
from gacq_deploy.samples.calibration_set import CalibrationSet, timestep_buckets
from gacq_deploy.spec import Site, TensorSpec

Layers = Mapping[str, QuantizedLayer]
Ranges = Mapping[str, Sequence[ActivationRange]]
"""First layer that reads a tensor -> what was seen of it in every timestep group, noisiest first."""
_LAST_RATE = 0.05
_SEED_STREAM = 1 << 45
"""Apart from the stream of the calibration's own polish."""


class GroupClock:
    """Knows the timestep group of every row that the model is running; 0 is the noisiest group.

    ``timesteps`` [S] are the sampler's, ``groups`` how many equal groups they form; ``current`` is int64 [N].
    """

    def __init__(self, module: nn.Module, timesteps: NDArray[np.int64], groups: int) -> None:
        self.groups = groups
        self.current = torch.zeros(0, dtype=torch.int64)
        table = np.full(int(timesteps.max()) + 1, -1, np.int64)
        table[timesteps] = timestep_buckets(timesteps, groups)
        self._table = torch.from_numpy(table)
        module.register_forward_pre_hook(self._read, with_kwargs=True)

    def of(self, timesteps: Tensor) -> Tensor:
        """Return the groups of ``timesteps`` [N] int64.

        Raises:
            ValueError: the sampler has no such timestep.
        """
        inside = timesteps.clamp(0, len(self._table) - 1)
        found: Tensor = self._table[inside]
        if bool((found < 0).any()) or not torch.equal(inside, timesteps):
            raise ValueError(f"timesteps {timesteps.tolist()} are not all the sampler's")
        return found

    def _read(self, _module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        self.current = self.of(named["timestep"] if "timestep" in named else args[1])


class GroupedQuantizer(nn.Module):
    """An activation quantizer with scales ``initial * exp(log_gain)`` [G], one a timestep group."""

    def __init__(self, spec: TensorSpec, scales: Tensor, clock: GroupClock) -> None:
        super().__init__()
        self.spec = spec
        self.initial = scales.detach().clone()
        self.log_gain = nn.Parameter(torch.zeros_like(self.initial), requires_grad=False)
        self._clock = clock

    @property
    def scale(self) -> Tensor:
        """Current scales [G] float32."""
        return self.initial * self.log_gain.exp()

    def freeze(self) -> None:
        """Make the current scales the static ones."""
        self.initial = self.scale.detach()
        self.log_gain.requires_grad_(False)
        self.log_gain.data.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantize ``x`` [N, ...], every row with its group's scale."""
        rows = self.scale[self._clock.current].reshape(-1, *[1] * (x.ndim - 1))
        return fake_quantize(x, rows, self.spec.qmin, self.spec.qmax)


def rebuild(denoiser: Denoiser, artifact: CalibrationArtifact) -> dict[str, QuantizedLayer]:
    """Turn a freshly loaded float model into the artifact's fake-quantized one; return its layers.

    What was retrained replaces the float model's own values: ``float_mode`` no longer gives the float model.
    """
    with torch.no_grad():
        for name, parameter in artifact.parameters.items():
            denoiser.module.get_parameter(name).copy_(torch.tensor(parameter.value))
    scales = {e.tie: float(artifact.params[e.site].scale) for e in artifact.plan if e.site.role != "weight"}
    # norms carry theirs in the parameters already
    explicit = {site.module: s for site, s in artifact.smoothing.items() if s.norm is None}
    smoothing = {n: Smoothing(torch.tensor(s.factor), s.alpha) for n, s in explicit.items()}
    layers = insert_quantizers(denoiser.module, artifact.plan, scales, smoothing)
    for name, layer in layers.items():
        weight = artifact.params[Site(name, "weight")]
        assert weight.codes is not None
        layer.codes = torch.from_numpy(weight.codes.copy())
        layer.weight_scale = torch.from_numpy(weight.scale.copy())
    # retrained norms read their input as calibration's do: another layout may round sums otherwise
    make_trainable(denoiser.module, layers, ("norm_affines",)).freeze()
    return layers


def shared_quantizers(layers: Layers) -> dict[str, ActivationQuantizer]:
    """Return every input quantizer once, by the first layer that has it."""
    first = {id(layer.input_quantizer): name for name, layer in reversed(list(layers.items()))}
    return {name: layers[name].input_quantizer for name in reversed(first.values())}


def current_scales(layers: Layers, groups: int) -> dict[str, Tensor]:
    """Return the layers' own static scales, the same [G] times for every group."""
    return {n: q.scale.detach().repeat(groups) for n, q in shared_quantizers(layers).items()}


def set_scales(layers: Layers, clock: GroupClock, scales: Mapping[str, Tensor]) -> None:
    """Replace every input quantizer by a grouped one, shared where it was shared."""
    grouped = {
        id(q): GroupedQuantizer(q.spec, scales[n], clock) for n, q in shared_quantizers(layers).items()
    }
    for layer in layers.values():
        layer.input_quantizer = grouped[id(layer.input_quantizer)]  # type: ignore[assignment]


@contextmanager
def _watching(
    layers: Layers, clock: GroupClock, ranges: Ranges, observe: Callable[[ActivationRange, Tensor], None]
) -> Iterator[None]:
    owner = {id(q): n for n, q in shared_quantizers(layers).items()}

    def watch(targets: Sequence[ActivationRange]) -> Any:
        def hook(_layer: nn.Module, args: tuple[Any, ...]) -> None:
            for group in clock.current.unique().tolist():
                observe(targets[group], args[0][clock.current == group])

        return hook

    with ExitStack() as stack:
        for layer in layers.values():
            handle = layer.register_forward_pre_hook(watch(ranges[owner[id(layer.input_quantizer)]]))
            stack.callback(handle.remove)
        yield


def _observe_largest(target: ActivationRange, x: Tensor) -> None:
    target.largest = max(target.largest, float(x.abs().amax()))


def observe_ranges(
    denoiser: Denoiser, layers: Layers, clock: GroupClock, samples: CalibrationSet, chunk: int
) -> Ranges:
    """Return what every quantizer's input looks like in each timestep group, over two passes of the model as it is."""
    ranges = {name: [ActivationRange() for _ in range(clock.groups)] for name in shared_quantizers(layers)}
    for observe in (_observe_largest, ActivationRange.observe_histogram):
        with _watching(layers, clock, ranges, observe):
            for _ in full_pass(denoiser, samples, chunk):
                pass
    return ranges


def estimate_scales(layers: Layers, ranges: Ranges, method: str) -> dict[str, Tensor]:
    """Return the scales [G] of every quantizer by a range method (``minmax``, ``percentile:99.9``, ``mse:2.4``)."""
    parsed = RangeMethod.parse(method)
    return {
        name: torch.tensor([r.scale(q.spec, parsed) for r in ranges[name]], dtype=torch.float32)
        for name, q in shared_quantizers(layers).items()
    }


@dataclass(frozen=True)
class GroupPolish:
    """How to train."""

    section: PolishSection
    """Steps, batch, rate and parameters."""
    seed: int
    """Of the batches."""
    gain_lr: float
    """Adam's step on the log activation scales, in place of the section's."""


def polish_groups(
    denoiser: Denoiser,
    layers: Layers,
    samples: CalibrationSet,
    weights: NDArray[np.floating[Any]],
    settings: GroupPolish,
) -> dict[str, float]:
    """Train scales, biases and norms with the rounding fixed; keep the better end.

    Args:
        denoiser: the model that ``layers`` belong to.
        layers: with grouped quantizers.
        samples: training rows [N].
        weights: one per row [N], of mean 1.
        settings: how.

    Returns:
        ``loss_start`` and ``loss_end``, the weighted mean squared output error, and ``kept``, 0 if it was undone.
    """
    section = settings.section
    trainables = make_trainable(denoiser.module, layers, section.parameters)
    losses = output_loss(denoiser, samples)
    rows = np.arange(len(samples))
    first, start = trainables.values(), _weighted(denoiser, samples, weights)
    gains = {n: p for n, p in trainables.parameters.items() if n.endswith("input_quantizer.log_gain")}
    rest = [p for n, p in trainables.parameters.items() if n not in gains]
    groups = [{"params": list(gains.values()), "lr": settings.gain_lr}, {"params": rest, "lr": section.lr}]
    optimizer = torch.optim.Adam([g for g in groups if g["params"]])
    rates = [g["lr"] for g in optimizer.param_groups]
    size = min(section.batch, len(rows))
    for step in range(section.steps):
        fraction = _LAST_RATE + (1 - _LAST_RATE) * 0.5 * (1 + math.cos(math.pi * step / section.steps))
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * fraction
        generator = np.random.Generator(np.random.Philox(key=[settings.seed, _SEED_STREAM + step]))
        index = np.sort(generator.choice(len(rows), size, replace=False))
        optimizer.zero_grad()
        weighted = torch.from_numpy(weights[index]).float() * losses({}, index)
        (weighted.mean() / start).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    end = _weighted(denoiser, samples, weights)
    kept = end <= start
    if not kept:
        trainables.load(first)
    trainables.freeze()
    return {"loss_start": start, "loss_end": end, "kept": float(kept)}


def _weighted(denoiser: Denoiser, samples: CalibrationSet, weights: NDArray[np.floating[Any]]) -> float:
    values = output_losses(denoiser, samples, np.arange(len(samples)), 64)
    return float((weights * values).mean())
