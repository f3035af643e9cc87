"""`recipes`: what can be asked for, and is this recipe valid?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from gacq_deploy_cli.console import NextStep, Output, Verbatim
from gacq_deploy_cli.options import common, complete_recipe, set_option, with_output
from gacq_deploy_cli.table import Table

if TYPE_CHECKING:
    from pydantic import BaseModel


@click.group(invoke_without_command=True)
@click.pass_context
def recipes(context: click.Context) -> None:
    """List, show and validate recipes, or print their schema."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@recipes.command("list")
@common
@with_output
def list_recipes(output: Output) -> None:
    """List the built-in recipes."""
    from gacq_deploy.recipe.load import builtin_recipes, load_recipe

    found = {name: load_recipe(name) for name in builtin_recipes()}
    document = [
        {
            "name": name,
            "description": r.description.strip(),
            "model": r.model.source,
            "file": str(builtin_recipes()[name]),
        }
        for name, r in found.items()
    ]
    rows = [(name, r.model.source, r.description.strip()) for name, r in found.items()]
    output.emit(
        document,
        Table("built-in recipes", ["name", "model", "what it is"], rows),
        f"{len(rows)} recipes; `calibrate --model FOLDER` without -r takes the one that suits the model.",
        NextStep(("recipes", "show", rows[0][0]), "every key of one, explained"),
    )


@recipes.command("show")
@click.argument("recipe", shell_complete=complete_recipe)
@set_option
@common
@with_output
def show_recipe(output: Output, recipe: str, overrides: tuple[str, ...]) -> None:
    """Print a recipe with every default filled in and every key explained; the output is a valid recipe."""
    from gacq_deploy.recipe.load import load_recipe

    loaded = load_recipe(recipe, overrides)
    output.emit(loaded.document(), Verbatim("\n".join(_explained(loaded, ""))))


@recipes.command("validate")
@click.argument("recipe", shell_complete=complete_recipe)
@set_option
@common
@with_output
def validate_recipe(output: Output, recipe: str, overrides: tuple[str, ...]) -> None:
    """Check a recipe file or built-in; exit 2 with file and line when it is wrong."""
    from gacq_deploy.recipe.load import load_recipe

    loaded = load_recipe(recipe, overrides)
    document = {"valid": True, "name": loaded.name, "digest": loaded.digest}
    output.emit(
        document,
        f"{recipe}: valid (digest {loaded.digest[:12]})",
        NextStep(("calibrate", "-r", recipe, "-o", f"runs/{loaded.name}", "--dry-run"), "what it costs"),
    )


@recipes.command("schema")
@common
@with_output
def print_schema(output: Output) -> None:
    """Print the JSON schema of recipes, with the meaning of every key."""
    import json

    from gacq_deploy.recipe.sections import Recipe

    schema = Recipe.model_json_schema(by_alias=True)
    output.emit(schema, Verbatim(json.dumps(schema, indent=2)))


def _explained(section: BaseModel, indent: str) -> Iterator[str]:
    """Yield the YAML of a section, each key under a comment that says what it means."""
    from pydantic import BaseModel as Section

    plain = section.model_dump(mode="json", by_alias=True)
    for name, field in type(section).model_fields.items():
        key, value = field.alias or name, getattr(section, name)
        if key not in plain:
            continue  # a shorthand: what it stands for is printed
        meaning = type(value).__doc__ if isinstance(value, Section) else field.description
        if meaning:
            yield f"{indent}# {_first_line(meaning)}"
        if isinstance(value, Section):
            yield f"{indent}{key}:"
            yield from _explained(value, indent + "  ")
        elif isinstance(value, tuple) and any(isinstance(item, Section) for item in value):
            yield f"{indent}{key}:"
            yield from (
                f"{indent}  - {_inline(item.model_dump(mode='json', exclude_defaults=True))}"
                for item in value
            )
        else:
            yield f"{indent}{key}: {_inline(plain[key])}"


def _inline(value: object) -> str:
    """Return a value as YAML on one line."""
    import yaml

    shown = value.strip() if isinstance(value, str) else value
    # a width that no value reaches: yaml would fold long lines
    text: str = yaml.safe_dump(
        shown, default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True
    )
    return text.removesuffix("\n").removesuffix("\n...")


def _first_line(text: str) -> str:
    return " ".join(text.split("\n\n", 1)[0].split())
