"""What large models cost is counted: both rows of guidance, weights by themselves, and what does not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gacq_deploy.calibration.cost.estimate import estimate_calibration
from gacq_deploy.calibration.cost.memory import Counts, disk_bytes, memory_bytes
from gacq_deploy.calibration.limits import needs_checkpoints, quantized_weights, too_large_to_learn
from gacq_deploy.calibration.planning import make_plan
from gacq_deploy.models.structure.graph import trace_model
from gacq_deploy.quant.prepare import insert_quantizers
from gacq_deploy.recipe.load import load_recipe
from tests.support.models.pipelines import make_stable_diffusion
from tests.support.models.tiny import tiny_denoiser

MB = 2**20


@pytest.fixture(scope="module")
def counts() -> Counts:
    recipe = load_recipe("fashion-w8a8")
    denoiser = tiny_denoiser()
    graph = trace_model(denoiser)
    return Counts(recipe, denoiser, graph, make_plan(recipe, graph), 1, 40, 10, 2048)


def test_guidance_has_two_rows_an_image(tmp_path: Path) -> None:
    folder = make_stable_diffusion(tmp_path / "sd", safety_checker=False)
    sets = (f"model.source={folder}", "samples.trajectories=4", "samples.steps=3", "calibration.threads=1")
    estimate = estimate_calibration(load_recipe("sd15-w8a8", sets))
    assert (estimate.samples, estimate.validation_samples) == (3 * 3 * 2, 1 * 3 * 2)
    assert estimate.weights == "gac, in polish"
    assert estimate.mapped_mb == pytest.approx(4 * estimate.parameters / MB)
    assert estimate.memory_mb > estimate.mapped_mb
    assert 500 < estimate.export_mb < 700
    assert not (tmp_path / "run").exists()


def test_a_sample_that_does_not_fit_is_polished_block_by_block(counts: Counts) -> None:
    parts = counts.denoiser, counts.graph, counts.plan
    assert not needs_checkpoints(*parts, counts.memory_mb)
    assert not too_large_to_learn(*parts, counts.memory_mb)
    assert needs_checkpoints(*parts, 0)
    (reason,) = too_large_to_learn(*parts, 0).values()
    assert "one pass may take 0 MB" in reason
    large = replace(counts, memory_mb=0, too_large=frozenset({"polish"}))
    assert large.is_checkpointed
    assert (counts.learns("polish"), large.learns("polish")) == (True, False)
    assert memory_bytes(large) < memory_bytes(counts)


def test_prepared_layers_have_as_many_weights(counts: Counts) -> None:
    denoiser = tiny_denoiser()
    before = quantized_weights(denoiser, counts.plan)
    insert_quantizers(denoiser.module, counts.plan, {e.tie: 1.0 for e in counts.plan})
    assert quantized_weights(denoiser, counts.plan) == before > 0


def test_what_the_probe_records_takes_disk(counts: Counts) -> None:
    probe = counts.recipe.parity.probe.model_copy(update={"local_samples": 100})
    parity = counts.recipe.parity.model_copy(update={"probe": probe})
    more = replace(counts, recipe=counts.recipe.model_copy(update={"parity": parity}))
    assert disk_bytes(more) > disk_bytes(counts) + 50 * counts.graph.bytes_of_all_blocks
