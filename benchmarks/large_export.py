"""What do the stages behind calibration take for a model of the size of SD 1.5, SDXL or SD3? Memory, time, disk.

Usage::

    python -m benchmarks.large_export MODEL [--half] [--work FOLDER] [--keep] [--only STEP ...] [--rows N] [--no-probe]

MODEL is one of :data:`benchmarks.large_models.MODELS`: a published configuration, random weights, nothing downloaded.
Its run directory holds what ``calibrate`` leaves: the codes nearest to the weights, scales of one pass over random
input at low resolution, and as probe ``N`` states at full resolution with torch's own answers. Every step is a process
of its own, the program's own command but for the first, with one thread:

make        write model and run directory, one tensor after the other
dry-run     calibrate --dry-run: what it foresees (models whose pipeline can be written)
export      export --onnx: all graphs, lint, self-check
verify      verify
lint        lint
check       check
build-plan  build-trt --dry-run: what it foresees
build       build-trt --backend tensorrt-rtx --no-fp16-baseline, the builder's memory included

``results/large_export.jsonl`` has a row a model: highest sum of the process's own memory (RssAnon) and of all its
descendants', CPU seconds by the stages that the progress announces, and disk. The bounds are those of ``LIMITS``. A
step that fails is kept with its error and is the last.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.large_models import MODELS, LargeModel, write_model
from benchmarks.large_pipelines import make_sd15, make_sdxl
from benchmarks.nearest import nearest_artifact
from benchmarks.store import RESULTS, keep_row, load_rows
from benchmarks.watched import Facts, folder_bytes, watch
from gacq_deploy.artifact.call import SAMPLE, TIMESTEP
from gacq_deploy.artifact.probe import Probe
from gacq_deploy.bench.stage import describe_host
from gacq_deploy.calibration.planning import make_plan
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.source import Recording, find_source, load_module, make_denoiser
from gacq_deploy.models.structure.graph import trace_model
from gacq_deploy.recipe.load import load_recipe
from gacq_deploy.recipe.sections import ModelSection
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.spec import QuantPlan
from gacq_deploy.storage.files import scratch

OUT = RESULTS / "large_export.jsonl"
ABOUT = {"schema": "gacq-deploy/benchmark/large-export/1"}
LIMITS = {"anon_mb": 1500, "cpu_s": 600}
"""Of the export: own memory of all its processes together, and CPU seconds without the self-check."""
PIPELINES: dict[str, Callable[..., Path]] = {"sd15": make_sd15, "sdxl": make_sdxl}
"""Models for which a whole pipeline can be written, as a dry run needs it."""
MAKE, DRY_RUN = "make", "dry-run"
SELF_CHECK = "self-check"
"""What the name of a stage that is not counted begins with."""
RANGES = "minmax"
"""How ranges are found: the search for the best clipping is no part of this question."""


def main() -> None:
    """Make the model, run every step and write what it took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--half", action="store_true", help="Store the weights as float16.")
    parser.add_argument("--work", type=Path, help="Folder for the files; default: a temporary one.")
    parser.add_argument("--keep", action="store_true", help="Keep the files.")
    parser.add_argument("--only", nargs="+", choices=STEPS, help="Run these steps; the others' figures stay.")
    parser.add_argument("--rows", type=int, default=1, help="States of the probe.")
    parser.add_argument("--no-probe", action="store_true", help="Leave the probe out; export then refuses.")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    rows = 0 if asked.no_probe else asked.rows
    if asked.child:
        make_run(asked.work, asked.model, half=asked.half, rows=rows)
        return
    work = asked.work or Path(tempfile.mkdtemp(prefix="large-export-"))
    work.mkdir(parents=True, exist_ok=True)
    key = f"{asked.model}{'-half' if asked.half else ''}"
    steps = load_rows(OUT).get(key, {}).get("steps", {}) if asked.only else {}
    try:
        for step in asked.only or STEPS:
            if step == DRY_RUN and asked.model not in PIPELINES:
                continue
            steps[step] = _measure(step, asked.model, work, half=asked.half, rows=rows)
            facts = {"host": describe_host().model_dump(mode="json"), "half": asked.half, "probe_rows": rows}
            keep_row(OUT, key, {**facts, "limits": _limits(steps), "steps": steps}, ABOUT)
            if steps[step]["code"]:
                raise SystemExit(f"{asked.model}, {step}: it ended with {steps[step]['code']}, see {OUT}")
    finally:
        if not asked.keep:
            shutil.rmtree(work)
    sys.stdout.write(f"{json.dumps(_limits(steps))}\n{OUT}\n")


def make_run(work: Path, name: str, *, half: bool = False, rows: int = 1) -> RunDirectory:
    """Write a model into ``work/model`` and into ``work/run`` what calibration would leave of it.

    Args:
        work: the folder; a model that lies there already is taken.
        name: of :data:`benchmarks.large_models.MODELS`.
        half: store the weights as float16.
        rows: states of the probe; 0: it is left out.
    """
    model = MODELS[name]
    folder = work / "model"
    if not folder.is_dir():
        PIPELINES[name](folder, half=half) if name in PIPELINES else write_model(folder, model, half=half)
    recipe = load_recipe(model.recipe, [f"model.source={folder.resolve()}", "calibration.threads=1"])
    denoiser = _denoiser(recipe.model, model)
    small = _of_shape(denoiser, model.small)
    plan = make_plan(recipe, trace_model(small))
    plan = QuantPlan(tuple(replace(entry, range_method=RANGES) for entry in plan))
    run = RunDirectory(work / "run")
    recipe.save(run.recipe_path)
    with scratch(work / "codes", folder=True) as codes:
        learned = nearest_artifact(small, plan, batch=1, record=denoiser.record, folder=codes)
        probe = _probe(denoiser, rows) if rows else None
        replace(learned, recipe=recipe.decisive(), probe=probe).save(run.artifact)
    return run


def _denoiser(section: ModelSection, model: LargeModel) -> Denoiser:
    """Load a denoiser whose weights stay mapped as they are stored."""
    source = find_source(section)
    recording = None if model.call is None else Recording(model.call, dict(model.scheduler))
    return make_denoiser(source, load_module(source, keep_stored=True), recording)


def _of_shape(denoiser: Denoiser, shape: tuple[int, ...]) -> Denoiser:
    """Return the denoiser of another state's shape, which shows the same layers for less work."""
    record, changes = denoiser.record, {"sample_shape": shape}
    if record.call is not None:
        state = record.call.state.model_copy(update={"shape": shape})
        changes["call"] = record.call.model_copy(update={"state": state})
    return replace(denoiser, record=record.model_copy(update=changes))


@torch.no_grad()
def _probe(denoiser: Denoiser, rows: int) -> Probe:
    """Return the float model's own answers, one row at a time."""
    inputs = denoiser.example_inputs(rows, seed=2)
    outputs = []
    for row in range(rows):
        one = {name: value[row : row + 1] for name, value in inputs.items()}
        outputs.append(denoiser(one.pop(SAMPLE), one.pop(TIMESTEP), one))
    return Probe({k: v.numpy() for k, v in inputs.items()}, {"float": torch.cat(outputs).numpy()}, {})


def _measure(step: str, name: str, work: Path, *, half: bool, rows: int) -> Facts:
    """Run one step and return what it took, and what is kept of its answer."""
    load = describe_host().load_average
    sys.stdout.write(f"{name}, {step}\n")
    sys.stdout.flush()
    if step == MAKE:
        options = ["--child", "--work", str(work), "--rows", str(rows), *(["--half"] if half else [])]
        made = watch([name, *options], work, module=("-m", "benchmarks.large_export"))
        size = folder_bytes(work / "model") >> 20
        return {**made.facts, "load_average": load, "code": made.code, "model_mb": size}
    arguments, kept = COMMANDS[step](work)
    found = watch([*arguments, "--json"], work / "none" if step == DRY_RUN else work / "run")
    document = found.document()
    answer = document if "error" in document else kept(document)
    facts = {**found.facts, "load_average": load, "code": found.code, "answer": answer}
    sys.stdout.write(f"{json.dumps(facts)}\n")
    return facts


def _limits(steps: Facts) -> Facts:
    """Hold an export that was made against its bounds."""
    took = steps.get("export")
    if took is None or took["code"]:
        return {}
    counted = sum(v["cpu_s"] for k, v in took["stages"].items() if not k.startswith(SELF_CHECK))
    found = {"anon_mb": took["anon_mb"], "cpu_s": round(counted, 1)}
    return {k: {"limit": LIMITS[k], "found": found[k], "held": found[k] < LIMITS[k]} for k in LIMITS}


_Step = tuple[list[str], Callable[[Any], Any]]
"""Arguments of the program, and what is kept of its answer."""


def _dry_run(work: Path) -> _Step:
    document = load_recipe(RunDirectory(work / "run").recipe_path)
    source = f"model.source={document.model.source}"
    arguments = ["calibrate", "-r", document.name, "--set", source, "-o", str(work / "none"), "--dry-run"]
    return arguments, lambda answer: {
        k: round(answer["estimate"][k]) for k in ("memory_mb", "disk_mb", "export_mb", "seconds")
    }


def _export(work: Path) -> _Step:
    def kept(answer: Any) -> Facts:
        files = {name: entry["bytes"] >> 20 for name, entry in answer["files"].items()}
        return {"files_mb": files, **{k: answer[k] for k in ("lint", "self_check", "quantized_sites")}}

    return ["export", str(work / "run"), "--onnx"], kept


def _verify(work: Path) -> _Step:
    return ["verify", str(work / "run")], lambda answer: {
        "passed": answer["passed"],
        "links": {link["name"]: link["status"] for link in answer["links"]},
    }


def _lint(work: Path) -> _Step:
    return ["lint", str(work / "run")], lambda answer: [
        {k: judged[k] for k in ("target", "counts")} for judged in answer
    ]


def _check(work: Path) -> _Step:
    arguments = ["check", str(work / "run"), "--target", "tensorrt-rtx"]
    return arguments, lambda answer: {k: answer[k] for k in ("verdict", "layers", "reasons")}


def _build_of(work: Path) -> list[str]:
    return ["build-trt", str(work / "run"), "--backend", "tensorrt-rtx", "--no-fp16-baseline"]


def _build_plan(work: Path) -> _Step:
    return [*_build_of(work), "--dry-run"], lambda answer: answer["plan"][0]["estimate"]


def _build(work: Path) -> _Step:
    def kept(answer: Any) -> Any:
        engine = answer["engines"][0]
        files = {name: entry["bytes"] >> 20 for name, entry in engine["files"].items()}
        library = f"{engine['inputs']['library']}-{engine['inputs']['version']}"
        return {
            "library": library,
            "files_mb": files,
            "coverage": {k: engine["coverage"][k] for k in ("int8", "planned")},
            "builder_peak_mb": engine["peak_mb"],
        }

    return _build_of(work), kept


COMMANDS: dict[str, Callable[[Path], _Step]] = {
    DRY_RUN: _dry_run,
    "export": _export,
    "verify": _verify,
    "lint": _lint,
    "check": _check,
    "build-plan": _build_plan,
    "build": _build,
}
STEPS = (MAKE, *COMMANDS)


if __name__ == "__main__":
    main()
