"""How does a graph reach the disk, and come back? One file, or one file and its weights beside it."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto

from gacq_deploy.errors import ArtifactError
from gacq_deploy.graph.header import WHOLE_FILE_HINT, read_header
from gacq_deploy.graph.index import model_bytes, without_initializers
from gacq_deploy.storage.files import atomic_path, write_bytes

_MIB = 2**20
_ALIGNMENT = 4096
"""ONNX asks for offsets that are multiples of a page, so that a reader can map the weights."""
_SMALLEST_EXTERNAL = 1024
"""Bytes of a weight below which it stays in the graph, as in onnx's own writer."""
_PROTOBUF_LIMIT = 2**31 - 2**26
"""Short of the 2 GB that a message may have: names and shapes of the weights come on top."""


def data_path(path: Path) -> Path:
    """Return where the weights of a large graph lie."""
    return path.with_name(f"{path.name}.data")


def write_graph(model: onnx.ModelProto, path: Path, *, external_data_mb: int) -> tuple[Path, ...]:
    """Write ``model`` atomically; return the files, the graph itself last.

    Weights go to ``<name>.data`` when the model is larger than ``external_data_mb`` MiB; a data file left
    over from a larger model is removed.
    """
    weights = data_path(path)
    if model_bytes(model) <= min(external_data_mb * _MIB, _PROTOBUF_LIMIT):
        write_bytes(path, model.SerializeToString(deterministic=True))
        weights.unlink(missing_ok=True)
        return (path,)
    # weights first: the graph may not name a data file that is not there yet
    outer = without_initializers(model)
    with atomic_path(weights, model_bytes(model)) as temp, temp.open("wb") as file:
        for tensor in model.graph.initializer:
            data = tensor.raw_data
            if len(data) < _SMALLEST_EXTERNAL:
                outer.graph.initializer.append(tensor)
                continue
            file.write(bytes(-file.tell() % _ALIGNMENT))
            _point_outside(outer.graph.initializer.add(), tensor, weights.name, (file.tell(), len(data)))
            file.write(data)
    write_bytes(path, outer.SerializeToString(deterministic=True))
    return (weights, path)


def read_graph(path: Path) -> onnx.ModelProto:
    """Read a graph with its weights.

    Raises:
        ArtifactError: missing, not ONNX, or its weights are missing, truncated or outside its own folder.
    """
    model = read_header(path)
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise ArtifactError(f"The weights of {path} cannot be read: {error}", WHOLE_FILE_HINT) from error
    return model


def _point_outside(target: TensorProto, source: TensorProto, location: str, place: tuple[int, int]) -> None:
    target.name, target.data_type, target.data_location = source.name, source.data_type, TensorProto.EXTERNAL
    target.dims.extend(source.dims)
    for key, value in (("location", location), ("offset", place[0]), ("length", place[1])):
        entry = target.external_data.add()
        entry.key, entry.value = key, str(value)
