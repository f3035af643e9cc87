"""What holds for every family: one suite, run over all of them."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from gacq_deploy.artifact.artifact import load_artifact
from gacq_deploy.build_trt.stage import BuildRequest, build_engines
from gacq_deploy.diffusers import load_denoiser
from gacq_deploy.engines.catalogue import engine_named
from gacq_deploy.export.record import load_export
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.pipelines import open_pipeline
from gacq_deploy.models.source import find_source, load_module
from gacq_deploy.models.structure.trace import replaced_forward
from gacq_deploy.parity import check_parity
from gacq_deploy.parity.deployable import graph_for
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.spec import Array
from tests.support.models.family_runs import FamilyCase, GraphAnswers
from tests.support.models.pipelines import call_arguments


def make_images(pipeline: Any) -> Array:
    """Return two images, or their final latents, of a pipeline."""
    arguments = call_arguments(pipeline, rows=2, steps=2)
    if "prompt" in arguments:
        arguments["output_type"] = "latent"
    made = pipeline(**arguments, generator=[torch.Generator().manual_seed(i) for i in (1, 2)])
    return np.asarray(made[0], np.float64)


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
        report = check_parity(directory, threads=1)
        wrong_here = engine_named("openvino").why_unfit(directory.int8_onnx)
        assert report.not_judged == ({"int8.onnx@openvino": wrong_here[0]} if wrong_here else {})
        assert report.candidates | report.not_judged.keys() == {
            "int8.onnx@ort-cpu", "int8.cpu.onnx@ort-cpu", "int8.onnx@openvino",
        }  # fmt: skip
        # a budget is about the pictures of a trained model; with random weights being near float is enough
        failed = [
            (e.evidence, e.candidate, e.metrics)
            for e in report.comparisons
            if not e.passed and e.evidence != "budget"
        ]
        assert not failed
        assert {e.evidence for e in report.comparisons} >= {"exact", "exporter", "local", "error", "budget"}
        assert all(e.evaluated for e in report.comparisons)
        for comparison in report.comparisons:
            if comparison.evidence == "budget":
                assert (comparison.metrics["trajectory_cosine"] or 0.0) > 0.95, comparison.metrics

    def test_the_drop_in_makes_the_graphs_own_images(self, made: tuple[FamilyCase, RunDirectory]) -> None:
        _, directory = made
        source = find_source(directory.load_recipe().allowing_python().model)
        module = load_module(source)
        pipeline = open_pipeline(source, module).pipeline
        call = Denoiser(module, load_artifact(directory.artifact).model, source.family).call
        exact = make_images(pipeline)
        # with random weights the budget may fail
        graph = graph_for(directory, "ort-cpu", allow_failed=True)
        with replaced_forward(module, GraphAnswers(module, call, graph)):
            own = make_images(pipeline)
        with load_denoiser(directory.root, like=module, threads=1, allow_failed=True) as engine:
            setattr(pipeline, source.component, engine)
            dropped = make_images(pipeline)
        assert np.abs(own - dropped).max() <= 1e-4 * np.abs(own).max()
        assert not np.array_equal(own, exact)
        assert float((own * exact).sum() / np.linalg.norm(own) / np.linalg.norm(exact)) > 0.95

    @pytest.mark.rtx
    @pytest.mark.usefixtures("warm_builds")
    def test_every_planned_layer_compiles_to_int8(self, made: tuple[FamilyCase, RunDirectory]) -> None:
        _, directory = made
        section = directory.load_recipe().build.model_copy(update={"backend": "tensorrt-rtx"})
        (built,) = build_engines(directory, BuildRequest(section))
        coverage = built.record.coverage
        assert coverage is not None
        assert coverage["planned"] == len(load_artifact(directory.artifact).plan.modules)
        assert coverage["share"] == 1.0, coverage["lost"]
