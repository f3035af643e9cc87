"""`build-trt` on a real run directory, with the real compiler where the machine has it."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from gacq_deploy.backends.trt import polygraphy
from gacq_deploy.build_trt import compiler, stage
from gacq_deploy.build_trt.compiler import Compiled, LibraryFacts, compile_graph
from gacq_deploy.build_trt.open import locate_engine
from gacq_deploy.errors import GateError
from gacq_deploy.lint.lint import Finding
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.storage.lock import lock_directory
from tests.support.programs.commands import invoke

RTX = ("--backend", "tensorrt-rtx")
FAST = (*RTX, "--float-type", "float32", "--batch", "2")


def build(run: Path, *more: str, code: int = 0) -> Any:
    done = invoke(["build-trt", str(run), *more, "--json"])
    assert done.exit_code == code, done.output
    document = json.loads(done.stdout)
    return document if code else document.get("engines", document.get("plan"))


@pytest.fixture(scope="module")
def first_build(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A run with an engine, built by the worker's own command, and what was said of it. Never written to."""
    run = Path(shutil.copytree(finished_run, tmp_path_factory.mktemp("built") / "run"))
    (built,) = build(run, *FAST)
    return run, built


@pytest.fixture
def built_copy(first_build: tuple[Path, Any], tmp_path: Path) -> tuple[Path, Any]:
    """A copy of it that a test may damage."""
    run, built = first_build
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    return copy, {**built, "folder": str(copy / Path(built["folder"]).relative_to(run))}


def engines(run: Path) -> dict[str, int]:
    return {str(p.relative_to(run)): p.stat().st_mtime_ns for p in (run / "engines").rglob("*")}


@pytest.mark.rtx
@pytest.mark.usefixtures("warm_builds")
def test_an_engine_whose_every_planned_layer_is_int8(run_copy: Path) -> None:
    (built,) = build(run_copy, *RTX)
    assert built["coverage"]["share"] >= 0.95
    assert built["coverage"]["planned"] > 5
    folder = Path(built["folder"])
    assert {p.name for p in folder.iterdir()} == {
        "engine.plan",
        "layers.json",
        "manifest.json",
        "network.onnx",
    }
    said = json.loads((folder / "layers.json").read_text())
    layers, planned = said["layers"], said["planned"]
    assert len(planned) == built["coverage"]["planned"]
    assert all(node["module"] and node["kernel"] and (node["int8"] or node["why"]) for node in planned)
    assert sum(layer["int8"] for layer in layers) == built["coverage"]["kernels"]["int8"] > 0
    assert all(node["rule"] for node in built["coverage"]["lost"])
    inputs = built["inputs"]
    assert inputs["float_type"] == "float16"
    assert inputs["options"]["profiles"][0]["sample"]["max"][0] == 8
    assert built["half"]["difference_db"] < 6
    assert any(kept["why"] == "timestep" for kept in built["half"]["float32_nodes"])
    verified = json.loads(invoke(["verify", str(run_copy), "--json"]).stdout)
    assert {link["name"]: link["status"] for link in verified["links"]}["engines"] == "ok"


@pytest.mark.rtx
@pytest.mark.usefixtures("warm_builds")
@pytest.mark.slow
def test_one_engine_for_several_resolutions(run_copy: Path, recipe_file: Path) -> None:
    again = ["calibrate", "-r", str(recipe_file), "-o", str(run_copy)]
    assert invoke([*again, "--set", "export.dynamic_resolution=true"]).exit_code == 0
    assert invoke(["export", "--onnx", str(run_copy)]).exit_code == 0
    refused = build(run_copy, *FAST, "--resolution", "8x9", code=2)["error"]
    assert "multiples of 2" in refused["message"]
    assert "--resolution" in build(run_copy, *FAST, code=2)["error"]["hint"]
    (built,) = build(run_copy, *RTX, "--batch", "2", "--resolution", "8x8:16x24", "--resolution", "32x32")
    assert built["coverage"]["share"] == 1
    profiles = built["inputs"]["options"]["profiles"]
    assert [p["sample"]["max"] for p in profiles] == [[2, 1, 16, 24], [2, 1, 32, 32]]


@pytest.mark.rtx
@pytest.mark.usefixtures("warm_builds")
def test_built_from_the_same_inputs_nothing_is_built(built_copy: tuple[Path, Any]) -> None:
    run, first = built_copy
    before = engines(run)
    (second,) = build(run, *FAST)
    assert (first["reused"], second["reused"]) == (False, True)
    assert engines(run) == before
    (rebuilt,) = build(run, *FAST, "--rebuild")
    assert rebuilt["reused"] is False
    assert rebuilt["files"]["engine.plan"] == first["files"]["engine.plan"], "the same bytes"
    (other,) = build(run, *FAST[:-1], "1:2")
    assert other["folder"] != first["folder"]
    assert _used(run) == Path(other["folder"])
    build(run, *FAST)
    assert _used(run) == Path(first["folder"]), "the one asked for last"
    shown = invoke(["build-trt", str(run), *FAST]).stdout
    assert "as it was" in shown
    assert "2x1x8x8" in shown
    *_, sentence, lead, command = shown.splitlines()
    assert re.fullmatch(r"plan for any GPU .*: [\d.]+ MB, \d+ of \d+ planned layers \([\d.]+%\)\.", sentence)
    assert lead == "Next, on a machine with such a GPU, with a copy of this folder:"
    assert command.strip() == f"gacq-deploy parity {run}"


def _used(run: Path) -> Path:
    return locate_engine(RunDirectory(run), "tensorrt-rtx").folder


@pytest.mark.rtx
@pytest.mark.usefixtures("warm_builds")
def test_the_manifest_says_which_steps_run_in_float(built_copy: tuple[Path, Any]) -> None:
    run, built = built_copy
    assert built["step_policy"] is None
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("float_steps: 0", "float_steps: 1"))
    (again,) = build(run, *FAST)
    assert again["reused"] is True
    assert again["step_policy"]["float_share"] == 0.25
    assert (
        json.loads((Path(built["folder"]) / "manifest.json").read_text())["step_policy"]
        == again["step_policy"]
    )


@pytest.mark.rtx
@pytest.mark.usefixtures("warm_builds")
def test_a_dry_run_prints_the_profiles_and_writes_nothing(run_copy: Path) -> None:
    (planned,) = build(run_copy, *FAST, "--dry-run")
    assert not (run_copy / "engines").exists()
    assert planned["present"] is False
    assert planned["estimate"]["seconds"] > 0
    assert planned["inputs"]["options"]["profiles"][0]["timestep"]["opt"] == [2]
    shown = invoke(["build-trt", str(run_copy), *FAST, "--dry-run"]).stdout
    assert "nothing was written" in shown
    assert "to build" in shown


@pytest.mark.rtx
@pytest.mark.usefixtures("warm_builds")
def test_the_float_twin_is_an_engine_of_its_own(run_copy: Path) -> None:
    int8, baseline = build(run_copy, *FAST, "--fp16-baseline")
    assert (int8["inputs"]["graph"], baseline["inputs"]["graph"]) == ("int8.onnx", "float.onnx")
    assert baseline["coverage"] is None
    assert int8["folder"] != baseline["folder"]


@pytest.mark.rtx
@pytest.mark.usefixtures("warm_builds")
def test_an_altered_plan_is_found_and_built_again(built_copy: tuple[Path, Any]) -> None:
    run, built = built_copy
    plan = Path(built["folder"]) / "engine.plan"
    data = bytearray(plan.read_bytes())
    data[len(data) // 2] ^= 1
    plan.write_bytes(data)
    done = invoke(["verify", str(run)])
    assert done.exit_code == 5
    assert "engine.plan" in done.output
    (mended,) = build(run, *FAST)
    assert mended["reused"] is False
    assert mended["files"] == built["files"]


@pytest.mark.rtx
@pytest.mark.usefixtures("warm_builds")
def test_an_engine_of_another_graph_is_stale(built_copy: tuple[Path, Any], recipe_file: Path) -> None:
    run, _ = built_copy
    other = ["calibrate", "-r", str(recipe_file), "-o", str(run), "--fresh", "--seed", "5"]
    assert invoke(other).exit_code == 0
    assert invoke(["export", "--onnx", str(run)]).exit_code == 0
    done = invoke(["verify", str(run), "--json"])
    link = next(x for x in json.loads(done.stdout)["links"] if x["name"] == "engines")
    assert link["status"] == "fail"
    assert "stale: int8.onnx changed" in link["detail"]
    (rebuilt,) = build(run, *FAST)
    assert rebuilt["reused"] is False


@pytest.mark.rtx
@pytest.mark.usefixtures("warm_builds")
def test_the_coverage_gate_names_what_fell_back(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_the_first_int8_kernel(*arguments: Any, **named: Any) -> Compiled:
        compiled = compile_graph(*arguments, **named)
        lost = next(layer for layer in compiled.layers if layer.int8)
        layers = tuple(layer for layer in compiled.layers if layer is not lost)
        return Compiled(
            compiled.engine, layers, compiled.library, compiled.version, compiled.seconds, compiled.peak_mb
        )

    monkeypatch.setattr(stage, "compile_graph", without_the_first_int8_kernel)
    strict = (*FAST, "--min-int8-coverage", "1")
    failed = build(run_copy, *strict, code=3)["error"]
    assert "planned layers compiled to INT8" in failed["message"]
    assert "resnets.0.conv1" in failed["message"]
    assert "with a lower --min-int8-coverage" in failed["hint"]
    with pytest.raises(GateError, match="compiled to INT8"):
        _used(run_copy)
    assert build(run_copy, *strict, code=3)["error"] == failed, "found as it was, and judged again"
    (accepted,) = build(run_copy, *FAST, "--min-int8-coverage", "0.5")
    assert accepted["reused"] is True
    assert _used(run_copy) == Path(accepted["folder"]), "what was accepted may be used"


def test_the_lint_is_a_gate(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Finding(
        "scale-not-positive", "error", "conv1:input", "scale 0", "TensorRT refuses it.", "Clamp it."
    )
    monkeypatch.setattr(stage, "lint_graph", lambda *_, **__: [found])
    monkeypatch.setattr(stage, "describe_library", _any_library)
    failed = build(run_copy, *RTX, code=3)["error"]
    assert "has 1 errors" in failed["message"]
    assert "conv1:input: scale 0" in failed["message"]
    assert not (run_copy / "engines").exists()


def test_without_polygraphy_nothing_is_begun(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(polygraphy.metadata, "version", missing)
    monkeypatch.setattr(stage, "describe_library", _any_library)
    failed = build(run_copy, *RTX, "--dry-run", code=4)["error"]
    assert failed["message"] == "build-trt needs Polygraphy, which is not installed."
    assert "pip install 'polygraphy>=" in failed["hint"]


def _any_library(_name: str) -> LibraryFacts:
    return LibraryFacts("tensorrt-rtx", "1.7.1.116", ("8.0", "8.6"))


def test_without_any_nvidia_package_both_installs_are_named(
    run_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    for module in ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"):
        (hidden / f"{module}.py").write_text(f"raise ImportError('No module named {module}')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(hidden), *sys.path)))
    failed = build(run_copy, code=4)["error"]
    assert "tensorrt-rtx is not available" in failed["message"]
    assert "gacq-deploy[trt]" in failed["hint"]
    assert "gacq-deploy[rtx]" in failed["hint"]
    assert not (run_copy / "engines").exists()


def test_without_the_library_both_installs_are_named(run_copy: Path) -> None:
    failed = build(run_copy, "--backend", "tensorrt", code=4)["error"]
    assert "tensorrt is not available" in failed["message"]
    assert "gacq-deploy[trt]" in failed["hint"]
    assert "gacq-deploy[rtx]" in failed["hint"]
    assert not (run_copy / "engines").exists()


_SAYS_FULL = """
import os
print('{"full": ["No space left for 12 bytes.", "Free some."]}', flush=True)
os._exit(73)
"""


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ("import os; os.kill(os.getpid(), 11)", 1, "crashed (SIGSEGV)"),
        ("import time; time.sleep(600)", 6, "did not finish in 1 s"),
        ("raise MemoryError", 6, "probably for memory"),
        (_SAYS_FULL, 6, "No space left for 12 bytes"),
    ],
)
def test_a_builder_that_fails_leaves_nothing(
    run_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, code: int, message: str
) -> None:
    earlier = run_copy / "engines" / "0123456789abcdef"
    earlier.mkdir(parents=True)
    (earlier / "engine.plan").write_bytes(b"somebody's plan")
    before = engines(run_copy)
    script = tmp_path / "bad.py"
    script.write_text(body)
    monkeypatch.setattr(compiler, "WORKER", (sys.executable, str(script)))
    monkeypatch.setattr(stage, "describe_library", _any_library)
    failed = build(run_copy, *FAST, "--timeout", "1", code=code)["error"]
    assert message in failed["message"]
    assert engines(run_copy) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--batch", "0"), "needs 0 < MIN"),
        (("--batch", "4:1"), "needs 0 < MIN"),
        (("--resolution", "64x64"), "fixed at 8x8"),
        (("--shapes", "noise:1x2"), "no input 'noise'"),
        (("--shapes", "sample"), "not NAME:AxBxC"),
        (("--min-shapes", "timestep:1"), "no opt and no max shape"),
        (("--compute-capability", "ampere"), "compute_capabilities"),
        (("--compute-capability", "9.0"), "has no target 9.0: 8.0, 8.6"),
        (("--batch", "99999999999999999999"), "a dimension ends at"),
        (("--workspace", "99999999999"), "workspace"),
        (("--shapes", "sample:1x1x8x8,timestep:2"), "share the dimension 'batch'"),
        (("--hw-compat",), "cannot build with --hw-compat"),
        (("--version-compat",), "cannot build with --version-compat"),
        (("--strip",), "cannot build with --strip without a GPU"),
        (("--opt-level", "9"), "opt-level"),
        (("--min-int8-coverage", "95"), "min-int8-coverage"),
    ],
)
def test_bad_options_are_refused_before_work(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.setattr(stage, "describe_library", _any_library)
    done = invoke(["build-trt", str(run_copy), *RTX, *arguments])
    assert done.exit_code == 2, done.output
    assert message in done.output
    assert not (run_copy / "engines").exists()


def test_what_is_missing_or_busy(run_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "describe_library", _any_library)
    assert invoke(["build-trt", str(tmp_path)]).exit_code == 5
    with lock_directory(run_copy):
        assert build(run_copy, *FAST, code=6)["error"]["message"].endswith(".")
    (run_copy / "onnx" / "manifest.json").unlink()
    assert "export --onnx" in build(run_copy, *FAST, code=5)["error"]["hint"]
