"""The real compiler makes INT8 of every layer that a recipe plans, for each architecture, and the same each time."""

from __future__ import annotations

from pathlib import Path

import pytest

from gacq_deploy.building.compiler import Compiled, compile_graph
from gacq_deploy.building.coverage import measure_coverage
from gacq_deploy.building.options import CompileOptions
from gacq_deploy.building.profiles import ShapeRequest, derive_profiles, input_dims
from gacq_deploy.recipe import load_recipe
from tests.support.nearest import ARCHITECTURES, Quantized, exported

pytestmark = [pytest.mark.slow, pytest.mark.rtx]


def build(quantized: Quantized, batch: tuple[str, ...], folder: Path) -> Compiled:
    folder.mkdir()
    profiles = derive_profiles(input_dims(quantized.model), ShapeRequest(batch))
    options = CompileOptions(backend="tensorrt-rtx", profiles=profiles)
    return compile_graph(quantized.save(folder), options, folder=folder)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_planned_layer_of_a_recipe_compiles_to_int8(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    quantized = exported(name).quantized(recipe)
    compiled = build(quantized, recipe.build.batch, tmp_path / "engine")
    coverage = measure_coverage(quantized.model, compiled.layers, quantized.artifact.plan.modules)
    assert coverage.planned == len(quantized.artifact.plan.modules)
    assert coverage.share >= 0.95, [str(node) for node in coverage.lost]


@pytest.mark.parametrize("name", ["sd15-w8a8", "dit-w8a8"])
def test_two_builds_give_the_same_bytes(name: str, tmp_path: Path) -> None:
    # with a dynamic batch the compiler numbers and orders its shape computations as its threads happen to run
    quantized = exported(name).quantized(load_recipe(name))
    first, again = (build(quantized, ("2",), tmp_path / folder) for folder in ("first", "again"))
    assert again.layers == first.layers
    assert again.plan.read_bytes() == first.plan.read_bytes()
