"""What graph does a denoiser compute? Found out from shapes alone: no weight is read, and none is copied.

Of torch's two exporters the dynamo one is used. ``benchmarks/exporters.py`` measures both on a small UNet: equal
numbers (7e-7 from torch), every layer found in both, half the nodes (456 against 939) and 6 % less CPU time for the
dynamo one, which takes some 15 times as long to export. What decides: it records the module of every node, where the
other has only a naming habit; the other is deprecated, ends at opset 20, warns 39 times on this model and cannot
export operators of newer denoisers such as RMS normalization.

The exporter's own fallbacks are avoided: it retries a failed capture with other strategies, whose metadata names no
modules. The capture is made here, once, and fails loudly.

The network is captured as a twin whose parameters are shapes (torch calls them fake tensors). So a graph costs the same
memory whatever its weights take, nothing that is done to it can depend on their values, and each weight is known by the
parameter's name. Buffers, which constructors compute, are real.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import onnx_ir as ir
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import config as fx_config

from gacq_deploy.errors import ExportError
from gacq_deploy.graph.dimensions import BATCH, HEIGHT, WIDTH
from gacq_deploy.models.base import Denoiser
from gacq_deploy.storage.memory import lack_of_memory

OUTPUT_NAME = "output"
ROOT = "denoiser"
"""The attribute of the module that is exported under which the network itself stands."""
_EXAMPLE_BATCH = 2
"""More than 1, which torch would take for a constant of the graph."""
# diffusers' upsampling asks whether the batch is >= 64; the graph itself works at any batch
_BATCH_MAX = 63
# in units of the multiple: unequal, and above 1, which torch takes for a constant
_EXAMPLE_SIZE = (4, 6)
_TOP_LEVEL_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_COSMETIC = (
    r".*isinstance\(treespec, LeafSpec\).*",
    r".*The axis name: (batch|.*height|.*width) will not be used.*",
)
"""Warnings of the exporter about itself; dimensions get their names afterwards."""
_TRACES_SWITCH = "do_not_emit_stack_traces"
REPORT_IT = "Please report the model's class; nothing was written."


def capture(denoiser: Denoiser, opset: int, multiple: int | None) -> ir.Model:
    """Return the graph as torch's exporter makes it, every parameter an initializer without values.

    Such an initializer is called ``denoiser.`` and the parameter's name.

    Args:
        denoiser: not changed; its weights are not read.
        opset: of ONNX.
        multiple: leave height and width open: they are multiples of this.

    Raises:
        ExportError: a hook or replaced ``forward`` is left on the model, or the exporter fails.
        ResourceError: out of memory.
    """
    check_untouched(denoiser.module)
    inputs = denoiser.example_inputs(_EXAMPLE_BATCH)
    if multiple is not None:
        height, width = (n * multiple for n in _EXAMPLE_SIZE)
        inputs["sample"] = torch.zeros((*inputs["sample"].shape[:2], height, width))
    twin = replace(denoiser, module=weightless_twin(denoiser.module))
    model = _export(twin.call_module(), inputs, opset, multiple)
    for value in model.graph.initializers.values():
        if isinstance(getattr(value.const_value, "raw", None), FakeTensor):
            assert value.const_value is not None
            value.shape, value.dtype = ir.Shape(value.const_value.shape.numpy()), value.const_value.dtype
            value.const_value = None
    return model


def check_untouched(module: nn.Module) -> None:
    """Refuse a model that something still holds on to: capture would follow it into another graph.

    Raises:
        ExportError: naming the module and what is left on it, or that its attention is sliced.
    """
    for name, child in module.named_modules():
        left = [kind.strip("_") for kind in _TOP_LEVEL_HOOKS if getattr(child, kind)]
        left += ["a replaced forward"] if "forward" in vars(child) else []
        processor = type(getattr(child, "processor", None)).__name__
        if processor.startswith("Sliced"):
            raise ExportError(
                f"Module '{name or 'denoiser'}' slices its attention ({processor}): the number of slices would be "
                "fixed in the graph.",
                "Switch it off: pipeline.disable_attention_slicing().",
            )
        if left:
            raise ExportError(
                f"Module '{name or 'denoiser'}' still carries {', '.join(left)}; the export would map "
                "no layers.",
                "Remove every hook (handle.remove()), or load the model afresh.",
            )


def weightless_twin(module: nn.Module) -> nn.Module:
    """Return a copy of a module, on the CPU, whose parameters are shapes; buffers are copied, too."""
    known: dict[int, Any] = {id(buffer): buffer.detach().cpu().clone() for buffer in module.buffers()}
    with FakeTensorMode():
        for parameter in module.parameters():
            shape = torch.empty_strided(parameter.shape, parameter.stride(), dtype=parameter.dtype)
            known[id(parameter)] = nn.Parameter(shape, requires_grad=False)
    return copy.deepcopy(module, known)


def _export(
    module: nn.Module, inputs: Mapping[str, torch.Tensor], opset: int, multiple: int | None
) -> ir.Model:
    batch = torch.export.Dim(BATCH, min=1, max=_BATCH_MAX)
    rows = {0: batch}
    sample = rows if multiple is None else {**rows, 2: _size(HEIGHT, multiple), 3: _size(WIDTH, multiple)}
    # as the call module's signature: sample, timestep, *conditioning
    conditioning = (rows,) * (len(inputs) - 2)
    shapes = (sample, rows, conditioning) if conditioning else (sample, rows)
    with _quiet(), _no_stack_traces():
        try:
            program = torch.export.export(module, tuple(inputs.values()), dynamic_shapes=shapes, strict=False)
            _drop_idle_squeezes(program)
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                input_names=list(inputs),
                output_names=[OUTPUT_NAME],
                optimize=False,
                external_data=False,
                verbose=False,
            )
        except (RuntimeError, ValueError, TypeError, KeyError, torch.onnx.OnnxExporterError) as error:
            raise lack_of_memory(error, "Exporting the model") or _refusal(error) from error
    assert exported is not None, "torch.onnx.export returned no program"
    return exported.model


def _refusal(error: Exception) -> ExportError:
    first_line = str(error).strip().partition("\n")[0]
    if f"Constraints violated ({BATCH})" in first_line:
        return ExportError(
            f"The model cannot be exported with an open number of rows: its code takes {_EXAMPLE_BATCH} rows for a "
            "constant.",
            "Undo what computes row by row (a loop over samples, a mask expanded to fixed rows); else report the "
            "model's class.",
        )
    return ExportError(f"torch could not export the model: {type(error).__name__}: {first_line}", REPORT_IT)


def _drop_idle_squeezes(program: torch.export.ExportedProgram) -> None:
    """Remove what squeezes a dimension that is not 1, as PixArt does: nothing in torch, an error in ONNX."""
    for node in program.graph.nodes:
        if node.target is torch.ops.aten.squeeze.dim:
            squeezed, dim = node.args
            if squeezed.meta["val"].shape[dim] != 1:
                node.replace_all_uses_with(squeezed)
    program.graph.eliminate_dead_code()


def _size(name: str, multiple: int) -> Any:
    """Return torch's symbol of a height or width."""
    return torch.export.Dim(name) if multiple == 1 else multiple * torch.export.Dim(f"_{name}")


@contextmanager
def _no_stack_traces() -> Iterator[None]:
    """Keep torch from noting the lines of Python that made each node: the graph drops them, and a twentieth goes there.

    Versions of torch that know no such switch note them.
    """
    before = getattr(fx_config, _TRACES_SWITCH, False)
    setattr(fx_config, _TRACES_SWITCH, True)
    try:
        yield
    finally:
        setattr(fx_config, _TRACES_SWITCH, before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter says of itself and nobody can act on; every other warning passes."""
    logger = logging.getLogger(
        "torch.onnx._internal.exporter._registration"
    )  # "torchvision is not installed"
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for message in _COSMETIC:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        logger.setLevel(level)
