"""What does each way of quantizing cost the pictures? Nearest rounding and block reconstruction, on deployable graphs.

``python benchmarks/fidelity.py`` (most of an hour on one core; finished rows are kept and not repeated) calibrates the
demo model for every setting, method and seed, makes the canonical and the CPU graph, and measures both in ONNX Runtime
against the float graph: teacher-forced SQNR of the model output in five timestep buckets (noisiest first), and PSNR and
SSIM of same-seed images. Seeds change the calibration data and the batch order and nothing else; the images' seeds are
held out from both. Writes ``benchmarks/results/fidelity.json`` and prints the table.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gacq_deploy.artifact import CalibrationArtifact
from gacq_deploy.backends import open_engine
from gacq_deploy.calibration.calibrate import calibrate
from gacq_deploy.export.cpu_flavour import to_cpu_flavour
from gacq_deploy.export.qdq import insert_qdq
from gacq_deploy.export.torch_onnx import float_graph
from gacq_deploy.models.source import load_denoiser
from gacq_deploy.parity.budget import Held, Trajectories, compare_with_float, hold_out, run_freely
from gacq_deploy.recipe import ModelSection, Recipe, load_recipe
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.storage import write_json

RESULTS = Path(__file__).parent / "results"
SETTINGS = {"w8a8": "fashion-w8a8", "w4a8": "fashion-w4a8"}
METHODS = {"nearest, min-max": "minmax", "nearest, MSE": "mse", "reconstruction": None}


@dataclass(frozen=True)
class Row:
    """One calibration and where it is measured."""

    setting: str
    method: str
    seed: int

    @property
    def key(self) -> str:
        """Name of the row in the results."""
        return f"{self.setting}|{self.method}|{self.seed}"

    def recipe(self, images: int, threads: int) -> Recipe:
        """Return the built-in recipe, with nearest rounding and one range method where the row asks for it."""
        overrides = [
            f"samples.seed={1000 * self.seed}",
            f"calibration.seed={self.seed}",
            f"calibration.threads={threads}",
            f"parity.images={images}",
        ]
        method = METHODS[self.method]
        if method is not None:
            overrides.append("calibration.reconstruction.iterations=0")
            asked = load_recipe(SETTINGS[self.setting]).document()["quantization"]["rules"]
            rules = [rule if rule["ignore"] else {**rule, "range": {"method": method}} for rule in asked]
            overrides.append(f"quantization.rules={json.dumps(rules)}")
        return load_recipe(SETTINGS[self.setting], overrides)


def measure(
    artifact: CalibrationArtifact, graph: Any, truth: Trajectories, held: Held, recipe: Recipe
) -> dict[str, Any]:
    """Return the metrics of the canonical and of the CPU graph."""
    flavours = {
        "int8.onnx": insert_qdq(graph, artifact, placement="input"),
        "int8.cpu.onnx": to_cpu_flavour(insert_qdq(graph, artifact, placement="output")),
    }
    measured = {}
    for name, model in flavours.items():
        with open_engine("ort-cpu", model.SerializeToString(), threads=1) as engine:
            edge, _ = compare_with_float(engine, ("float", name), truth, held, recipe.parity)
        measured[name] = {
            "sqnr_db_by_bucket": [row["sqnr_db"] for row in edge.by_timestep],
            "psnr_db": edge.metrics["image_psnr_db"],
            "ssim": edge.metrics["image_ssim"],
        }
    return measured


def summarise(rows: dict[str, Any]) -> str:
    """Return the Markdown table: mean and standard deviation over seeds."""
    lines = [
        "| setting | method | graph | eps SQNR, noisy to clean (dB) | worst bucket | image PSNR (dB) | SSIM |",
        "|---|---|---|---|---|---|---|",
    ]
    for setting in SETTINGS:
        for method in METHODS:
            for graph in ("int8.onnx", "int8.cpu.onnx"):
                group = [
                    r["graphs"][graph]
                    for k, r in sorted(rows.items())
                    if k.startswith(f"{setting}|{method}|")
                ]
                if not group:
                    continue
                buckets = np.array([g["sqnr_db_by_bucket"] for g in group])
                means = " ".join(f"{v:.1f}" for v in buckets.mean(0))
                cells = [spread([b.min() for b in buckets]), spread([g["psnr_db"] for g in group])]
                ssim = np.mean([g["ssim"] for g in group])
                lines.append(
                    f"| {setting} | {method} | `{graph}` | {means} | {cells[0]} | {cells[1]} | {ssim:.4f} |"
                )
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """Return ``mean ± sd``."""
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=1) if len(values) > 1 else 0:.1f}"


def main() -> None:
    """Run what is not yet measured and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--work", type=Path, default=Path("runs/fidelity"))
    parser.add_argument("--out", type=Path, default=RESULTS / "fidelity.json")
    args = parser.parse_args()
    done = json.loads(args.out.read_text())["rows"] if args.out.is_file() else {}
    wanted = [Row(s, m, seed) for seed in args.seeds for s in args.settings for m in METHODS]
    first = wanted[0].recipe(args.images, args.threads)
    denoiser = load_denoiser(ModelSection.model_validate(first.model.model_dump()))
    weights = denoiser.record.weights_sha256
    if any(row["weights_sha256"] != weights for row in done.values()):
        done = {}
    graph = float_graph(denoiser)
    truth: Trajectories | None = None
    for row in wanted:
        if row.key in done:
            continue
        started = time.process_time()
        recipe = row.recipe(args.images, args.threads)
        artifact = calibrate(recipe, RunDirectory(args.work / row.key.replace("|", "-").replace(", ", "-")))
        calibration_cpu = time.process_time() - started
        assert artifact.probe is not None
        held = hold_out(artifact.model, artifact.probe, recipe.parity, recipe.runtime.batch)
        if truth is None:
            with open_engine("ort-cpu", graph.SerializeToString(), threads=1) as engine:
                truth = run_freely(engine, held)
        done[row.key] = {
            "weights_sha256": weights,
            "calibration_cpu_s": round(calibration_cpu, 1),
            "images": args.images,
            "graphs": measure(artifact, graph, truth, held, recipe),
        }
        write_json(args.out, {"command": "python benchmarks/fidelity.py", "rows": done})
        print(row.key, done[row.key], flush=True)
    print(summarise(done))


if __name__ == "__main__":
    main()
