"""An artifact and its Q/DQ graph for any denoiser and recipe: nearest rounding, ranges of a few random inputs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import onnx

from benchmarks.nearest import nearest_artifact
from gacq_deploy.artifact.artifact import CalibrationArtifact
from gacq_deploy.calibration.planning import make_plan
from gacq_deploy.export.float_graph.graph import float_graph
from gacq_deploy.export.qdq import Placement, insert_qdq
from gacq_deploy.graph.files import write_graph
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.structure.graph import ModelGraph, trace_model
from gacq_deploy.recipe.sections import Recipe
from tests.support.models.architectures import small_dit, small_sd_unet, small_sdxl_unet

ARCHITECTURES = {"sd15-w8a8": small_sd_unet, "sdxl-w8a8": small_sdxl_unet, "dit-w8a8": small_dit}
"""Built-in recipe -> a small model of the architecture that it is for."""


@dataclass(frozen=True)
class Exported:
    """A denoiser with its traced graph and its float ONNX graph; nobody changes any of them."""

    denoiser: Denoiser
    graph: ModelGraph
    float_model: onnx.ModelProto

    def quantized(self, recipe: Recipe, *, placement: Placement = "input") -> Quantized:
        """Return the Q/DQ graph that ``recipe`` asks for.

        Raises:
            RecipeError, ExportError: as the stages do.
        """
        artifact = nearest_artifact(self.denoiser, make_plan(recipe, self.graph))
        return Quantized(artifact, insert_qdq(self.float_model, artifact, placement=placement))


@dataclass(frozen=True)
class Quantized:
    """A Q/DQ graph and the artifact in it."""

    artifact: CalibrationArtifact
    model: onnx.ModelProto

    def save(self, folder: Path) -> Path:
        """Write the graph; return its file."""
        return write_graph(self.model, folder / "int8.onnx", external_data_mb=1024)[-1]


@cache
def exported(recipe: str) -> Exported:
    """Return the small model for a built-in recipe, exported once in a test run."""
    denoiser = ARCHITECTURES[recipe]()
    return Exported(denoiser, trace_model(denoiser), float_graph(denoiser))
