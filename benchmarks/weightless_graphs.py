"""What does a graph take before any weight is read? Captured, simplified, quantized and linted from shapes alone.

Usage::

    python -m benchmarks.weightless_graphs [MODEL ...]

``calibrate`` does this before its first sample, for any model of :data:`benchmarks.large_models.MODELS`; here the model
has no weights at all. Its plan is that of a twin with the same layers and few channels. One thread, a process a model;
``results/weightless_graphs.jsonl`` has a row each: own memory (RssAnon, the highest) and CPU seconds by step, nodes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.large_models import MODELS, LargeModel
from benchmarks.store import RESULTS, keep_row
from benchmarks.watched import watch
from gacq_deploy.artifact.records import ModelRecord
from gacq_deploy.bench.stage import describe_host
from gacq_deploy.calibration.exportable import capture_for, check_exportable, read_together
from gacq_deploy.calibration.planning import make_plan
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.half_storage import without_weights
from gacq_deploy.models.source import family_of
from gacq_deploy.models.structure.graph import ModelGraph, trace_model
from gacq_deploy.recipe.load import load_recipe

OUT = RESULTS / "weightless_graphs.jsonl"
ABOUT = {"schema": "gacq-deploy/benchmark/weightless-graphs/1"}
NARROW: dict[str, dict[str, Any]] = {
    "sd15": {"block_out_channels": (32, 32, 32, 32), "cross_attention_dim": 768},
    "sdxl": {"block_out_channels": (40, 80, 160), "norm_num_groups": 8},
    "sd3": {"attention_head_dim": 8, "num_attention_heads": 2, "caption_projection_dim": 16},
    "flux": {"attention_head_dim": 16, "num_attention_heads": 2, "axes_dims_rope": (4, 6, 6)},
}
"""What of a configuration is smaller in the twin that is traced: the layers stay."""
_Result = TypeVar("_Result")


def main() -> None:
    """Measure each model in a process of its own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=list(NARROW), metavar="MODEL")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        json.dump(_measure(asked.models[0]), sys.stdout)
        return
    for name in asked.models:
        with tempfile.TemporaryDirectory() as folder:
            module = ("-m", "benchmarks.weightless_graphs")
            seen = watch(["--child", name], Path(folder), module=module)
        host = describe_host().model_dump(mode="json")
        keep_row(OUT, name, {"host": host, "anon_mb": seen.facts["anon_mb"], **seen.document()}, ABOUT)


def _measure(name: str) -> dict[str, Any]:
    model, took = MODELS[name], dict[str, float]()

    def timed(step: str, function: Callable[[], _Result]) -> _Result:
        began = time.process_time()
        result = function()
        took[step] = round(time.process_time() - began, 1)
        return result

    recipe = load_recipe(model.recipe)
    graph = timed("trace the twin", lambda: _trace(name, model))
    with without_weights():
        module = model.kind.from_config(dict(model.config))
    denoiser = _denoiser(model, module.eval().requires_grad_(False))
    plan = make_plan(recipe, graph)
    captured = timed("capture and simplify", lambda: capture_for(recipe, denoiser, plan))
    plan = make_plan(recipe, graph.tied(read_together(captured)))
    timed("quantize and lint", lambda: check_exportable(recipe, denoiser, captured, plan))
    return {
        "parameters": sum(p.numel() for p in module.parameters()),
        "nodes": len(captured.model.graph.node),
        "planned_layers": len(plan.modules),
        "cpu_s": took,
    }


def _trace(name: str, model: LargeModel) -> ModelGraph:
    narrow = model.kind.from_config({**model.config, **NARROW[name]})
    return trace_model(_denoiser(model, narrow.eval().requires_grad_(False)))


def _denoiser(model: LargeModel, module: Any) -> Denoiser:
    """Wrap a module that has no weights."""
    family = family_of(model.kind.__name__)
    call = model.call
    if call is None:
        assert family.describe is not None, f"{family.name}: no call is known"
        size = int(model.config["sample_size"])
        call = family.describe(dict(module.config), (int(model.config["in_channels"]), size, size))
    record = ModelRecord(
        source="random",
        revision=None,
        family=family.name,
        weights_sha256="",
        prediction_type="epsilon",
        scheduler=dict(model.scheduler),
        sample_shape=call.state.shape,
        conditioning=call.conditioning(),
        call=call,
    )
    return Denoiser(module, record, family)


if __name__ == "__main__":
    main()
