"""What did calibration learn? The only bridge between PyTorch and deployment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from gacq_deploy.errors import ArtifactError
from gacq_deploy.spec import PlannedSite, QuantPlan, Site, TensorParams, TensorSpec
from gacq_deploy.storage import (
    Array,
    atomic_directory,
    describe_file,
    digest_json,
    load_arrays,
    read_json,
    save_arrays,
    verify_file,
    write_json,
)

SCHEMA = "gacq-deploy/artifact"
SCHEMA_VERSION = 1
_TENSORS = "tensors.safetensors"
_PROBE = "probe.safetensors"
_HINT = "Run `gacq-deploy calibrate` again, or restore the artifact folder from a copy."
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""Version n -> function that turns a version-n manifest into version n + 1; empty while 1 is the only version."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelRecord(_Record):
    """Where the float model came from."""

    source: str
    revision: str | None
    family: str
    weights_sha256: str
    prediction_type: str
    scheduler: dict[str, Any]
    """diffusers scheduler configuration, plain JSON."""
    sample_shape: tuple[int, ...]
    """[C, H, W]"""
    conditioning: dict[str, dict[str, Any]]
    """input name -> {dtype, shape, num_classes}"""


class SiteRecord(_Record):
    """One planned site on disk."""

    site: str
    bits: int
    axis: int | None
    narrow: bool
    tie: str
    range: str
    source_sha256: str | None = None
    """Digest of the float weight (role weight): the exporter finds the layer by it."""


class BlockRecord(_Record):
    """What happened in one reconstructed block."""

    name: str
    sites: int
    loss_start: float
    loss_end: float
    kept: bool
    """False when nearest rounding was better and was restored."""
    effective_samples: float
    """(sum w)^2 / sum w^2 of the sample weights."""


@dataclass(frozen=True)
class Probe:
    """The fake-quantized torch model's own answers, the reference of every exported graph.

    ``inputs`` name -> [M, ...]; ``outputs`` keys ``float``, ``input_quant`` (Q/DQ on inputs and weights) and
    ``output_quant`` (also on convolution outputs) -> [M, C, H, W]; ``local`` maps placement -> site -> the
    fake-quantized tensor of the first ``P`` states.
    """

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    local: Mapping[str, Mapping[str, Array]]


@dataclass(frozen=True)
class CalibrationArtifact:
    """Plan, parameters per site, provenance. Loading needs neither torch nor data."""

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

    def __post_init__(self) -> None:
        for entry in self.plan:
            params = self.params.get(entry.site)
            if params is None:
                raise ArtifactError(f"Site '{entry.site}' has no scale in the artifact.", _HINT)
            if entry.site.role == "weight":
                _check_codes(entry, params)

    def save(self, directory: Path) -> str:
        """Write the folder whole or not at all (``manifest.json`` last in it); return the artifact's digest."""
        with atomic_directory(directory) as folder:
            save_arrays(folder / _TENSORS, self._tensors(), schema=f"{SCHEMA}/{SCHEMA_VERSION}")
            files = {_TENSORS: describe_file(folder / _TENSORS)}
            if self.probe is not None:
                save_arrays(
                    folder / _PROBE, _flatten_probe(self.probe), schema=f"{SCHEMA}-probe/{SCHEMA_VERSION}"
                )
                files[_PROBE] = describe_file(folder / _PROBE)
            document = self._document(files)
            digest = digest_json(document)
            write_json(folder / "manifest.json", {**document, "digest": digest, "build": dict(self.build)})
        return digest

    def _tensors(self) -> dict[str, Array]:
        tensors: dict[str, Array] = {}
        for entry in self.plan:
            params = self.params[entry.site]
            tensors[f"{entry.site}.scale"] = params.scale
            if params.codes is not None:
                tensors[f"{entry.site}.codes"] = params.codes
        return tensors

    def _document(self, files: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "schema_version": SCHEMA_VERSION,
            "model": self.model.model_dump(mode="json"),
            "recipe": dict(self.recipe),
            "samples_sha256": self.samples_sha256,
            "plan": [_site_record(e, self.weight_digests).model_dump(mode="json") for e in self.plan],
            "history": [record.model_dump(mode="json") for record in self.history],
            "files": dict(files),
        }


def load_artifact(directory: Path) -> CalibrationArtifact:
    """Load and verify an artifact folder; older schema versions are migrated, newer ones refused.

    Raises:
        ArtifactError: missing, altered, truncated, of a newer version, or inconsistent.
    """
    manifest = read_json(directory / "manifest.json", what="Artifact manifest", hint=_HINT)
    manifest = _migrate(manifest, directory)
    body = {k: v for k, v in manifest.items() if k not in ("digest", "build")}
    if digest_json(body) != manifest.get("digest"):
        raise ArtifactError(
            f"Artifact manifest {directory / 'manifest.json'} was altered: its digest differs.", _HINT
        )
    try:
        for name, entry in manifest["files"].items():
            if name not in (_TENSORS, _PROBE):
                raise ArtifactError(f"Artifact manifest names a foreign file '{name}'.", _HINT)
            verify_file(directory / name, entry, what="Artifact file", hint=_HINT)
        records = [SiteRecord.model_validate(r) for r in manifest["plan"]]
        tensors = load_arrays(directory / _TENSORS, what="Artifact tensors", hint=_HINT)
        return CalibrationArtifact(
            model=ModelRecord.model_validate(manifest["model"]),
            plan=QuantPlan(tuple(_planned(r) for r in records)),
            params={Site.parse(r.site): _params(r, tensors) for r in records},
            weight_digests={r.site: r.source_sha256 for r in records if r.source_sha256},
            recipe=manifest["recipe"],
            samples_sha256=manifest["samples_sha256"],
            history=tuple(BlockRecord.model_validate(h) for h in manifest["history"]),
            probe=_load_probe(directory) if _PROBE in manifest["files"] else None,
            build=manifest.get("build", {}),
            manifest_digest=manifest["digest"],
        )
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        raise ArtifactError(f"Artifact {directory} is inconsistent: {error!r}.", _HINT) from error


def _migrate(document: Any, directory: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = document if isinstance(document, dict) else {}
    if manifest.get("schema") != SCHEMA:
        raise ArtifactError(f"{directory / 'manifest.json'} is not an artifact manifest.", _HINT)
    version = manifest.get("schema_version")
    if not isinstance(version, int) or version < 1:
        raise ArtifactError(f"Artifact {directory} has schema version {version!r}.", _HINT)
    if version > SCHEMA_VERSION:
        raise ArtifactError(
            f"Artifact {directory} has schema version {version}, this gacq-deploy reads up to {SCHEMA_VERSION}.",
            "Upgrade gacq-deploy: pip install -U gacq-deploy",
        )
    while version < SCHEMA_VERSION:
        manifest = MIGRATIONS[version](manifest)
        version += 1
    return manifest


def _check_codes(entry: PlannedSite, params: TensorParams) -> None:
    codes = params.codes
    if codes is None or codes.ndim < 2:
        raise ArtifactError(f"Site '{entry.site}' has no weight codes in the artifact.", _HINT)
    if params.scale.shape != (codes.shape[entry.spec.axis or 0],):
        raise ArtifactError(
            f"Site '{entry.site}': {params.scale.shape} scales for codes of shape {codes.shape}, "
            f"axis {entry.spec.axis}.",
            _HINT,
        )
    low, high = int(codes.min()), int(codes.max())
    if low < entry.spec.qmin or high > entry.spec.qmax:
        raise ArtifactError(
            f"Site '{entry.site}': codes span [{low}, {high}], {entry.spec.bits} bits allow "
            f"[{entry.spec.qmin}, {entry.spec.qmax}].",
            _HINT,
        )


def _site_record(entry: PlannedSite, digests: Mapping[str, str]) -> SiteRecord:
    return SiteRecord(
        site=str(entry.site),
        bits=entry.spec.bits,
        axis=entry.spec.axis,
        narrow=entry.spec.narrow,
        tie=entry.tie,
        range=entry.range_method,
        source_sha256=digests.get(str(entry.site)),
    )


def _planned(record: SiteRecord) -> PlannedSite:
    spec = TensorSpec(bits=record.bits, axis=record.axis, narrow=record.narrow)
    return PlannedSite(Site.parse(record.site), spec, record.tie, record.range)


def _params(record: SiteRecord, tensors: Mapping[str, Array]) -> TensorParams:
    codes = tensors.get(f"{record.site}.codes")
    return TensorParams(np.asarray(tensors[f"{record.site}.scale"]), codes)


def _flatten_probe(probe: Probe) -> dict[str, Array]:
    flat = {f"inputs/{k}": v for k, v in probe.inputs.items()}
    flat |= {f"outputs/{k}": v for k, v in probe.outputs.items()}
    for placement, tensors in probe.local.items():
        flat |= {f"local/{placement}/{k}": v for k, v in tensors.items()}
    return flat


def _load_probe(directory: Path) -> Probe:
    flat = load_arrays(directory / _PROBE, what="Artifact probe", hint=_HINT)
    local: dict[str, dict[str, Array]] = {}
    for key, value in flat.items():
        if key.startswith("local/"):
            _, placement, site = key.split("/", 2)
            local.setdefault(placement, {})[site] = value
    return Probe(
        inputs={k.removeprefix("inputs/"): v for k, v in flat.items() if k.startswith("inputs/")},
        outputs={k.removeprefix("outputs/"): v for k, v in flat.items() if k.startswith("outputs/")},
        local=local,
    )
