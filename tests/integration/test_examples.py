"""Do the scripts that show the Python API run as the documents say, one after the other on one run?"""

from __future__ import annotations

import runpy
import shlex
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "getting-started.md"
FIRST = "calibrate_and_judge.py"
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


@pytest.mark.usefixtures("warm_benches")
@pytest.mark.slow
def test_the_example_scripts_run_as_documented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    commands = _documented()
    assert Path(commands[0][0]).name == FIRST, "it makes the run that the others take"
    assert len({script for script, *_ in commands}) == 3
    said = {}
    for script, *arguments in commands:
        smaller = [word for value in SMALLER for word in ("--set", value)] if script.endswith(FIRST) else []
        monkeypatch.setattr(sys, "argv", [script, *arguments, *smaller])
        runpy.run_path(str(ROOT / script), run_name="__main__")
        said[Path(script).name] = capsys.readouterr().out
    run = tmp_path / "runs" / "digits"
    assert "SHIP IT" in said[FIRST], said
    assert float(said["engine_in_diffusers.py"].split()[0]) > 20
    assert "times as fast as ort-cpu/float.onnx" in said["images_without_pytorch.py"]
    for picture in ("diffusers.png", "images.png"):
        with Image.open(run / picture) as image:
            assert image.width > 8


def test_the_script_without_pytorch_loads_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """It imports nothing but the package; what it calls is held to that by the import contracts."""
    text = (ROOT / "examples" / "images_without_pytorch.py").read_text(encoding="utf-8")
    imported = {line.split()[1] for line in text.splitlines() if line.startswith(("import ", "from "))}
    assert imported == {"__future__", "argparse", "pathlib", "gacq_deploy"}
