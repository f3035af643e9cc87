"""Does an image show the class that was asked for? The CNN of ``examples/score_classes.py``, trained once and kept."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TRAINING = "score_classes-2"
"""Raised when the training below changes: kept classifiers then do not count."""
_SIZE = 16
_DATASETS = {"dit-digits8": "digits8"}
"""Models that learned from the images of another."""
_EPOCHS = {"fashion16": 6, "digits8": 60}
_BATCH = {"fashion16": 128, "digits8": 64}


def example(name: str) -> Any:
    """Import a script of ``examples`` as a module; the scripts import each other by their bare names."""
    if str(EXAMPLES) not in sys.path:
        sys.path.insert(0, str(EXAMPLES))
    return importlib.import_module(name)


def real_images(model: str) -> tuple[Any, Any]:
    """Return (training, test) ``ImageSet`` of a model's data.

    Digits come without a split and in the order of their writers: halves of a seeded permutation.
    """
    data = example("datasets")
    if _dataset(model) == "fashion16":
        return data.load_fashion("train", 16), data.load_fashion("t10k", 16)
    whole = data.load_digits()
    order = np.random.Generator(np.random.Philox(0)).permutation(len(whole.images))
    parts = [data.ImageSet(whole.images[index], whole.labels[index]) for index in np.array_split(order, 2)]
    return parts[0], parts[1]


def load_classifier(model: str, folder: Path) -> nn.Module:
    """Return the classifier of a model's classes, trained now if ``folder`` does not hold it."""
    path = folder / f"classifier-{_dataset(model)}-{TRAINING}.safetensors"
    network: nn.Module = example("score_classes").build_classifier()
    if not path.is_file():
        network = _train(model)
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{id(network)}.part")
        save_file(network.state_dict(), partial)
        partial.replace(path)
    network.load_state_dict(load_file(path))
    return network.eval()


def accuracy(network: nn.Module, images: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Return the share of images ``[N, 1, S, S]`` whose predicted class is the label."""
    predicted = example("score_classes").predict(network, _enlarged(images))
    return float((predicted.numpy() == labels).mean())


def _dataset(model: str) -> str:
    return _DATASETS.get(model, model)


def _enlarged(images: NDArray[np.float32]) -> Tensor:
    """Repeat pixels up to the classifier's 16; values outside [-1, 1] are clipped as a viewer would."""
    factor = _SIZE // images.shape[-1]
    return torch.from_numpy(np.clip(images, -1, 1).repeat(factor, axis=2).repeat(factor, axis=3))


def _train(model: str) -> nn.Module:
    data, _ = real_images(model)
    trained: nn.Module = example("score_classes").train_classifier(
        _enlarged(data.images),
        torch.from_numpy(data.labels),
        epochs=_EPOCHS[_dataset(model)],
        batch=_BATCH[_dataset(model)],
        seed=0,
    )
    return trained
