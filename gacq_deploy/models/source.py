"""Where does a denoiser come from? A folder, the hub or the user's own function; loaded whole or not at all."""

from __future__ import annotations

import importlib
import math
import sys
import traceback
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn

from gacq_deploy.artifact.call import CallRecord
from gacq_deploy.artifact.records import ModelRecord
from gacq_deploy.errors import GacqError, ModelError, RecipeError, UsageError
from gacq_deploy.models.base import Denoiser, Family, with_classes
from gacq_deploy.models.blueprint import Blueprint
from gacq_deploy.models.components import check_finite, check_scheduler
from gacq_deploy.models.configuration import check_values, spell_out, state_shape
from gacq_deploy.models.devices import HOST
from gacq_deploy.models.dit import DIT
from gacq_deploy.models.folders import (
    COMPONENTS,
    CONFIG,
    check_weights,
    pipeline_index,
    read_configuration,
    resolved_revision,
    stored_shapes,
)
from gacq_deploy.models.half_storage import keep_half, load_half
from gacq_deploy.models.loading import FAILURES, first_line, named_class, quiet_loading
from gacq_deploy.models.lora import check_loras, check_unchanged, fuse_loras, record_loras
from gacq_deploy.models.noise_schedule import check_process, recorded_alphas
from gacq_deploy.models.placement import move, to_host
from gacq_deploy.models.unet2d import UNET2D
from gacq_deploy.models.unet2d_condition import UNET2D_CONDITION
from gacq_deploy.recipe.sections import PYTHON_PREFIX, ModelSection
from gacq_deploy.storage.digests import digest_array, digest_json
from gacq_deploy.storage.documents import read_json
from gacq_deploy.storage.memory import lack_of_memory

FAMILIES: dict[str, Family] = {family.name: family for family in (UNET2D, UNET2D_CONDITION, DIT)}
"""Those of which more is known than the name; any other class of diffusers is recorded from its pipeline."""


def family_of(name: str) -> Family:
    """Return what is known of a class of denoisers."""
    return FAMILIES.get(name) or Family(name)


@dataclass(frozen=True)
class Recording:
    """What a pipeline's run showed of its denoiser: how it is called, and on which noising process."""

    call: CallRecord
    scheduler: dict[str, Any]


@dataclass(frozen=True)
class Source:
    """A denoiser that was found: its configuration, and where the rest lies.

    ``root`` is the pipeline's folder and ``folder`` the denoiser's; of a user's own function neither, but ``pipeline``.
    """

    section: ModelSection
    family: Family
    config: Mapping[str, Any]
    root: Path | None = None
    folder: Path | None = None
    pipeline: Any = None

    @property
    def is_prompted(self) -> bool:
        """Whether trajectories need a pipeline: not if nothing conditions the model, or class labels that can be drawn.

        Raises:
            ModelError: the configuration asks for something that a pipeline could not give either.
        """
        if self.pipeline is not None or self.family.describe is None:
            return True
        try:
            call = self.family.describe(self.config, ())
        except ModelError:
            if self.root is None or not (self.root / "model_index.json").is_file():
                raise
            return True
        return any(a.num_classes is None for a in call.arguments)

    @property
    def component(self) -> str:
        """What the pipeline calls its denoiser."""
        if self.section.component:
            return self.section.component
        if self.pipeline is not None:
            return own_component(self.pipeline, None)
        return self.folder.name if self.folder is not None else COMPONENTS[0]

    @property
    def pipeline_class(self) -> type[Any] | None:
        """Class of the pipeline around the denoiser, which knows the names in LoRAs.

        None if there is no LoRA, no pipeline, or none of diffusers' own.
        """
        if self.pipeline is not None:
            return type(self.pipeline)
        # without a LoRA it is not opened: it may need a library that nothing else here does
        index = pipeline_index(self.root) if self.root is not None and self.section.loras else None
        kind = None if index is None else named_class(index.get("_class_name"))
        return kind if isinstance(kind, type) else None

    @property
    def denoiser_class(self) -> type[Any]:
        """Class of the denoiser."""
        if self.pipeline is not None:
            return type(getattr(self.pipeline, self.component))
        kind: type[Any] = named_class(self.config["_class_name"])
        return kind


def find_source(section: ModelSection, *, weights: bool = True) -> Source:
    """Find a denoiser and read its configuration; nothing is loaded, unless the user's own function does.

    Args:
        section: names it.
        weights: fetch them from the hub, too.

    Raises:
        UsageError: the folder, hub id or function does not exist.
        ModelError: not a denoiser of diffusers, remote code, no single component that is one, or a LoRA that could
            never fit.
        ArtifactError: a configuration or a LoRA's file is damaged.
        BackendUnavailable: a LoRA is to be fused, and peft is missing.
    """
    if section.source.startswith(PYTHON_PREFIX):
        pipeline = _call_function(section)
        module = getattr(pipeline, own_component(pipeline, section.component))
        config = dict(getattr(module, "config", {}) or {})
        check_loras(section.loras, type(module))
        return Source(section, family_of(type(module).__name__), config, pipeline=pipeline)
    root, folder, config = read_configuration(section, weights=weights)
    source = Source(section, _check_class(config, folder), config, root, folder)
    check_values(source.denoiser_class, config, folder / CONFIG)
    check_loras(section.loras, source.denoiser_class)
    return source


def load_module(source: Source, *, keep_stored: bool = False, device: torch.device = HOST) -> nn.Module:
    """Load the denoiser itself, float32, frozen, in evaluation mode, adapters fused.

    Args:
        source: where it lies.
        keep_stored: leave weights that are stored in half precision so, and compute in float32 all the same
            (:mod:`gacq_deploy.models.half_storage`); not where adapters are fused into them.
        device: where it is put at last.

    Raises:
        ModelError: pickled, missing or surplus weights, or an adapter that does not fit.
        ArtifactError: a weight file is truncated or malformed or holds NaN or Inf, or the configuration is not that
            of these weights.
        RecipeError: the model cannot run at model.sample_size.
    """
    if source.pipeline is not None:
        module: nn.Module = getattr(source.pipeline, source.component)
        _end_offloading(module)
        module = keep_half(module) if keep_stored and not source.section.loras else module.float()
    else:
        assert source.folder is not None
        check_weights(source.folder)
        module = _load_weights(source, source.folder, keep_stored=keep_stored and not source.section.loras)
    fuse_loras(module, source.section.loras, source.pipeline_class)
    network = module.eval().requires_grad_(False)
    check_finite(network, source.section.source)
    return move(network, device)


def _end_offloading(module: nn.Module) -> None:
    """Take accelerate's hooks off: they replace ``forward``, which a graph would follow, and may hold the weights."""
    from accelerate.hooks import remove_hook_from_module

    remove_hook_from_module(module, recurse=True)
    for child in module.modules():
        forward = vars(child).get("forward")
        if getattr(forward, "__func__", None) is type(child).forward:
            del child.forward  # its own, which a hook leaves behind


def make_denoiser(source: Source, module: nn.Module, recording: Recording | None = None) -> Denoiser:
    """Put a loaded module together with how it is called.

    Raises:
        ModelError: nothing was recorded and the configuration does not tell the call, or there is no scheduler.
        RecipeError: more classes than the model's table has.
    """
    if recording is not None:
        call, scheduler = recording.call, recording.scheduler
    elif source.family.describe is not None and source.folder is not None and source.root is not None:
        scheduler = read_scheduler(source.root, source.folder)
        call = source.family.describe(source.config, state_shape(source.config, source.section.sample_size))
    else:
        raise ModelError(
            f"How {source.family.name} is called was not recorded.", "Run `gacq-deploy calibrate` first."
        )
    call = with_classes(call, _conditioning(source.section, call))
    record = ModelRecord(
        source=source.section.source,
        revision=resolved_revision(source.section, source.root),
        family=source.family.name,
        weights_sha256=digest_weights(module),
        prediction_type=scheduler.get("prediction_type", "epsilon"),
        scheduler=plain_scheduler(scheduler),
        alphas_cumprod=recorded_alphas(scheduler),
        sample_shape=call.state.shape,
        conditioning=call.conditioning(),
        call=None if recording is None else call,
        loras=record_loras(source.section.loras),
    )
    return Denoiser(module, record, source.family)


def load_float_denoiser(
    section: ModelSection, record: ModelRecord | None = None, *, keep_stored: bool = False
) -> Denoiser:
    """Load the denoiser a recipe names, float32, frozen, in evaluation mode.

    Args:
        section: names it.
        record: what an artifact says of the same model: how its pipeline called it.
        keep_stored: as of :func:`load_module`.

    Raises:
        UsageError: the folder, hub id or function does not exist.
        ModelError: unsupported class, pickled weights, remote code, no scheduler.
        ArtifactError: a weight file is truncated or malformed, or a LoRA is not the recorded one.
    """
    if record is not None:
        check_unchanged(section.loras, record.loras)
    source = find_source(section)
    recorded = None if record is None or record.call is None else Recording(record.call, record.scheduler)
    if recorded is None and source.family.describe is not None:
        source.family.describe(source.config, ())  # refuses what it cannot call before anything is loaded
    return make_denoiser(source, load_module(source, keep_stored=keep_stored), recorded)


def _call_function(section: ModelSection) -> Any:
    """Run the user's own function ``python:MODULE:FUNCTION`` and return the pipeline it makes.

    What it prints goes to standard error: standard output holds what a command was asked for.
    """
    source = section.source
    if section.is_foreign_code:
        raise UsageError(
            f"The recipe takes its model from Python code, '{source}'. Code that a file names is not run.",
            f"If it is yours, say so: --allow-python, or --model {source} where the command takes a model.",
        )
    module_name, _, name = source.removeprefix(PYTHON_PREFIX).partition(":")
    hint = "Write python:MODULE:FUNCTION: importable, a function of no arguments that returns a pipeline."
    if not module_name:
        raise UsageError(f"Model source '{source}' cannot be imported: it names no module.", hint)
    try:
        with redirect_stdout(sys.stderr):
            module = importlib.import_module(module_name)
            pipeline = getattr(module, name)() if hasattr(module, name) else None
    except ModuleNotFoundError as error:
        raise UsageError(f"Model source '{source}' cannot be imported: {error}.", hint) from error
    except (GacqError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        raise _of_the_user(source, error) from error
    if pipeline is None and not hasattr(module, name):
        raise UsageError(f"Model source '{source}' cannot be imported: {module_name} has no '{name}'.", hint)
    if not isinstance(pipeline, diffusers.DiffusionPipeline):
        raise UsageError(f"'{source}' returned {type(pipeline).__name__}, not a pipeline of diffusers.", hint)
    return pipeline


def _of_the_user(source: str, error: BaseException) -> UsageError:
    """Return what the user's own code raised, with its file and line."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{frames[-1].filename}:{frames[-1].lineno}"
    if isinstance(error, SyntaxError):
        place = f"{error.filename}:{error.lineno}"
    said = f"{type(error).__name__}: {error}".removesuffix(": ").removesuffix(".")
    return UsageError(
        f"Model source '{source}' failed at {place}: {said}.",
        "Mend the function, or call it alone in Python to see the whole traceback.",
    )


def own_component(pipeline: Any, component: str | None) -> str:
    """Return what a loaded pipeline calls its denoiser.

    Raises:
        ModelError: it has none, or several and none is named.
    """
    modules = {k: v for k, v in pipeline.components.items() if isinstance(v, nn.Module)}
    found = [name for name in COMPONENTS if name in modules]
    if component:
        found = [component]
    if len(found) != 1 or found[0] not in modules:
        raise ModelError(
            f"{type(pipeline).__name__} has the modules {', '.join(modules) or 'none'}; which one is the denoiser?",
            "Name it with model.component.",
        )
    return found[0]


def _check_class(config: Mapping[str, Any], folder: Path) -> Family:
    name = str(config.get("_class_name"))
    own = "Pass python:MODULE:FUNCTION, an installed function of yours that returns the pipeline."
    if "auto_map" in config:
        raise ModelError(f"{folder} asks for remote code (auto_map), which is never run.", own)
    kind = named_class(name)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.ModelMixin)):
        raise ModelError(
            f"{folder}: {name!r} is no model class of diffusers {diffusers.__version__}.",
            f"Upgrade diffusers if it is newer than yours. {own}",
        )
    if name.startswith(("Autoencoder", "VQModel", "ControlNet")):
        raise ModelError(f"{folder}: {name} is not a denoiser.", "Pass the pipeline's folder.")
    return family_of(name)


def _conditioning(section: ModelSection, call: CallRecord) -> dict[str, dict[str, Any]]:
    conditioning = call.conditioning()
    if section.classes is not None:
        table = conditioning.get("class_labels", {}).get("num_classes", 0)
        if section.classes > table:
            raise RecipeError(
                f"model.classes is {section.classes}, but the model's class table has {table} entries.",
                f"Lower it, or leave it out: --set model.classes={table or 'null'}.",
            )
        conditioning["class_labels"]["num_classes"] = section.classes
    return conditioning


def _load_weights(source: Source, folder: Path, *, keep_stored: bool) -> nn.Module:
    """Load a denoiser; float32 weights stay in their files, mapped: read when used, dropped when memory is short."""
    loader: Any = source.denoiser_class
    blueprint = Blueprint.of_diffusers(loader, source.config, folder / CONFIG, stored_shapes(folder))
    blueprint.check(source.family, source.section.sample_size)
    hint = "Check that config.json and weights belong together."
    try:
        with quiet_loading():
            if keep_stored and (half := load_half(loader, source.config, folder)) is not None:
                return half
            module, info = loader.from_pretrained(
                folder,
                use_safetensors=True,
                local_files_only=True,
                torch_dtype=torch.float32,
                low_cpu_mem_usage=True,  # or else every shard but the first is copied
                output_loading_info=True,
            )
    except FAILURES as error:
        raise lack_of_memory(error, f"Loading {folder}") or ModelError(
            f"{folder} cannot be loaded: {first_line(error)}", hint
        ) from error
    for problem, names in (("lack", info["missing_keys"]), ("hold the unknown", info["unexpected_keys"])):
        if names:  # diffusers would only warn, and run with random weights
            first = sorted(names)[0]
            says = spell_out(blueprint.keys_behind(first), source.config)
            cause = f"; {CONFIG} says {says}" if says else ""
            raise ModelError(
                f"{folder}: the weights {problem} tensor '{first}' ({len(names)} in all){cause}.",
                hint,
            )
    network: nn.Module = module
    return network


def read_scheduler(root: Path, folder: Path) -> dict[str, Any]:
    """Return the scheduler's configuration, beside the denoiser or in its pipeline.

    Raises:
        ModelError: there is none, or no sampler can follow it: said before hours of work.
    """
    for candidate in (root, folder, folder.parent):
        path = candidate / "scheduler" / "scheduler_config.json"
        if path.is_file():
            config: dict[str, Any] = read_json(
                path, what="Scheduler configuration", hint="Mend the JSON file.", others=True
            )
            check_scheduler(_scheduler_class(config), path)
            check_process(config, str(path), drawn=True)
            return config
    raise ModelError(
        f"{root} has no scheduler/scheduler_config.json; the noise schedule is unknown.",
        "Save the scheduler beside the model: scheduler.save_pretrained(folder / 'scheduler').",
    )


def _scheduler_class(config: Mapping[str, Any]) -> Any:
    """Return the class of a scheduler's configuration; one that diffusers does not have is refused by its process."""
    kind = named_class(config.get("_class_name", "DDIMScheduler"))
    is_scheduler = isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)
    return kind if is_scheduler else diffusers.DDIMScheduler


def describe_module(module: Any, *, source: str, scheduler: Mapping[str, Any]) -> Denoiser:
    """Wrap a loaded module of a family whose configuration tells its call, from no folder.

    Raises:
        ModelError: the configuration asks for what the family cannot call.
    """
    config, family = dict(module.config), family_of(type(module).__name__)
    assert family.describe is not None, f"{family.name} has to be recorded"
    size = int(config["sample_size"])
    call = family.describe(config, (int(config["in_channels"]), size, size))
    record = ModelRecord(
        source=source,
        revision=None,
        family=family.name,
        weights_sha256=digest_weights(module),
        prediction_type=scheduler.get("prediction_type", "epsilon"),
        scheduler=dict(scheduler),
        alphas_cumprod=recorded_alphas(scheduler),
        sample_shape=call.state.shape,
        conditioning=call.conditioning(),
    )
    return Denoiser(module, record, family)


def plain_scheduler(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a scheduler's configuration JSON can hold: infinite bounds are every class's own defaults."""
    return {
        k: v
        for k, v in config.items()
        if k != "_diffusers_version" and not (isinstance(v, float) and not math.isfinite(v))
    }


def digest_weights(module: nn.Module) -> str:
    """Return one sha256 over every parameter and buffer, by name."""
    return digest_values(module.state_dict())


def digest_values(values: Mapping[str, torch.Tensor]) -> str:
    """Return one sha256 over tensors, by name."""
    return digest_json({name: digest_array(to_host(value)) for name, value in values.items()})
