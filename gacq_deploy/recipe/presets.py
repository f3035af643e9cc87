"""How much effort? The ladder of presets: data, for the command line reads it before anything is imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gacq_deploy.recipe.sections import Recipe


def _effort(
    *, trajectories: int, reconstruction: int, weighting: tuple[int, int], polish: int
) -> Mapping[str, Mapping[str, Any]]:
    """Return the sections of a recipe that say how much effort calibration takes.

    Args:
        trajectories: to collect samples from.
        reconstruction: iterations a block.
        weighting: iterations of the sample weights before the blocks, and before the polish.
        polish: steps.
    """
    blocks, whole = weighting
    return {
        "samples": {"trajectories": trajectories},
        "calibration": {
            "reconstruction": {"iterations": reconstruction},
            "weighting": {"iterations": blocks, "polish_iterations": whole},
            "polish": {"steps": polish},
        },
    }


PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    # ranges alone: every third state shows them, and no sample is weighed
    "nearest": {
        "samples": {"trajectories": 24, "keep_every": 3},
        "calibration": {
            "reconstruction": {"iterations": 0},
            "weighting": {"mode": "uniform"},
            "polish": {"steps": 0},
        },
    },
    "ci": _effort(trajectories=8, reconstruction=30, weighting=(1, 2), polish=20),
    "quick": _effort(trajectories=24, reconstruction=250, weighting=(2, 5), polish=100),
    "standard": _effort(trajectories=48, reconstruction=800, weighting=(4, 10), polish=200),
    "best": _effort(trajectories=96, reconstruction=2000, weighting=(8, 20), polish=500),
}
"""How much effort, a ladder: what ``--preset`` puts into a recipe before ``--set`` and other options change it."""
HIDDEN_PRESETS = frozenset({"ci"})
"""For tests: too little to learn anything by."""


def shown_presets() -> tuple[str, ...]:
    """Return the ladder of presets, the cheapest first."""
    return tuple(name for name in PRESETS if name not in HIDDEN_PRESETS)


def stronger_preset(recipe: Recipe) -> str | None:
    """Return the cheapest preset that learns longer than the recipe does; None: it learns as long as the best."""
    iterations = recipe.calibration.reconstruction.iterations
    for name in shown_presets():
        if PRESETS[name]["calibration"]["reconstruction"]["iterations"] > iterations:
            return name
    return None


def preset_of(recipe: Recipe) -> str | None:
    """Return the preset whose effort a recipe asks for, whoever wrote it there; None: that of no preset."""
    document = recipe.model_dump(mode="json")
    return next((name for name, sections in PRESETS.items() if _holds(document, sections)), None)


def _holds(document: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Tell whether a document has every value of ``wanted`` at its place."""
    return all(
        _holds(document[key], value) if isinstance(value, Mapping) else document[key] == value
        for key, value in wanted.items()
    )
