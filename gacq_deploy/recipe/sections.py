"""What may one ask for? The sections of a recipe, their defaults and their bounds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PrivateAttr, model_validator

from gacq_deploy.engines.catalogue import TARGETS
from gacq_deploy.engines.open import THREADS_MAX
from gacq_deploy.recipe.build import BuildSection
from gacq_deploy.recipe.calibration import (
    COUNT_MAX,
    MEGABYTES_MAX,
    PolishSection,
    ReconstructionSection,
    Section,
    WeightingSection,
)
from gacq_deploy.recipe.quantization import QuantizationSection
from gacq_deploy.storage.digests import digest_json
from gacq_deploy.storage.files import write_bytes
from gacq_deploy.storage.yaml_documents import encode_yaml

SEED_MAX = 2**31 - 1
PYTHON_PREFIX = "python:"
"""Of a source that is a function, `python:MODULE:FUNCTION`."""
SAMPLE_SIZE_MAX = 1 << 14
"""Height and width of the largest state that is thought of."""


class LoraSection(Section):
    """One low-rank adapter."""

    source: str
    """A safetensors file, or a folder that holds pytorch_lora_weights.safetensors."""
    scale: float = 1.0
    """How much of it, beside the alpha that the file itself holds."""


class ModelSection(Section):
    """Which denoiser."""

    source: str = "builtin:fashion16"
    """`builtin:NAME`, a pipeline or model folder, a hub id, or `python:MODULE:FUNCTION` for an installed function of
    yours that returns a pipeline."""
    component: str | None = None
    """Pipeline component that is the denoiser; found by itself when there is one of `unet`, `transformer`."""
    revision: str | None = None
    """Hub revision."""
    classes: int | None = Field(default=None, ge=1, le=COUNT_MAX)
    """Real classes, when the class table also holds a null class; default: the whole table."""
    sample_size: int | None = Field(default=None, ge=1, le=SAMPLE_SIZE_MAX)
    """Height and width of a state, when the model's configuration does not tell, or those of a text-to-image model are
    not the ones wanted."""
    loras: tuple[LoraSection, ...] = ()
    """Low-rank adapters, fused into the denoiser before anything else, in order."""
    _named_by_file: bool = PrivateAttr(default=False)

    @property
    def is_foreign_code(self) -> bool:
        """Whether the source is a Python function that a file names and nobody else: such a one is not run."""
        return self._named_by_file and self.source.startswith(PYTHON_PREFIX)

    def as_read(self, *, named_by_file: bool) -> ModelSection:
        """Return the same section, read from a file whose source nobody else named, or named by the caller."""
        section = self.model_copy()
        # a section that names no function equals every other with its values
        section._named_by_file = named_by_file and self.source.startswith(PYTHON_PREFIX)
        return section


class SamplesSection(Section):
    """Which states of float trajectories the model is calibrated on."""

    trajectories: int = Field(default=48, ge=1, le=COUNT_MAX)
    """Number of seeds; every chosen step of each is kept."""
    steps: int = Field(default=20, ge=1, le=COUNT_MAX)
    """Sampler steps of a trajectory."""
    keep_every: int = Field(default=1, ge=1, le=COUNT_MAX)
    """Keep every k-th step (timesteps stay evenly spread)."""
    validation_share: float = Field(default=0.05, ge=0, lt=1)
    """Share of whole trajectories that is held out (at least one when above 0)."""
    batch: int = Field(default=16, ge=1, le=COUNT_MAX)
    """Trajectories run together; never changes which samples are taken."""
    seed: int = Field(default=0, ge=0, le=SEED_MAX)
    """Of the noise that trajectories start from, of the prompts' order, and of what is held out."""
    prompts: tuple[str, ...] = ()
    """Of a text-to-image model: its trajectories follow these in a seeded order, again from the first when there are
    more trajectories. `--prompts FILE` puts a file's here. None given: built-in ones of everyday subjects."""
    guidance_scale: float | None = Field(default=None, ge=0, le=100)
    """Of classifier-free guidance; default: the pipeline's own."""


class CalibrationSection(Section):
    """How rounding and scales are learned."""

    objective: Literal["eps", "sqnr", "images"] = "sqnr"
    """What the weights serve. `eps`: the output's squared error as it is, so the worst timesteps rule. `sqnr`: a
    decibel counts the same at every timestep. `images`: each timestep's error counts as much as it changes the
    final image, measured (in the polish; blocks take `sqnr`)."""
    reconstruction: ReconstructionSection = ReconstructionSection()
    weighting: WeightingSection = WeightingSection()
    polish: PolishSection = PolishSection()
    memory_mb: int = Field(default=2048, ge=64, le=MEGABYTES_MAX)
    """Bound on the activations of one pass over the samples; the cache itself is memory-mapped on disk. A
    reconstruction step holds `reconstruction.batch` samples of one block, whatever this says."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:[0-9]{1,2})?)$")
    """Where torch computes: `auto` takes the first GPU, or the CPU where there is none; `cpu`, `cuda` (the first GPU)
    or `cuda:N`. A run goes on where it began, on a CPU or on a GPU."""
    gpu_memory_mb: int | None = Field(default=None, ge=256, le=MEGABYTES_MAX)
    """How much of a GPU may be taken: the model lies there, and what it leaves stands for `memory_mb`. Default: 85 % of
    the card, whatever else runs on it; a run keeps what it began with, because it decides how sums are cut."""
    threads: int = Field(default=2, ge=1, le=THREADS_MAX)
    """CPU threads; part of the recipe because it changes the last bits of float sums."""
    seed: int = Field(default=0, ge=0, le=SEED_MAX)
    """Of the order in which learning sees the samples."""

    @property
    def device_class(self) -> str:
        """``cuda`` if it names a GPU, ``cpu`` if it names the CPU or leaves it open."""
        return "cuda" if self.device.startswith("cuda") else "cpu"


def _known_target(name: str) -> str:
    if name not in TARGETS:
        raise ValueError(f"'{name}' is none of {', '.join(TARGETS)}")
    return name


class ExportSection(Section):
    """What the ONNX files look like."""

    opset: int = Field(default=20, ge=19, le=22)
    """Version of ONNX's operators. INT4 weights in blocks need 21: the graphs then get that at least."""
    targets: tuple[Annotated[str, AfterValidator(_known_target)], ...] = Field(default=TARGETS, min_length=1)
    """Engines that the graphs are for: `ort-cpu` takes `int8.cpu.onnx`, the others `int8.onnx`."""
    external_data_mb: int = Field(default=128, ge=1, le=MEGABYTES_MAX)
    """Larger graphs keep their weights in one file beside them."""
    dynamic_resolution: bool = False
    """Height and width stay open, in multiples of the UNet's downsampling; scales remain those of the calibrated
    size. Not for DiT, whose positional embeddings hold one size."""


class ProbeSection(Section):
    """What the torch fake-quantized model is recorded on, as reference of the exported graphs."""

    trajectories: int = Field(default=8, ge=1, le=COUNT_MAX)
    """Float trajectories whose states are recorded."""
    local_samples: int = Field(default=8, ge=1, le=COUNT_MAX)
    """States for which every quantized tensor is recorded."""
    seed: int = Field(default=900_000, ge=0, le=SEED_MAX)
    """Far from those of the samples, so that nothing is judged by what it learned from."""


class BudgetSection(Section):
    """Gates against the float model: what the user sees."""

    eps_sqnr_db: float = 20.0
    """Least teacher-forced SQNR of the model output in any timestep bucket."""
    eps_cosine: float = 0.99
    """Least teacher-forced cosine in any timestep bucket."""
    trajectory_cosine: float = 0.95
    """Least mean cosine of the final states of free-running trajectories."""
    image_psnr_db: float = 30.0
    """Least mean PSNR between same-seed images."""
    image_ssim: float = 0.9
    """Least mean SSIM between same-seed images."""


class ParitySection(Section):
    """What parity measures and which gates must hold."""

    probe: ProbeSection = ProbeSection()
    buckets: int = Field(default=5, ge=1, le=COUNT_MAX)
    """Ranges of timesteps, each judged by itself."""
    images: int = Field(default=64, ge=1, le=COUNT_MAX)
    """Same-seed images compared with the float model."""
    steps: int = Field(default=20, ge=1, le=COUNT_MAX)
    """Sampler steps of an image."""
    seed: int = Field(default=700_000, ge=0, le=SEED_MAX)
    """Of the images' noise."""
    noise_floor_runs: int = Field(default=3, ge=1, le=COUNT_MAX)
    """How often an engine runs again, with and without noise of 1e-5 on its inputs, to show what noise alone makes."""
    local_equal_share: float = Field(default=0.999, gt=0, le=1)
    """Share of values that must agree to `local_rtol` block by block."""
    local_rtol: float = Field(default=1e-4, gt=0)
    """Relative difference that float rounding is allowed."""
    error_difference_db: float = Field(default=0.5, gt=0)
    """Candidate and reference must be equally far from float, in every bucket."""
    budget: BudgetSection = BudgetSection()


Where = Literal["worst", "first", "last", "both"]


class StepPolicySection(Section):
    """Which sampler steps run in the float engine; by default none does."""

    float_steps: int = Field(default=0, ge=0, le=COUNT_MAX)
    """How many; 0 runs every step in INT8."""
    where: Where = "worst"
    """Which ones. `worst`: those whose INT8 error moves the image most, by the artifact's probe. `first`: the noisiest.
    `last`: the cleanest. `both`: from both ends in turn, the noisiest first."""
    steps: tuple[Annotated[int, Field(ge=0, le=COUNT_MAX)], ...] = ()
    """Exactly these instead, counted from 0, the noisiest."""

    @model_validator(mode="after")
    def _says_one_thing(self) -> StepPolicySection:
        if self.float_steps and self.steps:
            raise ValueError("give 'float_steps' or 'steps', not both")
        if len(set(self.steps)) != len(self.steps):
            raise ValueError("a step stands twice in 'steps'")
        return self

    def __bool__(self) -> bool:
        return bool(self.float_steps or self.steps)


class RuntimeSection(Section):
    """Defaults of `run`."""

    steps: int = Field(default=20, ge=1, le=COUNT_MAX)
    """Sampler steps of an image."""
    batch: int = Field(default=16, ge=1, le=COUNT_MAX)
    """Images run together."""
    eta: float = Field(default=0.0, ge=0, le=1)
    """Noise that DDIM adds in every step: 0 none, 1 as much as DDPM."""
    step_policy: StepPolicySection = StepPolicySection()

    @model_validator(mode="after")
    def _policy_fits_the_steps(self) -> RuntimeSection:
        policy = self.step_policy
        if policy.float_steps > self.steps or max(policy.steps, default=0) >= self.steps:
            asked = f"float_steps {policy.float_steps}" if policy.float_steps else f"step {max(policy.steps)}"
            raise ValueError(f"step_policy asks for {asked}, a trajectory has {self.steps} steps")
        return self


class Recipe(Section):
    """Everything a run directory is made from."""

    schema_: Literal["gacq-deploy/recipe/1"] = Field(default="gacq-deploy/recipe/1", alias="schema")
    """Version of the format."""
    name: str
    """As it is asked for, and shown."""
    description: str = ""
    """What it is, in a sentence or two."""
    model: ModelSection = ModelSection()
    samples: SamplesSection = SamplesSection()
    quantization: QuantizationSection
    calibration: CalibrationSection = CalibrationSection()
    export: ExportSection = ExportSection()
    build: BuildSection = BuildSection()
    parity: ParitySection = ParitySection()
    runtime: RuntimeSection = RuntimeSection()

    @model_validator(mode="after")
    def _policy_can_be_judged(self) -> Recipe:
        if self.runtime.step_policy and self.runtime.steps != self.parity.steps:
            raise ValueError(
                f"runtime.step_policy is judged on parity's trajectories: runtime.steps is {self.runtime.steps}, "
                f"parity.steps is {self.parity.steps}; give both the same"
            )
        return self

    def document(self) -> dict[str, Any]:
        """Return the resolved recipe as plain data, defaults filled in."""
        return self.model_dump(mode="json", by_alias=True)

    @property
    def digest(self) -> str:
        """Sha256 of the resolved recipe."""
        return digest_json(self.document())

    @property
    def calibration_digest(self) -> str:
        """Sha256 of the sections that decide what calibration learns; the others may change without a new run."""
        return digest_json(self.decisive())

    def decisive(self) -> dict[str, Any]:
        """Return the sections that decide what calibration learns, as plain data.

        Of the device counts whether it is a GPU, and how much of it is taken: sums come out otherwise there. A CPU is
        not named: runs from before there was a choice name nothing.
        """
        document = self.document()
        sections = {k: document[k] for k in ("model", "samples", "quantization", "calibration")}
        calibration = sections["calibration"]
        if self.calibration.device_class == "cuda":
            calibration["device"] = "cuda"
        else:
            del calibration["device"], calibration["gpu_memory_mb"]
        return sections

    def on_device(self, kind: str, gpu_memory_mb: int | None) -> Recipe:
        """Return the recipe with another ``calibration.device`` and ``calibration.gpu_memory_mb``."""
        changes = {"device": kind, "gpu_memory_mb": gpu_memory_mb}
        calibration = self.calibration.model_copy(update=changes)
        return self.model_copy(update={"calibration": calibration})

    def allowing_python(self, allowed: bool = True) -> Recipe:
        """Return the recipe, free to run the Python function that a file names as its source, if that is allowed."""
        return self.model_copy(update={"model": self.model.as_read(named_by_file=False)}) if allowed else self

    @property
    def text(self) -> str:
        """The resolved recipe as YAML."""
        return encode_yaml(self.document())

    def save(self, path: Path) -> None:
        """Write the resolved recipe atomically."""
        write_bytes(path, self.text.encode())
