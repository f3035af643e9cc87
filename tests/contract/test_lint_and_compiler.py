"""Lint and compiler agree: every pattern is given to NVIDIA's own parser and compiler, and to our rules.

Three statements about each layer are held against each other: what the table of patterns declares, what
TensorRT-RTX makes of it, and what the lint predicts from the graph alone.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from gacq_deploy.build_trt.compiler import compile_graph
from gacq_deploy.build_trt.layers import CompiledLayer, int8_nodes
from gacq_deploy.build_trt.options import CompileOptions
from gacq_deploy.errors import EngineError
from gacq_deploy.lint.lint import RULES, Outcome, lint_graph, predict_compilation, why_not_int8
from tests.support.graphs.qdq_patterns import PATTERNS, Pattern

pytestmark = [pytest.mark.rtx, pytest.mark.usefixtures("warm_builds")]


def compiled(model: onnx.ModelProto, folder: Path) -> tuple[Outcome, tuple[CompiledLayer, ...]]:
    """Give a graph to the compiler."""
    onnx.save(model, folder / "graph.onnx")
    try:
        built = compile_graph(folder / "graph.onnx", CompileOptions(backend="tensorrt-rtx"), folder=folder)
    except EngineError as error:
        assert not (folder / "engine.plan").exists()
        return ("crash" if "crashed (SIGSEGV)" in error.message else "refused"), ()
    assert built.engine.is_file()
    assert built.layers
    return "int8", built.layers


@pytest.mark.slow  # all of them together take a minute
@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: p.name)
def test_lint_predicts_what_the_compiler_does(pattern: Pattern, tmp_path: Path) -> None:
    model = pattern.build()
    predicted = predict_compilation(model)
    outcome, layers = compiled(model, tmp_path)
    integer = int8_nodes(layers) | {node for layer in layers if layer.int8_product for node in layer.nodes}
    found: dict[str, Outcome] = {
        name: ("int8" if name in integer else "float") if outcome == "int8" else outcome
        for name in predicted.layers
    }
    assert outcome == pattern.build_outcome
    assert found == pattern.expected(list(found))
    assert predicted.outcome == outcome
    assert predicted.layers == pattern.predicted(found)


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: p.name)
def test_what_is_not_int8_has_a_reason(pattern: Pattern) -> None:
    model = pattern.build()
    predicted = predict_compilation(model)
    assert why_not_int8(model) == predicted.reasons
    assert set(predicted.reasons) == {name for name, outcome in predicted.layers.items() if outcome != "int8"}
    assert (predicted.end is not None) == (predicted.outcome != "int8")
    known = lint_graph(model, target="tensorrt")
    assert all(finding in known for finding in predicted.reasons.values())


def test_every_rule_that_stops_or_slows_the_compiler_has_its_pattern() -> None:
    reasons = [
        r
        for p in PATTERNS
        if (model := p.build())
        for r in (*why_not_int8(model).values(), predict_compilation(model).end)
    ]
    seen = {r.rule for r in reasons if r is not None}
    assert seen == {rule.id for rule in RULES if rule.compiled != "int8"}
