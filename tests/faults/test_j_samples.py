"""Group J: samples that do not fit the model are refused before any work; odd but whole ones are learned from."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gacq_deploy.artifact.artifact import load_artifact
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.samples.row_file import SampleWriter
from gacq_deploy.spec import Site
from gacq_deploy.storage.digests import digest_file
from tests.faults.matrix import SAMPLES
from tests.support.programs.commands import invoke

Tensors = dict[str, np.ndarray[Any, Any]]
FIRST_LAYER_IS_FLOAT = '    - {match: "conv_in", ignore: true}\n'


def _changed(name: str, change: Callable[[Any], Any]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: np.ascontiguousarray(change(tensors[name]))}


def _without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


CHANGES: dict[str, tuple[Callable[[Tensors], Tensors], int, str]] = {
    "channels of another model": (_changed("latents", lambda a: np.repeat(a, 2, axis=1)), 2, "latents"),
    "size of another model": (_changed("latents", lambda a: np.tile(a, (1, 1, 2, 2))), 2, "latents"),
    "integers for latents": (_changed("latents", lambda a: a.astype(np.int32)), 2, "latents"),
    "one axis too few": (_changed("latents", lambda a: a[:, 0]), 2, "latents"),
    "timestep outside of the model's": (_changed("timesteps", lambda a: a + 100_000), 2, "timestep"),
    "no timesteps": (_without("timesteps"), 5, "timesteps"),
    "no conditioning": (_without("cond.class_labels"), 2, "class_labels"),
}


def _replace_samples(run: RunDirectory, tensors: Tensors) -> None:
    """Put others in their place, with the record that vouches for them."""
    path = run.root / "samples.safetensors"
    save_file(tensors, path)
    record = json.loads((run.root / "samples.json").read_text())
    (run.root / "samples.json").write_text(json.dumps({**record, "sha256": digest_file(path)}))


@pytest.mark.parametrize("name", SAMPLES)
def test_j(name: str, run: RunDirectory, recipe_file: Path) -> None:
    change, code, says = CHANGES[name]
    _replace_samples(run, change(load_file(run.root / "samples.safetensors")))
    before = {p: p.read_bytes() for p in run.root.rglob("*") if p.is_file() and p.name != ".gacq-lock"}
    done = invoke(["calibrate", "-r", str(recipe_file), "-o", str(run.root), "--json"])
    assert done.exit_code == code, done.output
    error = json.loads(done.stdout)["error"]
    assert says in error["message"]
    assert error["hint"]
    assert {p: p.read_bytes() for p in before} == before


@pytest.mark.slow
def test_j_constant_samples_are_learned_from(run: RunDirectory, recipe_file: Path, tmp_path: Path) -> None:
    tensors = load_file(run.root / "samples.safetensors")
    held = {name: np.zeros_like(value) if name == "latents" else value for name, value in tensors.items()}
    for folder in ("artifact", "work"):
        shutil.rmtree(run.root / folder)
    run.recipe_path.unlink()
    _replace_samples(run, held)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe_file.read_text().replace(FIRST_LAYER_IS_FLOAT, ""))
    done = invoke(["calibrate", "-r", str(recipe), "-o", str(run.root), "--json"])
    assert done.exit_code == 0, done.output
    params = load_artifact(run.artifact).params
    assert Site("conv_in", "input") in params, "nothing that is always zero was quantized"
    scales = [one.scale for one in params.values()]
    assert all(np.isfinite(scale).all() and (scale > np.finfo(np.float32).tiny).all() for scale in scales)


def _memory_to_write(path: Path, rows: int) -> int:
    """Return the bytes that writing so many rows takes at most."""
    tracemalloc.start()
    try:
        with SampleWriter(
            path, {"latents": ("float32", (rows, 4)), "timesteps": ("int64", (rows,))}
        ) as writer:
            for start in range(0, rows, 10_000):
                part = np.arange(start, start + 10_000)
                writer.write(start, {"latents": np.ones((10_000, 4), np.float32), "timesteps": part})
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_j_a_million_samples_are_written_in_the_memory_of_a_few(tmp_path: Path) -> None:
    few = _memory_to_write(tmp_path / "few.safetensors", 100_000)
    assert _memory_to_write(tmp_path / "many.safetensors", 1_000_000) < 1.5 * few
    many = load_file(tmp_path / "many.safetensors")
    np.testing.assert_array_equal(many["timesteps"], np.arange(1_000_000))
