"""What does the page say of a sensitivity study?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gacq_deploy.report.collect import Missing, collect
from gacq_deploy.report.sensitivity import MOST_DETAILED, sensitivity_part
from gacq_deploy.report.stage import write_report
from gacq_deploy.report.tables import ReportTable
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.storage.sealed import write_sealed
from tests.support.artifacts.sensitivity import example_study
from tests.support.models.tiny import tiny_run
from tests.unit.report.conftest import write_recipe


def _cells(table: ReportTable) -> list[dict[str, str]]:
    return [{c.name: cell.text for c, cell in zip(table.columns, row, strict=True)} for row in table.rows]


def test_the_ranking_is_of_the_worst_timesteps() -> None:
    part = sensitivity_part(example_study(""))
    first = _cells(part.ranking)[0]
    assert first == {
        "module": "down.0",
        "share of the error": "50.0%",
        "SQNR alone dB": "20.00",
        "its weight dB": "21.00",
        "its input dB": "31.00",
        "gain if left float dB": "+1.50",
    }
    assert "timesteps 490 to 0: 14.5 dB" in part.lead


def test_every_bucket_has_its_numbers() -> None:
    share, alone, gain = (_cells(table)[0] for table in sensitivity_part(example_study("")).detail)
    assert share == {"module": "down.0", "990 to 500": "50.0%", "490 to 0": "50.0%"}
    assert alone == {"module": "down.0", "990 to 500": "no error", "490 to 0": "20.00"}
    assert gain == {"module": "down.0", "990 to 500": "+0.00", "490 to 0": "+1.50"}


def test_very_many_modules_stand_in_the_ranking_alone() -> None:
    part = sensitivity_part(example_study("", layers=MOST_DETAILED + 5))
    assert len(part.ranking.rows) == MOST_DETAILED + 5
    assert {len(table.rows) for table in part.detail} == {MOST_DETAILED}
    assert f"{MOST_DETAILED} of {MOST_DETAILED + 5} modules" in part.detail[0].caption


def test_the_proposal_is_shown_with_what_was_measured() -> None:
    part = sensitivity_part(example_study("g"))
    assert [(row["graph"], row["layers left float"], row["worst dB"]) for row in _cells(part.graphs)] == [
        ("g", "0", "14.50"),
        ("g", "1", "16.00"),
    ]
    assert part.rules == ("- {match: g, ignore: true}",)
    assert part.search is not None
    assert _cells(part.search)[0]["in the proposal"] == "yes"


@pytest.mark.parametrize(
    ("changes", "reached", "says"),
    [
        ({}, False, "21.00 dB (the recipe's gate of 20 dB and a margin) is not reached with at most 1 layer float"),
        ({"reached": True, "target_db": 16.0}, True, "is reached: 14.50 dB before, 16.00 dB with 1 layer left float"),
        (
            {"reached": True, "asked": "min-sqnr", "asked_db": 14.0, "target_db": 14.0, "modules": ()},
            True,
            "14.00 dB (in the worst bucket) is reached as it is, with 14.50 dB; no layer needs to stay float.",
        ),
        ({"asked": "max-drop", "asked_db": 2.0}, False, "2 dB below the best with 1 left float"),
    ],
    ids=["missed", "reached", "as it is", "drop"],
)  # fmt: skip
def test_the_verdict_of_the_search_is_a_sentence(
    changes: dict[str, object], reached: bool, says: str
) -> None:
    part = sensitivity_part(example_study("", **changes))
    assert (part.outcome, part.tone) == (
        ("SQNR target reached.", "ok") if reached else ("SQNR target not reached.", "bad")
    )
    assert says in part.sentence


def test_a_study_of_another_artifact_is_stale(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    write_sealed(run.sensitivity_json, example_study("").document())
    page = write_report(run, images=False).path.read_text(encoding="utf-8")
    section = page.partition('<section id="sensitivity">')[2].partition("</section>")[0]
    assert "Stale or altered." in section
    assert "it is about artifact 000000000000, " in section
    assert "down.0" in section


def test_an_altered_study_is_not_shown(tmp_path: Path) -> None:
    write_recipe(tmp_path)
    run = RunDirectory(tmp_path)
    write_sealed(run.sensitivity_json, example_study("").document())
    document = json.loads(run.sensitivity_json.read_text())
    run.sensitivity_json.write_text(json.dumps({**document, "engine": "another"}))
    found = collect(run, images=False)
    assert isinstance(found.sensitivity, Missing)
    assert "was altered" in found.sensitivity.reason
    assert f"gacq-deploy sensitivity {tmp_path}" in found.sensitivity.remedy
    page = write_report(run, images=False).path.read_text(encoding="utf-8")
    section = page.partition('<section id="sensitivity">')[2].partition("</section>")[0]
    assert "was altered" in section
    assert "<table" not in section


def test_a_target_that_is_reached_does_not_contradict_a_failed_parity() -> None:
    study = example_study("down.0")
    reached = study.model_copy(update={"proposal": study.proposal.model_copy(update={"reached": True})})
    part = sensitivity_part(reached, ["PSNR of same-seed images, mean (dB)"] * 2)
    assert (part.outcome, part.tone) == ("SQNR target reached.", "")
    assert part.sentence.endswith(
        "This is about the SQNR of single steps alone. Parity failed: PSNR of same-seed images, mean (dB)."
    )


def test_the_line_of_the_folded_section_names_the_costliest_layer() -> None:
    study = example_study("down.0")
    assert study.modules[0].module in sensitivity_part(study).glance
