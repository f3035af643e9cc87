"""Every level of a recipe gives a graph that engines take: planned layers quantized, no finding, one scale a tensor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gacq_deploy.calibration.planning import make_plan
from gacq_deploy.engines.open import open_engine
from gacq_deploy.errors import RecipeError
from gacq_deploy.export.cpu_flavour import to_cpu_flavour
from gacq_deploy.export.qdq import expected_sites, quantized_sites
from gacq_deploy.export.stage import euclidean_error
from gacq_deploy.graph.index import DEQUANTIZE, GraphIndex, module_of
from gacq_deploy.lint.lint import lint_graph
from gacq_deploy.models.structure.graph import trace_model
from gacq_deploy.recipe.load import load_recipe
from gacq_deploy.recipe.quantization import LEVELS
from tests.support.artifacts.nearest import ARCHITECTURES, exported

RECIPES = tuple(ARCHITECTURES)
pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "level", [level for level in LEVELS if level != "int4"]
)  # blocks do not divide layers this small
@pytest.mark.parametrize("name", RECIPES)
def test_every_level_of_a_recipe_is_clean(name: str, level: str) -> None:
    recipe = load_recipe(name, [f"quantization.level={level}"])
    if (name, level) == ("dit-w8a8", "conv"):
        with pytest.raises(RecipeError, match="leave every layer float"):
            make_plan(recipe, trace_model(ARCHITECTURES[name]()))
        return
    quantized = exported(name).quantized(recipe)
    assert quantized_sites(quantized.model) >= set(expected_sites(quantized.artifact.plan, "input"))
    for target in ("tensorrt", "openvino"):
        assert lint_graph(quantized.model, target=target) == []


@pytest.mark.parametrize("name", RECIPES)
def test_queries_keys_and_values_read_one_quantized_tensor(name: str) -> None:
    index = GraphIndex(exported(name).quantized(load_recipe(name)).model)
    read: dict[str, dict[str, str]] = {}
    for node in index.of_type("Gemm", "MatMul"):
        attention, _, projection = (module_of(node) or "").rpartition(".")
        if projection in ("to_q", "to_k", "to_v"):
            source = index.producer(node.input[0])
            assert source is not None
            assert source.op_type == DEQUANTIZE
            read.setdefault(attention, {})[projection] = node.input[0]
    assert read
    for attention, by_projection in read.items():
        assert len(by_projection) == 3
        assert by_projection["to_k"] == by_projection["to_v"]
        assert (by_projection["to_q"] == by_projection["to_k"]) == attention.endswith("attn1")
    # every cross attention reads the same text
    assert len({r["to_k"] for a, r in read.items() if a.endswith("attn2")}) <= 1


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("placement", ["input", "output"])
def test_int8_computes_what_float_does_but_for_rounding(name: str, placement: str, tmp_path: Path) -> None:
    model = exported(name)
    graph = model.quantized(load_recipe(name), placement=placement).model  # type: ignore[arg-type]
    inputs = {k: v.numpy() for k, v in model.denoiser.example_inputs(3, seed=5).items()}
    outputs = []
    for graph_bytes in (
        model.float_model.SerializeToString(),
        (to_cpu_flavour(graph) if placement == "output" else graph).SerializeToString(),
    ):
        with open_engine("ort-cpu", graph_bytes, threads=1) as engine:
            outputs.append(engine.run(inputs)["output"])
    assert outputs[0].shape == inputs["sample"].shape
    assert np.isfinite(outputs[1]).all()
    assert 1e-5 < euclidean_error(outputs[1], outputs[0]) < 0.1
