"""What is in this artifact, and which rule put it there?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from gacq_deploy.artifact.artifact import CalibrationArtifact, load_artifact
from gacq_deploy.artifact.diagnostics import Diagnostics, StageWeights
from gacq_deploy.artifact.records import BlockRecord, PolishRecord
from gacq_deploy.errors import ArtifactError
from gacq_deploy.inspection.commands import command_for
from gacq_deploy.recipe.plan import matching_rules
from gacq_deploy.recipe.quantization import QuantizationSection, Rule
from gacq_deploy.run_directory import RunDirectory, describe_other
from gacq_deploy.spec import LayerKind, PlannedSite, Site, TensorSpec


@dataclass(frozen=True)
class SiteView:
    """One quantized tensor: what was asked, by which rule, and what was computed."""

    site: str
    bits: int
    granularity: str
    rule: int
    """Number of the winning rule, from 1; 0 when the recipe in the manifest has none for it."""
    rule_text: str
    range: str
    tie: str
    scale_min: float
    scale_max: float
    saturated: float | None
    """Weights: share of codes at either end of the grid."""
    smoothing: float | None = None
    """Inputs: the alpha that the tensor was smoothed with."""


@dataclass(frozen=True)
class ParameterView:
    """One float parameter of the model that calibration changed."""

    name: str
    shape: tuple[int, ...]
    value_min: float
    value_max: float
    source_sha256: str


@dataclass(frozen=True)
class StageView:
    """The sample weights that one stage (a block, or "polish") learned, in a few numbers."""

    stage: str
    mode: str
    effective_samples: float
    weight_min: float
    weight_max: float
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """A verified artifact in numbers."""

    directory: str
    digest: str
    model: dict[str, Any]
    samples_sha256: str
    sites: tuple[SiteView, ...]
    blocks: tuple[BlockRecord, ...]
    versions: dict[str, Any]
    parameters: tuple[ParameterView, ...]
    polish: PolishRecord | None
    stages: tuple[StageView, ...]
    error_timesteps: tuple[int, ...]
    """Noisiest first."""
    error_sqnr_db: dict[str, tuple[float, ...]]
    """Stage that ran -> output SQNR against the float model, one value a timestep."""

    def document(self) -> dict[str, Any]:
        """Return plain JSON data."""
        blocks = [block.model_dump(mode="json") for block in self.blocks]
        polish = None if self.polish is None else self.polish.model_dump(mode="json")
        return {**asdict(self), "blocks": blocks, "polish": polish}


def inspect_artifact(directory: Path) -> Inspection:
    """Read an artifact folder, or the one inside a run directory.

    Raises:
        ArtifactError: there is none, or it is stale, corrupt or altered.
    """
    folder = _artifact_folder(directory)
    artifact = load_artifact(folder)
    try:
        rules = QuantizationSection.model_validate(artifact.recipe["quantization"]).rules
    except (KeyError, ValidationError) as error:
        raise ArtifactError(
            f"The recipe recorded in {folder} has no valid quantization rules: {error!r}.",
            "Run `gacq-deploy calibrate` again.",
        ) from error
    stages, timesteps, errors = _diagnosed(artifact.diagnostics)
    return Inspection(
        directory=str(folder),
        digest=artifact.manifest_digest,
        model=artifact.model.model_dump(mode="json"),
        samples_sha256=artifact.samples_sha256,
        sites=tuple(_view(entry, artifact, rules) for entry in artifact.plan),
        blocks=artifact.history,
        versions=dict(artifact.build),
        parameters=_parameters(artifact),
        polish=artifact.polish,
        stages=stages,
        error_timesteps=timesteps,
        error_sqnr_db=errors,
    )


_Diagnosed = tuple[tuple[StageView, ...], tuple[int, ...], dict[str, tuple[float, ...]]]


def _diagnosed(diagnostics: Diagnostics | None) -> _Diagnosed:
    """Return stages, timesteps and errors of :class:`Inspection`; all empty of an artifact without diagnostics."""
    if diagnostics is None:
        return (), (), {}
    stages = tuple(map(_stage, diagnostics.stages))
    timesteps = tuple(map(int, diagnostics.error_timesteps))
    errors = {stage: tuple(map(float, values)) for stage, values in diagnostics.error_sqnr_db.items()}
    return stages, timesteps, errors


def _artifact_folder(directory: Path) -> Path:
    run = RunDirectory(directory)
    inner = run.artifact
    for candidate in (inner, directory):
        if (candidate / "manifest.json").is_file():
            return candidate
    what, hint = "it has no artifact yet", f"Run `{command_for('artifact', run)}` first."
    if not run.recipe_path.is_file():
        what, hint = describe_other(directory)
    raise ArtifactError(
        f"{directory} is neither a run directory with an artifact nor an artifact folder: {what}.", hint
    )


def _view(entry: PlannedSite, artifact: CalibrationArtifact, rules: Sequence[Rule]) -> SiteView:
    params = artifact.params[entry.site]
    matching = matching_rules(rules, entry.site, _layer_kind(entry.site.module, artifact))
    number, text = 0, ""
    if matching:
        # the last rule that matches wins
        number, text = matching[-1] + 1, _rule_text(rules[matching[-1]])
    tie = entry.tie if entry.tie != str(entry.site) else ""
    smoothed = artifact.smoothing.get(entry.site)
    saturated = None
    if params.codes is not None:
        at_ends = (params.codes <= entry.spec.qmin) | (params.codes >= entry.spec.qmax)
        saturated = float(np.mean(at_ends))
    return SiteView(
        site=str(entry.site),
        bits=entry.spec.bits,
        granularity=_granularity(entry.spec),
        rule=number,
        rule_text=text,
        range=entry.range_method,
        tie=tie,
        scale_min=float(params.scale.min()),
        scale_max=float(params.scale.max()),
        saturated=saturated,
        smoothing=smoothed.alpha if smoothed else None,
    )


def _rule_text(rule: Rule) -> str:
    role = "" if rule.role == "*" else f", {rule.role}"
    return f"({rule.match}{role})"


def _granularity(spec: TensorSpec) -> str:
    if spec.block is not None:
        return f"block of {spec.block}"
    return "tensor" if spec.axis is None else f"axis {spec.axis}"


def _layer_kind(module: str, artifact: CalibrationArtifact) -> LayerKind:
    codes = artifact.params[Site(module, "weight")].codes
    return "conv" if codes is not None and codes.ndim > 2 else "linear"


def _parameters(artifact: CalibrationArtifact) -> tuple[ParameterView, ...]:
    return tuple(
        ParameterView(
            name=name,
            shape=parameter.value.shape,
            value_min=float(parameter.value.min()),
            value_max=float(parameter.value.max()),
            source_sha256=parameter.source_sha256,
        )
        for name, parameter in sorted(artifact.parameters.items())
    )


def _stage(stage: StageWeights) -> StageView:
    return StageView(
        stage=stage.stage,
        mode=stage.mode,
        effective_samples=stage.effective_samples,
        weight_min=float(stage.weights.min()),
        weight_max=float(stage.weights.max()),
        notes=stage.notes,
    )
