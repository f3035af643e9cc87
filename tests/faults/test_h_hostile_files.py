"""Group H: a file of somebody else that would run code, reach outside or never end is refused; nothing of it runs."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.storage.digests import describe_file, digest_file
from gacq_deploy.storage.sealed import write_sealed
from tests.faults.matrix import HOSTILE_FILES
from tests.support.programs.commands import invoke

Scene = tuple[RunDirectory, Path, Path]
"""A finished run, a model folder, and a file that appears where code ran."""
Case = tuple[Callable[[Scene], list[str]], int, str]
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
CALLS = "name: !!python/object/apply:os.mkdir [{canary}]"
"""YAML that makes a folder where its tags are taken."""


class _Touches:
    """Makes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.canary,)


def _calibrate(model: Path) -> list[str]:
    return ["calibrate", "--dry-run", "--model", str(model), "-o", str(model.with_name("new"))]


def _pickled_weights(scene: Scene) -> list[str]:
    _, model, canary = scene
    (model / WEIGHTS).write_bytes(pickle.dumps(_Touches(canary)))
    return _calibrate(model)


def _pickle(scene: Scene) -> list[str]:
    words = _pickled_weights(scene)
    model = scene[1]
    (model / WEIGHTS).rename((model / WEIGHTS).with_suffix(".bin"))
    return words


def _npz(scene: Scene) -> list[str]:
    """In the place of the samples, with the record that vouches for it."""
    run, _, canary = scene
    with (run.root / "samples.safetensors").open("wb") as file:
        np.savez(file, latents=np.array([_Touches(canary)], dtype=object))
    record = json.loads((run.root / "samples.json").read_text())
    sha256 = digest_file(run.root / "samples.safetensors")
    (run.root / "samples.json").write_text(json.dumps({**record, "sha256": sha256}))
    return ["calibrate", "-r", str(run.root / "recipe.yaml"), "-o", str(run.root)]


def _traversal(scene: Scene) -> list[str]:
    """The file outside is whole, and listed with its digest."""
    run, model, _ = scene
    path = run.artifact / "manifest.json"
    document = json.loads(path.read_text())
    build = document.pop("build")
    document.pop("digest")
    outside = model.with_name("secret")
    outside.write_bytes(b"of mine")
    files = {**document["files"], "../../secret": describe_file(outside)}
    write_sealed(path, {**document, "files": files}, {"build": build})
    return ["inspect", str(run.root)]


def _recipe(text: Callable[[Path], str]) -> Callable[[Scene], list[str]]:
    def make(scene: Scene) -> list[str]:
        _, model, canary = scene
        path = model.with_name("theirs.yaml")
        path.write_text(text(canary))
        return ["recipes", "validate", str(path)]

    return make


def _bomb(_: Path) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 7)]
    return "\n".join(lines)


def _own_code(scene: Scene) -> list[str]:
    _, model, canary = scene
    path = model / "unet/config.json"
    entries = {**json.loads(path.read_text()), "auto_map": {"AutoModel": "evil.Model"}}
    path.write_text(json.dumps(entries))
    for folder in (model, model / "unet"):
        (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w')\nclass Model: pass\n")
    return _calibrate(model)


CASES: dict[str, Case] = {
    "pickle named .safetensors": (_pickled_weights, 5, "truncated or malformed"),
    "pickle named .bin": (_pickle, 2, "only pickled weights"),
    "npz with a pickled object": (_npz, 5, "samples.safetensors are not whole"),
    "manifest that names a path outside": (_traversal, 5, "names a foreign file '../../secret'"),
    "YAML tag that calls a function": (
        _recipe(lambda canary: CALLS.format(canary=canary)), 2, "not valid YAML"
    ),
    "YAML of ten million items": (_recipe(_bomb), 2, "more than 1,000,000 values"),
    "model with code of its own": (_own_code, 2, "remote code"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_FILES)
def test_h(name: str, run: RunDirectory, model_folder: Path, tmp_path: Path) -> None:
    make, code, says = CASES[name]
    canary = tmp_path / "canary"
    words = make((run, Path(shutil.copytree(model_folder, tmp_path / "model")), canary))
    done = invoke([*words, "--json"])
    assert not canary.exists()
    assert done.exit_code == code, done.output
    error = json.loads(done.stdout)["error"]
    assert says in error["message"], error
    assert error["hint"]


def test_the_pickle_would_be_seen(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(_Touches(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


def test_the_call_would_be_seen(tmp_path: Path) -> None:
    yaml.load(CALLS.format(canary=tmp_path / "canary"), yaml.UnsafeLoader)
    assert (tmp_path / "canary").exists()
