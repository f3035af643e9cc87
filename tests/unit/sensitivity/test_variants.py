from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import ModelProto

from gacq_deploy.export.qdq import quantized_sites
from gacq_deploy.graph.files import read_graph
from gacq_deploy.graph.index import DEQUANTIZE, QUANTIZE
from gacq_deploy.progress import SILENT
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.sensitivity.measure import Meter, states_of
from gacq_deploy.sensitivity.variants import Variants

FILES = ("int8.onnx", "int8.cpu.onnx")


def _operators(graph: ModelProto) -> set[str]:
    return {node.op_type for node in graph.graph.node}


@pytest.mark.parametrize("file", FILES)
def test_with_nothing_left_out_it_is_the_exported_graph(
    file: str, run: RunDirectory, variants: dict[str, Variants]
) -> None:
    exported = read_graph(run.onnx / file)
    built = variants[file].without(())
    assert built.SerializeToString(deterministic=True) == exported.SerializeToString(deterministic=True)


@pytest.mark.parametrize("file", FILES)
def test_with_nothing_in_it_answers_as_the_float_graph(
    file: str, run: RunDirectory, variants: dict[str, Variants]
) -> None:
    empty = variants[file].only(())
    assert not _operators(empty) & {QUANTIZE, DEQUANTIZE}
    probe = variants[file].artifact.probe
    assert probe is not None
    meter, states = Meter(8, 1, SILENT), states_of(probe, 2)
    np.testing.assert_array_equal(
        meter.outputs(empty, states), meter.outputs(read_graph(run.float_onnx), states)
    )


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_exactly_the_sites_asked_for_are_quantized(
    data: st.DataObject, variants: dict[str, Variants]
) -> None:
    signed = variants["int8.onnx"]
    every = [site for module in signed.modules for site in signed.sites_of(module)]
    wanted = data.draw(st.sets(st.sampled_from(every)))
    assert quantized_sites(signed.only(wanted)) == wanted


def test_an_output_can_be_quantized_alone(variants: dict[str, Variants]) -> None:
    cpu = variants["int8.cpu.onnx"]
    sites = next(s for s in map(cpu.sites_of, cpu.modules) if len(s) == 3)
    graph = cpu.only(sites[2:])
    assert quantized_sites(graph) == {sites[2]}
    assert sum(node.op_type == QUANTIZE for node in graph.graph.node) == 1


@pytest.mark.parametrize("file", FILES)
def test_a_reader_of_a_shared_tensor_may_stay_float(file: str, variants: dict[str, Variants]) -> None:
    queries = [m for m in variants[file].modules if m.endswith("to_q")]
    graph = variants[file].without(queries[:1])
    keys = queries[0].replace("to_q", "to_k")
    held = {str(site) for site in quantized_sites(graph)}
    assert f"{keys}:input" in held
    assert f"{queries[0]}:input" not in held
