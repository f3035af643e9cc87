"""The polish: it helps, it never harms, it goes on where it was killed, and it says what it did."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from gacq_deploy.calibration.checkpoint import Checkpoint
from gacq_deploy.calibration.output_error import output_losses
from gacq_deploy.calibration.polish import PolishOutcome, ensure_polish
from gacq_deploy.calibration.session import Session
from gacq_deploy.errors import CalibrationError
from gacq_deploy.progress import SILENT, Reporter, SilentReporter
from gacq_deploy.samples.calibration_set import CalibrationSet
from gacq_deploy.storage.documents import read_json
from gacq_deploy.storage.files import write_json
from tests.support.artifacts.quantized import Bench, answer, tiny_bench, tiny_samples
from tests.support.models.one_level import MIDDLE, ONE_LEVEL
from tests.support.models.tiny import tiny_denoiser

KEY = "key"


class Narrow(Session):
    """A session that holds three samples in memory at once."""

    @property
    def graph_chunk(self) -> int:
        return 3


class Checkpointed(Session):
    """A session that makes the graph again block by block."""

    is_checkpointed = True


@dataclass
class Recording(SilentReporter):
    """Remembers notes and how many steps were taken; interrupts the polish after so many if asked to."""

    stop_at: int | None = None
    notes: list[str] = field(default_factory=list)
    steps: int = 0
    current: str = ""

    def stage(self, name: str, total: int, costs: Sequence[float] = ()) -> None:
        self.current = name

    def advance(self, n: int = 1, **values: float) -> None:
        if "loss" not in values or not self.current.startswith("polish"):
            return
        self.steps += 1
        if self.steps == self.stop_at:
            raise KeyboardInterrupt

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> CalibrationSet:
    return tiny_samples(tmp_path_factory.mktemp("samples"))


def small_bench(samples: CalibrationSet, *more: str, report: Reporter = SILENT) -> Bench:
    """Return a bench of few layers."""
    return tiny_bench(samples, MIDDLE, *more, report=report, denoiser=tiny_denoiser(**ONE_LEVEL))


def polish(bench: Bench, folder: Path) -> PolishOutcome:
    folder.mkdir(exist_ok=True)
    outcome = ensure_polish(bench.session, Checkpoint(folder, KEY), bench.layers, lambda: True)
    assert outcome is not None
    return outcome


@dataclass(frozen=True)
class Finished:
    """A polish that ran to its end, and its folder. Nobody changes them."""

    bench: Bench
    outcome: PolishOutcome
    folder: Path


@pytest.fixture(scope="module")
def finished(samples: CalibrationSet, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Finished]:
    """Return by mode of the weights what others must end on; each is run once."""

    @cache
    def run(mode: str) -> Finished:
        bench, folder = small_bench(samples, weights(mode)), tmp_path_factory.mktemp(mode) / "work"
        return Finished(bench, polish(bench, folder), folder)

    return run


def weights(mode: str) -> str:
    return f"calibration.weighting.mode={mode}"


def numbers(bench: Bench) -> dict[str, np.ndarray]:
    """Return every number that the polish may have changed."""
    found = {}
    for name, layer in bench.layers.items():
        found[f"{name}.weight_scale"] = layer.weight_scale.numpy()
        found[f"{name}.input_scale"] = layer.input_quantizer.scale.detach().numpy()
        if layer.bias is not None:
            found[f"{name}.bias"] = layer.bias.detach().numpy()
    named = bench.session.denoiser.module.named_parameters()
    return found | {name: p.detach().numpy() for name, p in named if ".affine." in name}


def assert_equal(a: Bench, b: Bench) -> None:
    first, second = numbers(a), numbers(b)
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


def mean_loss(bench: Bench) -> float:
    session = bench.session
    losses = output_losses(session.denoiser, session.split.samples, session.split.training, 8)
    return float(losses.mean())


def test_it_lowers_the_output_error_and_records_what_it_did(samples: CalibrationSet, tmp_path: Path) -> None:
    bench = tiny_bench(samples, "calibration.polish.steps=30", "calibration.polish.lr=5e-3")
    codes = {name: layer.codes.clone() for name, layer in bench.layers.items()}
    before = mean_loss(bench)
    outcome = polish(bench, tmp_path / "work")
    assert outcome.record.kept
    assert outcome.record.loss_start == pytest.approx(before)
    assert outcome.record.loss_end == pytest.approx(mean_loss(bench))
    assert outcome.record.loss_end < 0.8 * before
    assert outcome.record.effective_samples == pytest.approx(25)
    assert outcome.stage.stage == "polish"
    assert outcome.stage.cosine_before is not None
    assert outcome.stage.cosine_after is not None
    assert all(torch.equal(layer.codes, codes[name]) for name, layer in bench.layers.items())
    assert not any(p.requires_grad for p in bench.session.denoiser.module.parameters())
    assert {n.rpartition(".")[2] for n in outcome.parameters} == {"weight", "bias"}
    assert all(bool(torch.isfinite(value).all()) for value in outcome.parameters.values())


def test_no_steps_are_no_polish(samples: CalibrationSet, tmp_path: Path) -> None:
    bench = small_bench(samples, "calibration.polish.steps=0")
    before = answer(bench.session.denoiser)
    assert ensure_polish(bench.session, Checkpoint(tmp_path, KEY), bench.layers, lambda: True) is None
    assert torch.equal(answer(bench.session.denoiser), before)
    assert not list(tmp_path.iterdir())


def test_what_is_judged_worse_is_undone_and_said_in_the_record(
    samples: CalibrationSet, tmp_path: Path
) -> None:
    untouched, bench = small_bench(samples), small_bench(samples)
    seen: list[bool] = []

    def is_good() -> bool:
        seen.append(torch.equal(answer(bench.session.denoiser), answer(untouched.session.denoiser)))
        return False

    outcome = ensure_polish(bench.session, Checkpoint(tmp_path, KEY), bench.layers, is_good)
    assert seen == [False], "the polished model is judged"
    assert outcome is not None
    assert not outcome.record.kept
    assert outcome.record.loss_end == outcome.record.loss_start
    assert torch.equal(answer(bench.session.denoiser), answer(untouched.session.denoiser))


def test_nothing_to_train_is_refused(samples: CalibrationSet, tmp_path: Path) -> None:
    bench = small_bench(samples, "calibration.polish.parameters=[]")
    with pytest.raises(CalibrationError, match="nothing to train"):
        polish(bench, tmp_path / "work")


@pytest.mark.parametrize(
    ("steps", "mode"),
    [
        pytest.param(1, "uniform", marks=pytest.mark.slow),
        (3, "uniform"),
        pytest.param(5, "uniform", marks=pytest.mark.slow),
        # before, and after, the samples are weighed at the second step
        pytest.param(1, "gac", marks=pytest.mark.slow),
        pytest.param(3, "gac", marks=pytest.mark.slow),
        pytest.param(5, "gac", marks=pytest.mark.slow),
    ],
)
def test_interrupted_at_any_step_it_ends_on_the_same_bits(
    samples: CalibrationSet, finished: Callable[[str], Finished], tmp_path: Path, steps: int, mode: str
) -> None:
    whole = finished(mode)
    with pytest.raises(KeyboardInterrupt):
        polish(small_bench(samples, weights(mode), report=Recording(stop_at=steps)), tmp_path / "work")
    report = Recording()
    resumed = small_bench(samples, weights(mode), report=report)
    found = polish(resumed, tmp_path / "work")
    # the interrupt comes before the step's own state is saved
    assert report.steps == 6 - (steps - 1) // 2 * 2
    assert_equal(resumed, whole.bench)
    assert found.record == whole.outcome.record


@pytest.mark.parametrize("lost", ["polished", "polish-00004", "polish-00002", "polish-weights"])
def test_killed_after_a_saved_state_it_ends_on_the_same_bits(
    samples: CalibrationSet, finished: Callable[[str], Finished], tmp_path: Path, lost: str
) -> None:
    whole = finished("uniform")
    shutil.copytree(whole.folder, tmp_path / "work")
    path = tmp_path / "work" / "checkpoint.json"
    checkpoint = read_json(path, what="", hint="")
    order = sorted(checkpoint["steps"], key=lambda step: str(checkpoint["steps"][step]["file"]))
    assert order == ["polish-start", "polish-weights", "polish-00002", "polish-00004", "polished"]
    kept = order[: order.index(lost)]
    write_json(path, checkpoint | {"steps": {step: checkpoint["steps"][step] for step in kept}})
    resumed = small_bench(samples)
    found = polish(resumed, tmp_path / "work")
    assert_equal(resumed, whole.bench)
    assert found.record == whole.outcome.record


def test_a_finished_polish_is_loaded_and_not_repeated(
    samples: CalibrationSet, finished: Callable[[str], Finished]
) -> None:
    first, second = finished("uniform"), small_bench(samples)
    files = {p: p.stat().st_mtime_ns for p in first.folder.iterdir()}
    after = polish(second, first.folder)
    assert {p: p.stat().st_mtime_ns for p in first.folder.iterdir()} == files
    assert_equal(first.bench, second)
    assert after.record == first.outcome.record


def test_a_loss_that_explodes_names_the_step_and_keeps_the_last_state(
    samples: CalibrationSet, tmp_path: Path
) -> None:
    bench = small_bench(samples, "calibration.polish.lr=1e30", "calibration.polish.save_every=1")
    with pytest.raises(
        CalibrationError, match=r"the loss is (nan|inf) at step 2 of 6. The blocks are kept"
    ) as e:
        polish(bench, tmp_path / "work")
    assert "calibration.polish.lr" in e.value.hint
    assert Checkpoint(tmp_path / "work", KEY).steps == ("polish-start", "polish-weights", "polish-00001")


def test_what_ends_worse_is_undone_and_said(samples: CalibrationSet, tmp_path: Path) -> None:
    report = Recording()
    bench = tiny_bench(samples, "calibration.polish.lr=0.5", "calibration.polish.steps=2", report=report)
    before = numbers(bench)
    loss = mean_loss(bench)
    outcome = polish(bench, tmp_path / "work")
    assert not outcome.record.kept
    assert outcome.record.loss_end == outcome.record.loss_start == pytest.approx(loss)
    after = numbers(bench)
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)
    assert report.notes[0].startswith("the polish was undone: its loss rose from")


def test_small_passes_give_the_same_polish(
    samples: CalibrationSet, finished: Callable[[str], Finished], tmp_path: Path
) -> None:
    whole, parts = finished("uniform").bench, small_bench(samples)
    narrow = Bench(Narrow(**vars(parts.session)), parts.layers)
    assert (
        narrow.session.graph_chunk
        < narrow.session.recipe.calibration.polish.batch
        <= whole.session.graph_chunk
    )
    narrowed = polish(narrow, tmp_path / "work")
    assert narrowed.record.loss_end == pytest.approx(finished("uniform").outcome.record.loss_end, rel=0.02)
    second = numbers(narrow)
    close = [np.isclose(v, second[k], atol=1e-4, rtol=1e-3).ravel() for k, v in numbers(whole).items()]
    # Adam's first steps follow a gradient's sign: where it is all but 0, as of a key's bias, rounding decides
    assert np.concatenate(close).mean() > 0.9


def test_checkpoints_change_no_bit(samples: CalibrationSet, tmp_path: Path) -> None:
    mode = "calibration.weighting.mode=relative"
    whole, parts = small_bench(samples, mode), small_bench(samples, mode)
    again = Bench(Checkpointed(**vars(parts.session)), parts.layers)
    outcomes, runs = [], []
    for bench in (whole, again):
        seen: list[object] = []
        first = next(iter(bench.layers.values()))
        first.register_forward_pre_hook(lambda *_, seen=seen: seen.append(None))
        outcomes.append(polish(bench, tmp_path / str(len(runs))))
        runs.append(len(seen))
    assert not whole.session.is_checkpointed
    assert runs[1] > runs[0], "no block ran again"
    assert outcomes[0].record == outcomes[1].record
    for cosines in ("cosine_before", "cosine_after"):
        np.testing.assert_array_equal(*(getattr(o.stage, cosines) for o in outcomes))
    assert_equal(whole, again)


def test_parameters_the_output_does_not_depend_on_stay_as_they_are(
    samples: CalibrationSet, tmp_path: Path
) -> None:
    def with_spare_norm() -> Bench:
        denoiser = tiny_denoiser(**ONE_LEVEL)
        denoiser.module.add_module("spare", torch.nn.GroupNorm(2, 4))
        return tiny_bench(samples, MIDDLE, denoiser=denoiser)

    bench = with_spare_norm()
    outcome = polish(bench, tmp_path / "work")
    assert torch.equal(outcome.parameters["spare.weight"], torch.ones(4))
    path = tmp_path / "work" / "checkpoint.json"
    checkpoint = read_json(path, what="", hint="")
    del checkpoint["steps"]["polished"]
    write_json(path, checkpoint)
    resumed = with_spare_norm()
    polish(resumed, tmp_path / "work")
    assert_equal(resumed, bench)
