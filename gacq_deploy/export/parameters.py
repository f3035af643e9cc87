"""Where does the float graph hold the parameters that calibration retrained? They are replaced there, unrounded.

A bias or the affine part of a norm is a constant that some node of its module reads. Names say nothing: equal
constants are stored once for several modules, a norm's come reshaped to broadcast, a linear's bias is an addition
behind an anonymous product. So a constant is found by module, operator and the digest of its value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import NodeProto, numpy_helper

from gacq_deploy.artifact.artifact import CalibrationArtifact, RetrainedParameter
from gacq_deploy.errors import ExportError
from gacq_deploy.graph.index import GraphIndex, Use, drop_unused_initializers, module_of
from gacq_deploy.spec import Array
from gacq_deploy.storage.digests import digest_array

_NORMS = ("InstanceNormalization", "GroupNormalization", "LayerNormalization")
_ELEMENTWISE = ("Mul", "Add")
_OPTIONAL_BIAS = ("Conv", "ConvTranspose", "Gemm")
_READERS: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "weight": {"Mul": (0, 1), **dict.fromkeys(_NORMS, (1,))},
    "bias": {"Add": (0, 1), **dict.fromkeys((*_NORMS, *_OPTIONAL_BIAS), (2,))},
}
"""Kind of parameter -> operator -> inputs at which it may be read."""
_HINT = "Export the float graph again from the model that was calibrated (`gacq-deploy export --onnx`)."


def apply_parameters(model: onnx.ModelProto, artifact: CalibrationArtifact) -> onnx.ModelProto:
    """Return a copy of the float ``model`` that computes with the artifact's retrained parameters.

    A constant that several modules share is replaced for the nodes of the retrained module alone. Without
    retrained parameters the copy is equal to ``model``.

    Raises:
        ExportError: a parameter's constant is not in the graph, or is not the one calibration started from.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    put_parameters(result, artifact)
    return result


def put_parameters(model: onnx.ModelProto, artifact: CalibrationArtifact) -> None:
    """Do in place what :func:`apply_parameters` does on a copy.

    Raises:
        ExportError: as :func:`apply_parameters`.
    """
    if not artifact.parameters:
        return
    index = GraphIndex(model)
    uses = find_parameters(index, artifact)
    for name, parameter in artifact.parameters.items():
        _replace(index, name, parameter.value, uses[name])
    drop_unused_initializers(model)


def find_parameters(index: GraphIndex, artifact: CalibrationArtifact) -> dict[str, tuple[Use, ...]]:
    """Return where every retrained parameter is read in the float graph: once for each call of its module.

    The position of a use may be one past the node's inputs: exporters leave out a bias that is zero.

    Raises:
        ExportError: as :func:`apply_parameters`, naming parameter and module.
    """
    nodes: dict[str, list[NodeProto]] = {}
    for node in index.nodes:
        nodes.setdefault(module_of(node) or "", []).append(node)
    return {
        name: _find(index, nodes.get(name.rpartition(".")[0], []), name, parameter)
        for name, parameter in artifact.parameters.items()
    }


def _find(
    index: GraphIndex, nodes: Sequence[NodeProto], name: str, parameter: RetrainedParameter
) -> tuple[Use, ...]:
    module, _, kind = name.rpartition(".")
    if kind not in _READERS:
        raise ExportError(
            f"Retrained parameter '{name}' of module '{module}' is neither a weight nor a bias.",
            "Calibrate again with this version.",
        )
    shape = parameter.value.shape
    places = _places(index, nodes, kind, parameter.value.size)
    if not places and kind == "bias" and digest_array(np.zeros(shape, np.float32)) == parameter.source_sha256:
        places = [Use(n, 2) for n in nodes if n.op_type in _OPTIONAL_BIAS and not any(n.input[2:])]
        wrong = []
    else:
        digests = [digest_array(_stored(index, use).reshape(shape)) for use in places]
        wrong = [digest for digest in digests if digest != parameter.source_sha256]
    if wrong or not places:
        held = f"hold other values (digest {wrong[0][:12]})" if wrong else "are there"
        raise ExportError(
            f"Retrained parameter '{name}' of shape {list(shape)}: module '{module}' should read the value that "
            f"calibration started from (digest {parameter.source_sha256[:12]}); {len(wrong)} constants of that "
            f"size {held}.",
            _HINT,
        )
    return tuple(places)


def _places(index: GraphIndex, nodes: Sequence[NodeProto], kind: str, size: int) -> list[Use]:
    """Return where nodes of one module read a float constant of ``size`` values as a parameter of this kind."""
    found = [
        Use(node, position)
        for node in nodes
        for position in _READERS[kind].get(node.op_type, ())
        if position < len(node.input) and _is_float(index.constant(node.input[position]), size)
    ]
    plain = [use for use in found if use.node.op_type in _ELEMENTWISE]
    # a norm that ends in elementwise operators was taken apart: its own operator holds ones and zeros
    return plain or found


def _is_float(value: Array | None, size: int) -> bool:
    return value is not None and value.dtype == np.float32 and value.size == size


def _stored(index: GraphIndex, use: Use) -> Array:
    value = index.constant(use.node.input[use.position])
    assert value is not None, f"input {use.position} of '{use.node.name}' is computed"
    return value


def _replace(index: GraphIndex, name: str, value: Array, uses: Sequence[Use]) -> None:
    """Let every use read ``value`` in the shape that was stored there."""
    written: dict[tuple[int, ...], str] = {}
    for use in uses:
        missing = use.position >= len(use.node.input) or not use.node.input[use.position]
        shape = value.shape if missing else _stored(index, use).shape
        if shape not in written:
            written[shape] = f"{name}:retrained" + (f"#{len(written) + 1}" if written else "")
            tensor = numpy_helper.from_array(np.ascontiguousarray(value).reshape(shape), written[shape])
            index.model.graph.initializer.append(tensor)
        if use.position == len(use.node.input):
            use.node.input.append(written[shape])
        else:
            use.node.input[use.position] = written[shape]
