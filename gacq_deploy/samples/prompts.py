"""Which prompts do the trajectories of a text-to-image model follow? A user's file, or a few dozen of our own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gacq_deploy.errors import UsageError
from gacq_deploy.storage.documents import Malformed, decode_json, decode_text, read_bytes

MOST_CHARACTERS = 2000
_ORDER = 1 << 43
"""Second Philox key of the draw, apart from noise and labels."""
_HINT = "One prompt a line (UTF-8 text), or a JSON list of strings, or JSON lines with a key 'prompt' or 'caption'."

BUILTIN: tuple[str, ...] = (
    "a photograph of an old fishing boat on a calm lake at sunrise",
    "portrait of a smiling elderly woman in a knitted red sweater, natural light",
    "a bowl of ramen with a soft egg on a wooden table, seen from above",
    "a watercolor painting of a narrow street in a mountain village",
    "a golden retriever running through shallow water, action shot",
    "a modern kitchen with white cabinets and a marble counter",
    "an astronaut standing in a field of sunflowers under a blue sky",
    "a black and white photo of a jazz trumpeter on a small stage",
    "a bicycle leaning against a yellow wall",
    "a macro shot of a dragonfly on a blade of grass",
    "city skyline at night reflected in a river, long exposure",
    "a cozy library with tall shelves and a leather armchair",
    "a plate of fresh strawberries and mint on a blue cloth",
    "an oil painting of a stormy sea with a lighthouse",
    "two children building a sandcastle on the beach",
    "a red vintage car parked in front of a diner, 1950s style",
    "a snowy pine forest with a wooden cabin and smoke from the chimney",
    "a close-up of a human hand holding a small green frog",
    "an isometric drawing of a tiny bakery, pastel colors",
    "a cat sleeping on a stack of books near a window",
    "a crowded street market with colorful spices in bags",
    "a steam train crossing a stone bridge over a valley",
    "a minimalist poster with a single orange circle on grey",
    "a surgeon in a green gown looking at a screen",
    "a hot air balloon over rock formations at dawn",
    "pencil sketch of a sleeping dragon curled around a tower",
    "a glass of iced coffee with milk swirling in it",
    "an empty subway station with green tiles",
    "a horse and its foal on a misty meadow",
    "a neon sign that says OPEN in a rainy alley",
    "a chess board in the middle of a game, shallow depth of field",
    "a farmer driving a tractor through a field of wheat",
    "an aerial view of a winding road through autumn trees",
    "a robot watering plants on a balcony, digital art",
    "a wedding cake with three tiers and white flowers",
    "a violinist playing in a subway passage",
    "a stack of pancakes with syrup and blueberries",
    "a desert at night with the milky way above",
    "a tidy desk with a laptop, a notebook and a cup of tea",
    "an underwater photo of a sea turtle above a coral reef",
    "a medieval knight kneeling in a cathedral, dramatic light",
    "a paper boat floating in a puddle, reflections of buildings",
    "a young man with glasses reading a newspaper in a cafe",
    "a large wooden table covered with autumn leaves and pumpkins",
    "a penguin colony on an icy shore",
    "a stained glass window showing a tree of life",
    "a construction worker on a steel beam high above a city",
    "a small waterfall in a mossy forest",
    "a retro computer on a desk with a glowing green screen",
    "a basket of kittens wrapped in a blanket",
    "a map of an imaginary island, ink on old paper",
    "a ballet dancer in mid-air on a dark stage",
    "a slice of pizza being lifted, cheese stretching",
    "a field of lavender with a stone house in the distance",
    "a fox looking back over its shoulder in the snow",
    "a bustling harbor with containers and cranes at sunset",
    "a ceramic vase with three tulips, still life",
    "a group of hikers resting on a mountain summit",
    "a toy dinosaur on a child's bedroom floor",
    "a futuristic motorcycle in a white studio",
    "a foggy cemetery with an iron gate, gothic style",
    "a chef slicing vegetables, hands in focus",
    "a rainbow over a green valley after the rain",
    "an abstract composition of blue and gold brush strokes",
)
"""Everyday subjects, styles, light and distances; written for this project."""


def read_prompts(path: Path) -> tuple[str, ...]:
    """Return the prompts of a file, in order: text (a prompt a line), ``.json`` or ``.jsonl``.

    Raises:
        UsageError: no such file, not UTF-8, no prompt in it, an entry that is no text, or one of absurd length.
    """
    try:
        text = decode_text(read_bytes(path, pipes=True))
    except (OSError, Malformed) as error:
        raise UsageError(f"Prompt file {path} cannot be read: {error}.", _HINT) from error
    match path.suffix.lower():
        case ".json":
            found = _of_json(text, path)
        case ".jsonl":
            found = [
                _of_json(line, path, number) for number, line in enumerate(_lines(text), 1) if line.strip()
            ]
        case _:
            found = _lines(text)
    return _checked(found, path)


def _lines(text: str) -> list[str]:
    """Return the lines as an editor counts them; Python's own would end at form feeds and U+2028, too."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _of_json(text: str, path: Path, line: int | None = None) -> list[object] | object:
    place = f"{path}:{line}" if line else str(path)
    try:
        value = decode_json(text)
    except Malformed as error:
        raise UsageError(f"Prompt file {place} is not valid JSON: {error}.", _HINT) from error
    if line is not None:
        return _entry(value)
    if not isinstance(value, list):
        raise UsageError(f"Prompt file {place} holds {type(value).__name__}, not a list.", _HINT)
    return [_entry(v) for v in value]


def _entry(value: object) -> object:
    if isinstance(value, dict):
        return next((value[key] for key in ("prompt", "caption", "text") if key in value), value)
    return value


def _checked(found: object, path: Path) -> tuple[str, ...]:
    assert isinstance(found, list)
    prompts = []
    for number, value in enumerate(found, 1):
        if not isinstance(value, str):
            raise UsageError(f"Prompt {number} of {path} is {type(value).__name__}, not text.", _HINT)
        prompt = value.strip()
        if len(prompt) > MOST_CHARACTERS or "\0" in prompt:
            what = "holds a NUL byte" if "\0" in prompt else f"has {len(prompt)} characters"
            raise UsageError(f"Prompt {number} of {path} {what}.", _HINT)
        if prompt:
            prompts.append(prompt)
    if not prompts:
        raise UsageError(f"Prompt file {path} holds no prompt.", _HINT)
    return tuple(prompts)


def draw_prompts(prompts: Sequence[str], seed: int, first: int, count: int) -> list[str]:
    """Return prompts ``first .. first + count`` of a seeded order; past the last one it begins again."""
    generator = np.random.Generator(np.random.Philox(key=[seed, _ORDER]))
    order = generator.permutation(len(prompts))
    return [prompts[int(order[i % len(prompts)])] for i in range(first, first + count)]
