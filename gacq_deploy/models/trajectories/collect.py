"""Which float trajectories is a model calibrated on, and are they there already? Drawn ones, or its pipeline's own."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Protocol

import torch

from gacq_deploy.artifact.samples_record import LayoutRecord, SamplesRecord, load_samples_record
from gacq_deploy.errors import RESTORE, ArtifactError, RecipeError
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.call_recorder import Layout, RecordedCall, record_call
from gacq_deploy.models.devices import HOST
from gacq_deploy.models.pipelines import OpenPipeline, check_conditioning, open_pipeline
from gacq_deploy.models.source import Recording, Source, find_source, load_module, make_denoiser
from gacq_deploy.models.trajectories.drawn import COLLECT, PROBE_STATES, collect_samples
from gacq_deploy.models.trajectories.prompted import Wanted, wanted_probe, wanted_samples
from gacq_deploy.models.trajectories.shards import collect_file
from gacq_deploy.processes.group import ALONE, Group
from gacq_deploy.progress import SILENT, Reporter
from gacq_deploy.recipe.sections import Recipe, SamplesSection
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.samples.calibration_set import CalibrationSet, load_samples
from gacq_deploy.samples.conditioning import Conditions
from gacq_deploy.storage.digests import digest_file, digest_json
from gacq_deploy.storage.files import write_json


def find_model(recipe: Recipe, found: Source | None = None) -> Source:
    """Find the recipe's model, unless it is ``found``, and refuse what would fail later, before anything is loaded.

    Raises:
        UsageError, ModelError, ArtifactError: the model is not there, not whole, or of a kind that is not supported.
        RecipeError: prompts for a model that takes none.
    """
    source = find_source(recipe.model) if found is None else replace(found, section=recipe.model)
    if source.is_prompted:
        check_conditioning(source, recipe.samples)
    elif recipe.samples.prompts or recipe.samples.guidance_scale is not None:
        what = f"{len(recipe.samples.prompts)} prompts" if recipe.samples.prompts else "a guidance scale"
        raise RecipeError(
            f"{what} for {source.family.name}, whose trajectories are drawn without.",
            "Leave --prompts and samples.guidance_scale out.",
        )
    return source


class Trajectories(Protocol):
    """Where states come from."""

    @property
    def denoiser(self) -> Denoiser:
        """The model that walks them, float."""

    def ensure_samples(self, report: Reporter) -> str:
        """Collect the calibration samples unless the recorded ones are this model's and recipe's; return their sha256.

        Raises:
            ArtifactError: the recorded ones were altered.
            CalibrationError: the float model's output is not finite.
        """

    def probe_states(self, report: Reporter) -> CalibrationSet:
        """Return the states of other trajectories, unseen by calibration; the model must be float."""

    def conditions(self) -> Conditions | None:
        """Return the conditioning of the probe's trajectories, where it cannot be drawn."""

    @property
    def branches(self) -> int:
        """Rows of the model an image: 2 with guidance."""


def open_trajectories(
    source: Source,
    recipe: Recipe,
    directory: RunDirectory,
    group: Group = ALONE,
    device: torch.device = HOST,
) -> Trajectories:
    """Load the model onto a device and say where its trajectories come from; a pipeline is opened only if it must run.

    Samples are collected by the whole group, of which this is the first process.

    Raises:
        ModelError, ArtifactError: it cannot be loaded, or calls its denoiser in a way that is not supported.
    """
    module = load_module(source, keep_stored=True, device=device)
    if not source.is_prompted:
        return DrawnTrajectories(make_denoiser(source, module), recipe, directory, group)
    known = _Memory.read(directory)
    if known is not None:
        denoiser = make_denoiser(source, module, known.recorded.recording)
        if known.key == _key(denoiser, recipe, prompted=True):
            return PromptedTrajectories(
                denoiser, recipe, directory, known.recorded, known.guidance_scale, group=group
            )
    opened = open_pipeline(source, module)
    recorded = record_call(opened, recipe.samples.steps)
    asked = recipe.samples.guidance_scale
    scale = opened.guidance_scale if asked is None else asked
    denoiser = make_denoiser(source, module, recorded.recording)
    return PromptedTrajectories(denoiser, recipe, directory, recorded, scale, opened, group)


def record_denoiser(source: Source, recipe: Recipe, device: torch.device = HOST) -> tuple[Denoiser, int]:
    """Load a model only to look at it: of a prompted one, its call is recorded. Return it and its rows an image."""
    module = load_module(source, keep_stored=True, device=device)
    if not source.is_prompted:
        return make_denoiser(source, module), 1
    recorded = record_call(open_pipeline(source, module), recipe.samples.steps)
    return make_denoiser(source, module, recorded.recording), recorded.layout.branches


@dataclass(frozen=True)
class DrawnTrajectories:
    """Trajectories of the model's own sampler, with class labels that are drawn or with no conditioning."""

    denoiser: Denoiser
    recipe: Recipe
    directory: RunDirectory
    group: Group = ALONE

    def ensure_samples(self, report: Reporter) -> str:
        """See :class:`Trajectories`."""
        key = _key(self.denoiser, self.recipe, prompted=False)
        path = self.directory.samples_path
        sha256 = _recorded_digest(self.directory, key, path)
        if sha256 is None:
            collect_samples(self.denoiser, self.recipe.samples, path, report, self.group)
            load_samples(path)
            sha256 = digest_file(path)
            write_json(self.directory.samples_record_path, {"key": key, "sha256": sha256})
        return sha256

    def probe_states(self, report: Reporter) -> CalibrationSet:
        """See :class:`Trajectories`."""
        section = self.recipe.parity.probe
        wanted = SamplesSection(
            trajectories=section.trajectories,
            steps=self.recipe.samples.steps,
            validation_share=0,
            seed=section.seed,
        )
        with TemporaryDirectory() as folder:
            path = Path(folder) / "probe.safetensors"
            collect_samples(self.denoiser, wanted, path, report, stage=PROBE_STATES)
            return load_samples(path)

    def conditions(self) -> Conditions | None:
        """See :class:`Trajectories`."""
        return None

    @property
    def branches(self) -> int:
        """See :class:`Trajectories`."""
        return 1


@dataclass
class PromptedTrajectories:
    """Trajectories of the pipeline around the model. It runs once, for samples and probe, and is then let go."""

    denoiser: Denoiser
    recipe: Recipe
    directory: RunDirectory
    recorded: RecordedCall
    guidance_scale: float
    opened: OpenPipeline | None = None
    group: Group = ALONE

    def ensure_samples(self, report: Reporter) -> str:
        """See :class:`Trajectories`."""
        key = _key(self.denoiser, self.recipe, prompted=True)
        path = self.directory.samples_path
        sha256 = _recorded_digest(self.directory, key, path)
        probe_digest = _recorded_digest(self.directory, key, self._probe_path, "probe_sha256")
        if sha256 is None or probe_digest is None:
            assert self.opened is not None, "the samples' record vouches for a file that is not there"
            section, probe = self.recipe.samples, self.recipe.parity.probe
            self._collect(self.opened, wanted_samples(section), path, report)
            self._collect(
                self.opened, wanted_probe(section, probe.trajectories, probe.seed), self._probe_path, report
            )
            sha256 = digest_file(path)
            memory = _Memory(key, sha256, digest_file(self._probe_path), self.recorded, self.guidance_scale)
            memory.write(self.directory)
        self.opened = None  # text encoders may weigh more than the denoiser
        return sha256

    def _collect(self, opened: OpenPipeline, wanted: Wanted, path: Path, report: Reporter) -> None:
        report.stage(COLLECT, -(-wanted.count * wanted.steps // self.group.size))
        collect_file(opened, self.recorded, wanted, path, report, self.group)
        load_samples(path)

    def probe_states(self, report: Reporter = SILENT) -> CalibrationSet:  # noqa: ARG002 (collected with the samples)
        """See :class:`Trajectories`."""
        return load_samples(self._probe_path)

    def conditions(self) -> Conditions | None:
        """See :class:`Trajectories`."""
        states = load_samples(self._probe_path)
        branches = self.recorded.layout.branches
        begins = [int((states.trajectory == t).argmax()) for t in dict.fromkeys(states.trajectory.tolist())]

        def side(branch: int) -> dict[str, Any]:
            rows = [begin + branch for begin in begins]
            return {name: value[rows] for name, value in states.conditioning.items()}

        # rows of a step are ordered by branch, the negative one first
        if self.recorded.layout.negative is None:
            return Conditions(side(0))
        return Conditions(side(branches - 1), side(0), self.guidance_scale)

    @property
    def branches(self) -> int:
        """See :class:`Trajectories`."""
        return self.recorded.layout.branches

    @property
    def _probe_path(self) -> Path:
        return self.directory.work / "probe-states.safetensors"


@dataclass(frozen=True)
class _Memory:
    """What ``samples.json`` says of a pipeline's run."""

    key: str
    sha256: str
    probe_sha256: str
    recorded: RecordedCall
    guidance_scale: float

    def write(self, directory: RunDirectory) -> None:
        recording = self.recorded.recording
        record = SamplesRecord(
            key=self.key,
            sha256=self.sha256,
            probe_sha256=self.probe_sha256,
            call=recording.call,
            scheduler=recording.scheduler,
            layout=LayoutRecord(**asdict(self.recorded.layout)),
            guidance_scale=self.guidance_scale,
        )
        write_json(directory.samples_record_path, record.model_dump(mode="json"))

    @classmethod
    def read(cls, directory: RunDirectory) -> _Memory | None:
        """Return what was recorded, None if nothing was, or what drawn trajectories left."""
        path = directory.samples_record_path
        found = load_samples_record(path) if path.is_file() else None
        if found is None or found.call is None:
            return None
        assert found.scheduler is not None, "recorded whole"
        assert found.layout is not None, "recorded whole"
        assert found.probe_sha256 is not None, "recorded whole"
        assert found.guidance_scale is not None, "recorded whole"
        recording = Recording(found.call, found.scheduler)
        recorded = RecordedCall(recording, Layout(**found.layout.model_dump()))
        return cls(found.key, found.sha256, found.probe_sha256, recorded, found.guidance_scale)


def _key(denoiser: Denoiser, recipe: Recipe, *, prompted: bool) -> str:
    """Return the digest of what samples depend on."""
    # which samples are taken does not depend on torch; their last bits may
    decisive: dict[str, Any] = {
        "weights": denoiser.record.weights_sha256,
        "samples": recipe.samples.model_dump(mode="json"),
        "torch": torch.__version__,
    }
    if prompted:
        decisive |= {
            "probe": recipe.parity.probe.model_dump(mode="json"),
            "model": recipe.model.model_dump(mode="json"),
        }
    if loras := denoiser.record.loras:  # their parts for text encoders are not in the weights
        decisive["loras"] = [lora.sha256 for lora in loras]
    return digest_json(decisive)


def _recorded_digest(
    directory: RunDirectory, key: str, path: Path, field: Literal["sha256", "probe_sha256"] = "sha256"
) -> str | None:
    """Return the digest of a recorded file if it is of this key; None if it has to be made.

    Raises:
        ArtifactError: it was altered.
    """
    if not (directory.samples_record_path.is_file() and path.is_file()):
        return None
    record = load_samples_record(directory.samples_record_path)
    if record.key != key:
        return None
    recorded: str | None = getattr(record, field)
    if digest_file(path) != recorded:
        raise ArtifactError(
            f"Calibration samples {path} were altered: sha256 differs from samples.json.", RESTORE
        )
    return recorded
