"""Which graph does the compiler get? The exported one, or its float16 form with what half cannot hold in float32."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import ModelProto

from gacq_deploy.backends.base import Engine, Feeds
from gacq_deploy.export.graph_file import write_graph
from gacq_deploy.export.half import to_half
from gacq_deploy.export.half_ranges import RangeReport, measure_ranges, range_report, with_extremes
from gacq_deploy.storage import Array

OpenGraph = Callable[[Path], AbstractContextManager[Engine]]
_ROWS = 16
_BATCH = 4
_EXTERNAL_MB = 1024


@dataclass(frozen=True)
class Network:
    """A graph in float16 around the quantizers, and what that does to its numbers."""

    model: ModelProto
    report: RangeReport


def spread_rows(inputs: Mapping[str, Array], rows: int = _ROWS) -> dict[str, Array]:
    """Return at most ``rows`` rows, spread evenly over the timesteps."""
    order = np.argsort(inputs["timestep"], kind="stable")
    chosen = order[np.unique(np.linspace(0, len(order) - 1, min(rows, len(order))).round().astype(int))]
    return {name: value[chosen] for name, value in inputs.items()}


def half_network(model: ModelProto, inputs: Feeds, open_graph: OpenGraph, folder: Path) -> Network:
    """Return the float16 form of ``model``.

    Args:
        model: a float32 graph with or without Q/DQ, weights loaded.
        inputs: name -> ``[M, ...]``, states of real trajectories; a few of them measure the ranges.
        open_graph: opens an ONNX file in a float32 engine.
        folder: for the instrumented graph; it is removed again.

    Raises:
        ExportError: the graph cannot be half.
        EngineError, ResourceError: measuring its ranges failed.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix="ranges-") as scratch:
        path = Path(scratch) / "ranges.onnx"
        write_graph(with_extremes(model), path, external_data_mb=_EXTERNAL_MB)
        with open_graph(path) as engine:
            ranges = measure_ranges(engine, spread_rows(inputs), batch=_BATCH)
    half = to_half(model, ranges=ranges)
    return Network(half.model, range_report(half, ranges))
