"""Tiny random denoisers and artifacts for them, so that tests need no trained model and no calibration
run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DModel
from torch import nn

from gacq_deploy.artifact.artifact import CalibrationArtifact
from gacq_deploy.artifact.probe import Probe
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.source import describe_module, load_float_denoiser
from gacq_deploy.recipe.sections import Recipe
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.spec import Array, PlannedSite, QuantPlan, Role, Site, TensorParams, TensorSpec
from gacq_deploy.storage.digests import digest_array
from gacq_deploy.storage.files import write_json

UNET_CONFIG: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 1,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
    "attention_head_dim": 8,
}
WITHOUT_ATTENTION: dict[str, Any] = {
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
    "add_attention": False,
}
"""Exported in two thirds of the time."""
SCHEDULER: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "epsilon",
    "clip_sample": False,
}
FLOAT_LAYERS = ("conv_in", "conv_out", "time_embedding", "time_emb_proj")
WEIGHT_BITS = 7
"""Exact in every engine on every processor: two of these products always fit into 16 bits."""
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def tiny_unet(*, classes: int | None = 4, seed: int = 0, **changes: Any) -> UNet2DModel:
    """Return a UNet2DModel of some 60 thousand random weights, biases included, frozen."""
    return random_model(UNet2DModel, UNET_CONFIG | {"num_class_embeds": classes} | changes, seed)


def random_model(kind: Callable[..., nn.Module], config: dict[str, Any], seed: int) -> Any:
    """Return a model of diffusers with seeded random weights, biases included, frozen."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = kind(**config).eval()
        for parameter in module.parameters():
            if parameter.ndim == 1:  # norms start at 1 and biases at 0: give every one something to say
                parameter.data += 0.1 * torch.randn(parameter.shape)
    return module.requires_grad_(False)


def denoiser_of(module: Any, source: str = "tiny") -> Denoiser:
    """Wrap any supported model of diffusers as the library does, without a folder."""
    return describe_module(module, source=source, scheduler=SCHEDULER)


def tiny_denoiser(*, classes: int | None = 4, seed: int = 0, **changes: Any) -> Denoiser:
    """Return a tiny random denoiser."""
    return denoiser_of(tiny_unet(classes=classes, seed=seed, **changes))


def planned_sites(module: nn.Module, skip: tuple[str, ...] = FLOAT_LAYERS) -> tuple[Site, ...]:
    """Return weight, input and (convolutions) output sites of every layer whose name holds none of
    ``skip``."""
    sites = []
    for name, layer in module.named_modules():
        if not isinstance(layer, (*_CONVOLUTIONS, nn.Linear)) or any(word in name for word in skip):
            continue
        roles: tuple[Role, ...] = ("weight", "input")
        sites += [Site(name, r) for r in (*roles, *(("output",) if isinstance(layer, _CONVOLUTIONS) else ()))]
    return tuple(sites)


def nearest_params(weight: Array, bits: int = 8) -> TensorParams:
    """Return symmetric per-output-channel codes by nearest rounding of ``weight`` [out, ...]."""
    qmax = 2 ** (bits - 1) - 1
    flat = weight.reshape(weight.shape[0], -1)
    scale = np.maximum(np.abs(flat).max(axis=1) / np.float32(qmax), np.float32(1e-8)).astype(np.float32)
    shaped = scale.reshape(-1, *([1] * (weight.ndim - 1)))
    return TensorParams(scale, np.clip(np.rint(weight / shaped), -qmax, qmax).astype(np.int8))


def observed_ranges(
    denoiser: Denoiser, sites: tuple[Site, ...], batch: int = 8
) -> dict[Site, tuple[int, float]]:
    """Return site -> (identity of the tensor it reads or writes, its largest magnitude) over one float
    pass."""
    seen: dict[Site, tuple[int, float]] = {}
    alive: list[Any] = []
    wanted, layers = set(sites), {s.module for s in sites}

    def hook(name: str) -> Any:
        def look(_module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            alive.extend((args[0], output))
            for site, tensor in ((Site(name, "input"), args[0]), (Site(name, "output"), output)):
                if site in wanted:
                    seen[site] = (id(tensor), float(tensor.abs().max()))

        return look

    handles = [m.register_forward_hook(hook(n)) for n, m in denoiser.module.named_modules() if n in layers]
    try:
        inputs = denoiser.example_inputs(batch, seed=1)
        sample, timestep = inputs.pop("sample"), inputs.pop("timestep")
        with torch.no_grad():
            denoiser(sample, timestep, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def tiny_artifact(
    denoiser: Denoiser,
    *,
    bits: int = WEIGHT_BITS,
    skip: tuple[str, ...] = FLOAT_LAYERS,
    scales: Mapping[str, float] | None = None,
    probe: bool = True,
) -> CalibrationArtifact:
    """Return an artifact by nearest rounding and min-max ranges; ``scales`` overrides activation scales by
    site."""
    sites = planned_sites(denoiser.module, skip)
    ranges = observed_ranges(denoiser, sites)
    first: dict[int, Site] = {}
    entries, params, digests = [], {}, {}
    for site in sites:
        if site.role == "weight":
            weight = denoiser.module.get_submodule(site.module).get_parameter("weight").numpy()
            params[site] = nearest_params(weight, bits)
            digests[str(site)] = digest_array(weight)
            entries.append(PlannedSite(site, TensorSpec(bits=bits, axis=0, narrow=True), str(site), "minmax"))
            continue
        tensor, largest = ranges[site]
        tie = first.setdefault(tensor, site) if site.role == "input" else site
        value = (scales or {}).get(str(site), largest / 127)
        params[site] = TensorParams(np.asarray(value, np.float32))
        entries.append(PlannedSite(site, TensorSpec(bits=8), str(tie), "minmax"))
    return CalibrationArtifact(
        model=denoiser.record,
        plan=QuantPlan(tuple(entries)),
        params=params,
        weight_digests=digests,
        recipe={},
        samples_sha256="0" * 64,
        history=(),
        probe=float_probe(denoiser) if probe else None,
    )


def save_model(module: UNet2DModel, folder: Path) -> Path:
    """Write a diffusers model folder with its scheduler."""
    module.save_pretrained(folder)
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    return folder


def tiny_recipe(source: str, **sections: Any) -> Recipe:
    """Return a recipe that quantizes what :func:`planned_sites` plans."""
    rules = [
        {"match": "*", "bits": 8},
        {"match": "*", "role": "weight", "bits": WEIGHT_BITS},
        *({"match": f"*{word}*", "ignore": True} for word in FLOAT_LAYERS),
    ]
    document: dict[str, Any] = {"schema": "gacq-deploy/recipe/1", "name": "tiny", "model": {"source": source}}
    return Recipe.model_validate(document | {"quantization": {"rules": rules}} | sections)


def tiny_run(root: Path, *, module: UNet2DModel | None = None, **sections: Any) -> RunDirectory:
    """Return a run directory that holds what ``calibrate`` would leave: model, recipe, artifact."""
    source = save_model(module or tiny_unet(), root / "model")
    recipe = tiny_recipe(str(source), **{"calibration": {"threads": 1}, **sections})
    directory = RunDirectory(root / "run")
    recipe.save(directory.recipe_path)
    artifact = tiny_artifact(load_float_denoiser(recipe.model))
    replace(artifact, recipe=recipe.decisive()).save(directory.artifact)
    return directory


def float_probe(denoiser: Denoiser, rows: int = 4) -> Probe:
    """Return a probe that holds the float model's answers only."""
    inputs = denoiser.example_inputs(rows, seed=2)
    conditioning = {k: v for k, v in inputs.items() if k not in ("sample", "timestep")}
    with torch.no_grad():
        output = denoiser(inputs["sample"], inputs["timestep"], conditioning)
    return Probe({k: v.numpy() for k, v in inputs.items()}, {"float": output.numpy()}, {})


def with_params(artifact: CalibrationArtifact, changes: Mapping[str, TensorParams]) -> CalibrationArtifact:
    """Return the artifact with other parameters for some sites, by site name."""
    return replace(artifact, params={**artifact.params, **{Site.parse(k): v for k, v in changes.items()}})
