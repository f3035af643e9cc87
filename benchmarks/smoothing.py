"""What does smoothing the inputs of linear layers buy a DiT? Fake quantization, with and without learning.

``python -m benchmarks.smoothing`` trains a small class-conditional DiT on scikit-learn's digits (a minute or two) and
calibrates it, and a copy with planted outlier channels, without smoothing, with alpha 0.5 and with the searched one;
finished rows are kept. Writes ``benchmarks/results/smoothing.jsonl``; ``--table`` prints it. ``--model NAME=FOLDER``
adds a DiT from a folder.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DiTTransformer2DModel
from sklearn.datasets import load_digits

from benchmarks.quality.pairing import spread
from benchmarks.store import RESULTS, keep_row, load_rows
from gacq_deploy.calibration.stage import calibrate
from gacq_deploy.metrics.arrays import by_bucket, sqnr_db
from gacq_deploy.recipe.load import load_recipe
from gacq_deploy.recipe.sections import Recipe
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.samples.calibration_set import timestep_buckets

OUT = RESULTS / "smoothing.jsonl"
TRAINED, PLANTED = "digits DiT", "digits DiT, planted outliers"
SMOOTHING = {"none": None, "0.5": 0.5, "search": "search"}
SETTINGS, SEEDS, BUCKETS = ("w8a8", "w4a8"), (0, 1, 2), 5
EFFORTS = {
    "nearest": ("calibration.reconstruction.iterations=0", "calibration.polish.steps=0"),
    "learned": ("calibration.reconstruction.iterations=40", "calibration.polish.steps=40"),
}
"""Nearest rounding with estimated ranges; or a short reconstruction of every block, then a short polish."""
ARCHITECTURE: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "patch_size": 2,
    "num_layers": 4,
    "num_attention_heads": 4,
    "attention_head_dim": 16,
    "num_embeds_ada_norm": 10,
}
TRAINING_STEPS, BATCH, RATE = 3000, 64, 1e-3
ABOUT = {"architecture": ARCHITECTURE, "training_steps": TRAINING_STEPS}
OUTLIERS, OUTLIER_SIZE = 3, 30.0
"""Channels of every planted tensor, and how much they are enlarged."""


@dataclass(frozen=True)
class Row:
    """One calibration."""

    model: str
    setting: str
    effort: str
    smoothing: str
    seed: int

    @property
    def key(self) -> str:
        """Name of the row."""
        return "|".join((self.model, self.setting, self.effort, self.smoothing, str(self.seed)))

    def recipe(self, folder: Path) -> Recipe:
        """Return the built-in DiT recipe with the row's bits, effort and smoothing."""
        rules = load_recipe("dit-w8a8").document()["quantization"]["rules"]
        weights = [{"match": "*", "layer": "linear", "role": "weight", "bits": 4}]
        changed = weights if self.setting == "w4a8" else []
        rules = [*(r for r in rules if not r["ignore"]), *changed, *(r for r in rules if r["ignore"])]
        quantization: dict[str, Any] = {"rules": rules}
        if SMOOTHING[self.smoothing] is not None:
            quantization["smoothing"] = {"alpha": SMOOTHING[self.smoothing]}
        asked = (
            f"model.source={folder}",
            f"quantization={json.dumps(quantization)}",
            "samples={trajectories: 48, steps: 20, batch: 16, seed: " + str(1000 * self.seed) + "}",
            "calibration.weighting.mode=relative",
            f"calibration.seed={self.seed}",
            "calibration.threads=1",
            "parity.probe.trajectories=16",
        )
        return load_recipe("dit-w8a8", [*asked, *EFFORTS[self.effort]])


def train(folder: Path) -> None:
    """Train the digits DiT, seeded, and write it with its scheduler."""
    torch.manual_seed(0)
    images, labels = load_digits().images, load_digits().target
    data = torch.tensor(images, dtype=torch.float32)[:, None] / 8 - 1
    classes = torch.tensor(labels)
    model: Any = DiTTransformer2DModel(**ARCHITECTURE)
    noising = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=TRAINING_STEPS)
    for _ in range(TRAINING_STEPS):
        rows = torch.randint(len(data), (BATCH,))
        noise, steps = torch.randn(BATCH, *data.shape[1:]), torch.randint(1000, (BATCH,))
        noisy: Any = noising.add_noise(data[rows], noise, steps)
        answer = model(noisy, timestep=steps, class_labels=classes[rows]).sample
        loss = (answer - noise).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    _save(model, folder)


def plant(source: Path, folder: Path) -> None:
    """Write the same function with outlier channels in every tensor that attention and feed-forward layers read.

    What makes a channel is enlarged, what reads it made smaller by as much: shift and scale of the modulation before
    queries, keys and values and before the feed-forward layers, and the values before the attention's last layer.
    """
    model: Any = DiTTransformer2DModel.from_pretrained(source / "transformer")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for block in model.transformer_blocks:
            attention, modulation = block.attn1, block.norm1.linear
            width = attention.to_q.in_features
            readers = (attention.to_q, attention.to_k, attention.to_v)
            for first, those in ((0, readers), (3 * width, (block.ff.net[0].proj,))):
                chosen = _outliers(width, generator)
                for position in (first + chosen, first + width + chosen):  # shift, then scale
                    modulation.weight[position] *= OUTLIER_SIZE
                    modulation.bias[position] *= OUTLIER_SIZE
                modulation.bias[first + width + chosen] += OUTLIER_SIZE - 1  # of 1 + scale
                for reader in those:
                    reader.weight[:, chosen] /= OUTLIER_SIZE
            chosen = _outliers(width, generator)
            attention.to_v.weight[chosen] *= OUTLIER_SIZE
            attention.to_v.bias[chosen] *= OUTLIER_SIZE
            attention.to_out[0].weight[:, chosen] /= OUTLIER_SIZE
    _save(model, folder)


def _outliers(width: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randperm(width, generator=generator)[:OUTLIERS]


def _save(model: Any, folder: Path) -> None:
    model.save_pretrained(folder / "transformer")
    DDIMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False).save_pretrained(folder / "scheduler")


def measure(row: Row, folder: Path, runs: Path) -> dict[str, Any]:
    """Calibrate; return the output's SQNR in dB by timestep bucket, noisy to clean, on states of the probe."""
    directory = RunDirectory(runs / "run")
    shutil.rmtree(directory.root, ignore_errors=True)
    started = time.process_time()
    artifact = calibrate(row.recipe(folder), directory)
    probe = artifact.probe
    assert probe is not None
    buckets = timestep_buckets(probe.inputs["timestep"], BUCKETS)
    levels = by_bucket(sqnr_db, probe.outputs["float"], probe.outputs["input_quant"], buckets)
    # layers that read one tensor share its alpha
    tensors = {smoothing.factor.tobytes(): smoothing.alpha for smoothing in artifact.smoothing.values()}
    return {
        "sqnr_db": [round(float(x), 2) for x in levels],
        "alphas": sorted(tensors.values()),
        "cpu_s": round(time.process_time() - started, 1),
    }


def table(rows: dict[str, Any]) -> Iterator[str]:
    """Yield a Markdown table: levels without smoothing, and gains paired by seed."""
    yield "| model | setting | rounding | smoothing | mean (dB) | worst bucket (dB) | by bucket (dB) | alphas |"
    yield "|---|---|---|---|---|---|---|---|"
    models = list(dict.fromkeys(key.partition("|")[0] for key in rows))
    for model, setting, effort, smoothing in product(models, SETTINGS, EFFORTS, SMOOTHING):
        mine, base = (
            [rows.get(Row(model, setting, effort, name, seed).key) for seed in SEEDS]
            for name in (smoothing, "none")
        )
        if None in mine or None in base:
            continue
        levels = np.array([r["sqnr_db"] for r in mine])
        zero = np.array([r["sqnr_db"] for r in base])
        gains = smoothing != "none"
        means = levels.mean(1) - gains * zero.mean(1)
        worst = levels.min(1) - gains * zero.min(1)
        buckets = (levels - gains * zero).mean(0)
        sign = "+" if gains else ""
        by_step = " ".join(f"{x:{sign}.1f}" for x in buckets)
        used = sorted({a for r in mine for a in r["alphas"]})
        alphas = f"{used[0]:g} to {used[-1]:g}" if len(used) > 1 else "".join(f"{a:g}" for a in used)
        figures = f"{_spread(means, sign)} | {_spread(worst, sign)} | {by_step} | {alphas}"
        yield f"| {model} | {setting.upper()} | {effort} | {smoothing} | {figures} |"


def _spread(values: Any, sign: str) -> str:
    found = spread(values)
    return f"{found.mean:{sign}.2f} ± {found.sd:.2f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, or print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/smoothing"))
    parser.add_argument("--model", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--only", default="", help="measure only rows whose name holds this")
    options = parser.parse_args(arguments)
    found = load_rows(OUT)
    if options.table:
        print("\n".join(table(found)))
        return
    torch.set_num_threads(1)
    folders = {TRAINED: options.out / "trained", PLANTED: options.out / "planted"}
    if not folders[TRAINED].is_dir():
        train(folders[TRAINED])
    if not folders[PLANTED].is_dir():
        plant(folders[TRAINED], folders[PLANTED])
    folders |= {name: Path(folder) for name, _, folder in (m.partition("=") for m in options.model)}
    for effort, model, seed, setting, smoothing in product(EFFORTS, folders, SEEDS, SETTINGS, SMOOTHING):
        row = Row(model, setting, effort, smoothing, seed)
        if row.key not in found and not (options.only and options.only not in row.key):
            found[row.key] = measure(row, folders[model], options.out)
            keep_row(OUT, row.key, found[row.key], ABOUT)
            print(row.key, found[row.key])


if __name__ == "__main__":
    main()
