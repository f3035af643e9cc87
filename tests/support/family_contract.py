"""What holds for every family: one suite, run over all of them."""

from __future__ import annotations

from typing import ClassVar

import pytest

from gacq_deploy.artifact import load_artifact
from gacq_deploy.build_trt import BuildRequest, build_engines
from gacq_deploy.export.record import load_export
from gacq_deploy.parity import check_parity
from gacq_deploy.run_directory import RunDirectory
from tests.support.family_runs import FamilyCase


class FamilyContract:
    """Subclasses say which families they run; each goes the whole way once."""

    cases: ClassVar[dict[str, FamilyCase]]

    @pytest.fixture(scope="class")
    @classmethod
    def made(
        cls, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
    ) -> tuple[FamilyCase, RunDirectory]:
        case = cls.cases[request.param]
        return case, case.run(tmp_path_factory.mktemp(request.param))

    def test_it_is_calibrated_exported_and_linted(self, made: tuple[FamilyCase, RunDirectory]) -> None:
        _, directory = made
        artifact, record = load_artifact(directory.artifact), load_export(directory)
        assert len(artifact.plan.modules) >= 4
        assert artifact.probe is not None
        assert artifact.probe.outputs["float"].shape[1:] == artifact.model.sample_shape
        assert all(counts.error == 0 for counts in record.lint)
        assert record.self_check["float.onnx"] < 1e-4

    def test_every_edge_of_parity_holds(self, made: tuple[FamilyCase, RunDirectory]) -> None:
        _, directory = made
        report = check_parity(directory)
        # a budget is about the pictures of a trained model; with random weights being near float is enough
        failed = [
            (e.evidence, e.candidate, e.metrics)
            for e in report.edges
            if not e.passed and e.evidence != "budget"
        ]
        assert not failed
        assert {e.evidence for e in report.edges} >= {"exact", "exporter", "local", "error", "budget"}
        assert all(e.evaluated for e in report.edges)
        for edge in report.edges:
            if edge.evidence == "budget":
                assert (edge.metrics["trajectory_cosine"] or 0.0) > 0.95, edge.metrics

    @pytest.mark.rtx
    def test_every_planned_layer_compiles_to_int8(self, made: tuple[FamilyCase, RunDirectory]) -> None:
        _, directory = made
        section = directory.load_recipe().build.model_copy(update={"backend": "tensorrt-rtx"})
        (built,) = build_engines(directory, BuildRequest(section))
        coverage = built.record.coverage
        assert coverage is not None
        assert coverage["planned"] == len(load_artifact(directory.artifact).plan.modules)
        assert coverage["share"] >= 0.95
