"""Runs of small random pipelines of every family: the structure of the real ones, and nothing else of them."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gacq_deploy.artifact.call import CallRecord
from gacq_deploy.backends.ort import session_options
from gacq_deploy.calibration.stage import calibrate
from gacq_deploy.export.stage import export_onnx
from gacq_deploy.models.call_capture import flatten
from gacq_deploy.recipe.load import load_recipe
from gacq_deploy.recipe.sections import Recipe
from gacq_deploy.run_directory import RunDirectory
from tests.support.models.pipelines import PIPELINES

SMALL = (
    "samples={trajectories: 3, steps: 2, batch: 2}",
    "calibration.threads=1",
    "calibration.reconstruction.iterations=2",
    "calibration.reconstruction.batch=4",
    "calibration.weighting.mode=uniform",
    "calibration.polish.steps=1",
    "calibration.polish.batch=4",
    "runtime={steps: 2, batch: 2}",
    "parity={steps: 2, images: 2, buckets: 2, noise_floor_runs: 1, probe: {trajectories: 2, local_samples: 2}}",
)
"""Enough of every stage to go wrong in."""


@dataclass(frozen=True)
class FamilyCase:
    """One family: its pipeline, the recipe that is meant for it, and what that recipe needs to be told."""

    pipeline: str
    recipe: str
    settings: tuple[str, ...] = ()
    component: str = "transformer"
    changes: tuple[tuple[str, Any], ...] = ()
    """Of the denoiser's configuration."""
    half: bool = False
    """Whether the denoiser's weights are stored in half precision."""

    def make_recipe(self, root: Path) -> Recipe:
        """Write the pipeline and return the recipe for it."""
        made = (
            PIPELINES[self.pipeline](root / "model", **dict(self.changes))
            if self.pipeline in PIPELINES
            else None
        )
        if made is not None and self.half:
            _store_half(made / self.component)
        source = () if made is None else (f"model.source={made}",)
        return load_recipe(
            self.recipe, [*SMALL, *source, f"model.component={self.component}", *self.settings]
        )

    def run(self, root: Path) -> RunDirectory:
        """Calibrate and export."""
        directory = RunDirectory(root / "run")
        calibrate(self.make_recipe(root), directory)
        export_onnx(directory, allow_python=True)
        return directory


def _store_half(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        save_file({k: v.half() for k, v in load_file(file).items()}, file, metadata={"format": "pt"})


FLOAT32 = ("build.float_type=float32",)
"""For random weights that INT8 serves at 69 dB: float16 itself ends at 66, which its gate calls a difference."""
UNETS = {
    "sd": FamilyCase("sd", "sd15-w8a8", component="unet"),
    # two transformer blocks in a row are tried with the architectures
    "sdxl": FamilyCase(
        "sdxl",
        "sdxl-w8a8",
        ("export.external_data_mb=1",),  # as of a large model
        component="unet",
        changes=(("transformer_layers_per_block", 1),),
    ),
    "ldm": FamilyCase("ldm", "sd15-w8a8", FLOAT32, component="unet", half=True),
}
ODD = FamilyCase(
    "odd",
    "sd15-w8a8",
    (
        "model.source=python:tests.support.models.odd_family:make_pipeline",
        "quantization={rules: [{match: '*', bits: 8}, "
        "{match: enter, ignore: true}, {match: clock, ignore: true}, {match: leave, ignore: true}]}",
    ),
    component="painter",
)
TRANSFORMERS = {
    "dit": FamilyCase("dit", "dit-w8a8"),
    "pixart-alpha": FamilyCase("pixart-alpha", "pixart-w8a8", FLOAT32),
    "pixart-sigma": FamilyCase("pixart-sigma", "pixart-w8a8", FLOAT32),
    "sd3": FamilyCase("sd3", "sd3-w8a8"),
    "flux-dev": FamilyCase(
        "flux-dev",
        "flux-w8a8",
        ("model.sample_size=16",),
        changes=(("num_layers", 1), ("num_single_layers", 1)),
    ),
}


class GraphAnswers:
    """Answers a denoiser's calls from a graph in ONNX Runtime, by itself: what a drop-in has to equal."""

    def __init__(self, denoiser: nn.Module, call: CallRecord, graph: Path) -> None:
        self._call = call
        self._made = dict(getattr(denoiser, "config", {})).get("out_channels")
        self._signature = inspect.signature(denoiser.forward)
        options = session_options(threads=1, optimize=True)  # exact on every processor
        self._session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Stand in for ``forward``."""
        given = dict(flatten(dict(self._signature.bind(*args, **kwargs).arguments)))
        state = given[self._call.state.path]
        rows = len(state)
        message = torch.as_tensor(given[self._call.timestep.path]).flatten().expand(rows)
        feeds: dict[str, Any] = {
            "sample": state.numpy(),
            "timestep": message.numpy().astype(self._call.timestep.dtype),
        }
        for argument in self._call.arguments:
            value = given[argument.path].numpy().astype(argument.dtype)
            shape = (rows, *argument.shape)
            feeds[argument.name] = np.broadcast_to(value, shape) if argument.shared else value
        prediction = torch.from_numpy(self._session.run(None, feeds)[0])
        if self._made == 2 * prediction.shape[1]:  # a learned variance, which pipelines cut off
            prediction = torch.cat([prediction, torch.zeros_like(prediction)], 1)
        key = self._call.output
        return {key[0]: prediction} if key else Prediction((prediction,))


class Prediction(tuple[Tensor]):
    """What pipelines read as a tuple, or as an output with a sample."""

    __slots__ = ()

    @property
    def sample(self) -> Tensor:
        """The prediction."""
        return self[0]
