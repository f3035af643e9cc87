"""What does one see first? Which model this is, when and where it was calibrated, and four numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from gacq_deploy.artifact.diagnostics import ERROR_STAGES, Diagnostics
from gacq_deploy.artifact.records import ModelRecord
from gacq_deploy.bench import BenchReport
from gacq_deploy.doctor.machine import cpu
from gacq_deploy.engines.catalogue import FLOAT, known_engines
from gacq_deploy.errors import shell_command
from gacq_deploy.export.record import ExportRecord
from gacq_deploy.inspection.artifact import Inspection
from gacq_deploy.metrics.images import is_image
from gacq_deploy.parity.report import Comparison, ParityReport
from gacq_deploy.recipe.presets import preset_of
from gacq_deploy.recipe.sections import Recipe
from gacq_deploy.report.collect import Collected
from gacq_deploy.report.pictures import DRAWN, Pictures
from gacq_deploy.report.tables import size_cell


@dataclass(frozen=True)
class Heading:
    """The head of the page: the model's name, what it is, and how it was calibrated."""

    title: str
    model: str
    origin: str


@dataclass(frozen=True)
class BigNumber:
    """One of the four; ``tone`` is "bad" where it is a warning, "none" where nothing was measured."""

    value: str
    unit: str
    label: str
    note: str
    tone: str = ""


def heading(found: Collected) -> Heading:
    """Return what stands at the head: the model first, then the recipe."""
    model = found.model if isinstance(found.model, ModelRecord) else None
    title = found.run.root.resolve().name if model is None else model.name
    return Heading(title, "" if model is None else _described(model, found.export), _origin(found))


def big_numbers(found: Collected) -> tuple[BigNumber, ...]:
    """Return size, speed, images and worst timestep of the fastest graph that was judged; none before parity."""
    if not isinstance(found.parity, ParityReport) or not found.parity.fidelity:
        return ()
    candidate, speed = _shown_candidate(found, found.parity)
    return (
        _size(found, candidate),
        _speed(found, candidate, speed),
        _images(found, found.parity, candidate),
        _worst_timestep(found.parity, candidate),
    )


def learning(found: Collected) -> tuple[str, bool] | None:
    """Return what learning did to the worst timesteps, and whether that was good; None where nothing says it."""
    levels, undone = _levels(found)
    if len(levels) + len(undone) < 2 or not levels:
        return None
    before, after = levels[0], levels[-1]
    gain = round(after - before, 1)
    verb = f"gained {gain:.1f} dB" if gain > 0 else f"lost {-gain:.1f} dB" if gain < 0 else "changed nothing"
    said = f"Learning {verb} at the worst timesteps ({before:.1f} to {after:.1f} dB)."
    return " ".join([said, *(f"The {stage} lost, and was undone." for stage in undone)]), gain >= 0


def _levels(found: Collected) -> tuple[list[float], list[str]]:
    """Return the SQNR in the worst timesteps after every stage that was kept, and the stages that were undone."""
    recorded: Mapping[str, Mapping[str, Any]] = {}
    if isinstance(found.inspection, Inspection):
        recorded = found.inspection.versions.get("stages", {})
    stages = {name: recorded[name] for name in ERROR_STAGES if name in recorded}
    if stages:
        kept = [float(stage["sqnr_db"]) for stage in stages.values() if stage["kept"]]
        return kept, [name for name, stage in stages.items() if not stage["kept"]]
    if not isinstance(found.diagnostics, Diagnostics) or not found.diagnostics.error_timesteps.size:
        return [], []
    errors = found.diagnostics.error_sqnr_db
    return [float(errors[name].min()) for name in ERROR_STAGES if name in errors], []


def _described(model: ModelRecord, export: object) -> str:
    channels, *sides = model.sample_shape
    what = "images" if is_image(model.sample_shape) else "latents"
    makes = f"makes {what} of {' x '.join(map(str, sides))}, {channels} channel{'s' if channels != 1 else ''}"
    classes = model.conditioning.get("class_labels", {}).get("num_classes")
    parts = [model.family, makes, f"{classes} classes" if classes else ""]
    if isinstance(export, ExportRecord):
        parts.append(f"{size_cell(export.bytes_of(FLOAT)).text} in float")
    return " · ".join(filter(None, parts))


def _origin(found: Collected) -> str:
    parts = []
    if isinstance(found.recipe, Recipe):
        preset = preset_of(found.recipe)
        parts += [f"Recipe {found.recipe.name}", f"preset {preset}" if preset else "effort of its own"]
    if isinstance(found.inspection, Inspection):
        began = found.inspection.versions.get("started_unix")
        if isinstance(began, int | float):
            parts.append(f"calibrated {datetime.fromtimestamp(began, UTC):%d %B %Y}".replace(" 0", " "))
    machine = _machine(found)
    return " · ".join([*parts, *([machine] if machine else [])])


def _machine(found: Collected) -> str:
    """Return the processor that judged or timed the graphs."""
    if isinstance(found.parity, ParityReport):
        processor: dict[str, Any] = found.parity.subject.get("processor") or {}
        if processor.get("name"):
            return f"judged on {processor['name']}"
    return f"timed on {found.bench.host.cpu}" if isinstance(found.bench, BenchReport) else ""


def _shown_candidate(found: Collected, parity: ParityReport) -> tuple[str, float | None]:
    """Return the judged graph and engine that is fastest at the smallest batch, and how much; else the one drawn."""
    measured: list[tuple[float, str]] = []
    if isinstance(found.bench, BenchReport):
        share = parity.step_policy.float_share
        for candidate in parity.fidelity:
            file, _, engine = candidate.partition("@")
            speed = found.bench.speed(f"{engine}/{file}", min(found.bench.batches), share)
            measured += [] if speed is None else [(speed, candidate)]
    if not measured:
        return next((c for c in parity.fidelity if c == DRAWN), next(iter(parity.fidelity))), None
    speed, candidate = max(measured)
    return candidate, speed


def _size(found: Collected, candidate: str) -> BigNumber:
    file = candidate.partition("@")[0]
    if not isinstance(found.export, ExportRecord) or not {FLOAT, file} <= found.export.files.keys():
        return BigNumber("?", "", "smaller", "The exported graphs are not there.", "none")
    exact, quantized = (found.export.bytes_of(name) for name in (FLOAT, file))
    note = f"{file}: {size_cell(quantized).text}, float {size_cell(exact).text}"
    return BigNumber(f"{exact / quantized:.1f}", "x", "smaller", note)


def _speed(found: Collected, candidate: str, speed: float | None) -> BigNumber:
    if not isinstance(found.bench, BenchReport) or speed is None:
        return BigNumber(
            "?", "", "faster", f"Not measured: `{shell_command('bench', found.run.root)}`.", "none"
        )
    engine = candidate.partition("@")[2]
    batch = min(found.bench.batches)
    note = f"{engine}, batch {batch}, {_threads(found.bench.threads)}, against float in ONNX Runtime"
    if round(speed, 2) >= 1:
        return BigNumber(f"{speed:.2f}", "x", "faster", note)
    reason = _why_slow(engine, found.bench.host.cpu)
    return BigNumber(f"{speed:.2f}", "x", "slower", f"{note}. {reason}".rstrip(), "bad")


def _threads(count: int) -> str:
    return {0: "all threads", 1: "one thread"}.get(count, f"{count} threads")


def _why_slow(engine: str, measured_on: str) -> str:
    """Return what `doctor` says of this processor, if it is the one that was measured on and the engine runs on it."""
    record = known_engines().get(engine)
    said = cpu()
    if record is None or record.on_gpu or said.status == "ok" or not said.value.startswith(measured_on):
        return ""
    return f"{said.value}."


def _images(found: Collected, parity: ParityReport, candidate: str) -> BigNumber:
    count = parity.trajectory.get("images", parity.protocol.images)
    drawn = found.pictures if isinstance(found.pictures, Pictures) else Pictures()
    # parity compares final states, and those of a model of latents are no images yet
    of_latents = bool(parity.trajectory.get("compared"))
    if of_latents and drawn.mean_db is not None:
        judged = parity.fidelity.get(DRAWN, {}).get("image_psnr_db")
        gate = "" if judged is None else f"; the gate's number, of {count} latents: {judged:.1f} dB"
        note = f"mean of the {len(drawn.tiles)} below, decoded{gate}"
        return _decibels(drawn.mean_db, "PSNR of images", note, failed=False)
    return _decibels(
        parity.fidelity[candidate].get("image_psnr_db"),
        "PSNR of latents" if of_latents else "PSNR of images",
        f"mean of {count} same-seed {'latents' if of_latents else 'images'}, the gate's number",
        failed=_fails(parity, candidate, "image_psnr_db"),
    )


def _worst_timestep(parity: ParityReport, candidate: str) -> BigNumber:
    value = parity.fidelity[candidate].get("eps_sqnr_db")
    rows = next((c.by_timestep for c in _judgements(parity, candidate) if c.by_timestep), ())
    known = [row for row in rows if row.get("sqnr_db") is not None and "timestep_max" in row]
    worst = min(known, key=lambda row: row["sqnr_db"] or 0.0, default=None)
    return _decibels(
        value,
        "SQNR of the worst timesteps",
        f"{_place(worst)}single steps against float",
        failed=_fails(parity, candidate, "eps_sqnr_db"),
    )


def _place(bucket: Mapping[str, int | float | None] | None) -> str:
    if bucket is None:
        return ""
    high, low = bucket["timestep_max"], bucket["timestep_min"]
    return f"at timestep {high}; " if high == low else f"at timesteps {high} to {low}; "


def _decibels(value: float | None, label: str, note: str, *, failed: bool) -> BigNumber:
    if value is None:
        return BigNumber("?", "", label, "Not evaluated.", "bad")
    return BigNumber(f"{value:.1f}", "dB", label, note, "bad" if failed else "")


def _judgements(parity: ParityReport, candidate: str) -> list[Comparison]:
    return [
        c
        for c in parity.comparisons
        if c.candidate == candidate and c.evidence in ("budget", "single", "mixed")
    ]


def _fails(parity: ParityReport, candidate: str, metric: str) -> bool:
    return any(metric in comparison.failed for comparison in _judgements(parity, candidate))
