"""`check`: would this graph build and run on a target that is not here, and how sure is that?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gacq_deploy.check.targets import BY_NAME
from gacq_deploy.engines.catalogue import REFERENCE
from gacq_deploy_cli import exit_codes
from gacq_deploy_cli.console import NextStep, Output
from gacq_deploy_cli.following import next_for
from gacq_deploy_cli.options import GivenPath, NameOf, common, with_output
from gacq_deploy_cli.table import Table

if TYPE_CHECKING:
    from gacq_deploy.check.check import Preflight, Reason

MEANING = {
    "blocked": "the target would refuse it, or compute it wrongly",
    "unverified": "it holds something that no rule and no measurement covers",
    "likely": "nothing speaks against it, but it was not compiled for this target",
    "verified": "compiled here, with integer layers as predicted",
}
_VERIFIED_BY_RUNNING = "loaded and run here"
"""Where the target is what runs graphs as they are."""


@click.command(short_help="Would any ONNX graph build on a target that is not here?")
@click.argument("path", type=GivenPath(), metavar="FILE.onnx|DIR")
@click.option(
    "--target",
    type=NameOf(tuple(BY_NAME)),
    default="tensorrt",
    show_default=True,
    help="What it is for.",
)
@click.option(
    "--compile", "compile_", is_flag=True, help="Compile it in a child process (ort-cpu: run it) to be sure."
)
@click.option(
    "--shapes", metavar="NAME:AxB,...", help="Shapes to compile for, where the graph leaves them open."
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="S",
    help="Stop the compiler; default 3600.",
)
@common
@with_output
def check(
    output: Output, path: Path, *, target: str, compile_: bool, shapes: str | None, timeout: float | None
) -> int:
    """Say whether an ONNX graph, whoever made it, would build and run on a target; exit 3 when it is blocked.

    Blocked: a rule or the target's own parser refuses it. Unverified: no rule covers something in it. Likely:
    nothing speaks against it. Verified: compiled here. Of a run directory the graph made for the target is
    checked. Needs no GPU; an installed TensorRT or ONNX Runtime is asked to read the graph.
    """
    from gacq_deploy.build_trt.compiler import Limits
    from gacq_deploy.build_trt.profiles import parse_shapes
    from gacq_deploy.check.check import CheckRequest, check_file

    fixed = parse_shapes(shapes, what="--shapes") if shapes else {}
    limits = Limits() if timeout is None else Limits(timeout_s=timeout)
    name = BY_NAME[target]
    found = check_file(_graph(path, target), name, CheckRequest(compile_, fixed, limits))
    output.emit(asdict(found), *_tables(found), *_next(found, path, target, compiled=compile_))
    return exit_codes.GATE if found.verdict == "blocked" else exit_codes.DONE


def _graph(path: Path, target: str) -> Path:
    """Return the file given, or the INT8 graph that a run directory holds for ``target``."""
    if not path.is_dir():
        return path
    from gacq_deploy.errors import ArtifactError
    from gacq_deploy.export.record import load_export
    from gacq_deploy.inspection.commands import command_for
    from gacq_deploy.run_directory import RunDirectory

    directory = RunDirectory(path)
    directory.require()
    graph = directory.cpu_onnx if target == REFERENCE else directory.int8_onnx
    # a graph that is not the one that was exported is not judged in its name
    if graph.name not in load_export(directory).graphs:
        raise ArtifactError(
            f"{path} holds no {graph.name}.", f"Run `{command_for('graphs', directory)}` first."
        )
    return graph


def _tables(found: Preflight) -> list[Table | str]:
    return [
        *([_table(found.reasons)] if found.reasons else []),
        f"Asked: {', '.join(found.examined)}",
        _layers(found),
        f"{found.file} for {found.target}: {found.verdict} ({_meaning(found)})",
    ]


def _next(found: Preflight, path: Path, target: str, *, compiled: bool) -> tuple[NextStep, ...]:
    if found.verdict == "blocked":
        return ()
    if not compiled:
        return (NextStep(("check", path, "--target", target, "--compile"), "to be sure"),)
    return next_for(path) if path.is_dir() else ()


def _meaning(found: Preflight) -> str:
    if found.verdict == "verified" and found.target == REFERENCE:
        return _VERIFIED_BY_RUNNING
    return MEANING[found.verdict]


def _layers(found: Preflight) -> str:
    layers = found.layers
    counts = [(layers.predicted, "predicted"), (layers.measured, "measured")]
    known = [f"{count} in integers ({how})" for count, how in counts if count is not None]
    return f"Layers with Q/DQ: {layers.quantized}" + "".join(f", {text}" for text in known)


def _table(reasons: Sequence[Reason]) -> Table:
    """One row a rule and text, with the number of nodes it applies to and the first of them."""
    counts = Counter((r.weight, r.rule, r.remedy) for r in reasons)
    first = {(r.weight, r.rule, r.remedy): r for r in reversed(reasons)}
    rows = [
        (key[0], key[1], count, f"{first[key].node}: {first[key].detail}", key[2])
        for key, count in counts.items()
    ]
    return Table("reasons", ["weight", "rule", "nodes", "first", "remedy"], rows)
