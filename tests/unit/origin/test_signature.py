"""A signed run holds what was signed, all of it and nothing else; anything else is refused in words."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gacq_deploy.errors import ArtifactError, UsageError
from gacq_deploy.origin.check import check_origin, require_origin, signing_key, trusted_keys
from gacq_deploy.origin.signature import RunSignature, load_signature, production_files
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.storage.digests import describe_file
from gacq_deploy.storage.files import write_json
from gacq_deploy.storage.records import ListedFile
from gacq_deploy.storage.sealed import write_sealed
from tests.support.programs.keys import KeyFiles, write_keys

KEY = "0123456789abcdef"
SIGNED = (
    "recipe.yaml",
    "artifact/manifest.json",
    "artifact/tensors.safetensors",
    "onnx/manifest.json",
    "onnx/int8.onnx",
    "onnx/int8.onnx.data",
    "engines/order.json",
    f"engines/{KEY}/manifest.json",
    f"engines/{KEY}/engine.plan",
    "model/vae/config.json",
    "parity.json",
)
OTHERS = ("bench.json", "report.html", "samples.safetensors", "work/checkpoint.json", "NOTES.txt")
"""What production does not read."""


def _make(root: Path) -> RunDirectory:
    for name in (*SIGNED, *OTHERS):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{root.name} {name}")
    return RunDirectory(root)


def _sign(run: RunDirectory, files: KeyFiles, **changes: Any) -> RunSignature:
    key = signing_key(files.key)
    described = {name: ListedFile(**describe_file(path)) for name, path in production_files(run).items()}
    unsigned = RunSignature(key=key.public, files=described)
    signed = unsigned.model_copy(update={"signature": key.sign(unsigned.message), **changes})
    signed.save(run.signature_json)
    return signed


@pytest.fixture
def keys(tmp_path: Path) -> KeyFiles:
    return write_keys(tmp_path)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return _make(tmp_path / "run")


def _refused(run: RunDirectory, keys: KeyFiles) -> str:
    with pytest.raises(ArtifactError) as caught:
        require_origin(run, keys.trusted)
    assert caught.value.hint
    return caught.value.message


def test_a_signed_run_is_taken(run: RunDirectory, keys: KeyFiles) -> None:
    signed = _sign(run, keys)
    assert tuple(sorted(SIGNED)) == tuple(sorted(signed.files))
    assert check_origin(run, trusted_keys(keys.trusted, run)) == signed == load_signature(run)
    require_origin(run, None)


@pytest.mark.parametrize("name", OTHERS)
def test_what_production_does_not_read_may_change(name: str, run: RunDirectory, keys: KeyFiles) -> None:
    _sign(run, keys)
    (run.root / name).unlink()
    require_origin(run, keys.trusted)


def _append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def _outside(path: Path) -> Path:
    root = next(folder for folder in path.parents if folder.name == "run")
    return root.with_name("outside")


def _link(path: Path) -> None:
    path.symlink_to(path.rename(_outside(path)))


def _hard_link(path: Path) -> None:
    os.link(path, _outside(path))


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "longer": _append,
    "a bit": _flip,
    "missing": Path.unlink,
    "link": _link,
    "hard link": _hard_link,
    "pipe": _pipe,
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", SIGNED)
def test_a_changed_file_is_refused_by_its_path(
    name: str, damage: str, run: RunDirectory, keys: KeyFiles
) -> None:
    _sign(run, keys)
    DAMAGE[damage](run.root / name)
    assert str(run.root / name) in _refused(run, keys) or f"engines/{KEY}" in name


ADDED = (
    "artifact/probe.safetensors",
    "onnx/float.onnx",
    "model/vae/weights.safetensors",
    "engines/f0/manifest.json",
)


@pytest.mark.parametrize("name", ADDED)
def test_a_file_that_came_after_the_signature_is_refused(
    name: str, run: RunDirectory, keys: KeyFiles
) -> None:
    _sign(run, keys)
    (run.root / name).parent.mkdir(exist_ok=True)
    (run.root / name).write_text("new")
    assert f"{run.root / name} is not signed" in _refused(run, keys)


def test_a_linked_folder_in_the_model_is_refused(run: RunDirectory, keys: KeyFiles, tmp_path: Path) -> None:
    _sign(run, keys)
    (tmp_path / "elsewhere").mkdir()
    (run.model / "text_encoder").symlink_to(tmp_path / "elsewhere")
    assert "text_encoder is not signed" in _refused(run, keys)


def test_a_run_that_is_not_signed_is_refused(run: RunDirectory, keys: KeyFiles) -> None:
    message = _refused(run, keys)
    assert "is not signed" in message
    assert str(run.signature_json) in message


@pytest.mark.parametrize("damage", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("nowhere")])
def test_a_signature_that_is_no_file_is_refused(
    damage: Callable[[Path], object], run: RunDirectory, keys: KeyFiles
) -> None:
    damage(run.signature_json)
    assert f"Signature {run.signature_json}" in _refused(run, keys) or not run.signature_json.exists()


def test_keys_that_lie_in_the_run_do_not_judge_it(run: RunDirectory, keys: KeyFiles, tmp_path: Path) -> None:
    _sign(run, keys)
    inside = run.root / "trusted.pem"
    inside.write_bytes(keys.trusted.read_bytes())
    (tmp_path / "link.pem").symlink_to(inside)
    (tmp_path / "loop.pem").symlink_to(tmp_path / "loop.pem")
    with pytest.raises(UsageError, match="cannot be read"):
        require_origin(run, tmp_path / "loop.pem")
    for path in (inside, tmp_path / "link.pem"):
        with pytest.raises(UsageError, match="lie in the run"):
            require_origin(run, path)


def test_a_key_that_is_not_trusted_is_refused(run: RunDirectory, keys: KeyFiles, tmp_path: Path) -> None:
    signed = _sign(run, write_keys(tmp_path, "other"))
    message = _refused(run, keys)
    assert f"signed with key {signed.key[:16]}" in message
    assert str(keys.trusted) in message


def test_a_trusted_key_written_over_another_signature_is_refused(
    run: RunDirectory, keys: KeyFiles, tmp_path: Path
) -> None:
    _sign(run, write_keys(tmp_path, "other"), key=signing_key(keys.key).public)
    assert "forged or altered" in _refused(run, keys)


def test_files_written_over_a_trusted_signature_are_refused(run: RunDirectory, keys: KeyFiles) -> None:
    signed = _sign(run, keys)
    _append(run.int8_onnx)
    forged = {**signed.files, "onnx/int8.onnx": ListedFile(**describe_file(run.int8_onnx))}
    signed.model_copy(update={"files": forged}).save(run.signature_json)
    assert "forged or altered" in _refused(run, keys)


def test_the_signature_of_another_run_is_refused(run: RunDirectory, keys: KeyFiles, tmp_path: Path) -> None:
    other = _make(tmp_path / "other")
    _sign(other, keys)
    run.signature_json.write_bytes(other.signature_json.read_bytes())
    assert "the signature of another run" in _refused(run, keys)


WRONG: dict[str, dict[str, Any]] = {
    "schema": {"schema": "gacq-deploy/signature/2"},
    "algorithm": {"algorithm": "none"},
    "key": {"key": "f" * 63},
    "signature": {"signature": "g" * 128},
    "files": {"files": []},
    "entry": {"files": {"recipe.yaml": {"sha256": 1, "bytes": 2}}},
    "foreign": {"note": "x"},
}


@pytest.mark.parametrize("case", WRONG)
def test_a_record_of_another_form_is_refused(case: str, run: RunDirectory, keys: KeyFiles) -> None:
    body = _sign(run, keys).model_dump(mode="json", by_alias=True)
    write_sealed(run.signature_json, {**body, **WRONG[case]})
    assert str(run.signature_json) in _refused(run, keys)


def test_an_empty_signature_is_refused(run: RunDirectory, keys: KeyFiles) -> None:
    _sign(run, keys, signature="")
    assert "forged or altered" in _refused(run, keys)


def test_a_record_without_its_digest_is_refused(run: RunDirectory, keys: KeyFiles) -> None:
    document = json.loads(_sign(run, keys).model_dump_json(by_alias=True))
    write_json(run.signature_json, document)
    assert "states no digest" in _refused(run, keys)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_change_of_the_signature_file_passes(
    data: st.DataObject, run: RunDirectory, keys: KeyFiles
) -> None:
    signed = _sign(run, keys)
    text = bytearray(run.signature_json.read_bytes())
    place = data.draw(st.integers(0, len(text) - 1))
    # what JSON reads as the same is the same; ASCII, for text of another encoding is the reader's business
    text[place] = data.draw(st.integers(32, 126).filter(lambda byte: byte != text[place]))
    run.signature_json.write_bytes(bytes(text))
    with suppress(ArtifactError):
        require_origin(run, keys.trusted)
        assert load_signature(run) == signed


def test_a_name_that_is_no_utf_8_is_refused(run: RunDirectory, keys: KeyFiles) -> None:
    _sign(run, keys)
    (run.model / os.fsdecode(b"bad\xff")).write_text("x")
    assert "no UTF-8" in _refused(run, keys)
