from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from gacq_deploy.artifact.records import ModelRecord
from gacq_deploy.backends.base import Engine, TensorInfo
from gacq_deploy.backends.function import FunctionEngine
from gacq_deploy.engines.open import open_engine
from gacq_deploy.errors import EngineError, ModelError, UsageError
from gacq_deploy.progress import SilentReporter
from gacq_deploy.samples.conditioning import Conditions
from gacq_deploy.sampling.ddim import DdimSampler, initial_noise
from gacq_deploy.sampling.flow import FlowSampler
from gacq_deploy.sampling.loop import build_conditioning, generate, native_sampler
from gacq_deploy.spec import Array
from tests.support.artifacts.samplers import ddim, open_sampler, record_of
from tests.support.graphs.onnx_graphs import CLASSES, SAMPLE_SHAPE, denoiser_graph

CONFIG = {"_class_name": "DDPMScheduler", "beta_schedule": "squaredcos_cap_v2"}
STEPS = 5
numpy2_noise = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers'


def _record(**conditioning: dict[str, Any]) -> ModelRecord:
    return record_of(CONFIG, sample_shape=SAMPLE_SHAPE, conditioning=conditioning)


LABELLED = _record(class_labels={"dtype": "int64", "shape": [], "num_classes": CLASSES})


class Recorder(SilentReporter):
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int]] = []
        self.done = 0

    def stage(self, name: str, total: int, costs: Sequence[float] = ()) -> None:
        self.stages.append((name, total))

    def advance(self, n: int = 1, **values: float) -> None:
        self.done += n


def _engine(
    *, batch: int | None = None, spoil_at: int | None = None, calls: list[int] | None = None
) -> Engine:
    def function(feeds: Mapping[str, Any]) -> dict[str, Any]:
        if calls is not None:
            calls.append(len(feeds["sample"]))
        output = feeds["sample"] * np.float32(0.3) + feeds["class_labels"][:, None, None, None].astype(
            np.float32
        )
        if spoil_at is not None and int(feeds["timestep"][0]) == spoil_at:
            output[min(1, len(output) - 1), 0, 0, 0] = np.nan
        return {"output": output}

    inputs = (
        TensorInfo("sample", "float32", (batch, *SAMPLE_SHAPE)),
        TensorInfo("timestep", "int64", (batch,)),
        TensorInfo("class_labels", "int64", (batch,)),
    )
    return FunctionEngine(
        function, inputs, (TensorInfo("output", "float32", (batch, *SAMPLE_SHAPE)),), "double"
    )


def _generate(engine: Engine, seeds: list[int], batch: int = 16, **more: Any) -> np.ndarray:
    sampler = more.pop("sampler", None) or ddim(CONFIG, STEPS)
    labels = {"class_labels": np.array([s % CLASSES for s in seeds], np.int64)}
    conditions = Conditions(more.pop("conditioning", labels))
    request = {"shape": SAMPLE_SHAPE, "conditions": conditions, "seeds": seeds, "batch": batch, **more}
    return generate(engine, sampler, **request)


def test_walks_the_samplers_steps() -> None:
    sampler = ddim(CONFIG, STEPS)
    state = initial_noise([4], SAMPLE_SHAPE)
    for index in range(STEPS):
        state = sampler.step(state * np.float32(0.3) + np.float32(4 % CLASSES), index, state)
    with _engine() as engine:
        np.testing.assert_array_equal(_generate(engine, [4]), state)


@pytest.mark.parametrize("quantized", [False, True], ids=["float", "int8"])
@pytest.mark.parametrize("name", ["ort-cpu", "openvino"])
def test_an_image_does_not_depend_on_its_batch(name: str, quantized: bool) -> None:
    model = denoiser_graph(quantized=quantized).SerializeToString()
    seeds = [11, 3, 8, 5, 7]
    with open_engine(name, model, threads=1) as engine:
        together = _generate(engine, seeds, batch=5)
        pairs = _generate(engine, seeds, batch=2)
        alone = np.concatenate([_generate(engine, [seed]) for seed in seeds])
    assert together.shape == (5, *SAMPLE_SHAPE)
    assert together.dtype == np.float32
    np.testing.assert_array_equal(together, pairs)
    np.testing.assert_array_equal(together, alone)


def test_added_noise_does_not_depend_on_the_batch() -> None:
    sampler = ddim(CONFIG, STEPS, eta=1.0)
    with _engine() as engine:
        together = _generate(engine, [1, 2, 3], sampler=sampler)
        np.testing.assert_array_equal(together[1:2], _generate(engine, [2], sampler=sampler))
        assert not np.allclose(together, _generate(engine, [1, 2, 3]))


def test_batches_are_never_one_row_and_the_last_may_be_partial() -> None:
    calls: list[int] = []
    report = Recorder()
    with _engine(calls=calls) as engine:
        images = _generate(engine, list(range(7)), batch=3, report=report)
    assert len(images) == 7
    assert calls == [3] * STEPS + [3] * STEPS + [2] * STEPS
    assert report.stages == [("denoise", 3 * STEPS)]
    assert report.done == 3 * STEPS


def test_a_fixed_batch_is_filled_up() -> None:
    calls: list[int] = []
    with _engine(batch=4, calls=calls) as engine, _engine() as free:
        np.testing.assert_array_equal(
            _generate(engine, list(range(6)), batch=16), _generate(free, list(range(6)))
        )
    assert set(calls) == {4}


@pytest.mark.parametrize("seeds", [[20, 21, 22], [20, 21]])
def test_an_output_that_is_not_finite_names_step_timestep_and_seed(seeds: list[int]) -> None:
    timestep = int(ddim(CONFIG, STEPS).timesteps[2])
    with _engine(spoil_at=timestep) as engine, pytest.raises(EngineError) as caught:
        _generate(engine, seeds)
    assert f"step 3 of {STEPS} (timestep {timestep}), seed 21" in caught.value.message
    assert "double" in caught.value.message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [], "conditioning": {"class_labels": np.zeros(0, np.int64)}}, "0 images"),
        ({"batch": 0}, "batches of 0"),
        ({"conditioning": {}}, "class_labels"),
        ({"conditioning": {"class_labels": np.zeros(2, np.int64), "text": np.zeros(2)}}, "text"),
        ({"conditioning": {"class_labels": np.zeros(3, np.int64)}}, "3 rows for 2 images"),
        ({"shape": (1, 8, 8)}, "does not fit"),
        ({"shape": (8, 8)}, "does not fit"),
        ({"seeds": [0, -5]}, "Seed -5"),
    ],
)
def test_refuses_a_request_that_does_not_fit(changes: dict[str, Any], message: str) -> None:
    with _engine() as engine, pytest.raises(UsageError, match=message):
        _generate(engine, **{"seeds": [0, 1], **changes})


def test_labels_repeat_over_the_images() -> None:
    labels = build_conditioning(LABELLED, 5, [2, 0])["class_labels"]
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(labels, [2, 0, 2, 0, 2])
    np.testing.assert_array_equal(build_conditioning(LABELLED, 4)["class_labels"], [0, 1, 2, 0])
    assert build_conditioning(_record(), 4) == {}


@pytest.mark.parametrize(
    ("record", "labels", "message"),
    [
        (LABELLED, [0, CLASSES], f"label {CLASSES} is out of range"),
        (LABELLED, [-1], "label -1 is out of range"),
        (LABELLED, [], "No class label"),
        (_record(), [0], "takes no class labels"),
        (_record(text={"dtype": "float32", "shape": [77, 768]}), None, "'text' of tiny is not a class label"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    record: ModelRecord, labels: list[int] | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        build_conditioning(record, 3, labels)
    assert caught.value.hint


def test_ddim_by_name_is_the_numpy_one() -> None:
    assert isinstance(open_sampler(CONFIG, STEPS), DdimSampler)
    assert open_sampler(CONFIG, STEPS, eta=0.5).eta == 0.5  # type: ignore[attr-defined]


@numpy2_noise
@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "DPMSolverMultistepScheduler", "HeunDiscreteScheduler", "DDPMScheduler"]
)
def test_any_diffusers_scheduler_drives_the_loop(name: str) -> None:
    config = {**CONFIG, "timestep_spacing": "leading", "prediction_type": "epsilon"}
    sampler = open_sampler(config, STEPS, name=name)
    with _engine() as engine:
        together = _generate(engine, [5, 6, 7], sampler=sampler)
        np.testing.assert_allclose(_generate(engine, [6], sampler=sampler), together[1:2], atol=1e-5)
        np.testing.assert_allclose(_generate(engine, [5, 6, 7], sampler=sampler), together, atol=1e-5)
        if name == "DDIMScheduler":
            np.testing.assert_allclose(together, _generate(engine, [5, 6, 7]), atol=1e-4)
    assert bool(np.isfinite(together).all())


@numpy2_noise
@pytest.mark.parametrize(
    ("name", "steps", "error", "message"),
    [
        ("NoSuchScheduler", 5, UsageError, "no scheduler 'NoSuchScheduler'"),
        ("UNet2DModel", 5, UsageError, "no scheduler"),
        ("DDIMScheduler", 0, UsageError, "0 sampler steps"),
        ("DDIMScheduler", 1001, UsageError, "1001 sampler steps: the model was trained with 1000"),
        ("EulerDiscreteScheduler", 5000, UsageError, "5000 sampler steps"),
        ("SchedulerMixin", 5, UsageError, "'SchedulerMixin' of diffusers has no from_config"),
        ("AmusedScheduler", 5, ModelError, "cannot use"),
        ("DiscreteDDIMScheduler", 5, UsageError, "has no init_noise_sigma"),
        ("CogVideoXDPMScheduler", 5, UsageError, "also needs old_pred_original_sample, timestep_back"),
        ("FlowMapEulerDiscreteScheduler", 5, ModelError, "timesteps 200 to 1000"),
        ("EulerDiscreteScheduler", 7, ModelError, "fractional timesteps"),
    ],
)
def test_a_scheduler_that_does_not_suit_is_refused(name: str, steps: int, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        open_sampler({**CONFIG, "timestep_spacing": "linspace"}, steps, name=name)


@numpy2_noise
@pytest.mark.parametrize(
    ("name", "steps", "helps"),
    [
        ("EulerDiscreteScheduler", 7, True),
        ("HeunDiscreteScheduler", 7, True),
        ("IPNDMScheduler", 7, False),
        ("FlowMatchEulerDiscreteScheduler", 7, False),
        ("EDMEulerScheduler", 7, False),
        ("CMStochasticIterativeScheduler", 7, False),
    ],
)
def test_leading_spacing_is_advised_only_where_it_helps(name: str, steps: int, helps: bool) -> None:
    with pytest.raises(ModelError, match="fractional timesteps") as raised:
        open_sampler({**CONFIG, "timestep_spacing": "linspace"}, steps, name=name)
    assert ("leading" in raised.value.hint) is helps
    assert "ddim" in raised.value.hint
    if helps:
        assert open_sampler({**CONFIG, "timestep_spacing": "leading"}, steps, name=name).timesteps.min() >= 0


@pytest.mark.parametrize("value", [None, "many", 0])
def test_a_model_that_does_not_say_its_timesteps_is_refused(value: object) -> None:
    with pytest.raises(ModelError, match="num_train_timesteps"):
        open_sampler({**CONFIG, "num_train_timesteps": value}, STEPS, name="DDIMScheduler")


@pytest.mark.parametrize("seed", [-1, 1 << 63, (1 << 64) - 1])
def test_seeds_are_checked_before_any_step(seed: int) -> None:
    report, calls = Recorder(), list[int]()
    with _engine(calls=calls) as engine, pytest.raises(UsageError, match=f"Seed {seed} is out of range"):
        _generate(engine, [3, seed], report=report, sampler=open_sampler(CONFIG, STEPS, name="DDPMScheduler"))
    assert (report.stages, calls) == ([], [])


def test_eta_belongs_to_ddim() -> None:
    with pytest.raises(UsageError, match="eta"):
        open_sampler(CONFIG, STEPS, name="EulerDiscreteScheduler", eta=0.5)


FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
PACKED = (6, 4)


def _text_engine(*, max_rows: int | None = None, calls: list[dict[str, Array]] | None = None) -> Engine:
    """Answer from state, timestep and text, row by row, on packed states and float timesteps."""

    def function(feeds: Mapping[str, Any]) -> dict[str, Any]:
        if calls is not None:
            calls.append(dict(feeds))
        drift = feeds["text"].sum(axis=1)[:, None, None] + feeds["timestep"][:, None, None]
        return {"output": np.sin(feeds["sample"] + drift).astype(np.float32)}

    class Limited(FunctionEngine):
        @property
        def max_rows(self) -> int | None:
            return max_rows

    inputs = (
        TensorInfo("sample", "float32", (None, *PACKED)),
        TensorInfo("timestep", "float32", (None,)),
        TensorInfo("text", "float32", (None, 3)),
    )
    return Limited(function, inputs, (TensorInfo("output", "float32", (None, *PACKED)),), "packed")


def _prompts(rows: int, *, guided: bool = True) -> Conditions:
    rng = np.random.default_rng(3)
    positive, negative = ({"text": rng.standard_normal((rows, 3), np.float32)} for _ in range(2))
    return Conditions(positive, negative if guided else None, 4.5)


def _flow(steps: int = STEPS) -> FlowSampler:
    return FlowSampler.from_config(FLOW, steps, timestep_scale=0.001)


@pytest.mark.parametrize("guided", [False, True])
def test_a_flow_walks_packed_states_with_guidance(guided: bool) -> None:
    sampler, conditions = _flow(), _prompts(2, guided=guided)
    state, run = initial_noise([7, 8], PACKED), sampler.begin([7, 8])
    with _text_engine() as engine:
        for index, fed in enumerate(sampler.model_timesteps):
            answers = []
            for side in (conditions.negative, conditions.positive):
                feeds = {"sample": state, "timestep": np.full(2, fed), **(side or conditions.positive)}
                answers.append(engine.run(feeds)["output"])
            answer = answers[0] + np.float32(4.5) * (answers[1] - answers[0]) if guided else answers[1]
            state = run.step(answer, index, state)
        images = generate(engine, sampler, shape=PACKED, conditions=conditions, seeds=[7, 8])
    np.testing.assert_array_equal(images, state)


@pytest.mark.parametrize("max_rows", [None, 2, 3])
def test_a_guided_image_does_not_depend_on_its_batch(max_rows: int | None) -> None:
    conditions, seeds = _prompts(5), [3, 1, 4, 15, 9]
    calls: list[dict[str, Array]] = []
    with _text_engine() as free, _text_engine(max_rows=max_rows, calls=calls) as engine:
        whole = generate(free, _flow(), shape=PACKED, conditions=conditions, seeds=seeds)
        for batch in (1, 2, 4):
            parts = generate(engine, _flow(), shape=PACKED, conditions=conditions, seeds=seeds, batch=batch)
            np.testing.assert_array_equal(parts, whole)
        alone = [
            generate(engine, _flow(), shape=PACKED, conditions=conditions.rows([i]), seeds=[seed])
            for i, seed in enumerate(seeds)
        ]
    np.testing.assert_array_equal(np.concatenate(alone), whole)
    assert min(len(c["sample"]) for c in calls) >= 2, "kernels sum in another order at one row"
    assert max_rows is None or max(len(c["sample"]) for c in calls) <= max_rows


def test_guided_rows_run_together_the_negative_ones_first() -> None:
    conditions, calls, seen = _prompts(3), list[dict[str, Array]](), list[tuple[int, Array, Array]]()
    with _text_engine(calls=calls) as engine:
        generate(
            engine,
            _flow(),
            shape=PACKED,
            conditions=conditions,
            seeds=[0, 1, 2],
            batch=2,
            observe=lambda *call: seen.append(call),
        )
    assert [index for index, _, _ in seen] == [*range(STEPS)] * 2
    assert [len(state) for _, state, _ in seen] == [2] * STEPS + [1] * STEPS
    for (_, state, answer), call in zip(seen, calls, strict=True):
        assert len(answer) == 2 * len(state)
        np.testing.assert_array_equal(call["sample"], np.concatenate([state, state]))
        assert call["timestep"].dtype == np.float32
    assert conditions.negative is not None
    np.testing.assert_array_equal(calls[0]["text"][:2], conditions.negative["text"][:2])
    np.testing.assert_array_equal(calls[0]["text"][2:], conditions.positive["text"][:2])


def test_a_guided_output_that_is_not_finite_names_its_images_seed() -> None:
    conditions = _prompts(2)
    conditions.positive["text"][1] = 3e38
    with (
        _text_engine() as engine,
        np.errstate(invalid="ignore", over="ignore"),
        pytest.raises(EngineError, match=r"step 1 of 5 \(timestep 1000\), seed 41"),
    ):
        generate(engine, _flow(), shape=PACKED, conditions=conditions, seeds=[40, 41])


def test_timesteps_of_another_kind_are_refused() -> None:
    with _text_engine() as engine, pytest.raises(UsageError, match="takes float32 timesteps") as raised:
        generate(
            engine,
            ddim(CONFIG, STEPS),
            shape=PACKED,
            conditions=_prompts(1),
            seeds=[0],
        )
    assert "--scheduler" in raised.value.hint


def test_a_models_own_sampler() -> None:
    assert native_sampler({}) == native_sampler(CONFIG) == "ddim"
    assert native_sampler(FLOW) == "flow"
    bent = {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True}
    assert native_sampler(bent) == "UniPCMultistepScheduler"
    assert isinstance(open_sampler(CONFIG, STEPS), DdimSampler)
    flow = open_sampler(FLOW, STEPS, dtype="float32", scale=0.001)
    assert isinstance(flow, FlowSampler)
    np.testing.assert_array_equal(flow.model_timesteps, _flow().model_timesteps)
    with pytest.raises(ModelError, match="does not describe a flow"):
        open_sampler(CONFIG, STEPS, name="flow")
    with pytest.raises(ModelError, match="DDIM can follow"):
        open_sampler(FLOW, STEPS, name="ddim")
    with pytest.raises(UsageError, match="eta is a setting of ddim, not of flow"):
        open_sampler(FLOW, STEPS, eta=0.5)


@numpy2_noise
def test_a_scheduler_of_another_process_is_taken_from_diffusers_or_refused() -> None:
    heun = {"_class_name": "FlowMatchHeunDiscreteScheduler"}
    assert open_sampler(heun, STEPS, dtype="float32").model_timesteps.dtype == np.float32
    with pytest.raises(ModelError, match=r"own scheduler, FlowMatchHeun.*fractional") as raised:
        open_sampler(heun, 7)
    assert "--scheduler" in raised.value.hint


@numpy2_noise
@pytest.mark.parametrize("mu", [None, 0.9])
def test_diffusers_own_flow_makes_the_same_images(mu: float | None) -> None:
    config = {**FLOW, "use_dynamic_shifting": mu is not None, "mu": mu}
    taken: dict[str, Any] = {"dtype": "float32", "scale": 0.001}
    ours, theirs = (open_sampler(config, 7, name=name, **taken) for name in ("flow", FLOW["_class_name"]))
    np.testing.assert_array_equal(ours.model_timesteps, theirs.model_timesteps)
    np.testing.assert_array_equal(ours.timesteps, theirs.timesteps)
    with _text_engine() as engine:
        one, other = (
            generate(engine, s, shape=PACKED, conditions=_prompts(3), seeds=[1, 2, 3], batch=2)
            for s in (ours, theirs)
        )
    np.testing.assert_array_equal(one, other)


@numpy2_noise
def test_a_network_of_float_timesteps_takes_fractional_ones() -> None:
    config = {**CONFIG, "timestep_spacing": "linspace"}
    sampler = open_sampler(config, 7, name="EulerDiscreteScheduler", dtype="float32")
    assert sampler.model_timesteps[1] == np.float32(832.5)
    assert sampler.timesteps[1] in {832, 833}
