"""Is this ONNX file whole and its own, before a C++ parser sees it?"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto, TensorProto

from gacq_deploy.errors import ArtifactError
from gacq_deploy.graph.stored import tensors_in, tensors_of
from gacq_deploy.storage.outputs import require_name

SIZE_MULTIPLE_KEY = "gacq.size_multiple"
"""Model metadata: what open height and width must be multiples of."""
_NUMBER = re.compile("[0-9]{1,19}")
_LONGEST_NAME, _LONGEST_PATH = 255, 2048
"""Bytes of a file name on every common file system, and characters of a path below the model's folder."""
_ORT_MARK = "_ORT_"
"""In a location: what ONNX Runtime itself gives a meaning, such as ``*/_ORT_MEM_ADDR_/*``."""
WHOLE_FILE_HINT = (
    "Name a whole ONNX file, or a run; `gacq-deploy export --onnx RUN` makes a run's graphs again."
)


def read_header(model: Path | bytes) -> ModelProto:
    """Parse an ONNX model without loading external data, and check that such data may be loaded.

    Raises:
        ArtifactError: missing, truncated, not ONNX, without outputs; or external data that is missing, too
            short, outside the model's folder, a link, or shared with another path by a hard link.
    """
    if isinstance(model, Path):
        require_name(model)
    where = f"ONNX file {model}" if isinstance(model, Path) else "ONNX model in memory"
    try:
        data = model.read_bytes() if isinstance(model, Path) else model
        proto = onnx.load_model_from_string(data)
    except FileNotFoundError:
        raise ArtifactError(f"{where} is missing.", WHOLE_FILE_HINT) from None
    except OSError as error:
        raise ArtifactError(f"{where} cannot be read: {error}.", WHOLE_FILE_HINT) from error
    except DecodeError as error:
        raise ArtifactError(
            f"{where} is truncated or not an ONNX model ({error}).", WHOLE_FILE_HINT
        ) from error
    if not proto.graph.output or not proto.opset_import:
        raise ArtifactError(
            f"{where} holds no graph with outputs: truncated, or not an ONNX model.", WHOLE_FILE_HINT
        )
    for tensor in _tensors_of_model(proto):
        if tensor.data_location == TensorProto.EXTERNAL:
            _check_external(tensor, model, where)
    return proto


def size_multiple(model: ModelProto) -> int:
    """Return what the open height and width of a graph must be multiples of; 1 where nothing says so."""
    text = next((p.value for p in model.metadata_props if p.key == SIZE_MULTIPLE_KEY), "1")
    return max(int(text), 1) if text.isdecimal() else 1


def _tensors_of_model(proto: ModelProto) -> Iterator[TensorProto]:
    yield from tensors_in(proto.graph)
    for function in proto.functions:
        yield from tensors_of(function.node)


def _check_external(tensor: TensorProto, model: Path | bytes, where: str) -> None:
    entries = {e.key: e.value for e in tensor.external_data}
    location = entries.get("location", "")
    if isinstance(model, bytes):
        raise ArtifactError(
            f"{where}: tensor '{tensor.name}' lies in a file '{location}', which bytes cannot have.",
            "Pass the path of the ONNX file instead.",
        )
    _check_location(tensor, entries, where)
    folder = model.parent.resolve()
    relative = PurePosixPath(location)
    path = folder / relative
    outside = not location or relative.is_absolute() or ".." in relative.parts or "\\" in location
    if outside or path.resolve() != path or path.is_symlink():
        raise ArtifactError(
            f"{where}: external data '{location}' leads outside its folder or is a link.", WHOLE_FILE_HINT
        )
    if not path.is_file():
        raise ArtifactError(
            f"{where}: external data {path} is missing or not a regular file.", WHOLE_FILE_HINT
        )
    stat = path.stat()
    if stat.st_nlink != 1:
        raise ArtifactError(f"{where}: external data {path} has {stat.st_nlink} hard links.", WHOLE_FILE_HINT)
    position = [entries.get(key, "0") for key in ("offset", "length")]
    if not all(_NUMBER.fullmatch(text) for text in position):
        raise ArtifactError(
            f"{where}: tensor '{tensor.name}' has a malformed external position.", WHOLE_FILE_HINT
        )
    end = sum(map(int, position))
    if end > stat.st_size:
        raise ArtifactError(
            f"{where}: external data {path} has {stat.st_size} bytes, tensor '{tensor.name}' ends at {end}.",
            WHOLE_FILE_HINT,
        )


def _check_location(tensor: TensorProto, entries: Mapping[str, str], where: str) -> None:
    location = entries.get("location", "")
    # protobuf hands on as bytes what is no UTF-8
    if not all(isinstance(text, str) for text in entries.values()) or not _is_file_name(location):
        raise ArtifactError(
            f"{where}: tensor '{tensor.name}' lies in a file '{location!r:.99}', which no file can be called.",
            WHOLE_FILE_HINT,
        )
    if "*" in location or _ORT_MARK in location.upper():
        raise ArtifactError(
            f"{where}: external data '{location}' is no file: ONNX Runtime reads such a name as an address in memory.",
            WHOLE_FILE_HINT,
        )


def _is_file_name(location: str) -> bool:
    """Tell whether a file system could hold this path at all: others are not asked for."""
    longest = max(len(part.encode(errors="replace")) for part in location.split("/"))
    return "\0" not in location and longest <= _LONGEST_NAME and len(location) < _LONGEST_PATH
