"""The engine in the place of a diffusers model: ``python examples/engine_in_diffusers.py runs/digits``.

Takes the run that calibrate_and_judge.py makes. One loop with a scheduler of diffusers draws with the float model and
with INT8, from the same noise; ``diffusers.png`` in the run shows the float images above the others. A pipeline takes
the engine the same way, as ``unet=`` or ``transformer=``; the shipped models have classes, which no stock pipeline
passes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DModel
from numpy.typing import NDArray

import gacq_deploy as gd

MODEL = Path(__file__).parent / "models" / "digits8"


@torch.no_grad()
def draw(unet: Callable[..., Any], steps: int) -> NDArray[np.float32]:
    """Return one image of each digit ``[10, 1, 8, 8]``, from the same noise whatever the denoiser."""
    scheduler = DDIMScheduler.from_pretrained(MODEL, subfolder="scheduler")
    scheduler.set_timesteps(steps)
    labels = torch.arange(10)
    state = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for timestep in scheduler.timesteps:
        noise = unet(state, timestep, class_labels=labels).sample
        state = scheduler.step(noise, timestep, state).prev_sample
    images: NDArray[np.float32] = state.clamp(-1, 1).numpy()
    return images


def compare(directory: str, steps: int = 20) -> float:
    """Return the PSNR of INT8 images against the float ones, in dB."""
    exact = draw(UNet2DModel.from_pretrained(MODEL, subfolder="unet").eval(), steps)
    engine = gd.load_denoiser(directory, engine="ort-cpu")
    quantized = draw(engine, steps)
    engine.close()
    gd.write_grid(Path(directory) / "diffusers.png", np.concatenate([exact, quantized]), columns=len(exact))
    # values span 2, from -1 to 1
    return float(10 * np.log10(4 / np.mean((exact - quantized) ** 2)))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", help="a run of builtin:digits8")
    arguments = parser.parse_args()
    print(f"{compare(arguments.directory):.1f} dB of PSNR against the float model")


if __name__ == "__main__":
    main()
