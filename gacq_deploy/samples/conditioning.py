"""What is each image to show, and what not? The conditioning of prompts, for classifier-free guidance in pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gacq_deploy.errors import UsageError
from gacq_deploy.spec import Array

_HINT = "Encode every prompt, the empty one included, with the same pipeline and the same length."


@dataclass(frozen=True)
class Conditions:
    """The conditioning of K prompts or labels; of a model that takes none, empty.

    ``positive`` input name -> ``[K, ...]``. ``negative``, of the same names and shapes, leads away: the prediction is
    then ``negative + scale * (positive - negative)`` (Ho and Salimans 2022, eq. 6, ``scale`` being their 1 + w), and
    every image takes two rows of a call.

    Raises:
        UsageError: inputs with unequal rows, a negative of other names or shapes, or a scale that is not finite.
    """

    positive: Mapping[str, Array]
    negative: Mapping[str, Array] | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        rows = {name: _length(value) for name, value in self.positive.items()}
        if len(set(rows.values())) > 1 or any(value.ndim == 0 for value in self.positive.values()):
            raise UsageError(f"Conditioning has unequal rows: {rows}.", "Give one row of each per image.")
        if not math.isfinite(self.scale):
            raise UsageError(f"The guidance scale is {self.scale}.", "Choose a finite number; 1 is none.")
        if self.negative is None:
            return
        shapes, others = _shapes(self.positive), _shapes(self.negative)
        if not shapes or shapes != others:
            raise UsageError(
                f"Negative conditioning {_shown(others)} does not match {_shown(shapes)}.", _HINT
            )

    def __len__(self) -> int:
        """Return K, 0 where nothing conditions."""
        return next((len(value) for value in self.positive.values()), 0)

    @property
    def branches(self) -> int:
        """Rows of a call that one image takes: 2 with guidance, otherwise 1."""
        return 1 if self.negative is None else 2

    def rows(self, index: NDArray[Any] | slice) -> Conditions:
        """Return the conditions of some rows, by indices, flags or a slice."""
        positive = {name: value[index] for name, value in self.positive.items()}
        negative = None
        if self.negative is not None:
            negative = {name: value[index] for name, value in self.negative.items()}
        return Conditions(positive, negative, self.scale)

    def cycle(self, count: int) -> Conditions:
        """Return ``count`` rows: these in turn."""
        return self.rows(np.arange(count) % len(self)) if len(self) else self

    def feeds(self) -> dict[str, Array]:
        """Return what one call is fed, name -> ``[branches * K, ...]``, the negative rows first."""
        if self.negative is None:
            return dict(self.positive)
        return {name: np.concatenate([self.negative[name], value]) for name, value in self.positive.items()}

    def guide(self, prediction: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the guided prediction ``[K, ...]`` of a call's ``[branches * K, ...]``."""
        if self.negative is None:
            return prediction
        away, towards = np.split(prediction, 2)
        return np.asarray(away + np.float32(self.scale) * (towards - away))


def _length(value: Array) -> int:
    return len(value) if value.ndim else 0


def _shapes(side: Mapping[str, Array]) -> dict[str, tuple[tuple[int, ...], str]]:
    return {name: (value.shape, value.dtype.name) for name, value in side.items()}


def _shown(shapes: Mapping[str, tuple[tuple[int, ...], str]]) -> str:
    return ", ".join(f"{name} {dtype} {list(shape)}" for name, (shape, dtype) in shapes.items()) or "(none)"
