"""Do the scripts that show the Python API run as the documents say, one after the other on one run?"""

from __future__ import annotations

import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.support.programs.commands import child_environment

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "getting-started.md"
SMALLER = (
    "quantization.rules=[{match: '*', ignore: true}, {match: 'up_blocks.1*', bits: 8}, "
    "{match: '*time_emb*', ignore: true}]",
    "samples.trajectories=6",
    "samples.steps=5",
    "calibration.threads=1",
    "parity.images=4",
    "parity.steps=5",
    "parity.buckets=2",
    "parity.noise_floor_runs=1",
    "parity.probe={trajectories: 4, local_samples: 2}",
)
"""What makes a run quick: most layers stay float."""


def _documented() -> list[list[str]]:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("python examples/")]


WITHOUT_TORCH = """
import runpy, sys
# as if not installed
sys.modules.update(dict.fromkeys(("torch", "diffusers", "transformers", "onnxscript")))
script, *sys.argv[1:] = sys.argv[1:]
sys.argv[0] = script
runpy.run_path(script, run_name="__main__")
"""


@pytest.mark.slow
def test_the_example_scripts_run_as_documented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    first, second, third = _documented()
    smaller = [word for value in SMALLER for word in ("--set", value)]
    said = []
    for script, *arguments in ([*first, *smaller], second):
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        runpy.run_path(str(ROOT / script), run_name="__main__")
        said.append(capsys.readouterr().out)
    assert Path(first[0]).name == "calibrate_and_judge.py"
    assert "SHIP IT" in said[0].splitlines()
    assert float(said[1].split()[0]) > 20, "dB of PSNR"

    assert Path(third[0]).name == "images_without_pytorch.py"
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(ROOT / third[0]), *third[1:]],
        env=child_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "times as fast as ort-cpu/float.onnx" in done.stdout
    for picture in ("diffusers.png", "images.png"):
        with Image.open(tmp_path / "runs" / "digits" / picture) as image:
            assert image.width > 8
