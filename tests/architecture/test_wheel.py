"""What does a user get from `pip install`? The wheel is built, and run from where it was unpacked."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import zipfile
from hashlib import sha256
from pathlib import Path, PurePosixPath

import pytest
from cyclonedx.model.bom import Bom

from docker.lock import LOCK, read_lock
from docker.sbom import describe
from gacq_deploy import __version__

ROOT = Path(__file__).resolve().parents[2]
DIGITS_LIMIT = 1_000_000


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    # a make that runs the tests hands its own options on
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    asked = ["make", "-n", "wheel"]
    told = subprocess.run(asked, cwd=ROOT, env=own, capture_output=True, text=True, check=True).stdout
    # as `make wheel` does it, but for the interpreter and the place
    options = shlex.split(told.splitlines()[-1])[1:-1]
    assert options[:3] == ["-m", "build", "--wheel"]
    command = [sys.executable, *options, str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return next(out.glob("*.whl"))


def _names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_only_two_packages_are_installed(wheel: Path) -> None:
    tops = {PurePosixPath(name).parts[0] for name in _names(wheel)}
    assert tops == {"gacq_deploy", "gacq_deploy_cli", f"gacq_deploy-{__version__}.dist-info"}


def test_every_source_file_is_in_the_wheel(wheel: Path) -> None:
    names = _names(wheel)
    sources = {p.relative_to(ROOT).as_posix() for p in (ROOT / "gacq_deploy").rglob("*.py")}
    sources |= {p.relative_to(ROOT / "cli").as_posix() for p in (ROOT / "cli").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == sources
    assert {"gacq_deploy/py.typed", "gacq_deploy_cli/py.typed"} <= names


def test_the_parts_of_the_report_page_are_in_the_wheel(wheel: Path) -> None:
    parts = {p.relative_to(ROOT).as_posix() for p in (ROOT / "gacq_deploy/report/template").iterdir()}
    assert len(parts) == 3
    assert parts <= _names(wheel)


def test_recipes_and_demo_models_are_in_the_wheel(wheel: Path) -> None:
    names = _names(wheel)
    recipes = {f"gacq_deploy/recipes/{p.name}" for p in (ROOT / "recipes").glob("*.yaml")}
    assert len(recipes) >= 2
    assert recipes <= names
    demo = {name for name in names if name.startswith("gacq_deploy/demo/")}
    assert any(n.startswith("gacq_deploy/demo/fashion16/") and n.endswith(".safetensors") for n in demo)
    assert any(
        n.startswith("gacq_deploy/demo/fashion16/") and n.endswith("scheduler_config.json") for n in demo
    )


def test_the_second_demo_model_stays_small() -> None:
    digits = ROOT / "examples" / "models" / "digits8"
    assert sum(p.stat().st_size for p in digits.rglob("*") if p.is_file()) < DIGITS_LIMIT


def test_the_unpacked_wheel_finds_its_recipes_and_its_model(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        "import json\n"
        "from gacq_deploy.recipe.load import builtin_recipes\n"
        "from gacq_deploy.models.folders import builtin_directory\n"
        "print(json.dumps([*map(str, builtin_recipes().values()), str(builtin_directory('fashion16'))]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found
    assert all(Path(path).is_relative_to(tmp_path / "gacq_deploy") for path in found)


def test_the_bill_of_materials_lists_the_pinned_packages_that_the_wheel_needs(wheel: Path) -> None:
    text = describe(wheel)
    document = json.loads(text)
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    bom = Bom.from_json(document)
    bom.validate()
    root = bom.metadata.component
    assert root is not None
    assert (root.name, root.version) == ("gacq-deploy", __version__)
    assert {h.content for h in root.hashes} == {sha256(wheel.read_bytes()).hexdigest()}
    pinned = {f"{c.name}=={c.version}": {h.content for h in c.hashes} for c in bom.components}
    assert pinned == {f"{name}=={version}": set(hashes) for name, version, hashes in read_lock(LOCK)}
    constraints = {
        line.lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    assert pinned.keys() <= constraints
    needs = {d.ref.value: {n.ref.value.partition("@")[0] for n in d.dependencies} for d in bom.dependencies}
    direct = needs[root.bom_ref.value]
    assert {"pkg:pypi/numpy", "pkg:pypi/onnx", "pkg:pypi/onnxruntime", "pkg:pypi/cryptography"} <= direct
    assert "pkg:pypi/pycparser" not in direct
    assert any("pkg:pypi/pycparser" in found for found in needs.values())
