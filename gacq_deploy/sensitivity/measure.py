"""What does one variant of the graph predict on the probe's states, and how far is that from float?"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from gacq_deploy.artifact.probe import Probe
from gacq_deploy.backends.batches import run_in_batches
from gacq_deploy.engines.catalogue import REFERENCE
from gacq_deploy.engines.open import open_engine
from gacq_deploy.errors import EngineError, UsageError
from gacq_deploy.graph.quantizers import openable
from gacq_deploy.metrics.arrays import by_bucket, sqnr_db
from gacq_deploy.progress import Reporter
from gacq_deploy.samples.calibration_set import timestep_buckets
from gacq_deploy.sensitivity.report import Levels, ModuleSensitivity, TimestepBucket
from gacq_deploy.sensitivity.variants import Variants
from gacq_deploy.spec import Array, Site


@dataclass(frozen=True)
class States:
    """``M`` states of float trajectories with the float model's own outputs.

    ``inputs`` name -> [M, ...]; ``outputs`` [M, C, H, W] float32; ``buckets`` [M] int64, 0 = noisiest.
    """

    inputs: Mapping[str, Array]
    outputs: Array
    buckets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.outputs)

    def spread(self, count: int) -> States:
        """Return at most ``count`` of the states, spread evenly over the timesteps.

        Raises:
            UsageError: so few that a bucket would be empty.
        """
        order = np.argsort(-self.inputs["timestep"], kind="stable")
        places = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(np.int64)
        rows = np.sort(order[places])
        groups = int(self.buckets.max()) + 1
        if len(np.unique(self.buckets[rows])) < groups:
            raise UsageError(
                f"{count} states leave one of {groups} timestep buckets empty.",
                "Ask for more states or fewer buckets.",
            )
        return States({k: v[rows] for k, v in self.inputs.items()}, self.outputs[rows], self.buckets[rows])

    def describe(self) -> tuple[TimestepBucket, ...]:
        """Return the timesteps of each bucket."""
        steps = [self.inputs["timestep"][self.buckets == b] for b in range(int(self.buckets.max()) + 1)]
        return tuple(TimestepBucket(timestep_max=int(t.max()), timestep_min=int(t.min())) for t in steps)


def states_of(probe: Probe, buckets: int) -> States:
    """Return every state of the probe.

    Raises:
        UsageError: fewer than one bucket was asked for.
    """
    if buckets < 1:
        raise UsageError(f"{buckets} timestep buckets were asked for.", "Ask for 1 or more.")
    return States(probe.inputs, probe.outputs["float"], timestep_buckets(probe.inputs["timestep"], buckets))


@dataclass
class Meter:
    """Runs graphs in ONNX Runtime, counts them and says so; every engine is closed when it has run."""

    batch: int
    threads: int
    report: Reporter
    runs: int = 0
    label: str = ""

    def outputs(self, graph: ModelProto, states: States) -> Array:
        """Return the outputs of ``graph``, [M, C, H, W].

        Raises:
            EngineError: it does not open or run, or returns NaN or Inf.
        """
        with (
            openable(graph) as model,
            open_engine(REFERENCE, model, threads=self.threads) as engine,
        ):
            outputs = run_in_batches(engine, states.inputs, self.batch)
            self.label = engine.label
        self.runs += 1
        self.report.advance()
        if not bool(np.isfinite(outputs).all()):
            raise EngineError(
                "A variant of the quantized graph returns NaN or Inf on the probe states.",
                "Run `gacq-deploy parity` to see where; calibrate again.",
            )
        return outputs

    def levels(self, graph: ModelProto, states: States, reference: Array | None = None) -> Levels:
        """Return the SQNR of each bucket against ``reference``, default the float model's outputs."""
        exact = states.outputs if reference is None else reference
        return tuple(by_bucket(sqnr_db, exact, self.outputs(graph, states), states.buckets))


@dataclass(frozen=True)
class Ranking:
    """The modules of one graph, the most costly first, and the levels of the whole graph around them."""

    unquantized: Levels
    quantized: Levels
    modules: tuple[ModuleSensitivity, ...]


def count_runs(variants: Variants) -> int:
    """Return how many graphs :func:`rank_modules` runs."""
    sites = [variants.sites_of(m) for m in variants.modules]
    return 2 + sum(2 + len(s) for s in sites)


def rank_modules(variants: Variants, states: States, meter: Meter) -> Ranking:
    """Measure every module alone, role by role, and the whole graph without it.

    Raises:
        ExportError: a variant cannot be built.
        EngineError: a variant does not run.
    """
    base = meter.outputs(variants.only(()), states)
    unquantized = tuple(by_bucket(sqnr_db, states.outputs, base, states.buckets))
    quantized = meter.levels(variants.without(()), states)

    def alone(sites: Collection[Site]) -> Levels:
        return meter.levels(variants.only(sites), states, base)

    found = []
    for module in variants.modules:
        sites = variants.sites_of(module)
        left = meter.levels(variants.without([module]), states)
        together = alone(sites)
        by_role = {site.role: alone([site]) for site in sites}
        gain = tuple(a - b for a, b in zip(left, quantized, strict=True))
        found.append(
            ModuleSensitivity(
                module=module,
                alone_db=together,
                share=(),  # of a sum that is known only when every module was measured
                role_db=by_role,
                left_float_db=left,
                gain_db=gain,
                worst_gain_db=min(left) - min(quantized),
            )
        )
    worst = quantized.index(min(quantized))
    ranked = sorted(_with_shares(found), key=lambda m: (-m.share[worst], m.module))
    return Ranking(unquantized, quantized, tuple(ranked))


def _with_shares(found: Sequence[ModuleSensitivity]) -> list[ModuleSensitivity]:
    """Say which part of each bucket's error every module makes; rounding errors of layers nearly add up."""
    noise = 10 ** (-np.array([m.alone_db for m in found]) / 10)
    shares = noise / noise.sum(axis=0)
    return [m.model_copy(update={"share": tuple(s)}) for m, s in zip(found, shares.tolist(), strict=True)]
