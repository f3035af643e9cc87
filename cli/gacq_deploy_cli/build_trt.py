"""`build-trt`: from the Q/DQ graph to engines that a user can trust."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gacq_deploy.engines.catalogue import COMPILED
from gacq_deploy_cli import exit_codes
from gacq_deploy_cli.console import NextStep, Output
from gacq_deploy_cli.options import NameOf, common, run_directory_argument, with_output
from gacq_deploy_cli.table import Table
from gacq_deploy_cli.units import about, counted, duration, size

if TYPE_CHECKING:
    from gacq_deploy.backends.trt.profiles import Shape
    from gacq_deploy.build_trt.manifest import EngineManifest
    from gacq_deploy.build_trt.options import CompileOptions
    from gacq_deploy.build_trt.stage import BuildRequest, BuiltEngine, PlannedBuild
    from gacq_deploy.recipe.build import BuildSection
    from gacq_deploy.workflow.prove import Proof


@click.command("build-trt", short_help="Compile TensorRT engines, and prove what is INT8 in them.")
@run_directory_argument
@click.option("--backend", type=NameOf(("auto", *COMPILED)), help="Which library compiles.")
@click.option(
    "--batch", multiple=True, metavar="MIN:OPT:MAX", help="Batch sizes; repeat it for more profiles."
)
@click.option(
    "--resolution", multiple=True, metavar="HxW:HxW", help="Sizes of the denoiser's input, where open."
)
@click.option("--shapes", metavar="NAME:AxB,...", help="One shape an input, in trtexec's grammar.")
@click.option("--min-shapes", metavar="NAME:AxB,...", help="Smallest shapes (trtexec's --minShapes).")
@click.option("--opt-shapes", metavar="NAME:AxB,...", help="Shapes to tune for (--optShapes).")
@click.option("--max-shapes", metavar="NAME:AxB,...", help="Largest shapes (--maxShapes).")
@click.option("--float-type", type=NameOf(["float16", "float32"]), help="Type of what is not INT8.")
@click.option(
    "--compute-capability", "compute_capabilities", multiple=True, metavar="8.6", help="GPU to build for."
)
@click.option(
    "--workspace", "workspace_mb", type=click.IntRange(1, 2**24), metavar="MB", help="Scratch memory."
)
@click.option("--opt-level", type=click.IntRange(0, 5), help="How long the builder searches.")
@click.option("--timing-cache/--no-timing-cache", default=None, help="Keep kernel timings between builds.")
@click.option("--refit/--no-refit", default=None, help="Let the weights be replaced later.")
@click.option("--strip/--no-strip", default=None, help="Leave the weights out of the plan.")
@click.option("--hw-compat/--no-hw-compat", default=None, help="Run on every GPU from Ampere on (TensorRT).")
@click.option(
    "--version-compat/--no-version-compat", default=None, help="Run on later TensorRT versions too."
)
@click.option(
    "--fp16-baseline/--no-fp16-baseline",
    default=None,
    help="Build the float graph too; default: where a GPU is.",
)
@click.option(
    "--min-int8-coverage", type=click.FloatRange(0, 1), help="Least share of planned layers in INT8."
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    metavar="S",
    help="Stop the builder.",
)
@click.option(
    "--memory-mb", type=click.IntRange(min=64), metavar="MB", help="Stop the builder at this much memory."
)
@click.option("--rebuild", is_flag=True, help="Build even what is up to date.")
@click.option("--dry-run", is_flag=True, help="Print profiles and estimates; build nothing.")
@common
@with_output
def build_trt(
    output: Output,
    /,
    directory: Path,
    *,
    shapes: str | None,
    min_shapes: str | None,
    opt_shapes: str | None,
    max_shapes: str | None,
    rebuild: bool,
    dry_run: bool,
    **chosen: Any,
) -> int:
    """Lint int8.onnx, compile it in a process of its own, and hold every planned layer against the plan.

    Defaults are the recipe's `build` section. Built before from the same inputs, nothing is built. Exit 3 when the
    lint finds what TensorRT would refuse, or when too few planned layers compiled to INT8; each is named with
    the rule that explains it. TensorRT-RTX compiles without a GPU; TensorRT needs the one it builds for.
    """
    from gacq_deploy.build_trt.stage import BuildRequest, build_engines, plan_builds
    from gacq_deploy.run_directory import RunDirectory
    from gacq_deploy.workflow.prove import prove_engines

    run = RunDirectory(directory)
    section = _override(run.load_recipe().build, chosen)
    fixed = _fixed({"": shapes, "min": min_shapes, "opt": opt_shapes, "max": max_shapes})
    request: BuildRequest = BuildRequest(section, fixed, rebuild)
    if dry_run:
        planned = plan_builds(run, request)
        tables = _plan_tables(planned)
        output.emit({"plan": [_plan_document(p) for p in planned]}, *tables, _dry_summary(planned))
        return exit_codes.DONE
    with output.progress() as report:
        built = build_engines(run, request, report)
        proof = prove_engines(run, built, report)
    document: dict[str, Any] = {"engines": _documents(built), "proof": _proof_document(proof)}
    lines = (*_proof_lines(proof), *size_lines(built[0].record, run.int8_onnx))
    output.emit(document, *_tables(built), *lines, plan_text(built), next_step(directory, proof))
    return exit_codes.DONE if proof is None or proof.parity else exit_codes.GATE


def plan_text(built: Sequence[BuiltEngine]) -> str:
    """Return what was built, in one sentence."""
    record = built[0].record
    plan = record.files["engine.plan"].bytes
    options = record.inputs.options
    gpus = ", ".join(options.compute_capabilities) or _target_text(built[0])
    return f"plan for {gpus}: {size(plan)}, {coverage_text(record.coverage)}."


def size_lines(record: EngineManifest, graph: Path) -> Iterator[str]:
    """Yield why a plan is larger than its graph, where it is."""
    plan, source = record.files["engine.plan"].bytes, graph.stat().st_size
    if record.inputs.library == "tensorrt-rtx" and plan > source:
        yield (
            f"The plan is larger than {graph.name} ({size(source)}): TensorRT for RTX keeps its kernels as source text "
            "in it, which the GPU's own machine compiles at the first load."
        )


def next_step(directory: Path, proof: Proof | None) -> NextStep:
    """Return what comes after a build whose engines ran here, or did not."""
    if proof is None:
        # the plan is judged where it runs
        return NextStep(("parity", directory), "on a machine with such a GPU, with a copy of this folder")
    return NextStep(("bench", directory))


def _documents(built: Sequence[BuiltEngine]) -> list[dict[str, Any]]:
    return [
        {"folder": str(b.folder), "reused": b.reused, **b.record.model_dump(mode="json", by_alias=True)}
        for b in built
    ]


def _proof_document(proof: Proof | None) -> dict[str, Any] | None:
    """Return what running the engines showed; None where nothing was run."""
    if proof is None:
        return None
    return {"parity_passed": bool(proof.parity), "times_faster_than_baseline": proof.speed}


def _proof_lines(proof: Proof | None) -> Iterator[str]:
    if proof is None:
        yield "not run: no GPU is here that could run it as it is, so parity and speed of the plan are not known"
        return
    yield "parity: passed" if proof.parity else "parity: did not pass; `gacq-deploy parity` shows where"
    for batch, speed in proof.speed.items():
        word = "faster" if speed > 1 else "SLOWER"
        yield f"batch {batch}: {speed:.2f} times the float baseline's speed ({word}; wall time, interleaved)"


def _override(section: BuildSection, chosen: Mapping[str, Any]) -> BuildSection:
    """Return the recipe's section with the options that were given."""
    from pydantic import ValidationError

    from gacq_deploy.errors import UsageError

    given = {name: value for name, value in chosen.items() if value is not None and value != ()}
    try:
        return type(section).model_validate({**section.model_dump(), **given})
    except ValidationError as error:
        item = error.errors()[0]
        raise UsageError(
            f"build.{'.'.join(map(str, item['loc']))}: {item['msg']} (got {item['input']!r}).",
            "`gacq-deploy build-trt --help` lists the options.",
        ) from None


def _fixed(options: Mapping[str, str | None]) -> dict[str, dict[str, Shape]]:
    """Return trtexec's shapes by min, opt and max; ``--shapes`` says all three."""
    from gacq_deploy.build_trt.profiles import parse_shapes
    from gacq_deploy.errors import UsageError

    parsed = {
        which: parse_shapes(text, what=_shapes_option(which))
        for which, text in options.items()
        if text is not None
    }
    everywhere = parsed.pop("", {})
    fixed = {which: {**everywhere, **parsed.get(which, {})} for which in ("min", "opt", "max")}
    for name in dict.fromkeys(chain.from_iterable(fixed.values())):
        missing = [which for which, shapes in fixed.items() if name not in shapes]
        if missing:
            raise UsageError(
                f"Input '{name}' has no {' and no '.join(missing)} shape.",
                "Give all of --min-shapes, --opt-shapes and --max-shapes, or --shapes.",
            )
    return fixed


def _shapes_option(which: str) -> str:
    return f"--{which}-shapes" if which else "--shapes"


def _profile_table(options: CompileOptions) -> Table | str:
    if not options.profiles:
        return "profiles: none, every input has a fixed shape"
    rows = [
        (number, name, "x".join(map(str, r.min)), "x".join(map(str, r.opt)), "x".join(map(str, r.max)))
        for number, profile in enumerate(options.profiles)
        for name, r in sorted(profile.items())
    ]
    return Table("profiles", ["profile", "input", "min", "opt", "max"], rows)


def _dry_summary(planned: Sequence[PlannedBuild]) -> str:
    missing = [build for build in planned if build.found is None]
    if not missing:
        return "Everything is up to date: there is nothing to build."
    seconds = sum(build.estimate.seconds for build in missing)
    return f"{counted(len(missing), 'plan')} to build, {about(seconds)}. Leave --dry-run out to build."


def _plan_document(planned: PlannedBuild) -> dict[str, Any]:
    return {
        "folder": str(planned.folder),
        "present": planned.found is not None,
        "estimate": {
            "seconds": planned.estimate.seconds,
            "memory_mb": planned.estimate.memory_mb,
            "layers": planned.estimate.layers,
        },
        "inputs": planned.inputs.model_dump(mode="json"),
    }


def _plan_tables(planned: tuple[PlannedBuild, ...]) -> tuple[Table | str, ...]:
    columns = ["graph", "library", "float type", "engine", "state", "time", "memory"]
    rows = [_planned_row(build) for build in planned]
    return (_profile_table(planned[0].inputs.options), Table("plan (nothing was written)", columns, rows))


def _planned_row(planned: PlannedBuild) -> tuple[object, ...]:
    inputs = planned.inputs
    return (
        planned.graph,
        f"{inputs.library}-{inputs.version}",
        inputs.float_type,
        planned.folder,
        "up to date" if planned.found is not None else "to build",
        f"about {duration(planned.estimate.seconds)}",
        f"about {size(planned.estimate.memory_mb << 20)}",
    )


def _built_row(built: BuiltEngine) -> tuple[object, ...]:
    record = built.record
    return (
        record.inputs.graph,
        record.label,
        built.folder / "engine.plan",
        size(record.files["engine.plan"].bytes),
        "as it was" if built.reused else duration(record.seconds),
        coverage_text(record.coverage),
    )


def _tables(built: tuple[BuiltEngine, ...]) -> tuple[Table | str, ...]:
    rows = [_built_row(engine) for engine in built]
    # all engines of one build share profiles and targets; the first is the INT8 graph's
    options = built[0].record.inputs.options
    targets = ", ".join(options.compute_capabilities) or _target_text(built[0])
    lost = [
        (n["module"] or n["node"], n["operator"], n["kernel"], n["rule"], n["why"])
        for n in _lost(built[0].record.coverage or {})
    ]
    return (
        _profile_table(options),
        Table(f"engines for {targets}", ["graph", "library", "plan", "size", "built in", "INT8"], rows),
        *([Table("not as planned", ["layer", "operator", "kernel", "rule", "why"], lost)] if lost else []),
    )


def _target_text(built: BuiltEngine) -> str:
    device = built.record.inputs.device
    return device.name if device is not None else "any GPU of this library (portable)"


def coverage_text(coverage: Mapping[str, Any] | None) -> str:
    """Return how many layers are INT8, and how many hold INT4 weights and compute in float."""
    if coverage is None:
        return "float baseline"
    texts = [f"{coverage['int8']} of {coverage['planned']} planned layers ({coverage['share']:.1%})"]
    if (weights := coverage.get("weight_only")) is not None:
        texts = texts if coverage["planned"] else []
        texts.append(f"INT4 weights alone: {weights['int4']} of {weights['planned']} layers")
    return "; ".join(texts)


def _lost(coverage: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [*coverage.get("lost", []), *coverage.get("weight_only", {}).get("lost", [])]
