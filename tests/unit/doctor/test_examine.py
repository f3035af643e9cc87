"""What does doctor see on a healthy machine, and on a broken one?"""

from __future__ import annotations

from pathlib import Path

import pytest

from gacq_deploy.backends.processor import parse_processor
from gacq_deploy.doctor import Check, DoctorReport, examine, machine, packages


def _by_name(report: DoctorReport) -> dict[str, Check]:
    return {check.name: check for check in report.checks}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that does not exist."""
    return tmp_path_factory.mktemp("doctor") / "not" / "made" / "yet"


@pytest.fixture(scope="module")
def report(here: Path) -> DoctorReport:
    """What is really here."""
    return examine(here)


def test_this_machine_can_run_the_commands(report: DoctorReport, here: Path) -> None:
    checks = _by_name(report)
    assert report
    assert checks["engine ort-cpu"].value.startswith("onnxruntime-")
    assert checks["numpy"].status == checks["onnxruntime wheel"].status == "ok"
    assert "GB free" in checks["disk"].value
    assert {"gpu", "tensorrt", "tensorrt-rtx"} <= set(checks)
    assert not here.parent.exists()


@pytest.mark.rtx
def test_the_builder_of_tensorrt_rtx_opens_without_a_gpu(report: DoctorReport) -> None:
    check = _by_name(report)["tensorrt-rtx"]
    assert check.status == "ok"
    assert check.value.endswith("its builder opens")


def test_a_required_package_that_is_missing_or_too_old_fails_and_an_optional_one_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def version(name: str) -> str:
        if name in ("numpy", "diffusers", "transformers"):
            raise packages.metadata.PackageNotFoundError(name)
        return "1.0" if name in ("onnx", "torch") else "999.0"

    monkeypatch.setattr(packages.metadata, "version", version)
    report = DoctorReport(tuple(packages.checks()))
    checks = _by_name(report)
    assert not report
    assert (checks["numpy"].status, checks["numpy"].hint) == ("fail", "pip install gacq-deploy")
    assert (checks["diffusers"].status, checks["diffusers"].hint) == (
        "absent",
        "pip install 'gacq-deploy[calibrate]'",
    )
    assert checks["transformers"].value == "not installed: for models that read prompts"
    assert checks["transformers"].hint == "pip install 'gacq-deploy[text]'"
    assert (checks["onnx"].status, checks["torch"].status, checks["peft"].status) == ("fail", "warning", "ok")
    assert checks["torch"].value.startswith("1.0 is too old: torch>=")
    assert checks["torch"].hint == "pip install 'gacq-deploy[calibrate]'"


@pytest.mark.parametrize(
    ("text", "status", "says"),
    [
        ("model name\t: Some CPU\nflags\t\t: fpu avx2 avx512_vnni\n", "ok", "Some CPU: avx512_vnni"),
        ("model name\t: Old CPU\nflags\t\t: fpu sse2\n", "warning", "no integer dot product"),
        ("Features\t: fp asimd asimddp\n", "ok", "asimddp"),
        ("", "warning", "a machine: its features cannot be read"),
    ],
    ids=["vnni", "old", "arm", "unknown"],
)
def test_integer_instructions(text: str, status: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "this_processor", lambda: parse_processor(text, "a machine"))
    check = machine.cpu()
    assert check.status == status
    assert says in check.value


def test_little_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Path, "read_text", lambda *_args, **_kwargs: "MemTotal: 9 kB\nMemAvailable: 500000 kB\n"
    )
    check = machine.memory()
    assert (check.status, check.value) == ("warning", "0.5 GB available")
