"""What does `import gacq_deploy` give, and what does it load?"""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import gacq_deploy as gd
from tests.support.programs.commands import child_environment

VERBS = (
    "load_recipe",
    "calibrate",
    "export_onnx",
    "build_engines",
    "check_parity",
    "make_images",
    "load_denoiser",
)


@pytest.mark.parametrize("name", [n for n in gd.__all__ if n != "__version__"])
def test_every_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(gd, name)
    assert value.__name__ == name, "one name, wherever it is met"
    assert inspect.getdoc(value)
    assert name in dir(gd)


@pytest.mark.parametrize("name", VERBS)
def test_verbs_say_what_they_raise(name: str) -> None:
    text = inspect.getdoc(getattr(gd, name)) or ""
    assert "Raises:" in text
    assert "Args:" in text or name == "make_images"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_verb"):
        gd.no_such_verb  # noqa: B018


def test_importing_it_loads_nothing_and_sampling_needs_no_torch() -> None:
    code = (
        "import sys, gacq_deploy as gd\n"
        "assert not {'torch', 'numpy', 'onnx', 'pydantic'} & sys.modules.keys()\n"
        "gd.make_images, gd.ImageRequest, gd.check_parity, gd.load_recipe('fashion-w8a8')\n"
        "assert 'torch' not in sys.modules and 'onnxruntime' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=child_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_package_runs_as_the_command() -> None:
    for package in ("gacq_deploy", "gacq_deploy_cli"):
        done = subprocess.run(
            [sys.executable, "-m", package, "recipes", "show", "no-such-recipe"],
            env=child_environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 2
        assert "no-such-recipe" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_run_may_be_given_as_text(tmp_path: Path) -> None:
    assert gd.RunDirectory(str(tmp_path)) == gd.RunDirectory(tmp_path)
    with pytest.raises(gd.GacqError, match="not a run directory"):
        gd.export_onnx(str(tmp_path))
    with pytest.raises(gd.GacqError):
        gd.check_parity(str(tmp_path))
