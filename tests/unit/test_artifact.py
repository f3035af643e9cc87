"""An artifact is whole, verified before it is parsed, and every published version still loads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gacq_deploy import artifact as artifact_module
from gacq_deploy.artifact import CalibrationArtifact, load_artifact
from gacq_deploy.errors import ArtifactError
from gacq_deploy.spec import Site, TensorParams
from gacq_deploy.storage import canonical_json, digest_json
from tests.support.tiny import tiny_artifact, tiny_denoiser

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def made() -> CalibrationArtifact:
    return tiny_artifact(tiny_denoiser())


@pytest.fixture
def folder(made: CalibrationArtifact, tmp_path: Path) -> Path:
    made.save(tmp_path / "artifact")
    return tmp_path / "artifact"


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
    digests = {made.save(folder.parent / f"again{i}") for i in range(3)}
    assert digests == {loaded.manifest_digest}


def test_times_and_hosts_are_covered_by_no_digest(made: CalibrationArtifact, tmp_path: Path) -> None:
    assert replace(made, build={"host": "a"}).save(tmp_path / "a") == replace(made, build={"host": "b"}).save(
        tmp_path / "b"
    )


@pytest.mark.parametrize("version", sorted(p.name for p in GOLDEN.glob("artifact-v*")))
def test_every_published_version_loads(version: str) -> None:
    loaded = load_artifact(GOLDEN / version)
    expected = json.loads((GOLDEN / f"expected-{version}.json").read_text())
    assert {str(s): float(p.scale.sum()) for s, p in loaded.params.items()} == pytest.approx(expected)


def test_there_is_a_golden_copy_of_the_current_version() -> None:
    assert (GOLDEN / f"artifact-v{artifact_module.SCHEMA_VERSION}").is_dir()


def test_older_versions_are_migrated_step_by_step(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rename(manifest: dict[str, object]) -> dict[str, object]:
        body = {k: v for k, v in manifest.items() if k not in ("digest", "build", "old_name")}
        body["samples_sha256"] = manifest["old_name"]
        body["schema_version"] = 2
        return {**body, "digest": digest_json(body)}

    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["old_name"] = manifest.pop("samples_sha256")
    path.write_bytes(canonical_json(manifest))
    monkeypatch.setattr(artifact_module, "SCHEMA_VERSION", 2)
    monkeypatch.setitem(artifact_module.MIGRATIONS, 1, rename)
    assert load_artifact(folder).samples_sha256 == "0" * 64


def edit(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text()) | changes
    path.write_bytes(canonical_json(manifest))


@pytest.mark.parametrize(
    ("name", "fragment"),
    [
        ("manifest gone", "missing"),
        ("manifest empty", "not readable JSON"),
        ("manifest of something else", "not an artifact manifest"),
        ("newer version", "reads up to"),
        ("version zero", "schema version 0"),
        ("edited field", "digest differs"),
        ("tensors gone", "missing or not a regular file"),
        ("tensors truncated", "truncated or altered"),
        ("one bit flipped", "was altered"),
        ("probe flipped", "was altered"),
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
            manifest["files"]["../secret"] = {"sha256": "", "bytes": 0}
            body = {k: v for k, v in manifest.items() if k not in ("digest", "build")}
            edit(folder, files=manifest["files"], digest=digest_json(body))
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
