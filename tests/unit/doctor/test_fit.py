"""Which versions fit each other?"""

from __future__ import annotations

import pytest

from gacq_deploy.doctor.fit import (
    Built,
    Driver,
    built_with_cuda,
    driver_misfit,
    execution_provider_misfit,
    provider_tensorrt,
    rtx_misfit,
    tensorrt_wheel_cuda,
)

ORT = Built("onnxruntime-gpu 1.31.1", 13)
TENSORRT_12 = Built("tensorrt 11.4.0.106", 12)
TENSORRT_13 = Built("tensorrt 11.4.0.106", 13)


@pytest.mark.parametrize(
    ("driver", "package", "needed"),
    [
        (Driver("580.82.07", (13, 0)), ORT, None),
        (Driver("580.82.07", (13, 0)), TENSORRT_13, None),
        (Driver("550.54.15", (12, 4)), ORT, 580),
        (Driver("550.54.15", (12, 4)), TENSORRT_13, 580),
        (Driver("550.54.15", (12, 4)), TENSORRT_12, None),
        (Driver("525.60.13", (12, 0)), TENSORRT_12, 535),
        (Driver("525.60.13", (12, 0)), Built("onnxruntime-gpu 1.22.0", 12), None),
        (Driver(None, (12, 6)), ORT, 580),
        (Driver(None, (13, 2)), ORT, None),
        (Driver("470.1", None), ORT, 580),
        (Driver("595.10", (13, 4)), TENSORRT_12, None),
        (Driver(None, None), ORT, None),
        (Driver("595.10", (13, 4)), Built("something 1.0", 99), None),
    ],
    ids=str,
)
def test_driver_and_package(driver: Driver, package: Built, needed: int | None) -> None:
    misfit = driver_misfit(driver, package)
    if needed is None:
        assert misfit == ""
    else:
        assert package.label in misfit
        assert misfit.endswith(f"needs driver {needed} or newer")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("tensorrt-cu13-libs", ("tensorrt", 13)),
        ("tensorrt_cu12_libs", ("tensorrt", 12)),
        ("tensorrt_rtx_cu13_libs", ("tensorrt-rtx", 13)),
        ("tensorrt-cu13-bindings", None),
        ("tensorrt", None),
        ("tensorrt-lean-cu13-libs", None),
    ],
)
def test_wheel_names(name: str, found: tuple[str, int] | None) -> None:
    assert tensorrt_wheel_cuda(name) == found


@pytest.mark.parametrize(
    ("text", "major"),
    [
        ("package_name = 'onnxruntime-gpu'\n__version__ = '1.31.1'\ncuda_version = '13.0'\n", 13),
        ("package_name = 'onnxruntime'\n__version__ = '1.32.0'\n", None),
        ("debug = False\ncuda: Optional[str] = '12.8'\nhip: Optional[str] = None\n", 12),
        ("debug = False\ncuda: Optional[str] = None\nhip: Optional[str] = '6.3'\n", None),
    ],
    ids=["onnxruntime-gpu", "onnxruntime", "torch-cuda", "torch-cpu"],
)
def test_what_a_package_was_built_with(text: str, major: int | None) -> None:
    assert built_with_cuda(text) == major


def test_which_tensorrt_the_provider_loads() -> None:
    assert provider_tensorrt(b"\0libcudnn.so.9\0libnvinfer.so.10\0libnvinfer_plugin.so.10\0") == 10
    assert provider_tensorrt(b"\0libcudnn.so.9\0") is None


def test_the_execution_provider_and_the_tensorrt_here() -> None:
    assert "wants TensorRT 10 and cannot load 11.4.0.106" in execution_provider_misfit(10, "11.4.0.106")
    assert execution_provider_misfit(10, "10.16.1.11") == ""
    assert execution_provider_misfit(None, "11.4.0.106") == execution_provider_misfit(10, None) == ""


def test_gpus_that_tensorrt_rtx_does_not_compile_for() -> None:
    assert rtx_misfit(frozenset({(8, 6), (12, 0)})) == ""
    assert "9.0, 10.0" in rtx_misfit(frozenset({(10, 0), (8, 6), (9, 0)}))
