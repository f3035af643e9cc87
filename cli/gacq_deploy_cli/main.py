"""The group, and the one place where an error becomes a message and an exit code."""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NoReturn

import click

from gacq_deploy import __version__
from gacq_deploy.processes.group import speaks_first
from gacq_deploy_cli.exit_codes import CLOSED_PIPE, MEANINGS, explain
from gacq_deploy_cli.options import Settings, common
from gacq_deploy_cli.table import folded, is_colored, output_width

COMMANDS = (
    "quickstart",
    "calibrate",
    "export",
    "build_trt",
    "parity",
    "run",
    "bench",
    "report",
    "compare",
    "list_",
    "inspect",
    "sensitivity",
    "lint",
    "check",
    "verify",
    "sign",
    "doctor",
    "recipes",
)
"""In the order in which one needs them; each is the function of that name in the module of that name, which goes
without the ``_`` behind a builtin's name."""


class BoundaryGroup(click.Group):
    """A group whose ``main`` never lets a traceback out unless ``--debug`` asks for one.

    Commands return their exit code (None is 0) or raise.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click's signature)
        """Return the commands in the order in which one needs them."""
        return list(self.commands)

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Parse the group's own options; ``--help`` prints here."""
        with _leave_quietly():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with _leave_quietly():
            return super().invoke(ctx)

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> NoReturn:
        """Run one command and leave with its exit code."""
        arguments = list(sys.argv[1:] if args is None else args)
        extra["standalone_mode"] = False
        try:
            code = super().main(arguments, *rest, **extra)
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 (the boundary: everything is said, then 1..130)
            with _leave_quietly():
                sys.exit(_report(error, arguments))
        sys.exit(code or 0)


@contextmanager
def _leave_quietly() -> Iterator[None]:
    """Leave when the reader of a pipe left (``| head -1``); click itself would make that a failure."""
    try:
        yield
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere, stream.fileno())  # Python flushes them once more at its end
        sys.exit(CLOSED_PIPE)


def _report(error: BaseException, arguments: Sequence[str]) -> int:
    failure = explain(error)
    # of processes that fail together the first one tells it
    if not speaks_first():
        return failure.exit_code
    if "--debug" in arguments:
        traceback.print_exception(error, file=sys.stderr)
    if "--json" in arguments:
        click.echo(json.dumps(failure.document(), indent=2))
    said = folded(f"Error: {failure.text()}", output_width(sys.stderr))
    colored = is_colored(sys.stderr)
    head = click.style("Error:", fg="red", bold=True) if colored else "Error:"
    click.echo(head + said.removeprefix("Error:"), err=True, color=colored)
    return failure.exit_code


@click.group(
    cls=BoundaryGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=f"Exit codes: {', '.join(f'{code} {meaning}' for code, meaning in MEANINGS.items())}.",
)
@click.option("--version", "shows_version", is_flag=True, help="Show the version and exit.")
@common
@click.pass_context
def cli(context: click.Context, *, shows_version: bool) -> None:
    """Take a diffusion denoiser from diffusers to a verified INT8 engine.

    A run directory holds everything: calibrate makes it, the later commands take it as their argument.
    """
    if shows_version:
        as_json = context.ensure_object(Settings).json
        document = json.dumps({"name": "gacq-deploy", "version": __version__}, indent=2)
        click.echo(document if as_json else f"gacq-deploy, version {__version__}")
        context.exit()
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for _name in COMMANDS:
    cli.add_command(getattr(import_module(f"gacq_deploy_cli.{_name.rstrip('_')}"), _name))


def main() -> NoReturn:
    """Entry point of ``gacq-deploy``."""
    # PyTorch's import makes a million objects that stay: to look for garbage among them took a sixth of its time
    gc.set_threshold(100_000, 20, 50)
    if not {"-v", "-vv", "--verbose", "--debug"} & set(sys.argv[1:]):
        # third-party deprecations say nothing to a user; tests run the group itself, where they are errors
        warnings.filterwarnings("ignore")
    cli.main(prog_name="gacq-deploy")


if __name__ == "__main__":
    main()
