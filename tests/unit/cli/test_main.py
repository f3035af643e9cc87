"""What is said where nothing is asked, a name is wrong, or the shell wants to complete one?"""

from __future__ import annotations

import json

import click
import pytest
from click.shell_completion import ShellComplete

from gacq_deploy import __version__
from gacq_deploy.check.targets import CHECK_TARGETS
from gacq_deploy.engines.catalogue import BUILT_IN, TARGETS
from gacq_deploy.recipe.load import builtin_recipes
from gacq_deploy.recipe.presets import shown_presets
from gacq_deploy_cli import exit_codes
from gacq_deploy_cli.main import cli
from tests.support.programs.commands import invoke

ENGINES = {record.name for record in BUILT_IN}


@pytest.mark.parametrize(("arguments", "names"), [([], cli.commands), (["recipes"], ("list", "show"))])
def test_a_group_alone_shows_its_help(arguments: list[str], names: tuple[str, ...]) -> None:
    done = invoke(arguments)
    assert done.exit_code == 0
    assert done.stdout == invoke([*arguments, "--help"]).stdout
    assert set(names) <= set(done.stdout.split())


@pytest.mark.parametrize("arguments", [["--version", "--json"], ["--json", "--version"]], ids=" ".join)
def test_the_version_is_a_document_too(arguments: list[str]) -> None:
    assert json.loads(invoke(arguments).stdout) == {"name": "gacq-deploy", "version": __version__}
    assert invoke(["--version"]).stdout == f"gacq-deploy, version {__version__}\n"


def test_the_help_names_every_exit_code() -> None:
    words = invoke(["--help"]).stdout.split()
    codes = {code for _, code in exit_codes.EXIT_CODES} | {exit_codes.DONE, exit_codes.CLOSED_PIPE, 129, 143}
    assert codes == set(exit_codes.MEANINGS)
    assert set(map(str, codes)) <= set(words)


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["export", ".", "--target", "tensort"], "tensorrt"),
        (["lint", ".", "--target", "openvno"], "openvino"),
        (["check", ".", "--target", "ortcpu"], "ort-cpu"),
        (["build-trt", ".", "--backend", "tensorrt-rx"], "tensorrt-rtx"),
        (["run", ".", "-o", "a.png", "--float-where", "worts"], "worst"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_wrong_name_is_told_the_nearest(arguments: list[str], meant: str) -> None:
    done = invoke(arguments)
    assert done.exit_code == exit_codes.USAGE
    assert f"Did you mean '{meant}'?" in done.stderr


def _completed(*arguments: str, begun: str = "") -> set[str]:
    shell = ShellComplete(cli, {}, "gacq-deploy", "_GACQ_DEPLOY_COMPLETE")
    return {item.value for item in shell.get_completions(list(arguments), begun)}


COMPLETED = {
    ("calibrate", "-r"): builtin_recipes(),
    ("quickstart", "--recipe"): builtin_recipes(),
    ("recipes", "show"): builtin_recipes(),
    ("recipes", "validate"): builtin_recipes(),
    ("calibrate", "--preset"): shown_presets(),
    ("quickstart", "--preset"): shown_presets(),
    ("run", ".", "--engine"): ENGINES,
    ("parity", ".", "--engine"): ENGINES,
    ("bench", ".", "--engine"): ENGINES,
    ("export", ".", "--target"): TARGETS,
}


@pytest.mark.parametrize("arguments", COMPLETED, ids=" ".join)
def test_the_shell_completes_names(arguments: tuple[str, ...]) -> None:
    names = COMPLETED[arguments]
    assert _completed(*arguments) >= set(names)
    first = min(names)
    assert first in _completed(*arguments, begun=first[:3])
    assert _completed(*arguments, begun="zz") <= {"zz"}, "at most files"


def test_every_option_with_a_list_of_names_helps_with_a_wrong_one() -> None:
    choices = [
        (command.name, parameter.name)
        for command in cli.commands.values()
        for parameter in command.params
        if type(parameter.type) is click.Choice
    ]
    assert choices == []


def test_targets_are_called_alike_by_every_command() -> None:
    named = {
        (command.name, parameter.name): set(parameter.type.choices)
        for command in cli.commands.values()
        for parameter in command.params
        if isinstance(parameter.type, click.Choice) and parameter.name in ("target", "targets", "backend")
    }
    assert set(named) >= {
        ("lint", "target"),
        ("check", "target"),
        ("export", "targets"),
        ("build-trt", "backend"),
    }
    versions = {target for target in CHECK_TARGETS if target not in ENGINES}
    for choices in named.values():
        assert choices <= ENGINES | versions | {"auto"}
    assert all(version.rpartition("-")[0] in ENGINES for version in versions)
