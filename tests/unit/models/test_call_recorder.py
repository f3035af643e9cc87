"""A pipeline's own run tells how its denoiser is called; what could not be calibrated is refused with the reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from gacq_deploy.errors import ModelError
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.call_capture import CallCapture
from gacq_deploy.models.call_recorder import Layout, RecordedCall, record_call
from gacq_deploy.models.pipelines import OpenPipeline, check_conditioning, open_pipeline
from gacq_deploy.models.source import find_source, load_module, make_denoiser
from gacq_deploy.models.trajectories.prompted import wanted_probe, wanted_samples
from gacq_deploy.progress import SILENT
from gacq_deploy.recipe.sections import ModelSection, SamplesSection
from gacq_deploy.samples.calibration_set import CalibrationSet, TableRows
from tests.support.artifacts.gathered import collect_prompted
from tests.support.models import odd_family

SECTION = ModelSection(source="python:tests.support.models.odd_family:make_pipeline", component="painter")
SAMPLES = SamplesSection(trajectories=3, steps=4, batch=2, prompts=("a cat", "a dog", "a hill", "a sea"))


@pytest.fixture(scope="module")
def opened() -> OpenPipeline:
    source = find_source(SECTION)
    check_conditioning(source, SAMPLES)
    return open_pipeline(source, load_module(source))


@pytest.fixture(scope="module")
def recorded(opened: OpenPipeline) -> RecordedCall:
    return record_call(opened, 4)


@pytest.fixture(scope="module")
def samples(opened: OpenPipeline, recorded: RecordedCall) -> CalibrationSet:
    return collect_prompted(opened, recorded, wanted_samples(SAMPLES), SILENT)


def test_an_unfamiliar_call_is_taken_apart(recorded: RecordedCall) -> None:
    call = recorded.recording.call
    assert call.state.path == ("canvas",)
    assert call.state.shape == (3, 8, 8)
    assert (call.timestep.path, call.timestep.dtype, call.timestep.scale) == (("hour",), "int64", 1.0)
    words, loudness, grid = call.arguments
    assert (words.name, words.path, words.shape, words.shared) == (
        "words",
        ("brief", "words"),
        (5, 16),
        False,
    )
    assert (loudness.name, loudness.shape, loudness.shared) == ("loudness", (), False)
    assert (grid.name, grid.shape, grid.shared) == ("grid", (8, 8), True)
    assert call.constants == {"brief": {"tone": None}}
    assert call.output == ("noise",)
    # interleaved rows, of which the second depends on no prompt
    assert recorded.layout == Layout(branches=2, by_image=True, negative=1)
    assert recorded.layout.rows(2) == [[1, 0], [3, 2]]


def test_nothing_is_left_on_the_pipeline(opened: OpenPipeline, recorded: RecordedCall) -> None:
    assert "forward" not in vars(opened.denoiser)
    assert "set_timesteps" not in vars(opened.pipeline.scheduler)


def test_what_is_kept_is_what_the_pipeline_passed(
    opened: OpenPipeline, recorded: RecordedCall, samples: CalibrationSet
) -> None:
    samples.check(where="samples")
    assert len(samples) == 3 * 4 * 2
    assert samples.trajectory.tolist() == sorted(samples.trajectory.tolist())
    assert samples.float_timesteps is None
    module: Any = opened.denoiser
    denoiser = make_denoiser(find_source(SECTION), module, recorded.recording)
    with torch.no_grad():
        output = denoiser(
            torch.from_numpy(samples.latents),
            torch.from_numpy(samples.timesteps),
            {k: torch.from_numpy(v[:]) for k, v in samples.conditioning.items()},
        )
    np.testing.assert_allclose(output.numpy(), samples.targets, atol=1e-5)


def test_both_rows_of_a_guidance_pair_are_kept_the_negative_first(samples: CalibrationSet) -> None:
    np.testing.assert_array_equal(samples.latents[::2], samples.latents[1::2])
    words = samples.conditioning["words"]
    assert isinstance(words, TableRows)
    assert len(words.table) == 3 * 2  # once a trajectory and branch
    assert len(np.unique(words[::2].reshape(12, -1), axis=0)) == 1
    assert len(np.unique(words[1::2].reshape(12, -1), axis=0)) == 3


def test_a_batch_chooses_nothing(
    opened: OpenPipeline, recorded: RecordedCall, samples: CalibrationSet
) -> None:
    alone = SAMPLES.model_copy(update={"batch": 1})
    other = collect_prompted(opened, recorded, wanted_samples(alone), SILENT)
    np.testing.assert_array_equal(other.timesteps, samples.timesteps)
    np.testing.assert_allclose(other.latents, samples.latents, atol=1e-4)
    for name, rows in samples.conditioning.items():
        np.testing.assert_array_equal(other.conditioning[name][:], rows[:])


def test_the_probe_follows_other_prompts_from_other_noise(
    opened: OpenPipeline, recorded: RecordedCall, samples: CalibrationSet
) -> None:
    probe = collect_prompted(opened, recorded, wanted_probe(SAMPLES, 1, seed=9), SILENT)
    seen = {row.tobytes() for row in samples.conditioning["words"][1::2]}
    assert not seen & {row.tobytes() for row in probe.conditioning["words"][1::2]}
    assert not np.isin(probe.latents[0], samples.latents).any()


@pytest.mark.parametrize(
    ("flaw", "fragment"),
    [
        ("one hour", "gives all rows of a call one timestep"),
        ("more channels", r"'canvas' \[2, 4, 8, 8\]"),
        ("changing", r"changes 'brief\['loudness'\]'"),
        ("an object", r"passes 'brief\['tone'\]', a object"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(
    flaw: str, fragment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(odd_family, "flawed", lambda: odd_family.make_pipeline(flaw), raising=False)
    source = find_source(
        SECTION.model_copy(update={"source": "python:tests.support.models.odd_family:flawed"})
    )
    with pytest.raises(ModelError, match=fragment) as caught:
        record_call(open_pipeline(source, load_module(source)), 4)
    assert caught.value.hint


def test_a_watcher_leaves_answers_as_they_are() -> None:
    pipeline = odd_family.make_pipeline()
    generators = [torch.Generator().manual_seed(1)]
    plain = pipeline(["a cat"], generator=generators)
    capture = CallCapture(pipeline.painter)
    with capture.capturing():
        watched = pipeline(["a cat"], generator=[torch.Generator().manual_seed(1)])
    assert torch.equal(plain, watched)
    assert len(capture.calls) == 4


def test_a_recorded_denoiser_runs_by_name(recorded: RecordedCall, opened: OpenPipeline) -> None:
    denoiser: Denoiser = make_denoiser(find_source(SECTION), opened.denoiser, recorded.recording)
    inputs = denoiser.example_inputs(3)
    assert list(inputs) == ["sample", "timestep", "words", "loudness", "grid"]
    with torch.no_grad():
        assert denoiser.call_module()(*inputs.values()).shape == (3, 3, 8, 8)
