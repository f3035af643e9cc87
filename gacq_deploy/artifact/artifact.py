"""What did calibration learn? The only bridge between PyTorch and deployment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from gacq_deploy.artifact.diagnostics import Diagnostics, load_diagnostics, save_diagnostics
from gacq_deploy.artifact.probe import Probe, load_probe, save_probe
from gacq_deploy.artifact.records import (
    ArtifactManifest,
    BlockRecord,
    BuildRecord,
    ModelRecord,
    ParameterRecord,
    PolishRecord,
    SiteRecord,
)
from gacq_deploy.artifact.smoothing import InputSmoothing
from gacq_deploy.errors import ArtifactError
from gacq_deploy.spec import Array, PlannedSite, QuantPlan, Site, TensorParams, TensorSpec
from gacq_deploy.storage.arrays import map_arrays, save_arrays
from gacq_deploy.storage.digests import describe_file
from gacq_deploy.storage.documents import read_json
from gacq_deploy.storage.files import atomic_directory
from gacq_deploy.storage.records import as_record, verify_listed
from gacq_deploy.storage.sealed import unseal, write_sealed

_SCHEMA = "gacq-deploy/artifact"
SCHEMA_VERSION = 1
"""Raised with the format; every version before it stays readable."""
_TENSORS = "tensors.safetensors"
_PROBE = "probe.safetensors"
_DIAGNOSTICS = "diagnostics.safetensors"
_ALPHAS = "alphas_cumprod"
ARTIFACT_FILES = (_TENSORS, _PROBE, _DIAGNOSTICS)
"""Files that a manifest may vouch for."""
_HINT = "Run `gacq-deploy calibrate` again, or restore the artifact folder from a copy."


@dataclass(frozen=True)
class RetrainedParameter:
    """A float parameter that calibration changed: a bias, or the weight or bias of a norm.

    ``value`` is float32 in the shape of the model's own parameter, finite; ``source_sha256`` is
    ``digest_array`` of the float model's own value.
    """

    value: NDArray[np.float32]
    source_sha256: str


@dataclass(frozen=True)
class CalibrationArtifact:
    """Plan, parameters per site, provenance. Loading needs neither torch nor data.

    ``params`` are codes and scales by site; ``parameters`` are float parameters of the model that calibration
    changed, by dotted name (``mid_block.attentions.0.to_q.bias``).
    """

    model: ModelRecord
    plan: QuantPlan
    params: Mapping[Site, TensorParams]
    weight_digests: Mapping[str, str]
    recipe: Mapping[str, Any]
    samples_sha256: str
    history: tuple[BlockRecord, ...]
    probe: Probe | None
    build: Mapping[str, Any] = field(default_factory=dict)
    """Times, versions, host facts; covered by no digest."""
    manifest_digest: str = ""
    parameters: Mapping[str, RetrainedParameter] = field(default_factory=dict)
    polish: PolishRecord | None = None
    diagnostics: Diagnostics | None = None
    smoothing: Mapping[Site, InputSmoothing] = field(default_factory=dict)
    """Of input sites; those that share a quantizer have equal ones."""

    def __post_init__(self) -> None:
        for entry in self.plan:
            params = self.params.get(entry.site)
            if params is None:
                raise ArtifactError(f"Site '{entry.site}' has no scale in the artifact.", _HINT)
            if entry.site.role == "weight":
                _check_codes(entry, params)
        for name, parameter in self.parameters.items():
            self._check_parameter(name, parameter)
        for site, smoothing in self.smoothing.items():
            self._check_smoothing(site, smoothing)

    def why_stale(self, recipe: Mapping[str, Any], samples_sha256: str | None = None) -> str | None:
        """Return why this was not calibrated by that recipe from those samples; None: it was.

        Args:
            recipe: what decides it, :meth:`~gacq_deploy.recipe.sections.Recipe.decisive` of the run's recipe.
            samples_sha256: digest of the samples that lie beside it; None where none do.
        """
        return _why_made_otherwise(self.recipe, recipe, self.samples_sha256, samples_sha256)

    def multiplier(self, site: Site) -> NDArray[np.float32] | None:
        """Return what multiplies the input ``site`` [in] before its quantizer, if anything does."""
        smoothing = self.smoothing.get(site)
        return None if smoothing is None else smoothing.multiplier

    def save(self, directory: Path) -> str:
        """Write the folder whole or not at all (``manifest.json`` last in it); return the artifact's digest."""
        with atomic_directory(directory, (*ARTIFACT_FILES, "manifest.json")) as folder:
            save_arrays(folder / _TENSORS, self._tensors(), schema=f"{_SCHEMA}/{SCHEMA_VERSION}")
            files = {_TENSORS: describe_file(folder / _TENSORS)}
            if self.probe is not None:
                save_probe(folder / _PROBE, self.probe, schema=f"{_SCHEMA}-probe/{SCHEMA_VERSION}")
                files[_PROBE] = describe_file(folder / _PROBE)
            if self.diagnostics is not None:
                save_diagnostics(folder / _DIAGNOSTICS, self.diagnostics)
                files[_DIAGNOSTICS] = describe_file(folder / _DIAGNOSTICS)
            return write_sealed(
                folder / "manifest.json", self._document(files), beside={"build": dict(self.build)}
            )

    def _tensors(self) -> dict[str, Array]:
        tensors: dict[str, Array] = {}
        if self.model.alphas_cumprod is not None:
            tensors[_ALPHAS] = np.array(self.model.alphas_cumprod, np.float32)
        for entry in self.plan:
            params = self.params[entry.site]
            tensors[f"{entry.site}.scale"] = params.scale
            if params.codes is not None:
                tensors[f"{entry.site}.codes"] = params.codes
            if entry.site in self.smoothing:
                tensors[_factor_key(str(entry.site))] = self.smoothing[entry.site].factor
        return tensors | {_parameter_key(name): p.value for name, p in self.parameters.items()}

    def _check_parameter(self, name: str, parameter: RetrainedParameter) -> None:
        value = parameter.value
        if value.dtype != np.float32 or value.size == 0:
            raise ArtifactError(
                f"Retrained parameter '{name}' is {value.dtype} of shape {value.shape}, not float32 values.",
                _HINT,
            )
        if not bool(np.isfinite(value).all()):
            count = int(np.count_nonzero(~np.isfinite(value)))
            raise ArtifactError(
                f"Retrained parameter '{name}' holds {count} values that are not finite.", _HINT
            )
        module, _, kind = name.rpartition(".")
        weight = self.params.get(Site(module, "weight"))
        if weight is None or weight.codes is None or self.plan.get(Site(module, "weight")) is None:
            return
        if kind != "bias" or value.shape != weight.codes.shape[:1]:
            raise ArtifactError(
                f"Retrained parameter '{name}' of shape {value.shape} belongs to a quantized layer; only a bias "
                f"of shape {weight.codes.shape[:1]} can.",
                _HINT,
            )

    def _check_smoothing(self, site: Site, smoothing: InputSmoothing) -> None:
        weight = self.params.get(Site(site.module, "weight"))
        shape = None if weight is None or weight.codes is None else weight.codes.shape[1:]
        if site.role != "input" or smoothing.factor.shape != shape:
            raise ArtifactError(
                f"Site '{site}' is smoothed by a factor of shape {smoothing.factor.shape}, its layer takes {shape}.",
                _HINT,
            )

    def _document(self, files: Mapping[str, Any]) -> dict[str, Any]:
        plan = [_site_record(e, self.weight_digests, self.smoothing.get(e.site)) for e in self.plan]
        parameters = [
            ParameterRecord(name=name, source_sha256=p.source_sha256)
            for name, p in sorted(self.parameters.items())
        ]
        return {
            "schema": _SCHEMA,
            "schema_version": SCHEMA_VERSION,
            "model": self.model.model_dump(mode="json"),
            "recipe": dict(self.recipe),
            "samples_sha256": self.samples_sha256,
            "plan": _dumped(plan),
            "parameters": _dumped(parameters),
            "history": _dumped(self.history),
            "polish": None if self.polish is None else self.polish.model_dump(mode="json"),
            "files": dict(files),
        }


def load_artifact(directory: Path) -> CalibrationArtifact:
    """Load and verify an artifact folder; newer schema versions are refused.

    Large arrays stay in the verified files, read-only, and are read when used: the folder may be replaced meanwhile, as
    every writer here does, but not written in place.

    Raises:
        ArtifactError: missing, altered, truncated, of a newer version, or inconsistent.
    """
    manifest = _load_manifest(directory)
    try:
        return _read(manifest, directory)
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"Artifact {directory} is inconsistent: {error!r}.", _HINT) from error


@dataclass(frozen=True)
class ArtifactHead:
    """What an artifact's manifest says, verified: its model but for the noise schedule, its sites without a scale."""

    model: ModelRecord
    sites: tuple[SiteRecord, ...]
    recipe: Mapping[str, Any]
    samples_sha256: str
    manifest_digest: str

    def why_stale(self, recipe: Mapping[str, Any], samples_sha256: str | None = None) -> str | None:
        """Return what :meth:`CalibrationArtifact.why_stale` does."""
        return _why_made_otherwise(self.recipe, recipe, self.samples_sha256, samples_sha256)


def load_head(directory: Path) -> ArtifactHead:
    """Read an artifact's manifest alone; no tensor is read, and none verified.

    Raises:
        ArtifactError: as :func:`load_artifact`, but for the files that the manifest vouches for.
    """
    found = _load_manifest(directory)
    said = found.manifest
    return ArtifactHead(said.model, said.plan, said.recipe, said.samples_sha256, found.digest)


def load_model_record(directory: Path) -> ModelRecord:
    """Return what an artifact's manifest, verified, says of its model; tensors are not read, nor the noise schedule.

    Raises:
        ArtifactError: as :func:`load_head`.
    """
    return load_head(directory).model


def _why_made_otherwise(
    made_by: Mapping[str, Any], recipe: Mapping[str, Any], made_from: str, samples_sha256: str | None
) -> str | None:
    """Return what of a run's recipe and samples is not what an artifact was calibrated by and from; None: all is."""
    changed = [key for key, value in made_by.items() if recipe.get(key) != value]
    if changed:
        return f"recipe.yaml differs in {', '.join(changed)}"
    if samples_sha256 not in (None, made_from):
        return f"it was made from other samples ({made_from[:12]}) than lie beside it"
    return None


class _Sealed(NamedTuple):
    """A manifest, the digest that it states, and what lies beside it, covered by no digest."""

    manifest: ArtifactManifest
    digest: str
    build: Mapping[str, Any]


def _load_manifest(directory: Path) -> _Sealed:
    """Return the manifest, verified."""
    path, what = directory / "manifest.json", "Artifact manifest"
    document = read_json(path, what=what, hint=_HINT)
    _check_version(document, directory)
    body = unseal(document, path, what=what, hint=_HINT, beside=("build",))
    manifest = as_record(ArtifactManifest, body, where=f"{what} {path}", hint=_HINT)
    manifest.model.check_parts(where=str(path), hint=_HINT)
    build = document.get("build", {})
    as_record(BuildRecord, build, where=f"'build' of {what} {path}", hint=_HINT)
    return _Sealed(manifest, document["digest"], build)


def _check_version(manifest: Mapping[str, Any], directory: Path) -> None:
    if manifest.get("schema") != _SCHEMA:
        raise ArtifactError(f"{directory / 'manifest.json'} is not an artifact manifest.", _HINT)
    version = manifest.get("schema_version")
    if not isinstance(version, int) or version < 1:
        raise ArtifactError(f"Artifact {directory} has schema version {version!r}.", _HINT)
    if version > SCHEMA_VERSION:
        raise ArtifactError(
            f"Artifact {directory} has schema version {version}, this gacq-deploy reads up to {SCHEMA_VERSION}.",
            "Upgrade gacq-deploy: pip install -U gacq-deploy",
        )


def _read(sealed: _Sealed, directory: Path) -> CalibrationArtifact:
    """Read the files that a manifest of the current version vouches for, once they proved to be those."""
    manifest, named = sealed.manifest, sealed.manifest.files
    # all of them before the first is parsed: no parser sees a file that was altered
    verify_listed(
        directory / "manifest.json",
        named,
        known=ARTIFACT_FILES,
        needed=_TENSORS,
        what="Artifact file",
        hint=_HINT,
    )
    records = manifest.plan
    tensors = map_arrays(
        directory / _TENSORS, what="Artifact tensors", hint=_HINT, sha256=named[_TENSORS].sha256
    )
    planned = tuple(_planned(r) for r in records)
    params = {Site.parse(r.site): _params(r, tensors) for r in records}
    digests = {r.site: r.source_sha256 for r in records if r.source_sha256}
    probe = diagnostics = None
    if _PROBE in named:
        probe = load_probe(directory / _PROBE, hint=_HINT, sha256=named[_PROBE].sha256)
    if _DIAGNOSTICS in named:
        diagnostics = load_diagnostics(directory / _DIAGNOSTICS, sha256=named[_DIAGNOSTICS].sha256)
    return CalibrationArtifact(
        model=_model(manifest.model, tensors.get(_ALPHAS)),
        plan=QuantPlan(planned),
        params=params,
        weight_digests=digests,
        recipe=manifest.recipe,
        samples_sha256=manifest.samples_sha256,
        history=manifest.history,
        probe=probe,
        build=sealed.build,
        manifest_digest=sealed.digest,
        parameters=_parameters(manifest.parameters, tensors),
        polish=manifest.polish,
        diagnostics=diagnostics,
        smoothing=_smoothing(records, tensors),
    )


def _dumped(records: Iterable[BaseModel]) -> list[dict[str, Any]]:
    return [record.model_dump(mode="json") for record in records]


def _model(record: ModelRecord, alphas: Array | None) -> ModelRecord:
    return ModelRecord.model_validate(
        {**record.model_dump(), "alphas_cumprod": None if alphas is None else alphas.tolist()}
    )


def _check_codes(entry: PlannedSite, params: TensorParams) -> None:
    codes = params.codes
    if codes is None or codes.ndim < 2:
        raise ArtifactError(f"Site '{entry.site}' has no weight codes in the artifact.", _HINT)
    try:
        expected = entry.spec.scale_shape(codes.shape)
    except ValueError as error:
        raise ArtifactError(f"Site '{entry.site}': {error}.", _HINT) from None
    if params.scale.shape != expected:
        raise ArtifactError(
            f"Site '{entry.site}': {params.scale.shape} scales for codes of shape {codes.shape}, "
            f"axis {entry.spec.axis}{'' if entry.spec.block is None else f', block {entry.spec.block}'}.",
            _HINT,
        )
    low, high = int(codes.min()), int(codes.max())
    if low < entry.spec.qmin or high > entry.spec.qmax:
        raise ArtifactError(
            f"Site '{entry.site}': codes span [{low}, {high}], {entry.spec.bits} bits allow "
            f"[{entry.spec.qmin}, {entry.spec.qmax}].",
            _HINT,
        )


def _site_record(
    entry: PlannedSite, digests: Mapping[str, str], smoothing: InputSmoothing | None
) -> SiteRecord:
    return SiteRecord(
        site=str(entry.site),
        bits=entry.spec.bits,
        axis=entry.spec.axis,
        narrow=entry.spec.narrow,
        tie=entry.tie,
        range=entry.range_method,
        source_sha256=digests.get(str(entry.site)),
        block=entry.spec.block,
        smoothing=None if smoothing is None else smoothing.record(),
    )


def _planned(record: SiteRecord) -> PlannedSite:
    spec = TensorSpec(bits=record.bits, axis=record.axis, narrow=record.narrow, block=record.block)
    return PlannedSite(Site.parse(record.site), spec, record.tie, record.range)


def _params(record: SiteRecord, tensors: Mapping[str, Array]) -> TensorParams:
    codes = tensors.get(f"{record.site}.codes")
    return TensorParams(np.asarray(tensors[f"{record.site}.scale"]), codes)


def _smoothing(records: Sequence[SiteRecord], tensors: Mapping[str, Array]) -> dict[Site, InputSmoothing]:
    found: dict[Site, InputSmoothing] = {}
    for record in records:
        if record.smoothing is not None:
            factor = tensors[_factor_key(record.site)]
            found[Site.parse(record.site)] = InputSmoothing.of(record.smoothing, factor)
    return found


def _parameters(
    records: Sequence[ParameterRecord], tensors: Mapping[str, Array]
) -> dict[str, RetrainedParameter]:
    found = {r.name: RetrainedParameter(tensors[_parameter_key(r.name)], r.source_sha256) for r in records}
    if len(found) != len(records):
        raise ValueError("a retrained parameter is listed twice")
    return found


def _parameter_key(name: str) -> str:
    # sites end in a role and a suffix, so no site can be spelt like this
    return f"parameter:{name}"


def _factor_key(site: str) -> str:
    return f"{site}.smoothing"
