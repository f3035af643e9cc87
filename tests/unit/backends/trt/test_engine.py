"""The engine on TensorRT plans, against a runtime that checks every call."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gacq_deploy.backends.trt import engine as trt_module
from gacq_deploy.backends.trt.deserialized import Expected
from gacq_deploy.backends.trt.engine import BUCKETS_KEPT, TrtEngine
from gacq_deploy.errors import ArtifactError, BackendUnavailable, EngineError, ResourceError, UsageError
from tests.support.graphs.onnx_graphs import SAMPLE_SHAPE, feeds, reference
from tests.support.trt.fake_cuda import CUresult, FakeDriver, fake_device, fake_driver
from tests.support.trt.fake_trt import denoiser_profile, fake_trt, write_plan

LIBRARIES = ("tensorrt", "tensorrt-rtx")


@pytest.fixture
def driver() -> Iterator[FakeDriver]:
    with fake_driver() as driver:
        yield driver


def _open(driver: FakeDriver, plan: Path, library: str = "tensorrt", **options: Any) -> TrtEngine:
    return TrtEngine(plan, library=fake_trt(driver, library), device=fake_device(driver), **options)  # type: ignore[arg-type]


def _check(engine: TrtEngine, rows: int, seed: int = 0) -> None:
    given_feeds = feeds(rows, seed=seed)
    np.testing.assert_allclose(engine.run(given_feeds)["output"], reference(given_feeds), atol=2e-6)


@pytest.mark.parametrize("library", LIBRARIES)
def test_computes_with_and_without_graphs_over_changing_shapes(
    driver: FakeDriver, tmp_path: Path, library: str
) -> None:
    plan = write_plan(tmp_path / "engine.plan")
    for graphs in (True, False):
        with _open(driver, plan, library, cuda_graphs=graphs) as engine:
            for turn in range(3):
                for rows in (1, 3, 8, 2):
                    _check(engine, rows, seed=turn)


def test_captures_each_bucket_once_and_replays_it(driver: FakeDriver, tmp_path: Path) -> None:
    with _open(driver, write_plan(tmp_path / "engine.plan")) as engine:
        for turn in range(4):
            for rows in (2, 3):
                _check(engine, rows, seed=turn)
        assert driver.count("cuGraphInstantiate") == 2
        assert driver.count("cuGraphLaunch") == 2 * 3
        assert engine.cuda_graphs


def test_rtx_makes_its_own_graphs(driver: FakeDriver, tmp_path: Path) -> None:
    with _open(driver, write_plan(tmp_path / "engine.plan"), "tensorrt-rtx") as engine:
        for turn in range(3):
            _check(engine, 2, seed=turn)
    assert driver.count("cuStreamBeginCapture") == 0


@pytest.mark.parametrize("how", ["uncapturable", "cuGraphInstantiate", "cuStreamEndCapture"])
def test_goes_on_without_graphs_when_a_capture_fails(
    driver: FakeDriver, tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    facts = {"uncapturable": True} if how == "uncapturable" else {}
    with _open(driver, write_plan(tmp_path / "engine.plan", **facts)) as engine:
        if not facts:
            driver.failing[how] = CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
        for turn in range(4):
            _check(engine, 2, seed=turn)
        assert not engine.cuda_graphs
    assert driver.count("cuStreamBeginCapture") == 1
    assert caplog.text.count("without CUDA graphs") == 1


def test_keeps_a_bounded_number_of_buckets(driver: FakeDriver, tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "engine.plan", profiles=[denoiser_profile(1, 8, 32)])
    with _open(driver, plan) as engine:
        for rows in [*range(2, 3 + 2 * BUCKETS_KEPT), *range(2, 6)]:
            _check(engine, rows)
        alive = driver.live()["memory"]
    assert alive == 1 + 4 * BUCKETS_KEPT  # scratch, and per bucket three inputs and an output
    assert driver.events.count("context") == driver.count("cuMemAlloc") // 4


def test_frees_other_buckets_when_memory_runs_out(tmp_path: Path) -> None:
    row = 4 * int(np.prod(SAMPLE_SHAPE))
    with fake_driver(memory=1000 + 2 * 9 * row) as driver:
        with _open(driver, write_plan(tmp_path / "engine.plan")) as engine:
            for rows in (2, 8, 3, 8, 2):
                _check(engine, rows)
        assert driver.live() == {}


def test_out_of_memory_is_a_resource_error(tmp_path: Path) -> None:
    row = 4 * int(np.prod(SAMPLE_SHAPE))
    with fake_driver(memory=1000 + 2 * 3 * row) as driver:
        with _open(driver, write_plan(tmp_path / "engine.plan")) as engine:
            with pytest.raises(ResourceError, match="out of memory"):
                engine.run(feeds(8))
            _check(engine, 2)
        with pytest.raises(ResourceError, match="out of memory"):
            _open(driver, write_plan(tmp_path / "large.plan", scratch=1 << 20))
        with (
            _open(driver, write_plan(tmp_path / "full.plan", no_context=True)) as engine,
            pytest.raises(ResourceError, match="OutOfMemory"),
        ):
            engine.run(feeds(2))


def test_a_failed_run_tells_what_the_library_logged(driver: FakeDriver, tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "engine.plan", fails="Cask convolution execution")
    with _open(driver, plan) as engine, pytest.raises(EngineError, match="Cask convolution execution"):
        engine.run(feeds(2))


def test_a_broken_device_is_reported_and_everything_still_closes(tmp_path: Path) -> None:
    driver = FakeDriver()
    plan = write_plan(tmp_path / "engine.plan")
    with _open(driver, plan) as engine:
        _check(engine, 2)
        driver._broken = True
        with pytest.raises(EngineError, match="ILLEGAL_ADDRESS"):
            engine.run(feeds(2))
    assert {"context", "engine", "runtime", "device"} <= set(driver.events)
    assert not [text for text in driver.misuse if "without a current device" in text]


def test_closes_in_order(driver: FakeDriver, tmp_path: Path) -> None:
    with _open(driver, write_plan(tmp_path / "engine.plan")) as engine:
        _check(engine, 2)
        _check(engine, 2)
        assert driver.events == []
    # graph before the context it was recorded with, context before its scratch, engine before its runtime
    buffers = ["memory"] * 4
    assert driver.events == ["graph", *buffers, "context", "memory", "stream", "engine", "runtime", "device"]


def test_closes_after_an_error_in_the_block(driver: FakeDriver, tmp_path: Path) -> None:
    with pytest.raises(KeyError), _open(driver, write_plan(tmp_path / "engine.plan")) as engine:
        _check(engine, 2)
        raise KeyError
    with pytest.raises(EngineError, match="closed"):
        engine.run(feeds(2))
    with pytest.raises(EngineError, match="closed"):
        engine.run_device(feeds(2))


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("pad_to", [1, 2, 4])
def test_pads_up_to_the_rows_asked_for(driver: FakeDriver, tmp_path: Path, rows: int, pad_to: int) -> None:
    with _open(driver, write_plan(tmp_path / "engine.plan"), pad_to=pad_to) as engine:
        _check(engine, rows)
        (key,) = engine._buckets
    assert dict(key[1])["timestep"] == (max(rows, pad_to),)


def test_a_plan_for_one_row_is_not_padded(driver: FakeDriver, tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "engine.plan", profiles=[denoiser_profile(1, 1, 1)])
    with _open(driver, plan) as engine:
        _check(engine, 1)


def test_no_profile_names_the_ranges(driver: FakeDriver, tmp_path: Path) -> None:
    profiles = [denoiser_profile(2, 2, 2), denoiser_profile(4, 4, 6)]
    with _open(driver, write_plan(tmp_path / "engine.plan", profiles=profiles)) as engine:
        _check(engine, 3)  # padded up to the bucket of four
        with pytest.raises(EngineError) as caught:
            engine.run(feeds(7))
    assert "profile 0: sample [2, 4, 8, 8]" in str(caught.value)
    assert "profile 1: sample [4..6 (4), 4, 8, 8]" in str(caught.value)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    profiles=st.lists(
        st.lists(st.integers(1, 9), min_size=3, max_size=3).map(sorted), min_size=1, max_size=3
    ),
    batches=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    pad_to=st.integers(1, 5),
    graphs=st.booleans(),
)
def test_any_profiles_any_order_of_batches(
    tmp_path: Path, profiles: list[list[int]], batches: list[int], pad_to: int, graphs: bool
) -> None:
    plan = write_plan(tmp_path / "engine.plan", profiles=[denoiser_profile(*p) for p in profiles])
    most = max(p[2] for p in profiles)
    with fake_driver() as driver, _open(driver, plan, pad_to=pad_to, cuda_graphs=graphs) as engine:
        for rows in batches:
            if rows > most:
                with pytest.raises(EngineError, match="no profile"):
                    engine.run(feeds(rows))
            else:
                _check(engine, rows, seed=rows)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int64", "int32", "int8", "uint8"])
def test_every_type_goes_in_and_out(driver: FakeDriver, tmp_path: Path, dtype: str) -> None:
    from gacq_deploy.backends.trt.dlpack import numpy_dtype

    shape = [-1, 3, -1]
    plan = write_plan(
        tmp_path / "engine.plan",
        program="scaled",
        inputs={"x": (dtype, shape)},
        outputs={"y": (dtype, shape)},
        profiles=[{"x": ([1, 3, 1], [2, 3, 4], [4, 3, 8])}],
    )
    x = np.arange(30).reshape(2, 3, 5).astype(numpy_dtype(dtype))
    with _open(driver, plan) as engine:
        result = engine.run({"x": x})["y"]
        assert result.dtype == x.dtype
        assert engine.inputs[0].shape == (None, 3, None)
    np.testing.assert_array_equal(result.astype(np.float32), x.astype(np.float32) * 2 + 1)


def test_device_tensors_go_in_and_out_through_dlpack(driver: FakeDriver, tmp_path: Path) -> None:
    given_feeds = feeds(1)
    tensors = {name: torch.from_numpy(driver.lend(a)) for name, a in given_feeds.items()}
    with _open(driver, write_plan(tmp_path / "engine.plan")) as engine:
        for _ in range(3):
            output = torch.from_dlpack(engine.run_device(tensors)["output"])
            assert output.shape == (1, *SAMPLE_SHAPE)
        kept = output.clone()
        engine.run_device({n: torch.from_numpy(driver.lend(a)) for n, a in feeds(1, seed=1).items()})
    assert driver.count("cuMemcpyHtoDAsync") == driver.count("cuMemcpyDtoHAsync") == 0
    np.testing.assert_allclose(output.numpy(), reference(given_feeds), atol=2e-6)
    assert torch.equal(kept, output)
    assert driver.live() == {"memory": 1, "contexts": 1}  # the result outlives its engine
    del output
    assert driver.live() == {}


def test_device_tensors_are_checked_as_host_arrays_are(driver: FakeDriver, tmp_path: Path) -> None:
    with _open(driver, write_plan(tmp_path / "engine.plan")) as engine:
        good = {name: driver.lend(a) for name, a in feeds(2).items()}
        for name, tensor, message in (
            ("sample", good["sample"].astype(np.float64), "DLPack type"),
            ("sample", good["sample"].transpose(0, 1, 3, 2), "strides"),
            ("sample", good["sample"][:, :3].copy(), "shape"),
            ("timestep", good["timestep"].astype(np.int32), "int32"),
            ("timestep", [1, 2], "list"),
            ("sample", torch.zeros(2, *SAMPLE_SHAPE, requires_grad=True), "sample"),
            ("timestep", torch.zeros(2, dtype=torch.int64, device="meta"), "timestep"),
        ):
            with pytest.raises(EngineError, match=message):
                engine.run_device({**good, name: tensor})
        with pytest.raises(EngineError, match="takes"):
            engine.run_device({"sample": good["sample"]})
        np.testing.assert_allclose(engine.run_device(good)["output"].numpy(), reference(feeds(2)), atol=2e-6)


def test_threads_share_an_engine_with_graphs(driver: FakeDriver, tmp_path: Path) -> None:
    wrong: list[str] = []

    def work(engine: TrtEngine, rows: int) -> None:
        for seed in range(10):
            try:
                _check(engine, rows, seed=seed)
            except AssertionError as error:
                wrong.append(str(error))

    with _open(driver, write_plan(tmp_path / "engine.plan")) as engine:
        threads = [threading.Thread(target=work, args=(engine, rows)) for rows in (1, 2, 3, 3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


EXPECTED = Expected("tensorrt", "10.16.1.11", ("8.6", "8.9"))
MISFITS = {
    "version": (
        Expected("tensorrt", "10.15.0.1"),
        "built by tensorrt-10.15.0.1, here is tensorrt-10.16.1.11",
    ),
    "library": (Expected("tensorrt-rtx", "10.16.1.11"), "tensorrt-rtx"),
    "GPU": (Expected("tensorrt", "10.16.1.11", ("8.9", "12.0")), "8.9, 12.0, Fake GPU has 8.6"),
    "host code": (Expected("tensorrt", "10.16.1.11", version_compatible=True), "host code"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_plan_for_something_else_is_refused_before_it_is_loaded(
    driver: FakeDriver, tmp_path: Path, case: str
) -> None:
    expected, message = MISFITS[case]
    with pytest.raises(ArtifactError, match=message):
        _open(driver, write_plan(tmp_path / "engine.plan"), expected=expected)
    assert "runtime" not in driver.events


def test_a_version_compatible_plan_runs_on_a_later_version_when_allowed(
    driver: FakeDriver, tmp_path: Path
) -> None:
    plan = write_plan(tmp_path / "engine.plan", host_code=True)
    for version, fits in (("10.12.0.36", True), ("10.17.0.1", False), ("9.9.9.9", False)):
        expected = Expected("tensorrt", version, version_compatible=True)
        if fits:
            with _open(driver, plan, expected=expected, allow_host_code=True) as engine:
                _check(engine, 2)
        else:
            with pytest.raises(ArtifactError, match=version):
                _open(driver, plan, expected=expected, allow_host_code=True)
    with pytest.raises(EngineError, match="host code"):
        _open(driver, plan)


def test_what_fits_is_opened(driver: FakeDriver, tmp_path: Path) -> None:
    with _open(driver, write_plan(tmp_path / "engine.plan"), expected=EXPECTED) as engine:
        assert engine.label == "tensorrt-10.16.1.11/Fake GPU"
        _check(engine, 2)


@pytest.mark.parametrize(
    ("diagnostics", "error", "message"),
    [
        (1, ArtifactError, "VERSION_MISMATCH"),
        (2, ArtifactError, "UNSUPPORTED_CC"),
        (4, BackendUnavailable, "OLD_CUDA_DRIVER"),
        (16, ResourceError, "INSUFFICIENT_GPU_MEMORY"),
        (64, BackendUnavailable, "CUDA_ERROR"),
        (0, ArtifactError, "no reason given"),
    ],
)
def test_rtx_is_asked_before_it_deserializes(
    driver: FakeDriver, tmp_path: Path, diagnostics: int, error: type[Exception], message: str
) -> None:
    plan = write_plan(tmp_path / "engine.plan", validity="INVALID", diagnostics=diagnostics)
    with pytest.raises(error, match=message):
        _open(driver, plan, "tensorrt-rtx")
    assert "engine" not in driver.events


def test_a_plan_that_is_not_at_its_best_runs_with_a_warning(
    driver: FakeDriver, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = write_plan(tmp_path / "engine.plan", validity="SUBOPTIMAL", diagnostics=2)
    with _open(driver, plan, "tensorrt-rtx") as engine:
        _check(engine, 2)
    assert "UNSUPPORTED_CC" in caplog.text


def test_plans_that_cannot_be_served_are_refused(driver: FakeDriver, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.plan"
    damaged.write_bytes(b"ftrt")
    with pytest.raises(EngineError, match="stdVersionRead"):
        _open(driver, damaged)
    with pytest.raises(ArtifactError, match="cannot be read"):
        _open(driver, tmp_path / "missing.plan")
    with pytest.raises(EngineError, match="carries a shape"):
        _open(driver, write_plan(tmp_path / "shape.plan", shape_tensor="timestep"))
    with pytest.raises(EngineError, match="FP8"):
        _open(driver, write_plan(tmp_path / "fp8.plan", outputs={"output": ("float8", [-1])}))
    with pytest.raises(UsageError, match="pad_to"):
        _open(driver, damaged, pad_to=0)


def test_without_a_gpu_nothing_of_tensorrt_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing() -> None:
        raise BackendUnavailable("No NVIDIA driver is installed.")

    driver = FakeDriver()
    monkeypatch.setattr(trt_module, "open_device", nothing)
    with pytest.raises(BackendUnavailable, match="driver"):
        TrtEngine(write_plan(tmp_path / "engine.plan"), library=fake_trt(driver))
    assert driver.events == driver.misuse == []
