"""Does any command make a folder that nobody asked for, or miss the runs that a folder holds?"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import Result

import gacq_deploy
from gacq_deploy.errors import UsageError
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy_cli.main import cli
from gacq_deploy_cli.options import GivenPath, OutputPath
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
    "sign": "sign {place} --key {tmp}/key.pem",
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


STRANGERS: dict[str, tuple[str, ...]] = {
    "thesis": ("work/thesis.tex", "artifact/paper.pdf"),
    "own recipe": ("recipe.yaml",),
    "own samples": ("samples.json", "samples.safetensors"),
    "foreign artifact": ("artifact/manifest.json",),
    "hidden": (".env",),
    "dangling link": ("nowhere",),
}
"""What somebody keeps in a folder that is no run."""
MAKES = {
    "calibrate": "calibrate -r {recipe} -o {place}",
    "calibrate --fresh": "calibrate -r {recipe} -o {place} --fresh",
    "calibrate --dry-run": "calibrate -r {recipe} -o {place} --dry-run",
    "quickstart": "quickstart -r {recipe} -o {place} --fresh",
}


@pytest.mark.parametrize("line", MAKES.values(), ids=MAKES)
@pytest.mark.parametrize("names", STRANGERS.values(), ids=STRANGERS)
def test_a_folder_of_somebody_else_is_refused_and_left_as_it_is(
    line: str, names: tuple[str, ...], recipe_file: Path, tmp_path: Path
) -> None:
    for name in names:
        path = tmp_path / "place" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name == "nowhere":
            path.symlink_to(tmp_path / "gone")
        else:
            path.write_text('{"schema": "of another program"}')
    before = sorted((p, p.is_symlink() or p.is_dir() or p.read_text()) for p in tmp_path.rglob("*"))
    error = _refused(line, 2, recipe=recipe_file, place=tmp_path / "place")
    assert names[0].partition("/")[0] in error["message"]
    assert f"-o {tmp_path}/place/run" in error["hint"]
    assert "--fresh" not in error["hint"]
    assert sorted((p, p.is_symlink() or p.is_dir() or p.read_text()) for p in tmp_path.rglob("*")) == before


def test_an_empty_folder_is_taken_and_marked_and_a_run_without_its_mark_is_known(
    recipe_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    (run / "lost+found").mkdir(parents=True)
    (run / ".gitkeep").touch()
    for _ in range(2):
        assert invoke(["calibrate", "-r", str(recipe_file), "-o", str(run)]).exit_code == 0
        assert (run / ".gacq-run").is_file()
        (run / ".gacq-run").unlink()
    (run / "artifact" / "manifest.json").write_text("{}")
    for line in ("export --onnx {place}", "calibrate -r {recipe} -o {place}"):
        code = 5 if line.startswith("export") else 2
        error = _refused(line, code, recipe=recipe_file, place=run)
        assert "--fresh" not in error["hint"]


def test_what_a_user_wrote_in_the_recipe_of_a_run_stays(recipe_file: Path, run_copy: Path) -> None:
    recipe = run_copy / "recipe.yaml"
    written = "# why: the larger model failed\n" + recipe.read_text()
    recipe.write_text(written)
    assert invoke(["calibrate", "-r", str(recipe), "-o", str(run_copy)]).exit_code == 0
    assert recipe.read_text() == written, "it says the same: it is not written again"
    line = ["calibrate", "-r", str(recipe), "-o", str(run_copy), "--set", "parity.buckets=7"]
    assert invoke(line).exit_code == 0
    assert "buckets: 7" in recipe.read_text()
    assert (run_copy / "recipe.yaml.1").read_text() == written


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("report {run} -o {run}/onnx/int8.onnx", "does not end in .html"),
        ("report {run} -o {run}/recipe.yaml", "does not end in .html"),
        ("report {run} -o {tmp}/picture.html", "is no HTML file, whatever its name says"),
        ("compare {run} {other} -o {run}/report.html", "is a file of the run"),
        ("run {run} -n 1 -o {run}/report.html", "does not end in .png"),
        ("run {run} -n 1 -o {run}/comparison.png", "is a file of the run"),
        ("run {run} -n 1 -o {tmp}/fifo.png", "it is there, and no file"),
    ],
)
def test_an_output_does_not_replace_a_file_of_another_kind(
    line: str, message: str, run_copy: Path, finished_run: Path, tmp_path: Path
) -> None:
    (tmp_path / "picture.html").write_bytes(b"\x89PNG or whatever")
    os.mkfifo(tmp_path / "fifo.png")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    error = _refused(line, 2, run=run_copy, other=finished_run, tmp=tmp_path)
    assert message in error["message"]
    after = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert {p: data for p, data in after.items() if p in before} == before


def test_an_empty_path_is_refused_everywhere(finished_run: Path, tmp_path: Path) -> None:
    taken = [(name, p) for kind in (click.Argument, click.Option) for name, p in _paths(kind)]
    assert len(taken) > 15
    assert all(isinstance(parameter.type, GivenPath) for _, parameter in taken)
    for name, parameter in taken:
        path = next(words for words in _named(cli) if words[-1] == name)
        given = [*parameter.opts[:1], ""] if isinstance(parameter, click.Option) else [""]
        done = invoke([*path, *given, "--json"])
        assert done.exit_code == 2, (name, done.output)
        assert "path is empty" in json.loads(done.stdout)["error"]["message"], name
    with pytest.raises(UsageError, match="path is empty"):
        RunDirectory("")


def _named(group: click.Group, *above: str) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _named(command, *above, name)
        else:
            yield (*above, name)


def test_no_refusal_advises_to_throw_away_what_is_there() -> None:
    sources = Path(gacq_deploy.__file__).parent.rglob("*.py")
    assert [path.name for path in sources if "--fresh" in path.read_text()] == []
