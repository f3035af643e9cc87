"""What do the other processes of a group do in a calibration? Their share of the samples' trajectories, then leave."""

from __future__ import annotations

from gacq_deploy.models.devices import computing_on, find_device
from gacq_deploy.models.pipelines import OpenPipeline, open_pipeline
from gacq_deploy.models.source import load_module, make_denoiser
from gacq_deploy.models.trajectories.collect import find_model
from gacq_deploy.models.trajectories.drawn import help_collect_samples
from gacq_deploy.models.trajectories.shards import PromptedShare, help_collect_file
from gacq_deploy.processes.group import Group
from gacq_deploy.recipe.sections import Recipe


def help_calibrate(recipe: Recipe, group: Group) -> None:
    """Collect what the first process asks for until it needs no more; nothing is loaded if it has its samples.

    Raises:
        UsageError, ModelError, ArtifactError: the model is not there, not whole or not supported.
        CalibrationError: the float model's output is not finite.
        BackendUnavailable: the recipe's device is not here.
        ResourceError: another process of the group ended.
    """
    source, device = find_model(recipe), find_device(recipe.calibration.device)
    opened: OpenPipeline | None = None
    with computing_on(device, recipe.calibration.threads):
        while (share := group.broadcast(None)) is not None:
            if isinstance(share, PromptedShare):
                opened = opened or open_pipeline(source, load_module(source, keep_stored=True, device=device))
                help_collect_file(opened, share, group)
            else:
                module = load_module(source, keep_stored=True, device=device)
                help_collect_samples(make_denoiser(source, module), share, group)
