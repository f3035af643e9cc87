"""Where does a denoiser come from? A built-in, a pipeline or model folder, or a hub id; safetensors only."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from gacq_deploy.artifact import ModelRecord
from gacq_deploy.ddim import alphas_cumprod, parse_scheduler
from gacq_deploy.errors import ArtifactError, ModelError, RecipeError, UsageError
from gacq_deploy.models.base import Denoiser, Family
from gacq_deploy.models.dit import DIT
from gacq_deploy.models.unet2d import UNET2D
from gacq_deploy.models.unet2d_condition import UNET2D_CONDITION
from gacq_deploy.recipe import ModelSection
from gacq_deploy.storage import digest_array, digest_json, read_json

FAMILIES: dict[str, Family] = {family.name: family for family in (UNET2D, UNET2D_CONDITION, DIT)}
COMPONENTS = ("unet", "transformer")
BUILTIN_PREFIX = "builtin:"
_PREDICTIONS = ("epsilon", "v_prediction", "sample")


def load_denoiser(section: ModelSection) -> Denoiser:
    """Load the denoiser a recipe names, float32, frozen, in evaluation mode.

    Raises:
        UsageError: the folder or hub id does not exist.
        ModelError: unsupported class, pickled weights, remote code, no scheduler.
        ArtifactError: a weight file is truncated or malformed.
    """
    found = _find(section)
    found.family.conditioning(found.config)  # refuses what it cannot call before anything is loaded
    _check_weights(found.folder)
    module = _load_module(found.folder, found.config)
    scheduler = _scheduler_config(found.root, found.folder)
    return Denoiser(module, _record(section, found.family, found.config, scheduler, module), found.family)


def describe_conditioning(section: ModelSection) -> dict[str, dict[str, Any]]:
    """Return which inputs the denoiser takes beside sample and timestep, from its configuration alone.

    Raises:
        UsageError, ModelError: as :func:`load_denoiser`.
    """
    found = _find(section)
    return found.family.conditioning(found.config)


def read_config(section: ModelSection) -> dict[str, Any]:
    """Return the denoiser's configuration; of a hub model no weights are fetched.

    Raises:
        UsageError, ModelError, ArtifactError: as :func:`load_denoiser`.
    """
    return _find(section, weights=False).config


@dataclass(frozen=True)
class _Found:
    """A denoiser's folder and configuration; ``root`` is the pipeline's."""

    root: Path
    folder: Path
    config: dict[str, Any]
    family: Family


def _find(section: ModelSection, *, weights: bool = True) -> _Found:
    root = _locate(section, weights=weights)
    folder = _component_folder(root, section.component)
    config = read_json(
        folder / "config.json", what="Model configuration", hint="Pass a diffusers model folder."
    )
    return _Found(root, folder, config, _family(config, folder))


def builtin_directory(name: str) -> Path:
    """Return the folder of a shipped model: inside the wheel, or under ``examples`` in a checkout."""
    package = Path(str(resources.files("gacq_deploy")))
    for candidate in (package / "demo" / name, package.parent / "examples" / "models" / name):
        if candidate.is_dir():
            return candidate
    raise UsageError(
        f"There is no built-in model '{name}'.", "Built-in: fashion16 (and digits8 in a checkout)."
    )


def _locate(section: ModelSection, *, weights: bool) -> Path:
    source = section.source
    if source.startswith(BUILTIN_PREFIX):
        return builtin_directory(source.removeprefix(BUILTIN_PREFIX))
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise UsageError(
            f"Model source {source} is a file, not a folder.", "Pass the folder that holds config.json."
        )
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise UsageError(
            f"Model source '{source}' is neither a folder nor a hub id.",
            "Pass a diffusers folder, or OWNER/NAME.",
        )
    return _download(source, section.revision, section.component, weights=weights)


def _download(repo: str, revision: str | None, component: str | None, *, weights: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    parts = (component,) if component else COMPONENTS
    patterns = ["model_index.json", "config.json", "scheduler/*.json"]
    patterns += [f"{part}/*.json" for part in parts]
    if weights:
        patterns += ["*.safetensors", *(f"{part}/*.safetensors" for part in parts)]
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise UsageError(
            f"Model '{repo}' (revision {revision or 'main'}) "
            f"cannot be fetched from the hub: {str(error).splitlines()[0]}",
            "Check the name and the network, or download the folder elsewhere and pass its path.",
        ) from error


def _component_folder(root: Path, component: str | None) -> Path:
    if component is not None:
        if not (root / component / "config.json").is_file():
            raise ModelError(
                f"{root} has no component '{component}' with a config.json.", "Correct model.component."
            )
        return root / component
    if (root / "config.json").is_file():
        return root
    found = [name for name in COMPONENTS if (root / name / "config.json").is_file()]
    if len(found) != 1:
        raise ModelError(
            f"{root} holds {' and '.join(found) or 'no denoiser: neither config.json nor unet/ or transformer/'}.",
            "Pass a diffusers pipeline or model folder; name the component with model.component.",
        )
    return root / found[0]


def _family(config: dict[str, Any], folder: Path) -> Family:
    if "auto_map" in config:
        raise ModelError(
            f"{folder} asks for remote code (auto_map), which is never run.", "Use a diffusers class."
        )
    name = config.get("_class_name")
    if name not in FAMILIES:
        raise ModelError(
            f"{folder}: denoiser class {name!r} is not supported.", f"Supported: {', '.join(FAMILIES)}."
        )
    return FAMILIES[name]


def _check_weights(folder: Path) -> None:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = sorted(
            p.name for p in (*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.ckpt"))
        )
        what = f"only pickled weights ({', '.join(pickled)})" if pickled else "no weights"
        raise ModelError(
            f"{folder} holds {what}; only safetensors are loaded.",
            "Convert once with `model.save_pretrained(folder, safe_serialization=True)`.",
        )
    for file in files:
        try:
            with safe_open(file, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise ArtifactError(
                f"Weights {file} are truncated or malformed: {error}", "Download them again."
            ) from error


def _load_module(folder: Path, config: dict[str, Any]) -> nn.Module:
    loader = getattr(diffusers, config["_class_name"])
    hint = "Check that config.json and weights belong together."
    try:
        module, info = loader.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            torch_dtype=torch.float32,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(f"{folder} cannot be loaded: {first}", hint) from error
    for problem, names in (("lack", info["missing_keys"]), ("hold the unknown", info["unexpected_keys"])):
        if names:  # diffusers would only warn, and run with random weights
            raise ModelError(
                f"{folder}: the weights {problem} tensor '{sorted(names)[0]}' ({len(names)} in all).", hint
            )
    network: nn.Module = module.eval().requires_grad_(False)
    for name, value in network.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ModelError(
                f"{folder}: weight '{name}' holds NaN or Inf.", "Restore the weights from their source."
            )
    return network


def _scheduler_config(root: Path, folder: Path) -> dict[str, Any]:
    for candidate in (root, folder, folder.parent):
        path = candidate / "scheduler" / "scheduler_config.json"
        if path.is_file():
            config: dict[str, Any] = read_json(
                path, what="Scheduler configuration", hint="Mend the JSON file."
            )
            prediction = config.get("prediction_type", "epsilon")
            if prediction not in _PREDICTIONS:
                raise ModelError(
                    f"{path}: prediction_type {prediction!r} is not supported.",
                    f"Supported: {', '.join(_PREDICTIONS)}.",
                )
            alphas_cumprod(parse_scheduler(config))  # what sampling would refuse after hours is refused here
            return config
    raise ModelError(
        f"{root} has no scheduler/scheduler_config.json; the noise schedule is unknown.",
        "Save the scheduler beside the model: scheduler.save_pretrained(folder / 'scheduler').",
    )


def _record(
    section: ModelSection,
    family: Family,
    config: dict[str, Any],
    scheduler: dict[str, Any],
    module: nn.Module,
) -> ModelRecord:
    conditioning = family.conditioning(config)
    if section.classes is not None:
        table = conditioning.get("class_labels", {}).get("num_classes", 0)
        if section.classes > table:
            raise RecipeError(
                f"model.classes is {section.classes}, but the model's class table has {table} entries.",
                "Lower model.classes or leave it out.",
            )
        conditioning["class_labels"]["num_classes"] = section.classes
    size = section.sample_size or config.get("sample_size")
    if size is None:
        raise ModelError(
            "The model's configuration has no sample_size.", "Set model.sample_size in the recipe."
        )
    height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    return ModelRecord(
        source=section.source,
        revision=section.revision,
        family=family.name,
        weights_sha256=digest_weights(module),
        prediction_type=scheduler.get("prediction_type", "epsilon"),
        scheduler={k: v for k, v in scheduler.items() if k != "_diffusers_version"},
        sample_shape=(int(config["in_channels"]), height, width),
        conditioning=conditioning,
    )


def digest_weights(module: nn.Module) -> str:
    """Return one sha256 over every parameter and buffer, by name."""
    return digest_json({name: digest_array(value.numpy()) for name, value in module.state_dict().items()})
