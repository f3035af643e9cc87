from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from gacq_deploy.errors import ArtifactError
from gacq_deploy.parity.report import (
    ADVICE,
    GATES,
    Comparison,
    Evidence,
    ParityReport,
    SegmentRecord,
    assemble,
    decides_measurement,
    judge,
    load_report,
    measured,
    protocol_changes,
)
from gacq_deploy.recipe.sections import ParitySection, StepPolicySection
from gacq_deploy.storage.digests import digest_json
from gacq_deploy.storage.sealed import read_sealed, write_sealed

SECTION = ParitySection()
GOOD: dict[Evidence, dict[str, float]] = {
    "exact": {"differences": 0},
    "flavour": {"max_abs": 0},
    "exporter": {"relative_error": 1e-6},
    "local": {"unchecked": 0, "equal_share": 1, "steps": 1, "output_relative_error": 1e-6},
    "error": {"difference_db": 0.1},
    "budget": {
        "latents_differ": 0,
        "eps_sqnr_db": 25,
        "eps_cosine": 0.999,
        "trajectory_cosine": 0.99,
        "image_psnr_db": 40,
        "image_ssim": 0.99,
    },
    "single": {"eps_sqnr_db": 25, "eps_cosine": 0.999},
    "mixed": {"latents_differ": 0, "trajectory_cosine": 0.99, "image_psnr_db": 40, "image_ssim": 0.99},
}
BAD: dict[str, float] = {
    "differences": 1,
    "max_abs": 1e-9,
    "relative_error": 2e-4,
    "unchecked": 1,
    "equal_share": 0.9989,
    "steps": 2,
    "output_relative_error": 2e-4,
    "difference_db": 0.51,
    "latents_differ": 1,
    "eps_sqnr_db": 19.9,
    "eps_cosine": 0.98,
    "trajectory_cosine": 0.94,
    "image_psnr_db": 29.9,
    "image_ssim": 0.89,
}
EVERY_GATE = [(evidence, name) for evidence, gates in GATES.items() for name in gates]


def comparison(evidence: Evidence, metrics: dict[str, Any]) -> Comparison:
    return judge(measured(evidence, "a", "b", metrics), SECTION)


def report(*comparisons: Comparison) -> ParityReport:
    return assemble(comparisons, SECTION, trajectory={}, noise_floor={}, subject={})


@pytest.mark.parametrize("evidence", GATES)
def test_good_numbers_pass(evidence: Evidence) -> None:
    assert comparison(evidence, GOOD[evidence]).passed


@pytest.mark.parametrize(("evidence", "name"), EVERY_GATE)
@pytest.mark.parametrize("value", ["bad", math.nan, math.inf, -math.inf, "missing"])
def test_every_gate_can_fail(evidence: Evidence, name: str, value: Any) -> None:
    metrics = dict(GOOD[evidence])
    if value == "missing":
        del metrics[name]
    else:
        metrics[name] = BAD[name] if value == "bad" else value
    judged = comparison(evidence, metrics)
    assert not judged.passed
    assert judged.failed == (name,)
    assert judged.evaluated == (value == "bad")
    whole = report(judged)
    assert not whole
    assert ("not evaluated" in whole.to_text()) == (value != "bad")


def test_every_threshold_of_the_recipe_is_a_gate() -> None:
    bounds = {bound for gates in GATES.values() for bound in (g.bound for g in gates.values())}
    strict = SECTION.model_copy(
        update={
            "local_equal_share": 0.5,
            "local_rtol": 0.25,
            "error_difference_db": 0.125,
            "budget": SECTION.budget.model_copy(
                update={n: i + 7.0 for i, n in enumerate(type(SECTION.budget).model_fields)}
            ),
        }
    )
    wanted = {0.5, 0.25, 0.125} | {i + 7.0 for i in range(len(type(SECTION.budget).model_fields))}
    assert wanted <= {bound(strict) for bound in bounds}


def test_single_and_mixed_share_the_gates_of_the_budget_between_them() -> None:
    assert set(GATES["single"]).isdisjoint(GATES["mixed"])
    assert GATES["single"] | GATES["mixed"] == GATES["budget"]


def test_images_are_those_of_the_mix_where_steps_are_mixed() -> None:
    assert report(comparison("budget", GOOD["budget"])).fidelity == {"b": GOOD["budget"]}
    single = comparison("single", {**GOOD["budget"], "image_psnr_db": 1})
    mixed = report(single, comparison("mixed", GOOD["mixed"]))
    assert mixed, "the INT8 engine's own images are shown, not judged"
    assert mixed.fidelity == {"b": GOOD["budget"]}
    assert mixed.candidates == {"b"}


def test_a_report_says_which_step_policy_it_is_about(tmp_path: Path) -> None:
    path = tmp_path / "parity.json"
    good = (comparison("single", GOOD["single"]), comparison("mixed", GOOD["mixed"]))
    assert not report(*good).step_policy.asked, "a report that does not say is about INT8 alone"
    asked = {"float_steps": 2, "where": "first", "steps": []}
    assemble(good, SECTION, trajectory={}, noise_floor={}, subject={"step_policy": {"asked": asked}}).save(
        path
    )
    assert load_report(path).step_policy.asked == StepPolicySection(float_steps=2, where="first")
    document = read_sealed(path, what="", hint="") | {"subject": {"step_policy": {"asked": {"x": 1}}}}
    write_sealed(path, document)
    with pytest.raises(ArtifactError, match=r"subject: step_policy\.asked\.x: Extra inputs"):
        load_report(path)


def test_no_edges_do_not_pass() -> None:
    assert not report()


def test_the_first_departing_segment_is_named_in_execution_order() -> None:
    def at(site: str, share: float, steps: float | None) -> SegmentRecord:
        return SegmentRecord(site=site, values=10, equal_share=share, steps=steps)

    segments = (
        at("a:input", 1, 0),
        at("b:input", 0.9995, 1),
        at("c:input", 0.9995, 2),
        at("d:input", 0.1, 9),
    )
    bare = measured("local", "a", "b", GOOD["local"], segments=(*segments, at("output", 1, 0)))
    assert judge(bare, SECTION).worst["first_departing"] == "c:input"
    bare = measured("local", "a", "b", GOOD["local"], segments=(segments[0], at("output", 1, 1e-3)))
    assert judge(bare, SECTION).worst["first_departing"] == "output"
    bare = measured("local", "a", "b", GOOD["local"], segments=(at("a:input", 1, None), at("output", 1, 0)))
    assert judge(bare, SECTION).worst["first_departing"] == "a:input"


def test_a_report_comes_back_from_disk_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "parity.json"
    before = report(comparison("exact", GOOD["exact"]), comparison("error", {"difference_db": math.nan}))
    before.save(path)
    assert load_report(path) == before
    document = json.loads(path.read_text())
    assert document["schema"] == "gacq-deploy/parity/1"
    assert set(document) >= {"schema", "passed", "comparisons", "trajectory", "noise_floor"}
    assert set(document["comparisons"][1]) >= {
        "reference", "candidate", "evaluated", "passed", "metrics", "thresholds", "worst", "by_timestep",
    }  # fmt: skip
    assert document["comparisons"][1]["evaluated"] is False


def write_edited(path: Path, edit: Callable[[dict[str, Any]], object], *, seal: bool) -> None:
    """Save a good report, edit the document, and give it the digest of what it now says or leave the old one."""
    report(*(comparison(evidence, metrics) for evidence, metrics in GOOD.items())).save(path)
    document = json.loads(path.read_text())
    assert load_report(path)
    edit(document)
    if seal:
        body = {key: value for key, value in document.items() if key != "digest"}
        document["digest"] = digest_json(body)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    "edit",
    [
        lambda d: d.update(passed=False),
        lambda d: d["comparisons"][0]["metrics"].update(differences=0.5),
        lambda d: d["protocol"].update(seed=1),
        lambda d: d["subject"].update(files={}),
        lambda d: d.update(digest="0" * 64),
        lambda d: d.pop("digest"),
    ],
)
def test_an_altered_report_is_refused(tmp_path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    write_edited(tmp_path / "parity.json", edit, seal=False)
    with pytest.raises(ArtifactError, match=r"altered|no digest"):
        load_report(tmp_path / "parity.json")


@pytest.mark.parametrize(
    "edit",
    [
        lambda d: d.update(passed=False),
        lambda d: d["comparisons"][-1].update(passed=False),
        lambda d: d["comparisons"][-1]["metrics"].update(image_ssim=0.1),
        lambda d: d["comparisons"][-1]["metrics"].pop("image_ssim"),
        lambda d: d["comparisons"][-1]["thresholds"].pop("image_ssim"),
        lambda d: d["protocol"]["budget"].update(image_psnr_db=60.0),
        lambda d: d["comparisons"].clear(),
    ],
)
def test_a_verdict_that_does_not_follow_from_the_numbers_is_refused(
    tmp_path: Path, edit: Callable[[dict[str, Any]], object]
) -> None:
    write_edited(tmp_path / "parity.json", edit, seal=True)
    with pytest.raises(ArtifactError, match="contradicts itself"):
        load_report(tmp_path / "parity.json")


def test_changes_of_the_protocol_are_named_and_sorted() -> None:
    other = SECTION.model_copy(
        update={"steps": 7, "budget": SECTION.budget.model_copy(update={"image_psnr_db": 1.0})}
    )
    changes = protocol_changes(SECTION, other)
    assert list(changes.items()) == [("steps", (20, 7)), ("budget.image_psnr_db", (30.0, 1.0))]
    assert [decides_measurement(key) for key in changes] == [True, False]
    assert decides_measurement("probe.seed")
    assert protocol_changes(SECTION, SECTION) == {}


@pytest.mark.parametrize("text", ["{}", '{"schema": "gacq-deploy/parity/2"}', "[]", "no json", ""])
def test_a_foreign_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "parity.json").write_text(text)
    with pytest.raises(ArtifactError, match="parity"):
        load_report(tmp_path / "parity.json")


def test_gates_are_inclusive() -> None:
    section = SECTION
    at_bound = {**GOOD["local"], "equal_share": section.local_equal_share}
    assert comparison("local", at_bound).passed
    gate = replace(GATES["error"]["difference_db"])
    assert gate.holds(0.5, 0.5)
    assert not gate.holds(None, 0.5)


PACKED = {k: v for k, v in GOOD["budget"].items() if k != "image_ssim"}
WHY = {"image_ssim": "A state of shape [6, 64] has no two axes of space"}


@pytest.mark.parametrize("evidence", ["budget", "mixed"])
def test_a_metric_that_does_not_apply_is_not_declared(tmp_path: Path, evidence: Evidence) -> None:
    metrics = {k: v for k, v in GOOD[evidence].items() if k != "image_ssim"}
    comparison = measured(evidence, "float.onnx", "int8.onnx", metrics, exempt=WHY)
    message = {"compared": "PSNR is of the final latents."}
    found = assemble((comparison,), SECTION, trajectory=message, noise_floor={}, subject={})
    assert found.passed
    assert "image_ssim" not in found.comparisons[0].thresholds
    assert found.remarks == (
        message["compared"],
        f"int8.onnx: image_ssim is not judged. {WHY['image_ssim']}.",
    )
    assert all(remark in found.to_text() for remark in found.remarks)
    found.save(tmp_path / "parity.json")
    assert load_report(tmp_path / "parity.json") == found
    strict = SECTION.model_copy(update={"budget": SECTION.budget.model_copy(update={"image_psnr_db": 50.0})})
    assert found.under(strict).comparisons[0].failed == ("image_psnr_db",)


def test_a_metric_that_was_merely_not_measured_fails() -> None:
    comparison = judge(measured("budget", "float.onnx", "int8.onnx", PACKED), SECTION)
    assert not comparison.evaluated
    assert not comparison.passed
    assert "image_ssim" in comparison.thresholds


@pytest.mark.parametrize("metric", ["image_psnr_db", "eps_sqnr_db", "latents_differ", "warp"])
def test_no_other_metric_can_be_left_out(metric: str) -> None:
    with pytest.raises(ValidationError, match=f"{metric} applies to every model"):
        measured("budget", "float.onnx", "int8.onnx", PACKED, exempt={metric: "because"})


@pytest.mark.parametrize(("evidence", "name"), EVERY_GATE)
def test_a_failed_gate_says_what_it_is_and_what_to_do(evidence: Evidence, name: str) -> None:
    comparisons = (
        comparison(evidence, GOOD[evidence]),
        comparison(evidence, GOOD[evidence] | {name: BAD[name]}),
    )
    report = assemble(comparisons, SECTION, trajectory={}, noise_floor={}, subject={})
    (failed,) = report.failed_gates
    assert (failed.evidence, failed.metric, failed.value) == (evidence, name, BAD[name])
    assert failed.bound == comparisons[1].thresholds[name]
    assert failed.value < failed.bound if failed.at_least else failed.value > failed.bound
    assert failed.advice == ADVICE[evidence]
    fine = assemble(comparisons[:1], SECTION, trajectory={}, noise_floor={}, subject={})
    assert fine.failed_gates == ()


def test_every_kind_of_evidence_has_an_advice() -> None:
    assert ADVICE.keys() == GATES.keys()
