"""Which block loses what INT8 loses? One block at a time is left float, and the model's output measured again.

``python benchmarks/sensitivity.py`` (two minutes on one core): nearest rounding with MSE ranges on the demo model with
every layer but the first, the last and the embeddings in INT8; SQNR of the output on float states, in five timestep
buckets, noisiest first. Writes ``benchmarks/results/sensitivity.jsonl`` and prints the blocks by their effect on the
cleanest bucket.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.store import RESULTS, write_rows
from gacq_deploy.calibration.planning import make_plan
from gacq_deploy.calibration.replay import full_pass
from gacq_deploy.metrics.arrays import by_bucket, sqnr_db
from gacq_deploy.models.source import load_float_denoiser
from gacq_deploy.models.structure.graph import trace_model
from gacq_deploy.models.trajectories.drawn import collect_samples
from gacq_deploy.quant.layers import float_mode, quantized_layers
from gacq_deploy.quant.prepare import estimate_activation_scales, insert_quantizers
from gacq_deploy.recipe.load import load_recipe
from gacq_deploy.recipe.sections import SamplesSection
from gacq_deploy.samples.calibration_set import CalibrationSet, load_samples, timestep_buckets

RULES = (
    "quantization.rules=[{match: '*', bits: 8}, {match: conv_in, ignore: true}, {match: conv_out, ignore: true}, "
    "{match: '*time_emb*', ignore: true}]"
)


def main() -> None:
    """Measure every block and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trajectories", type=int, default=16)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "sensitivity.jsonl")
    args = parser.parse_args()
    torch.set_num_threads(1)
    recipe = load_recipe("fashion-w8a8", [RULES])
    denoiser = load_float_denoiser(recipe.model)
    graph = trace_model(denoiser)

    def collect(seed: int) -> CalibrationSet:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "samples"
            section = SamplesSection(trajectories=args.trajectories, validation_share=0, seed=seed)
            collect_samples(denoiser, section, path)
            return load_samples(path)

    training, held_out = collect(args.seed), collect(args.seed + 1)
    plan = make_plan(recipe, graph)

    def run() -> Iterator[object]:
        return full_pass(denoiser, training, 64)

    insert_quantizers(denoiser.module, plan, estimate_activation_scales(denoiser.module, plan, run))
    buckets = timestep_buckets(held_out.timesteps, 5)

    def measure() -> list[float]:
        answers = np.concatenate(list(full_pass(denoiser, held_out, 64)))
        return [round(float(v), 2) for v in by_bucket(sqnr_db, held_out.targets, answers, buckets)]

    rows = {"nothing more": measure()}
    for name, module in graph.modules(denoiser).items():
        if quantized_layers(module):
            with float_mode(module):
                rows[name] = measure()
    about = {"command": "python benchmarks/sensitivity.py", "seed": args.seed}
    write_rows(args.out, {name: {"sqnr_db": values} for name, values in rows.items()}, about)
    print("| left float | SQNR by bucket, noisy to clean (dB) |\n|---|---|")
    for name, values in sorted(rows.items(), key=lambda item: -item[1][-1]):
        print(f"| {name} | {' '.join(f'{v:.1f}' for v in values)} |")


if __name__ == "__main__":
    main()
