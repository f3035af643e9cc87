"""The float graph of a structure, captured once in a test run: torch's exporter takes most of the time of a stage.

What is kept is what :func:`gacq_deploy.export.float_graph.graph.weightless_graph` made, in a folder that the test
processes share. The root conftest puts :func:`weightless_graph` in its place; tests of the exporter itself import the
real one.
"""

from __future__ import annotations

import gc
import hashlib
import inspect
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from onnx import ModelProto
from torch import nn

from gacq_deploy.artifact.call import CallRecord
from gacq_deploy.calibration import exportable
from gacq_deploy.export.float_graph import capture, graph
from gacq_deploy.export.float_graph.graph import FloatGraph
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.half_storage import stored_type
from gacq_deploy.storage.digests import canonical_json
from tests.support.programs.made_once import made_once

FOLDER = "GACQ_TEST_FLOAT_GRAPHS"
"""Environment variable: where the graphs are kept. Children of a test process find them there, too."""
_capture = graph.weightless_graph


def keep_graphs(put: Callable[[Any, str, Any], Any]) -> None:
    """Let all stages find a graph that was captured before; ``put`` sets an attribute, as ``setattr`` does."""
    for module in (graph, exportable):
        put(module, "weightless_graph", weightless_graph)


def weightless_graph(
    denoiser: Denoiser, *, opset: int = graph.DEFAULT_OPSET, dynamic_resolution: bool = False
) -> FloatGraph:
    """Return the float graph, as the exporter would."""
    capture.check_untouched(denoiser.module)

    def export(file: Path) -> None:
        gc.freeze()  # a capture looks for garbage among all objects: those of other tests cost more than its own
        made = _capture(denoiser, opset=opset, dynamic_resolution=dynamic_resolution)
        file.write_bytes(pickle.dumps((made.model.SerializeToString(), made.views)))

    key = _key(denoiser, opset, dynamic_resolution)
    file = made_once(Path(os.environ[FOLDER]) / f"{key}.graph", export)
    model, views = pickle.loads(file.read_bytes())
    return FloatGraph(ModelProto.FromString(model), views)


def _key(denoiser: Denoiser, opset: int, dynamic_resolution: bool) -> str:
    """Return the digest of what the exporter reads: code by its class, structure, buffers, call, settings."""
    module, record = denoiser.module, denoiser.record
    config = {k: v for k, v in dict(getattr(module, "config", {})).items() if not k.startswith("_")}
    parameters = list(module.named_parameters(remove_duplicate=False))
    first = {id(p): name for name, p in reversed(parameters)}
    facts = (
        [_facts(part) for part in module.modules()],
        str(module),
        json.dumps(config, sort_keys=True, default=str),  # a saved one has lists for tuples
        (denoiser.family.name, record.sample_shape, record.conditioning),
        _told(denoiser),
        (denoiser.num_train_timesteps, opset, dynamic_resolution),
        [(name, stored_type(p), tuple(p.shape), first[id(p)]) for name, p in parameters],
    )
    digest = hashlib.sha256(repr(facts).encode())
    for name, tensor in module.named_buffers():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _told(denoiser: Denoiser) -> bytes | str:
    """Return the call: in one order, and without the constants that ``forward`` takes where it is told nothing."""
    call: CallRecord | str = denoiser.call  # a wrapped module names its function
    if isinstance(call, str):
        return call
    taken = {name: p.default for name, p in inspect.signature(denoiser.module.forward).parameters.items()}
    # the same object: 0 and False are equal, and code may tell them apart
    told = {k: v for k, v in call.constants.items() if k not in taken or v is not taken[k]}
    return canonical_json({**call.model_dump(mode="json"), "constants": told})


def _facts(part: nn.Module) -> tuple[type, type, dict[str, object]]:
    """Return the code of a module, and what it was told when it was made, which no configuration may hold."""
    plain = bool | int | float | str | tuple | None
    message = {k: v for k, v in vars(part).items() if isinstance(v, plain)}
    return type(part), type(getattr(part, "processor", None)), message
