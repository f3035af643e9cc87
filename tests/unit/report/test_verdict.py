from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gacq_deploy.inspection.verify import Link, LinkStatus
from gacq_deploy.parity.report import ADVICE, GATES, ParityReport, assemble, measured
from gacq_deploy.recipe.sections import ParitySection
from gacq_deploy.report.collect import Collected, Missing, collect
from gacq_deploy.report.verdict import EVIDENCE, judge_run
from gacq_deploy.run_directory import RunDirectory
from tests.unit.report.conftest import write_recipe


def _parity(gap: float) -> ParityReport:
    comparison = measured("error", "torch", "int8.onnx@ort-cpu", {"difference_db": gap}, worst={"bucket": 1})
    return assemble((comparison,), ParitySection(), trajectory={}, noise_floor={}, subject={})


def _found(tmp_path: Path, report: ParityReport | Missing, **statuses: LinkStatus) -> Collected:
    """A run in which everything is well but the links that are named."""
    write_recipe(tmp_path)
    bare = collect(RunDirectory(tmp_path))
    links = tuple(
        Link(link.name, statuses.get(link.name, "ok"), link.path, f"{link.name} detail", "Mend it.")
        for link in bare.chain.links
    )
    return replace(bare, parity=report, chain=replace(bare.chain, links=links))


def test_a_passed_report_of_these_files_passes(tmp_path: Path) -> None:
    verdict = judge_run(_found(tmp_path, _parity(0.1)))
    assert (verdict.state, verdict.headline) == ("passed", "Parity passed")
    assert "1 gates" in verdict.sentences[0]
    assert not verdict.broken
    assert not verdict.failures


def test_a_failed_report_says_how_many_gates_do_not_hold(tmp_path: Path) -> None:
    verdict = judge_run(_found(tmp_path, _parity(0.9)))
    assert verdict.state == "failed"
    assert "1 of 1 gates do not hold" in verdict.sentences[0]
    assert [(gate.holds, gate.where) for gate in verdict.gates] == [(False, "bucket: 1")]
    [failure] = verdict.failures
    [pair] = failure.comparisons
    assert pair.gates == ("gap between the two errors, worst bucket (dB): 0.9, needs at most 0.5",)
    assert (pair.candidate, pair.reference, pair.where) == ("int8.onnx@ort-cpu", "torch", "bucket: 1")
    assert failure.advice == ADVICE["error"]


@pytest.mark.parametrize("gap", [0.1, 0.9], ids=["passed", "failed"])
def test_what_was_not_judged_is_said(tmp_path: Path, gap: float) -> None:
    report = _parity(gap)
    report.subject["not_judged"] = {"int8.onnx@openvino": "It would be wrong here."}
    sentences = judge_run(_found(tmp_path, report)).sentences
    assert "int8.onnx@openvino was not judged. It would be wrong here." in sentences


def test_every_gate_is_explained() -> None:
    assert set(EVIDENCE) == set(GATES)
    assert all(gate.meaning for gates in GATES.values() for gate in gates.values())


@pytest.mark.parametrize("link", ["recipe", "samples", "artifact", "graphs", "parity"])
def test_stale_files_void_a_verdict(tmp_path: Path, link: Any) -> None:
    verdict = judge_run(_found(tmp_path, _parity(0.1), **{link: "fail"}))
    assert verdict.state == "void"
    assert [broken.name for broken in verdict.broken] == [link]
    assert "'passed'" in verdict.sentences[1]


@pytest.mark.parametrize("link", ["bench", "sensitivity", "comparison"])
def test_a_stale_benchmark_is_said_but_voids_nothing(tmp_path: Path, link: Any) -> None:
    verdict = judge_run(_found(tmp_path, _parity(0.1), **{link: "fail"}))
    assert verdict.state == "passed"
    assert [broken.name for broken in verdict.broken] == [link]


@pytest.mark.parametrize(
    ("absent", "command"),
    [
        (("artifact", "graphs", "parity"), "calibrate"),
        (("graphs", "parity"), "export"),
        (("parity",), "gacq-deploy parity"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, tuple) else v,
)
def test_the_next_command_is_named(tmp_path: Path, absent: tuple[str, ...], command: str) -> None:
    links: dict[str, Any] = dict.fromkeys(absent, "absent")
    verdict = judge_run(_found(tmp_path, Missing("There is no parity.json yet.", ""), **links))
    assert verdict.state == "unjudged"
    assert command in verdict.sentences[-1]


def test_a_damaged_report_is_no_verdict(tmp_path: Path) -> None:
    write_recipe(tmp_path)
    (tmp_path / "parity.json").write_text("{}")
    found = collect(RunDirectory(tmp_path))
    assert isinstance(found.parity, Missing)
    assert judge_run(found).state == "void"


def test_a_remedy_stands_once_for_all_that_it_helps(tmp_path: Path) -> None:
    lost = [measured("exporter", "torch", f"{name}.onnx", {}) for name in ("a", "b")]
    far = measured("error", "torch", "int8.onnx@ort-cpu", {"difference_db": 9})
    report = assemble((lost[0], far, lost[1]), ParitySection(), trajectory={}, noise_floor={}, subject={})
    exporter, error = judge_run(_found(tmp_path, report)).failures
    assert [pair.candidate for pair in exporter.comparisons] == ["a.onnx", "b.onnx"]
    assert exporter.comparisons[0].gates[0].startswith("relative error: not evaluated, needs at most ")
    assert (exporter.advice, error.advice) == (ADVICE["exporter"], ADVICE["error"])


def test_a_command_can_be_pasted_where_a_path_has_a_space(tmp_path: Path) -> None:
    (tmp_path / "my run").mkdir()
    links: dict[str, Any] = {"parity": "absent"}
    verdict = judge_run(_found(tmp_path / "my run", Missing("There is no parity.json yet.", ""), **links))
    assert verdict.sentences[-1] == f"Run `gacq-deploy parity '{tmp_path}/my run'`."
