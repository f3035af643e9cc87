"""What did parity find, and does it hold? Types that cross the disk, and the one table of gates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from gacq_deploy.build_trt.open import why_others
from gacq_deploy.errors import ArtifactError
from gacq_deploy.export.record import why_changed
from gacq_deploy.metrics.error_difference import Number, finite
from gacq_deploy.parity.records import BucketRecord, JudgedPolicy, JudgedSubject, TrajectoryRecord
from gacq_deploy.recipe.sections import ParitySection
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.storage.records import Record, load_sealed_record, shaped_by
from gacq_deploy.storage.sealed import write_sealed

Evidence = Literal["exact", "flavour", "exporter", "local", "error", "budget", "single", "mixed"]


@dataclass(frozen=True)
class Gate:
    """A bound on one metric: at least, or at most, a value of the recipe."""

    meaning: str
    """The metric in words."""
    bound: Callable[[ParitySection], float]
    at_least: bool = False

    def holds(self, value: Number, bound: float) -> bool:
        """Return whether the metric was measured and keeps to the bound."""
        if value is None or not math.isfinite(value):
            return False
        return value >= bound if self.at_least else value <= bound


def _never(_: ParitySection) -> float:
    return 0.0


_START = {"latents_differ": Gate("starting latents that differ", _never)}
_STEPS = {
    "eps_sqnr_db": Gate(
        "SQNR of single steps, worst timestep bucket (dB)", lambda s: s.budget.eps_sqnr_db, at_least=True
    ),
    "eps_cosine": Gate(
        "cosine of single steps, worst timestep bucket", lambda s: s.budget.eps_cosine, at_least=True
    ),
}
_TRAJECTORIES = {
    "trajectory_cosine": Gate(
        "cosine of final states, mean", lambda s: s.budget.trajectory_cosine, at_least=True
    ),
    "image_psnr_db": Gate(
        "PSNR of same-seed images, mean (dB)", lambda s: s.budget.image_psnr_db, at_least=True
    ),
    "image_ssim": Gate("SSIM of same-seed images, mean", lambda s: s.budget.image_ssim, at_least=True),
}
GATES: dict[Evidence, dict[str, Gate]] = {
    "exact": {"differences": Gate("differing codes, scales or axes", _never)},
    "flavour": {"max_abs": Gate("largest absolute difference", _never)},
    "exporter": {"relative_error": Gate("relative error", lambda s: s.local_rtol)},
    "local": {
        "unchecked": Gate("tensors that could not be compared", _never),
        "equal_share": Gate("share of equal values", lambda s: s.local_equal_share, at_least=True),
        # half a percent for float rounding of code * scale
        "steps": Gate("largest difference in quantization steps", lambda _: 1.005),
        "output_relative_error": Gate("relative error of the output", lambda s: s.local_rtol),
    },
    "error": {
        "difference_db": Gate(
            "gap between the two errors, worst bucket (dB)", lambda s: s.error_difference_db
        )
    },
    "budget": {**_START, **_STEPS, **_TRAJECTORIES},
    # with a step policy the budget falls in two: single steps of the INT8 engine, trajectories and images of the mix
    "single": _STEPS,
    "mixed": {**_START, **_TRAJECTORIES},
}
"""Evidence -> metric -> gate. Every metric named here must be measured on every comparison of that evidence."""
EXEMPT = frozenset({"image_ssim"})
"""Metrics that are not defined for every kind of state, and may be declared not to apply."""


ADVICE: dict[Evidence, str] = {
    "exact": "The graph does not hold what calibration learned: export again.",
    "flavour": "The two INT8 graphs differ: export again, and report it if they still do.",
    "exporter": "The float graph computes something else than the model: export again, with the library versions that "
    "calibrated it.",
    "local": "The engine computes a layer otherwise than the graph says: take another engine, or leave that layer "
    "float in quantization.rules.",
    "error": "The engine adds an error of its own: take another engine, or compare its kernels (`gacq-deploy bench`).",
    "budget": "INT8 costs more than parity.budget allows: calibrate with more effort (--preset standard), leave the "
    "layers float that `gacq-deploy sensitivity` proposes, or raise runtime.step_policy.float_steps.",
    "single": "One step of the INT8 engine costs more than parity.budget allows: calibrate with more effort (--preset "
    "standard), or leave the layers float that `gacq-deploy sensitivity` proposes.",
    "mixed": "INT8 costs more than parity.budget allows even so: calibrate with more effort (--preset standard), or "
    "raise runtime.step_policy.float_steps.",
}
"""Evidence -> what to do when one of its gates does not hold."""
MEASURED_BY = ("probe", "buckets", "images", "steps", "seed", "noise_floor_runs", "local_rtol")
"""Keys of the recipe section that decide what is measured; the others only judge the numbers."""


def protocol_changes(before: ParitySection, after: ParitySection) -> dict[str, tuple[Any, Any]]:
    """Return dotted key -> (value before, value after) of every key that differs, deciding ones first."""
    old, new = _flat(before.model_dump()), _flat(after.model_dump())
    changed = [key for key in old if old[key] != new[key]]
    return {key: (old[key], new[key]) for key in sorted(changed, key=lambda k: not decides_measurement(k))}


def decides_measurement(key: str) -> bool:
    """Return whether another value of this dotted key needs a new run."""
    return key.split(".", maxsplit=1)[0] in MEASURED_BY


def _flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in document.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


class SegmentRecord(Record):
    """One segment of the local evidence: what ends in the quantizer of ``site``, in execution order."""

    site: str
    values: int
    equal_share: Number
    steps: Number
    """Largest difference in quantization steps; for the model output, relative to its largest value."""


AT_BATCH = " batch "
"""Between the name of a compiled engine's graph and the batch that a comparison is about."""


class Comparison(Record):
    """One comparison: ``candidate`` judged against ``reference`` by one kind of evidence."""

    evidence: Evidence
    reference: str
    candidate: str
    engine: str = ""
    """What really ran, with versions."""
    evaluated: bool
    """False when a declared threshold has no measured number."""
    passed: bool
    metrics: dict[str, Number]
    thresholds: dict[str, float]
    worst: dict[str, Any] = Field(default_factory=dict)
    """Where it is worst, in words and names."""
    by_timestep: tuple[Annotated[dict[str, int | Number], shaped_by(BucketRecord)], ...] = ()
    segments: tuple[SegmentRecord, ...] = ()
    exempt: dict[str, str] = Field(default_factory=dict)
    """Metric -> why it does not apply: its threshold is not declared."""

    @field_validator("exempt")
    @classmethod
    def _may_be_exempt(cls, exempt: dict[str, str]) -> dict[str, str]:
        if wrong := sorted(exempt.keys() - EXEMPT):
            raise ValueError(f"{wrong[0]} applies to every model")
        return exempt

    @model_validator(mode="after")
    def _only_local_evidence_has_segments(self) -> Self:
        if self.segments and self.evidence != "local":
            raise ValueError(f"{self.evidence} evidence has no segments")
        return self

    @property
    def subject(self) -> str:
        """The candidate, at whichever batch it was judged."""
        return self.candidate.partition(AT_BATCH)[0]

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the metrics whose gate does not hold."""
        gates = GATES[self.evidence]
        return tuple(
            name
            for name, bound in self.thresholds.items()
            if not gates[name].holds(self.metrics.get(name), bound)
        )


def judge(comparison: Comparison, section: ParitySection) -> Comparison:
    """Return the comparison with the thresholds of ``section`` and the verdict under them."""
    gates = {name: gate for name, gate in GATES[comparison.evidence].items() if name not in comparison.exempt}
    thresholds = {name: gate.bound(section) for name, gate in gates.items()}
    evaluated = all(comparison.metrics.get(name) is not None for name in thresholds)
    judged = comparison.model_copy(update={"thresholds": thresholds, "evaluated": evaluated})
    worst = dict(comparison.worst)
    if comparison.segments:
        worst["first_departing"] = _first_departing(comparison.segments, thresholds)
    return judged.model_copy(update={"passed": evaluated and not judged.failed, "worst": worst})


def _first_departing(segments: tuple[SegmentRecord, ...], thresholds: Mapping[str, float]) -> str | None:
    """Return the first segment in execution order that leaves the gates; the last one is the model output."""
    gates = GATES["local"]
    for segment in segments[:-1]:
        figures = {"equal_share": segment.equal_share, "steps": segment.steps}
        if not all(gates[name].holds(value, thresholds[name]) for name, value in figures.items()):
            return segment.site
    output = segments[-1]
    holds = gates["output_relative_error"].holds(output.steps, thresholds["output_relative_error"])
    return None if holds else output.site


def measured(
    evidence: Evidence, reference: str, candidate: str, metrics: Mapping[str, Number], **details: Any
) -> Comparison:
    """Return a comparison before judgement; a metric that is not finite becomes None."""
    return Comparison(
        evidence=evidence,
        reference=reference,
        candidate=candidate,
        evaluated=False,
        passed=False,
        metrics={name: finite(value) for name, value in metrics.items()},
        thresholds={},
        **details,
    )


@dataclass(frozen=True, kw_only=True)
class FailedGate:
    """A gate that does not hold: which metric of which comparison, how far off, and what to do."""

    evidence: Evidence
    reference: str
    candidate: str
    """``int8.onnx@openvino``: the graph, and the engine that ran it."""
    metric: str
    value: Number
    """None: it was not finite, or could not be measured."""
    bound: float
    at_least: bool
    """Whether ``bound`` is the least value that passes, or the largest."""
    advice: str

    @property
    def meaning(self) -> str:
        """The metric in words."""
        return GATES[self.evidence][self.metric].meaning


class ParityReport(Record):
    """The verdict of `parity`. True when every declared gate was evaluated and holds."""

    schema_: Literal["gacq-deploy/parity/1"] = Field(default="gacq-deploy/parity/1", alias="schema")
    passed: bool
    comparisons: tuple[Comparison, ...]
    trajectory: Annotated[dict[str, Any], shaped_by(TrajectoryRecord)]
    noise_floor: dict[str, Any]
    subject: Annotated[dict[str, Any], shaped_by(JudgedSubject)]
    """Digests of what was judged, and the software that ran it."""
    protocol: ParitySection
    """The recipe section it was measured and judged under."""

    def __bool__(self) -> bool:
        return self.passed

    @property
    def candidates(self) -> frozenset[str]:
        """``<file>@<engine>`` of every quantized graph that was judged."""
        return frozenset(self.fidelity)

    @property
    def fidelity(self) -> dict[str, dict[str, Number]]:
        """Candidate -> how far it is from float: metrics of its budget, images of the mix where steps are mixed."""
        found: dict[str, dict[str, Number]] = {}
        for comparison in self.comparisons:
            if comparison.evidence in ("budget", "single", "mixed"):
                own = {
                    k: v
                    for k, v in comparison.metrics.items()
                    if comparison.evidence != "single" or k in _STEPS
                }
                found[comparison.candidate] = {**found.get(comparison.candidate, {}), **own}
        return found

    @property
    def engines(self) -> dict[str, str]:
        """Library -> key of the compiled engine that was judged."""
        return dict(self.subject.get("engines", {}))

    @property
    def not_judged(self) -> dict[str, str]:
        """``<file>@<engine>`` -> why no gate was declared for it on this machine."""
        return dict(self.subject.get("not_judged", {}))

    @property
    def step_policy(self) -> JudgedPolicy:
        """Which steps ran in float; none in a report that does not say."""
        return JudgedPolicy.model_validate(self.subject.get("step_policy", {}))

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the figures are of, where it is not images, and what was not judged."""
        compared = self.trajectory.get("compared")
        exempt = dict.fromkeys(
            f"{comparison.candidate}: {name} is not judged. {why}."
            for comparison in self.comparisons
            for name, why in comparison.exempt.items()
        )
        left_out = (f"{name} is not judged. {why}" for name, why in self.not_judged.items())
        return (*([compared] if compared else []), *exempt, *left_out)

    def under(self, section: ParitySection) -> ParityReport:
        """Return the same numbers judged under the thresholds of ``section``."""
        return assemble(
            self.comparisons,
            section,
            trajectory=self.trajectory,
            noise_floor=self.noise_floor,
            subject=self.subject,
        )

    def save(self, path: Path) -> None:
        """Write the report atomically, with its own digest."""
        write_sealed(path, self.model_dump(mode="json", by_alias=True))

    def why_stale(self, directory: RunDirectory, *, thresholds: bool = True) -> str | None:
        """Return why this is not about what the run holds, or asks for, now; None: it is.

        Args:
            directory: the run.
            thresholds: whether the recipe's section has to be the one that judged; without, its numbers are enough.
        """
        recipe = directory.load_recipe()
        if (changed := why_changed(directory, self.subject)) is not None:
            return changed
        if self.step_policy.asked != recipe.runtime.step_policy:
            return f"{directory.recipe_path} asks for another runtime.step_policy"
        if thresholds and (changes := protocol_changes(self.protocol, recipe.parity)):
            shown = ", ".join(f"{key} was {old}, now is {new}" for key, (old, new) in changes.items())
            if any(decides_measurement(key) for key in changes):
                return f"{directory.recipe_path} asks for other measurements: {shown}"
            follows = "pass" if self.under(recipe.parity) else "not pass"
            return f"{directory.recipe_path} has other thresholds: {shown}; its numbers would {follows} under them"
        return why_others(directory, self.engines)

    @property
    def failed_gates(self) -> tuple[FailedGate, ...]:
        """The gates that do not hold, in the report's order; none where it passed."""
        return tuple(
            FailedGate(
                evidence=comparison.evidence,
                reference=comparison.reference,
                candidate=comparison.candidate,
                metric=name,
                value=comparison.metrics.get(name),
                bound=bound,
                at_least=GATES[comparison.evidence][name].at_least,
                advice=ADVICE[comparison.evidence],
            )
            for comparison in self.comparisons
            for name, bound in comparison.thresholds.items()
            if name in comparison.failed
        )

    def to_text(self) -> str:
        """Return the verdict as a plain table with one line for each gate, the failing ones explained."""
        lines = [
            gate_line(comparison, name) for comparison in self.comparisons for name in comparison.thresholds
        ]
        lines += self.remarks
        for comparison in self.comparisons:
            if not comparison.passed:
                where = "; ".join(f"{k}: {v}" for k, v in comparison.worst.items() if v is not None)
                lines.append(
                    f"FAILED {comparison.evidence}: {comparison.reference} -> {comparison.candidate}. {where}".rstrip()
                )
        return "\n".join([*lines, f"parity: {'passed' if self.passed else 'FAILED'}"])


def gate_line(comparison: Comparison, name: str) -> str:
    """Return one gate of a comparison in words: verdict, what was compared, value and bound."""
    gate = GATES[comparison.evidence][name]
    holds = gate.holds(comparison.metrics.get(name), comparison.thresholds[name])
    pair = f"{comparison.reference} -> {comparison.candidate}"
    return f"{'ok  ' if holds else 'FAIL'} {comparison.evidence:8} {pair}: {gate_figures(comparison, name)}"


def gate_figures(comparison: Comparison, name: str) -> str:
    """Return one gate's metric, value and bound: ``image_psnr_db 10.2 (>= 30)``."""
    value = comparison.metrics.get(name)
    shown = "not evaluated" if value is None else f"{value:.6g}"
    sign = ">=" if GATES[comparison.evidence][name].at_least else "<="
    return f"{name} {shown} ({sign} {comparison.thresholds[name]:g})"


def assemble(
    comparisons: tuple[Comparison, ...],
    section: ParitySection,
    *,
    trajectory: Any,
    noise_floor: Any,
    subject: Any,
) -> ParityReport:
    """Judge every comparison and return the report; a report without comparisons does not pass."""
    judged = tuple(judge(comparison, section) for comparison in comparisons)
    return ParityReport(
        passed=bool(judged) and all(comparison.passed for comparison in judged),
        comparisons=judged,
        trajectory=trajectory,
        noise_floor=noise_floor,
        subject=subject,
        protocol=section,
    )


def load_report(path: Path) -> ParityReport:
    """Read a saved report.

    Raises:
        ArtifactError: missing, not JSON, not a parity report of this schema, altered, or its verdict does not
            follow from its numbers and its protocol.
    """
    hint = "Run `gacq-deploy parity` on the run directory again."
    found = load_sealed_record(ParityReport, path, what="Parity report", hint=hint)
    judged = found.under(found.protocol)
    if judged != found:
        raise ArtifactError(
            f"Parity report {path} contradicts itself: it says '{_outcome(found)}', its numbers under its own "
            f"protocol give '{_outcome(judged)}'.",
            hint,
        )
    return found


def _outcome(report: ParityReport) -> str:
    return "passed" if report else "did not pass"
