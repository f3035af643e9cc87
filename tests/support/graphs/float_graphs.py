"""The float graph of a model, exported once in a test run: torch's exporter takes most of the time that stages take.

What is kept is what :func:`gacq_deploy.export.torch_onnx.float_graph` made, in a folder that the test processes
share. The root conftest puts :func:`float_graph` in its place for the stages; tests of the exporter itself import the
real one.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import onnx
import torch
from torch import nn

from gacq_deploy.export import torch_onnx
from gacq_deploy.models.base import Denoiser
from tests.support.programs.made_once import made_once

FOLDER = "GACQ_TEST_FLOAT_GRAPHS"
"""Environment variable: where the graphs are kept. Children of a test process find them there, too."""
_export = torch_onnx.float_graph


def float_graph(
    denoiser: Denoiser, *, opset: int = torch_onnx.DEFAULT_OPSET, dynamic_resolution: bool = False
) -> onnx.ModelProto:
    """Return the float graph, as the exporter would."""
    torch_onnx.check_untouched(denoiser.module)

    def export(file: Path) -> None:
        model = _export(denoiser, opset=opset, dynamic_resolution=dynamic_resolution)
        file.write_bytes(model.SerializeToString())

    key = _key(denoiser, opset, dynamic_resolution)
    file = made_once(Path(os.environ[FOLDER]) / f"{key}.onnx", export)
    return onnx.load_model_from_string(file.read_bytes())


def _key(denoiser: Denoiser, opset: int, dynamic_resolution: bool) -> str:
    """Return the digest of what the exporter reads: code by its class, structure, weights, call, settings."""
    module, record = denoiser.module, denoiser.record
    config = {k: v for k, v in dict(getattr(module, "config", {})).items() if not k.startswith("_")}
    facts = (
        [_facts(part) for part in module.modules()],
        str(module),
        json.dumps(config, sort_keys=True, default=str),  # a saved one has lists for tuples
        (denoiser.family.name, denoiser.call, record.sample_shape, record.conditioning),
        (denoiser.num_train_timesteps, opset, dynamic_resolution),
    )
    digest = hashlib.sha256(repr(facts).encode())
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _facts(part: nn.Module) -> tuple[type, type, dict[str, object]]:
    """Return the code of a module, and what it was told when it was made, which no configuration may hold."""
    plain = bool | int | float | str | tuple | None
    message = {k: v for k, v in vars(part).items() if isinstance(v, plain)}
    return type(part), type(getattr(part, "processor", None)), message
