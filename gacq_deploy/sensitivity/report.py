"""What does a sensitivity study say, on disk and in memory?"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from gacq_deploy.errors import quoted
from gacq_deploy.export.record import SubjectRecord, why_changed
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.spec import Role
from gacq_deploy.storage.records import Record, load_sealed_record, shaped_by
from gacq_deploy.storage.sealed import write_sealed

Levels = tuple[float, ...]
"""SQNR of the model output in dB, one value a timestep bucket, noisiest bucket first; 300 is no error."""
Asked = Literal["budget", "min-sqnr", "max-drop"]


class TimestepBucket(Record):
    """The timesteps of one bucket, both ends included."""

    timestep_max: int
    timestep_min: int


class ModuleSensitivity(Record):
    """What quantizing one module costs. Its weight and its activations are one unit: no engine splits them."""

    module: str
    alone_db: Levels
    """Only this module is quantized; against the same graph with nothing quantized."""
    share: tuple[float, ...]
    """Its part, bucket by bucket, in the sum of all modules' errors when each is quantized alone."""
    role_db: dict[Role, Levels]
    """As ``alone_db``, but only its weight, only its input or (graphs that have it) only its output."""
    left_float_db: Levels
    """Everything but this module is quantized; against the float model."""
    gain_db: Levels
    """``left_float_db`` less the whole graph's ``quantized_db``, bucket by bucket."""
    worst_gain_db: float
    """By how much the worst bucket of the whole graph improves when this module stays float.

    Whatever changes in a layer flips roundings behind it; for a module with a small share this is mostly that.
    """


class Step(Record):
    """One more module left float, and the worst bucket of the whole graph then, over all judged graphs."""

    module: str
    worst_db: float


class Proposal(Record):
    """Which modules should stay float, and what that was measured to give."""

    asked: Asked
    """``budget``: the recipe's gate and a margin; ``min-sqnr``: a value; ``max-drop``: a distance from the best."""
    asked_db: float
    target_db: float
    """SQNR that the worst bucket of every judged graph must reach."""
    reached: bool
    """False when no set of at most ``max_float`` modules that was tried reaches the target."""
    max_float: int
    modules: tuple[str, ...]
    """The modules to leave float, the most effective first; the best set found where ``reached`` is false."""
    rules: tuple[str, ...]
    """The same as lines for the end of the recipe's ``quantization.rules``."""
    before_db: dict[str, Levels] = Field(min_length=1)
    """Graph -> SQNR as it is."""
    after_db: dict[str, Levels] = Field(min_length=1)
    """Graph -> SQNR with exactly ``modules`` left float, built and measured."""
    steps: tuple[Step, ...]
    """The search, in order; it may have gone beyond ``modules``."""
    lint_errors: tuple[str, ...]
    """What the lint finds wrong with the graphs of ``after_db``; ``reached`` is false when there is any."""

    @property
    def target(self) -> str:
        """The SQNR to reach, and where it comes from."""
        where = {
            "budget": f"the recipe's gate of {self.asked_db:g} dB and a margin",
            "min-sqnr": "in the worst bucket",
            "max-drop": f"{self.asked_db:g} dB below the best with {self.max_float} left float",
        }
        return f"{self.target_db:.2f} dB ({where[self.asked]})"


class SensitivityReport(Record):
    """What ``sensitivity.json`` says.

    ``modules`` are ranked by their share of the error in ``worst_bucket``, the most costly first.
    """

    schema_: Literal["gacq-deploy/sensitivity/1"] = Field(default="gacq-deploy/sensitivity/1", alias="schema")
    subject: Annotated[dict[str, Any], shaped_by(SubjectRecord)]
    """``artifact_sha256``: its digest; ``files``: graph -> sha256."""
    engine: str
    """What really ran, with version."""
    graph: str
    """The quantized graph whose modules are ranked."""
    buckets: tuple[TimestepBucket, ...] = Field(min_length=1)
    probe_states: int
    """States that whole graphs are measured on (``before_db``, ``after_db``, ``steps``)."""
    ranked_states: int
    """States that modules are ranked on, spread evenly over the timesteps."""
    engine_runs: int
    """Graphs that were opened and run."""
    unquantized_db: Levels
    """The same graph with nothing quantized; not 300 where calibration retrained float parameters."""
    quantized_db: Levels
    """The whole quantized graph, on the ranked states."""
    modules: tuple[ModuleSensitivity, ...]
    proposal: Proposal

    @model_validator(mode="after")
    def _levels_are_of_buckets(self) -> Self:
        levels = [self.unquantized_db, self.quantized_db, *self.proposal.before_db.values()]
        levels += self.proposal.after_db.values()
        if self.proposal.before_db.keys() != self.proposal.after_db.keys():
            raise ValueError("the proposal's levels before and after are of other graphs")
        for module in self.modules:
            levels += [module.alone_db, module.share, module.left_float_db, module.gain_db]
            levels += module.role_db.values()
        if (counts := set(map(len, levels))) != {len(self.buckets)}:
            raise ValueError(f"levels of {sorted(counts)} buckets stand beside {len(self.buckets)} buckets")
        return self

    def why_stale(self, directory: RunDirectory) -> str | None:
        """Return why this was not measured on what the run holds now; None: it was."""
        return why_changed(directory, self.subject)

    def __bool__(self) -> bool:
        return self.proposal.reached

    @property
    def worst_bucket(self) -> int:
        """Bucket in which the whole quantized graph is worst."""
        return self.quantized_db.index(min(self.quantized_db))

    def document(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return self.model_dump(mode="json", by_alias=True)


def save_sensitivity(report: SensitivityReport, directory: RunDirectory) -> None:
    """Write ``sensitivity.json`` atomically, with its own digest."""
    write_sealed(directory.sensitivity_json, report.document())


def load_sensitivity(directory: RunDirectory) -> SensitivityReport:
    """Read the saved report; whether it is about the present graphs, its ``subject`` tells.

    Raises:
        ArtifactError: missing, not JSON, altered, or not a report of this schema.
    """
    path = directory.sensitivity_json
    hint = f"Run `gacq-deploy sensitivity {quoted(directory.root)}` again."
    return load_sealed_record(SensitivityReport, path, what="Sensitivity report", hint=hint)
