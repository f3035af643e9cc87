"""The readers of what a user writes: recipes, ``--set``, prompts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import yaml

from gacq_deploy.errors import RecipeError, UsageError
from gacq_deploy.recipe.load import builtin_recipes, load_recipe, parse_recipe
from gacq_deploy.samples.prompts import read_prompts
from gacq_deploy.storage.yaml_documents import encode_yaml
from tests.support.fuzz.document_changes import OTHER_VALUES, RAW_JSON, RAW_YAML, changed_document
from tests.support.fuzz.inputs import Input
from tests.support.fuzz.reader import FuzzedReader, Opened

BASE = "fashion-w8a8"
OVERRIDES = (
    ("calibration.threads=3", "samples.steps=10"),
    ("quantization.rules+=[{match: conv_in, ignore: true}]",),
    ("parity.budget.image_psnr_db=30", "name=x"),
    ("quantization.rules.0.match=a*", "model.component=null"),
)
PROMPTS = {
    "txt": "a cat\nein Haus\r\n\n名前 \U0001f600 \u2028 x\n",
    "json": '["a cat", {"prompt": "yes"}, {"caption": "null"}, "2024-01-02", "- x: #y", "\\u0085\\u2029\\ufeff"]',
    "jsonl": '{"prompt": "a cat", "n": 1}\n"b: c"\n\n{"caption": "\'d\'"}\n',
}


def _open_recipe(folder: Path) -> Opened:
    path = folder / "recipe.yaml"

    def read(tried: Input) -> None:
        path.write_bytes(tried.data)
        recipe = load_recipe(path)
        # what was taken is written as what it is
        assert parse_recipe(recipe.text, origin="its own text").document() == recipe.document()

    files = (file.read_bytes() for file in builtin_recipes().values())
    return Opened(tuple(Input("yaml", data) for data in files), read)


def restructure_yaml(rng: Random, tried: Input) -> Input:
    """Return a YAML text with changed values."""
    document = yaml.safe_load(tried.data)
    changed = changed_document(rng, document, RAW_YAML)
    if rng.random() < 0.5:
        # in the form that people write, where nothing stands for another text
        with suppress(ValueError):
            changed = encode_yaml(json.loads(changed))
    return tried.holding(changed.encode("utf-8", "surrogatepass"))


def _open_overrides(folder: Path) -> Opened:
    def read(tried: Input) -> None:
        # no argument of a program holds a NUL
        load_recipe(BASE, tried.data.decode("utf-8", "surrogateescape").split("\0"))

    return Opened(tuple(Input("txt", "\0".join(words).encode()) for words in OVERRIDES), read)


def _restructure_overrides(rng: Random, tried: Input) -> Input:
    places = list(_dotted(load_recipe(BASE).document()))
    words = tried.data.decode().split("\0")
    for _ in range(rng.choice((1, 1, 2))):
        place, own = rng.choice(places)
        forms = ("{}", "{}", "{}", "{}.0", "{}.x", "{}+", "{}x", ".{}", "{}..a", "{}.²", "{}.a.b")
        key = place if rng.random() < 0.5 else rng.choice(forms).format(place)
        value = rng.choice((rng.choice(RAW_YAML), *(_flow(v) for v in (rng.choice(OTHER_VALUES), own, own))))
        words.append(rng.choice(("{}={}",) * 5 + ("{} = {}", "{}{}", "={1}", "{}=")).format(key, value))
    if rng.random() < 0.3:
        rng.shuffle(words)
    return tried.holding("\0".join(words).encode("utf-8", "surrogatepass"))


def _flow(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _dotted(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every place in a document as ``--set`` names it, and what stands there."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        yield f"{place}{key}", inner
        yield from _dotted(inner, f"{place}{key}.")


def _open_prompts(folder: Path) -> Opened:
    def read(tried: Input) -> None:
        path = folder / f"prompts.{tried.kind}"
        path.write_bytes(tried.data)
        prompts = read_prompts(path)
        # a run's recipe holds them
        text = load_recipe(BASE, samples={"prompts": list(prompts)}).text
        assert parse_recipe(text, origin="its own text").samples.prompts == prompts

    return Opened(tuple(Input(kind, text.encode()) for kind, text in PROMPTS.items()), read)


def _restructure_prompts(rng: Random, tried: Input) -> Input:
    text = tried.data.decode()
    match tried.kind:
        case "json":
            changed = changed_document(rng, json.loads(text), RAW_JSON)
        case "jsonl":
            lines = [json.loads(line) for line in text.splitlines() if line]
            changed = "\n".join(changed_document(rng, [line], RAW_JSON)[1:-1] for line in lines)
        case _:
            lines = [str(value) for value in rng.choices([*RAW_YAML, *OTHER_VALUES], k=rng.choice((1, 3)))]
            changed = rng.choice(("\n", "\r", "\r\n", "\f", "\x85", " ")).join((text, *lines))
    return tried.holding(changed.encode("utf-8", "surrogatepass"))


TEXTS: Mapping[str, FuzzedReader] = {
    "recipe": FuzzedReader(_open_recipe, restructure_yaml, RecipeError, tries=100),
    "set": FuzzedReader(_open_overrides, _restructure_overrides, RecipeError, tries=150),
    "prompts": FuzzedReader(_open_prompts, _restructure_prompts, UsageError, tries=60),
}
