"""The real compiler makes the same of one graph each time."""

from __future__ import annotations

from pathlib import Path

import pytest

from gacq_deploy.build_trt.compiler import Compiled, compile_graph
from gacq_deploy.build_trt.options import CompileOptions
from gacq_deploy.build_trt.profiles import ShapeRequest, derive_profiles, input_dims
from gacq_deploy.recipe.load import load_recipe
from tests.support.artifacts.nearest import Quantized, exported

pytestmark = [pytest.mark.slow, pytest.mark.rtx]


def build(quantized: Quantized, batch: tuple[str, ...], folder: Path) -> Compiled:
    folder.mkdir()
    profiles = derive_profiles(input_dims(quantized.model), ShapeRequest(batch))
    options = CompileOptions(backend="tensorrt-rtx", profiles=profiles)
    return compile_graph(quantized.save(folder), options, folder=folder)


def test_two_builds_give_the_same_bytes(tmp_path: Path) -> None:
    # with a dynamic batch the compiler numbers and orders its shape computations as its threads happen to run
    quantized = exported("dit-w8a8").quantized(load_recipe("dit-w8a8"))
    first, again = (build(quantized, ("2",), tmp_path / folder) for folder in ("first", "again"))
    assert again.layers == first.layers
    assert again.engine.read_bytes() == first.engine.read_bytes()
