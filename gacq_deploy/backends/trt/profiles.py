"""Which optimization profile runs a feed, and at how many rows? The one that needs the fewest, then the nearest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log, prod

from gacq_deploy.errors import EngineError

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


@dataclass(frozen=True)
class Range:
    """What a profile allows for one input, dimension by dimension."""

    min: Shape
    opt: Shape
    max: Shape

    def __str__(self) -> str:
        """``[1..8 (4), 4, 32, 32]``: least, most and, in brackets, optimum."""
        dims = zip(self.min, self.opt, self.max, strict=True)
        return f"[{', '.join(_extent(*sizes) for sizes in dims)}]"

    def takes(self, shape: Shape) -> bool:
        """Tell whether a shape lies within the range."""
        if len(shape) != len(self.min):
            return False
        dims = zip(self.min, shape, self.max, strict=True)
        return all(least <= size <= most for least, size, most in dims)


def _extent(least: int, opt: int, most: int) -> str:
    return str(least) if least == most else f"{least}..{most} ({opt})"


@dataclass(frozen=True)
class Profile:
    """An optimization profile of an engine: its number and the range of every input."""

    index: int
    ranges: Mapping[str, Range]

    def __str__(self) -> str:
        """``profile 0: sample [1..8 (4), 4, 32, 32], timestep [1..8 (4)]``."""
        return f"profile {self.index}: {', '.join(f'{name} {r}' for name, r in self.ranges.items())}"


@dataclass(frozen=True)
class ProfileChoice:
    """Run profile ``profile`` at ``shapes``; rows beyond the ``rows`` that were given are padding."""

    profile: int
    shapes: Shapes
    rows: int | None

    @property
    def key(self) -> tuple[int, tuple[tuple[str, Shape], ...]]:
        """What a shape bucket is kept under."""
        return self.profile, tuple(sorted(self.shapes.items()))


def choose_profile(
    profiles: tuple[Profile, ...], shapes: Shapes, batched: frozenset[str], *, pad_to: int, engine: str
) -> ProfileChoice:
    """Choose profile and rows for the shapes of a feed.

    Rows are padded up to ``pad_to`` where a profile allows so many, and to its least number: INT8 kernels differ
    between one row and several, so a row that runs alone would give another image. Among the profiles that fit, the
    one with the fewest rows wins, then the one whose optimum is nearest in size.

    Args:
        profiles: those of the engine.
        shapes: of every input.
        batched: the inputs whose first dimension counts rows; they agree on it.
        pad_to: run at least so many rows; 1 pads nothing.
        engine: what to call it in an error.

    Raises:
        EngineError: no profile takes the shapes; names the ranges of each.
    """
    fitting = []
    for profile in profiles:
        choice = _fit(profile, shapes, batched, pad_to)
        if choice is not None:
            rows = choice.shapes[min(batched)][0] if batched else 0
            fitting.append((rows, _distance(profile, choice.shapes), profile.index, choice))
    if not fitting:
        given = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        ranges = "\n  ".join(str(p) for p in profiles)
        raise EngineError(
            f"{engine}: no profile takes {given}. The engine has:\n  {ranges}",
            "Build the engine with these shapes (--batch, --resolution), or split the batch.",
        )
    return min(fitting, key=lambda entry: entry[:3])[3]


def _fit(profile: Profile, shapes: Shapes, batched: frozenset[str], pad_to: int) -> ProfileChoice | None:
    rows = shapes[min(batched)][0] if batched else None
    if rows is not None:
        least = max(profile.ranges[name].min[0] for name in batched)
        most = min(profile.ranges[name].max[0] for name in batched)
        run = max(rows, least, min(pad_to, most))
        padded = {name: (run, *shape[1:]) for name, shape in shapes.items() if name in batched}
        shapes = {**shapes, **padded}
    fits = all(profile.ranges[name].takes(shape) for name, shape in shapes.items())
    return ProfileChoice(profile.index, shapes, rows) if fits else None


def _distance(profile: Profile, shapes: Shapes) -> float:
    """Return how far the shapes are from the optimum, as a ratio of sizes; 0 is the optimum."""
    return sum(
        abs(log(max(prod(shape), 1) / max(prod(profile.ranges[name].opt), 1)))
        for name, shape in shapes.items()
    )
