"""How does a run directory become the denoiser of a pipeline? Verified as for `run`, with the model's configuration."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import nn

from gacq_deploy.artifact.artifact import load_artifact
from gacq_deploy.build_trt.open import open_model
from gacq_deploy.diffusers.denoiser import EngineDenoiser
from gacq_deploy.engines.catalogue import FLOAT_ENGINE, engine_named
from gacq_deploy.errors import GacqError
from gacq_deploy.models.source import Source, find_source
from gacq_deploy.origin.check import require_origin
from gacq_deploy.parity.deployable import graph_for
from gacq_deploy.recipe.sections import Recipe
from gacq_deploy.run_directory import RunDirectory

logger = logging.getLogger(__name__)


def load_denoiser(  # noqa: PLR0913 (a public function: each argument is one choice of its caller)
    directory: Path | str,
    *,
    engine: str = "ort-cpu",
    threads: int = 0,
    config: Mapping[str, Any] | None = None,
    like: nn.Module | None = None,
    allow_host_code: bool = False,
    allow_failed: bool = False,
    trusted_keys: Path | str | None = None,
) -> EngineDenoiser:
    """Open the engine of a run directory as the denoiser of a diffusers pipeline.

    Every step runs in this engine: of a recipe's ``runtime.step_policy``, which `run` follows, a pipeline's steps know
    nothing, and a warning says so.

    Args:
        directory: the run; every file that is used is checked against its digest first.
        engine: the name of one in the catalogue (:mod:`gacq_deploy.engines.catalogue`).
        threads: CPU threads of one run; 0 lets the engine choose.
        config: configuration of the calibrated model (``pipe.unet.config``); default: read where the recipe found it.
        like: the denoiser that is replaced (``pipe.transformer``): its class and its configuration are taken. Where the
            recipe's model is a ``python:`` function it is needed: code that a file names is not run.
        allow_host_code: let a version-compatible engine run the code it carries.
        allow_failed: open an engine that failed parity on this machine.
        trusted_keys: PEM file of public ed25519 keys; a run that none of them signed is refused.

    Raises:
        UsageError: unknown engine, the model is no longer where the recipe found it, or the file of keys is none.
        ArtifactError: recipe, artifact, graph or engine is missing, stale, altered, or not signed by a trusted key.
        GateError: too little of the engine is INT8, or the engine failed parity on this machine.
        ModelError: the configuration is not that of the calibrated model.
        BackendUnavailable: the engine's package, provider or device is missing, or it would compute the graph wrong on
            this processor.
        EngineError, ResourceError: it does not load.
    """
    run = RunDirectory(Path(directory))
    run.require()
    require_origin(run, trusted_keys)
    recipe = run.load_recipe()
    record = load_artifact(run.artifact).model
    graph = graph_for(run, engine, allow_failed=allow_failed)
    config, kind = _find_looks(recipe, config, like)
    backend = engine_named(engine).runner
    with ExitStack() as stack:
        opened = stack.enter_context(
            open_model(backend, graph, threads=threads, allow_host_code=allow_host_code)
        )
        denoiser = EngineDenoiser(opened, record, config, kind=kind)
        stack.pop_all()
    if recipe.runtime.step_policy and engine != FLOAT_ENGINE:
        logger.warning(
            "%s: the recipe runs %d steps in float; in a pipeline every step runs in %s.",
            run.root,
            recipe.runtime.step_policy.float_steps or len(recipe.runtime.step_policy.steps),
            opened.label,
        )
    return denoiser


def class_of(module: Any) -> type[Any]:
    """Return the class of a denoiser, below what torch.compile wraps around it."""
    return type(getattr(module, "_orig_mod", module))


def looks_of(source: Source) -> tuple[Mapping[str, Any], type[Any] | None]:
    """Return the configuration of a denoiser that was found, and its class where its function made it."""
    if source.pipeline is None:
        return source.config, None
    return source.config, class_of(getattr(source.pipeline, source.component))


def _find_looks(
    recipe: Recipe, config: Mapping[str, Any] | None, like: nn.Module | None
) -> tuple[Mapping[str, Any], type[Any] | None]:
    if like is not None:
        own: Any = getattr(like, "config", {})
        return (own if config is None else config), class_of(like)
    if config is not None:
        return config, None
    try:
        return looks_of(find_source(recipe.model, weights=False))
    except GacqError as error:
        raise type(error)(
            f"The model's configuration is needed: {error.message}",
            f"Pass config=pipe.unet.config (or pipe.transformer.config) to load_denoiser. {error.hint}",
        ) from error
