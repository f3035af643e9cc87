"""What does the graph look like when only some of the planned sites are quantized?"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from onnx import ModelProto

from gacq_deploy.artifact import CalibrationArtifact
from gacq_deploy.export.cpu_flavour import to_cpu_flavour
from gacq_deploy.export.graph import drop_unused_initializers, module_of
from gacq_deploy.export.layers import QUANTIZABLE
from gacq_deploy.export.qdq import insert_qdq
from gacq_deploy.parity.exact import CPU, Flavour
from gacq_deploy.spec import QuantPlan, Role, Site

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
        return tuple(s for s in (Site(module, r) for r in roles) if self.artifact.plan.get(s))

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
        touched = [m for m in self.modules if any(s.module == m for s in wanted)] or [self.modules[0]]
        split = {
            site
            for m in touched
            for site in (Site(m, role) for role in _POSITION)
            if site not in wanted and self.artifact.plan.get(site)
        }
        entries = tuple(
            e
            for e in self.artifact.plan
            if e.site.module in touched and (e.site.role != "output" or e.site in wanted)
        )
        outputs = self.flavour is CPU and any(e.site.role == "output" for e in entries)
        graph = insert_qdq(
            self.float_graph,
            replace(self.artifact, plan=QuantPlan(entries)),
            placement="output" if outputs else "input",
        )
        if split:
            self._undo(graph, split)
            return graph
        return to_cpu_flavour(graph) if outputs else graph

    def _undo(self, graph: ModelProto, sites: Collection[Site]) -> None:
        """Let the layers of ``sites`` read the float tensors again."""
        original = {n.name: n for n in self.float_graph.graph.node}
        names: set[str] = set()
        for node in graph.graph.node:
            if node.op_type not in QUANTIZABLE or node.name not in original:
                continue
            for role, position in _POSITION.items():
                if Site(module_of(node) or "", role) in sites:
                    node.input[position] = original[node.name].input[position]
                    names.add(node.input[position])
        present = {t.name for t in graph.graph.initializer}
        graph.graph.initializer.extend(
            t for t in self.float_graph.graph.initializer if t.name in names - present
        )
        _drop_unread(graph)


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
