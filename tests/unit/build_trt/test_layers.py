"""What the compiler made of each node, read from its dump."""

from __future__ import annotations

import json

import pytest

from gacq_deploy.build_trt.layers import document, from_document, int8_nodes, read_inspection, read_log


def tensor(name: str, kind: str) -> str:
    shape = "Dimensions: [-1,8], Strides: [8,1], StrideOrder: [1,0]"
    return f"{{ Name: {name}, {shape}, Datatype: {kind}, Format: (Linear) Row major linear format }}"


def line(name: str, kind: str, inputs: list[str], constants: list[str], nodes: list[str]) -> str:
    listed = [", ".join(tensor(f"t{i}", k) for i, k in enumerate(kinds)) for kinds in (inputs, constants)]
    metadata = "".join(f"[ONNX Layer: {n}]" for n in nodes)
    return (
        f"Name: {name}, LayerType: {kind}, Inputs: [ {listed[0]}], Constants: [ {listed[1]}], "
        f"Outputs: [ {tensor('y', 'Half')}], TacticName: stub, StreamId: 0, Metadata: {metadata}"
    )


LOG = [
    "INFO\tsomething before",
    "VERBOSE\tLayers:",
    line("conv_myl0_1", "correlation", ["Int8"], ["Int8", "Float"], ["conv", "conv:input/DequantizeLinear"]),
    line("q+k+v_myl0_2", "gemm", ["Int8"], ["Int8"], ["to_q", "to_k", "to_v"]),
    line("fallback_myl0_3", "correlation", ["Int8", "Half"], [], ["lost"]),
    line("CastMulCastFc_myl0_4", "runtime_fusion", ["Int8"], ["Int8"], ["fused"]),
    line("half_myl0_5", "gemm", ["Half"], ["Half"], ["plain"]),
    line("bmm_myl0_6", "gemm", ["Int8", "Int8"], [], ["attention"]),
    "",
    "Bindings:",
    " Name: sample, LayerType: not a layer, IOMode: Input",
    "VERBOSE\tAdding 1 engine(s) to plan file.",
]


def test_the_dump_is_read_and_nothing_around_it() -> None:
    layers = read_log(LOG)
    assert [layer.name for layer in layers] == [
        "conv_myl0_1", "q+k+v_myl0_2", "fallback_myl0_3", "CastMulCastFc_myl0_4", "half_myl0_5", "bmm_myl0_6",
    ]  # fmt: skip
    assert layers[0].inputs == ("Int8",)
    assert layers[0].constants == ("Int8", "Float")
    assert layers[0].outputs == ("Half",)
    assert layers[1].nodes == ("to_q", "to_k", "to_v")


def test_only_a_product_of_int8_data_and_int8_weights_counts() -> None:
    layers = read_log(LOG)
    assert [layer.int8 for layer in layers] == [True, True, False, False, False, False]
    assert [layer.int8_product for layer in layers] == [False] * 5 + [True]
    assert int8_nodes(layers) == {"conv", "conv:input/DequantizeLinear", "to_q", "to_k", "to_v"}


def test_a_log_without_a_dump_has_no_layers() -> None:
    assert read_log(["INFO\tnothing", "Bindings:"]) == ()


def test_records_come_back_from_json() -> None:
    layers = read_log(LOG)
    assert from_document(json.loads(json.dumps(document(layers)))) == layers


def test_the_inspectors_json_is_read_by_the_same_rule() -> None:
    cask = {
        "Name": "conv", "LayerType": "CaskConvolution",
        "Inputs": [{"Name": "x", "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}],
        "Outputs": [{"Name": "y", "Format/Datatype": "Row major linear FP16 format"}],
        "Weights": {"Type": "Int8", "Count": 9}, "TacticName": "sm80_i8816", "Metadata": "[ONNX Layer: conv]",
    }  # fmt: skip
    myelin = {
        "Name": "fc", "LayerType": "gemm", "Inputs": [{"Datatype": "Half"}], "Constants": [{"Datatype": "Half"}],
        "Outputs": [{"Datatype": "Half"}], "Metadata": "[ONNX Layer: fc]",
    }  # fmt: skip
    layers = read_inspection(json.dumps({"Layers": [cask, myelin, "a name only"]}))
    assert int8_nodes(layers) == {"conv"}
    assert layers[0].outputs == ("Half",)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"Layers": 7}', "null"])
def test_an_inspection_without_layers_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"Layers|Expecting value"):
        read_inspection(text)
