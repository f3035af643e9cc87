"""Train the shipped class-conditional denoisers: ``fashion16`` (the demo), ``digits8`` (for tests), ``dit-digits8``.

Run ``python examples/train_denoiser.py fashion16 --out examples/models/fashion16`` (Debian package
``dataset-fashion-mnist``), ``... digits8 --out examples/models/digits8`` or ``... dit-digits8``, a transformer (both
scikit-learn). Everything is seeded; the figures of each run stand in ``training.json`` beside the weights.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from architectures import NUM_CLASSES, DiTShape, UNetShape
from datasets import ImageSet, load_digits, load_fashion
from diffusers import DDIMScheduler, DDPMScheduler, ModelMixin
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class Setting:
    """What one shipped model is and how long it was trained."""

    dataset: str
    size: int
    shape: UNetShape | DiTShape
    steps: int
    batch: int = 64
    lr: float = 5e-4
    warmup: int = 300
    ema: float = 0.9995
    null_share: float = 0.1
    seed: int = 0

    def document(self) -> dict[str, object]:
        """Return the fields, those of the shape among them."""
        fields = asdict(self)
        return {**fields.pop("shape"), **fields}


SETTINGS = {
    "fashion16": Setting("fashion", 16, UNetShape((24, 48, 96), 1, 48), 14000),
    "digits8": Setting("digits", 8, UNetShape((16, 32), 1, 32), 5000, lr=1e-3),
    "dit-digits8": Setting("digits", 8, DiTShape(4, 4, 32, 2), 3000, lr=1.5e-3, ema=0.999),
}


def learning_rate(step: int, s: Setting) -> float:
    """Linear warm-up, then cosine decay to 1 % of the peak."""
    if step < s.warmup:
        return s.lr * (step + 1) / s.warmup
    progress = (step - s.warmup) / max(1, s.steps - s.warmup)
    return s.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def train(
    s: Setting, data: ImageSet, out: Path, checkpoint_every: int
) -> tuple[ModelMixin, list[dict[str, float]]]:
    """Train on epsilon with AdamW, bf16 autocast and an EMA; return the EMA model and the loss log."""
    torch.manual_seed(s.seed)
    generator = torch.Generator().manual_seed(s.seed)
    images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels)
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", num_train_timesteps=1000)
    model, ema = s.shape.build(s.size), s.shape.build(s.size)
    ema.load_state_dict(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=s.lr, weight_decay=1e-4)
    log: list[dict[str, float]] = []
    running, started, cpu = 0.0, time.perf_counter(), time.process_time()
    for step in range(s.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, s)
        index = torch.randint(len(images), (s.batch,), generator=generator)
        clean, label = images[index], labels[index].clone()
        label[torch.rand(s.batch, generator=generator) < s.null_share] = NUM_CLASSES
        noise = torch.randn(clean.shape, generator=generator)
        t = torch.randint(1000, (s.batch,), generator=generator)
        noisy = scheduler.add_noise(clean, noise, t)
        with s.shape.attention_kernel(), torch.autocast("cpu", torch.bfloat16):
            predicted = model(noisy, t, class_labels=label).sample
        loss = torch.nn.functional.mse_loss(predicted.float(), noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay = min(s.ema, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)
        running += loss.item()
        if (step + 1) % 500 == 0:
            entry = {
                "step": step + 1,
                "loss": running / 500,
                "wall_s": time.perf_counter() - started,
                "cpu_s": time.process_time() - cpu,
            }
            log.append(entry)
            running = 0.0
            print(json.dumps(entry), flush=True)
        if checkpoint_every and (step + 1) % checkpoint_every == 0:
            save(ema, scheduler, s, log, out)
    save(ema, scheduler, s, log, out)
    return ema, log


def save(
    model: ModelMixin, scheduler: DDPMScheduler, s: Setting, log: list[dict[str, float]], out: Path
) -> None:
    """Write a diffusers pipeline-like folder: the component, ``scheduler/``, ``training.json``, ``samples.png``."""
    model.save_pretrained(out / s.shape.component)
    scheduler.save_pretrained(out / "scheduler")
    (out / "training.json").write_text(json.dumps({"setting": s.document(), "log": log}, indent=2) + "\n")
    sample_grid(model, scheduler, s).save(out / "samples.png")


@torch.no_grad()
def generate(model: ModelMixin, scheduler: DDPMScheduler, labels: Tensor, *, steps: int, seed: int) -> Tensor:
    """Sample ``[N, 1, S, S]`` images in [-1, 1] with DDIM, without guidance."""
    ddim = DDIMScheduler.from_config(scheduler.config)
    ddim.set_timesteps(steps)
    size = model.config.sample_size
    x = torch.randn((len(labels), 1, size, size), generator=torch.Generator().manual_seed(seed))
    for t in ddim.timesteps:
        x = ddim.step(model(x, t.expand(len(x)), class_labels=labels).sample, t, x).prev_sample
    return x


def sample_grid(model: ModelMixin, scheduler: DDPMScheduler, s: Setting, per_class: int = 10) -> Image.Image:
    """Draw one row per class, ``per_class`` samples each, magnified four times."""
    labels = torch.arange(NUM_CLASSES).repeat_interleave(per_class)
    x = generate(model, scheduler, labels, steps=50, seed=1).clamp(-1, 1).numpy()
    tiles = ((x[:, 0] + 1) * 127.5).round().astype(np.uint8).reshape(NUM_CLASSES, per_class, s.size, s.size)
    grid = tiles.transpose(0, 2, 1, 3).reshape(NUM_CLASSES * s.size, per_class * s.size)
    return Image.fromarray(grid).resize((grid.shape[1] * 4, grid.shape[0] * 4), Image.Resampling.NEAREST)


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("setting", choices=sorted(SETTINGS))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--checkpoint-every", type=int, default=2000)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    setting = SETTINGS[args.setting]
    data = load_digits() if setting.dataset == "digits" else load_fashion("train", setting.size)
    train(setting, data, args.out, args.checkpoint_every)


if __name__ == "__main__":
    main()
