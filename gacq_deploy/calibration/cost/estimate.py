"""What would calibration do, and what would it cost? Answered before anything runs."""

from __future__ import annotations

from dataclasses import dataclass

from gacq_deploy.calibration.budget import activation_mb, settled
from gacq_deploy.calibration.cost.duration import ENOUGH_S, estimate_stages
from gacq_deploy.calibration.cost.memory import Counts, disk_bytes, export_bytes, gpu_bytes, memory_bytes
from gacq_deploy.calibration.limits import too_large_to_learn
from gacq_deploy.calibration.planning import checked_plan
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.devices import computing_on, find_device
from gacq_deploy.models.source import Source
from gacq_deploy.models.structure.graph import Block, ModelGraph
from gacq_deploy.models.trajectories.collect import find_model, record_denoiser
from gacq_deploy.models.trajectories.drawn import validation_trajectories
from gacq_deploy.progress import PlannedStage
from gacq_deploy.recipe.sections import Recipe
from gacq_deploy.spec import PlannedSite, QuantPlan


@dataclass(frozen=True)
class CalibrationEstimate:
    """The plan with its costs: seconds on this machine, megabytes of memory and disk."""

    family: str
    parameters: int
    sites: tuple[dict[str, object], ...]
    quantized_modules: int
    float_modules: int
    unused_modules: tuple[str, ...]
    """Layers that run although nothing uses their result: they stay float."""
    blocks: tuple[str, ...]
    samples: int
    validation_samples: int
    weights: str
    """Mode of the sample weights, and the stages that learn or take them."""
    polish: str
    """Steps of the polish, and what it trains."""
    stages: tuple[PlannedStage, ...]
    """What calibration will announce, with the seconds of each on this machine."""
    memory_mb: float
    """Largest resident memory."""
    mapped_mb: float
    """What of it are weights mapped from their files, which the kernel may drop and read again."""
    gpu_mb: float | None
    """Largest memory of the GPU; None: it computes on the CPU."""
    disk_mb: float
    export_mb: float
    """Largest memory of the export that follows, weights in files left out."""

    @property
    def seconds(self) -> float:
        """Of all stages."""
        return sum(stage.seconds or 0.0 for stage in self.stages)


def estimate_calibration(
    recipe: Recipe, *, source: Source | None = None, enough_s: float = ENOUGH_S
) -> CalibrationEstimate:
    """Load and trace the model, resolve the rules, time one forward pass; write nothing.

    Args:
        recipe: what is asked.
        source: the recipe's model, where the caller has found it already.
        enough_s: seconds for which every kind of call is repeated.

    Raises:
        GacqError: whatever :func:`gacq_deploy.calibration.stage.calibrate` would raise before its first sample.
    """
    device = find_device(recipe.calibration.device)
    recipe = settled(recipe, device)
    with computing_on(device, recipe.calibration.threads):
        denoiser, branches = record_denoiser(find_model(recipe, source), recipe, device)
        graph, plan = checked_plan(recipe, denoiser)
        return estimate_planned(recipe, denoiser, graph, plan, branches=branches, enough_s=enough_s)


def estimate_planned(
    recipe: Recipe,
    denoiser: Denoiser,
    graph: ModelGraph,
    plan: QuantPlan,
    *,
    branches: int,
    enough_s: float = ENOUGH_S,
) -> CalibrationEstimate:
    """Return the estimate for a model that is loaded.

    Args:
        recipe: what is asked.
        denoiser: the float model.
        graph: its trace.
        plan: its planned sites.
        branches: its rows an image, 2 with guidance.
        enough_s: seconds for which every kind of call is repeated.
    """
    kept = len(range(0, recipe.samples.steps, recipe.samples.keep_every))
    held = int(validation_trajectories(recipe.samples).sum()) * kept * branches
    total = recipe.samples.trajectories * kept * branches
    layers = {s.module for s in graph.sites}
    memory_mb = activation_mb(recipe.calibration, denoiser, plan)
    too_large = too_large_to_learn(denoiser, graph, plan, memory_mb)
    counts = Counts(
        recipe, denoiser, graph, plan, branches, total - held, held, memory_mb, frozenset(too_large)
    )
    sites = tuple(_describe(e) for e in plan)
    blocks = tuple(b.name for b in graph.blocks if _is_planned(b, plan))
    return CalibrationEstimate(
        family=denoiser.family.name,
        parameters=counts.weights,
        sites=sites,
        quantized_modules=len(plan.modules),
        float_modules=len(layers) - len(plan.modules),
        unused_modules=tuple(sorted(graph.unused)),
        blocks=blocks,
        samples=total - held,
        validation_samples=held,
        weights=_weights(counts),
        polish=_polish(recipe),
        stages=estimate_stages(counts, enough_s),
        memory_mb=memory_bytes(counts) / 2**20,
        mapped_mb=counts.stored_bytes / 2**20,
        gpu_mb=gpu_bytes(counts) / 2**20 if recipe.calibration.device_class == "cuda" else None,
        disk_mb=disk_bytes(counts) / 2**20,
        export_mb=export_bytes(counts) / 2**20,
    )


def _is_planned(block: Block, plan: QuantPlan) -> bool:
    return any(plan.get(site) for site in block.sites)


def _weights(counts: Counts) -> str:
    section = counts.recipe.calibration.weighting
    if section.mode == "uniform" or not section.stages:
        return "uniform"
    said = f"{section.mode}, in {' and '.join(section.stages)}"
    lost = [stage for stage in section.stages if stage in counts.too_large and counts.is_learning(stage)]
    return f"{said}; too large to be learned in the {lost[0]}: relative" if lost else said


def _polish(recipe: Recipe) -> str:
    section = recipe.calibration.polish
    if section.steps == 0:
        return "none"
    return f"{section.steps} steps, {', '.join(section.parameters)}".replace("_", " ")


def _describe(entry: PlannedSite) -> dict[str, object]:
    return {
        "site": str(entry.site),
        "bits": entry.spec.bits,
        **({} if entry.spec.block is None else {"block": entry.spec.block}),
        "range": entry.range_method,
        "tie": entry.tie,
    }
