"""How do latents become images, where no pipeline ran? Through the decoder that lies beside the denoiser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

from gacq_deploy.errors import ModelError
from gacq_deploy.models.components import check_decoder, check_finite
from gacq_deploy.models.loading import FAILURES, first_line, named_class, quiet_loading
from gacq_deploy.spec import Float32
from gacq_deploy.storage.documents import read_json
from gacq_deploy.storage.memory import lack_of_memory


@torch.no_grad()
def decode_latents(folder: Path, latents: Float32) -> Float32:
    """Decode latents ``[N, C, H, W]`` one by one, so that an image does not depend on its batch.

    Args:
        folder: of the decoder: its configuration and safetensors.
        latents: as the model makes them, on its own scale.

    Returns:
        Images ``[N, 3, H', W']`` in [-1, 1].

    Raises:
        ModelError: it is no decoder of diffusers, cannot be loaded, or takes other latents.
        ArtifactError: its configuration lies, or a weight is no number.
    """
    decoder = _load(folder)
    config = decoder.config
    scale, shift = float(config.get("scaling_factor") or 1.0), float(config.get("shift_factor") or 0.0)
    own = torch.from_numpy(np.ascontiguousarray(latents)) / scale + shift
    try:
        images = [decoder.decode(own[row : row + 1]).sample for row in range(len(own))]
    except FAILURES as error:
        raise lack_of_memory(error, type(decoder).__name__) or ModelError(
            f"{type(decoder).__name__} in {folder} does not decode latents {list(latents.shape[1:])}: "
            f"{first_line(error)}",
            "Pass the pipeline that the model belongs to.",
        ) from error
    return np.asarray(torch.cat(images).clamp(-1, 1).numpy(), np.float32)


def _load(folder: Path) -> Any:
    config = read_json(
        folder / "config.json", what="Decoder configuration", hint="Download it again.", others=True
    )
    kind = named_class(config.get("_class_name"))
    if kind is None or not hasattr(kind, "decode"):
        raise ModelError(
            f"{folder}: {config.get('_class_name')!r} is no decoder of diffusers {diffusers.__version__}.",
            "Upgrade diffusers if it is newer than yours.",
        )
    check_decoder(kind, folder)
    try:
        with quiet_loading():
            decoder: Any = kind.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
            )
    except FAILURES as error:
        raise lack_of_memory(error, f"Loading {folder}") or ModelError(
            f"{folder} cannot be loaded: {first_line(error)}", "Download it again."
        ) from error
    check_finite(decoder, str(folder))
    return decoder.float().eval()
