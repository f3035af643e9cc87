"""What would export refuse, and which layers read one tensor there? Asked of shapes, before the first sample.

Export comes hours later. So its float graph is captured here, planned sites are quantized in it with codes that are
shapes, and every rule of every engine is asked; no weight is read and nothing is written.
"""

from __future__ import annotations

import numpy as np

from gacq_deploy.artifact.artifact import CalibrationArtifact
from gacq_deploy.engines.catalogue import graphs_for
from gacq_deploy.export.float_graph.graph import FloatGraph, weightless_graph
from gacq_deploy.export.layers import QUANTIZABLE_OPERATORS
from gacq_deploy.export.qdq import needed_opset
from gacq_deploy.export.quantized import quantized_graph
from gacq_deploy.graph.index import GraphIndex, module_of
from gacq_deploy.graph.weights import shape_if_large
from gacq_deploy.models.base import Denoiser
from gacq_deploy.recipe.sections import Recipe
from gacq_deploy.spec import QuantPlan, Site, TensorParams


def capture_for(recipe: Recipe, denoiser: Denoiser, plan: QuantPlan) -> FloatGraph:
    """Return the float graph that export will make.

    Raises:
        ExportError: it cannot be made.
    """
    opset = needed_opset(plan, recipe.export.opset)
    return weightless_graph(denoiser, opset=opset, dynamic_resolution=recipe.export.dynamic_resolution)


def read_together(captured: FloatGraph) -> list[tuple[Site, ...]]:
    """Return the input sites of layers that read one tensor, in graph order: equal computations have become one."""
    index = GraphIndex(captured.model)
    readers: dict[str, dict[Site, None]] = {}
    for node in index.of_type(*QUANTIZABLE_OPERATORS):
        module = module_of(node)
        if module is not None and node.input[0] not in index.initializers:
            readers.setdefault(node.input[0], {})[Site(module, "input")] = None
    return [tuple(sites) for sites in readers.values() if len(sites) > 1]


def check_exportable(recipe: Recipe, denoiser: Denoiser, captured: FloatGraph, plan: QuantPlan) -> None:
    """Refuse a plan that export would refuse.

    Raises:
        ExportError: as :func:`gacq_deploy.export.stage.export_onnx`, but for what only learned numbers can tell.
    """
    stand_in = _stand_in(denoiser, plan)
    for name in graphs_for(recipe.export.targets)[1:]:
        quantized_graph(name, captured.model, stand_in, store=shape_if_large)


def _stand_in(denoiser: Denoiser, plan: QuantPlan) -> CalibrationArtifact:
    """Return an artifact of this plan, all codes zero; sites that share a quantizer share a scale, and no others."""
    ties = {entry.tie: number for number, entry in enumerate(plan)}
    params = {}
    for entry in plan:
        if entry.site.role == "weight":
            shape = tuple(denoiser.module.get_submodule(entry.site.module).get_parameter("weight").shape)
            scale = np.ones(entry.spec.scale_shape(shape), np.float32)
            params[entry.site] = TensorParams(scale, np.broadcast_to(np.int8(0), shape))
        else:
            params[entry.site] = TensorParams(np.array(1 + ties[entry.tie] * 2**-20, np.float32))
    return CalibrationArtifact(
        model=denoiser.record,
        plan=plan,
        params=params,
        weight_digests={},
        recipe={},
        samples_sha256="",
        history=(),
        probe=None,
    )
