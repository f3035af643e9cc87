"""Which tensor, how many bits, which granularity? The vocabulary that every other module speaks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

Array = NDArray[Any]
"""An array of any dtype."""
Floats = NDArray[np.floating[Any]]
Float32 = NDArray[np.float32]
Role = Literal["weight", "input", "output"]
ROLES: tuple[Role, ...] = get_args(Role)
LayerKind = Literal["conv", "linear"]


@dataclass(frozen=True, order=True)
class Site:
    """One tensor to quantize: a module's dotted name and the tensor's role there.

    ``str(site)`` (``down_blocks.0.resnets.0.conv1:input``) is its key in the plan, the artifact, the ONNX
    node names and the parity report.
    """

    module: str
    role: Role

    def __str__(self) -> str:
        return f"{self.module}:{self.role}"

    @classmethod
    def parse(cls, text: str) -> Site:
        """Return the site that ``str`` wrote.

        Raises:
            ValueError: ``text`` is not ``<module>:<role>``.
        """
        module, _, role = text.rpartition(":")
        for known in ROLES:
            if role == known and module:
                return cls(module, known)
        raise ValueError(f"{text!r} is not '<module>:weight|input|output'")


class TensorSpec(BaseModel):
    """How a tensor is *asked* to be quantized: symmetric integers, per tensor or along ``axis``.

    Weights use [-(2^(b-1)-1), 2^(b-1)-1], activations [-2^(b-1), 2^(b-1)-1], both in an int8 container. With
    ``block``, a weight [out, in] has a scale for every ``block`` input features of each output feature; its layer
    computes in float.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bits: int = Field(ge=2, le=8)
    axis: int | None = None
    narrow: bool = False
    """True drops the most negative code: of weights, for which some engines document [-127, 127]."""
    block: int | None = Field(default=None, ge=2)

    @property
    def qmin(self) -> int:
        """Smallest integer code."""
        return int(self.narrow) - (1 << (self.bits - 1))

    @property
    def qmax(self) -> int:
        """Largest integer code."""
        return (1 << (self.bits - 1)) - 1

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the scales of a tensor of this shape.

        Raises:
            ValueError: the axis is none of the tensor's, or blocks do not fit: no matrix, or input features that are
                no multiple of the block.
        """
        if self.block is None:
            if self.axis is None:
                return ()
            if not -len(shape) <= self.axis < len(shape):
                raise ValueError(f"axis {self.axis} is none of a weight of shape {list(shape)}")
            return (shape[self.axis],)
        if len(shape) != 2 or shape[1] % self.block:
            raise ValueError(f"blocks of {self.block} do not divide a weight of shape {list(shape)}")
        return shape[0], shape[1] // self.block


@dataclass(frozen=True)
class PlannedSite:
    """A site with its spec; sites with the same ``tie`` share one scale."""

    site: Site
    spec: TensorSpec
    tie: str
    range_method: str = "mse"


def _most(counts: Counter[int]) -> int:
    """Return what occurs most often."""
    return counts.most_common(1)[0][0]


@dataclass(frozen=True)
class QuantPlan:
    """The sites that will be quantized, in execution order. At most one entry a site."""

    entries: tuple[PlannedSite, ...]
    _by_site: Mapping[Site, PlannedSite] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_site = {e.site: e for e in self.entries}
        if len(by_site) != len(self.entries):
            raise ValueError("a site is planned twice")
        object.__setattr__(self, "_by_site", by_site)

    def __iter__(self) -> Iterator[PlannedSite]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def get(self, site: Site) -> PlannedSite | None:
        """Return the entry of ``site``, or None if it stays float."""
        return self._by_site.get(site)

    def of_role(self, role: Role) -> tuple[PlannedSite, ...]:
        """Return the entries of one role, in execution order."""
        return tuple(e for e in self.entries if e.site.role == role)

    @property
    def kind(self) -> str:
        """Bits of most weights and inputs, as the field writes them: ``W8A8``, ``W4A8``, ``W4A16``."""
        weights = Counter(e.spec.bits for e in self.of_role("weight"))
        inputs = Counter(e.spec.bits for e in self.of_role("input"))
        # a layer whose input stays float computes in 16 bits where it is deployed
        return f"W{_most(weights)}A{_most(inputs) if inputs.total() >= len(self.weight_only) else 16}"

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the modules whose weight is quantized, in execution order."""
        return tuple(e.site.module for e in self.of_role("weight"))

    @property
    def weight_only(self) -> tuple[str, ...]:
        """Names of the modules whose weight is stored in blocks and whose input stays float, in execution order."""
        return tuple(e.site.module for e in self.of_role("weight") if e.spec.block is not None)

    @property
    def integer_modules(self) -> tuple[str, ...]:
        """Names of the modules that are to compute in INT8, in execution order."""
        return tuple(e.site.module for e in self.of_role("weight") if e.spec.block is None)


@dataclass(frozen=True)
class TensorParams:
    """What was *computed* for a site: ``x ~ codes * scale``, zero point 0.

    ``scale`` is float32, rank 0 (per tensor), ``[channels]`` (along the spec's axis) or ``[out, in / block]``, finite
    and > 0.
    ``codes`` (weights only) is int8 in the shape of the weight.
    """

    scale: NDArray[np.float32]
    codes: NDArray[np.int8] | None = None

    def __post_init__(self) -> None:
        if self.scale.dtype != np.float32 or self.scale.ndim > 2:
            raise ValueError(
                f"scale must be float32 of rank 0, 1 or 2, got {self.scale.dtype} rank {self.scale.ndim}"
            )
        # an engine that flushes denormals to zero would divide by zero
        tiny = float(np.finfo(np.float32).tiny)
        if not bool(np.all(np.isfinite(self.scale) & (self.scale >= tiny))):
            raise ValueError("every scale must be finite, positive and not denormal")
        if self.codes is not None and self.codes.dtype != np.int8:
            raise ValueError(f"codes must be int8, got {self.codes.dtype}")
