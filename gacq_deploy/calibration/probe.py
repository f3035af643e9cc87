"""What does the fake-quantized model predict? Recorded once, as the reference of every exported graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from torch import Tensor, nn

from gacq_deploy.artifact.call import SAMPLE, TIMESTEP
from gacq_deploy.artifact.probe import Probe
from gacq_deploy.calibration.replay import full_pass
from gacq_deploy.models.placement import to_host
from gacq_deploy.models.structure.graph import ModelGraph
from gacq_deploy.models.trajectories.collect import Trajectories
from gacq_deploy.progress import Reporter
from gacq_deploy.quant.layers import (
    QuantizedLayer,
    float_mode,
    output_mode,
    quantized_layers,
)
from gacq_deploy.recipe.sections import ProbeSection
from gacq_deploy.samples.calibration_set import CalibrationSet
from gacq_deploy.spec import Array, Site

PROBE = "record the probe"
"""The stage, as it is announced."""


def record_probe(
    trajectories: Trajectories, graph: ModelGraph, section: ProbeSection, chunk: int, report: Reporter
) -> Probe:
    """Run float, input- and output-quantized models on float trajectories unseen by calibration.

    ``graph`` was traced on the float model. Outputs are kept for all ``M`` states; the fake-quantized tensors
    for ``local_samples`` of them, spread over the timesteps, and under ``output`` what that very pass returned: in
    another batch, rounding would amplify the last bits of float sums.
    """
    denoiser = trajectories.denoiser
    with float_mode(denoiser.module):
        states = trajectories.probe_states(report)
    local = states.rows(
        np.linspace(0, len(states) - 1, min(section.local_samples, len(states))).round().astype(int)
    )
    module = denoiser.module
    report.stage(PROBE, 3 * -(-len(states) // chunk) + 2 * -(-len(local) // chunk))

    def outputs(samples: CalibrationSet) -> Array:
        parts = []
        for part in full_pass(denoiser, samples, chunk):
            parts.append(part)
            report.advance()
        return np.concatenate(parts)

    with float_mode(module):
        by_mode = {"float": outputs(states)}
    by_mode["input_quant"] = outputs(states)
    with output_mode(module):
        by_mode["output_quant"] = outputs(states)
    tensors: dict[str, dict[str, Array]] = {}
    with _recording(module, graph, outputs_too=False) as recorded:
        output = outputs(local)
        tensors["input_quant"] = {**recorded(), "output": output}
    with output_mode(module), _recording(module, graph, outputs_too=True) as recorded:
        output = outputs(local)
        tensors["output_quant"] = {**recorded(), "output": output}
    inputs: dict[str, Any] = {
        SAMPLE: states.latents, TIMESTEP: states.model_timesteps, **states.conditioning
    }  # fmt: skip
    # the local rows are stored, too, so that nobody has to know which ones they are
    conditioning = {name: np.asarray(value[:]) for name, value in local.conditioning.items()}
    tensors["inputs"] = {SAMPLE: local.latents, TIMESTEP: local.model_timesteps, **conditioning}
    return Probe(inputs, by_mode, tensors, trajectories.conditions())


@contextmanager
def _recording(
    module: nn.Module, graph: ModelGraph, *, outputs_too: bool
) -> Iterator[Callable[[], dict[str, Array]]]:
    """Record each fake-quantized tensor once, under the first site that reads it."""
    pieces: dict[str, list[Array]] = {}

    def keep(site: Site) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def hook(_module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> None:
            pieces.setdefault(str(site), []).append(to_host(output).copy())

        return hook

    def keep_input(site: Site, layer: QuantizedLayer) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            pieces.setdefault(str(site), []).append(to_host(layer.quantized_input(args[0])).copy())

        return hook

    with ExitStack() as stack:
        planned = quantized_layers(module)
        for name, layer in planned.items():
            if layer.input_quantizer is not None and _first_planned_reader(graph, planned, name):
                hook = layer.register_forward_pre_hook(keep_input(Site(name, "input"), layer))
                stack.callback(hook.remove)
            if outputs_too and layer.output_quantizer is not None:
                stack.callback(layer.register_forward_hook(keep(Site(name, "output"))).remove)
        yield lambda: {site: _whole(parts) for site, parts in pieces.items()}


def _whole(parts: list[Array]) -> Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _first_planned_reader(graph: ModelGraph, planned: dict[str, QuantizedLayer], name: str) -> bool:
    first = graph.shared_tensor[Site(name, "input")]
    reading = [
        planned[s.module] for s, f in graph.shared_tensor.items() if f == first and s.module in planned
    ]
    return next(layer for layer in reading if layer.input_quantizer is not None) is planned[name]
