"""Which options and arguments do several commands share?"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import click
from click.shell_completion import CompletionItem

from gacq_deploy.engines.catalogue import BUILT_IN, known_engines
from gacq_deploy.errors import BackendUnavailable, did_you_mean
from gacq_deploy.processes.group import own_rank
from gacq_deploy_cli.console import Output

Command = TypeVar("Command", bound=Callable[..., Any])
P = ParamSpec("P")
ENGINES = tuple(record.name for record in BUILT_IN)
"""Named in help texts; what other packages add is taken, too."""


@dataclass
class Settings:
    """What the common options say, wherever on the command line they stand."""

    json: bool = False
    verbosity: int = 0
    debug: bool = False


def _remember(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    settings = context.ensure_object(Settings)
    match parameter.name:
        case "json":
            settings.json |= bool(value)
        case "debug":
            settings.debug |= bool(value)
        case "verbose":
            settings.verbosity += int(value)
        case "quiet":
            settings.verbosity -= int(value)


def common(command: Command) -> Command:
    """Add ``--json``, ``-v``, ``-q`` and ``--debug``."""
    shared: dict[str, Any] = {"expose_value": False, "callback": _remember}
    for decorate in (
        click.option("--debug", is_flag=True, help="Show the traceback of an error.", **shared),
        click.option("-q", "--quiet", count=True, help="No progress; only results and errors.", **shared),
        click.option(
            "-v", "--verbose", count=True, help="Log what happens (-vv: everything) on stderr.", **shared
        ),
        click.option("--json", is_flag=True, help="One JSON document on stdout.", **shared),
    ):
        command = decorate(command)
    return command


class GivenPath(click.Path):
    """A path; an empty one, which would be the working directory, is refused, and one that not all can open."""

    def __init__(self, *, dir_okay: bool = True) -> None:
        super().__init__(dir_okay=dir_okay, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        from gacq_deploy.storage.outputs import require_path

        require_path(os.fspath(value))
        return super().convert(value, param, ctx)


class OutputPath(GivenPath):
    """A file of a kind, or a folder, to write; what cannot be is refused by :func:`with_output` before the work.

    ``but`` is the name of the run's own file that the command may replace.
    """

    def __init__(self, suffix: str = "", *, but: str = "") -> None:
        super().__init__(dir_okay=not suffix)
        self._suffix, self._but = suffix, but

    def require(self, path: Path) -> None:
        """Refuse a path that cannot be written, or where something else would be lost.

        Raises:
            UsageError: saying which.
        """
        from gacq_deploy.run_directory import refuse_own_file
        from gacq_deploy.storage.outputs import require_folder_for, require_output

        if not self._suffix:
            require_folder_for(path)
            return
        require_output(path, self._suffix)
        refuse_own_file(path, but=self._but)


def _require_outputs(context: click.Context) -> None:
    for parameter in context.command.params:
        path = context.params.get(parameter.name or "")
        if isinstance(parameter.type, OutputPath) and path is not None:
            parameter.type.require(path)


SHARED = ("calibrate", "run")
"""Commands that the processes of `torchrun` do together."""


def with_output(function: Callable[Concatenate[Output, P], int | None]) -> Callable[P, int | None]:
    """Pass an :class:`Output` made from the common options as the first argument."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> int | None:
        if own_rank() > 0 and function.__name__ not in SHARED:
            return None  # what is not shared, the first process does alone
        context = click.get_current_context()
        settings = context.ensure_object(Settings)
        _require_outputs(context)
        output = Output(as_json=settings.json, verbosity=settings.verbosity, mute=own_rank() > 0)
        output.start_logging()
        return function(output, *args, **kwargs)

    return call


class NameOf(click.Choice):  # type: ignore[type-arg]  # generic in newer click only
    """One of a few names; a wrong one is told the nearest."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the name."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            said = f"{error.message} {did_you_mean(value, self.choices)}".rstrip()
            raise click.BadParameter(said, ctx, param) from None


Completion = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def complete_by(names: Callable[[], Iterable[str]], *, or_file: bool = False) -> Completion:
    """Return what completes the names that there are when it is asked, and files where none begins so."""

    def complete(
        _context: click.Context, _parameter: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        found = [CompletionItem(name) for name in names() if name.startswith(incomplete)]
        return found or ([CompletionItem(incomplete, type="file")] if or_file else [])

    return complete


def _recipes() -> Iterable[str]:
    from gacq_deploy.recipe.load import builtin_recipes

    return builtin_recipes()


complete_recipe = complete_by(_recipes, or_file=True)
complete_engine = complete_by(known_engines)


class _Preset(click.ParamType):  # type: ignore[type-arg]  # generic in newer click only
    """The name of a preset; which ones there are the recipes say."""

    name = "preset"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:  # noqa: ARG002 (click's signature)
        """Return the ladder, for the help."""
        return f"[{'|'.join(_presets())}]"


def _presets() -> tuple[str, ...]:
    from gacq_deploy.recipe.presets import shown_presets

    return shown_presets()


def choose_preset(default: str | None = None) -> Callable[[Command], Command]:
    """Add ``--preset``; without a default the recipe itself says how much effort."""
    return click.option(
        "--preset",
        type=_Preset(),
        default=default,
        show_default=default is not None,
        shell_complete=complete_by(_presets),
        help="How much effort: nearest (ranges only), quick, standard, best; --set comes after it.",
    )


host_code_option = click.option(
    "--allow-host-code",
    is_flag=True,
    help="Run the code that a version-compatible TensorRT engine carries; only for engines of your own.",
)
python_option = click.option(
    "--allow-python",
    is_flag=True,
    help="Run the Python function that the recipe's file names as the model (python:...); only of your own.",
)
failed_option = click.option(
    "--allow-failed", is_flag=True, help="Take an engine that failed parity on this machine, too."
)
trusted_option = click.option(
    "--trusted-keys",
    type=GivenPath(dir_okay=False),
    metavar="FILE",
    help="Public ed25519 keys, PEM; refuse a run that none of them signed (see sign).",
)
preset_option = choose_preset()
run_directory_argument = click.argument("directory", type=GivenPath(), metavar="DIR")
recipe_option = click.option(
    "-r",
    "--recipe",
    shell_complete=complete_recipe,
    help="Built-in recipe name or YAML file; default: the one that suits --model.",
)
set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override one recipe value, e.g. samples.steps=10; KEY+=[...] adds to a list.",
)


@contextmanager
def needs_extra(extra: str, what: str) -> Iterator[None]:
    """Turn a library that is missing inside the block, or too old for it, into the pip line that installs it.

    Raises:
        BackendUnavailable: an import of a package outside this project failed, or one is older than it may be.
    """
    from gacq_deploy.doctor.packages import too_old, version

    hint = f"pip install 'gacq-deploy[{extra}]'"
    if old := too_old(extra.split(",")):
        said = ", ".join(f"{name} {version(name)} (it takes {needed})" for name, needed in old.items())
        raise BackendUnavailable(f"{what} cannot use packages as old as these: {said}.", hint)
    try:
        yield
    except ImportError as error:
        if (error.name or "").startswith("gacq_deploy"):
            raise  # our own mistake, not a missing package
        raise BackendUnavailable(
            f"{what} needs a package that is missing or broken: {error}.", hint
        ) from error
