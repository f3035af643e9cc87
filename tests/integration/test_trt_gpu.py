"""Real plans on a real GPU, by whichever of the two libraries is here, against ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from gacq_deploy.backends.trt.deserialized import Expected
from gacq_deploy.backends.trt.engine import TrtEngine
from gacq_deploy.backends.trt.library import TRT_NAMES, load_trt
from gacq_deploy.build_trt.compiler import compile_graph
from gacq_deploy.build_trt.options import CompileOptions, ShapeRange
from gacq_deploy.engines.catalogue import TrtName
from gacq_deploy.engines.open import open_engine
from gacq_deploy.errors import ArtifactError, BackendUnavailable, EngineError
from tests.support.graphs.onnx_graphs import SAMPLE_SHAPE, denoiser_graph, feeds, reference
from tests.support.graphs.qdq_blocks import group_norm

pytestmark = pytest.mark.gpu
TOLERANCE = 5e-3  # float convolutions may run in TF32


@pytest.fixture(params=TRT_NAMES)
def library(request: pytest.FixtureRequest) -> TrtName:
    name: TrtName = request.param
    try:
        load_trt(name)
    except BackendUnavailable as error:
        pytest.skip(error.message)
    return name


def _profile(least: int, best: int, most: int) -> dict[str, ShapeRange]:
    rest: dict[str, tuple[int, ...]] = {"sample": SAMPLE_SHAPE, "timestep": (), "class_labels": ()}
    return {n: ShapeRange(min=(least, *d), opt=(best, *d), max=(most, *d)) for n, d in rest.items()}


@pytest.fixture
def plan(library: TrtName, tmp_path: Path) -> tuple[Path, Expected]:
    graph = tmp_path / "float.onnx"
    onnx.save(denoiser_graph(), graph)
    options = CompileOptions(backend=library, profiles=(_profile(1, 2, 4), _profile(5, 8, 8)))
    compiled = compile_graph(graph, options, folder=tmp_path)
    return compiled.engine, Expected(library, compiled.version)


@pytest.mark.parametrize("graphs", [True, False])
def test_every_profile_and_batch_agrees_with_the_graph(plan: tuple[Path, Expected], graphs: bool) -> None:
    path, expected = plan
    with TrtEngine(path, expected=expected, cuda_graphs=graphs) as engine:
        assert [p.index for p in engine.profiles] == [0, 1]
        for turn in range(3):
            for rows in (1, 2, 3, 4, 5, 8):
                given = feeds(rows, seed=turn)
                np.testing.assert_allclose(engine.run(given)["output"], reference(given), atol=TOLERANCE)
        assert engine.cuda_graphs is graphs
        with pytest.raises(EngineError, match="profile 1"):
            engine.run(feeds(9))


def test_graphs_change_no_bit(plan: tuple[Path, Expected]) -> None:
    path, expected = plan
    with (
        TrtEngine(path, expected=expected, cuda_graphs=False) as plain,
        TrtEngine(path, expected=expected) as graph,
    ):
        for seed in range(4):
            given = feeds(2, seed=seed)
            np.testing.assert_array_equal(graph.run(given)["output"], plain.run(given)["output"])


def test_torch_tensors_stay_on_the_gpu(plan: tuple[Path, Expected]) -> None:
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch was built without CUDA")
    path, expected = plan
    given = feeds(3)
    with TrtEngine(path, expected=expected) as engine:
        for _ in range(3):
            tensors = {name: torch.from_numpy(a).cuda() for name, a in given.items()}
            output = torch.from_dlpack(engine.run_device(tensors)["output"])
            assert output.is_cuda
        np.testing.assert_array_equal(output.cpu().numpy(), engine.run(given)["output"])
    np.testing.assert_allclose(output.cpu().numpy(), reference(given), atol=TOLERANCE)


def test_an_int8_block_agrees_with_onnxruntime(library: TrtName, tmp_path: Path) -> None:
    graph = tmp_path / "int8.onnx"
    model = group_norm("operator")
    onnx.save(model, graph)
    compiled = compile_graph(graph, CompileOptions(backend=library), folder=tmp_path)
    (given,) = (i.name for i in model.graph.input)
    x = np.random.default_rng(0).standard_normal([1, 32, 8, 8]).astype(np.float32)
    with open_engine("ort-cpu", graph, threads=1) as ort, TrtEngine(compiled.engine) as engine:
        (wanted,), (got,) = ort.run({given: x}).values(), engine.run({given: x}).values()
    error = np.square(got - wanted).sum() / np.square(wanted).sum()
    assert error < 1e-3  # single codes may differ by one


def test_a_plan_of_another_version_or_gpu_is_refused(plan: tuple[Path, Expected]) -> None:
    path, expected = plan
    for other in (
        Expected(expected.library, "10.0.0.1"),
        Expected(expected.library, expected.version, compute_capabilities=("1.0",)),
    ):
        with pytest.raises(ArtifactError):
            TrtEngine(path, expected=other)
