"""What does doctor see on a healthy machine, and on a broken one?"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gacq_deploy import doctor
from gacq_deploy.doctor import Check, DoctorReport, examine


def _by_name(report: DoctorReport) -> dict[str, Check]:
    return {check.name: check for check in report.checks}


def test_this_machine_can_run_the_commands(tmp_path: Path) -> None:
    report = examine(tmp_path / "not" / "made" / "yet")
    checks = _by_name(report)
    assert report
    assert checks["engine ort-cpu"].value.startswith("onnxruntime-")
    assert checks["numpy"].status == checks["onnxruntime wheel"].status == "ok"
    assert "GB free" in checks["disk"].value
    assert len(checks) == len(report.checks)
    assert not (tmp_path / "not").exists()


def test_a_missing_required_package_fails_and_an_optional_one_is_absent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def version(name: str) -> str:
        if name in ("numpy", "diffusers"):
            raise doctor.metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(doctor.metadata, "version", version)
    report = examine(Path())
    checks = _by_name(report)
    assert not report
    assert (checks["numpy"].status, checks["numpy"].hint) == ("fail", "pip install gacq-deploy")
    assert (checks["diffusers"].status, checks["diffusers"].hint) == (
        "absent",
        "pip install 'gacq-deploy[calibrate]'",
    )


def test_an_engine_that_computes_wrongly_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    right = doctor._one_node_graph()
    assert right.count(b"Add") == 1
    monkeypatch.setattr(doctor, "_one_node_graph", lambda: right.replace(b"Add", b"Sub"))
    check = doctor._engine("ort-cpu", needed=True)
    assert check.status == "fail"
    assert "computed 1 + 1 = 0" in check.value


def test_an_engine_without_its_library_is_a_failure_only_where_it_is_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "gacq_deploy.backends.ort", raising=False)
    assert doctor._engine("ort-cpu", needed=True).status == "fail"
    assert doctor._engine("ort-cpu", needed=False).status == "absent"


@pytest.mark.parametrize(
    ("text", "status", "says"),
    [
        ("model name\t: Some CPU\nflags\t\t: fpu avx2 avx512_vnni\n", "ok", "Some CPU: avx512_vnni"),
        ("model name\t: Old CPU\nflags\t\t: fpu sse2\n", "warning", "no integer dot product"),
        ("Features\t: fp asimd asimddp\n", "ok", "asimddp"),
    ],
    ids=["vnni", "old", "arm"],
)
def test_integer_instructions(text: str, status: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_args, **_kwargs: text)
    check = doctor._cpu()
    assert check.status == status
    assert says in check.value


def test_little_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Path, "read_text", lambda *_args, **_kwargs: "MemTotal: 9 kB\nMemAvailable: 500000 kB\n"
    )
    check = doctor._memory()
    assert (check.status, check.value) == ("warning", "0.5 GB available")
