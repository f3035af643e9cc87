"""How many sampler steps must run in float, and which, to bring INT8 images back to the float model's?

``python -m benchmarks.step_policy RUN ...`` (two minutes a run of fashion16 on one core) on run directories with
exported graphs: same-seed images of the float graph, of the INT8 graph, and of mixes with k of the sampler's steps in
float, for every ``where`` of the recipe's ``runtime.step_policy``. Three sets of image noise; PSNR and SSIM are against
the float images of the same seeds, mean over a set, then mean and standard deviation over the sets. Also what each step
alone does to the image (INT8 in that step, float in all others), beside what ``worst`` believes. Writes
``benchmarks/results/step_policy.jsonl`` and ``step_policy.svg``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from benchmarks.curves import Curve, Panel, draw_panels
from benchmarks.store import RESULTS, Rows, write_rows
from gacq_deploy.artifact.artifact import CalibrationArtifact, load_artifact
from gacq_deploy.backends.base import Engine, Feeds
from gacq_deploy.backends.function import FunctionEngine
from gacq_deploy.backends.mixed_steps import SteppedEngine
from gacq_deploy.engines.open import open_engine
from gacq_deploy.metrics.images import psnr, ssim
from gacq_deploy.recipe.sections import StepPolicySection, Where
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.samples.conditioning import Conditions
from gacq_deploy.sampling.ddim import DdimSampler
from gacq_deploy.sampling.loop import build_conditioning, generate, model_sampler
from gacq_deploy.sampling.step_error import image_errors, output_error
from gacq_deploy.sampling.step_policy import StepPolicy, resolve_policy
from gacq_deploy.spec import Array
from gacq_deploy.storage.digests import digest_array
from gacq_deploy.storage.files import write_bytes

PLACES: tuple[Where, ...] = get_args(Where)
COUNTS = (0, 1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 18, 19)
STEPS, BATCH, APART = 20, 20, 10_000
SEED = 700_000
Images = NDArray[np.float32]


@dataclass(frozen=True)
class Subject:
    """One run directory with both engines open, and its float images for every set of seeds."""

    name: str
    artifact: CalibrationArtifact
    int8: Engine
    exact: Engine
    sampler: DdimSampler
    sets: tuple[tuple[int, ...], ...]

    def draw(self, engine: Engine, seeds: Sequence[int]) -> Images:
        """Return the images an engine makes from these seeds, every class in turn."""
        record = self.artifact.model
        return generate(
            engine,
            self.sampler,
            shape=record.sample_shape,
            conditions=Conditions(build_conditioning(record, len(seeds))),
            seeds=seeds,
            batch=BATCH,
        )

    def mixed(self, policy: StepPolicy) -> SteppedEngine:
        """Return the mix; the engines stay open for the next one, so it must not be closed."""
        return SteppedEngine(self.int8, self.exact, policy.choose)


def remembering(engine: Engine) -> Engine:
    """Return an engine that answers the same feeds once: mixes share the steps up to where they part."""
    known: dict[str, dict[str, Array]] = {}

    def answer(feeds: Feeds) -> dict[str, Array]:
        key = "".join(digest_array(feeds[name]) for name in sorted(feeds))
        if key not in known:
            known[key] = engine.run(feeds)
        return known[key]

    return FunctionEngine(answer, engine.inputs, engine.outputs, engine.label)


def measure(subject: Subject) -> dict[str, Any]:
    """Return the curves of one run, and each step's own effect."""
    truth = [subject.draw(subject.exact, seeds) for seeds in subject.sets]
    known: dict[tuple[int, ...], dict[str, Any]] = {}

    def judge(asked: StepPolicySection) -> dict[str, Any]:
        policy = resolve_policy(asked, subject.sampler.timesteps, subject.artifact)
        key = policy.float_timesteps
        if key not in known:
            images = [subject.draw(subject.mixed(policy), seeds) for seeds in subject.sets]
            known[key] = compare(truth, images)
        return {"float_steps": len(key), "float_share": policy.share, **known[key]}

    curves = {w: [judge(StepPolicySection(float_steps=k, where=w)) for k in COUNTS] for w in PLACES}
    steps = range(STEPS)
    alone = [judge(StepPolicySection(steps=tuple(s for s in steps if s != one))) for one in steps]
    believed = image_errors(
        output_error(subject.artifact.probe), subject.artifact.model.scheduler, subject.sampler.timesteps
    )
    # by PSNR, image by image: a few images that become another picture would drown all others in a pooled error
    moved = np.array([row["psnr_db"] for row in alone])
    return {
        "curves": curves,
        "single_steps": {
            "timesteps": subject.sampler.timesteps.tolist(),
            "int8_here_alone_psnr_db": moved.tolist(),
            "believed_rms": believed.tolist(),
            "rank_correlation": rank_correlation(believed, -moved),
            "rank_correlation_of_output_sqnr": rank_correlation(output_sqnr(subject), moved),
        },
    }


def compare(truth: Sequence[Images], images: Sequence[Images]) -> dict[str, Any]:
    """Return the distance from the float images: mean over a set, then mean and spread over the sets."""
    pairs = list(zip(truth, images, strict=True))
    levels = np.array([np.mean(psnr(a, b)) for a, b in pairs])
    likeness = np.array([np.mean(ssim(a, b)) for a, b in pairs])
    worst = [float(np.min(psnr(a, b))) for a, b in pairs]
    return {
        "psnr_db": float(levels.mean()),
        "psnr_db_sd": float(levels.std(ddof=1)),
        "ssim": float(likeness.mean()),
        "ssim_sd": float(likeness.std(ddof=1)),
        "psnr_db_of_the_worst_image": float(np.mean(worst)),
    }


def output_sqnr(subject: Subject) -> NDArray[np.float64]:
    """Return the SQNR of single steps on the probe's states, dB, by the sampler's steps."""
    probe = subject.artifact.probe
    assert probe is not None
    exact, rows = probe.outputs["float"].astype(np.float64), probe.inputs["timestep"]
    signal = [np.sqrt(np.mean(exact[rows == t] ** 2)) for t in subject.sampler.timesteps]
    return np.asarray(20 * np.log10(np.array(signal) / output_error(probe).at(subject.sampler.timesteps)))


def rank_correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Return Spearman's rank correlation of two arrays without ties."""
    first, second = (np.argsort(np.argsort(values)) for values in (one, other))
    return float(np.corrcoef(first, second)[0, 1])


def study(root: Path, file: str, images: int, seeds: Sequence[int]) -> tuple[str, dict[str, Any]]:
    """Measure one run directory; return its name and what was found."""
    directory = RunDirectory(root)
    recipe = directory.load_recipe()
    artifact = load_artifact(directory.artifact)
    sampler = model_sampler(artifact.model, STEPS)
    sets = tuple(tuple(range(first, first + images)) for first in seeds)
    bits = min(entry.spec.bits for entry in artifact.plan if entry.site.role == "weight")
    name = f"{recipe.model.source.removeprefix('builtin:')} W{bits}A8"
    started = time.process_time()
    with (
        open_engine("ort-cpu", directory.onnx / file, threads=1) as int8,
        open_engine("ort-cpu", directory.float_onnx, threads=1) as exact,
    ):
        found = measure(Subject(name, artifact, remembering(int8), remembering(exact), sampler, sets))
        label = int8.label
    about = {
        "artifact_sha256": artifact.manifest_digest,
        "trajectories": recipe.samples.trajectories,
        "reconstruction_iterations": recipe.calibration.reconstruction.iterations,
        "polish_steps": recipe.calibration.polish.steps,
    }
    cpu = round(time.process_time() - started)
    return name, {"graph": file, "engine": label, "run": about, "cpu_seconds": cpu, **found}


def draw(studies: Rows, path: Path) -> None:
    """Draw PSNR against the share of float steps, one panel a run."""
    panels = [
        Panel(
            f"{name}, {one['graph']}",
            tuple(_curve(where, rows) for where, rows in one["curves"].items()),
        )
        for name, one in studies.items()
    ]
    write_bytes(path, draw_panels(panels, "steps in float (%)", "image PSNR (dB)").encode())


def _curve(where: str, rows: Sequence[dict[str, Any]]) -> Curve:
    columns = [[row[key] for row in rows] for key in ("float_share", "psnr_db", "psnr_db_sd")]
    share, level, spread = (tuple(column) for column in columns)
    return Curve(where, tuple(100 * s for s in share), level, spread)


def table(studies: Rows) -> str:
    """Return PSNR by share of float steps as Markdown, one block of rows a run."""
    shown = [k for k in (0, 1, 2, 4, 6, 10, 14, 18) if k in COUNTS]
    lines = ["| | float steps of 20 | " + " | ".join(map(str, shown)) + " |", "|---" * (len(shown) + 2) + "|"]
    for name, one in studies.items():
        for where, rows in one["curves"].items():
            by_count = {row["float_steps"]: row for row in rows}
            cells = [f"{by_count[k]['psnr_db']:.1f} ± {by_count[k]['psnr_db_sd']:.1f}" for k in shown]
            lines.append(f"| {name} | {where} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure every run, write figures and numbers, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="run directories with exported graphs")
    parser.add_argument("--graph", default="int8.cpu.onnx", choices=["int8.onnx", "int8.cpu.onnx"])
    parser.add_argument("--images", type=int, default=40, help="in each set")
    parser.add_argument("--sets", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "step_policy.jsonl")
    args = parser.parse_args()
    seeds = [SEED + i * APART for i in range(args.sets)]
    studies = dict(study(root, args.graph, args.images, seeds) for root in args.runs)
    command = (
        f"python -m benchmarks.step_policy --graph {args.graph} --images {args.images} --sets {args.sets}"
    )
    about = {
        "command": f"{command} {' '.join(root.name for root in args.runs)}",
        "first_seeds": seeds,
        "images": args.images,
        "steps": STEPS,
    }
    write_rows(args.out, studies, about)
    draw(studies, args.out.with_suffix(".svg"))
    print(table(studies))


if __name__ == "__main__":
    main()
