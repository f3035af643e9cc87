"""Which graph does the compiler get? The exported one, or its float16 form with what half cannot hold in float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import ModelProto

from gacq_deploy.backends.base import Engine, Feeds
from gacq_deploy.backends.pieces import PieceEngine
from gacq_deploy.build_trt.float16.convert import to_half
from gacq_deploy.build_trt.float16.ranges import RangeReport, measure_ranges, range_report, with_extremes
from gacq_deploy.graph.files import read_graph
from gacq_deploy.graph.header import read_header
from gacq_deploy.graph.weights import Store, stored
from gacq_deploy.spec import Array
from gacq_deploy.storage.files import scratch

OpenGraph = Callable[[Path], AbstractContextManager[Engine]]
_ROWS = 16
_BATCH = 4


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


def half_network(source: Path, inputs: Feeds, open_graph: OpenGraph, *, store: Store = stored) -> Network:
    """Return the float16 form of a graph.

    Args:
        source: a float32 graph with or without Q/DQ; its ranges are measured by a graph written beside it, which
            shares its weights and is removed again.
        inputs: name -> ``[M, ...]``, states of real trajectories; a few of them measure the ranges.
        open_graph: opens an ONNX file in a float32 engine.
        store: decides where weights lie that become half.

    Raises:
        ArtifactError: the graph is missing or damaged.
        ExportError: it cannot be half.
        EngineError, ResourceError: measuring its ranges failed.
    """
    with scratch(source.with_name("ranges.onnx"), folder=False) as path:
        path.write_bytes(with_extremes(read_header(source)).SerializeToString())
        with open_graph(path) as engine:
            # extremes have no rows, so what runs row by row cannot put those of several together
            batch = 1 if isinstance(engine, PieceEngine) else _BATCH
            ranges = measure_ranges(engine, spread_rows(inputs), batch=batch)
    half = to_half(read_graph(source), ranges=ranges, store=store)
    return Network(half.model, range_report(half, ranges))
