"""Does the recipe fit the model? Its rules resolved against the layers, refused before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from torch import nn

from gacq_deploy.calibration.exportable import capture_for, check_exportable, read_together
from gacq_deploy.calibration.smoothing import smoothing_groups
from gacq_deploy.errors import RESTORE, CalibrationError, RecipeError, UsageError
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.structure.graph import ModelGraph, trace_model
from gacq_deploy.models.trajectories.drawn import validation_trajectories
from gacq_deploy.progress import SILENT, Reporter
from gacq_deploy.recipe.plan import resolve_plan
from gacq_deploy.recipe.quantization import BLOCKS
from gacq_deploy.recipe.sections import Recipe
from gacq_deploy.samples.calibration_set import CalibrationSet
from gacq_deploy.sampling.loop import model_sampler
from gacq_deploy.spec import QuantPlan, Site


def make_plan(recipe: Recipe, graph: ModelGraph, report: Reporter = SILENT) -> QuantPlan:
    """Resolve the recipe's rules against the model; sites that read one tensor always share a scale.

    Layers whose result nothing uses stay float, with a note: exported graphs do not hold them.

    Raises:
        RecipeError: see :func:`~gacq_deploy.recipe.plan.resolve_plan`; every layer is left float, or one that runs
            twice in a step or lies in no block is not; smoothing chooses no layers, or not all that share a quantizer.
    """
    plan = resolve_plan(recipe, graph.sites, _ties(recipe, graph))
    if unused := [name for name in plan.modules if name in graph.unused]:
        plan = QuantPlan(tuple(e for e in plan if e.site.module not in graph.unused))
        said = (
            "1 layer runs, but nothing uses its"
            if len(unused) == 1
            else f"{len(unused)} layers run, but nothing uses their"
        )
        report.note(f"{said} result: left float: {_some(unused)}")
    if not plan.modules:
        if unused:
            raise RecipeError(
                f"The rules quantize only layers whose result nothing uses: {_some(unused)}.",
                "Give at least one other rule `bits`.",
            )
        raise RecipeError("The rules leave every layer float.", "Give at least one rule `bits`.")
    if twice := sorted(graph.repeated.intersection(plan.modules)):
        raise RecipeError(
            f"Layer '{twice[0]}' is called twice in one step, on different tensors: one scale cannot suit both.",
            f"Leave it float: add {{match: '{twice[0]}', ignore: true}} to quantization.rules.",
        )
    if loose := [name for name in graph.uncut if name in plan.modules]:
        raise RecipeError(
            f"Layer '{loose[0]}' cannot be quantized: it lies in no block, for {graph.uncut[loose[0]]}.",
            f"Leave it float: add {{match: '{loose[0]}', ignore: true}} to quantization.rules.",
        )
    if recipe.quantization.smoothing is not None:
        smoothing_groups(recipe.quantization.smoothing, plan, graph)
    return plan


def _ties(recipe: Recipe, graph: ModelGraph) -> dict[Site, str]:
    if recipe.quantization.tie_concat:
        return dict(graph.ties)
    return {site: str(first) for site, first in graph.shared_tensor.items()}


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")


def check_blocks(plan: QuantPlan, module: nn.Module) -> None:
    """Refuse weights that cannot be stored in the blocks planned, before anything runs.

    Raises:
        RecipeError: naming the layers whose input features are no multiple of the block, or are one block.
    """
    blocks = {e.site.module: e.spec.block for e in plan.of_role("weight") if e.spec.block is not None}
    widths = {name: module.get_submodule(name).get_parameter("weight").shape[1] for name in blocks}
    wrong = [name for name, block in blocks.items() if not _fits(block, [widths[name]])]
    if not wrong:
        return
    name = wrong[0]
    wrong_widths = [widths[n] for n in wrong]
    fitting = [b for b in BLOCKS if _fits(b, wrong_widths)]
    raise RecipeError(
        f"{len(wrong)} of {len(blocks)} layers with INT4 weights do not fit their block: layer '{name}' has "
        f"{widths[name]} input features, and {blocks[name]} must divide that in two or more. The layers: "
        f"{_some(wrong)}.",
        f"Give them block: {fitting[-1]} in a later rule, or leave them float (ignore: true)."
        if fitting
        else "Leave them float (ignore: true), or give those that it divides a smaller block, in a later rule.",
    )


def _fits(block: int, widths: Iterable[int]) -> bool:
    """Tell whether the block divides every width in two or more."""
    return all(width % block == 0 and width >= 2 * block for width in widths)


def check_steps(recipe: Recipe, denoiser: Denoiser) -> None:
    """Refuse sampler steps that the model's schedule does not have, before anything runs.

    Raises:
        UsageError: more steps than the model was trained with.
        ModelError: no sampler can follow the model's schedule.
    """
    for steps in (recipe.samples.steps, recipe.parity.steps, recipe.runtime.steps):
        model_sampler(denoiser.record, steps)


def check_split(recipe: Recipe) -> None:
    """Refuse to hold all trajectories out, before anything runs.

    Raises:
        CalibrationError: none is left to learn from.
    """
    if validation_trajectories(recipe.samples).all():
        raise CalibrationError(
            "All trajectories are held out for validation.",
            "Raise samples.trajectories, or lower samples.validation_share.",
        )


def checked_plan(
    recipe: Recipe, denoiser: Denoiser, report: Reporter = SILENT
) -> tuple[ModelGraph, QuantPlan]:
    """Return the trace and the plan of a calibration, after everything was refused that would fail later, export too.

    Raises:
        RecipeError, CalibrationError, ModelError: as the functions above.
        ExportError: export would refuse what this plan makes.
    """
    graph = trace_model(denoiser)
    plan = make_plan(recipe, graph)
    check_blocks(plan, denoiser.module)
    check_steps(recipe, denoiser)
    check_split(recipe)
    captured = capture_for(recipe, denoiser, plan)
    graph = graph.tied(read_together(captured))
    plan = make_plan(recipe, graph, report)
    check_exportable(recipe, denoiser, captured, plan)
    return graph, plan


def check_samples(samples: CalibrationSet, denoiser: Denoiser, *, where: str) -> None:
    """Refuse samples that this model cannot be called with, whoever put them there.

    Args:
        samples: whole and finite.
        denoiser: the model.
        where: what the error calls them.

    Raises:
        UsageError: states or targets of another shape or type, a timestep outside of the model's, or an input that
            is missing or of another shape.
    """
    call = denoiser.call
    expected = {"latents": call.state.shape, "targets": call.state.shape}
    expected |= {argument.name: argument.shape for argument in call.arguments}
    held = {"latents": samples.latents, "targets": samples.targets, **samples.conditioning}
    for name, shape in expected.items():
        if name not in held:
            raise UsageError(f"{where}: there is no '{name}', which the model takes.", RESTORE)
        if held[name].shape[1:] != shape:
            raise UsageError(
                f"{where}: a row of '{name}' has the shape {held[name].shape[1:]}, the model takes {shape}.",
                RESTORE,
            )
    for name, value in (("latents", samples.latents), ("targets", samples.targets)):
        if value.dtype != np.float32:
            raise UsageError(f"{where}: '{name}' are of type {value.dtype}, not float32.", RESTORE)
    # a network that is fed fractions may have a scale of its own
    low, high = int(samples.timesteps.min()), int(samples.timesteps.max())
    trained = denoiser.num_train_timesteps
    if samples.float_timesteps is None and (low < 0 or high > trained):
        raise UsageError(
            f"{where}: timesteps reach from {low} to {high}; the model was trained on 0 to {trained}.",
            RESTORE,
        )
