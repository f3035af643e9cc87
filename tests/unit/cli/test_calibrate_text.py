"""What `calibrate` says: before the first sample what it will take, at the end what each stage gave for its time."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest

from gacq_deploy.calibration.cost.estimate import CalibrationEstimate
from gacq_deploy.progress import PlannedStage
from gacq_deploy.storage import room
from gacq_deploy_cli.calibrate import announce, gain_lines, summary_text


def _artifact(**levels: tuple[float, bool]) -> Any:
    """An artifact whose stages ended so, and were kept or not; written in another order than they ran."""
    stages = {
        name: {"seconds": 60.0, "sqnr_db": level, "kept": kept} for name, (level, kept) in levels.items()
    }
    plan = SimpleNamespace(kind="W8A8", modules=range(48))
    return SimpleNamespace(
        build={"stages": dict(sorted(stages.items()))}, plan=plan, manifest_digest="0" * 64
    )


LEARNED = _artifact(nearest=(23.5, True), reconstruction=(24.0, True), polish=(24.3, True))
LOST = _artifact(nearest=(23.5, True), reconstruction=(22.9, False), polish=(23.0, False))
NEAREST = _artifact(nearest=(23.5, True))


def test_stages_stand_in_the_order_in_which_they_ran() -> None:
    assert [line.partition(" in ")[0] for line in gain_lines(LEARNED)] == [
        "nearest: 23.5 dB",
        "reconstruction: 23.5 to 24.0 dB",
        "polish: 24.0 to 24.3 dB",
    ]


def test_a_stage_that_lost_is_said_and_does_not_count() -> None:
    nearest, *others = gain_lines(LOST)
    assert "lost" not in nearest
    assert [line.partition(" dB in ")[0] for line in others] == [
        "reconstruction: 23.5 to 22.9",
        "polish: 23.5 to 23.0",
    ]
    assert all(line.endswith("; it lost, and the state before it was restored") for line in others)


@pytest.mark.parametrize(
    ("artifact", "said"),
    [
        (LEARNED, "23.5 dB with nearest rounding, 24.3 dB learned."),
        (LOST, "23.5 dB with nearest rounding; learning gained nothing, a higher --preset may."),
        (NEAREST, "23.5 dB with nearest rounding."),
    ],
    ids=["learned", "lost", "nearest"],
)
def test_the_last_sentence_says_what_learning_gained(artifact: Any, said: str) -> None:
    assert summary_text(artifact) == (
        f"W8A8: 48 layers quantized (artifact 000000000000). Output SQNR in the worst timestep bucket: {said}"
    )


class _Notes:
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def test_time_memory_and_disk_are_said_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    estimate = CalibrationEstimate(
        family="UNet2DModel", parameters=1, sites=({}, {}), quantized_modules=1, float_modules=1, unused_modules=(),
        blocks=("a",), samples=160, validation_samples=2, weights="uniform", polish="none",
        stages=(PlannedStage("collect samples", 100.0), PlannedStage("polish", 20.0)),
        memory_mb=1.0, mapped_mb=0.5, gpu_mb=None, disk_mb=1.0, export_mb=1.0,
    )  # fmt: skip
    notes: Any = _Notes()
    announce(notes, "nearest", estimate)
    announce(notes, None, estimate)
    costs = "about 2 min, 1.0 MB of memory, 1.0 MB of disk; 2 tensors to quantize, 160 samples"
    assert notes.said == [f"preset nearest: {costs}", f"this calibration: {costs}"]
    monkeypatch.setattr(room, "available_memory", lambda: 400_000)
    announce(notes, None, estimate)
    assert re.match(
        r"warning: about \d+ MB of memory are needed, .*: lower calibration\.memory_mb", notes.said[-1]
    )
