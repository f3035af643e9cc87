"""Who stands behind a run is checked before an engine is opened: sign, verify, run and load_denoiser."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from gacq_deploy.diffusers.load import load_denoiser
from gacq_deploy.errors import ArtifactError
from gacq_deploy.storage.files import TEMP_PREFIX
from gacq_deploy.storage.sealed import write_sealed
from tests.support.programs.commands import invoke, run_child
from tests.support.programs.keys import KeyFiles, write_keys


@pytest.fixture
def keys(tmp_path: Path) -> KeyFiles:
    return write_keys(tmp_path)


def _json(*arguments: object, code: int = 0) -> Any:
    done = invoke([*map(str, arguments), "--json"])
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


def _refused(run: Path, keys: KeyFiles, message: str, image: Path) -> None:
    """Every door is shut, with exit code 5, and nothing is written."""
    report = _json("verify", run, "--trusted-keys", keys.trusted, code=5)
    (link,) = (link for link in report["links"] if link["name"] == "signature")
    assert link["status"] == "fail"
    assert message in link["detail"]
    error = _json("run", run, "-n", 1, "-o", image, "--trusted-keys", keys.trusted, code=5)["error"]
    assert message in error["message"]
    assert not image.exists()
    with pytest.raises(ArtifactError, match="sign"):
        load_denoiser(run, trusted_keys=keys.trusted)


def test_a_signed_run_opens_to_whoever_trusts_the_key(run_copy: Path, keys: KeyFiles, tmp_path: Path) -> None:
    image = tmp_path / "image.png"
    assert _json("verify", run_copy)["links"][-1]["status"] == "absent"
    _refused(run_copy, keys, "is not signed", image)

    signed = _json("sign", run_copy, "--key", keys.key)
    assert signed["file"] == str(run_copy / "signature.json")
    assert {"recipe.yaml", "artifact/manifest.json", "onnx/manifest.json", "parity.json"} <= set(
        signed["files"]
    )
    bytes_of_it = (run_copy / "signature.json").read_bytes()
    assert _json("sign", run_copy, "--key", keys.key) == signed
    assert (run_copy / "signature.json").read_bytes() == bytes_of_it

    *_, sentence, last = invoke(["sign", str(run_copy), "--key", str(keys.key)]).stdout.splitlines()
    assert f"with key {signed['key']}" in sentence
    assert last.startswith("Next: gacq-deploy")
    in_model = run_copy / "model" / "vae" / "config.json"
    in_model.parent.mkdir(parents=True)
    in_model.write_text("{}")
    assert _json("verify", run_copy, code=5)["links"][-1]["path"] == str(in_model), (
        "it is not signed, or unchecked"
    )
    assert str(in_model.relative_to(run_copy)) in _json("sign", run_copy, "--key", keys.key)["files"]
    for options in ([], ["--trusted-keys", keys.trusted]):
        link = _json("verify", run_copy, *options)["links"][-1]
        assert link["status"] == "ok"
        assert signed["key"] in link["detail"]
    run = ["run", run_copy, "-n", 1, "--steps", 2, "--threads", 1, "-o", image]
    _json(*run, "--trusted-keys", keys.trusted)
    assert image.is_file()
    with load_denoiser(run_copy, trusted_keys=keys.trusted) as denoiser:
        assert denoiser.config

    image.unlink()
    _refused(run_copy, write_keys(tmp_path, "other"), "signed with key", image)
    # who may write in the run may seal again what he changed: a digest does not help, the signature does
    parity = json.loads((run_copy / "parity.json").read_bytes())
    del parity["digest"]
    write_sealed(run_copy / "parity.json", {**parity, "noise_floor": {}})
    _refused(run_copy, keys, "Signed file", image)


BAD_KEYS = {
    "missing": ("no.pem", "cannot be read"),
    "open": ("open.pem", "may be read by others"),
    "inside": ("run/key.pem", "lies in the run"),
    "text": ("run/recipe.yaml", "no PEM"),
}


@pytest.mark.parametrize("case", BAD_KEYS)
def test_a_bad_key_signs_nothing(case: str, run_copy: Path, keys: KeyFiles, tmp_path: Path) -> None:
    name, message = BAD_KEYS[case]
    shutil.copy(keys.key, tmp_path / "open.pem")
    shutil.copy(keys.key, run_copy / "key.pem")
    (tmp_path / "open.pem").chmod(0o644)
    before = {path.name for path in run_copy.iterdir()}
    error = _json("sign", run_copy, "--key", tmp_path / name, code=2)["error"]
    assert message in error["message"]
    assert error["hint"]
    assert {path.name for path in run_copy.iterdir()} == before
    if case == "inside":
        name = "run/trusted.pem"
        shutil.copy(keys.trusted, tmp_path / name)
    if case != "open":  # a public key may be
        assert _json("verify", run_copy, "--trusted-keys", tmp_path / name, code=2)["error"]["hint"]


@pytest.mark.parametrize("name", ["a/b", "../recipe.yaml", "/etc/hostname", "", "."])
def test_a_manifest_that_names_a_place_elsewhere_is_a_fault_of_the_run(
    name: str, run_copy: Path, keys: KeyFiles
) -> None:
    path = run_copy / "onnx" / "manifest.json"
    body = json.loads(path.read_bytes())
    del body["digest"]
    body["files"][name] = {"sha256": "0" * 64, "bytes": 0}
    write_sealed(path, body)
    links = {link["name"]: link for link in _json("verify", run_copy, code=5)["links"]}
    assert links["graphs"]["status"] == "fail"
    assert "foreign file" in _json("sign", run_copy, "--key", keys.key, code=5)["error"]["message"]


def test_what_is_not_intact_is_not_signed(run_copy: Path, keys: KeyFiles) -> None:
    graph = run_copy / "onnx" / "int8.onnx"
    graph.write_bytes(graph.read_bytes() + b"\0")
    error = _json("sign", run_copy, "--key", keys.key, code=5)["error"]
    assert str(graph) in error["message"]
    shutil.rmtree(run_copy / "onnx")
    shutil.rmtree(run_copy / "engines", ignore_errors=True)
    (run_copy / "parity.json").unlink()
    assert "no graph was exported" in _json("sign", run_copy, "--key", keys.key, code=5)["error"]["message"]
    assert not [p for p in run_copy.iterdir() if p.name.startswith((TEMP_PREFIX, "signature"))]


def test_without_the_library_the_pip_line_is_named(run_copy: Path, keys: KeyFiles) -> None:
    missing = "import sys; sys.modules['cryptography'] = None"
    assert run_child(["verify", str(run_copy)], before=missing).returncode == 0
    done = run_child(["sign", str(run_copy), "--key", str(keys.key)], before=missing)
    assert done.returncode == 4, done.stderr
    assert "pip install 'gacq-deploy[sign]'" in done.stderr
