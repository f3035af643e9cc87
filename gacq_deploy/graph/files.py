"""How does a graph reach the disk, and come back? One file, or one file and its weights beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from onnx import TensorProto

from gacq_deploy.graph.header import read_header
from gacq_deploy.graph.index import model_bytes, without_initializers
from gacq_deploy.graph.weights import Store, WeightFile, is_whole, set_folder, stored, with_values
from gacq_deploy.spec import Array
from gacq_deploy.storage.files import atomic_path, scratch, write_bytes

_MIB = 2**20
_PROTOBUF_LIMIT = 2**31 - 2**26
"""Short of the 2 GB that a message may have: names and shapes of the weights come on top."""
FindValues = Callable[[TensorProto], TensorProto | Array]
"""Returns a tensor with its values, or the values alone, of one that may be a shape."""


def data_path(path: Path) -> Path:
    """Return where the weights of a large graph lie."""
    return path.with_name(f"{path.name}.data")


def is_large(model: onnx.ModelProto, external_data_mb: int) -> bool:
    """Tell whether the weights of a graph go to a file of their own."""
    return model_bytes(model) > min(external_data_mb * _MIB, _PROTOBUF_LIMIT)


@contextmanager
def weight_store(model: onnx.ModelProto, folder: Path) -> Iterator[Store]:
    """Give what keeps new weights for a graph that is made of ``model`` until it is written.

    Of a model whose weights lie in a file they do so, too: in one in ``folder``, which is removed in the end.
    """
    if is_whole(model):
        yield stored
        return
    with scratch(folder / "weights", folder=False) as path, path.open("wb") as file:
        yield WeightFile(path, file).store


def write_graph(
    model: onnx.ModelProto, path: Path, *, external_data_mb: int, find: FindValues = with_values
) -> tuple[Path, ...]:
    """Write ``model`` atomically; return the files, the graph itself last.

    Weights go to ``<name>.data``, one at a time, when the model is larger than ``external_data_mb`` MiB; a data file
    left over from a larger model is removed.

    Args:
        model: not changed.
        path: of the graph.
        external_data_mb: MiB.
        find: where initializers that are shapes alone get their values from.
    """
    weights = data_path(path)
    outer = without_initializers(model)
    if not is_large(model, external_data_mb):
        outer.graph.initializer.extend(with_found(tensor, find) for tensor in model.graph.initializer)
        write_bytes(path, outer.SerializeToString(deterministic=True))
        weights.unlink(missing_ok=True)
        return (path,)
    # weights first: the graph may not name a data file that is not there yet
    with atomic_path(weights, model_bytes(model)) as temp, temp.open("wb") as file:
        data = WeightFile(weights, file)
        for tensor in model.graph.initializer:
            found = find(tensor)
            kept = data.add(found) if isinstance(found, TensorProto) else data.store(found, tensor.name)
            outer.graph.initializer.append(kept)
    set_folder(outer, None)
    write_bytes(path, outer.SerializeToString(deterministic=True))
    return (weights, path)


def with_found(tensor: TensorProto, find: FindValues) -> TensorProto:
    """Return a tensor that holds the values found for it."""
    found = find(tensor)
    return with_values(found) if isinstance(found, TensorProto) else stored(found, tensor.name)


def read_graph(path: Path) -> onnx.ModelProto:
    """Read a graph; weights that lie beside it stay there, and are mapped when asked for.

    Raises:
        ArtifactError: missing, not ONNX, or its weights are missing, truncated or outside its own folder.
    """
    model = read_header(path)
    set_folder(model, path.parent.absolute())
    return model
