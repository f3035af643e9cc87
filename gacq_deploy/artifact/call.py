"""How is this very denoiser called? Which argument is the state, the timestep, conditioning, and what is fixed."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal, Self

from pydantic import Field, JsonValue, model_validator

from gacq_deploy.storage.records import Record

SAMPLE, TIMESTEP = "sample", "timestep"
"""Names of the state and the timestep in every graph, whatever the denoiser calls them."""
Place = tuple[str | int, ...]
"""Place of a value in a call: the argument's name, and where it lies inside a dict, list or tuple."""
DType = Literal["float32", "int64", "bool"]


class StateRecord(Record):
    """The noisy state. ``shape`` is that of one row, of any rank."""

    path: Place = (SAMPLE,)
    shape: tuple[int, ...]


class TimestepRecord(Record):
    """What the denoiser is fed as the timestep, one value a row."""

    path: Place = (TIMESTEP,)
    dtype: Literal["int64", "float32"] = "int64"
    scale: float = Field(default=1.0, gt=0)
    """The value fed is the scheduler's timestep times this: 1, or 0.001 where it takes sigma."""


class ArgumentRecord(Record):
    """One tensor of conditioning: a text embedding, a mask, a class label. ``shape`` is that of one row."""

    name: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Of the graph's input."""
    path: Place
    dtype: DType
    shape: tuple[int, ...]
    num_classes: int | None = None
    """Of a class label: it can be drawn."""
    upper: int | None = None
    """Of other whole numbers: one above the largest seen."""
    shared: bool = False
    """The denoiser takes one for all rows (position ids, for instance); rows of a graph's input are then equal, and it
    gets the first."""


class CallRecord(Record):
    """One call of a denoiser, taken apart; recorded from a pipeline's own call, or read off a configuration.

    A call is: every argument by keyword, ``constants`` included. The prediction is its first result; of more channels
    (axis 1) than the state has, the first are kept: the others are a learned variance.
    """

    state: StateRecord
    timestep: TimestepRecord = TimestepRecord()
    arguments: tuple[ArgumentRecord, ...] = ()
    constants: dict[str, JsonValue] = Field(default_factory=dict)
    output: Place | None = None
    """Where a plain dict holds the prediction; empty: the output is the prediction itself. None: as diffusers' models
    return it, first in a tuple or an output class."""

    @model_validator(mode="after")
    def _names_are_distinct(self) -> Self:
        names = [SAMPLE, TIMESTEP, *(a.name for a in self.arguments)]
        if len(set(names)) != len(names):
            raise ValueError(f"two inputs have one name: {', '.join(sorted(names))}")
        return self

    def conditioning(self) -> dict[str, dict[str, Any]]:
        """Return input name -> {dtype, shape, num_classes}, without what conditions nothing."""
        found: dict[str, dict[str, Any]] = {}
        for argument in self.arguments:
            found[argument.name] = {"dtype": argument.dtype, "shape": list(argument.shape)}
            if argument.num_classes is not None:
                found[argument.name]["num_classes"] = argument.num_classes
        return found


def place(tree: dict[str, Any], path: Place, value: object) -> None:
    """Put a value in its place of a call's arguments, making dicts and lists on the way."""
    here: Any = tree
    for key, following in pairwise((*path, None)):
        if isinstance(here, list):
            here.extend([None] * (int(key or 0) + 1 - len(here)))
        if following is None:
            here[key] = value
            return
        old = here.get(key) if isinstance(here, dict) else here[key]
        fresh: Any = [] if isinstance(following, int) else {}
        # copied: the containers may be a record's constants, which stay as they are
        inside = old.copy() if isinstance(old, dict | list) else fresh
        here[key] = inside
        here = inside
