"""Group N: what a row gives does not depend on its batch: alone, at mixed timesteps, and of mixed schedulers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from gacq_deploy.backends.base import Engine
from gacq_deploy.backends.batches import predict
from gacq_deploy.backends.function import FunctionEngine
from gacq_deploy.engines.catalogue import engine_named
from gacq_deploy.engines.open import open_engine
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.sampling.loop import Sampler
from gacq_deploy.spec import Array
from tests.faults.matrix import BATCHES
from tests.support.artifacts.samplers import open_sampler

LEADING = {"timestep_spacing": "leading", "steps_offset": 1}
CONFIG = {"_class_name": "DDPMScheduler", "beta_schedule": "squaredcos_cap_v2", **LEADING}
SCHEDULERS = ("ddim", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler")
CLASSES = 3
EXECUTORS = ("ort-cpu", "openvino")
numpy2_noise = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers'


@pytest.fixture(scope="module", params=EXECUTORS)
def engine(request: pytest.FixtureRequest, whole_run: Path) -> Iterator[Engine]:
    graph = RunDirectory(whole_run).onnx / engine_named(request.param).best_graph
    with open_engine(request.param, graph, threads=1) as opened:

        def run(given: Mapping[str, Array]) -> dict[str, Array]:
            """As on processors where the kernel for one row sums in another order: here not every library has one."""
            output = opened.run(given)["output"]
            return {"output": np.nextafter(output, np.float32(np.inf)) if len(output) == 1 else output}

        yield FunctionEngine(run, opened.inputs, opened.outputs)


def _feeds(engine: Engine, size: int) -> dict[str, Array]:
    rng = np.random.default_rng(size)
    shape = next(i.shape for i in engine.inputs if i.name == "sample")[1:]
    sample = rng.standard_normal((size, *shape), dtype=np.float32)
    return {
        "sample": sample,
        "timestep": rng.integers(0, 1000, size),
        "class_labels": np.arange(size) % CLASSES,
    }


def _rows(given: dict[str, Array], rows: list[int]) -> dict[str, Array]:
    return {name: value[rows] for name, value in given.items()}


def _samplers(count: int) -> list[Sampler]:
    """Every request brings its own scheduler, and its own number of steps."""
    return [open_sampler(CONFIG, 2 + index % 3, name=SCHEDULERS[index % 3]) for index in range(count)]


def _walk(engine: Engine, requests: list[int], samplers: list[Sampler]) -> dict[int, Array]:
    """Return the final state of each request; those that still go share every call of the engine."""
    runs = {seed: samplers[seed].begin([seed]) for seed in requests}
    states = {seed: runs[seed].start(_feeds(engine, 1)["sample"] + np.float32(seed)) for seed in requests}
    for index in range(max(len(samplers[seed].timesteps) for seed in requests)):
        going = [seed for seed in requests if index < len(samplers[seed].timesteps)]
        given = {
            "sample": np.concatenate([runs[seed].model_input(states[seed], index) for seed in going]),
            "timestep": np.array([samplers[seed].model_timesteps[index] for seed in going]),
            "class_labels": np.array(going) % CLASSES,
        }
        output = predict(engine, given)
        for row, seed in enumerate(going):
            states[seed] = runs[seed].step(output[row : row + 1], index, states[seed])
    return states


@numpy2_noise
@pytest.mark.parametrize("size", BATCHES)
def test_n(size: int, engine: Engine) -> None:
    most = _feeds(engine, BATCHES[-1])
    for given in ({**most, "timestep": np.full(len(most["timestep"]), 500)}, most):
        among_all = predict(engine, given)
        assert np.isfinite(among_all).all()
        np.testing.assert_array_equal(predict(engine, _rows(given, list(range(size)))), among_all[:size])
        alone = [predict(engine, _rows(given, [row])) for row in range(size)]
        np.testing.assert_array_equal(np.concatenate(alone), among_all[:size])
    samplers = _samplers(BATCHES[-1])
    finals = _walk(engine, list(range(size)), samplers)
    among_all = _walk(engine, [*BATCHES[:-1], 0], samplers)
    for seed, final in finals.items():
        np.testing.assert_array_equal(final, among_all[seed])
        np.testing.assert_array_equal(final, _walk(engine, [seed], samplers)[seed])
