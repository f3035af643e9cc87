"""What a benchmark's figures are worth, in sentences: how fast INT8 is, why it is no faster, and what blurs it."""

from __future__ import annotations

import os

import pytest

from gacq_deploy.backends.processor import Processor
from gacq_deploy.bench.report import BenchReport, Host, Ratio, Spread
from gacq_deploy.doctor import machine
from gacq_deploy_cli.bench import speed_lines

PLAIN = Processor("x86_64", "AMD EPYC", frozenset({"avx2"}))
VNNI = Processor("x86_64", "AMD EPYC", frozenset({"avx2", "avx512_vnni"}))
BUSY = float(os.cpu_count() or 1)


def _measured(speed: float, load: float = 0.0) -> BenchReport:
    spread = Spread.of([speed])
    names = ("ort-cpu/int8.cpu.onnx", "ort-cpu/float.onnx")
    ratios = tuple(
        Ratio(candidate=names[0], baseline=names[1], batch=b, cpu=spread, wall=spread) for b in (1, 8)
    )
    return BenchReport(
        subject={}, host=Host(cpu="AMD EPYC", cores=2, platform="p", python="3", load_average=load), threads=1,
        repeats=1, batches=(1, 8), candidates=(), ratios=ratios, skipped={},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("processor", "speed", "word", "is_explained"),
    [
        (PLAIN, 0.98, "SLOWER", True),
        (PLAIN, 1.1, "faster", True),
        (PLAIN, 1.9, "faster", False),
        (VNNI, 0.98, "SLOWER", False),
    ],
)
def test_the_reason_is_said_where_int8_gains_little(
    monkeypatch: pytest.MonkeyPatch, processor: Processor, speed: float, word: str, is_explained: bool
) -> None:
    monkeypatch.setattr(machine, "this_processor", lambda: processor)
    first, *reason = speed_lines(_measured(speed))
    assert first == (
        f"ort-cpu/int8.cpu.onnx: {speed:.2f}x the speed of ort-cpu/float.onnx at batch 1 ({word}; CPU time)"
    )
    assert ["no integer dot product" in line for line in reason] == [True] * is_explained


def test_figures_of_a_busy_machine_come_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "this_processor", lambda: VNNI)
    assert len(list(speed_lines(_measured(1.9)))) == 1
    _, warning = speed_lines(_measured(1.9, load=BUSY))
    assert warning.startswith(f"warning: the load was {BUSY:.1f} on ")
