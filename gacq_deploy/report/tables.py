"""Which numbers stand in which table? Cells carry the number they are sorted by beside the text they show."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from gacq_deploy.artifact.records import BlockRecord
from gacq_deploy.bench import BenchReport
from gacq_deploy.bench.report import BenchCandidate, Spread, Timing
from gacq_deploy.build_trt.manifest import EngineManifest
from gacq_deploy.engines.catalogue import FLOAT, known_engines
from gacq_deploy.export.record import ExportRecord
from gacq_deploy.inspection.artifact import Inspection, SiteView
from gacq_deploy.parity.report import ParityReport
from gacq_deploy.recipe.sections import Recipe
from gacq_deploy.report.collect import Collected
from gacq_deploy.report.verdict import GateRow

_UNITS = ("B", "kB", "MB", "GB", "TB")


@dataclass(frozen=True)
class Cell:
    """Text, the number it sorts by (None: by its text), and how it looks.

    ``tone`` is "", "ok", "bad", "name" (as it stands on disk, breaks at dots only), "digest" (breaks anywhere),
    "words" (may wrap) or "share" (0 to 1, drawn).
    """

    text: str
    number: float | None = None
    tone: str = ""


@dataclass(frozen=True)
class Column:
    """A heading; numbers stand right."""

    name: str
    numeric: bool = False


@dataclass(frozen=True)
class ReportTable:
    """A caption, headings and rows of as many cells."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]

    @classmethod
    def of(cls, caption: str, headings: Sequence[str], rows: Iterable[Sequence[Cell]]) -> ReportTable:
        """Return a table without the columns that are empty; a heading that starts with ``#`` is one of numbers."""
        found = [tuple(row) for row in rows]
        kept = [i for i in range(len(headings)) if not found or _is_filled(found, i)]
        columns = tuple(Column(headings[i].removeprefix("#"), headings[i].startswith("#")) for i in kept)
        return cls(caption, columns, tuple(_picked(row, kept) for row in found))


def _is_filled(rows: Sequence[Sequence[Cell]], column: int) -> bool:
    return any(row[column].text for row in rows)


def _picked(row: Sequence[Cell], columns: Sequence[int]) -> tuple[Cell, ...]:
    return tuple(row[i] for i in columns)


def number(value: float | None, digits: int = 4) -> Cell:
    """Return a number with ``digits`` significant digits, or a dash, which sorts last."""
    if value is None or not math.isfinite(value):
        return Cell("-")
    return Cell(f"{value:.{digits}g}", float(value))


def size_cell(count: int | None) -> Cell:
    """Return bytes in the unit that suits them (powers of 1000)."""
    if count is None:
        return Cell("-")
    power = min(len(_UNITS) - 1, int(math.log10(count) // 3)) if count > 0 else 0
    amount = count / 1000**power
    # of 999.6 three significant digits would be 1e+03
    shown = f"{amount:.0f}" if amount >= 99.5 else f"{amount:.3g}"
    return Cell(f"{shown} {_UNITS[power]}", float(count))


def text(value: object) -> Cell:
    """Return a word or two."""
    return Cell(str(value))


def words(value: object) -> Cell:
    """Return a phrase, which may take several lines."""
    return Cell(str(value), tone="words")


def digest(value: object) -> Cell:
    """Return a long number in letters, which nobody reads."""
    return Cell(str(value), tone="digest")


def name(value: object) -> Cell:
    """Return a name from the model or the disk."""
    return Cell(str(value), tone="name")


def gate_table(gates: Sequence[GateRow]) -> ReportTable:
    """Every gate with value and threshold, those that fail first."""
    return ReportTable.of(
        "Gates: what was measured and what the recipe asks for",
        ("verdict", "what", "#value", "#threshold", "judged", "against", "evidence", "where it is worst"),
        [_gate(row) for row in sorted(gates, key=lambda row: row.holds)],
    )


def _gate(row: GateRow) -> tuple[Cell, ...]:
    value = Cell("not evaluated", None, "bad") if row.value is None else number(row.value, 6)
    bound = Cell(f"{row.sign} {row.bound:g}", row.bound)
    verdict = Cell("holds", 1, "ok") if row.holds else Cell("FAILS", 0, "bad")
    return (
        verdict,
        words(row.metric),
        value,
        bound,
        name(row.candidate),
        name(row.reference),
        text(row.evidence),
        words(row.where),
    )


def engine_table(found: Collected) -> ReportTable | None:
    """Each INT8 graph in each engine that was judged: size, fidelity, speed."""
    if not isinstance(found.parity, ParityReport):
        return None
    judged = found.parity.fidelity
    if not judged:
        return None
    batches = found.bench.batches if isinstance(found.bench, BenchReport) else ()
    speeds = [f"#times faster, batch {batch}" for batch in batches]
    rows = []
    for candidate, metrics in judged.items():
        file, _, engine = candidate.partition("@")
        quality = [metrics.get(key) for key in ("eps_sqnr_db", "image_psnr_db", "image_ssim")]
        ratios = [_speed(found, f"{engine}/{file}", batch) for batch in batches]
        sizes = (size_cell(_bytes(found, FLOAT)), size_cell(_bytes(found, file)))
        rows.append((name(engine), name(file), *sizes, *(number(v) for v in quality), *ratios))
    quality_heads = ("#SQNR dB, worst bucket", "#image PSNR dB", "#image SSIM")
    headings = ("engine", "graph", "#float", "#INT8", *quality_heads, *speeds)
    return ReportTable.of("INT8 against float", headings, rows)


def _bytes(found: Collected, file: str) -> int | None:
    if not isinstance(found.export, ExportRecord) or file not in found.export.files:
        return None
    return found.export.bytes_of(file)


def _speed(found: Collected, candidate: str, batch: int) -> Cell:
    share = found.parity.step_policy.float_share if isinstance(found.parity, ParityReport) else 0.0
    speed = found.bench.speed(candidate, batch, share) if isinstance(found.bench, BenchReport) else None
    return Cell("-") if speed is None else _times(speed, f"{speed:.2f}x")


def _times(speed: float, shown: str) -> Cell:
    """Return how many times faster something is; a number below 1 says in words what it means."""
    return Cell(f"{shown} (slower)", speed, "bad") if round(speed, 2) < 1 else Cell(shown, speed)


def layer_table(inspection: Inspection) -> ReportTable:
    """One row for each quantized tensor."""
    rows = [_site(site) for site in inspection.sites]
    headings = (
        "module", "tensor", "#bits", "scale per", "#least scale", "#largest scale", "range method", "rule",
        "#codes at the ends", "shares its scale in",
    )  # fmt: skip
    return ReportTable.of(f"{len(rows)} quantized tensors", headings, rows)


def _site(site: SiteView) -> tuple[Cell, ...]:
    module, _, role = site.site.rpartition(":")
    rule = f"{site.rule} {site.rule_text}".strip() if site.rule else "none"
    low, high = site.scale_min, site.scale_max
    largest = Cell("") if low == high else number(high, 4)
    saturated = Cell("") if site.saturated is None else Cell(f"{site.saturated:.2%}", site.saturated)
    return (
        name(module),
        text(role),
        number(site.bits),
        text(site.granularity),
        number(low, 4),
        largest,
        text(site.range),
        Cell(rule, site.rule),
        saturated,
        name(site.tie),
    )


def block_table(inspection: Inspection) -> ReportTable | None:
    """One row for each reconstructed block, the polish last."""
    rows = tuple(
        (
            name(block.name),
            number(block.sites),
            number(block.loss_start),
            number(block.loss_end),
            text(_rounding(block)),
        )
        for block in inspection.blocks
    )
    polish = inspection.polish
    if polish is not None:
        result = text("learned" if polish.kept else "restored")
        losses = (number(polish.loss_start), number(polish.loss_end))
        rows += ((name("polish"), number(len(inspection.parameters)), *losses, result),)
    headings = ("block", "#tensors", "#loss before", "#loss after", "result")
    return ReportTable.of("What calibration learned, block by block", headings, rows) if rows else None


def parameter_table(inspection: Inspection) -> ReportTable | None:
    """One row for each float parameter that calibration changed."""
    rows = [
        (
            name(p.name),
            text(" x ".join(map(str, p.shape)) or "scalar"),
            number(p.value_min),
            number(p.value_max),
            digest(p.source_sha256[:12]),
        )
        for p in inspection.parameters
    ]
    headings = ("parameter", "shape", "#least value", "#largest value", "replaces (sha256)")
    return ReportTable.of(f"{len(rows)} retrained float parameters", headings, rows) if rows else None


def _rounding(block: BlockRecord) -> str:
    if not block.kept:
        return "nearest, restored"
    return "nearest" if block.loss_end == block.loss_start else "learned"


def skipped_engines(bench: BenchReport) -> tuple[str, ...]:
    """Return what was not measured and why, once for each engine and reason."""
    said: dict[str, None] = {}
    for name_, why in bench.skipped.items():
        engine = name_.partition("/")[0]
        record = known_engines().get(engine)
        title = engine if record is None else record.title or engine
        reason = why
        if "No module named" in why:
            reason = "not installed" if record is None else f"not installed (`{record.install}`)"
        said[f"{title}: {reason.rstrip('.')}."] = None
    return tuple(said)


def speed_table(bench: BenchReport) -> ReportTable:
    """Every graph, engine and batch size that was timed."""
    rows = [_timed(candidate, timing) for candidate in bench.candidates for timing in candidate.timings]
    headings = (
        "engine and graph",
        "#file",
        "integer layers",
        "#batch",
        "#CPU ms",
        "#wall ms",
        "#peak memory",
    )
    caption = f"One engine call: median of {bench.repeats} rounds, threads {bench.threads}"
    return ReportTable.of(caption, headings, rows)


def _timed(candidate: BenchCandidate, timing: Timing) -> tuple[Cell, ...]:
    kernels = candidate.kernels
    return (
        name(candidate.name),
        size_cell(candidate.file_bytes),
        text("" if kernels is None else f"{kernels.integer} of {kernels.planned}"),
        number(timing.batch),
        number(timing.cpu_ms.median, 3),
        number(timing.wall_ms.median, 3),
        size_cell(timing.peak_bytes),
    )


def ratio_table(bench: BenchReport) -> ReportTable:
    """How many times faster INT8 is."""
    rows = tuple(
        (
            name(ratio.candidate),
            name(ratio.baseline),
            number(ratio.batch),
            _spread(ratio.cpu),
            _spread(ratio.wall),
        )
        for ratio in bench.ratios
    )
    headings = ("INT8", "float", "#batch", "#CPU time", "#wall time")
    return ReportTable.of("Times faster than float: median, quartiles", headings, rows)


def _spread(spread: Spread) -> Cell:
    return _times(spread.median, f"{spread.median:.2f}x, {spread.q1:.2f} to {spread.q3:.2f}")


def chain_table(found: Collected) -> ReportTable:
    """Every digest of the chain, recipe to report."""
    tones = {"ok": "ok", "fail": "bad"}
    rows = tuple(
        (
            text(link.name),
            Cell(link.status, tone=tones.get(link.status, "")),
            words(link.detail),
            words(link.hint),
        )
        for link in found.chain.links
    )
    return ReportTable.of("Digests", ("link", "status", "found", "what to do"), rows)


def file_table(export: ExportRecord) -> ReportTable:
    """The exported files."""
    rows = tuple(
        (name(file), size_cell(entry.bytes), digest(entry.sha256)) for file, entry in export.files.items()
    )
    return ReportTable.of("Exported files", ("file", "#size", "sha256"), rows)


def compiled_table(engines: Sequence[EngineManifest]) -> ReportTable:
    """The compiled engines, and how much of each is INT8."""
    headings = (
        "engine",
        "graph",
        "built by",
        "for",
        "float type",
        "#size",
        "#planned layers",
        "#in INT8",
        "not INT8",
    )
    return ReportTable.of("TensorRT engines", headings, (_compiled(record) for record in engines))


def _compiled(record: EngineManifest) -> tuple[Cell, ...]:
    inputs, said = record.inputs, record.coverage or {"planned": None, "int8": None, "lost": []}
    device = inputs.device.name if inputs.device else "any GPU of the library"
    weights: dict[str, Any] = said.get("weight_only", {})
    lost = [f"{node['module'] or node['node']}: {node['rule']}" for node in said["lost"]]
    if weights:
        lost.append(f"{weights['int4']} of {weights['planned']} layers with INT4 weights alone")
        lost += [f"{node['module'] or node['node']}: weight not INT4" for node in weights["lost"]]
    return (
        name(inputs.key),
        name(inputs.graph),
        text(record.label),
        text(", ".join(inputs.options.compute_capabilities) or device),
        text(inputs.float_type),
        size_cell(record.files["engine.plan"].bytes),
        number(said["planned"]),
        number(said["int8"]),
        words("; ".join(lost)),
    )


def facts(found: Collected) -> ReportTable:
    """Model, versions and other things that are said once."""
    return ReportTable.of("Model and versions", ("what", "value"), _facts(found))


def _facts(found: Collected) -> Iterator[tuple[Cell, ...]]:
    if isinstance(found.recipe, Recipe) and found.recipe.description:
        yield text("recipe"), words(found.recipe.description)
    if isinstance(found.inspection, Inspection):
        yield from _calibrated(found.inspection)
    if isinstance(found.parity, ParityReport):
        yield from _flat("judged with", found.parity.subject.get("versions", {}))
    if isinstance(found.bench, BenchReport):
        yield from _flat("timed on", found.bench.host.model_dump())


def _calibrated(inspection: Inspection) -> Iterator[tuple[Cell, ...]]:
    yield text("artifact digest"), digest(inspection.digest)
    yield text("samples sha256"), digest(inspection.samples_sha256)
    for key in ("source", "revision", "family", "weights_sha256", "prediction_type"):
        value = inspection.model.get(key)
        if value is not None:
            yield text(f"model {key.replace('_', ' ')}"), (digest if key.endswith("sha256") else name)(value)
    build = dict(inspection.versions)
    began, wall, busy, memory = (
        build.pop(key, None) for key in ("started_unix", "wall_s", "cpu_s", "peak_memory_mb")
    )
    # what tells a resumed calibration apart says nobody else anything; the stages stand beside their figure
    build.pop("work_key", None)
    build.pop("stages", None)
    if isinstance(began, int | float):
        yield text("calibration began"), text(f"{datetime.fromtimestamp(began, UTC):%Y-%m-%d %H:%M} UTC")
    for label, value, unit in (("took", wall, "s"), ("CPU time", busy, "s"), ("most memory", memory, "MB")):
        if value is not None:
            yield text(f"calibration {label}"), text(f"{value} {unit}")
    yield from _flat("calibrated with", build)


def _flat(prefix: str, value: Any) -> Iterator[tuple[Cell, ...]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(f"{prefix}: {key}" if ":" not in prefix else f"{prefix} {key}", inner)
    else:
        yield text(prefix), name(value)
