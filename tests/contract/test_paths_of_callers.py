"""Whatever a caller of the library names a file, the answer is an error of the caller's, in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

import gacq_deploy as gacq
from gacq_deploy.check.check import check_file
from gacq_deploy.doctor.machine import disk
from gacq_deploy.engines.open import open_engine
from gacq_deploy.errors import UsageError
from gacq_deploy.inspection.artifact import inspect_artifact
from gacq_deploy.inspection.state import list_runs
from gacq_deploy.lint.lint import lint_file
from gacq_deploy.models.lora import lora_file
from gacq_deploy.models.source import find_source
from gacq_deploy.origin.check import signing_key
from gacq_deploy.parity.probe_folder import saved_commands
from gacq_deploy.parity.report import load_report
from gacq_deploy.recipe.sections import LoraSection, ModelSection
from gacq_deploy.run_directory import find_runs
from gacq_deploy.samples.prompts import read_prompts

IMAGES = np.zeros((1, 1, 8, 8), np.float32)
RECIPE = "fashion-w8a8"
TAKERS: Mapping[str, Callable[[str], object]] = {
    "run directory": gacq.RunDirectory,
    "calibrate": lambda path: gacq.calibrate(gacq.load_recipe(RECIPE), path),
    "export": gacq.export_onnx,
    "sign": lambda path: gacq.sign_run(path, "key.pem"),
    "images": lambda path: gacq.make_images(path, gacq.ImageRequest(count=1)),
    "denoiser": gacq.load_denoiser,
    "compare": lambda path: gacq.compare_runs([path, path]),
    "recipe": gacq.load_recipe,
    "recipe's output": lambda path: gacq.load_recipe(RECIPE).save(Path(path)),
    "grid": lambda path: gacq.write_grid(path, IMAGES),
    "comparison": lambda path: gacq.write_comparison(path, IMAGES, IMAGES),
    "model": lambda path: find_source(ModelSection(source=path)),
    "LoRA": lambda path: lora_file(LoraSection(source=path)),
    "prompts": lambda path: read_prompts(Path(path)),
    "lint": lambda path: lint_file(Path(path), target="tensorrt"),
    "check": lambda path: check_file(Path(path), "ort-cpu"),
    "engine": lambda path: open_engine("ort-cpu", Path(path)),
    "key": lambda path: signing_key(Path(path)),
    "parity report": lambda path: load_report(Path(path)),
    "saved for Polygraphy": saved_commands,
    "inspect": lambda path: inspect_artifact(Path(path)),
    "list": lambda path: list_runs(Path(path)),
    "find": lambda path: find_runs(Path(path)),
    "doctor": lambda path: disk(Path(path)),
}


@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize("path", ["a\0b", "/tmp/\0/c.png"])
def test_a_nul_character_is_the_callers(
    taker: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        TAKERS[taker](path)
    assert "\0" not in str(caught.value)
    assert caught.value.hint
    assert not list(tmp_path.iterdir())
