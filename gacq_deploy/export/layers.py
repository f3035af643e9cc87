"""Which node computes which planned layer, and is its weight the one calibration saw?"""

from __future__ import annotations

from dataclasses import dataclass

from onnx import NodeProto

from gacq_deploy.artifact.artifact import CalibrationArtifact
from gacq_deploy.errors import ExportError
from gacq_deploy.graph.index import GraphIndex, module_of, weight_axis
from gacq_deploy.spec import Array, Site
from gacq_deploy.storage.digests import digest_array

QUANTIZABLE_OPERATORS = ("Conv", "Gemm", "MatMul")
_HINT = "Export the float graph again from the model that was calibrated (`gacq-deploy export --onnx`)."


@dataclass(frozen=True)
class LayerNode:
    """One node that computes a layer; a module called twice has two.

    ``axis`` is the output-channel axis of the stored weight; ``transposed`` says that the stored weight is
    the transpose of the module's own [out, in].
    """

    module: str
    node: NodeProto
    axis: int
    transposed: bool

    @property
    def data(self) -> str:
        """Name of the activation tensor the node reads."""
        return str(self.node.input[0])

    @property
    def result(self) -> str:
        """Name of the tensor the node writes."""
        return str(self.node.output[0])


def find_layers(index: GraphIndex, artifact: CalibrationArtifact) -> tuple[LayerNode, ...]:
    """Return the nodes of every planned layer, in graph order.

    Raises:
        ExportError: a planned layer has no node, its weight is computed at run time or is not the one that
            calibration saw (where it has values), or two nodes of one layer store the weight differently.
    """
    planned = set(artifact.plan.modules)
    found: dict[str, list[LayerNode]] = {}
    ordered: list[LayerNode] = []
    for node in index.of_type(*QUANTIZABLE_OPERATORS):
        module = module_of(node)
        weight = index.tensor(node.input[1]) if module in planned else None
        if module is None or weight is None:
            continue
        layer = _layer(module, node, len(weight.dims), artifact)
        if (values := index.constant(node.input[1])) is not None:
            _check_weight(layer, values, artifact)
        if any(other.transposed != layer.transposed for other in found.get(module, [])):
            raise ExportError(f"Two nodes of layer '{module}' store its weight in different layouts.", _HINT)
        found.setdefault(module, []).append(layer)
        ordered.append(layer)
    if lost := [m for m in artifact.plan.modules if m not in found]:
        raise ExportError(
            f"{len(lost)} of {len(planned)} planned layers have no Conv, Gemm or MatMul node with a stored "
            f"weight: {', '.join(lost[:5])}{' ...' if len(lost) > 5 else ''}.",
            _HINT,
        )
    return tuple(ordered)


def _layer(module: str, node: NodeProto, rank: int, artifact: CalibrationArtifact) -> LayerNode:
    axis = weight_axis(node, rank)
    site = Site(module, "weight")
    entry = artifact.plan.get(site)
    assert entry is not None, f"{site} is not planned"
    if entry.spec.axis != 0:
        raise ExportError(
            f"Site '{site}' is planned with axis {entry.spec.axis}; weights are quantized per output "
            "channel, axis 0.",
            "Calibrate again with this version.",
        )
    return LayerNode(module, node, axis, transposed=axis != 0)


def _check_weight(layer: LayerNode, weight: Array, artifact: CalibrationArtifact) -> None:
    own = weight.T if layer.transposed else weight
    found, expected = digest_array(own), artifact.weight_digests.get(str(Site(layer.module, "weight")))
    if found != expected:
        raise ExportError(
            f"Node '{layer.node.name}' of layer '{layer.module}' holds a weight of shape {list(own.shape)} with digest "
            f"{found[:12]}, calibration saw {str(expected)[:12]}: another model's weights, or a weight that an "
            "optimizer folded something into.",
            _HINT,
        )
