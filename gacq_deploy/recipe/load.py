"""What did the user ask for? YAML becomes frozen, validated models; errors name file and line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from importlib import resources
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from gacq_deploy.errors import RecipeError, did_you_mean
from gacq_deploy.recipe.presets import PRESETS, shown_presets
from gacq_deploy.recipe.quantization import RANGE_METHODS
from gacq_deploy.recipe.sections import Recipe
from gacq_deploy.storage.documents import Malformed, decode_text, read_bytes, shown
from gacq_deploy.storage.yaml_documents import YamlDocument, decode_yaml

_ADDS = "+"
"""Behind a key, before ``=``: what follows is added to the end of the list."""
_SHOWN = 20
"""Faults that a message names."""
_DOCS_HINT = "`gacq-deploy recipes schema` prints every key with its meaning."


def recipe_directory() -> Path:
    """Return the folder of the built-in recipes: inside the wheel, or at the root of a checkout."""
    packaged = Path(str(resources.files("gacq_deploy"))) / "recipes"
    return packaged if packaged.is_dir() else packaged.parent.parent / "recipes"


def builtin_recipes() -> dict[str, Path]:
    """Return name -> file of the built-in recipes."""
    return {p.stem: p for p in sorted(recipe_directory().glob("*.yaml"))}


def load_recipe(
    name_or_path: str | PathLike[str],
    overrides: Sequence[str] = (),
    *,
    preset: str | None = None,
    **sections: Mapping[str, Any],
) -> Recipe:
    """Read a built-in recipe by name, or a file; what changes it goes through the same validation.

    Args:
        name_or_path: ``fashion-w8a8``, or a YAML file.
        overrides: ``a.b=value``, as the command line's ``--set`` takes them; ``a.0.b=value`` for an item of a list,
            ``a+=[value]`` to add to one.
        preset: a key of :data:`PRESETS`, which goes before everything else.
        sections: values of the recipe's sections, which go last: ``samples={"prompts": [...]}``.

    Raises:
        RecipeError: not found, not YAML, unknown key or preset, value out of range; with file and line.
    """
    if preset is not None and preset not in PRESETS:
        meant = did_you_mean(preset, PRESETS)
        raise RecipeError(
            f"There is no preset '{preset}'.", f"{meant}Choose one of: {', '.join(shown_presets())}."
        )
    path = builtin_recipes().get(str(name_or_path), Path(name_or_path))
    try:
        text = decode_text(read_bytes(path, pipes=True))
    except FileNotFoundError:
        known = builtin_recipes()
        meant = did_you_mean(name_or_path, known)
        raise RecipeError(
            f"Recipe '{name_or_path}' is neither a built-in recipe nor a file.",
            f"{meant}Built-in recipes: {', '.join(known) or 'none'}.",
        ) from None
    except (OSError, Malformed) as error:
        raise RecipeError(f"Recipe {path} cannot be read: {error}.", "Pass a UTF-8 YAML file.") from error
    return parse_recipe(text, origin=str(path), overrides=overrides, preset=preset, sections=sections)


def absolute_source(source: str) -> str:
    """Return a model's folder as an absolute path, another process may start elsewhere; an id of the hub as it is."""
    folder = Path(source).expanduser()
    return str(folder.resolve()) if folder.exists() else source


def parse_recipe(
    text: str,
    *,
    origin: str,
    overrides: Sequence[str] = (),
    preset: str | None = None,
    sections: Mapping[str, Any] | None = None,
) -> Recipe:
    """Validate the YAML ``text``; ``origin`` names it in errors, the rest is as for :func:`load_recipe`.

    Raises:
        RecipeError: as for :func:`load_recipe`.
    """
    if not (preset or overrides or sections):
        # a command asks for the recipe of its run again and again, and one with many prompts takes its time
        return _resolved(text, origin)
    source = _read(text, origin)
    document = dict(source.value)
    _merge(document, PRESETS[preset] if preset else {})
    for override in overrides:
        _apply_override(document, override)
    _merge(document, sections or {})
    named = "source" in (sections or {}).get("model", {}) or any(_names_source(o) for o in overrides)
    return _validated(document, source, origin, overrides, named=named)


@lru_cache(maxsize=2)
def _resolved(text: str, origin: str) -> Recipe:
    """Return a recipe as it stands, which nobody can change."""
    source = _read(text, origin)
    return _validated(source.value, source, origin, (), named=False)


def _read(text: str, origin: str) -> YamlDocument:
    try:
        source = decode_yaml(text)
    except Malformed as error:
        line = f":{error.line}" if error.line else ""
        raise RecipeError(
            f"{origin}{line}: not valid YAML: {error.problem}.", "Mend the file at that line."
        ) from None
    if not isinstance(source.value, dict):
        raise RecipeError(f"{origin}: a recipe is a mapping, got {type(source.value).__name__}.", _DOCS_HINT)
    return source


def _validated(
    document: dict[str, Any], source: YamlDocument, origin: str, overrides: Sequence[str], *, named: bool
) -> Recipe:
    """Return the recipe; ``named``: the caller named the model's source, and not the file."""
    try:
        recipe = Recipe.model_validate(document)
    except ValidationError as error:
        raise RecipeError(_explain(error, source, origin, overrides), _DOCS_HINT) from None
    return recipe.model_copy(update={"model": recipe.model.as_read(named_by_file=not named)})


def _names_source(override: str) -> bool:
    return override.partition("=")[0] in ("model", "model.source")


def _apply_override(document: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise RecipeError(
            f"--set {override!r} is not of the form a.b=value.", "Example: --set samples.steps=10"
        )
    try:
        given = decode_yaml(value).value
    except Malformed as error:
        said = f"--set {shown(override)}: the value is not valid YAML: {error.problem}."
        raise RecipeError(said, "Quote it for the shell.") from None
    *parents, last = key.removesuffix(_ADDS).split(".")
    place: Any = document
    for depth, parent in enumerate(parents, start=1):
        index = _place_in(place, parent, f"--set {override!r}")
        if isinstance(place, dict):
            place.setdefault(index, {})
        place = place[index]
        if not isinstance(place, dict | list):
            said = f"--set {override!r}: {'.'.join(parents[:depth])} is {place!r}, with no keys inside."
            raise RecipeError(said, _DOCS_HINT)
    index = _place_in(place, last, f"--set {override!r}")
    if key.endswith(_ADDS):
        there = (place.get(index) if isinstance(place, dict) else place[index]) or []
        if not isinstance(there, list) or not isinstance(given, list):
            said = f"--set {override!r}: only a list can be added, and to a list alone."
            raise RecipeError(said, "Example: --set 'quantization.rules+=[{match: conv_in, ignore: true}]'")
        given = [*there, *given]
    place[index] = given


def _place_in(place: dict[str, Any] | list[Any], part: str, what: str) -> Any:
    """Return the key, or the index, that one part of a dotted name stands for."""
    if isinstance(place, list):
        if not part.isdecimal() or int(part) >= len(place):
            count = len(place)
            hint = f"Choose 0 to {count - 1}, or give the whole list." if count else "Give the whole list."
            raise RecipeError(f"{what}: the list has {count} items, and none is '{part}'.", hint)
        return int(part)
    if part.isdecimal():
        raise RecipeError(
            f"{what}: there is no list that item {part} could be of.",
            "Only items that the recipe itself writes can be changed by their number; give the whole list: "
            "KEY=[...].",
        )
    return part


def _merge(document: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Replace the values that are given, section by section; lists are replaced whole."""
    for key, value in values.items():
        if not isinstance(value, Mapping):
            document[key] = str(value) if isinstance(value, PathLike) else value
            continue
        if not isinstance(document.get(key), dict):
            document[key] = {}
        _merge(document[key], value)


def _explain(error: ValidationError, source: YamlDocument, origin: str, overrides: Sequence[str]) -> str:
    lines = []
    for item in error.errors(include_url=False)[:_SHOWN]:
        # of a tagged union pydantic names the chosen tag too, which is no key of the file
        loc = [part for part in item["loc"] if part not in RANGE_METHODS or part == item["loc"][-1]]
        key = ".".join(shown(str(part)) for part in loc)
        from_override = next(
            (o for o in overrides if _concerns(o.partition("=")[0].removesuffix(_ADDS), key)), None
        )
        place = f"--set {from_override}" if from_override else f"{origin}:{source.line(loc)}"
        given = "" if isinstance(item["input"], dict | list) else f" (got {shown(repr(item['input']))})"
        said = f"{item['msg']}{given}"
        if item["type"] == "extra_forbidden":
            said = f"there is no such key{given}. {_near_key(loc)}".rstrip()
        lines.append(f"{place}: {key or 'recipe'}: {said}")
    if error.error_count() > _SHOWN:
        lines.append(f"and {error.error_count() - _SHOWN} more")
    return "\n".join(lines)


def _near_key(loc: Sequence[int | str]) -> str:
    """Return the key that an unknown one may stand for, in words; nothing where none is close."""
    sections: list[type[BaseModel]] = [Recipe]
    for part in loc[:-1]:
        if isinstance(part, str):
            fields = chain.from_iterable(_fields(section) for section in sections)
            inside = [_sections_in(field.annotation) for name, field in fields if name == part]
            sections = list(chain.from_iterable(inside))
    known = chain.from_iterable(_fields(section) for section in sections)
    return did_you_mean(loc[-1], [name for name, _ in known])


def _fields(section: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    """Yield the keys of a section as a recipe writes them."""
    for name, field in section.model_fields.items():
        yield field.alias or name, field


def _sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the sections in a type, however deep: in an optional one, a union, the items of a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _sections_in(inner)


def _concerns(override: str, key: str) -> bool:
    """Return whether one dotted name is the other, or lies inside it."""
    return bool(key) and (f"{key}.".startswith(f"{override}.") or f"{override}.".startswith(f"{key}."))
