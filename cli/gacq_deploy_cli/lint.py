"""`lint`: would an engine refuse this graph, compute it wrongly, or run it in float?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gacq_deploy.engines.catalogue import CANONICAL, CPU, RULED, rules_for
from gacq_deploy_cli import exit_codes
from gacq_deploy_cli.console import NextStep, Output
from gacq_deploy_cli.following import next_for
from gacq_deploy_cli.options import GivenPath, NameOf, common, with_output
from gacq_deploy_cli.table import Table
from gacq_deploy_cli.units import counted

if TYPE_CHECKING:
    from gacq_deploy.lint.lint import Finding


@click.command(short_help="Judge any ONNX graph for an engine.")
@click.argument("path", type=GivenPath(), metavar="FILE.onnx|DIR")
@click.option("--target", type=NameOf(tuple(RULED)), help="Engine to judge for; default tensorrt for a file.")
@common
@with_output
def lint(output: Output, path: Path, target: str | None) -> int:
    """Check an ONNX graph, whoever made it, against what engines accept; exit 3 when one would choke.

    A run directory has each of its INT8 graphs judged for the engine it was made for. Needs no engine
    installed.
    """
    from gacq_deploy.lint.lint import errors_in, lint_file

    found = {(str(file), engine): lint_file(file, target=engine) for file, engine in _subjects(path, target)}
    document = [_document(file, engine, findings) for (file, engine), findings in found.items()]
    tables = [_table(f"{file} for {engine}", findings) for (file, engine), findings in found.items()]
    refused = any(errors_in(findings) for findings in found.values())
    output.emit(document, *tables, _summary(document), *_next(path, refused=refused))
    return exit_codes.GATE if refused else exit_codes.DONE


def _summary(document: Sequence[dict[str, Any]]) -> str:
    counts = [judged["counts"] for judged in document]
    errors, warnings = (sum(count[kind] for count in counts) for kind in ("error", "warn"))
    judged, warned = counted(len(document), "graph"), counted(warnings, "warning")
    if errors:
        return f"REFUSED: {counted(errors, 'error')} and {warned} in {judged}; what to do stands beside each."
    return f"Nothing here is refused: {judged}, {warned}."


def _next(path: Path, *, refused: bool) -> tuple[NextStep, ...]:
    if path.is_dir():
        return () if refused else next_for(path)
    return (NextStep(("check", path), "asks the target's own library, too, where it is installed"),)


def _document(file: str, engine: str, findings: Sequence[Finding]) -> dict[str, Any]:
    from gacq_deploy.lint.lint import count_findings

    listed = [asdict(finding) for finding in findings]
    return {"file": file, "target": engine, "counts": count_findings(findings), "findings": listed}


def _subjects(path: Path, target: str | None) -> Sequence[tuple[Path, str]]:
    """Return (file, engine) pairs: the file given, or the INT8 graphs of a run directory."""
    rules = None if target is None else RULED[target]
    if not path.is_dir():
        return [(path, rules or RULED["tensorrt"])]
    from gacq_deploy.errors import ArtifactError
    from gacq_deploy.export.record import load_export
    from gacq_deploy.inspection.commands import command_for
    from gacq_deploy.run_directory import RunDirectory

    directory = RunDirectory(path)
    directory.require()
    # a graph that is not the one that was exported is not judged in its name
    exported = load_export(directory).graphs
    pairs = [(directory.onnx / graph, of) for graph in (CANONICAL, CPU) for of in rules_for(graph)]
    present = [(file, of) for file, of in pairs if file.name in exported and rules in (None, of)]
    if not present:
        raise ArtifactError(
            f"{path} holds no INT8 graph for {target or 'any engine'}.",
            f"Run `{command_for('graphs', directory)}` first.",
        )
    return present


def _table(title: str, findings: Sequence[Finding]) -> Table | str:
    """One row a rule and text, with the number of nodes it applies to and the first of them."""
    if not findings:
        return f"{title}: nothing found"
    alike: dict[tuple[str, ...], list[Finding]] = {}
    for finding in findings:
        kind = (finding.severity, finding.rule, finding.effect, finding.remedy)
        alike.setdefault(kind, []).append(finding)
    rows = []
    for (severity, rule, effect, remedy), found in alike.items():
        first = f"{found[0].node}: {found[0].detail}"
        rows.append((severity, rule, len(found), first, f"{effect} {remedy}"))
    return Table(title, ["severity", "rule", "nodes", "first", "effect and remedy"], rows)
