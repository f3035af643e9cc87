"""What is every row of a model measured on? The float model's own answers and pictures, made once and kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.quality import classes, features
from benchmarks.quality.features import Taps
from gacq_deploy.artifact.records import ModelRecord
from gacq_deploy.engines.open import open_engine
from gacq_deploy.export.float_graph.graph import float_graph
from gacq_deploy.graph.files import read_graph
from gacq_deploy.models.base import Denoiser
from gacq_deploy.parity.budget import FloatTrajectories, Held, run_freely
from gacq_deploy.samples.conditioning import Conditions
from gacq_deploy.sampling.loop import build_conditioning, generate, model_sampler
from gacq_deploy.spec import Array
from gacq_deploy.storage.digests import digest_json
from gacq_deploy.storage.files import load_arrays, save_arrays, write_bytes

_REAL = 5000
_BATCH = 50


@dataclass(frozen=True)
class Measure:
    """How much is measured: same-seed images, and trajectories whose every step is checked."""

    images: int = 1000
    trajectories: int = 48
    steps: int = 20
    seed: int = 700_000
    """First image seed; calibration draws from other streams."""
    cpu_graph: bool = False
    """Also measure ``int8.cpu.onnx``."""


@dataclass(frozen=True)
class Exam:
    """The float side of every comparison.

    ``truth`` are float trajectories; ``images`` [N, C, H, W] float images and ``labels`` [N] what they should show;
    ``taps`` features of those, ``real`` of real training images, ``floor`` of real test images.
    """

    measure: Measure
    held: Held
    truth: FloatTrajectories
    conditioning: Mapping[str, Array]
    images: NDArray[np.float32]
    labels: NDArray[np.int64]
    taps: Taps
    real: Taps
    floor: Taps
    classifier: nn.Module
    real_accuracy: float
    network: nn.Module


def cached_float_graph(denoiser: Denoiser, folder: Path) -> onnx.ModelProto:
    """Return the float graph, exported once per model and torch version."""
    key = digest_json({"weights": denoiser.record.weights_sha256, "torch": torch.__version__})
    path = folder / f"float-{key[:16]}.onnx"
    if not path.is_file():
        write_bytes(path, float_graph(denoiser).SerializeToString())
    return read_graph(path)


def draw(graph: onnx.ModelProto, record: ModelRecord, measure: Measure) -> NDArray[np.float32]:
    """Return the images a graph makes from the exam's seeds, ``[N, C, H, W]``."""
    with open_engine("ort-cpu", graph.SerializeToString(), threads=1) as engine:
        return generate(
            engine,
            model_sampler(record, measure.steps),
            shape=record.sample_shape,
            conditions=Conditions(build_conditioning(record, measure.images)),
            seeds=range(measure.seed, measure.seed + measure.images),
            batch=_BATCH,
        )


def prepare(model: str, record: ModelRecord, graph: onnx.ModelProto, measure: Measure, folder: Path) -> Exam:
    """Return the exam of a model, from ``folder`` as far as it was made before."""
    network = features.load_extractor()
    conditioning = build_conditioning(record, measure.images)
    held = _held(record, measure)
    kept = _kept(model, record, graph, measure, folder, network)
    training, test = classes.real_images(model)
    classifier = classes.load_classifier(model, folder)
    real = _kept_real(model, training.images[:_REAL], folder / f"real-{model}", network)
    floor = _kept_real(
        model, test.images[: measure.images], folder / f"floor-{model}-{measure.images}", network
    )
    names = ("states", "outputs", "timesteps", "final")
    return Exam(
        measure=measure,
        held=held,
        truth=FloatTrajectories(**{name: kept[name] for name in names}),
        conditioning=conditioning,
        images=kept["images"],
        labels=np.asarray(conditioning["class_labels"]),
        taps=Taps(kept["block"], kept["head"]),
        real=real,
        floor=floor,
        classifier=classifier,
        real_accuracy=classes.accuracy(classifier, test.images, test.labels),
        network=network,
    )


def _held(record: ModelRecord, measure: Measure) -> Held:
    count = measure.trajectories
    return Held(
        sampler=model_sampler(record, measure.steps),
        shape=record.sample_shape,
        seeds=tuple(range(measure.seed, measure.seed + count)),
        conditions=Conditions(build_conditioning(record, count)),
        batch=_BATCH,
    )


def _kept(
    model: str,
    record: ModelRecord,
    graph: onnx.ModelProto,
    measure: Measure,
    folder: Path,
    network: nn.Module,
) -> dict[str, Any]:
    asked = {k: v for k, v in asdict(measure).items() if k != "cpu_graph"}
    key = digest_json({"weights": record.weights_sha256, "torch": torch.__version__, "measure": asked})
    path = folder / f"exam-{model}-{key[:16]}.safetensors"
    if not path.is_file():
        with open_engine("ort-cpu", graph.SerializeToString(), threads=1) as engine:
            truth = run_freely(engine, _held(record, measure))
        images = draw(graph, record, measure)
        taps = features.extract(network, images)
        save_arrays(
            path,
            {**vars(truth), "images": images, "block": taps.block, "head": taps.head},
            schema="gacq-deploy/benchmark-exam/1",
        )
    return load_arrays(path, what="Exam", hint=f"Delete {path}; it is made again.")


def _kept_real(model: str, images: NDArray[np.float32], stem: Path, network: nn.Module) -> Taps:
    path = stem.with_name(f"{stem.name}-{features.RESIZE}.safetensors")
    if not path.is_file():
        taps = features.extract(network, images)
        save_arrays(path, vars(taps), schema="gacq-deploy/benchmark-features/1")
    return Taps(**load_arrays(path, what=f"Features of real images of {model}", hint=f"Delete {path}."))
