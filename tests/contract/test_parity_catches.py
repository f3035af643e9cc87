"""Does parity catch a model that is not the model? Graphs and engines are corrupted, each must be caught."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

from gacq_deploy.backends.base import Engine
from gacq_deploy.backends.function import FunctionEngine
from gacq_deploy.engines.catalogue import engine_named
from gacq_deploy.engines.open import open_engine
from gacq_deploy.export.cpu_flavour import to_cpu_flavour
from gacq_deploy.export.parameters import apply_parameters
from gacq_deploy.export.qdq import insert_qdq
from gacq_deploy.graph.index import GraphIndex
from gacq_deploy.parity.candidates import Candidate
from gacq_deploy.parity.comparisons import EngineFactory, Setting, Subject, measure_comparisons
from gacq_deploy.parity.cut import cut_at_quantizers
from gacq_deploy.parity.exact import CANONICAL, CPU, Flavour, compare_quantized_file
from gacq_deploy.parity.layout import fit_recordings
from gacq_deploy.parity.report import ParityReport
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.spec import Array
from tests.support.artifacts.judged_run import OTHER_MODEL, make_run, setting_of, subject_of
from tests.support.artifacts.retrained import (
    CONV_BIAS,
    FLOAT_LAYER_BIAS,
    LINEAR_BIAS,
    NORM_BIAS,
    NORM_WEIGHT,
    retrained_artifact,
)

CONV = "mid_block.resnets.0.conv1"
OTHER = "mid_block.resnets.1.conv1"
LINEAR = "mid_block.attentions.0.to_q"
SHORTCUT = "up_blocks.0.resnets.0.conv_shortcut"
ORT_INT8, ORT_CPU = Candidate(CANONICAL, "ort-cpu"), Candidate(CPU, "ort-cpu")
OPENVINO = Candidate(CANONICAL, "openvino")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return make_run(tmp_path_factory.mktemp("catches"))


@pytest.fixture(scope="module")
def subject(run: RunDirectory) -> Subject:
    return subject_of(run)


@pytest.fixture(scope="module")
def setting(run: RunDirectory) -> Setting:
    whole = setting_of(run)
    return replace(whole, section=whole.section.model_copy(update={"images": 2, "steps": 3}))


def judge(subject: Subject, setting: Setting, *candidates: Candidate) -> ParityReport:
    return measure_comparisons(subject, candidates, setting, {})


def failed(report: ParityReport) -> set[str]:
    return {comparison.evidence for comparison in report.comparisons if not comparison.passed}


# --- ways to spoil a graph


def edit(model: ModelProto, name: str, change: Callable[[Array], Array]) -> None:
    """Replace a stored tensor; a name that is not there is an error, so that no corruption is empty."""
    (tensor,) = [t for t in model.graph.initializer if t.name == name]
    before = numpy_helper.to_array(tensor)
    after = np.asarray(change(before.copy()), before.dtype).reshape(before.shape)
    assert after.tobytes() != before.tobytes(), "nothing was corrupted"
    tensor.CopyFrom(numpy_helper.from_array(after, name))


def at(index: tuple[int, ...], change: Callable[[Array], Array]) -> Callable[[Array], Array]:
    def apply(array: Array) -> Array:
        array[index] = change(array[index])
        return array

    return apply


def node(model: ModelProto, name: str) -> onnx.NodeProto:
    (found,) = [n for n in model.graph.node if n.name == name]
    return found


def scale_times(site: str, factor: float) -> Callable[[ModelProto], None]:
    return lambda m: edit(m, f"{site}.scale", lambda s: s * np.float32(factor))


def one_channel(model: ModelProto) -> None:
    edit(model, f"{CONV}:weight.scale", at((3,), lambda s: s * np.float32(1.2)))


def swap_concat(model: ModelProto) -> None:
    index = GraphIndex(model)
    source = node(model, f"{SHORTCUT}:input/QuantizeLinear").input[0]
    concat = index.producer(source)
    assert concat is not None
    assert concat.op_type == "Concat"
    concat.input[0], concat.input[1] = concat.input[1], concat.input[0]


def other_rounding(model: ModelProto) -> None:
    """Stale weights: codes of another calibration of the same model."""
    for tensor in list(model.graph.initializer):
        if tensor.name.endswith(":weight.codes"):
            edit(model, tensor.name, lambda c: np.clip(c.astype(int) + (c % 2), -127, 127))


def flip_bit(bit: int) -> Callable[[ModelProto], None]:
    def flip(model: ModelProto) -> None:
        edit(model, f"{CONV}:weight.codes", at((2, 1, 1, 1), lambda c: np.bitwise_xor(c, np.int8(1 << bit))))

    return flip


def drop_pair(site: str) -> Callable[[ModelProto], None]:
    def drop(model: ModelProto) -> None:
        quantize = node(model, f"{site}/QuantizeLinear")
        dequantize = node(model, f"{site}/DequantizeLinear")
        for reader in model.graph.node:
            for position, name in enumerate(reader.input):
                if name == dequantize.output[0]:
                    reader.input[position] = quantize.input[0]
        model.graph.node.remove(quantize)
        model.graph.node.remove(dequantize)

    return drop


def shift_float_bias(model: ModelProto) -> None:
    # one channel: the normalization that follows takes a common shift out again
    edit(model, f"denoiser.{CONV}.bias", at((1,), lambda b: b + np.float32(0.05)))


def shift_integer_bias(model: ModelProto) -> None:
    edit(model, f"{CONV}:bias.codes", at((1,), lambda b: b + 2000))


def exchange_scales(model: ModelProto) -> None:
    held = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    one, other = f"{CONV}:input.scale", f"{SHORTCUT}:input.scale"
    edit(model, one, lambda _: held[other])
    edit(model, other, lambda _: held[one])


def exchange_weight_scales(model: ModelProto) -> None:
    held = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    one, other = f"{CONV}:weight.scale", f"{OTHER}:weight.scale"
    edit(model, one, lambda _: held[other])
    edit(model, other, lambda _: held[one])


def move_zero_point(model: ModelProto) -> None:
    edit(model, f"{CONV}:input.zero_point", lambda z: z + 3)


def wrong_axis(model: ModelProto) -> None:
    (axis,) = [a for a in node(model, f"{LINEAR}:weight/DequantizeLinear").attribute if a.name == "axis"]
    assert axis.i == 1
    axis.i = 0


def nudge_norm(model: ModelProto) -> None:
    """One unit in the last place of one constant that is not quantized."""
    name = next(t.name for t in model.graph.initializer if t.name.endswith("conv_in.weight"))
    edit(model, name, at((0, 0, 0, 0), lambda w: np.nextafter(w, np.float32(10))))


def stretch_padding(model: ModelProto) -> None:
    (pads,) = [a for a in GraphIndex(model).producers["conv2d"].attribute if a.name == "pads"]
    pads.ints[:] = [2, 0, 1, 1]


def bypass_output(model: ModelProto) -> None:
    """The first reader of a quantized convolution output reads the float tensor beside the quantizer."""
    quantize = node(model, f"{CONV}:output/QuantizeLinear")
    dequantized = node(model, f"{CONV}:output/DequantizeLinear").output[0]
    reader = GraphIndex(model).readers(dequantized)[0]
    reader.node.input[reader.position] = quantize.input[0]


@dataclass(frozen=True)
class Corruption:
    """One way to spoil a file, the evidence that must see it, and where the local evidence must point."""

    id: str
    flavour: Flavour
    spoil: Callable[[ModelProto], None]
    evidence: frozenset[str]
    where: str
    departs: str | None = None


def spoils(
    name: str,
    flavour: Flavour,
    spoil: Callable[[ModelProto], None],
    *evidence: str,
    where: str,
    departs: str | None = None,
) -> Corruption:
    return Corruption(name, flavour, spoil, frozenset({"exact", *evidence}), where, departs)


INPUT, WEIGHT, OUTPUT = f"{CONV}:input", f"{CONV}:weight", f"{CONV}:output"
JOINED = f"{SHORTCUT}:input"
NEXT, EARLIEST = "mid_block.resnets.0.conv2:input", "down_blocks.0.resnets.0.conv2:input"
CORRUPTIONS = [
    spoils("scale x1.2", CANONICAL, scale_times(INPUT, 1.2), "local", where=INPUT, departs=INPUT),
    spoils("scale x1.01", CANONICAL, scale_times(INPUT, 1.01), "local", where=INPUT, departs=INPUT),
    spoils("one channel's scale", CANONICAL, one_channel, "local", where=WEIGHT, departs=NEXT),
    spoils("swapped concat inputs", CANONICAL, swap_concat, "local", where="up_blocks.0", departs=JOINED),
    spoils("stale weights", CANONICAL, other_rounding, "local", where=":weight", departs=EARLIEST),
    spoils("NaN scale", CANONICAL, scale_times(INPUT, np.nan), "local", where=INPUT, departs=INPUT),
    spoils("infinite scale", CANONICAL, scale_times(INPUT, np.inf), "local", where=INPUT, departs=INPUT),
    spoils("weight bit 6 flipped", CANONICAL, flip_bit(6), "local", where=WEIGHT, departs=NEXT),
    spoils("weight bit 0 flipped", CANONICAL, flip_bit(0), where=WEIGHT),
    spoils("Q/DQ dropped", CANONICAL, drop_pair(INPUT), "local", where=INPUT),
    spoils("bias shifted", CANONICAL, shift_float_bias, "local", where=CONV, departs=NEXT),
    spoils("scales exchanged", CANONICAL, exchange_scales, "local", where=INPUT, departs=INPUT),
    spoils("weight scales exchanged", CANONICAL, exchange_weight_scales, "local", where=WEIGHT, departs=NEXT),
    spoils("zero point moved", CANONICAL, move_zero_point, "local", where=INPUT, departs=INPUT),
    spoils("wrong axis", CANONICAL, wrong_axis, "local", where=f"{LINEAR}:weight"),
    spoils("float constant, last bit", CANONICAL, nudge_norm, where="conv_in"),
    spoils("padding moved", CANONICAL, stretch_padding, "local", where="conv_in"),
    spoils("CPU: scale x1.2", CPU, scale_times(OUTPUT, 1.2), "local", where=OUTPUT, departs=OUTPUT),
    spoils("CPU: one channel's scale", CPU, one_channel, "local", where=WEIGHT, departs=OUTPUT),
    spoils("CPU: bias shifted", CPU, shift_integer_bias, "local", where=f"{CONV} bias", departs=OUTPUT),
    spoils("CPU: zero point moved", CPU, move_zero_point, "local", where=INPUT, departs=INPUT),
    spoils("CPU: output Q/DQ dropped", CPU, drop_pair(OUTPUT), "local", where=OUTPUT),
    spoils("CPU: output quantizer bypassed", CPU, bypass_output, "local", where=OUTPUT),
]  # fmt: skip


@pytest.mark.parametrize("case", CORRUPTIONS, ids=lambda c: c.id)
def test_a_corrupt_file_is_caught(case: Corruption, subject: Subject, setting: Setting) -> None:
    spoiled = ModelProto()
    spoiled.CopyFrom(subject.graphs[case.flavour.file])
    case.spoil(spoiled)
    graphs = {**subject.graphs, case.flavour.file: spoiled}
    report = judge(replace(subject, graphs=graphs), setting, Candidate(case.flavour, "ort-cpu"))
    assert not report
    assert case.evidence <= failed(report), report.to_text()
    exact = next(e for e in report.comparisons if e.evidence == "exact" and not e.passed)
    assert exact.candidate == case.flavour.file
    assert any(case.where in line for line in exact.worst["all"]), exact.worst
    local = next(e for e in report.comparisons if e.evidence == "local")
    if case.departs:
        assert local.worst["first_departing"] == case.departs
    assert case.where in report.to_text()


def test_untouched_files_pass_everywhere(subject: Subject, setting: Setting) -> None:
    report = judge(subject, setting, ORT_INT8, ORT_CPU, OPENVINO)
    assert report, report.to_text()
    assert {e.evidence for e in report.comparisons} == {
        "exact",
        "flavour",
        "exporter",
        "local",
        "error",
        "budget",
    }
    for comparison in report.comparisons:
        assert comparison.evaluated
        assert set(comparison.thresholds) <= set(comparison.metrics)


# --- parameters that calibration retrained


@pytest.fixture(scope="module")
def retrained(run: RunDirectory, subject: Subject) -> Subject:
    """The same model with biases and norms that calibration changed; its float graph is the same."""
    artifact, graph = retrained_artifact(run), subject.float_graph
    assert artifact.probe is not None
    graphs = {
        CANONICAL.file: insert_qdq(graph, artifact, placement="input"),
        CPU.file: to_cpu_flavour(insert_qdq(graph, artifact, placement="output")),
    }
    return Subject(artifact, artifact.probe, graph, graphs)


def test_untouched_graphs_with_retrained_parameters_pass_everywhere(
    retrained: Subject, setting: Setting
) -> None:
    # noise on biases is no calibration: the budget against the float model cannot hold
    report = judge(retrained, setting, ORT_INT8, ORT_CPU, OPENVINO)
    assert failed(report) <= {"budget"}, report.to_text()
    assert all(e.evaluated for e in report.comparisons)


def shift_one(name: str) -> Callable[[ModelProto], None]:
    return lambda m: edit(
        m, f"{name}:retrained", lambda v: v + np.eye(v.size, dtype=v.dtype)[1].reshape(v.shape)
    )


def last_bit(name: str) -> Callable[[ModelProto], None]:
    return lambda m: edit(m, f"{name}:retrained", lambda v: np.nextafter(v, np.float32(10)))


TAMPERED = [
    spoils("linear bias", CANONICAL, shift_one(LINEAR_BIAS), "local", where=LINEAR),
    spoils("conv bias", CANONICAL, shift_one(CONV_BIAS), "local", where=CONV, departs=NEXT),
    spoils("norm weight", CANONICAL, shift_one(NORM_WEIGHT), "local", where="norm1", departs=INPUT),
    spoils("norm bias", CANONICAL, shift_one(NORM_BIAS), "local", where="group_norm"),
    spoils("bias of a float layer", CANONICAL, shift_one(FLOAT_LAYER_BIAS), "local", where="conv_in"),
    spoils("linear bias, last bit", CANONICAL, last_bit(LINEAR_BIAS), where=LINEAR),
    spoils("norm weight, last bit", CANONICAL, last_bit(NORM_WEIGHT), where="norm1"),
    spoils("CPU: linear bias", CPU, shift_one(LINEAR_BIAS), "local", where=LINEAR),
    spoils("CPU: integer bias", CPU, shift_integer_bias, "local", where=f"{CONV} bias", departs=OUTPUT),
    spoils("CPU: norm weight", CPU, shift_one(NORM_WEIGHT), "local", where="norm1", departs=INPUT),
]


@pytest.mark.parametrize("case", TAMPERED, ids=lambda c: c.id)
def test_a_tampered_parameter_is_caught(case: Corruption, retrained: Subject, setting: Setting) -> None:
    spoiled = ModelProto()
    spoiled.CopyFrom(retrained.graphs[case.flavour.file])
    case.spoil(spoiled)
    graphs = {**retrained.graphs, case.flavour.file: spoiled}
    report = judge(replace(retrained, graphs=graphs), setting, Candidate(case.flavour, "ort-cpu"))
    assert case.evidence <= failed(report), report.to_text()
    exact = next(e for e in report.comparisons if e.evidence == "exact" and not e.passed)
    assert any(case.where in line for line in exact.worst["all"]), exact.worst
    local = next(e for e in report.comparisons if e.evidence == "local")
    if case.departs:
        assert local.worst["first_departing"] == case.departs


@pytest.mark.parametrize("candidate", [ORT_INT8, ORT_CPU], ids=lambda c: c.name)
def test_graphs_that_kept_the_float_models_parameters_are_caught(
    candidate: Candidate, subject: Subject, retrained: Subject, setting: Setting
) -> None:
    report = judge(replace(retrained, graphs=subject.graphs), setting, candidate)
    assert {"exact", "local", "error"} <= failed(report), report.to_text()


@pytest.mark.parametrize("candidate", [ORT_INT8, ORT_CPU], ids=lambda c: c.name)
def test_graphs_with_parameters_that_the_artifact_does_not_hold_are_caught(
    candidate: Candidate, subject: Subject, retrained: Subject, setting: Setting
) -> None:
    report = judge(replace(subject, graphs=retrained.graphs), setting, candidate)
    assert {"exact", "local", "error"} <= failed(report), report.to_text()


@pytest.mark.parametrize("spoiled", [False, True])
def test_a_bias_too_large_for_integers_may_stand_behind_its_convolution(
    subject: Subject, retrained: Subject, *, spoiled: bool
) -> None:
    parameter = retrained.artifact.parameters[CONV_BIAS]
    value = parameter.value.copy()
    value[1] = 1e9
    parameters = {**retrained.artifact.parameters, CONV_BIAS: replace(parameter, value=value)}
    artifact = replace(retrained.artifact, parameters=parameters)
    graph = to_cpu_flavour(insert_qdq(subject.float_graph, artifact, placement="output"))
    assert node(graph, f"{CONV}:bias/Add").output
    if spoiled:
        edit(graph, f"{CONV}:bias.float", at((2,), lambda v: np.nextafter(v, np.float32(10))))
    found = compare_quantized_file(artifact, subject.float_graph, graph, CPU)
    assert bool(found) is spoiled
    assert all(CONV in d.where or d.where == "output" for d in found)


def test_a_float_graph_that_holds_retrained_parameters_is_caught(
    retrained: Subject, setting: Setting
) -> None:
    """float.onnx is what everything is compared with: it must be the model as it was before calibration."""
    mixed = apply_parameters(retrained.float_graph, retrained.artifact)
    report = judge(replace(retrained, float_graph=mixed), setting, ORT_INT8)
    exact = [e for e in report.comparisons if e.evidence == "exact"]
    assert [e.candidate for e in exact if not e.passed] == ["float.onnx", CANONICAL.file]
    assert all("started from" in e.worst["first"] for e in exact)
    assert "exporter" in failed(report)


# --- ways to spoil an engine, behind files that are exactly right


def spoiled_answers(change: Callable[[dict[str, Array]], dict[str, Array]]) -> EngineFactory:
    """Quantized graphs get an engine with changed answers, the float graph an honest one."""

    def factory(name: str, model: Path | bytes, *, threads: int = 0, optimize: bool = True) -> Engine:
        engine = open_engine(name, model, threads=threads, optimize=optimize)
        assert isinstance(model, bytes)
        if b"QuantizeLinear" not in model:
            return engine
        return FunctionEngine(
            lambda feeds: change(engine.run(feeds)), engine.inputs, engine.outputs, engine.label
        )

    return factory


def spoiled_compiler(spoil: Callable[[ModelProto], None]) -> EngineFactory:
    """An engine that quietly compiles another graph than the one it was given."""

    def factory(name: str, model: Path | bytes, *, threads: int = 0, optimize: bool = True) -> Engine:
        if name == "openvino":
            assert isinstance(model, bytes)
            graph = onnx.load_model_from_string(model)
            spoil(graph)
            model = graph.SerializeToString()
        return open_engine(name, model, threads=threads, optimize=optimize)

    return factory


def wrong_row(results: dict[str, Array]) -> dict[str, Array]:
    return {k: np.concatenate([v[:1], v[:1], v[2:]]) if len(v) > 1 else v for k, v in results.items()}


def gain(factor: float) -> Callable[[dict[str, Array]], dict[str, Array]]:
    return lambda results: {k: v * np.float32(factor) for k, v in results.items()}


def nan_pixel(results: dict[str, Array]) -> dict[str, Array]:
    for value in results.values():
        value.flat[0] = np.nan
    return results


def test_a_compiler_that_changes_a_scale_is_caught_where_files_are_right(
    subject: Subject, setting: Setting
) -> None:
    spoiled = replace(setting, open_engine=spoiled_compiler(scale_times(INPUT, 1.2)))
    report = judge(subject, spoiled, OPENVINO)
    assert failed(report) >= {"local"}
    assert "exact" not in failed(report)
    local = next(e for e in report.comparisons if e.evidence == "local")
    assert local.worst["first_departing"] == INPUT


def test_a_wrong_batch_row_is_caught(subject: Subject, setting: Setting) -> None:
    report = judge(subject, replace(setting, open_engine=spoiled_answers(wrong_row)), ORT_INT8)
    assert {"local", "error", "budget"} <= failed(report), report.to_text()


def test_a_wrong_batch_row_of_the_final_engine_alone_is_caught(subject: Subject, setting: Setting) -> None:
    def only_uncut(results: dict[str, Array]) -> dict[str, Array]:
        return wrong_row(results) if len(results) == 1 else results

    report = judge(subject, replace(setting, open_engine=spoiled_answers(only_uncut)), ORT_INT8)
    assert {"error", "budget"} <= failed(report), report.to_text()


@pytest.mark.parametrize("factor", [1.001, 1.1])
def test_a_scaled_output_is_caught(factor: float, subject: Subject, setting: Setting) -> None:
    report = judge(subject, replace(setting, open_engine=spoiled_answers(gain(factor))), ORT_INT8)
    local = next(e for e in report.comparisons if e.evidence == "local")
    assert "output_relative_error" in local.failed


def test_nan_anywhere_fails_every_numeric_evidence(subject: Subject, setting: Setting) -> None:
    report = judge(subject, replace(setting, open_engine=spoiled_answers(nan_pixel)), ORT_INT8)
    assert {"local", "error", "budget"} <= failed(report)
    assert all(not e.evaluated for e in report.comparisons if not e.passed)


def test_an_engine_that_computes_the_float_model_is_not_the_quantized_one(
    subject: Subject, setting: Setting
) -> None:
    """An engine that silently drops quantization is closer to float than it should be."""
    graph = subject.float_graph.SerializeToString()

    def factory(name: str, model: Path | bytes, *, threads: int = 0, optimize: bool = True) -> Engine:
        assert isinstance(model, bytes)
        uncut = len(onnx.load_model_from_string(model).graph.output) == 1
        return open_engine(name, graph if uncut else model, threads=threads, optimize=optimize)

    report = judge(subject, replace(setting, open_engine=factory), ORT_INT8)
    assert failed(report) == {"error"}


def test_an_engine_that_breaks_leaves_its_edges_unevaluated(subject: Subject, setting: Setting) -> None:
    def unknown_operator(model: ModelProto) -> None:
        node(model, "node_conv2d").op_type = "NoSuchOperator"

    report = judge(subject, replace(setting, open_engine=spoiled_compiler(unknown_operator)), OPENVINO)
    assert failed(report) == {"local", "error", "budget"}
    for comparison in report.comparisons:
        assert comparison.passed or (
            not comparison.evaluated and "refuses the model" in comparison.worst["error"]
        )


def test_stale_weights_in_the_float_graph_are_caught(subject: Subject, setting: Setting) -> None:
    stale = ModelProto()
    stale.CopyFrom(subject.float_graph)
    edit(stale, f"denoiser.{CONV}.weight", lambda w: w * np.float32(1.5))
    report = judge(replace(subject, float_graph=stale), setting, ORT_INT8)
    assert {"exact", "exporter"} <= failed(report)
    first = next(e for e in report.comparisons if not e.passed)
    assert first.candidate == "float.onnx"
    assert CONV in first.worst["first"]


@pytest.mark.parametrize("seed", range(5))
def test_an_untouched_copy_passes_on_every_seed(seed: int, subject: Subject, setting: Setting) -> None:
    section = setting.section.model_copy(update={"seed": 1000 * seed})
    report = judge(subject, replace(setting, section=section), ORT_INT8, ORT_CPU)
    assert report, report.to_text()


@pytest.mark.parametrize(("engine", "flavour"), [("ort-cpu", CPU), ("openvino", CANONICAL)])
def test_the_local_evidence_runs_in_the_kernels_of_the_whole_graph(
    engine: str, flavour: Flavour, subject: Subject
) -> None:
    graph = subject.graphs[flavour.file]
    cut = cut_at_quantizers(graph, fit_recordings(graph, subject.probe.local[flavour.placement]))
    whole = engine_named(engine).executed_kernels(graph.SerializeToString())
    parts = engine_named(engine).executed_kernels(cut.model.SerializeToString())
    assert Counter(k.kernel for k in parts) == Counter(k.kernel for k in whole)
    assert all(k.integer for k in parts)


@pytest.mark.slow
def test_an_untouched_copy_of_another_model_passes(tmp_path: Path) -> None:
    run = make_run(tmp_path, **OTHER_MODEL)
    report = judge(subject_of(run), setting_of(run), ORT_INT8, ORT_CPU, OPENVINO)
    assert report, report.to_text()
