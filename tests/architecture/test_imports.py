"""Who may load what? Every module is imported bare, with the libraries it may not need out of reach."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TORCH = ("torch", "diffusers", "transformers", "onnxscript", "huggingface_hub")
RUNTIMES = ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "polygraphy", "pynvml")
TERMINAL = ("click", "rich")
TORCH_ROOMS = (
    "gacq_deploy.models",
    "gacq_deploy.quant",
    "gacq_deploy.calibration",
    "gacq_deploy.diffusers",
    "gacq_deploy.generate.pipeline",
    "gacq_deploy.export.float_graph",
)
TORCH_FILES = ("gacq_deploy.workflow.quickstart",)

BLOCKER = """
import json, sys
BLOCKED = set(json.loads(sys.argv[1]))
# as if not installed, for who imports and for who only looks whether it is there
sys.modules.update(dict.fromkeys(BLOCKED))
import importlib
for name in json.loads(sys.argv[2]):
    try:
        importlib.import_module(name)
    except Exception as error:
        sys.exit(f"{name}: {type(error).__name__}: {error}")
print("imported", len(json.loads(sys.argv[2])))
"""


def _modules(package: str, folder: Path) -> list[str]:
    names = []
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        if parts[-1] == "__main__":
            continue  # running it is what it is for
        names.append(".".join((package, *(p for p in parts if p != "__init__"))))
    return names


LIBRARY = _modules("gacq_deploy", ROOT / "gacq_deploy")
COMMAND_LINE = _modules("gacq_deploy_cli", ROOT / "cli" / "gacq_deploy_cli")


def _owner(name: str) -> str:
    if name.startswith(TORCH_ROOMS) or name in TORCH_FILES:
        return "torch"
    return {"gacq_deploy.backends.ort": "onnxruntime", "gacq_deploy.backends.openvino": "openvino"}.get(
        name, ""
    )


@dataclass(frozen=True)
class Border:
    """Modules that must import while ``blocked`` cannot be imported."""

    id: str
    modules: tuple[str, ...]
    blocked: tuple[str, ...]


BORDERS = (
    Border("free-of-everything", tuple(m for m in LIBRARY if not _owner(m)), (*TORCH, *RUNTIMES, *TERMINAL)),
    # diffusers itself looks for onnxruntime
    Border("torch-rooms", tuple(m for m in LIBRARY if _owner(m) == "torch"), (*RUNTIMES[1:], *TERMINAL)),
    Border("ort", ("gacq_deploy.backends.ort",), (*TORCH, *TERMINAL, "openvino")),
    Border("openvino", ("gacq_deploy.backends.openvino",), (*TORCH, *TERMINAL, "onnxruntime")),
    Border("cli", tuple(COMMAND_LINE), (*TORCH, *RUNTIMES, "onnx", "numpy", "pydantic", "PIL", "yaml")),
)


def _python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "cli")))}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


@pytest.mark.parametrize("border", BORDERS, ids=lambda b: b.id)
def test_modules_import_without_what_they_may_not_need(border: Border) -> None:
    assert border.modules, "the border guards nothing"
    done = _python(BLOCKER, json.dumps(border.blocked), json.dumps(border.modules))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["imported", str(len(border.modules))]


def test_the_blocker_blocks() -> None:
    done = _python(BLOCKER, json.dumps(["onnxruntime"]), json.dumps(["gacq_deploy.backends.ort"]))
    assert done.returncode != 0
    assert "import of onnxruntime halted" in done.stderr


@pytest.mark.parametrize("module", LIBRARY, ids=str)
def test_no_module_lacks_a_docstring(module: str) -> None:
    path = ROOT.joinpath(*module.split("."))
    source = path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
    assert source.read_text(encoding="utf-8").lstrip().startswith('"""'), f"{source} says not what it is for"


HELP = """
import sys
from gacq_deploy_cli.main import cli
try:
    cli.main(sys.argv[1:], prog_name="gacq-deploy")
except SystemExit as leave:
    code = leave.code
heavy = "torch diffusers onnx onnxruntime openvino numpy pydantic onnxscript PIL yaml".split()
loaded = sorted(set(heavy) & set(sys.modules))
sys.stderr.write(",".join(loaded))
sys.exit(code or (70 if loaded else 0))
"""


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["calibrate", "--help"], ["run", "--help"], ["recipes", "--help"]],
    ids=" ".join,
)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    done = _python(HELP, *arguments)
    assert done.returncode == 0, f"loaded: {done.stderr}"
    assert done.stdout.strip()
