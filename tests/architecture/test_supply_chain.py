"""Is everything that is shipped known by version and hash, and is a release built on nothing else?"""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from docker.lock import EXTRAS, LOCK, MACHINES, read_lock

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
PINS = {
    canonicalize_name(name): version
    for name, version in re.findall(
        r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE
    )
}
FLOORS = {"onnxruntime": "1.24", "onnxruntime-gpu": "1.24", "sentencepiece": "0.2.1", "onnx": "1.21"}
"""Below these a hole is known."""


def _requirements() -> list[Requirement]:
    project, groups = PROJECT["project"], PROJECT["dependency-groups"]
    lines = [*project["dependencies"]]
    for group in (*project["optional-dependencies"].values(), *groups.values()):
        lines += group
    return [Requirement(line) for line in lines]


def _closure(names: Iterable[str], extra: str = "") -> set[str]:
    """Return packages and all that they need, as the environment says it."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        found.add(name)
        needed = [Requirement(line) for line in requires(name) or ()]
        waiting += [r.name for r in needed if r.marker is None or r.marker.evaluate({"extra": extra})]
    return found


@pytest.mark.parametrize("name", FLOORS)
def test_no_extra_admits_a_version_with_a_known_hole(name: str) -> None:
    asked = [r for r in _requirements() if canonicalize_name(r.name) == name]
    assert asked
    for requirement in asked:
        (floor,) = (s.version for s in requirement.specifier if s.operator == ">=")
        assert Version(floor) >= Version(FLOORS[name]), requirement


def test_everything_that_the_extras_bring_is_pinned() -> None:
    missing = set()
    for requirement in _requirements():
        try:
            missing |= _closure([requirement.name]) - PINS.keys()
        except PackageNotFoundError:
            continue  # libraries of a GPU, where they are not installed
    assert not missing


def _locked(requirements: Iterable[str]) -> set[str]:
    return _closure(Requirement(line).name for line in requirements)


def test_the_release_image_installs_the_pinned_packages_by_their_hashes() -> None:
    project = PROJECT["project"]
    extras = [line for name in EXTRAS for line in project["optional-dependencies"][name]]
    expected = {
        LOCK: _locked([*project["dependencies"], *extras]),
        LOCK.with_name("build.txt"): _locked(PROJECT["build-system"]["requires"]),
    }
    for path, names in expected.items():
        entries = list(read_lock(path))
        assert {name for name, *_ in entries} == names, f"{path}: make lock"
        assert len(entries) == path.read_text().count("=="), "every line is read"
        for name, version, hashes in entries:
            assert version == PINS[name], f"{path}: make lock"
            assert 1 <= len(set(hashes)) == len(hashes) <= len(MACHINES)


def test_a_release_takes_packages_by_their_hashes_only() -> None:
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)
    for stage, installs in (("AS wheel\n", 1), ("AS release-environment\n", 1)):
        (text,) = (s for s in stages if stage in s)
        commands = [c for c in re.split(r"&&|\nRUN ", text) if re.search(r"pip\S* (.* )?(install|wheel) ", c)]
        assert sum("--require-hashes" in c for c in commands) == installs
        assert all("--require-hashes" in c or "--no-index" in c for c in commands)


def test_every_base_is_an_argument() -> None:
    bases = re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.MULTILINE)
    stages = {name for _, name in bases}
    assert {base for base, _ in bases} - stages == {"${PYTHON_IMAGE}", "${CUDA_IMAGE}"}


DIGEST = "ab" * 32


@pytest.mark.parametrize(
    ("base", "is_taken"),
    [
        (f"python@sha256:{DIGEST}", True),
        (f"host.example:5000/team/python:3.11@sha256:{DIGEST}", True),
        ("python:3.11-slim-bookworm", False),
        ("", False),
        ("python@sha256:", False),
        (f"python@sha256:{DIGEST[:-1]}", False),
        (f"python@sha256:{DIGEST}0", False),
        (f"python@sha256:{DIGEST.upper()}", False),
        (f"python:sha256-{DIGEST}", False),
        (f"python@sha512:{DIGEST}", False),
    ],
)
def test_a_release_demands_a_base_known_by_its_digest(base: str, is_taken: bool) -> None:
    stage = DOCKERFILE.partition("AS release-environment\n")[2].partition("\nFROM ")[0]
    assert re.search(r"^ARG PYTHON_IMAGE$", stage, re.MULTILINE)
    (command,) = re.findall(r"^RUN (expr (?:.*\\\n)*.*)", stage, re.MULTILINE)
    done = subprocess.run(
        ["/bin/sh", "-c", command], env={"PYTHON_IMAGE": base, "PATH": "/usr/bin:/bin"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (done.returncode == 0) == is_taken
    if not is_taken:
        assert f"PYTHON_IMAGE is '{base}'" in done.stderr
        assert "@sha256:DIGEST" in done.stderr
