"""What is measured? Rows, what each asks of the calibration, and the plans that name many of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from gacq_deploy.recipe.load import load_recipe
from gacq_deploy.recipe.sections import Recipe

HERE = Path(__file__).parent
RECIPES = {
    ("fashion16", "w8a8"): "fashion-w8a8",
    ("fashion16", "w4a8"): "fashion-w4a8",
    ("digits8", "w8a8"): str(HERE / "digits-w8a8.yaml"),
    ("digits8", "w4a8"): str(HERE / "digits-w4a8.yaml"),
    ("dit-digits8", "w8a8"): str(HERE / "dit-digits-w8a8.yaml"),
    ("dit-digits8", "w4a8"): str(HERE / "dit-digits-w4a8.yaml"),
}
MODELS = ("fashion16", "digits8", "dit-digits8")
SETTINGS = ("w8a8", "w4a8", "w4-weight-only")
NEAREST = {
    "nearest-minmax": {"method": "minmax"},
    "nearest-percentile": {"method": "percentile", "percentile": 99.9},
    "nearest-mse": {"method": "mse"},
}
FOREIGN = ("ort-minmax", "ort-percentile", "modelopt-max", "modelopt-percentile", "modelopt-smoothquant")
LEARNED = ("relative", "mse", "gac", "gac_faithful")
"""Weighting modes of the recipe: ``relative`` is fixed by the error at each timestep, the others learn."""
TILTS = {"noisy": 2.0, "clean": -2.0}
"""Weights exp(tilt * t / T): the simple ones that learned weights must beat."""
PTQ4DM = "ptq4dm"
GIVEN = (*TILTS, PTQ4DM)
"""Weights of ``weights.py``: they come in from outside the recipe."""
NOTHING, UNIFORM = "none", "uniform"
WEIGHTINGS = (UNIFORM, *LEARNED, *GIVEN)


@dataclass(frozen=True)
class Row:
    """One calibration: how blocks were made, and under which weights the model was polished after."""

    model: str
    setting: str
    reconstruction: str
    """``fp``, one of ``NEAREST`` or ``FOREIGN``, or a weighting of block reconstruction."""
    polish: str = NOTHING
    seed: int = 0

    def __post_init__(self) -> None:
        known = {"fp", *NEAREST, *FOREIGN, *WEIGHTINGS}
        if self.reconstruction not in known or self.polish not in {NOTHING, *WEIGHTINGS}:
            raise ValueError(f"row {self.key} is not known")
        if self.polish != NOTHING and self.is_foreign:
            raise ValueError(f"row {self.key}: only our own rows are polished")
        if not self.is_foreign and len({*self.weightings}) > 1:
            raise ValueError(f"row {self.key} asks for two weightings in one calibration")

    @property
    def key(self) -> str:
        """Name of the row in the results."""
        return f"{self.model}|{self.setting}|{self.reconstruction}|{self.polish}|{self.seed}"

    @classmethod
    def parse(cls, key: str) -> Row:
        """Return the row that ``key`` names."""
        model, setting, reconstruction, polish, seed = key.split("|")
        return cls(model, setting, reconstruction, polish, int(seed))

    @property
    def is_foreign(self) -> bool:
        """Whether no calibration of ours makes the row."""
        return self.reconstruction == "fp" or self.reconstruction in FOREIGN

    @property
    def weightings(self) -> tuple[str, ...]:
        """Weightings other than uniform, of blocks and polish."""
        return tuple(w for w in (self.reconstruction, self.polish) if w in (*LEARNED, *GIVEN))

    @property
    def base(self) -> Row | None:
        """The row whose finished blocks this one starts from."""
        if self.polish == NOTHING or self.is_foreign:
            return None
        return Row(self.model, self.setting, self.reconstruction, NOTHING, self.seed)

    def recipe(self, overrides: Sequence[str] = ()) -> Recipe:
        """Return the setting's recipe with what the row asks for; ``overrides`` come last."""
        # rows without a recipe of their own (float, weight-only) take model and samples from w8a8
        name = RECIPES.get((self.model, self.setting), RECIPES[(self.model, "w8a8")])
        asked = [
            f"samples.seed={1000 * self.seed}",
            f"calibration.seed={self.seed}",
            "calibration.threads=1",
            *self._weighting(),
            *([] if self.reconstruction not in NEAREST else self._nearest(name)),
            *([] if self.polish != NOTHING else ["calibration.polish.steps=0"]),
        ]
        return load_recipe(name, [*asked, *overrides])

    def _weighting(self) -> list[str]:
        """Say where the recipe's weights act; given ones come in from outside.

        Blocks that nothing weighs are left out of the stages: they then are the same work in every row.
        """
        mode = next((w for w in self.weightings if w in LEARNED), UNIFORM)
        blocks = self.reconstruction in LEARNED
        stages = ["reconstruction"] * blocks + ["polish"] * (self.polish != UNIFORM or not blocks)
        return [
            f"calibration.weighting.mode={mode}",
            f"calibration.weighting.stages={json.dumps(stages)}",
        ]

    def _nearest(self, recipe: str) -> list[str]:
        rules = load_recipe(recipe).document()["quantization"]["rules"]
        changed = [r if r["ignore"] else {**r, "range": NEAREST[self.reconstruction]} for r in rules]
        return ["calibration.reconstruction.iterations=0", f"quantization.rules={json.dumps(changed)}"]

    def document(self) -> dict[str, str | int]:
        """Return the fields."""
        return asdict(self)


def with_bases(rows: Sequence[Row]) -> list[Row]:
    """Return the rows, each after the row it starts from, none twice."""
    ordered: dict[Row, None] = {}
    for row in rows:
        if row.base is not None:
            ordered.setdefault(row.base)
        ordered.setdefault(row)
    return list(ordered)


def _main(model: str, setting: str, seed: int) -> Iterator[Row]:
    for method in NEAREST:
        yield Row(model, setting, method, seed=seed)
    yield Row(model, setting, "nearest-mse", UNIFORM, seed)
    for weighting in (UNIFORM, "mse", "gac", "gac_faithful", PTQ4DM):
        yield Row(model, setting, weighting, NOTHING, seed)
        yield Row(model, setting, weighting, UNIFORM if weighting == UNIFORM else weighting, seed)
    for weighting in ("gac", "noisy", "clean"):  # from the identical blocks of `uniform`
        yield Row(model, setting, UNIFORM, weighting, seed)


def _foreign(model: str, setting: str, seed: int) -> Iterator[Row]:
    for method in FOREIGN:
        if setting == "w8a8" or method in ("modelopt-max", "modelopt-percentile"):
            yield Row(model, setting, method, seed=seed)


def _pair(model: str, setting: str, seed: int) -> Iterator[Row]:
    for weighting in (UNIFORM, "gac", "noisy"):
        yield Row(model, setting, UNIFORM, weighting, seed)
    yield Row(model, setting, "gac", "gac", seed)


PARTS = {"main": _main, "foreign": _foreign, "pair": _pair}


def planned(part: str, models: Sequence[str], settings: Sequence[str], seeds: Sequence[int]) -> list[Row]:
    """Return the rows of a part of the evidence, seed by seed, in the order they are run; FP first."""
    rows = [Row(model, "float", "fp") for model in models]
    if part == "deploy":
        return rows + [Row(model, "w4-weight-only", UNIFORM) for model in models]
    rows += [r for s in seeds for m in models for q in settings for r in PARTS[part](m, q, s)]
    return with_bases(rows)
