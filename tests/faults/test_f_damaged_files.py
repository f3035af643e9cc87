"""Group F: every kind of file, damaged in every way, is refused by its digest before a parser sees it (exit 5)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gacq_deploy.artifact import artifact
from gacq_deploy.artifact.artifact import load_artifact
from gacq_deploy.build_trt import open as build_trt_open
from gacq_deploy.build_trt.manifest import engines_of
from gacq_deploy.build_trt.open import open_model
from gacq_deploy.errors import ArtifactError
from gacq_deploy.export.record import load_export
from gacq_deploy.inspection.verify import verify_run
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.samples import calibration_set
from gacq_deploy.samples.calibration_set import load_samples
from gacq_deploy.storage import arrays, records
from gacq_deploy.storage.digests import digest_file
from gacq_deploy.storage.sealed import write_sealed

Reader = Callable[[RunDirectory], object]


def _engines(run: RunDirectory) -> object:
    return list(engines_of(run))


KINDS: dict[str, tuple[str, Reader]] = {
    "tensors": ("artifact/tensors.safetensors", lambda run: load_artifact(run.artifact)),
    "artifact manifest": ("artifact/manifest.json", lambda run: load_artifact(run.artifact)),
    "export manifest": ("onnx/manifest.json", load_export),
    "graph": ("onnx/int8.onnx", load_export),
    "external data": ("onnx/int8.onnx.data", load_export),
    "engine": ("engines/*/engine.plan", _engines),
}
"""Kind of file -> where it lies, and who reads it first."""


def _flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: data[:0],
    "half": lambda data: data[: len(data) // 2],
    "all but 1 %": lambda data: data[: min(len(data) * 99 // 100, len(data) - 1)],
    "random": lambda data: np.random.default_rng(0).bytes(len(data)),
    "a bit of the head": lambda data: _flipped(data, 2),
    "a bit of the body": lambda data: _flipped(data, len(data) * 2 // 3),
    "another version": lambda data: (
        data.replace(b'/1"', b'/9"').replace(b'version": 1', b'version": 9')
        if data[:1] == b"{"
        else data + b"\0"
    ),
    "foreign": lambda data: data[:0] + b'{"hello": "of another program"}',
}
"""Way of damage -> what is left of the file."""


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_f(kind: str, damage: str, run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    place, read = KINDS[kind]
    path = next(run.root.glob(place))
    data = DAMAGES[damage](path.read_bytes())
    assert data != path.read_bytes()
    path.write_bytes(data)
    if damage == "another version" and path.suffix == ".json":
        document = json.loads(data)
        document.pop("digest")
        beside = {"build": document.pop("build")} if "build" in document else {}
        write_sealed(path, document, beside)
    if path.suffix == ".safetensors":
        # whose digest is wrong is not parsed
        monkeypatch.setattr(arrays, "array_places", lambda _: pytest.fail("it was parsed"))
    with pytest.raises(ArtifactError) as caught:
        read(run)
    assert path.name in caught.value.message or str(path.parent) in caught.value.message
    assert caught.value.hint
    if damage == "another version" and path.suffix == ".json":
        newer = (
            "has schema version 9"
            if kind == "artifact manifest"
            else "not an export manifest of this version"
        )
        assert newer in caught.value.message
    broken = [link for link in verify_run(run).links if link.status == "fail"]
    assert any(path.name in link.detail or str(path.parent) in link.detail for link in broken)
    assert path.read_bytes() == data or path.suffix == ".json", "it is left for whoever wants to look at it"


@pytest.mark.parametrize("kind", ["artifact manifest", "export manifest", "engine manifest"])
def test_a_manifest_that_lists_nothing_vouches_for_nothing(kind: str, run: RunDirectory) -> None:
    place, read = {**KINDS, "engine manifest": ("engines/*/manifest.json", _engines)}[kind]
    path: Path = next(run.root.glob(place))
    document = json.loads(path.read_bytes())
    for beside in ("digest", "build"):
        document.pop(beside, None)
    write_sealed(path, {**document, "files": {}})
    with pytest.raises(ArtifactError, match="does not list"):
        read(run)


def test_every_file_is_checked_or_listed_with_the_reason(run: RunDirectory) -> None:
    """Whatever lies in a run: a bit of it flipped is a fault, or it stands among what is not checked."""
    (run.root / "NOTES.txt").write_text("mine")
    (run.root / "artifact" / "more").mkdir()
    (run.root / "artifact" / "more" / "a.txt").write_text("mine")
    (run.root / "link").symlink_to(run.root / "NOTES.txt")
    (run.root / "recipe.yaml.1").write_text("name: old")
    (run.root / ".gacq-tmp-1-x").write_text("half")
    before = verify_run(run)
    listed = {link.detail.partition(":")[0] for link in before.links if link.status == "unchecked"}
    assert listed == {"NOTES.txt", "artifact/more/a.txt", "link", "recipe.yaml.1", ".gacq-tmp-1-x"}
    failed = {link.name for link in before.links if link.status == "fail"}
    for path in sorted(p for p in run.root.rglob("*") if p.is_file() and not p.is_symlink()):
        name = path.relative_to(run.root).as_posix()
        if name in {*listed, ".gacq-lock", ".gacq-run"}:
            continue
        data = path.read_bytes()
        path.write_bytes(_flipped(data, len(data) // 2))
        now = {link.name: link for link in verify_run(run).links}
        path.write_bytes(data)
        told = {link for link in now.values() if link.status == "fail" and link.name not in failed}
        assert told or any(path.name in link.detail for link in now.values()), name


@pytest.mark.parametrize(
    "place", ["onnx/int8.cpu.onnx", "samples.safetensors", "artifact/tensors.safetensors"]
)
@pytest.mark.parametrize("moment", ["before it is opened", "while it is open"])
def test_what_is_swapped_after_the_check_is_noticed(
    place: str, moment: str, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody who may write there waits for the check, and then puts another file in the place."""
    path = run.root / place
    openers: dict[str, tuple[object, str, Callable[[], object]]] = {
        "onnx/int8.cpu.onnx": (
            build_trt_open, "open_engine", lambda: open_model("ort-cpu", run.cpu_onnx)
        ),
        "samples.safetensors": (
            calibration_set, "safe_open", lambda: load_samples(path, sha256=digest_file(path))
        ),
        "artifact/tensors.safetensors": (arrays, "array_places", lambda: load_artifact(run.artifact)),
    }  # fmt: skip
    module, name, use = openers[place]
    opened = getattr(module, name)

    def swap() -> None:
        other = path.with_suffix(".other")
        data = path.read_bytes()
        other.write_bytes(_flipped(data, len(data) * 2 // 3))
        other.replace(path)

    def opening(*args: object, **more: object) -> object:
        if moment == "while it is open":
            swap()
        return opened(*args, **more)

    monkeypatch.setattr(module, name, opening)
    if moment == "before it is opened":
        if place == "artifact/tensors.safetensors":
            checked = records.verify_listed

            def then_swap(*args: object, **more: object) -> None:
                checked(*args, **more)  # type: ignore[arg-type]
                swap()

            monkeypatch.setattr(artifact, "verify_listed", then_swap)
        else:
            sha256 = digest_file(path)
            swap()
            if place == "samples.safetensors":
                use = lambda: load_samples(path, sha256=sha256)  # noqa: E731
    with pytest.raises(ArtifactError, match="altered"):
        use()
