"""The few CUDA calls: errors by kind, nothing left behind, and a clear word where CUDA is missing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from gacq_deploy.backends.trt import cuda
from gacq_deploy.backends.trt.cuda import device_of
from gacq_deploy.backends.trt.library import has_device
from gacq_deploy.errors import BackendUnavailable, EngineError, ResourceError
from tests.support.trt.fake_cuda import CUresult, FakeDriver, fake_device, fake_driver


@pytest.fixture
def driver() -> Iterator[FakeDriver]:
    with fake_driver() as driver:
        yield driver


def test_memory_goes_there_and_back(driver: FakeDriver) -> None:
    device = fake_device(driver)
    sent, got = np.arange(5.0), np.zeros(5)
    memory, stream = device.allocate(sent.nbytes), device.stream()
    with device.active():
        stream.copy_in(memory.address, sent)
        stream.copy_out(got, memory.address)
        assert not got.any()  # nothing runs before it is waited for
        stream.wait()
    np.testing.assert_array_equal(got, sent)
    memory.close()
    memory.close()
    stream.close()
    device.close()
    device.close()


def test_the_context_stays_until_the_last_memory_is_freed(driver: FakeDriver) -> None:
    device = fake_device(driver)
    memory = device.allocate(8)
    device.close()
    assert driver.live() == {"memory": 1, "contexts": 1}
    del memory
    assert driver.live() == {}


def test_errors_by_kind(driver: FakeDriver) -> None:
    device = fake_device(driver)
    with pytest.raises(ResourceError, match="out of memory while allocating 134217728 bytes"):
        device.allocate(1 << 27)
    driver.failing["cuStreamCreate"] = CUresult.CUDA_ERROR_INVALID_HANDLE
    with pytest.raises(EngineError, match="CUDA_ERROR_INVALID_HANDLE: invalid handle"):
        device.stream()
    device.close()


def test_an_empty_or_failed_capture_is_an_error_and_leaves_the_stream_usable(driver: FakeDriver) -> None:
    device = fake_device(driver)
    stream = device.stream()

    def fail() -> None:
        raise KeyError

    with device.active():
        with pytest.raises(EngineError, match="empty"):
            stream.capture(lambda: None)
        with pytest.raises(KeyError):
            stream.capture(fail)
        with pytest.raises(EngineError, match="INVALIDATED"):
            stream.capture(lambda: device.discard(lambda: driver.cuMemAlloc(8)))
        stream.wait()
    stream.close()
    device.close()


@pytest.mark.parametrize("ordinal", [-1, 1])
def test_a_gpu_that_is_not_there(ordinal: int) -> None:
    with pytest.raises(BackendUnavailable, match="this machine has 1"):
        device_of(FakeDriver(), ordinal)


def test_a_driver_without_a_gpu() -> None:
    with pytest.raises(BackendUnavailable, match="CUDA_ERROR_NO_DEVICE"):
        device_of(FakeDriver(devices=0))


def test_without_the_bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    with pytest.raises(BackendUnavailable, match="cuda-bindings") as caught:
        cuda.open_device()
    assert "gacq-deploy[trt]" in caught.value.hint


@pytest.mark.skipif(has_device(), reason="a GPU is here: nothing is missing")
def test_the_real_thing_without_a_gpu_says_so_and_the_process_ends_well() -> None:
    code = (
        "from pathlib import Path\n"
        "from gacq_deploy.errors import BackendUnavailable\n"
        "from gacq_deploy.backends.trt.engine import TrtEngine\n"
        "try:\n"
        "    TrtEngine(Path('engine.plan'))\n"
        "except BackendUnavailable as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "gacq-deploy" in done.stdout
