"""Tensors that cross through DLPack: the same memory on both sides, freed once, by whoever is last."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from gacq_deploy.backends.trt.dlpack import DeviceTensor, borrow, numpy_dtype
from gacq_deploy.errors import EngineError
from tests.support.trt.fake_cuda import FakeDriver, HostDevice, fake_device, fake_driver

DTYPES = ("float32", "float16", "bfloat16", "int64", "int32", "int8", "uint8", "bool")


@pytest.fixture
def driver() -> Iterator[FakeDriver]:
    with fake_driver() as driver:
        yield driver


def _tensor(device: HostDevice, driver: FakeDriver, dtype: str, shape: tuple[int, ...]) -> DeviceTensor:
    values = np.arange(np.prod(shape)).reshape(shape).astype(numpy_dtype(dtype))
    memory = device.allocate(values.nbytes)
    driver.view(memory.address, values.nbytes)[:] = values.view(np.uint8).reshape(-1)
    return DeviceTensor(device, memory, dtype, shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 3, 4), (1,), (5, 1)])
def test_torch_reads_what_we_export(driver: FakeDriver, dtype: str, shape: tuple[int, ...]) -> None:
    device = fake_device(driver)
    ours = _tensor(device, driver, dtype, shape)
    theirs = torch.from_dlpack(ours)
    assert theirs.data_ptr() == ours.address
    assert theirs.shape == shape
    assert str(theirs.dtype) == f"torch.{dtype}"
    np.testing.assert_array_equal(theirs.float().numpy(), ours.numpy().astype(np.float32))
    device.close()


def test_numpy_reads_what_we_export(driver: FakeDriver) -> None:
    device = fake_device(driver)
    ours = _tensor(device, driver, "float32", (2, 3))
    np.testing.assert_array_equal(np.from_dlpack(ours), np.arange(6).reshape(2, 3))
    device.close()


def test_memory_is_freed_by_the_last_holder(driver: FakeDriver) -> None:
    device = fake_device(driver)
    ours = _tensor(device, driver, "float32", (2, 3))
    first, second = torch.from_dlpack(ours), torch.from_dlpack(ours)
    capsule = ours.__dlpack__()
    device.close()
    for holder in ("ours", "first", "capsule"):
        assert driver.live() == {"memory": 1, "contexts": 1}
        if holder == "ours":
            del ours
        elif holder == "first":
            del first
        else:
            del capsule
    np.testing.assert_array_equal(second.numpy(), np.arange(6).reshape(2, 3))
    del second
    assert driver.live() == {}


@pytest.mark.parametrize("dtype", DTYPES)
def test_we_read_what_torch_exports(driver: FakeDriver, dtype: str) -> None:
    device = fake_device(driver)
    theirs = torch.arange(24).reshape(2, 3, 4).to(getattr(torch, dtype))[1:]
    found = borrow("x", theirs, device, stream=7)
    assert (found.address, found.dtype, found.shape) == (theirs.data_ptr(), dtype, (1, 3, 4))
    assert found.nbytes == theirs.numel() * theirs.element_size()
    device.close()


def test_a_borrowed_tensor_stays_alive(driver: FakeDriver) -> None:
    device = fake_device(driver)
    ours = _tensor(device, driver, "float32", (2, 3))
    found = borrow("x", torch.from_dlpack(ours), device, stream=7)
    del ours
    np.testing.assert_array_equal(driver.view(found.address, 24).view(np.float32), np.arange(6))
    del found
    assert driver.live() == {"contexts": 1}
    device.close()


class _ArrayInterface:
    """What Numba's arrays offer: no DLPack."""

    def __init__(self, array: np.ndarray, **more: object) -> None:
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (array.ctypes.data, False),
            "strides": None if array.flags.c_contiguous else array.strides,
            "version": 3,
            **more,
        }


def test_the_array_interface_is_read_and_its_stream_waited_for(driver: FakeDriver) -> None:
    device = fake_device(driver)
    array = np.zeros((2, 3), np.float16)
    found = borrow("x", _ArrayInterface(array), device, stream=7)
    assert (found.address, found.dtype, found.shape) == (array.ctypes.data, "float16", (2, 3))
    assert driver.count("cuStreamSynchronize") == 0
    stream = device.stream()
    borrow("x", _ArrayInterface(array, stream=stream.handle), device, stream=7)
    assert driver.count("cuStreamSynchronize") == 1
    with pytest.raises(EngineError, match="strides"):
        borrow("x", _ArrayInterface(array.T), device, stream=7)
    stream.close()
    device.close()


def test_the_array_interface_is_offered(driver: FakeDriver) -> None:
    device = fake_device(driver)
    ours = _tensor(device, driver, "int8", (2, 3))
    found = borrow("x", _Only(ours), device, stream=7)
    assert (found.address, found.dtype, found.shape) == (ours.address, "int8", (2, 3))
    assert not hasattr(_tensor(device, driver, "bfloat16", (1,)), "__cuda_array_interface__")
    device.close()


class _Only:
    def __init__(self, tensor: DeviceTensor) -> None:
        self.__cuda_array_interface__ = tensor.__cuda_array_interface__


def test_another_device_is_refused(driver: FakeDriver) -> None:
    device = fake_device(driver)

    class Elsewhere:
        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 1

        def __dlpack__(self, *, stream: int) -> object:
            raise AssertionError

    with pytest.raises(EngineError, match=r"\(2, 1\), the engine on \(1, 0\)"):
        borrow("x", Elsewhere(), device, stream=7)
    ours = _tensor(device, driver, "int8", (1,))
    for wish in ({"copy": True}, {"dl_device": (2, 0)}):
        with pytest.raises(BufferError):
            ours.__dlpack__(**wish)  # type: ignore[arg-type]
    device.close()
