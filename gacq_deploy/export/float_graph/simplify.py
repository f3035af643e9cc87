"""What of a captured graph can go without its function changing, for any weights?

The rewriting is onnxscript's, with two differences from ``optimize_ir``. Its rules take a constant for 0 or 1 that is
within 1e-8 or 1e-5 of it, and would drop an addition that matters where states are small: here a constant has to be
exact. And its rule for a chunk in two halves tries every pair of slices against every node of the graph, which took
4.2 of the 6.3 CPU minutes that SDXL's graph once took: here the readers of one tensor are looked at.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnx_ir.convenience import replace_nodes_and_values
from onnxscript.optimizer import fold_constants_ir
from onnxscript.rewriter import RewritePass, RewriteRule
from onnxscript.rewriter.pattern import Constant
from onnxscript.rewriter.rules import common

_ROUNDS = 2
"""What folding leaves, a rewriting may fold; a third round has never found anything."""


def _exactly(value: float) -> Constant:
    return Constant(value, rel_tol=0, abs_tol=0)


def _same(op: Any, x: Any) -> Any:
    return op.Identity(x)


_RULES = (
    *RewriteRule(lambda op, x: op.Mul(x, _exactly(1)), _same, name="times one").commute(),
    *RewriteRule(lambda op, x: op.Add(x, _exactly(0)), _same, name="plus zero").commute(),
    RewriteRule(lambda op, x: op.Sub(x, _exactly(0)), _same, name="minus zero"),
    RewriteRule(lambda op, x: op.Div(x, _exactly(1)), _same, name="by one"),
    common.dropout_zero_rule,
    common.dropout_inference_rule,
    common.two_reshapes_matmul_reshape_rule,
    common.one_reshape_matmul_reshape_rule,
    common.cast_constant_of_shape_rule,
    common.cast_constant_of_shape_without_value_rule,
    common.collapse_slice_rule,
    common.collapse_slice2_rule,
    common.materialize_reshape_shape_rule,
    common.min_min_rule,
    common.max_max_rule,
    common.min_max_rule,
    common.max_min_rule,
    common.successive_clip_relu_rule,
    common.successive_relu_clip_rule,
    common.successive_relu_rule,
    common.successive_clip_rule,
    common.cast_cast_rule,
    common.no_op_cast_rule,
    common.no_op_expand_rule,
    common.flatten_to_reshape_rule,
    common.reshape_reshape_rule,
    common.no_op_transpose_rule,
    common.transpose_transpose_rule,
    common.unsqueeze_unsqueeze_rule,
    common.squeeze_reshape_1d_rule,
    common.no_op_dynamic_scatter_nd_rule,
    common.no_op_static_scatter_nd_rule,
    common.normalize_pad_format_conv_rule,
    common.fuse_pad_into_conv_rule,
)
"""Those of onnxscript's own choice that do not look at weights, in its order."""


def simplify(model: ir.Model) -> None:
    """Simplify a graph in place; initializers without values are left for whatever they will be."""
    with _quiet():
        passes.InlinePass()(model)
        for _ in range(_ROUNDS):
            fold_constants_ir(model, onnx_shape_inference=True)
            RewritePass(_RULES)(model)
            _split_halves(model.graph)
            passes.RemoveUnusedNodesPass()(model)
        for last in (
            passes.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
            passes.RemoveUnusedOpsetsPass(),
            passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            passes.LiftSubgraphInitializersToMainGraphPass(),
            passes.DeduplicateInitializersPass(),
            passes.CommonSubexpressionEliminationPass(),
            passes.OutputFixPass(),
            passes.NameFixPass(),
        ):
            last(model)


def _split_halves(graph: ir.Graph) -> None:
    """Let one Split take the place of two Slices that cut the last axis of a tensor in halves."""
    for node in list(graph):
        if node.op_type != "Slice" or node.graph is not graph:
            continue
        source = node.inputs[0]
        assert source is not None, f"{node.name} slices nothing"
        halves = _halves(source)
        if halves is None:
            continue
        first, second = halves
        split = ir.node("Split", [source], {"axis": -1, "num_outputs": 2}, num_outputs=2)
        split.metadata_props.update(first.metadata_props)
        replace_nodes_and_values(
            graph,
            insertion_point=first,
            old_nodes=[first, second],
            new_nodes=[split],
            old_values=[first.outputs[0], second.outputs[0]],
            new_values=split.outputs,
        )


def _halves(source: ir.Value) -> tuple[ir.Node, ir.Node] | None:
    """Return the two Slices of a tensor that are its halves along the last axis, in order."""
    width = None if source.shape is None else source.shape[-1]
    if source.shape is None or not isinstance(width, int) or width % 2:
        return None
    last = (-1, len(source.shape) - 1)
    found: dict[tuple[int, int], ir.Node] = {}
    for node in source.consumers():
        if node.op_type == "Slice" and len(node.inputs) == 4:
            begin, end, axis = (_number(value) for value in node.inputs[1:])
            if begin is not None and end is not None and axis in last:
                found.setdefault((begin, end), node)
    first, second = found.get((0, width // 2)), found.get((width // 2, width))
    return None if first is None or second is None else (first, second)


def _number(value: ir.Value | None) -> int | None:
    """Return what a constant of one element holds."""
    constant = None if value is None else value.const_value
    return int(constant.numpy().item()) if constant is not None and constant.size == 1 else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence that initializers without values are passed over: they are meant to be."""
    logger = logging.getLogger("onnx_ir.passes.common.initializer_deduplication")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
