"""An artifact is whole, and verified before it is parsed."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gacq_deploy.artifact.artifact import CalibrationArtifact, RetrainedParameter, load_artifact, load_head
from gacq_deploy.artifact.records import PolishRecord
from gacq_deploy.errors import ArtifactError
from gacq_deploy.spec import QuantPlan, Site, TensorParams, TensorSpec
from gacq_deploy.storage.digests import canonical_json, digest_array, digest_json
from tests.support.artifacts.diagnostics import example_diagnostics
from tests.support.models.tiny import tiny_artifact, tiny_denoiser

BLOCKED, BLOCKED_INPUT = (Site("mid_block.attentions.0.to_out.0", r) for r in ("weight", "input"))
BIAS, NORM = "mid_block.attentions.0.to_q.bias", "mid_block.resnets.0.norm1.weight"


@pytest.fixture(scope="module")
def made() -> CalibrationArtifact:
    denoiser = tiny_denoiser()
    own = {name: denoiser.module.get_parameter(name).numpy() for name in (BIAS, NORM)}
    return replace(
        tiny_artifact(denoiser),
        parameters={k: RetrainedParameter(v + np.float32(0.25), digest_array(v)) for k, v in own.items()},
        polish=PolishRecord(
            steps=200,
            loss_start=0.5,
            loss_end=0.25,
            kept=True,
            parameters=("activation_steps", "biases"),
            objective="eps",
            effective_samples=99.5,
            notes=("weights fell back to uniform",),
        ),
        diagnostics=example_diagnostics(),
    )


@pytest.fixture
def folder(made: CalibrationArtifact, tmp_path: Path) -> Path:
    made.save(tmp_path / "artifact")
    return tmp_path / "artifact"


def blocked(made: CalibrationArtifact, scales: tuple[int, ...] = (16, 2)) -> CalibrationArtifact:
    """Return the artifact with one linear layer [16, 16] in blocks of 8."""
    codes = made.params[BLOCKED].codes
    assert codes is not None
    params = TensorParams(np.linspace(0.1, 0.2, 16 * 2, dtype=np.float32).reshape(scales), codes // 19)
    spec = TensorSpec(bits=4, axis=0, narrow=True, block=8)
    entries = tuple(
        replace(e, spec=spec) if e.site == BLOCKED else e for e in made.plan if e.site != BLOCKED_INPUT
    )
    return replace(made, plan=QuantPlan(entries), params={**made.params, BLOCKED: params})


def test_scales_in_blocks_round_trip(made: CalibrationArtifact, tmp_path: Path) -> None:
    artifact = blocked(made)
    artifact.save(tmp_path / "artifact")
    loaded = load_artifact(tmp_path / "artifact")
    assert loaded.plan == artifact.plan
    assert loaded.plan.weight_only == (BLOCKED.module,)
    np.testing.assert_array_equal(loaded.params[BLOCKED].scale, artifact.params[BLOCKED].scale, strict=True)
    sites = json.loads((tmp_path / "artifact" / "manifest.json").read_text())["plan"]
    assert {r["site"]: r["block"] for r in sites if r["block"]} == {str(BLOCKED): 8}


@pytest.mark.parametrize("scales", [(32,), (2, 16), (1, 32)])
def test_scales_that_do_not_fit_their_blocks_are_refused(
    made: CalibrationArtifact, scales: tuple[int, ...]
) -> None:
    with pytest.raises(ArtifactError, match=r"scales for codes of shape \(16, 16\), axis 0, block 8"):
        blocked(made, scales)


def test_round_trip_and_equal_bytes_on_every_save(made: CalibrationArtifact, folder: Path) -> None:
    loaded = load_artifact(folder)
    assert loaded.plan == made.plan
    assert loaded.model == made.model
    for site, params in made.params.items():
        np.testing.assert_array_equal(loaded.params[site].scale, params.scale)
        assert loaded.params[site].scale.shape == params.scale.shape
        if params.codes is not None:
            np.testing.assert_array_equal(loaded.params[site].codes, params.codes)
    assert loaded.probe is not None
    assert made.probe is not None
    np.testing.assert_array_equal(loaded.probe.outputs["float"], made.probe.outputs["float"])
    assert set(loaded.parameters) == {BIAS, NORM}
    for name, parameter in made.parameters.items():
        np.testing.assert_array_equal(loaded.parameters[name].value, parameter.value, strict=True)
        assert loaded.parameters[name].source_sha256 == parameter.source_sha256
    assert loaded.polish == made.polish
    assert loaded.diagnostics is not None
    assert made.diagnostics is not None
    for one, other in zip(loaded.diagnostics.stages, made.diagnostics.stages, strict=True):
        np.testing.assert_array_equal(one.weights, other.weights)
    digests = {made.save(folder.parent / f"again{i}") for i in range(3)}
    assert digests == {loaded.manifest_digest}


def test_times_and_hosts_are_covered_by_no_digest(made: CalibrationArtifact, tmp_path: Path) -> None:
    assert replace(made, build={"host": "a"}).save(tmp_path / "a") == replace(made, build={"host": "b"}).save(
        tmp_path / "b"
    )


def edit(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text()) | changes
    path.write_bytes(canonical_json(manifest))


def seal(folder: Path, **changes: object) -> None:
    """Edit the manifest as somebody who knows how to compute its digest would."""
    manifest = json.loads((folder / "manifest.json").read_text()) | changes
    body = {k: v for k, v in manifest.items() if k not in ("digest", "build")}
    edit(folder, **changes, digest=digest_json(body))


@pytest.mark.parametrize(
    ("name", "fragment"),
    [
        ("manifest gone", "missing"),
        ("manifest empty", "not readable JSON"),
        ("manifest of something else", "not an artifact manifest"),
        ("newer version", "reads up to"),
        ("version zero", "schema version 0"),
        ("edited field", "its digest is"),
        ("tensors gone", "missing or not a regular file"),
        ("tensors truncated", "truncated or altered"),
        ("one bit flipped", "was altered"),
        ("probe flipped", "was altered"),
        ("diagnostics flipped", "was altered"),
        ("diagnostics gone", "missing or not a regular file"),
        ("parameter listed twice", "listed twice"),
        ("parameter without values", "inconsistent"),
        ("foreign file", "foreign file"),
    ],
)
def test_every_damage_is_refused(folder: Path, name: str, fragment: str) -> None:
    tensors = folder / "tensors.safetensors"
    match name:
        case "manifest gone":
            (folder / "manifest.json").unlink()
        case "manifest empty":
            (folder / "manifest.json").write_text("")
        case "manifest of something else":
            edit(folder, schema="other")
        case "newer version":
            edit(folder, schema_version=99)
        case "version zero":
            edit(folder, schema_version=0)
        case "edited field":
            edit(folder, samples_sha256="1" * 64)
        case "tensors gone":
            tensors.unlink()
        case "tensors truncated":
            tensors.write_bytes(tensors.read_bytes()[:-10])
        case "one bit flipped":
            data = bytearray(tensors.read_bytes())
            data[len(data) // 2] ^= 4
            tensors.write_bytes(data)
        case "probe flipped":
            data = bytearray((folder / "probe.safetensors").read_bytes())
            data[-1] ^= 4
            (folder / "probe.safetensors").write_bytes(data)
        case "foreign file":
            manifest = json.loads((folder / "manifest.json").read_text())
            seal(folder, files={**manifest["files"], "../secret": {"sha256": "", "bytes": 0}})
        case "diagnostics flipped":
            data = bytearray((folder / "diagnostics.safetensors").read_bytes())
            data[-1] ^= 4
            (folder / "diagnostics.safetensors").write_bytes(data)
        case "diagnostics gone":
            (folder / "diagnostics.safetensors").unlink()
        case "parameter listed twice":
            listed = json.loads((folder / "manifest.json").read_text())["parameters"]
            seal(folder, parameters=[*listed, listed[0]])
        case "parameter without values":
            seal(folder, parameters=[{"name": "other.bias", "source_sha256": "0" * 64}])
    with pytest.raises(ArtifactError, match=fragment) as caught:
        load_artifact(folder)
    assert caught.value.hint


def test_a_site_without_scale_codes_or_range_is_refused(made: CalibrationArtifact) -> None:
    site = next(e.site for e in made.plan.of_role("weight"))
    good = made.params[site]
    assert good.codes is not None
    too_large = TensorParams(good.scale, np.full_like(good.codes, -128))
    wrong_length = TensorParams(good.scale[:-1], good.codes)
    for params, fragment in [(too_large, "codes span"), (wrong_length, "scales for codes")]:
        with pytest.raises(ArtifactError, match=fragment):
            replace(made, params={**made.params, site: params})
    missing = {k: v for k, v in made.params.items() if k != Site(site.module, "input")}
    with pytest.raises(ArtifactError, match="has no scale"):
        replace(made, params=missing)


@pytest.mark.parametrize(
    ("name", "value", "fragment"),
    [
        (BIAS, np.full(16, np.nan, np.float32), "16 values that are not finite"),
        (NORM, np.array([np.inf] + [0] * 15, np.float32), "1 values that are not finite"),
        (NORM, np.ones(16), "is float64"),
        (NORM, np.ones(0, np.float32), r"of shape \(0,\)"),
        (BIAS, np.ones(15, np.float32), r"of shape \(15,\).*only a bias of shape \(16,\)"),
        ("mid_block.attentions.0.to_q.weight", np.ones((16, 16), np.float32), "only a bias"),
    ],
)
def test_a_retrained_parameter_that_cannot_be_is_refused(
    made: CalibrationArtifact, name: str, value: Any, fragment: str
) -> None:
    with pytest.raises(ArtifactError, match=fragment) as caught:
        replace(made, parameters={name: RetrainedParameter(value, "0" * 64)})
    assert name in caught.value.message
    assert caught.value.hint


LARGE_MB, OWN_MB = 300, 100
"""Codes of the artifact, and what a process may take beside what it has: a manifest may have 64."""
COPY = """
import re, resource, sys
from pathlib import Path
from gacq_deploy.artifact.artifact import load_artifact

def own():
    return int(re.search(r"VmData:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10

bound = own() + (int(sys.argv[3]) << 20)
resource.setrlimit(resource.RLIMIT_DATA, (bound, bound))
load_artifact(Path(sys.argv[1])).save(Path(sys.argv[2]))
"""


def test_neither_loading_nor_saving_holds_the_codes_of_a_large_model(
    made: CalibrationArtifact, tmp_path: Path
) -> None:
    site = next(e.site for e in made.plan.of_role("weight") if e.site != BLOCKED)
    codes = np.zeros((LARGE_MB, 1 << 20), np.int8)  # pages of zeros that nobody wrote take no memory
    scale = np.ones(LARGE_MB, np.float32)
    large = replace(made, params={**made.params, site: TensorParams(scale, codes)}, parameters={})
    digest = large.save(tmp_path / "one")
    command = [sys.executable, "-c", COPY, tmp_path / "one", tmp_path / "two", str(OWN_MB)]
    subprocess.run(command, check=True)
    assert load_head(tmp_path / "two").manifest_digest == digest
