"""What `calibrate` can refuse without PyTorch it refuses before PyTorch is imported: at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support.programs.commands import ROOT, child_environment

PROGRAM = """
import json, sys
# an import of any of them would be an error of its own
sys.modules.update(dict.fromkeys(("torch", "diffusers", "transformers", "onnxruntime")))
from click.testing import CliRunner
from gacq_deploy_cli.main import cli

done = [CliRunner().invoke(cli, [*words, "--json"]) for words in json.loads(sys.argv[1])]
print(json.dumps([(d.exit_code, json.loads(d.stdout)["error"]["message"]) for d in done]))
"""


def test_nothing_heavy_is_imported_for_a_refusal(
    finished_run: Path, recipe_file: Path, tmp_path: Path
) -> None:
    new, file = str(tmp_path / "new"), tmp_path / "model.bin"
    file.touch()
    (tmp_path / "empty").mkdir()
    text = tmp_path / "text"
    (text / "unet").mkdir(parents=True)
    (text / "unet" / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    (text / "model_index.json").write_text(
        '{"_class_name": "StableDiffusionPipeline", "text_encoder": ["transformers", "CLIPTextModel"]}'
    )
    recipe = str(finished_run / "recipe.yaml")
    expected = {
        "differs in calibration.seed, samples.seed": [
            "-r",
            recipe,
            "-o",
            str(finished_run),
            "--seed",
            "9",
        ],
        "began on cpu, and this one would go on on cuda": [
            "-r",
            recipe,
            "-o",
            str(finished_run),
            "--device",
            "cuda",
        ],
        "calibration.device": ["-r", str(recipe_file), "--device", "gpu", "-o", new],
        "neither a folder nor a hub id": ["--model", str(tmp_path / "nowhere"), "-o", new],
        "is a file, not a folder": ["--model", str(file), "-o", new],
        "model.bin is a file": ["-r", str(recipe_file), "--model", str(file), "-o", new],
        "holds no denoiser": ["--model", str(tmp_path / "empty"), "-o", new],
        "need transformers, which is not installed": ["--model", str(text), "-o", new],
        "no built-in model 'fasion16'": ["--model", "builtin:fasion16", "-o", new],
        "neither a built-in recipe nor a file": ["-r", "sd15", "-o", new],
        "no preset 'quik'": ["-r", str(recipe_file), "--preset", "quik", "-o", new],
        "Neither a model nor a recipe": ["-o", new],
        "samples.trajectories": ["-r", str(recipe_file), "--set", "samples.trajectories=0", "-o", new],
    }
    commands = [["calibrate", *words] for words in expected.values()]
    commands.append(["calibrate", *expected["is a file, not a folder"], "--dry-run"])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(commands)],
        env=child_environment({"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "cli")))}),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    for (code, message), part in zip(answers, [*expected, "is a file, not a folder"], strict=True):
        assert code == (4 if "not installed" in part else 2), message
        assert part in message
    assert not Path(new).exists()
