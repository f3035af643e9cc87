"""Does a shell read back from each command what was meant?"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import get_args

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gacq_deploy.inspection.commands import RunPart, command_for
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy_cli.main import cli

NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1).filter(
    lambda name: name not in (".", "..")
)


@given(name=NAMES, part=st.sampled_from(get_args(RunPart)))
def test_any_name_survives_the_shell(name: str, part: RunPart) -> None:
    run = RunDirectory(Path("runs") / name)
    words = shlex.split(command_for(part, run))
    assert {str(run.root), str(run.recipe_path)} & set(words)


@pytest.mark.parametrize("part", get_args(RunPart))
def test_every_line_is_a_command(part: RunPart) -> None:
    program, name, *rest = shlex.split(command_for(part, RunDirectory("runs/my run")))
    assert program == "gacq-deploy"
    command, parent = cli.commands[name], click.Context(cli)
    if isinstance(command, click.Group):
        command, rest = command.commands[rest[0]], rest[1:]
    command.make_context(name, rest, parent=parent)
