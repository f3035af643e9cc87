"""Is what lies in the run directory still good? Whose run it is, which samples and which finished work count."""

from __future__ import annotations

import os
import shutil
from itertools import count
from pathlib import Path

import diffusers
import torch

from gacq_deploy.artifact.artifact import CalibrationArtifact, load_artifact
from gacq_deploy.calibration.weighting.sample_weights import SampleWeights
from gacq_deploy.errors import ArtifactError, RecipeError
from gacq_deploy.models.base import Denoiser
from gacq_deploy.progress import Reporter
from gacq_deploy.recipe.load import load_recipe
from gacq_deploy.recipe.sections import Recipe
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.storage.digests import digest_json
from gacq_deploy.storage.files import disk_error, write_bytes

ALGORITHM = 3
"""Raised when the same recipe would give other numbers: work of an older version is then not taken up."""


def work_key(recipe: Recipe, denoiser: Denoiser, samples_sha256: str, weights: SampleWeights | None) -> str:
    """Return the digest of everything that calibration's numbers depend on; a finished artifact counts under it."""
    return digest_json(
        {
            **_made_with(denoiser, samples_sha256, weights),
            "recipe": recipe.calibration_digest,
            "probe": recipe.parity.probe.model_dump(mode="json"),
        }
    )


def blocks_key(recipe: Recipe, denoiser: Denoiser, samples_sha256: str, weights: SampleWeights | None) -> str:
    """Return the digest of what ranges and blocks depend on; finished blocks count under it, whatever the polish."""
    document = recipe.decisive()
    calibration = {k: v for k, v in document["calibration"].items() if k not in ("polish", "weighting")}
    weighting = document["calibration"]["weighting"]
    stages = weighting.pop("stages")
    del weighting["polish_iterations"]
    # every block records its gradients' cosines between these groups, whether weights are learned or not
    used: dict[str, object] = {"groups": weighting["groups"]}
    if "reconstruction" in stages and weighting["mode"] != "uniform":
        used = weighting
    else:
        # it speaks through the weights alone
        del calibration["objective"]
    return digest_json(
        {
            **_made_with(denoiser, samples_sha256, weights),
            **{k: document[k] for k in ("model", "samples", "quantization")},
            "calibration": calibration,
            "weighting": used,
        }
    )


def _made_with(denoiser: Denoiser, samples_sha256: str, weights: SampleWeights | None) -> dict[str, object]:
    made: dict[str, object] = {
        "weights_sha256": denoiser.record.weights_sha256,
        "samples_sha256": samples_sha256,
        "given_weights": None if weights is None else weights.name,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "algorithm": ALGORITHM,
    }
    # what they hold for text encoders is in no weight of the denoiser, but in the samples' conditioning
    if loras := denoiser.record.loras:
        made["loras"] = [lora.sha256 for lora in loras]
    return made


def finished_artifact(directory: RunDirectory, key: str, report: Reporter) -> CalibrationArtifact | None:
    """Return the artifact if it is whole and of this key; a damaged one is made again from the finished blocks."""
    if not directory.artifact.is_dir():
        return None
    try:
        artifact = load_artifact(directory.artifact)
    except ArtifactError as error:
        report.note(f"the artifact is not usable and is made again: {error.message}")
        return None
    return artifact if artifact.build.get("work_key") == key else None


def forget_run(directory: RunDirectory) -> None:
    """Start over: finished steps and the samples' record go; the artifact stays until it is replaced."""
    shutil.rmtree(directory.work, ignore_errors=True)
    directory.samples_record_path.unlink(missing_ok=True)


def save_recipe(recipe: Recipe, directory: RunDirectory, report: Reporter) -> None:
    """Write the resolved recipe into the run; a file there that says the same stays, and what a person wrote is kept.

    Raises:
        ResourceError: the disk is full.
        UsageError: the folder cannot be written.
    """
    directory.take()
    path = directory.recipe_path
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        recipe.save(path)
        return
    except OSError as error:
        raise disk_error(error, path) from error
    try:
        old: Recipe | None = load_recipe(path)
    except RecipeError:
        old = None
    if old is not None and old.document() == recipe.document():
        return
    if old is None or text != old.text.encode():
        kept = _free_name(path)
        write_bytes(kept, text)
        report.note(f"recipe.yaml was edited: as it was it is kept as {kept.name}")
    recipe.save(path)


def _free_name(path: Path) -> Path:
    """Return a name beside ``path`` that nothing has."""
    names = (path.with_name(f"{path.name}.{number}") for number in count(1))
    return next(name for name in names if not os.path.lexists(name))
