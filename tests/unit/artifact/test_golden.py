"""Every published version of the artifact still loads: a golden copy of each lies in the tree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gacq_deploy.artifact.artifact import SCHEMA_VERSION, load_artifact
from gacq_deploy.artifact.records import BlockRecord

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.mark.parametrize("version", sorted(p.name for p in GOLDEN.glob("artifact-v*")))
def test_every_published_version_loads(version: str) -> None:
    loaded = load_artifact(GOLDEN / version)
    expected = json.loads((GOLDEN / f"expected-{version}.json").read_text())
    assert {str(s): float(p.scale.sum()) for s, p in loaded.params.items()} == pytest.approx(expected)


def test_there_is_a_golden_copy_of_the_current_version() -> None:
    manifest = GOLDEN / f"artifact-v{SCHEMA_VERSION}" / "manifest.json"
    assert manifest.is_file()
    assert json.loads(manifest.read_text())["schema_version"] == SCHEMA_VERSION


def test_a_version_1_artifact_has_what_calibration_retrained() -> None:
    loaded = load_artifact(GOLDEN / "artifact-v1")
    sums = {name: float(p.value.sum()) for name, p in loaded.parameters.items()}
    assert sums == pytest.approx(
        {
            "mid_block.attentions.0.to_q.bias": 0.25 * 8,
            "mid_block.resnets.0.norm1.weight": 1.5 * 8,
        }
    )
    assert loaded.history == (
        BlockRecord(
            name="mid_block.resnets.0",
            sites=6,
            loss_start=0.5,
            loss_end=0.125,
            kept=True,
            effective_samples=7.5,
            notes=("a note",),
        ),
    )
    assert loaded.polish is not None
    assert loaded.polish.objective == "eps"
    assert loaded.diagnostics is not None
    assert [s.stage for s in loaded.diagnostics.stages] == ["mid_block.resnets.0", "polish"]
