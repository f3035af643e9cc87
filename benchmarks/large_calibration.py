"""Does a model of Stable Diffusion 1.5's size calibrate, and did the dry run say what it takes? SDXL: what it needs.

Usage::

    python -m benchmarks.large_calibration [--work FOLDER] [--latent 16] [--model sd15|sdxl] [--half] [--keep]

Writes ``results/large_calibration.jsonl``. The pipelines are those of :mod:`benchmarks.large_pipelines`: the UNet at
full size with random weights, the rest structure only. Every command is the installed program's, in a process of its
own, one thread, preset ``ci`` and ``SETTINGS``:

sd15    calibrate --dry-run, calibrate
sdxl    calibrate --dry-run

What comes behind it is :mod:`benchmarks.large_export`'s question. The page on large models shows both.
:mod:`benchmarks.watched` reads the memory: ``anon_mb`` is a process's own, ``file_mb`` what it has mapped of files
(weights, caches), which the kernel drops and reads again when memory is short, ``peak_mb`` both together; each is the
highest seen.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import yaml

from benchmarks.large_pipelines import make_sd15, make_sdxl
from benchmarks.store import RESULTS, keep_row, load_rows
from benchmarks.watched import Facts, watch
from gacq_deploy.bench.stage import describe_host
from gacq_deploy.recipe.load import load_recipe

OUT = RESULTS / "large_calibration.jsonl"
ABOUT = {"schema": "gacq-deploy/benchmark/large-calibration/1"}
MAKERS = {"sd15": make_sd15, "sdxl": make_sdxl}
SETTINGS = (
    "samples.trajectories=2",  # of 4 steps with 2 rows of guidance: 16 samples
    "samples.steps=4",
    "samples.validation_share=0",
    "calibration.threads=1",
    "calibration.reconstruction.iterations=2",
    "calibration.reconstruction.batch=4",
    "calibration.polish.steps=2",
    "calibration.polish.batch=4",
    "parity.probe.trajectories=1",
    "parity.probe.local_samples=2",
)
STEPS = ("dry-run", "calibrate")
LIMIT_MB = 16_000


def main() -> None:
    """Make the pipeline, run every command and write what it took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, help="Folder for the files (6 GB); default: a temporary one.")
    parser.add_argument("--latent", type=int, default=16, help="Height and width of a latent.")
    parser.add_argument("--model", choices=MAKERS, default="sd15")
    parser.add_argument("--half", action="store_true", help="Store the weights as float16.")
    parser.add_argument("--keep", action="store_true", help="Keep the files.")
    parser.add_argument("--only", choices=STEPS, help="Run this step again; the others' figures stay.")
    arguments = parser.parse_args()
    work = arguments.work or Path(tempfile.mkdtemp(prefix="large-calibration-"))
    key = f"{arguments.model}{'-half' if arguments.half else ''}"
    steps = load_rows(OUT).get(key, {}).get("steps", {}) if arguments.only else {}
    wanted = (arguments.only,) if arguments.only else STEPS if arguments.model == "sd15" else STEPS[:1]
    try:
        for step in wanted:
            steps[step] = _measure(arguments.model, step, work, arguments.latent, half=arguments.half)
            facts = _compared(steps, arguments.latent)
            keep_row(OUT, key, facts, ABOUT)
    finally:
        if not arguments.keep:
            shutil.rmtree(work)
    sys.stdout.write(f"{json.dumps(facts['compared'])}\n{OUT}\n")


def _measure(model: str, step: str, work: Path, latent: int, *, half: bool) -> Facts:
    """Run one command and return what is kept of its answer, and what it took."""
    folder = work / model
    if not (folder / "model_index.json").is_file():
        MAKERS[model](folder, half=half)
    recipe = _write_recipe(work / f"{model}.yaml", f"{model}-w8a8")
    run = work / f"run-{model}"
    settings = [f"model.source={folder.resolve()}", f"model.sample_size={latent}", *SETTINGS]
    calibrate = ["calibrate", "-r", str(recipe), "--preset", "ci", "-o", str(run), "--json"]
    calibrate += [part for setting in settings for part in ("--set", setting)]
    load = describe_host().load_average
    match step:
        case "dry-run":
            # nobody's run directory: the estimate is for one that starts from nothing, and nothing is written
            nowhere = work / "none"
            facts, answer = _run([*calibrate, "--dry-run", "-o", str(nowhere)], nowhere)
            assert facts.pop("disk_mb") == 0
            kept = {k: v for k, v in answer["estimate"].items() if k not in ("sites", "blocks")}
        case _:
            facts, answer = _run(calibrate, run)
            kept = {k: answer[k] for k in ("output_sqnr_db", "notes")}
    return {**facts, "load_average": load, "answer": kept}


def _compared(steps: Facts, latent: int) -> Facts:
    """Put steps beside what the dry run said of them."""
    compared: Facts = {}
    peak = max(s["anon_mb"] for s in steps.values())
    if "dry-run" in steps and "calibrate" in steps:
        estimate, took = steps["dry-run"]["answer"], steps["calibrate"]
        for name, found in (("seconds", "wall_s"), ("memory_mb", "peak_mb"), ("disk_mb", "disk_mb")):
            ratio = round(estimate[name] / took[found], 2)
            compared[name] = {"estimated": round(estimate[name]), "found": took[found], "ratio": ratio}
        # what one thread takes of a machine that nobody else uses
        compared["cpu_s"] = {"found": took["cpu_s"], "ratio": round(estimate["seconds"] / took["cpu_s"], 2)}
    return {
        "host": describe_host().model_dump(mode="json"),
        "latent": latent,
        "settings": list(SETTINGS),
        "steps": steps,
        "compared": compared,
        "limit": {"anon_mb": LIMIT_MB, "held": peak < LIMIT_MB, "peak_anon_mb": peak},
    }


def _write_recipe(path: Path, name: str) -> Path:
    """Write the built-in recipe with weight scales from the largest value: searching them is another question."""
    document = load_recipe(name).document()
    rules = document["quantization"]["rules"]
    widest = {"match": "*", "role": "weight", "bits": 8, "range": {"method": "minmax"}, "optional": True}
    first = next(i for i, rule in enumerate(rules) if rule["ignore"])
    document["quantization"] = {
        "rules": [*rules[:first], *({**widest, "layer": k} for k in ("conv", "linear")), *rules[first:]]
    }
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def _run(arguments: list[str], run: Path) -> tuple[Facts, Facts]:
    """Run the program; return what it took, and its JSON answer."""
    watched = watch(arguments, run)
    if watched.code:
        raise SystemExit(f"{' '.join(arguments)} failed")
    sys.stdout.write(f"{arguments[0]}: {json.dumps(watched.facts)}\n")
    sys.stdout.flush()
    return watched.facts, watched.document()


if __name__ == "__main__":
    main()
