"""Which tensors are quantized, and how? Rules in order, and named beginnings for them: levels and exclusions."""

from __future__ import annotations

from itertools import chain
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, model_validator

from gacq_deploy.recipe.calibration import Section
from gacq_deploy.spec import Role

Level = Literal["conv", "ffn", "qkv", "linear", "int4"]
Exclusion = Literal["nvidia-demo", "nvidia-demo-final"]
_Block = Literal[16, 32, 64, 128, 256]
BLOCKS: tuple[_Block, ...] = get_args(_Block)


class RangeSection(Section):
    """What every range method has: a name, and one number more if it needs one."""

    method: str
    """Which one this is."""

    @property
    def text(self) -> str:
        """As the plan and the manifest keep it: ``minmax``, ``percentile:99.9``."""
        numbers = (f"{value:g}" for name, value in self if name != "method")
        return ":".join((self.method, *numbers))


class MinMaxRange(RangeSection):
    """Largest absolute value."""

    method: Literal["minmax"]


class PercentileRange(RangeSection):
    """A percentile of the absolute values."""

    method: Literal["percentile"]
    percentile: float = Field(default=99.9, gt=50, le=100)
    """Share of the values, in percent, that the scale covers."""


class MseRange(RangeSection):
    """The scale with the least error |x - q(x)|^p."""

    method: Literal["mse"]
    p: float = Field(default=2.4, ge=1, le=4)
    """Power of the error; a higher one clips less."""


_AnyRange = MinMaxRange | PercentileRange | MseRange
RangeChoice = Annotated[_AnyRange, Field(discriminator="method")]
RANGE_METHODS: tuple[str, ...] = tuple(
    chain.from_iterable(get_args(kind.model_fields["method"].annotation) for kind in get_args(_AnyRange))
)
"""Their names; how each finds a scale stands in `quant/ranges.py`."""


class Rule(Section):
    """One line of the quantization rules; the last rule that matches a site wins."""

    match: str
    """Shell wildcard on the module's dotted name."""
    role: Role | Literal["*"] = "*"
    """Only a layer's weight, its input, or its output; outputs are quantized in `int8.cpu.onnx` alone."""
    layer: Literal["conv", "linear", "*"] = "*"
    """Only convolutions, or only linear layers."""
    bits: int | None = Field(default=None, ge=2, le=8)
    """Of the grid. Fewer than 8 lie in an int8 container, unless `block` is given."""
    block: _Block | None = None
    """INT4 weight-only: a scale for every so many input features of each output feature, and the layer's input stays
    float. Needs `bits: 4` and `layer: linear`; must divide the layer's input features, at least in two."""
    range: RangeChoice | None = None
    """How the scale is found: `{method: minmax}` or another of those below; none: `{method: mse}`."""
    ignore: bool = False
    """True keeps the site float."""
    optional: bool = False
    """True allows the rule to match nothing in this model."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.ignore and self.bits is None:
            raise ValueError("a rule needs 'bits' or 'ignore: true'")
        return self

    @model_validator(mode="after")
    def _blocks_fit(self) -> Self:
        if self.block is None:
            return self
        if self.bits != 4 or self.layer != "linear" or self.role not in ("*", "weight"):
            raise ValueError(
                f"'block: {self.block}' asks for INT4 weights of linear layers: it needs 'bits: 4' and "
                "'layer: linear', and 'role', if given, is 'weight'"
            )
        return self

    def quantizes(self, role: Role) -> bool:
        """Tell whether a tensor of this role is quantized where this rule wins."""
        return not self.ignore and (self.block is None or role == "weight")


def _quantize(match: str, **more: Any) -> Rule:
    return Rule(match=match, bits=8, optional=True, **more)


_CONVOLUTIONS = (
    _quantize("*", layer="conv"),
    _quantize("*", layer="conv", role="output", range=MseRange(method="mse", p=2)),
)
_FEED_FORWARD = _quantize("*.ff.net.*", layer="linear")
_PROJECTIONS = _quantize("*.to_[qkv]", layer="linear")
# what transformers call the same: other feed-forward layers, those of the text beside the image (SD3, Flux, AuraFlow,
# Qwen-Image), Flux' single blocks, whose proj_out ends both attention and feed-forward
_MORE_FEED_FORWARD = tuple(
    _quantize(match, layer="linear")
    for match in (
        "*.ff.*",
        "*.ff_context.*",
        "*.ffn.*",
        "*.feed_forward.*",
        "*_mlp.net.*",
        "*.proj_mlp",
        "single_transformer_blocks.*.proj_out",
    )
)
_MORE_PROJECTIONS = _quantize("*.add_[qkv]_proj", layer="linear")
LEVELS: dict[Level, tuple[Rule, ...]] = {
    "conv": (Rule(match="*", ignore=True), *_CONVOLUTIONS),
    "ffn": (Rule(match="*", ignore=True), *_CONVOLUTIONS, _FEED_FORWARD, *_MORE_FEED_FORWARD),
    "qkv": (
        Rule(match="*", ignore=True),
        *_CONVOLUTIONS,
        _FEED_FORWARD,
        _PROJECTIONS,
        *_MORE_FEED_FORWARD,
        _MORE_PROJECTIONS,
    ),
    "linear": (*_CONVOLUTIONS, _quantize("*", layer="linear")),
    "int4": (
        Rule(match="*", ignore=True),
        Rule(match="*", layer="linear", bits=4, block=64, optional=True),
    ),
}
"""Each of the first four quantizes what the one before it does, and more: convolutions; feed-forward layers;
projections to queries, keys and values; every linear layer. They are the steps of NVIDIA's INT8 diffusion demo (its 1,
2, 2.5, 3). The last stores the weights of linear layers as INT4 and computes in float; 64 divides the widths of every
Stable Diffusion and DiT, 128 does not."""

_NAMES = (
    "time_emb_proj",
    "time_embedding",
    "conv_in",
    "conv_out",
    "conv_shortcut",
    "add_embedding",
    "pos_embed",
    "time_text_embed",
    "context_embedder",
    "norm_out",
)


def _leave_float(last: str) -> tuple[Rule, ...]:
    patterns = (*(f"*{name}*" for name in _NAMES), last)
    return tuple(Rule(match=pattern, ignore=True, optional=True) for pattern in patterns)


EXCLUSIONS: dict[Exclusion, tuple[Rule, ...]] = {
    "nvidia-demo": _leave_float("*proj_out*"),
    "nvidia-demo-final": _leave_float("proj_out*"),
}
"""Layers that stay float, by the names that NVIDIA's INT8 diffusion demo leaves out. There the name `proj_out`, meant
for the last layer of a transformer, is searched anywhere, so it also hits the last projection of every attention of a
UNet: `nvidia-demo` does the same, `nvidia-demo-final` leaves only the model's own `proj_out` float."""


class SmoothingSection(Section):
    """Move the range of activation channels into weights, before anything is quantized (SmoothQuant, Xiao et al. 2023).

    A channel of a linear layer's input is divided by s = max|x|^alpha / max|w|^(1 - alpha), its weights are
    multiplied by it. What reads one tensor shares one s.
    """

    alpha: Annotated[float, Field(ge=0, le=1)] | Literal["search"] = 0.5
    """How much of the range moves. `search`: for each tensor the one that leaves the least output error on calibration
    states, no smoothing included."""
    match: str = "*"
    """Shell wildcard on module names: which of the quantized linear layers. Those that read one tensor go together."""


class QuantizationSection(Section):
    """Which tensors are quantized, and how: by rules.

    `level` and `exclude` stand for rules before the others; a resolved recipe holds those in full instead.
    """

    level: Level | None = Field(default=None, exclude=True)
    """Start from: `conv`, convolutions; `ffn`, and feed-forward layers; `qkv`, and the projections to queries, keys and
    values; `linear`, and every other linear layer. `int4`: no INT8, the weights of linear layers as INT4 in blocks of
    64. None: `rules` say it all."""
    exclude: Exclusion | None = Field(default=None, exclude=True)
    """Then leave float what NVIDIA's INT8 diffusion demo does: `nvidia-demo`, with the last projection of every UNet
    attention (`proj_out`); `nvidia-demo-final`, without."""
    rules: tuple[Rule, ...] = ()
    """Ordered; the last match wins; a site that no rule matches is an error."""
    tie_concat: bool = True
    """Tensors that meet at a skip concat share one activation scale."""
    smoothing: SmoothingSection | None = None
    """Smooth the inputs of linear layers, which costs a multiplication where no norm can carry it; by default none."""

    @model_validator(mode="after")
    def _spell_out(self) -> Self:
        start = (*LEVELS.get(self.level, ()), *EXCLUSIONS.get(self.exclude, ()))  # type: ignore[arg-type]
        if not start and not self.rules:
            raise ValueError("give 'level' or 'rules'")
        # the model is frozen for its users, not while it is made
        self.__dict__.update(rules=(*start, *self.rules), level=None, exclude=None)
        return self
