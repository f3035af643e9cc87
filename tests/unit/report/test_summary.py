from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gacq_deploy.artifact.records import ModelRecord
from gacq_deploy.backends.processor import Processor
from gacq_deploy.bench import BenchReport
from gacq_deploy.bench.report import Host, Ratio, Spread
from gacq_deploy.doctor import machine
from gacq_deploy.export.record import ExportRecord
from gacq_deploy.inspection.artifact import Inspection
from gacq_deploy.parity.report import ParityReport, assemble, measured
from gacq_deploy.recipe.load import load_recipe
from gacq_deploy.recipe.sections import ParitySection
from gacq_deploy.report.collect import Collected, collect
from gacq_deploy.report.pictures import Pictures, Tile
from gacq_deploy.report.summary import BigNumber, big_numbers, heading, learning
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.storage.records import ListedFile
from tests.support.artifacts.diagnostics import example_diagnostics
from tests.unit.report.conftest import write_recipe

PLAIN = Processor("x86_64", "AMD EPYC", frozenset({"avx2"}))
VNNI = Processor("x86_64", "AMD EPYC", frozenset({"avx2", "avx512_vnni"}))
MODEL = ModelRecord(
    source="/models/my-ddpm", revision=None, family="UNet2DModel", weights_sha256="0", scheduler={},
    prediction_type="epsilon", sample_shape=(3, 24, 24), conditioning={},
)  # fmt: skip


def _parity(*, latents: bool = False, psnr: float | None = 46.1, worst: float = 24.3) -> ParityReport:
    rows = [
        {"bucket": 0, "timestep_max": 999, "timestep_min": 500, "sqnr_db": 40.0},
        {"bucket": 1, "timestep_max": 499, "timestep_min": 0, "sqnr_db": worst},
    ]
    metrics = {
        "latents_differ": 0, "eps_sqnr_db": worst, "eps_cosine": 1.0, "trajectory_cosine": 1.0,
        "image_psnr_db": psnr, "image_ssim": 1.0,
    }  # fmt: skip
    comparisons = tuple(
        measured("budget", "float.onnx@ort-cpu", name, metrics, by_timestep=rows)
        for name in ("int8.onnx@ort-cpu", "int8.cpu.onnx@ort-cpu", "int8.onnx@openvino")
    )
    trajectory: dict[str, Any] = {"images": 64}
    if latents:
        trajectory["compared"] = "PSNR and SSIM are of the final latents."
    subject = {"processor": {"machine": "x86_64", "name": "AMD EPYC"}}
    return assemble(comparisons, ParitySection(), trajectory=trajectory, noise_floor={}, subject=subject)


def _bench(**times: float) -> BenchReport:
    """A benchmark in which graphs are so many times faster than float in ONNX Runtime."""
    spread = {name: Spread(median=v, q1=v, q3=v, low=v, high=v) for name, v in times.items()}
    names = {"cpu": "ort-cpu/int8.cpu.onnx", "openvino": "openvino/int8.onnx"}
    host = Host(cpu="AMD EPYC", cores=2, platform="Linux", python="3.11", load_average=0.1)
    ratios = tuple(
        Ratio(candidate=names[k], baseline="ort-cpu/float.onnx", batch=1, cpu=v, wall=v)
        for k, v in spread.items()
    )
    return BenchReport(
        subject={}, host=host, threads=1, repeats=3, batches=(1, 8), candidates=(), ratios=ratios, skipped={}
    )


def _export() -> ExportRecord:
    sizes = {"float.onnx": 5_930_000, "int8.onnx": 1_910_000, "int8.cpu.onnx": 1_970_000}
    return ExportRecord(
        artifact_sha256="0", recipe_sha256="0", settings_sha256="0", opset=20, quantized_sites={}, lint=(),
        self_check={},
        files={name: ListedFile(sha256="0", bytes=size) for name, size in sizes.items()},
    )  # fmt: skip


def _found(root: Path, **parts: Any) -> Collected:
    write_recipe(root)
    return replace(collect(RunDirectory(root), images=False), **parts)


def _by_label(found: Collected) -> dict[str, BigNumber]:
    return {number.label: number for number in big_numbers(found)}


def test_four_numbers_are_of_the_fastest_graph_that_was_judged(tmp_path: Path) -> None:
    found = _found(tmp_path, parity=_parity(), bench=_bench(cpu=1.63, openvino=1.2), export=_export())
    smaller, faster, psnr, worst = big_numbers(found)
    assert (smaller.value, smaller.unit, smaller.label) == ("3.0", "x", "smaller")
    assert smaller.note == "int8.cpu.onnx: 1.97 MB, float 5.93 MB"
    assert (faster.value, faster.label, faster.tone) == ("1.63", "faster", "")
    assert faster.note == "ort-cpu, batch 1, one thread, against float in ONNX Runtime"
    assert (psnr.value, psnr.label) == ("46.1", "PSNR of images")
    assert psnr.note == "mean of 64 same-seed images, the gate's number"
    assert (worst.value, worst.note) == ("24.3", "at timesteps 499 to 0; single steps against float")


@pytest.mark.parametrize(
    ("processor", "reason"), [(PLAIN, "AMD EPYC: no integer dot product."), (VNNI, "")], ids=["plain", "vnni"]
)
def test_slower_is_said_in_the_tone_of_a_warning_with_what_doctor_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processor: Processor, reason: str
) -> None:
    monkeypatch.setattr(machine, "this_processor", lambda: processor)
    found = _found(tmp_path, parity=_parity(), bench=_bench(cpu=0.976), export=_export())
    slower = _by_label(found)["slower"]
    assert (slower.value, slower.unit, slower.tone) == ("0.98", "x", "bad")
    assert slower.note.endswith(reason or "ONNX Runtime.")
    assert ("dot product" in slower.note) == bool(reason)


def test_a_reason_of_this_machine_is_none_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "this_processor", lambda: replace(PLAIN, name="Another"))
    found = _found(tmp_path, parity=_parity(), bench=_bench(cpu=0.976), export=_export())
    assert "dot product" not in _by_label(found)["slower"].note


def test_what_was_not_measured_says_what_measures_it(tmp_path: Path) -> None:
    numbers = _by_label(_found(tmp_path, parity=_parity()))
    assert numbers["faster"] == BigNumber(
        "?", "", "faster", f"Not measured: `gacq-deploy bench {tmp_path}`.", "none"
    )
    assert numbers["smaller"].tone == "none"
    assert big_numbers(_found(tmp_path)) == ()


def test_a_number_whose_gate_fails_is_no_good_news(tmp_path: Path) -> None:
    numbers = _by_label(_found(tmp_path, parity=_parity(psnr=12.1, worst=25.0)))
    assert (numbers["PSNR of images"].value, numbers["PSNR of images"].tone) == ("12.1", "bad")
    assert numbers["SQNR of the worst timesteps"].tone == ""


def test_of_latents_the_images_are_those_below(tmp_path: Path) -> None:
    tile = Tile("", "", "", "a cat", 0, 37.2, worst=True)
    drawn = Pictures((tile,) * 4, mean_db=37.2)
    shown = _by_label(_found(tmp_path, parity=_parity(latents=True), pictures=drawn))
    assert shown["PSNR of images"].value == "37.2"
    assert shown["PSNR of images"].note == (
        "mean of the 4 below, decoded; the gate's number, of 64 latents: 46.1 dB"
    )
    bare = _by_label(_found(tmp_path, parity=_parity(latents=True)))
    assert bare["PSNR of latents"].value == "46.1"


def test_the_head_names_model_recipe_preset_day_and_machine(tmp_path: Path) -> None:
    inspection = Inspection("", "", {}, "", (), (), {"started_unix": 1_795_993_186}, (), None, (), (), {})
    recipe = load_recipe("fashion-w8a8", preset="ci")
    found = _found(
        tmp_path, model=MODEL, recipe=recipe, inspection=inspection, parity=_parity(), export=_export()
    )
    shown = heading(found)
    assert shown.title == "my-ddpm"
    assert shown.model == "UNet2DModel · makes images of 24 x 24, 3 channels · 5.93 MB in float"
    assert shown.origin == (
        "Recipe fashion-w8a8 · preset ci · calibrated 29 November 2026 · judged on AMD EPYC"
    )
    other = heading(replace(found, recipe=load_recipe("fashion-w8a8", ["samples.trajectories=5"])))
    assert "effort of its own" in other.origin


def test_before_calibration_the_folder_names_the_page(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    shown = heading(_found(tmp_path / "mine"))
    assert (shown.title, shown.model) == ("mine", "")


@pytest.mark.parametrize(
    ("gain", "said"),
    [(3.2, "Learning gained 3.2 dB"), (-0.7, "Learning lost 0.7 dB"), (-0.01, "Learning changed nothing")],
)
def test_what_learning_did_is_said_in_words(tmp_path: Path, gain: float, said: str) -> None:
    nearest = np.array([30.0, 18.8], np.float32)
    diagnostics = replace(
        example_diagnostics(),
        error_timesteps=np.array([900, 10], np.int64),
        error_sqnr_db={"nearest": nearest, "polish": nearest + np.float32(gain)},
    )
    found = _found(tmp_path, diagnostics=diagnostics)
    assert learning(found) == (
        f"{said} at the worst timesteps (18.8 to {18.8 + gain:.1f} dB).",
        gain > -0.05,
    )
    assert (
        learning(replace(found, diagnostics=replace(diagnostics, error_sqnr_db={"nearest": nearest}))) is None
    )


def test_a_stage_that_was_undone_is_said_and_does_not_count(tmp_path: Path) -> None:
    stages = {
        "nearest": {"seconds": 1.0, "sqnr_db": 18.8, "kept": True},
        "reconstruction": {"seconds": 9.0, "sqnr_db": 22.0, "kept": True},
        "polish": {"seconds": 9.0, "sqnr_db": 21.0, "kept": False},
    }
    inspection = Inspection("", "", {}, "", (), (), {"stages": stages}, (), None, (), (), {})
    said = learning(_found(tmp_path, inspection=inspection))
    assert said == (
        "Learning gained 3.2 dB at the worst timesteps (18.8 to 22.0 dB). The polish lost, and was undone.",
        True,
    )
