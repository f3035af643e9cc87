"""Does `--lora FILE[:SCALE]` say what it means, whatever the file is called?"""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from gacq_deploy.calibration.cost.estimate import CalibrationEstimate
from gacq_deploy.recipe.load import load_recipe
from gacq_deploy.recipe.sections import LoraSection
from gacq_deploy_cli.calibrate import plan_tables, recipe_sections
from gacq_deploy_cli.table import Table


def asked(*texts: str) -> tuple[LoraSection, ...]:
    return load_recipe("fashion-w8a8", **recipe_sections(loras=texts)).model.loras


def test_files_keep_their_order_and_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = tmp_path / "a 'style': 0.5"
    odd.write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert asked("b.safetensors:0.75", str(odd), f"{odd}:-1", "c.safetensors") == (
        LoraSection(source=str(tmp_path / "b.safetensors"), scale=0.75),
        LoraSection(source=str(odd)),
        LoraSection(source=str(odd), scale=-1),
        LoraSection(source=str(tmp_path / "c.safetensors")),
    )
    assert asked() == ()


def test_a_scale_that_is_no_number_is_refused() -> None:
    with pytest.raises(click.BadParameter, match=r"'x.safetensors:much' is neither a file nor FILE:SCALE"):
        recipe_sections(loras=("x.safetensors:much",))


def test_the_plan_names_every_lora() -> None:
    recipe = load_recipe(
        "fashion-w8a8", **recipe_sections(loras=("/a/style.safetensors:0.5", "/a/b.safetensors"))
    )
    estimate = CalibrationEstimate(
        family="UNet2DModel", parameters=1, sites=(), quantized_modules=3, float_modules=1, unused_modules=(),
        blocks=("a",), samples=8, validation_samples=2, weights="uniform", polish="none", stages=(),
        memory_mb=1.0, mapped_mb=0.5, gpu_mb=None, disk_mb=1.0, export_mb=1.0,
    )  # fmt: skip
    table, summary = plan_tables(recipe, estimate)
    shown = " ".join(table.text(120).split()) if isinstance(table, Table) else ""
    assert "LoRA, fused first /a/style.safetensors, scale 0.5" in shown
    assert "/a/b.safetensors, scale 1" in shown
    assert str(summary).startswith("3 of 4 layers to quantize")
