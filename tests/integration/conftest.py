"""One tiny run directory, made by the real commands; every test that changes it gets its own copy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gacq_deploy.calibration.stage import calibrate
from gacq_deploy.export.stage import export_onnx
from gacq_deploy.recipe.load import load_recipe
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.storage.files import write_json
from tests.support.artifacts.left_float import leave_float
from tests.support.models.tiny import SCHEDULER, tiny_unet
from tests.support.programs.commands import invoke
from tests.support.programs.made_once import made_once

RECIPE = """\
schema: gacq-deploy/recipe/1
name: tiny
model: {{source: "{model}"}}
samples: {{trajectories: 4, steps: 4, batch: 4, validation_share: 0.25, seed: 1}}
quantization:
  rules:
    - {{match: "*", bits: 8, range: {{method: minmax}}}}
    # exact in every engine on every processor
    - {{match: "*", role: weight, bits: 7, range: {{method: minmax}}}}
    - {{match: "conv_in", ignore: true}}
    - {{match: "conv_out", ignore: true}}
    - {{match: "*time_embedding*", ignore: true}}
    - {{match: "*time_emb_proj", ignore: true}}
calibration:
  threads: 1
  # of these samples both stages of learning gain, however short: both are kept
  memory_mb: 64
  reconstruction: {{iterations: 4, batch: 4, warmup: 0}}
  weighting: {{mode: uniform}}
  polish: {{steps: 4, batch: 4, save_every: 1, lr: 3.0e-5}}
parity:
  images: 4
  steps: 4
  buckets: 2
  noise_floor_runs: 1
  probe: {{trajectories: 2, local_samples: 2}}
  # random weights: what matters here is that the gates are evaluated
  error_difference_db: 6
  budget: {{eps_sqnr_db: 10, eps_cosine: 0.9, trajectory_cosine: 0.5, image_psnr_db: 10, image_ssim: 0.1}}
runtime: {{steps: 4, batch: 4}}
"""


FEW = ("down_blocks.*", "mid_block.resnets.*", "up_blocks.0.*")
"""Left float where every quantized layer takes its time."""


@pytest.fixture(scope="session")
def model_folder(shared_folder: Path) -> Path:
    """A random class-conditional UNet2DModel as a pipeline folder."""

    def make(folder: Path) -> None:
        tiny_unet().save_pretrained(folder / "unet")
        write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)

    return made_once(shared_folder / "pipeline", make)


@pytest.fixture(scope="session")
def recipe_file(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe that calibrates the tiny model in about a second."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(RECIPE.format(model=model_folder))
    return path


@pytest.fixture(scope="session")
def finished_run(recipe_file: Path, shared_folder: Path) -> Path:
    """A calibrated, exported and judged run directory. Never written to: copy it."""

    def make(run: Path) -> None:
        for arguments in (
            ["calibrate", "-r", str(recipe_file), "-o", str(run)],
            ["export", "--onnx", str(run)],
            ["parity", str(run), "--engine", "ort-cpu", "--threads", "1"],
        ):
            done = invoke([*arguments, "--json"])
            assert done.exit_code == 0, done.output

    return made_once(shared_folder / "finished", make)


@pytest.fixture(scope="session")
def few_layers(recipe_file: Path, shared_folder: Path) -> Path:
    """A calibrated and exported run directory with few quantized layers. Never written to: copy it."""

    def make(run: Path) -> None:
        calibrate(leave_float(load_recipe(str(recipe_file)), FEW), RunDirectory(run))
        export_onnx(RunDirectory(run))

    return made_once(shared_folder / "few", make)


@pytest.fixture
def run_copy(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may damage."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))
