"""What does the graph look like when only some of the planned sites are quantized?"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from onnx import ModelProto, NodeProto, numpy_helper

from gacq_deploy.artifact.artifact import CalibrationArtifact
from gacq_deploy.export.cpu_flavour import to_cpu_flavour
from gacq_deploy.export.layers import QUANTIZABLE_OPERATORS
from gacq_deploy.export.qdq import insert_qdq
from gacq_deploy.graph.index import GraphIndex, drop_unused_initializers, module_of, weight_axis
from gacq_deploy.parity.exact import CPU, Flavour
from gacq_deploy.spec import Array, QuantPlan, Role, Site

_POSITION: dict[Role, int] = {"input": 0, "weight": 1}
"""Where a layer's node reads the tensor of a role."""


@dataclass(frozen=True)
class Variants:
    """Builds variants of one flavour of the Q/DQ graph by the passes that export it.

    A variant that leaves whole modules float is what an export of an artifact without them would be.
    """

    float_graph: ModelProto
    artifact: CalibrationArtifact
    flavour: Flavour

    @property
    def modules(self) -> tuple[str, ...]:
        """Planned modules in execution order."""
        return self.artifact.plan.modules

    def sites_of(self, module: str) -> tuple[Site, ...]:
        """Return the sites of a module that this flavour quantizes; weight first."""
        roles: tuple[Role, ...] = ("weight", *self.flavour.roles)
        sites = (Site(module, role) for role in roles)
        return tuple(site for site in sites if self.artifact.plan.get(site))

    def without(self, modules: Collection[str]) -> ModelProto:
        """Return the graph in which every planned module but these is quantized."""
        kept = [m for m in self.modules if m not in modules]
        return self.only([s for m in kept for s in self.sites_of(m)])

    def only(self, sites: Collection[Site]) -> ModelProto:
        """Return the graph in which exactly these sites are quantized; none is allowed.

        Where a module is quantized in part, or no convolution output is, there is nothing that ONNX Runtime's
        integer kernels could take: such a variant stays signed, which is the same grid.
        """
        wanted = frozenset(sites)
        named = {site.module for site in wanted}
        # a graph without any Q/DQ cannot be made: one module is quantized, and undone below
        touched = [m for m in self.modules if m in named] or [self.modules[0]]
        split = self._left_out(touched, wanted)
        entries = tuple(
            e
            for e in self.artifact.plan
            if e.site.module in touched and (e.site.role != "output" or e.site in wanted)
        )
        outputs = self.flavour is CPU and any(e.site.role == "output" for e in entries)
        whole = len(touched) == len(self.modules) and not split
        artifact = replace(self.artifact if whole else self._explicit, plan=QuantPlan(entries))
        graph = insert_qdq(self.float_graph, artifact, placement="output" if outputs else "input")
        if split:
            self._undo(graph, split)
            return graph
        return to_cpu_flavour(graph) if outputs else graph

    def _left_out(self, modules: Collection[str], wanted: Collection[Site]) -> set[Site]:
        """Return the planned weights and inputs of ``modules`` that are not wanted."""
        sites = (Site(module, role) for module in modules for role in _POSITION)
        return {site for site in sites if site not in wanted and self.artifact.plan.get(site)}

    @cached_property
    def _explicit(self) -> CalibrationArtifact:
        """The artifact without smoothing in norms: a layer that is left float reads what the norm makes."""
        parameters, smoothing = dict(self.artifact.parameters), dict(self.artifact.smoothing)
        factors = {s.norm: s.factor for s in smoothing.values() if s.norm is not None}
        for norm, factor in factors.items():
            for name in (f"{norm}.weight", f"{norm}.bias"):
                if name in parameters:
                    parameters[name] = replace(parameters[name], value=parameters[name].value / factor)
        smoothing = {site: replace(s, norm=None) for site, s in smoothing.items()}
        return replace(self.artifact, parameters=parameters, smoothing=smoothing)

    def _undo(self, graph: ModelProto, sites: Collection[Site]) -> None:
        """Let the layers of ``sites`` read the float tensors again, smoothed where only one of a layer's two is."""
        original = {n.name: n for n in self.float_graph.graph.node}
        index, source = GraphIndex(graph), GraphIndex(self.float_graph)
        names: set[str] = set()
        for node in graph.graph.node:
            if node.op_type not in QUANTIZABLE_OPERATORS or node.name not in original:
                continue
            for role, position in _POSITION.items():
                site = Site(module_of(node) or "", role)
                if site not in sites:
                    continue
                factor = self._explicit.multiplier(Site(site.module, "input"))
                if factor is None or {Site(site.module, r) for r in _POSITION} <= set(sites):
                    node.input[position] = original[node.name].input[position]
                    names.add(node.input[position])
                elif role == "input":
                    node.input[position] = _quantized_tensor(index, node.input[position])
                else:
                    weight = source.constant(original[node.name].input[position])
                    assert weight is not None, f"{site}: its weight is computed"
                    node.input[position] = _store(graph, f"{site}.smoothed", _smoothed(node, weight, factor))
        present = {t.name for t in graph.graph.initializer}
        graph.graph.initializer.extend(
            t for t in self.float_graph.graph.initializer if t.name in names - present
        )
        _drop_unread(graph)


def _quantized_tensor(index: GraphIndex, dequantized: str) -> str:
    """Return the tensor whose dequantized codes are read."""
    codes = index.producers[dequantized].input[0]
    return str(index.producers[codes].input[0])


def _smoothed(node: NodeProto, weight: Array, factor: Array) -> Array:
    """Return a stored weight divided by what multiplies the layer's input."""
    divisor = factor if weight_axis(node, weight.ndim) == 0 else factor[:, None]
    return np.ascontiguousarray(weight / divisor)


def _store(graph: ModelProto, name: str, value: Array) -> str:
    if name not in {t.name for t in graph.graph.initializer}:
        graph.graph.initializer.append(numpy_helper.from_array(value, name))
    return name


def _drop_unread(graph: ModelProto) -> None:
    """Remove the quantizers that nobody reads any more, then their scales."""
    outputs = {o.name for o in graph.graph.output}
    while True:
        read = {name for node in graph.graph.node for name in node.input} | outputs
        dead = [i for i, node in enumerate(graph.graph.node) if not read & set(node.output)]
        if not dead:
            break
        for index in reversed(dead):
            del graph.graph.node[index]
    drop_unused_initializers(graph)
