"""What do the weights, the gradients and the errors look like? Numbers of the run, drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from gacq_deploy.artifact.diagnostics import ERROR_STAGES, Diagnostics, StageWeights, mean_between_groups
from gacq_deploy.parity.report import ParityReport
from gacq_deploy.report.charts import (
    Axes,
    Series,
    SpreadBar,
    dot_chart,
    heat_map,
    line_chart,
    spread_chart,
    strip_chart,
)
from gacq_deploy.report.colours import graph_colour, stage_colour
from gacq_deploy.report.tables import Cell, ReportTable, name, number, text
from gacq_deploy.spec import Floats

BINS = 50
_NAMED_GROUPS = 5
"""The timesteps of more groups than this run into each other below a heat map."""
MOST_PANELS = 24
"""Stages with figures of their own; more would make the page large. All stand in the table."""
_UNNAMED = "ort-cpu"
"""The engine that a label leaves out, to fit beside a line."""
NOISY = "timestep (noisy → clean)"
TRACES = {
    "loss": "validation error after a look-ahead step",
    "cosine": "mean cosine between the groups' gradients",
    "ratio": "gradient norm, GM : MSE",
}
"""What a meta iteration measured, in the order of the figure."""


@dataclass(frozen=True)
class Figure:
    """A drawing, what it shows, and its numbers."""

    title: str
    svg: Markup
    caption: str
    numbers: ReportTable | None = None


@dataclass(frozen=True)
class Panel:
    """Everything about one stage; ``chosen`` is shown first."""

    stage: str
    mode: str
    figures: tuple[Figure, ...]
    notes: tuple[str, ...]
    chosen: bool
    uniform: bool
    """Every sample counts the same."""


def stage_error_figure(diagnostics: Diagnostics) -> Figure | None:
    """Output error per timestep after each stage of calibration: what each gained over nearest rounding."""
    errors = {s: diagnostics.error_sqnr_db[s] for s in ERROR_STAGES if s in diagnostics.error_sqnr_db}
    steps = diagnostics.error_timesteps
    if not errors or not steps.size:
        return None
    least = {stage: float(values.min()) for stage, values in errors.items()}
    worst = ", ".join(f"{stage} {value:.1f} dB" for stage, value in least.items())
    first = next(iter(errors))
    # the levels of the stages nearly coincide, so their gains are drawn where there are any
    drawn = {s: values - errors[first] for s, values in errors.items() if s != first} or errors
    gains = drawn is not errors
    lines = [
        Series(stage, steps.astype(float), values, stage_colour(stage)) for stage, values in drawn.items()
    ]
    what = f"output SQNR gained after {first} (dB)" if gains else "output SQNR (dB)"
    rows = []
    for i, timestep in enumerate(steps):
        levels = [values[i] for values in errors.values()]
        rows.append((number(int(timestep)), *_numbers(levels)))
    return Figure(
        "After each stage of calibration",
        line_chart(
            lines, Axes(NOISY, what, falling=True, level=0.0 if gains else None), f"Worst timestep: {worst}."
        ),
        f"Error of single steps of the fake-quantized model on held-out states; higher is better. Worst: {worst}.",
        ReportTable.of("Output SQNR after each stage", ("#timestep", *(f"#{s} dB" for s in errors)), rows),
    )


def bucket_error_figure(parity: ParityReport) -> Figure | None:
    """Output error per timestep bucket of every engine that was judged."""
    lines, rows = [], []
    for comparison in parity.comparisons:
        judged = comparison.by_timestep if comparison.evidence in ("budget", "single") else ()
        found = [r for r in judged if "timestep_max" in r]
        if not found:
            continue
        middle = [((r["timestep_max"] or 0) + (r["timestep_min"] or 0)) / 2 for r in found]
        values = [_number(r.get("sqnr_db")) for r in found]
        lines.append(_line(comparison.candidate, middle, values))
        rows += [
            (name(comparison.candidate), text(_range_of(r)), number(v), number(r.get("cosine"), 6))
            for r, v in zip(found, values, strict=True)
        ]  # fmt: skip
    if not lines:
        return None
    bound = parity.protocol.budget.eps_sqnr_db
    return Figure(
        "In each engine",
        line_chart(
            sorted(lines, key=lambda line: line.colour),
            Axes(NOISY, "output SQNR (dB)", falling=True, level=bound),
            "Output SQNR per timestep bucket.",
        ),
        f"Exported graphs on the states of float trajectories, in {_UNNAMED} where no engine is named; the dashed "
        f"level is the gate at {bound:g} dB.",
        ReportTable.of(
            "Output SQNR per timestep bucket", ("judged", "timesteps", "#SQNR dB", "#cosine"), rows
        ),
    )


def trajectory_figure(parity: ParityReport) -> Figure | None:
    """How far free-running trajectories have drifted at every step."""
    lines, rows = [], []
    for candidate, steps in parity.trajectory.get("by_step", {}).items():
        shown = [s for s in steps if s.get("timestep") is not None]
        if not shown:
            continue
        drift = [1000 * (1 - _number(s.get("mean"))) for s in shown]
        lines.append(_line(candidate, [s["timestep"] for s in shown], drift))
        rows += [
            (name(candidate), number(s["timestep"]), number(s.get("mean"), 6), number(s.get("min"), 6))
            for s in shown
        ]
    if not lines:
        return None
    return Figure(
        "Left to run on its own",
        line_chart(
            sorted(lines, key=lambda line: line.colour),
            Axes(NOISY, "1 - cosine, in thousandths", falling=True),
            "Drift of free-running trajectories.",
        ),
        "The INT8 model walks from noise to image by itself; 1 - cosine to the float model's state, mean over images.",
        ReportTable.of(
            "Cosine to the float trajectory", ("judged", "#timestep", "#mean cosine", "#least cosine"), rows
        ),
    )


def stage_panels(diagnostics: Diagnostics) -> tuple[Panel, ...]:
    """Return the figures of every stage that has any, of the most uneven ones if there are very many."""
    drawable = [stage for stage in diagnostics.stages if _has_figures(stage)]
    chosen = default_stage(drawable)
    ranked = sorted(drawable, key=lambda s: (s.stage != chosen, s.effective_samples))
    kept = {s.stage for s in ranked[:MOST_PANELS]}
    return tuple(
        Panel(s.stage, s.mode, _stage_figures(diagnostics, s), s.notes, s.stage == chosen, is_uniform(s))
        for s in drawable
        if s.stage in kept
    )


def _has_figures(stage: StageWeights) -> bool:
    """Tell whether a stage is more than "every sample counts the same"."""
    seen = (stage.cosine_before, stage.cosine_after)
    traced = any(key in stage.trace and stage.trace[key].size for key in TRACES)
    return not is_uniform(stage) or traced or any(matrix is not None for matrix in seen)


def default_stage(stages: Sequence[StageWeights]) -> str:
    """Return the polish, or the last stage whose weights are not all the same, or the last one; "" for none."""
    if any(s.stage == "polish" for s in stages):
        return "polish"
    uneven = [s.stage for s in stages if not is_uniform(s)]
    return (uneven or [s.stage for s in stages] or [""])[-1]


def is_uniform(stage: StageWeights) -> bool:
    """Return whether every sample counts the same, but for rounding."""
    return float(np.ptp(stage.weights)) < 1e-6


def even_sentence(diagnostics: Diagnostics) -> str:
    """Return in how many stages every sample counts the same; "" for none."""
    even = sum(map(is_uniform, diagnostics.stages))
    if not even:
        return ""
    which = (
        f"all {even} stages"
        if even == len(diagnostics.stages)
        else f"{even} of {len(diagnostics.stages)} stages"
    )
    return f"In {which} every sample counts the same: they learned no weights."


def stage_table(diagnostics: Diagnostics) -> ReportTable | None:
    """One row for each stage that weighs samples: how many of them count, how the gradients agree."""
    rows = []
    for stage in (s for s in diagnostics.stages if not is_uniform(s)):
        share = stage.effective_samples / stage.weights.size
        rho = None if stage.alignment is None else spearman(stage.weights, stage.alignment)
        rows.append(
            (
                name(stage.stage),
                text(stage.mode),
                number(stage.effective_samples),
                Cell(f"{share:.0%}", share, "share"),
                number(float(stage.weights.min()), 3),
                number(float(stage.weights.max()), 3),
                number(_between(stage.cosine_before), 3),
                number(_between(stage.cosine_after), 3),
                number(rho, 3),
            )
        )
    headings = (
        "stage", "mode", "#effective samples", "#of all", "#least weight", "#largest weight", "#cosine before",
        "#cosine after", "#Spearman rho",
    )  # fmt: skip
    if not rows:
        return None
    stages = "1 stage weighs" if len(rows) == 1 else f"{len(rows)} stages weigh"
    return ReportTable.of(f"{stages} {diagnostics.timesteps.size} samples", headings, rows)


def even_table(diagnostics: Diagnostics) -> ReportTable | None:
    """One row for each stage that weighs no samples, but measured how the gradients agree."""
    rows = [
        (name(s.stage), number(_between(s.cosine_before), 3), number(_between(s.cosine_after), 3))
        for s in diagnostics.stages
        if is_uniform(s) and (s.cosine_before is not None or s.cosine_after is not None)
    ]
    headings = ("stage", "#cosine before", "#cosine after")
    caption = f"How the gradients agree in {len(rows)} stages that weigh no samples"
    return ReportTable.of(caption, headings, rows) if rows else None


def spearman(a: Floats, b: Floats) -> float | None:
    """Return the rank correlation of ``a`` and ``b`` [N], equal values sharing their mean rank; None if undefined."""
    ranks = [_ranks(values) for values in (a, b)]
    if len(a) < 2 or any(float(np.ptp(r)) == 0 for r in ranks):
        return None
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def weight_quantiles(timesteps: NDArray[np.int64], weights: Floats) -> SpreadBar:
    """Return minimum, quartiles, median and maximum of the weights at every timestep, noisiest first."""
    steps = np.unique(timesteps)[::-1]
    parts = [np.percentile(weights[timesteps == t], [0, 25, 50, 75, 100]) for t in steps]
    return SpreadBar(steps.astype(float), np.stack(parts, axis=1))


def alignment_bins(weights: Floats, alignment: Floats) -> Floats:
    """Return the mean alignment of up to :data:`BINS` bins of samples, sorted by weight, lightest first."""
    order = np.argsort(weights, kind="stable")
    return np.array([float(alignment[part].mean()) for part in np.array_split(order, min(BINS, order.size))])


def _stage_figures(diagnostics: Diagnostics, stage: StageWeights) -> tuple[Figure, ...]:
    figures = [] if is_uniform(stage) else [_weight_figure(diagnostics, stage)]
    ranges = _group_names(diagnostics)
    if stage.alignment is not None and not is_uniform(stage):
        figures.append(_alignment_figure(stage.weights, stage.alignment))
    for matrix, when in ((stage.cosine_before, "before"), (stage.cosine_after, "after")):
        if matrix is not None:
            figures.append(_heat_figure(matrix, ranges, when))
    traced = [key for key in TRACES if stage.trace.get(key) is not None and stage.trace[key].size]
    if traced:
        figures.append(_trace_figure(stage, traced))
    return tuple(figures)


def _trace_figure(stage: StageWeights, keys: Sequence[str]) -> Figure:
    count = stage.trace[keys[0]].size
    iterations = np.arange(1, count + 1, dtype=float)
    ends = "; ".join(f"{key} {stage.trace[key][0]:.3g} to {stage.trace[key][-1]:.3g}" for key in keys)
    rows = []
    for i in range(count):
        measured = [stage.trace[key][i] for key in keys]
        rows.append((number(i + 1), *_numbers(measured, 3)))
    lines = [Series(TRACES[key], iterations, stage.trace[key], colour) for colour, key in enumerate(keys)]
    headings = ("#iteration", *(f"#{key}" for key in keys))
    return Figure(
        "Learning the weights",
        strip_chart(lines, "meta iteration", ends),
        f"{count} meta iterations: {ends}. Ratio: the weights' gradient from gradient matching over that from the "
        "validation error.",
        ReportTable.of("Meta iterations", headings, rows),
    )


def _weight_figure(diagnostics: Diagnostics, stage: StageWeights) -> Figure:
    spread = weight_quantiles(diagnostics.timesteps, stage.weights)
    count = stage.weights.size
    by_timestep = zip(spread.x, spread.quantiles.T, strict=True)
    rows = [(number(timestep), *_numbers(quantiles, 3)) for timestep, quantiles in by_timestep]
    headings = ("#timestep", "#minimum", "#quartile", "#median", "#quartile", "#maximum")
    return Figure(
        "Weight per timestep",
        spread_chart(
            spread,
            Axes(NOISY, "weight (log)", falling=True, log=True, level=1.0),
            f"Weights of {count} samples per timestep: median, quartiles, extremes.",
        ),
        f"Median, quartiles and extremes; 1 is the mean. {stage.effective_samples:.1f} of {count} samples count "
        f"effectively ({stage.effective_samples / count:.0%}).",
        ReportTable.of("Weight per timestep", headings, rows),
    )


def _heat_figure(matrix: Floats, ranges: Sequence[str], when: str) -> Figure:
    size = len(matrix)
    names = list(map(str, range(size)))
    if size <= _NAMED_GROUPS:
        names = [*ranges[:size], *names[len(ranges) :]]
    mean = _between(matrix)
    said = "" if mean is None else f" Between different groups {mean:+.2f} on average."
    return Figure(
        f"Gradient cosines {when} the stage",
        heat_map(matrix, names, "timesteps of the group", f"Gradient cosines {when} the stage.{said}"),
        f"Cosine between the gradients of timestep groups; 1 (blue) is aligned, -1 (orange) opposed.{said}",
    )


def _alignment_figure(weights: Floats, alignment: Floats) -> Figure:
    means = alignment_bins(weights, alignment)
    rho = spearman(weights, alignment)
    said = (
        "Spearman rho is not defined."
        if rho is None
        else f"Spearman rho = {rho:+.2f} over {weights.size} samples."
    )
    return Figure(
        "Weight against alignment",
        dot_chart(
            np.arange(1, means.size + 1, dtype=float),
            means,
            Axes(f"{means.size} bins of samples, light → heavy", "mean alignment", level=0.0),
            f"Mean alignment of samples sorted by weight. {said}",
        ),
        "Alignment is the inner product of a sample's gradient with the mean of the timestep groups' unit validation "
        f"gradients, before the stage, divided by its largest magnitude. {said}",
    )


def _group_names(diagnostics: Diagnostics) -> list[str]:
    names = []
    for group in range(int(diagnostics.groups.max()) + 1):
        steps = diagnostics.timesteps[diagnostics.groups == group]
        names.append(f"{steps.max()}-{steps.min()}" if steps.size else str(group))
    return names


def _between(matrix: Floats | None) -> float | None:
    """Return the mean over pairs of different groups."""
    if matrix is None or len(matrix) < 2:
        return None
    return mean_between_groups(np.asarray(matrix, np.float64))


def _ranks(values: Floats) -> Floats:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[inverse], float)


def _numbers(values: Iterable[float], digits: int = 4) -> tuple[Cell, ...]:
    return tuple(number(float(value), digits) for value in values)


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _line(candidate: str, timesteps: Sequence[float | None], values: Sequence[float]) -> Series:
    """Return the line of a graph in an engine, in its own colour."""
    x, y = np.array(timesteps, float), np.array(values, float)
    return Series(_short(candidate), x, y, graph_colour(candidate), mixed=candidate.endswith(" mixed"))


def _range_of(bucket: Mapping[str, int | float | None]) -> str:
    return f"{bucket['timestep_max']} to {bucket['timestep_min']}"


def _short(candidate: str) -> str:
    """Return ``int8.onnx@openvino`` as a label that fits beside a line; the captions say which engine needs no name."""
    file, _, where = candidate.partition("@")
    engine, _, kind = where.partition(" ")
    named = "" if engine == _UNNAMED else engine
    return " ".join(word for word in (file.removesuffix(".onnx"), named, kind) if word)
