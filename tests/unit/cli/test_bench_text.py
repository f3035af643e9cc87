"""What `bench` ends with: is INT8 faster, and why is it not where it is not?"""

from __future__ import annotations

import os

import pytest

from gacq_deploy.backends.processor import Processor
from gacq_deploy.bench import BenchReport
from gacq_deploy.bench.report import Host, Ratio, Spread
from gacq_deploy.doctor import machine
from gacq_deploy_cli.bench import speed_lines


def _report(speed: float, load: float = 0.0) -> BenchReport:
    host = Host(cpu="AMD EPYC", cores=2, platform="Linux", python="3.11", load_average=load)
    names = {"candidate": "ort-cpu/int8.cpu.onnx", "baseline": "ort-cpu/float.onnx"}
    ratios = tuple(
        Ratio(**names, batch=batch, cpu=Spread.of([speed]), wall=Spread.of([speed])) for batch in (8, 1)
    )
    return BenchReport(
        subject={}, host=host, threads=1, repeats=1, batches=(8, 1), candidates=(), ratios=ratios, skipped={}
    )


@pytest.fixture(autouse=True)
def plain_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU without an integer dot product."""
    plain = Processor("x86_64", "AMD EPYC", frozenset({"avx2"}))
    monkeypatch.setattr(machine, "this_processor", lambda: plain)


def test_faster_is_said_of_the_smallest_batch() -> None:
    assert list(speed_lines(_report(1.63))) == [
        "ort-cpu/int8.cpu.onnx: 1.63x the speed of ort-cpu/float.onnx at batch 1 (faster; CPU time)"
    ]


def test_slower_is_said_with_what_doctor_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    said, why = speed_lines(_report(0.976))
    assert said.endswith("0.98x the speed of ort-cpu/float.onnx at batch 1 (SLOWER; CPU time)")
    assert why.startswith("AMD EPYC: no integer dot product.")
    vnni = Processor("x86_64", "AMD EPYC", frozenset({"avx2", "avx512_vnni"}))
    monkeypatch.setattr(machine, "this_processor", lambda: vnni)
    assert len(list(speed_lines(_report(0.976)))) == 1


def test_a_busy_machine_is_a_warning() -> None:
    busy = float(os.cpu_count() or 1)
    assert list(speed_lines(_report(1.63, load=busy)))[-1].startswith(f"warning: the load was {busy:.1f} on ")
