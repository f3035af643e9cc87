"""Where do the training images come from? Fashion-MNIST from Debian's package, digits from scikit-learn."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FASHION_DIR = Path("/usr/share/datasets/fashion-mnist")
FASHION_CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot",
)  # fmt: skip


@dataclass(frozen=True)
class ImageSet:
    """Greyscale images ``[N, 1, S, S]`` float32 in [-1, 1] and labels ``[N]`` int64."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64]


def load_fashion(split: str, size: int, directory: Path = FASHION_DIR) -> ImageSet:
    """Read Fashion-MNIST (``split`` is ``train`` or ``t10k``), area-resized to ``size`` pixels.

    Raises:
        FileNotFoundError: Debian's ``dataset-fashion-mnist`` is not installed.
    """
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: run `apt-get install dataset-fashion-mnist`")
    with gzip.open(directory / f"{split}-images-idx3-ubyte.gz") as file:
        raw = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(directory / f"{split}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8).astype(np.int64)
    resized = np.stack(
        [np.asarray(Image.fromarray(r).resize((size, size), Image.Resampling.BOX)) for r in raw]
    )
    return ImageSet((resized[:, None].astype(np.float32) / 127.5) - 1.0, labels)


def load_digits() -> ImageSet:
    """Return scikit-learn's 1,797 real 8x8 digits, scaled from 0..16 to [-1, 1]."""
    from sklearn.datasets import load_digits as sklearn_digits

    data = sklearn_digits()
    images = (data.images[:, None].astype(np.float32) / 8.0) - 1.0
    return ImageSet(images, data.target.astype(np.int64))
