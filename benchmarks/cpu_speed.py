"""How much faster is INT8 on a CPU? One thread, CPU time, ONNX Runtime and OpenVINO.

``python benchmarks/cpu_speed.py`` (about ten minutes on two cores) builds a ``UNet2DModel`` in the
configuration of google/ddpm-cifar10-32 (35.7 M parameters) and one with attention over 1,024 tokens at its
outer level, both with seeded random weights, for speed alone: quantized by nearest rounding from a few of their own
trajectories, exported, and measured as ``gacq-deploy bench`` does. ``--also DIR`` adds the figures of other run
directories, for instance the demo model's.
Writes ``results/cpu_speed.jsonl`` and ``results/cpu_speed.md``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel

from benchmarks.store import RESULTS, write_rows
from gacq_deploy.bench import BenchReport, run_bench
from gacq_deploy.bench.measure import BenchSettings
from gacq_deploy.calibration.stage import calibrate
from gacq_deploy.export.record import load_export
from gacq_deploy.export.stage import export_onnx
from gacq_deploy.recipe.sections import Recipe
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.storage.files import write_bytes

CIFAR: dict[str, Any] = {
    "sample_size": 32,
    "in_channels": 3,
    "out_channels": 3,
    "freq_shift": 1,
    "flip_sin_to_cos": False,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (128, 256, 256, 256),
    "layers_per_block": 2,
    "downsample_padding": 0,
    "norm_eps": 1e-6,
    "attention_head_dim": None,
}
ATTENTION: dict[str, Any] = {
    "sample_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D"),
    "block_out_channels": (64, 128, 256),
    "layers_per_block": 2,
    "attention_head_dim": 8,
}
MODELS = {
    "UNet2DModel as google/ddpm-cifar10-32, random weights": ("cifar", CIFAR),
    "UNet2DModel with attention at every level (1,024 tokens outside), random weights": (
        "attention",
        ATTENTION,
    ),
}
FLOAT_LAYERS = ("conv_in", "conv_out", "*time_embedding*", "*time_emb_proj")


def build_run(root: Path, config: dict[str, Any]) -> RunDirectory:
    """Return a run directory with the exported model; what is already there is kept."""
    model = root / "model"
    if not (model / "config.json").is_file():
        torch.manual_seed(0)
        UNet2DModel(**config).save_pretrained(model)
        DDPMScheduler(beta_schedule="linear", variance_type="fixed_large").save_pretrained(
            model / "scheduler"
        )
    rules: list[dict[str, Any]] = [{"match": "*", "bits": 8, "range": {"method": "minmax"}}]
    rules += [{"match": name, "ignore": True} for name in FLOAT_LAYERS]
    recipe = Recipe.model_validate(
        {
            "schema": "gacq-deploy/recipe/1",
            "name": root.name,
            "model": {"source": str(model)},
            "samples": {"trajectories": 2, "steps": 4, "batch": 2},
            "quantization": {"rules": rules},
            "calibration": {"reconstruction": {"iterations": 0}, "threads": 1},
            "parity": {"probe": {"trajectories": 1, "local_samples": 1}, "steps": 4},
        }
    )
    run = RunDirectory(root / "run")
    calibrate(recipe, run)
    export_onnx(run)
    return run


def table(name: str, report: BenchReport) -> str:
    """Return the Markdown table of one run."""
    lines = [
        f"### {name}",
        "",
        f"{report.host.cpu}, {report.threads} thread, {report.repeats} rounds in both orders, load "
        f"{report.host.load_average}; CPU time of one engine call, median (least to most).",
        "",
        "| graph | batch | CPU ms | x ONNX Runtime float | x own float | integer layers | MB | peak MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for candidate in report.candidates:
        kernels = candidate.kernels
        share = f"{kernels.integer} of {kernels.planned}" if kernels else "-"
        for timing in candidate.timings:
            cells = [
                f"`{candidate.file}` in {candidate.label}",
                str(timing.batch),
                f"{timing.cpu_ms.median:.1f} ({timing.cpu_ms.low:.1f} to {timing.cpu_ms.high:.1f})",
                _ratio(report, candidate.name, "ort-cpu/float.onnx", timing.batch),
                _ratio(report, candidate.name, f"{candidate.engine}/float.onnx", timing.batch),
                share,
                f"{candidate.file_bytes / 1e6:.1f}",
                f"{timing.peak_bytes / 1e6:.0f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    lines += [f"\nNot measured: {name}: {reason}" for name, reason in report.skipped.items()]
    return "\n".join(lines) + "\n"


def _ratio(report: BenchReport, candidate: str, baseline: str, batch: int) -> str:
    ratio = report.ratio(candidate, baseline, batch)
    return f"{ratio.cpu.median:.2f} ({ratio.cpu.low:.2f} to {ratio.cpu.high:.2f})" if ratio else "-"


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/cpu-speed"))
    parser.add_argument(
        "--also", type=Path, action="append", default=[], help="another run directory, exported"
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    settings = BenchSettings(batches=tuple(args.batches), threads=1, repeats=args.repeats)
    for path in args.also:
        load_export(RunDirectory(path))  # fails now, not after the long measurement
    runs = {name: build_run(args.work / folder, config) for name, (folder, config) in MODELS.items()}
    runs |= {f"{path.name}": RunDirectory(path) for path in args.also}
    reports = {name: run_bench(run, settings=settings) for name, run in runs.items()}
    text = "\n".join(table(name, report) for name, report in reports.items())
    rows = {name: report.model_dump(mode="json", by_alias=True) for name, report in reports.items()}
    write_rows(args.out / "cpu_speed.jsonl", rows)
    write_bytes(args.out / "cpu_speed.md", text.encode())
    print(text)


if __name__ == "__main__":
    main()
