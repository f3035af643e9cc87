import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmarks.grouped_scales import (
    GroupClock,
    GroupPolish,
    current_scales,
    estimate_scales,
    observe_ranges,
    polish_groups,
    rebuild,
    set_scales,
    shared_quantizers,
)
from benchmarks.timestep_scales import Case, pairs, planned, render
from gacq_deploy.artifact.artifact import CalibrationArtifact
from gacq_deploy.calibration.replay import full_pass
from gacq_deploy.calibration.stage import calibrate
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.source import load_float_denoiser
from gacq_deploy.quant.layers import QuantizedLayer, float_mode
from gacq_deploy.quant.prepare import estimate_activation_scales, insert_quantizers
from gacq_deploy.recipe.load import load_recipe
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.samples.calibration_set import CalibrationSet, load_samples

SETTINGS = (
    "model.source=builtin:digits8",
    "samples.trajectories=4",
    "samples.steps=5",
    "calibration.reconstruction.iterations=2",
    "calibration.weighting.mode=uniform",
    "calibration.polish.steps=2",
    "calibration.threads=1",
    "parity.probe={trajectories: 1, local_samples: 2}",
)
RECIPE = load_recipe("fashion-w4a8", SETTINGS)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[CalibrationArtifact, CalibrationSet]:
    directory = RunDirectory(tmp_path_factory.mktemp("runs") / "finished")
    return calibrate(RECIPE, directory), load_samples(directory.samples_path)


def rebuilt(artifact: CalibrationArtifact) -> tuple[Denoiser, dict[str, QuantizedLayer]]:
    denoiser = load_float_denoiser(RECIPE.model)
    return denoiser, rebuild(denoiser, artifact)


def outputs(denoiser: Denoiser, samples: CalibrationSet) -> NDArray[np.float32]:
    return np.concatenate(list(full_pass(denoiser, samples, 64)))


def clocked(denoiser: Denoiser, samples: CalibrationSet, groups: int) -> GroupClock:
    return GroupClock(denoiser.module, np.unique(samples.timesteps)[::-1].copy(), groups)


def test_groups_are_equal_and_the_first_is_the_noisiest() -> None:
    steps = np.arange(20)[::-1] * 50
    clock = GroupClock(torch.nn.Identity(), steps, 5)
    assert clock.of(torch.tensor([950, 800, 750, 0, 950])).tolist() == [0, 0, 1, 4, 0]
    assert np.bincount(clock.of(torch.from_numpy(steps.copy())).numpy()).tolist() == [4] * 5


@pytest.mark.parametrize("timestep", [951, 1000, 10_000, -1])
def test_a_timestep_that_the_sampler_does_not_have_is_refused(timestep: int) -> None:
    clock = GroupClock(torch.nn.Identity(), np.arange(20)[::-1] * 50, 5)
    with pytest.raises(ValueError, match="sampler"):
        clock.of(torch.tensor([950, timestep]))


def test_the_rebuilt_model_answers_as_calibration_recorded_it(
    finished: tuple[CalibrationArtifact, CalibrationSet],
) -> None:
    artifact, _ = finished
    assert artifact.probe is not None
    assert artifact.parameters
    denoiser, _ = rebuilt(artifact)
    probe = artifact.probe.inputs
    with torch.no_grad():
        answer = denoiser(
            *(torch.from_numpy(probe[k].copy()) for k in ("sample", "timestep")),
            {"class_labels": torch.from_numpy(probe["class_labels"].copy())},
        )
    np.testing.assert_array_equal(answer.numpy(), artifact.probe.outputs["input_quant"])


def test_one_group_equals_the_static_scale_bit_for_bit(
    finished: tuple[CalibrationArtifact, CalibrationSet],
) -> None:
    artifact, samples = finished
    denoiser, layers = rebuilt(artifact)
    before = outputs(denoiser, samples)
    set_scales(layers, clocked(denoiser, samples, 1), current_scales(layers, 1))
    np.testing.assert_array_equal(outputs(denoiser, samples), before)


def test_groups_of_mixed_rows_equal_one_model_per_group(
    finished: tuple[CalibrationArtifact, CalibrationSet],
) -> None:
    artifact, samples = finished
    factors = torch.tensor([0.7, 1.0, 1.6])
    denoiser, layers = rebuilt(artifact)
    clock = clocked(denoiser, samples, 3)
    scales = {name: s * factors for name, s in current_scales(layers, 3).items()}
    set_scales(layers, clock, scales)
    mixed = outputs(denoiser, samples)
    rows = clock.of(torch.from_numpy(samples.timesteps)).numpy()
    for group in range(3):
        alone, its_layers = rebuilt(artifact)
        one = {name: s[group : group + 1] for name, s in scales.items()}
        set_scales(its_layers, clocked(alone, samples, 1), one)
        np.testing.assert_array_equal(outputs(alone, samples)[rows == group], mixed[rows == group])
    assert len({id(layer.input_quantizer) for layer in layers.values()}) == len(scales)


@pytest.mark.parametrize("method", ["minmax", "mse:2.4", "percentile:99.9"])
def test_ranges_of_one_group_are_the_calibrations_own(
    finished: tuple[CalibrationArtifact, CalibrationSet], method: str
) -> None:
    artifact, samples = finished
    denoiser = load_float_denoiser(RECIPE.model)
    entries = [e.__class__(e.site, e.spec, e.tie, method) for e in artifact.plan if e.site.role != "output"]
    plan = artifact.plan.__class__(tuple(entries))
    expected = estimate_activation_scales(denoiser.module, plan, lambda: full_pass(denoiser, samples, 64))
    layers = insert_quantizers(denoiser.module, plan, expected)
    with float_mode(denoiser.module):
        ranges = observe_ranges(denoiser, layers, clocked(denoiser, samples, 1), samples, 64)
    found = estimate_scales(layers, ranges, method)
    assert {n: float(s) for n, s in found.items()} == {
        n: float(q.scale) for n, q in shared_quantizers(layers).items()
    }


def test_the_polish_moves_every_groups_scale_and_never_ends_worse(
    finished: tuple[CalibrationArtifact, CalibrationSet],
) -> None:
    artifact, samples = finished
    denoiser, layers = rebuilt(artifact)
    set_scales(layers, clocked(denoiser, samples, 5), current_scales(layers, 5))
    before = {name: q.scale.clone() for name, q in shared_quantizers(layers).items()}
    codes = {name: layer.codes.clone() for name, layer in layers.items()}
    section = RECIPE.calibration.polish.model_copy(update={"steps": 6})
    losses = polish_groups(denoiser, layers, samples, np.ones(len(samples)), GroupPolish(section, 0, 1e-2))
    assert losses["loss_end"] < losses["loss_start"]
    assert losses["kept"] == 1
    assert all(bool((q.scale != before[n]).all()) for n, q in shared_quantizers(layers).items())
    assert all(torch.equal(layer.codes, codes[name]) for name, layer in layers.items())


def test_a_polish_that_made_it_worse_is_undone(finished: tuple[CalibrationArtifact, CalibrationSet]) -> None:
    artifact, samples = finished
    denoiser, layers = rebuilt(artifact)
    set_scales(layers, clocked(denoiser, samples, 5), current_scales(layers, 5))
    before = outputs(denoiser, samples)
    section = RECIPE.calibration.polish.model_copy(update={"steps": 3, "lr": 10.0})
    losses = polish_groups(denoiser, layers, samples, np.ones(len(samples)), GroupPolish(section, 0, 10.0))
    assert losses["kept"] == 0
    np.testing.assert_array_equal(outputs(denoiser, samples), before)


def test_settings_without_a_recipe_take_the_bits_of_their_name() -> None:
    rules = Case("digits8", "w6a4", 0).recipe().quantization.rules
    of = {role: [r.bits for r in rules if r.role == role and not r.ignore] for role in ("weight", "input")}
    assert of == {"weight": [6], "input": [4]}
    assert [r.ignore for r in rules] == sorted(r.ignore for r in rules)


def test_every_planned_row_has_its_control() -> None:
    rows = planned(["digits8", "fashion16"], ["w8a8", "w4a8"])
    assert len(set(rows)) == len(rows)
    made = {
        f"{case.key}|{v.key}": {"psnr_db": float(v.groups), "sqnr_db_by_bucket": [0.0] * 5}
        for case, v in rows
    }
    found = pairs(made, "psnr_db")
    counted = sum(len(values) for by_groups in found.values() for values in by_groups.values())
    assert counted == sum(variant.groups > 1 for _, variant in rows)
    assert all(v == (1, groups) for by in found.values() for groups, values in by.items() for v in values)


def test_the_table_shows_paired_differences_to_one_scale() -> None:
    def row(level: float) -> dict[str, object]:
        return {"psnr_db": level, "sqnr_db_by_bucket": [level, 0, 0, 0, -level]}

    rows = {
        "m|w8a8|0|trained|learned|1": row(30.0),
        "m|w8a8|1|trained|learned|1": row(40.0),
        "m|w8a8|0|trained|learned|5": row(31.0),
        "m|w8a8|1|trained|learned|5": row(42.0),
        "m|w8a8|1|trained-from-ratios|learned|5": row(39.0),
    }
    assert pairs(rows, "psnr_db")["m|w8a8|trained|learned"] == {5: [(30.0, 31.0), (40.0, 42.0)]}
    assert pairs(rows, "sqnr_db_by_bucket:4")["m|w8a8|trained-from-ratios|learned"] == {5: [(-40.0, -39.0)]}
    table = render(rows).splitlines()
    assert "| m w8a8 | trained | 2 | 35.00 ± 7.07 | 5 | 1.50 ± 0.71 | +1.5 +0.0 +0.0 +0.0 -1.5 |" in table
    assert "| m w8a8 | trained-from-ratios | 1 | 40.00 | 5 | -1.00 | -1.0 +0.0 +0.0 +0.0 +1.0 |" in table
