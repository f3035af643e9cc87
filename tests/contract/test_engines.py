"""What every engine must do, run over all of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from gacq_deploy.backends.base import Engine, TensorInfo
from gacq_deploy.backends.function import FunctionEngine
from gacq_deploy.backends.mixed_steps import SteppedEngine
from gacq_deploy.backends.trt.engine import TrtEngine
from gacq_deploy.engines.catalogue import BUILT_IN, REFERENCE, engine_named
from gacq_deploy.engines.open import open_engine
from gacq_deploy.errors import BackendUnavailable, EngineError
from tests.support.graphs.onnx_graphs import SAMPLE_SHAPE, denoiser_graph, feeds, reference
from tests.support.trt.fake_cuda import FakeDriver, fake_device, fake_driver
from tests.support.trt.fake_trt import fake_trt, write_plan

Opener = Callable[[], Engine]


def _function() -> Engine:
    inputs = (
        TensorInfo("sample", "float32", (None, *SAMPLE_SHAPE)),
        TensorInfo("timestep", "int64", (None,)),
        TensorInfo("class_labels", "int64", (None,)),
    )
    outputs = (TensorInfo("output", "float32", (None, *SAMPLE_SHAPE)),)
    return FunctionEngine(lambda f: {"output": reference(dict(f)).astype(np.float32)}, inputs, outputs)


def _stepped(model: Path) -> Engine:
    """Two engines of one graph that share a batch by row."""
    one, other = (open_engine("ort-cpu", model, threads=1) for _ in range(2))
    return SteppedEngine(one, other, lambda timesteps: timesteps % 2 == 0)


@pytest.fixture
def gpu() -> Iterator[FakeDriver]:
    with fake_driver() as driver:
        yield driver


def _ways() -> Iterator[str]:
    """Yield ``engine/how`` for every engine of the catalogue that needs no GPU, or has a fake one."""
    for record in BUILT_IN:
        if record.compiled:
            yield f"{record.name}/fake"
        elif not record.on_gpu and not record.runs_in:
            yield from (record.name, f"{record.name}/bytes")


@pytest.fixture(params=["function", "stepped", f"{REFERENCE}/plain", *_ways()])
def opener(request: pytest.FixtureRequest, tmp_path: Path, gpu: FakeDriver) -> Opener:
    name, _, how = request.param.partition("/")
    if name == "function":
        return _function
    if how == "fake":
        plan = write_plan(tmp_path / "engine.plan")
        return lambda: TrtEngine(plan, library=fake_trt(gpu, name), device=fake_device(gpu))
    if name not in ("stepped", REFERENCE):
        _skip_unless_installed(name)
    data = denoiser_graph().SerializeToString()
    path = tmp_path / "float.onnx"
    path.write_bytes(data)
    if name == "stepped":
        return lambda: _stepped(path)
    return lambda: open_engine(name, data if how == "bytes" else path, threads=1, optimize=how != "plain")


def _skip_unless_installed(name: str) -> None:
    try:
        engine_named(name).load()
    except BackendUnavailable as error:
        pytest.skip(str(error))


def test_declares_inputs_and_outputs(opener: Opener) -> None:
    with opener() as engine:
        assert isinstance(engine, Engine)
        assert engine.label
        shapes = {i.name: (i.dtype, i.shape) for i in engine.inputs}
        assert shapes == {
            "sample": ("float32", (None, *SAMPLE_SHAPE)),
            "timestep": ("int64", (None,)),
            "class_labels": ("int64", (None,)),
        }
        assert [(o.name, o.dtype, o.shape) for o in engine.outputs] == [
            ("output", "float32", (None, *SAMPLE_SHAPE))
        ]


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_computes_any_batch(opener: Opener, batch: int) -> None:
    given = feeds(batch)
    with opener() as engine:
        results = engine.run(given)
    assert list(results) == ["output"]
    assert results["output"].dtype == np.float32
    np.testing.assert_allclose(results["output"], reference(given), atol=2e-6)


def test_rows_do_not_depend_on_their_batch(opener: Opener) -> None:
    given = feeds(6)
    with opener() as engine:
        together = engine.run(given)["output"]
        pairs = [engine.run({k: v[i : i + 2] for k, v in given.items()})["output"] for i in (0, 2, 4)]
    np.testing.assert_array_equal(together, np.concatenate(pairs))


def test_same_feeds_same_bits(opener: Opener) -> None:
    given = feeds(3)
    with opener() as engine:
        first = engine.run(given)["output"].copy()
        engine.run(feeds(3, seed=1))
        np.testing.assert_array_equal(engine.run(given)["output"], first)


def test_results_are_not_overwritten_by_the_next_run(opener: Opener) -> None:
    with opener() as engine:
        first = engine.run(feeds(2))["output"]
        kept = first.copy()
        engine.run(feeds(2, seed=1))
    np.testing.assert_array_equal(first, kept)


def test_takes_arrays_of_any_memory_layout(opener: Opener) -> None:
    given = feeds(2)
    strided = {**given, "sample": np.asfortranarray(given["sample"])}
    with opener() as engine:
        np.testing.assert_array_equal(engine.run(strided)["output"], engine.run(given)["output"])


def _without(name: str) -> dict[str, np.ndarray]:
    return {k: v for k, v in feeds(2).items() if k != name}


def _with(**values: np.ndarray) -> dict[str, np.ndarray]:
    return {**feeds(2), **values}


def _spoiled(value: float) -> dict[str, np.ndarray]:
    bad = feeds(2)
    bad["sample"][1, 0, 3, 3] = value
    return bad


BAD_FEEDS = {
    "missing input": (lambda: _without("timestep"), "timestep"),
    "unknown input": (lambda: _with(latent=np.zeros(2, np.float32)), "latent"),
    "float64 sample": (lambda: _with(sample=feeds(2)["sample"].astype(np.float64)), "float64"),
    "int32 timestep": (lambda: _with(timestep=feeds(2)["timestep"].astype(np.int32)), "int32"),
    "wrong channels": (lambda: _with(sample=feeds(2)["sample"][:, :3]), "sample"),
    "wrong rank": (lambda: _with(sample=feeds(2)["sample"][0]), "sample"),
    "scalar timestep": (lambda: _with(timestep=np.array(3)), "timestep"),
    "batch mismatch": (lambda: _with(timestep=feeds(3)["timestep"]), "batch size"),
    "empty batch": (lambda: {k: v[:0] for k, v in feeds(2).items()}, "batch >= 1"),
    "NaN": (lambda: _spoiled(np.nan), "row 1"),
    "Inf": (lambda: _spoiled(np.inf), "row 1"),
}


@pytest.mark.parametrize("case", BAD_FEEDS)
def test_refuses_feeds_that_do_not_fit(opener: Opener, case: str) -> None:
    make, message = BAD_FEEDS[case]
    with opener() as engine:
        with pytest.raises(EngineError) as caught:
            engine.run(make())
        assert message in str(caught.value)
        assert engine.label in str(caught.value)
        assert "the run failed" not in str(caught.value), "the library was asked"
        assert ("export.dynamic_resolution" in caught.value.hint) == ("has shape" in caught.value.message)
        np.testing.assert_allclose(engine.run(feeds(2))["output"], reference(feeds(2)), atol=2e-6)


def test_a_closed_engine_refuses_to_run(opener: Opener) -> None:
    with opener() as engine:
        engine.run(feeds(1))
    with pytest.raises(EngineError, match="closed"):
        engine.run(feeds(1))


def test_closes_when_the_block_raises(opener: Opener) -> None:
    engine = opener()
    with pytest.raises(KeyError), engine:
        raise KeyError
    with pytest.raises(EngineError, match="closed"):
        engine.run(feeds(1))


def test_two_threads_may_share_an_engine(opener: Opener) -> None:
    wrong: list[str] = []
    start = threading.Barrier(2)

    def work(engine: Engine, batch: int) -> None:
        start.wait()
        for seed in range(20):
            given = feeds(batch, seed=seed)
            if not np.allclose(engine.run(given)["output"], reference(given), atol=2e-6):
                wrong.append(f"batch {batch}, seed {seed}")

    with opener() as engine:
        threads = [threading.Thread(target=work, args=(engine, batch)) for batch in (2, 3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong
