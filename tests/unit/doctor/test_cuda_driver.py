"""Is libcuda asked in its own words? Its functions are played by Python ones with the same pointers."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

from gacq_deploy.doctor.probe import main, read_driver


@dataclass
class Libcuda:
    """A driver with some devices: names, capabilities and memory; every call returns its status."""

    version: int = 13000
    devices: tuple[tuple[str, tuple[int, int], int], ...] = ()
    init: int = 0
    knows_errors: bool = True

    def cuDriverGetVersion(self, out: Any) -> int:  # noqa: N802
        return _write(out, self.version)

    def cuInit(self, flags: int) -> int:  # noqa: N802
        assert flags == 0
        return self.init

    def cuDeviceGetCount(self, out: Any) -> int:  # noqa: N802
        return _write(out, len(self.devices))

    def cuDeviceGet(self, out: Any, index: int) -> int:  # noqa: N802
        return _write(out, index)

    def cuDeviceGetName(self, out: Any, length: int, device: ctypes.c_int) -> int:  # noqa: N802
        assert length == ctypes.sizeof(out)
        out.value = self.devices[device.value][0].encode()
        return 0

    def cuDeviceTotalMem_v2(self, out: Any, device: ctypes.c_int) -> int:  # noqa: N802
        assert isinstance(out._obj, ctypes.c_size_t)
        return _write(out, self.devices[device.value][2])

    def cuDeviceGetAttribute(self, out: Any, attribute: int, device: ctypes.c_int) -> int:  # noqa: N802
        return _write(out, self.devices[device.value][1][{75: 0, 76: 1}[attribute]])

    def cuGetErrorName(self, status: int, out: Any) -> int:  # noqa: N802
        if not self.knows_errors:
            return 1
        return _write(out, {100: b"CUDA_ERROR_NO_DEVICE"}[status])


def _write(out: Any, value: Any) -> int:
    out._obj.value = value
    return 0


def test_version_and_devices() -> None:
    driver = Libcuda(
        12080, (("NVIDIA L4", (8, 9), 23_659_151_360), ("NVIDIA B200", (10, 0), 191_503_138_816))
    )
    assert read_driver(driver) == {
        "cuda": [12, 8],
        "devices": [
            {"name": "NVIDIA L4", "capability": [8, 9], "memory": 23_659_151_360},
            {"name": "NVIDIA B200", "capability": [10, 0], "memory": 191_503_138_816},
        ],
    }


def test_a_driver_without_a_device_says_so_and_still_has_a_version() -> None:
    found = read_driver(Libcuda(init=100))
    assert found["problem"] == "CUDA does not start: CUDA_ERROR_NO_DEVICE (100)"
    assert (found["cuda"], found["devices"]) == ([13, 0], [])


def test_an_error_that_the_driver_cannot_name_is_a_number() -> None:
    assert read_driver(Libcuda(init=999, knows_errors=False))["problem"] == "CUDA does not start: error 999"


def test_what_a_library_raises_is_an_answer() -> None:
    assert main("tensorrt", "no such library")["problem"].startswith("StopIteration")
