from __future__ import annotations

import pytest

from gacq_deploy.bench.report import BenchReport, Host, Ratio, Spread


def _report(**ratios: float) -> BenchReport:
    """A report with one candidate in OpenVINO; keys name the engine of the float graph it is compared with."""
    engines = {"ort": "ort-cpu", "own": "openvino"}
    return BenchReport(
        subject={},
        host=Host(cpu="c", cores=1, platform="p", python="3", load_average=0),
        threads=1,
        repeats=1,
        batches=(2,),
        candidates=(),
        ratios=tuple(
            Ratio(
                candidate="openvino/int8.onnx",
                baseline=f"{engines[key]}/float.onnx",
                batch=2,
                cpu=Spread.of([value]),
                wall=Spread.of([value]),
            )
            for key, value in ratios.items()
        ),
        skipped={},
    )


def test_a_trajectory_takes_the_time_of_its_steps() -> None:
    """Float takes 6 in ONNX Runtime and 4 in OpenVINO, INT8 takes 2: half of each takes 3 a step."""
    report = _report(ort=3, own=2)
    assert report.speed("openvino/int8.onnx", 2) == 3
    assert report.speed("openvino/int8.onnx", 2, 0.5) == pytest.approx(6 / 3)
    assert report.speed("openvino/int8.onnx", 2, 1) == pytest.approx(6 / 4)


def test_what_was_not_measured_is_not_said() -> None:
    assert _report(ort=3).speed("openvino/int8.onnx", 1) is None
    assert _report(ort=3).speed("openvino/int8.onnx", 2) == 3
    assert _report(ort=3).speed("openvino/int8.onnx", 2, 0.5) is None
    assert _report(own=3).speed("openvino/int8.onnx", 2) is None
