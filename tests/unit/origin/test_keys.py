"""A file of keys is read as what it is, or refused with what it holds instead and what to do."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa, x25519
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gacq_deploy.errors import UsageError
from gacq_deploy.origin.keys import is_signed_by, read_signing_key, read_trusted_keys
from tests.support.programs.keys import write_keys

ROOT = Path(__file__).resolve().parents[3]
OTHER_KINDS = {
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ed448": ed448.Ed448PrivateKey.generate,
    "x25519": x25519.X25519PrivateKey.generate,
}
READERS = {"key": read_signing_key, "trusted keys": read_trusted_keys}


def test_what_a_key_signs_its_public_half_knows(tmp_path: Path) -> None:
    files = write_keys(tmp_path)
    key, trusted = read_signing_key(files.key), read_trusted_keys(files.trusted)
    assert trusted.keys == {key.public}
    signature = key.sign(b"text")
    assert signature == key.sign(b"text")
    assert is_signed_by(key.public, signature, b"text")
    assert not is_signed_by(key.public, signature, b"texT")
    assert not is_signed_by(read_signing_key(write_keys(tmp_path, "other").key).public, signature, b"text")
    assert "PrivateKey" not in repr(key)


def test_a_file_holds_several_trusted_keys_with_text_between_them(tmp_path: Path) -> None:
    keys = [write_keys(tmp_path, name) for name in ("one", "two", "three")]
    together = tmp_path / "all.pem"
    together.write_bytes(b"".join(b"# of %d\r\n" % i + k.trusted.read_bytes() for i, k in enumerate(keys)))
    assert read_trusted_keys(together).keys == {read_signing_key(k.key).public for k in keys}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_a_key_of_another_kind_is_refused(kind: str, tmp_path: Path) -> None:
    files = write_keys(tmp_path, key=OTHER_KINDS[kind]())
    with pytest.raises(UsageError, match="no ed25519 key"):
        read_signing_key(files.key)
    with pytest.raises(UsageError, match="no ed25519 key"):
        read_trusted_keys(files.trusted)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o666, 0o610])
def test_a_key_that_others_may_read_is_refused(mode: int, tmp_path: Path) -> None:
    path = write_keys(tmp_path).key
    path.chmod(mode)
    with pytest.raises(UsageError, match=f"mode {mode:04o}") as caught:
        read_signing_key(path)
    assert f"chmod 600 {path}" in caught.value.hint


def test_the_halves_of_a_key_are_not_taken_for_each_other(tmp_path: Path) -> None:
    files = write_keys(tmp_path)
    with pytest.raises(UsageError, match="holds a PUBLIC KEY, no PRIVATE KEY"):
        read_signing_key(files.trusted)
    with pytest.raises(UsageError, match="holds a PRIVATE KEY") as caught:
        read_trusted_keys(files.key)
    assert str(files.key) not in caught.value.hint, "nothing that overwrites the key"


def _encrypted(path: Path) -> None:
    text = write_keys(path.parent).key.read_text()
    path.write_text(text.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY"))


def _cut_off(path: Path) -> None:
    path.write_bytes(write_keys(path.parent).key.read_bytes()[:60])


def _two_keys(path: Path) -> None:
    path.write_bytes(write_keys(path.parent).key.read_bytes() * 2)


def _altered(path: Path) -> None:
    path.write_bytes(write_keys(path.parent).key.read_bytes().replace(b"MC4C", b"MD4C"))


def test_a_key_may_come_through_a_pipe(tmp_path: Path) -> None:
    files = write_keys(tmp_path)
    source, sink = os.pipe()
    with os.fdopen(sink, "wb") as pipe:
        pipe.write(files.key.read_bytes())
    try:
        key = read_signing_key(Path(f"/dev/fd/{source}"))
    finally:
        os.close(source)
    assert read_trusted_keys(files.trusted).keys == {key.public}


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "encrypted": (_encrypted, "is encrypted"),
    "cut off": (_cut_off, "has no end"),
    "two keys": (_two_keys, "holds 2 keys"),
    "altered": (_altered, "cannot be read"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_key_is_refused(case: str, tmp_path: Path) -> None:
    damage, message = DAMAGE[case]
    path = tmp_path / "damaged.pem"
    damage(path)
    path.chmod(0o600)
    with pytest.raises(UsageError, match=message):
        read_signing_key(path)
    with pytest.raises(UsageError):
        read_trusted_keys(path)


PLACES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (os.fspath, "No such file"),
    "folder": (Path.mkdir, "Is a directory"),
    "loop": (lambda path: path.symlink_to(path), "Too many levels"),
    "device": (lambda path: path.symlink_to("/dev/null"), "not a regular file"),
    "pipe that nobody writes": (os.mkfifo, "holds no key"),
    "empty": (Path.touch, "holds no key"),
    "large": (lambda path: path.write_bytes(bytes(2**17)), "131072 bytes"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("place", PLACES)
def test_what_is_no_file_of_keys_is_refused(place: str, reader: str, tmp_path: Path) -> None:
    make, message = PLACES[place]
    path = tmp_path / "keys.pem"
    make(path)
    with pytest.raises(UsageError, match=message) as caught:
        READERS[reader](path)
    assert str(path) in caught.value.message
    assert caught.value.hint


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_mutation_of_a_file_of_keys_is_a_bug(data: st.DataObject, tmp_path: Path) -> None:
    files = write_keys(tmp_path)
    for reader, path in zip(READERS.values(), files, strict=True):
        text = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(bytes(text))
        with suppress(UsageError):
            reader(path)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_the_documented_commands_make_keys(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "signing.md").read_text(encoding="utf-8")
    lines = re.findall(r"^openssl .*$", page, re.MULTILINE)
    assert len(lines) == 2
    for line in lines:
        subprocess.run(line, shell=True, cwd=tmp_path, check=True, capture_output=True)
    key = read_signing_key(tmp_path / "key.pem")
    assert read_trusted_keys(tmp_path / "trusted.pem").keys == {key.public}
