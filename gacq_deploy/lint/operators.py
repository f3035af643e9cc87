"""Which operators and operator sets can an engine not take?"""

from __future__ import annotations

from collections.abc import Iterator

from onnx import NodeProto, defs

from gacq_deploy.graph.index import STANDARD_DOMAINS, opset_of
from gacq_deploy.graph.nodes import name_of
from gacq_deploy.lint.view import Hit, QuantView

_INTEGER_OPERATORS = (
    "QLinearConv", "QLinearMatMul", "QGemm", "QLinearAdd", "ConvInteger", "MatMulInteger",
    "MatMulIntegerToFloat", "DynamicQuantizeLinear",
)  # fmt: skip
_ONNXRUNTIME_DOMAINS = (*STANDARD_DOMAINS, "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc")
_OLDEST, _NEWEST = 13, 25
"""Older opsets have no per-channel Q/DQ; the engines' parsers end at the newest."""
_TESTED = range(19, 23)
"""Outside these, engines read Q/DQ differently."""


def opset_refused(view: QuantView) -> Iterator[Hit]:
    """Find opsets without per-channel Q/DQ, or newer than the parsers."""
    opset = opset_of(view.index.model)
    if not _OLDEST <= opset <= _NEWEST:
        yield Hit("(graph)", f"opset {opset}")


def opset_untested(view: QuantView) -> Iterator[Hit]:
    """Find opsets that parse but lie outside the tested range."""
    opset = opset_of(view.index.model)
    if _OLDEST <= opset <= _NEWEST and opset not in _TESTED:
        yield Hit("(graph)", f"opset {opset}")


def attention_operator(view: QuantView) -> Iterator[Hit]:
    """Find the fused Attention of opset 23."""
    for node in view.index.of_type("Attention"):
        if node.domain in STANDARD_DOMAINS:
            yield Hit(name_of(node), f"Attention, opset {opset_of(view.index.model)}")


def integer_operator(view: QuantView) -> Iterator[Hit]:
    """Find operators that compute on integers directly, or quantize at run time."""
    for node in view.index.of_type(*_INTEGER_OPERATORS):
        yield Hit(name_of(node), node.op_type)


def foreign_domain(view: QuantView) -> Iterator[Hit]:
    """Find operators outside the standard domain that have no standard namesake."""
    yield from (hit for node, hit in _foreign(view, STANDARD_DOMAINS) if not defs.has(node.op_type))


def foreign_namesake(view: QuantView) -> Iterator[Hit]:
    """Find operators outside the standard domain that are called like a standard one."""
    yield from (hit for node, hit in _foreign(view, STANDARD_DOMAINS) if defs.has(node.op_type))


def foreign_domain_onnxruntime(view: QuantView) -> Iterator[Hit]:
    """Find operators that ONNX Runtime does not ship."""
    yield from (hit for _, hit in _foreign(view, _ONNXRUNTIME_DOMAINS))


def _foreign(view: QuantView, known: tuple[str, ...]) -> Iterator[tuple[NodeProto, Hit]]:
    own = {(function.domain, function.name) for function in view.index.model.functions}
    for node in view.index.nodes:
        if node.domain not in known and (node.domain, node.op_type) not in own:
            yield node, Hit(name_of(node), f"{node.domain}.{node.op_type}")
