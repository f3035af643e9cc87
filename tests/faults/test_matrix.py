"""The table of faults is whole: as many rows as the matrix has, and every test that a row names exists."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from benchmarks.store import RESULTS, load_rows
from gacq_deploy import errors
from gacq_deploy_cli.exit_codes import DONE, FAILURE, MEANINGS, USAGE, explain
from gacq_deploy_cli.main import cli
from tests.conftest import COLLECTED
from tests.faults.matrix import GROUPS, ROWS
from tests.support.programs.commands import ROOT, child_environment, invoke


def test_every_group_has_the_rows_of_the_matrix() -> None:
    assert Counter(row.group for row in ROWS) == {letter: group.count for letter, group in GROUPS.items()}
    assert len(ROWS) == 236
    assert len({(row.group, row.name) for row in ROWS}) == len(ROWS)


def test_every_row_held_when_it_was_run_last() -> None:
    recorded = {key: row["test"] for key, row in load_rows(RESULTS / "faults.jsonl").items() if row["held"]}
    assert recorded == {row.key: row.shown_by for row in ROWS if row.tested}, "python -m benchmarks.faults"


def _collected(files: list[str]) -> set[str]:
    """Return the node ids of some files, asked of a session of their own."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *files]
    done = subprocess.run(
        command, cwd=ROOT, env=child_environment(), capture_output=True, text=True, check=False
    )
    return set(done.stdout.splitlines())


def test_every_test_that_a_row_names_exists(request: pytest.FixtureRequest) -> None:
    named = {row.shown_by for row in ROWS if row.tested}
    missing = named - request.config.stash[COLLECTED]
    if missing:  # the session may be one of a few files
        missing -= _collected(sorted({node.partition("::")[0] for node in missing}))
    assert sorted(missing) == []


def _commands(command: click.Command, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the words of a command and of all below it."""
    yield words
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            inner = command.get_command(click.Context(command), name)
            assert inner is not None
            yield from _commands(inner, (*words, name))


COMMANDS = sorted(_commands(cli))


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(("gacq-deploy", *words)))
def test_every_command_ends_with_a_code_of_the_table(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert invoke([*words, "--help"]).exit_code == DONE
    assert invoke([*words, "--no-such-option"]).exit_code == USAGE
    for name in ("nowhere", "\x1b[2J", str(tmp_path), "a" * 5000):
        done = invoke([*words, name, name])
        assert done.exit_code in set(MEANINGS) - {FAILURE}, done.output
        assert "Internal error" not in done.output
    assert list(tmp_path.iterdir()) == []


def test_every_error_ends_with_a_code_of_the_table() -> None:
    ours = [c for c in vars(errors).values() if inspect.isclass(c) and issubclass(c, errors.GacqError)]
    assert len(ours) > 10
    assert {explain(kind("what", "remedy")).exit_code for kind in ours} <= set(MEANINGS)
    others = (OSError(), ValueError(), AssertionError(), MemoryError(), KeyboardInterrupt(), click.Abort())
    assert {explain(error).exit_code for error in others} <= set(MEANINGS)
