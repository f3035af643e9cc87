"""How often does a generated image show the class that was asked for?

Trains a small CNN on real Fashion-MNIST (seeded, about 90 CPU-seconds) and scores a denoiser's DDIM samples with it:
``python examples/score_classes.py examples/models/fashion16 --seeds 0 1 2``. The classifier's accuracy on real test
images is the ceiling and is printed beside.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from datasets import FASHION_CLASSES, load_fashion
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor, nn
from train_denoiser import NUM_CLASSES, generate


def build_classifier() -> nn.Module:
    """Return an untrained CNN of about 160 k parameters for ``[N, 1, 16, 16]`` images in [-1, 1]."""

    def stage(a: int, b: int) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()]

    return nn.Sequential(
        *stage(1, 32), *stage(32, 32), nn.MaxPool2d(2), *stage(32, 64), *stage(64, 64), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * 16, 96), nn.ReLU(), nn.Linear(96, NUM_CLASSES),
    )  # fmt: skip


def train_classifier(
    images: Tensor, labels: Tensor, *, epochs: int, seed: int, batch: int = 128
) -> nn.Module:
    """Train on images ``[N, 1, 16, 16]`` in [-1, 1] and their classes ``[N]``; a last, smaller batch is left out."""
    torch.manual_seed(seed)
    model = build_classifier()
    batches = len(images) // batch
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * batches)
    for _ in range(epochs):
        for index in torch.randperm(len(images))[: batches * batch].split(batch):
            loss = nn.functional.cross_entropy(model(images[index]), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def predict(classifier: nn.Module, images: Tensor) -> Tensor:
    """Return the predicted class of each image."""
    return torch.cat([classifier(chunk).argmax(1) for chunk in images.split(500)])


def main() -> None:
    """Score a model folder and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--per-class", type=int, default=100)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the result here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    folder = args.model / "unet" if (args.model / "unet").is_dir() else args.model
    unet = UNet2DModel.from_pretrained(folder, use_safetensors=True, low_cpu_mem_usage=False).eval()
    scheduler = DDPMScheduler.from_pretrained(args.model / "scheduler")
    training, test = (load_fashion(split, int(unet.config.sample_size)) for split in ("train", "t10k"))
    classifier = train_classifier(
        torch.from_numpy(training.images), torch.from_numpy(training.labels), epochs=args.epochs, seed=0
    )
    real = float((predict(classifier, torch.from_numpy(test.images)).numpy() == test.labels).mean())
    labels = torch.arange(NUM_CLASSES).repeat_interleave(args.per_class)
    by_seed, by_class = [], np.zeros(NUM_CLASSES)
    for seed in args.seeds:
        correct = (
            predict(classifier, generate(unet, scheduler, labels, steps=args.steps, seed=seed)) == labels
        ).float()
        by_seed.append(float(correct.mean()))
        by_class += correct.reshape(NUM_CLASSES, -1).mean(1).numpy() / len(args.seeds)
    result = {
        "real_test_accuracy": real,
        "class_accuracy_mean": float(np.mean(by_seed)),
        "class_accuracy_by_seed": by_seed,
        "class_accuracy_by_class": dict(zip(FASHION_CLASSES, by_class.round(3).tolist(), strict=True)),
        "images_per_seed": len(labels),
        "ddim_steps": args.steps,
    }
    text = json.dumps(result, indent=2)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
