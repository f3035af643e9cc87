"""Does any command make a folder that nobody asked for, or miss the runs that a folder holds?"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import Result

from gacq_deploy_cli.main import cli
from gacq_deploy_cli.options import OutputPath
from tests.support.programs.commands import invoke

MAKE_RUNS = {"calibrate", "quickstart"}
"""Their -o is the run directory that they are asked to make."""
READS = {
    "export": "export --onnx {place}",
    "build-trt": "build-trt {place}",
    "parity": "parity {place}",
    "run": "run {place} -o {tmp}/images.png",
    "bench": "bench {place}",
    "report": "report {place}",
    "compare": "compare {place} {place}",
    "inspect": "inspect {place}",
    "sensitivity": "sensitivity {place}",
    "lint": "lint {place}",
    "check": "check {place} --target tensorrt",
    "verify": "verify {place}",
}
"""Command that takes a run -> how it is called."""
WRITES = {
    "run": "run {run} -n 1 -o {place}.png",
    "report": "report {run} -o {place}.html",
    "parity": "parity {run} --save-polygraphy {place}",
    "compare": "compare {run} {run} -o {place}.html",
}
"""Command with an output of its own -> how it is called."""


def _commands(group: click.Group) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        yield from _commands(command) if isinstance(command, click.Group) else [(name, command)]


def _paths(kind: type[click.Parameter]) -> Iterator[tuple[str, click.Parameter]]:
    for name, command in _commands(cli):
        yield from (
            (name, p) for p in command.params if isinstance(p, kind) and isinstance(p.type, click.Path)
        )


def _refused(line: str, code: int, **places: Path) -> dict[str, Any]:
    words = [word.format(**places) for word in line.split()]
    done: Result = invoke([*words, "--json"])
    assert done.exit_code == code, done.output
    assert "Traceback" not in done.output
    error: dict[str, Any] = json.loads(done.stdout)["error"]
    return error


def test_every_command_that_takes_a_run_is_tried() -> None:
    assert {name for name, _ in _paths(click.Argument)} - {"list"} == set(READS), (
        "list takes a folder of runs"
    )


def test_every_output_is_tried() -> None:
    outputs = {name for name, option in _paths(click.Option) if {"-o", "--output"} & set(option.opts)}
    kinds = {name for name, option in _paths(click.Option) if isinstance(option.type, OutputPath)}
    assert outputs - MAKE_RUNS - {"doctor"} <= kinds, "doctor's -o is only looked at"
    assert kinds == set(WRITES)


@pytest.mark.parametrize("line", READS.values(), ids=READS)
def test_a_missing_run_is_refused_and_not_made(line: str, tmp_path: Path) -> None:
    error = _refused(line, 5, place=tmp_path / "nope" / "mine", tmp=tmp_path)
    assert "nope" in error["message"]
    assert error["hint"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("line", READS.values(), ids=READS)
def test_a_parent_of_runs_names_them(line: str, finished_run: Path, tmp_path: Path) -> None:
    for name in ("mine", "the other"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        shutil.copy(finished_run / "recipe.yaml", tmp_path / "runs" / name)
    before = sorted(tmp_path.rglob("*"))
    error = _refused(line, 5, place=tmp_path / "runs", tmp=tmp_path)
    assert "it holds 2 runs" in error["message"]
    assert f"{tmp_path}/runs/mine, {shlex.quote(f'{tmp_path}/runs/the other')}" in error["hint"]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("line", WRITES.values(), ids=WRITES)
def test_an_output_in_a_missing_folder_is_refused(line: str, finished_run: Path, tmp_path: Path) -> None:
    place = tmp_path / "typo" / "dir" / "x"
    error = _refused(line, 2, run=finished_run, place=place)
    assert f"there is no folder {tmp_path}/typo." in error["message"]
    assert f"mkdir -p {tmp_path}/typo/dir" in error["hint"]
    assert not list(tmp_path.iterdir())


def test_a_folder_inside_a_run_names_the_run(finished_run: Path) -> None:
    error = _refused("parity {place}", 5, place=finished_run / "onnx")
    assert f"it lies in the run {finished_run}" in error["message"]


def test_a_mistyped_run_is_told_the_one_beside_it(finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    shutil.copy(finished_run / "recipe.yaml", tmp_path / "mine")
    error = _refused("parity {place}", 5, place=tmp_path / "mien")
    assert f"Did you mean '{tmp_path}/mine'?" in error["hint"]
