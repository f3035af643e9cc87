"""How does a graph reach the disk, and come back? One file, or one file and its weights beside it."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto

from gacq_deploy.backends.onnx_file import read_graph as checked_graph
from gacq_deploy.errors import ArtifactError
from gacq_deploy.storage import atomic_path, write_bytes

_MIB = 2**20
_ALIGNMENT = 4096
_SMALLEST_EXTERNAL = 1024
_PROTOBUF_LIMIT = 2**31 - 1
_HINT = "Run `gacq-deploy export --onnx` again, or restore the file from a copy."


def data_path(path: Path) -> Path:
    """Return where the weights of a large graph lie."""
    return path.with_name(f"{path.name}.data")


def write_graph(model: onnx.ModelProto, path: Path, *, external_data_mb: int) -> tuple[Path, ...]:
    """Write ``model`` atomically; return the files, the graph itself last.

    Weights go to ``<name>.data`` when the model is larger than ``external_data_mb`` MiB; a data file left
    over from a larger model is removed.
    """
    weights = data_path(path)
    if model.ByteSize() <= min(external_data_mb * _MIB, _PROTOBUF_LIMIT):
        write_bytes(path, model.SerializeToString(deterministic=True))
        weights.unlink(missing_ok=True)
        return (path,)
    outer = onnx.ModelProto()
    outer.CopyFrom(model)
    with atomic_path(weights) as temp, temp.open("wb") as file:
        for tensor in outer.graph.initializer:
            if len(tensor.raw_data) >= _SMALLEST_EXTERNAL:
                file.write(bytes(-file.tell() % _ALIGNMENT))
                offset = file.tell()
                file.write(tensor.raw_data)
                _point_outside(tensor, weights.name, offset)
    write_bytes(path, outer.SerializeToString(deterministic=True))
    return (weights, path)


def read_graph(path: Path) -> onnx.ModelProto:
    """Read a graph with its weights.

    Raises:
        ArtifactError: missing, not ONNX, or its weights are missing, truncated or outside its own folder.
    """
    model = checked_graph(path)
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise ArtifactError(f"The weights of {path} cannot be read: {error}", _HINT) from error
    return model


def _point_outside(tensor: TensorProto, location: str, offset: int) -> None:
    length = len(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, str(value)
