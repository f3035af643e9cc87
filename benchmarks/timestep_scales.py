"""What would activation scales that depend on the timestep buy in one INT8 engine? Measured with fake quantization.

``python -m benchmarks.timestep_scales`` (40 minutes on one core; finished rows are kept) calibrates both shipped models
with the normal chain at preset ``quick`` and gives every activation quantizer G scales, one per group of sampler steps:
trained in the polish, with one scale trained in the same way as the control; or from range estimators, before and after
calibration. Writes ``benchmarks/results/timestep_scales.jsonl``; ``--table`` prints it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.grouped_scales import (
    GroupClock,
    GroupPolish,
    Layers,
    current_scales,
    estimate_scales,
    observe_ranges,
    polish_groups,
    rebuild,
    set_scales,
    shared_quantizers,
)
from benchmarks.quality.pairing import spread
from benchmarks.quality.rows import RECIPES
from benchmarks.store import RESULTS, keep_row, load_rows
from gacq_deploy.artifact.artifact import CalibrationArtifact
from gacq_deploy.backends.base import Feeds, TensorInfo
from gacq_deploy.backends.batches import run_in_batches
from gacq_deploy.backends.function import FunctionEngine
from gacq_deploy.calibration.planning import make_plan
from gacq_deploy.calibration.resume import ALGORITHM
from gacq_deploy.calibration.stage import calibrate
from gacq_deploy.metrics.arrays import by_bucket, sqnr_db
from gacq_deploy.metrics.images import psnr
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.source import load_float_denoiser
from gacq_deploy.models.structure.graph import trace_model
from gacq_deploy.parity.budget import FloatTrajectories, Held, run_freely
from gacq_deploy.quant.layers import float_mode
from gacq_deploy.quant.prepare import insert_quantizers
from gacq_deploy.recipe.load import load_recipe
from gacq_deploy.recipe.sections import Recipe
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.samples.calibration_set import CalibrationSet, load_samples, timestep_buckets
from gacq_deploy.samples.conditioning import Conditions
from gacq_deploy.sampling.loop import build_conditioning, generate, model_sampler

OUT = RESULTS / "timestep_scales.jsonl"
ABOUT = {"command": "python -m benchmarks.timestep_scales"}
MODELS, SETTINGS = ("digits8", "fashion16"), ("w8a8", "w4a8")
SEEDS = {("digits8", "w8a8"): (0, 1, 2), ("fashion16", "w8a8"): (0, 1)}
"""Calibration seeds by model and setting; seed 0 elsewhere, where one takes minutes, or shows that there is nothing."""
METHODS = {"minmax": "minmax", "mse": "mse:2.4"}
NEAREST, REPLACED = "nearest", "replaced"
TRAINED, SLOW, SEEDED, FIRST = "trained", "trained-slowly", "trained-from-ratios", "first-polish"
STATES = (NEAREST, REPLACED, TRAINED, SLOW, SEEDED, FIRST)
"""Before calibration; finished, with estimated scales in place of the learned ones; polished a second time with G
scales that start at the learned one, their logarithms at five times the rate of the rest, or at the same; or that start
at the learned one times the ratio of the group's MSE range to that of all steps. ``first-polish`` starts from the
reconstructed blocks, with G scales from its first step: one polish, as users run it."""
LEARNED = "learned"
STEPS, BUCKETS, IMAGE_SEED, BATCH = 20, 5, 700_000, 64


@dataclass(frozen=True)
class Case:
    """One calibration: model, setting (``wXaY``: bits of weights and activations) and seed."""

    model: str
    setting: str
    seed: int

    def recipe(self) -> Recipe:
        """Return the recipe at preset quick; settings without a recipe take that of w8a8 with other bits."""
        asked = [f"samples.seed={1000 * self.seed}", f"calibration.seed={self.seed}", "calibration.threads=1"]
        known = (self.model, self.setting) in RECIPES
        name = RECIPES[self.model, self.setting if known else "w8a8"]
        if not known:
            weight, _, activation = self.setting.removeprefix("w").partition("a")
            rules = load_recipe(name).document()["quantization"]["rules"]
            bits = {"weight": int(weight), "input": int(activation)}
            changed = [{"match": "*", "role": role, "bits": value} for role, value in bits.items()]
            ignored = [rule for rule in rules if rule["ignore"]]
            rules = [*(r for r in rules if not r["ignore"]), *changed, *ignored]
            asked.append(f"quantization.rules={json.dumps(rules)}")
        return load_recipe(name, asked, preset="quick")

    @property
    def key(self) -> str:
        """Name of the case."""
        return f"{self.model}|{self.setting}|{self.seed}"


@dataclass(frozen=True)
class Variant:
    """Where the scales come from, and how many there are."""

    state: str
    method: str
    groups: int

    @property
    def key(self) -> str:
        """Name of the variant."""
        return f"{self.state}|{self.method}|{self.groups}"


@dataclass(frozen=True)
class Effort:
    """How much is measured, and the rate of the log scales in the polish."""

    images: int = 256
    trajectories: int = 32
    gain_lr: float = 1e-2


def planned(
    models: Sequence[str], settings: Sequence[str], seeds: Sequence[int] | None = None
) -> list[tuple[Case, Variant]]:
    """Return what is measured, case by case; more of it on the cheap model at 8 bits and seed 0."""
    cases = [
        Case(m, s, seed)
        for m in models
        for s in settings
        for seed in (SEEDS.get((m, s), (0,)) if seeds is None else seeds)
    ]
    return [(case, variant) for case in cases for variant in _variants(case)]


def _variants(case: Case) -> Iterator[Variant]:
    cheap, at_8_bits = case.model == "digits8", case.setting == "w8a8"
    yield Variant(REPLACED, LEARNED, 1)
    yield from (Variant(FIRST, LEARNED, count) for count in (1, 5, 20))
    if case.seed > 0 and not cheap:
        return
    yield from (Variant(TRAINED, LEARNED, count) for count in (1, 5, 20))
    yield Variant(SLOW, LEARNED, 1)
    if at_8_bits:
        for state in (REPLACED, NEAREST):
            for method in METHODS:
                yield from (Variant(state, method, count) for count in (1, 5, 20))
    if at_8_bits and case.seed == 0:
        yield Variant(SEEDED, LEARNED, 20)
    if at_8_bits and case.seed == 0 and cheap:
        yield from (Variant(TRAINED, LEARNED, count) for count in (3, 10))
        yield from (Variant(SLOW, LEARNED, count) for count in (5, 20))
        yield from (Variant(SEEDED, LEARNED, count) for count in (3, 5, 10))


def calibrated(case: Case, work: Path) -> tuple[CalibrationArtifact, RunDirectory]:
    """Return the finished calibration of a case, made if it is not there."""
    directory = RunDirectory(work / case.key.replace("|", "-"))
    return calibrate(case.recipe(), directory), directory


def reconstructed(case: Case, work: Path) -> CalibrationArtifact:
    """Return the calibration of a case without its polish, from the finished one's blocks."""
    _, finished = calibrated(case, work)
    directory = RunDirectory(finished.root.with_name(f"{finished.root.name}-blocks"))
    if not directory.work.is_dir():
        directory.root.mkdir(parents=True, exist_ok=True)
        shutil.copy2(finished.samples_path, directory.samples_path)
        shutil.copy2(finished.samples_record_path, directory.samples_record_path)
        shutil.copytree(finished.work, directory.work)
    recipe = case.recipe()
    section = recipe.calibration.model_copy(
        update={"polish": recipe.calibration.polish.model_copy(update={"steps": 0})}
    )
    return calibrate(recipe.model_copy(update={"calibration": section}), directory)


def engine_of(denoiser: Denoiser) -> FunctionEngine:
    """Return the torch model as an engine, for the library's own samplers and metrics."""

    @torch.no_grad()
    def answer(feeds: Feeds) -> dict[str, NDArray[np.float32]]:
        tensors = {
            name: torch.from_numpy(np.ascontiguousarray(value)).clone() for name, value in feeds.items()
        }
        sample, timestep = tensors.pop("sample"), tensors.pop("timestep")
        return {"out": denoiser(sample, timestep, tensors).numpy()}

    shape = (None, *denoiser.record.sample_shape)
    inputs = (TensorInfo("sample", "float32", shape), TensorInfo("timestep", "int64", (None,)))
    conditions = (TensorInfo(n, i["dtype"], (None,)) for n, i in denoiser.record.conditioning.items())
    return FunctionEngine(answer, (*inputs, *conditions), (TensorInfo("out", "float32", shape),), "torch")


class Exam:
    """The float model's same-seed images [N, C, H, W] and trajectories, and how far another model is from them."""

    def __init__(self, denoiser: Denoiser, effort: Effort) -> None:
        record = denoiser.record
        self._sampler = model_sampler(record, STEPS)
        self._shape = record.sample_shape
        self._conditions = Conditions(build_conditioning(record, effort.images))
        self._seeds = range(IMAGE_SEED, IMAGE_SEED + effort.images)
        conditions = Conditions(build_conditioning(record, effort.trajectories))
        seeds = tuple(range(IMAGE_SEED, IMAGE_SEED + effort.trajectories))
        self._held = Held(self._sampler, self._shape, seeds, conditions, BATCH)
        engine = engine_of(denoiser)
        self._images = self._draw(engine)
        self._truth: FloatTrajectories = run_freely(engine, self._held)

    @property
    def timesteps(self) -> NDArray[np.int64]:
        """The sampler's timesteps [S], noisiest first."""
        return self._sampler.timesteps

    def _draw(self, engine: FunctionEngine) -> NDArray[np.float32]:
        return generate(
            engine,
            self._sampler,
            shape=self._shape,
            conditions=self._conditions,
            seeds=self._seeds,
            batch=BATCH,
        )

    def judge(self, denoiser: Denoiser) -> dict[str, Any]:
        """Return image PSNR and the SQNR of single steps on float states, by bucket and step from noisy to clean."""
        engine = engine_of(denoiser)
        similarity = psnr(self._images, self._draw(engine))
        truth, (steps, rows) = self._truth, self._truth.states.shape[:2]
        timesteps = np.repeat(truth.timesteps, rows)
        inputs = {
            "sample": truth.states.reshape(steps * rows, *self._shape),
            "timestep": timesteps,
            **{k: np.tile(v, steps) for k, v in self._held.conditions.positive.items()},
        }
        answers = run_in_batches(engine, inputs, BATCH)
        exact = truth.outputs.reshape(answers.shape)
        buckets = by_bucket(sqnr_db, exact, answers, timestep_buckets(timesteps, BUCKETS))
        by_step = by_bucket(sqnr_db, exact, answers, timestep_buckets(timesteps, steps))
        return {
            "psnr_db": round(float(similarity.mean()), 3),
            "psnr_db_median": round(float(np.median(similarity)), 3),
            "sqnr_db": round(sqnr_db(exact, answers), 3),
            "sqnr_db_by_bucket": [round(v, 2) for v in buckets],
            "sqnr_db_by_step": [round(v, 2) for v in by_step],
        }


class Bench:
    """Makes variants of one case and measures them."""

    def __init__(self, case: Case, work: Path, exam: Exam, effort: Effort) -> None:
        self._recipe, self._exam, self._effort = case.recipe(), exam, effort
        self._seed, self._case, self._work = case.seed, case, work
        self._artifact, directory = calibrated(case, work)
        self._samples = load_samples(directory.samples_path)

    @cached_property
    def _training(self) -> CalibrationSet:
        return self._samples.training

    def measure(self, variant: Variant) -> dict[str, Any]:
        """Return the numbers of one variant."""
        started = time.process_time()
        denoiser = load_float_denoiser(self._recipe.model)
        make = self._nearest if variant.state == NEAREST else self._finished
        layers, facts = make(denoiser, variant)
        ratios = [q.scale.max() / q.scale.min() for q in shared_quantizers(layers).values()]
        return {
            **self._exam.judge(denoiser),
            **facts,
            "scale_max_over_min": round(float(torch.stack(ratios).median()), 3),
            "cpu_s": round(time.process_time() - started, 1),
        }

    def _nearest(self, denoiser: Denoiser, variant: Variant) -> tuple[Layers, dict[str, Any]]:
        """Round to nearest, and take ranges from the float model."""
        graph = trace_model(denoiser)
        plan = make_plan(self._recipe, graph)
        ones = {e.tie: 1.0 for e in plan if e.site.role != "weight"}
        layers = insert_quantizers(denoiser.module, plan, ones)
        clock = GroupClock(denoiser.module, self._exam.timesteps, variant.groups)
        with float_mode(denoiser.module):
            ranges = observe_ranges(denoiser, layers, clock, self._training, BATCH)
        set_scales(layers, clock, estimate_scales(layers, ranges, METHODS[variant.method]))
        return layers, {}

    def _finished(self, denoiser: Denoiser, variant: Variant) -> tuple[Layers, dict[str, Any]]:
        """Take the calibrated model, and what it really sees at its layers' inputs."""
        first = variant.state == FIRST
        layers = rebuild(denoiser, reconstructed(self._case, self._work) if first else self._artifact)
        clock = GroupClock(denoiser.module, self._exam.timesteps, variant.groups)
        scales = current_scales(layers, variant.groups)
        if variant.method != LEARNED or variant.state == SEEDED:
            ranges = observe_ranges(denoiser, layers, clock, self._training, BATCH)
            if variant.state == SEEDED:
                ratios = self._ratios(denoiser, layers, estimate_scales(layers, ranges, METHODS["mse"]))
                scales = {name: scales[name] * ratios[name] for name in scales}
            else:
                scales = estimate_scales(layers, ranges, METHODS[variant.method])
        set_scales(layers, clock, scales)
        if variant.state == REPLACED:
            return layers, {}
        section = self._recipe.calibration.polish
        rate = section.lr if variant.state == SLOW else self._effort.gain_lr
        return layers, self._polish(denoiser, layers, GroupPolish(section, self._seed, rate))

    def _ratios(
        self, denoiser: Denoiser, layers: Layers, grouped: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        single = GroupClock(denoiser.module, self._exam.timesteps, 1)
        ranges = observe_ranges(denoiser, layers, single, self._training, BATCH)
        overall = estimate_scales(layers, ranges, METHODS["mse"])
        return {name: grouped[name] / overall[name] for name in grouped}

    def _polish(self, denoiser: Denoiser, layers: Layers, settings: GroupPolish) -> dict[str, Any]:
        diagnostics = self._artifact.diagnostics
        stage = None if diagnostics is None else diagnostics.stage("polish")
        assert stage is not None, "the chain was run without a polish"
        torch.manual_seed(0)
        weights = stage.weights.astype(np.float64)
        losses = polish_groups(denoiser, layers, self._training, weights, settings)
        return {name: float(f"{value:.5g}") for name, value in losses.items()}


def pairs(
    rows: Mapping[str, Mapping[str, Any]], measure: str
) -> dict[str, dict[int, list[tuple[float, float]]]]:
    """Return "model|setting|state|method" -> groups -> (with one scale, with so many), seed by seed.

    ``rows`` are results by "model|setting|seed|state|method|groups"; ``measure`` names a number, or
    ``sqnr_db_by_bucket:2`` an element of a list. Scales trained from ratios have the control of those that were not.
    """
    found: dict[str, dict[int, list[tuple[float, float]]]] = {}
    for key, row in rows.items():
        model, setting, seed, state, method, groups = key.split("|")
        control = rows.get(
            "|".join((model, setting, seed, TRAINED if state == SEEDED else state, method, "1"))
        )
        if control is not None and groups != "1":
            pair = (_number(control, measure), _number(row, measure))
            found.setdefault(f"{model}|{setting}|{state}|{method}", {}).setdefault(int(groups), []).append(
                pair
            )
    return found


def _number(row: Mapping[str, Any], measure: str) -> float:
    name, _, index = measure.partition(":")
    return float(row[name][int(index)] if index else row[name])


def render(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table: one scale, and what more of them add to the same calibrations, mean ± sd over seeds."""
    lines = [
        "| model, setting | scales | seeds | PSNR, G = 1 | G | PSNR gain | SQNR gain by bucket, noisy to clean |",
        "|---|---|---|---|---|---|---|",
    ]
    buckets = [pairs(rows, f"sqnr_db_by_bucket:{b}") for b in range(BUCKETS)]
    for key, by_groups in sorted(pairs(rows, "psnr_db").items()):
        model, setting, state, method = key.split("|")
        for groups, values in sorted(by_groups.items()):
            cells = (
                f"{model} {setting}",
                state if method == LEARNED else f"{state}, {method}",
                len(values),
                spread([one for one, _ in values]),
                groups,
                spread([more - one for one, more in values]),
                " ".join(f"{np.mean([more - one for one, more in b[key][groups]]):+.1f}" for b in buckets),
            )
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _run(wanted: Sequence[tuple[Case, Variant]], effort: Effort, work: Path, out: Path) -> None:
    rows, asked = load_rows(out), {**asdict(effort), "algorithm": ALGORITHM}
    exams: dict[str, Exam] = {}
    benches: dict[Case, Bench] = {}
    for case, variant in wanted:
        key = f"{case.key}|{variant.key}"
        if key in rows and rows[key]["asked"] == asked:
            continue
        if case not in benches:
            if case.model not in exams:
                exams[case.model] = Exam(load_float_denoiser(case.recipe().model), effort)
            benches = {case: Bench(case, work, exams[case.model], effort)}
        row = benches[case].measure(variant)
        keep_row(out, key, {**row, "asked": asked}, ABOUT)
        print(f"{row['cpu_s']:6.1f} s  {key}  {row['psnr_db']} dB {row['sqnr_db_by_bucket']}", flush=True)


def main() -> None:
    """Measure what is missing and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.timestep_scales", description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument(
        "--settings", nargs="+", default=list(SETTINGS), help="w8a8, w4a8, or other bits: w6a6"
    )
    parser.add_argument("--seeds", nargs="+", type=int, help="of calibrations; by default the plan's")
    parser.add_argument("--states", nargs="+", default=list(STATES), choices=STATES)
    parser.add_argument("--images", type=int, default=Effort.images)
    parser.add_argument("--trajectories", type=int, default=Effort.trajectories)
    parser.add_argument("--gain-lr", type=float, default=Effort.gain_lr)
    parser.add_argument("--work", type=Path, default=Path("runs/timestep_scales"))
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--table", action="store_true", help="print the table and stop")
    args = parser.parse_args()
    if not args.table:
        torch.set_num_threads(1)
        effort = Effort(args.images, args.trajectories, args.gain_lr)
        wanted = [
            (c, v) for c, v in planned(args.models, args.settings, args.seeds) if v.state in args.states
        ]
        _run(wanted, effort, args.work, args.out)
    print(render(load_rows(args.out)))


if __name__ == "__main__":
    main()
