from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from onnx import numpy_helper

from gacq_deploy.backends import processor, saturation
from gacq_deploy.backends.processor import adds_pairs_in_16_bits, this_processor
from gacq_deploy.backends.saturation import (
    OverflowingLayer,
    overflow,
    overflowing_layers,
    pairs_of,
)
from gacq_deploy.engines.catalogue import engine_named
from gacq_deploy.engines.open import open_engine
from gacq_deploy.errors import BackendUnavailable
from tests.support.graphs.onnx_graphs import denoiser_graph, feeds
from tests.support.graphs.qdq_graphs import int4_blocks
from tests.support.graphs.saturating import (
    CASES,
    SAFE,
    UNSAFE,
    Layer,
    cap_openvino,
    clamped_sums,
    is_wrong_somewhere,
    of_channels,
)
from tests.support.programs.commands import child_environment

VNNI = processor.Processor("x86_64", "New Xeon", frozenset({"avx2", "avx512_vnni"}))
PLAIN = processor.Processor("x86_64", "Old Xeon", frozenset({"avx2"}))
WEIGHTS = arrays(np.int16, (2, 6), elements=st.integers(-127, 127))
ACTIVATIONS = arrays(np.uint8, (3, 6), elements=st.integers(0, 255))


@given(WEIGHTS, ACTIVATIONS)
def test_weights_that_pass_are_exact_for_any_activations(
    weights: NDArray[np.int16], activations: NDArray[np.uint8]
) -> None:
    pairs = pairs_of(weights)
    safe = np.where(overflow(pairs)[:, None], pairs // 2, pairs).reshape(weights.shape)
    exact = activations.astype(np.int64) @ safe.astype(np.int64).T
    np.testing.assert_array_equal(clamped_sums(activations, safe), exact)


@given(WEIGHTS)
def test_weights_that_do_not_pass_are_wrong_for_some_activations(weights: NDArray[np.int16]) -> None:
    pairs = pairs_of(weights)
    for pair in pairs[overflow(pairs)]:
        worst = np.stack([np.where(pair * sign > 0, 255, 0) for sign in (1, -1)]).astype(np.uint8)
        exact = worst.astype(np.int64) @ pair.astype(np.int64)
        assert (clamped_sums(worst, pair[None])[:, 0] != exact).any()


@pytest.mark.parametrize("layer", CASES, ids=str)
@pytest.mark.parametrize("pattern", [*SAFE, *UNSAFE], ids=str)
def test_a_graph_is_judged_by_its_codes(layer: Layer, pattern: tuple[int, ...]) -> None:
    found = overflowing_layers(of_channels(layer, pattern).graph().SerializeToString())
    assert bool(found) == (pattern in UNSAFE or is_wrong_somewhere(layer, pattern))
    assert [f.name for f in found] == ["codes"] * len(found)


def test_the_pairs_that_overflow_are_counted() -> None:
    codes = np.zeros((4, 6), np.int8)
    codes[1, 2:4], codes[2, :2], codes[3, 1:3] = (100, 29), (-127, -2), (127, 127)
    (found,) = overflowing_layers(Layer("Gemm", codes).graph().SerializeToString())
    assert found == OverflowingLayer("codes", 2, 12)
    assert overflowing_layers(Layer("MatMul", codes).graph().SerializeToString()) == ()
    assert str(found) == "codes (2 of 12 pairs)"


def test_zero_points_are_taken_off_first() -> None:
    model = Layer("MatMul", np.zeros((4, 4), np.int8)).graph()
    for tensor in model.graph.initializer:
        if tensor.name == "codes":
            tensor.CopyFrom(numpy_helper.from_array(np.full((4, 4), 192, np.uint8), "codes"))
        if tensor.name == "weight_zero":
            tensor.CopyFrom(numpy_helper.from_array(np.array([128, 127, 128, 100], np.uint8), "weight_zero"))
    (found,) = overflowing_layers(model.SerializeToString())
    assert (found.pairs, found.of) == (4, 8)


def test_codes_without_a_zero_point_and_codes_of_four_bits() -> None:
    model = of_channels(CASES[0], UNSAFE[0]).graph()
    for node in model.graph.node:
        if node.output[0] == "w":
            del node.input[2]
    assert overflowing_layers(model.SerializeToString())
    assert overflowing_layers(int4_blocks(32).SerializeToString()) == ()


def test_codes_in_a_file_of_their_own_are_read(tmp_path: Path) -> None:
    model = of_channels(CASES[0], UNSAFE[0]).graph()
    inside = overflowing_layers(model.SerializeToString())
    path = tmp_path / "int8.onnx"
    onnx.save_model(model, str(path), save_as_external_data=True, location="int8.data", size_threshold=0)
    assert overflowing_layers(path) == inside


def test_an_engine_is_refused_with_reason_and_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    cap_openvino(monkeypatch)
    for module in (processor, saturation):
        monkeypatch.setattr(module, "this_processor", lambda: VNNI)
    data = denoiser_graph(quantized=True, bits=8).SerializeToString()
    assert engine_named("ort-cpu").why_unfit(data) is None
    with pytest.raises(BackendUnavailable) as caught:
        open_engine("openvino", data, threads=1)
    assert "openvino would compute this graph wrong here" in caught.value.message
    assert "ONEDNN_MAX_CPU_ISA=AVX2" in caught.value.message
    assert "pairs of weights in 2 layers" in caught.value.message
    assert "first conv (" in caught.value.message
    assert "ort-cpu" in caught.value.hint
    assert "unset ONEDNN_MAX_CPU_ISA" in caught.value.hint
    with open_engine("ort-cpu", data, threads=1) as engine:
        engine.run(feeds(1))
    engine_named("openvino").require_fit(denoiser_graph().SerializeToString())


def test_without_a_cap_it_is_the_processor_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    for module in (processor, saturation):
        monkeypatch.setattr(module, "this_processor", lambda: PLAIN)
    with pytest.raises(BackendUnavailable, match="kernels on Old Xeon add") as caught:
        engine_named("openvino").require_fit(denoiser_graph(quantized=True, bits=8).SerializeToString())
    assert "a processor with VNNI" in caught.value.hint
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")
    assert "a processor with VNNI" in saturation.remedy(), "without the cap it would be no better"
    safe = of_channels(CASES[0], SAFE[0]).graph().SerializeToString()
    engine_named("openvino").require_fit(safe)


@pytest.fixture(scope="module")
def narrow() -> dict[str, dict[str, Any]]:
    """What OpenVINO's kernels without VNNI make of every layer, in processes of their own."""
    found: dict[str, dict[str, Any]] = {}
    for cap in ("AVX2", "AVX512_CORE"):
        done = subprocess.run(
            [sys.executable, "-m", "tests.support.graphs.saturating"],
            env=child_environment({"ONEDNN_MAX_CPU_ISA": cap}),
            capture_output=True,
            text=True,
            check=True,
        )
        found[cap] = json.loads(done.stdout)
    return found


def test_openvino_without_vnni_is_wrong_where_it_is_refused_and_only_there(
    narrow: dict[str, dict[str, Any]],
) -> None:
    without_avx512 = "avx512f" not in this_processor().flags
    for name, case in narrow["AVX2"].items():
        other = narrow["AVX512_CORE"][name]
        exact = np.logical_and(case["exact"], other["exact"])
        assert case["judged safe"] is other["judged safe"]
        # whatever it is judged; transposed convolutions have integer kernels on processors with AVX-512 alone
        in_float = name.startswith("ConvTranspose" if without_avx512 else "ConvTranspose 16x8x3x3 groups 2")
        if case["judged safe"] or in_float:
            assert exact.all(), name
        else:
            assert not exact.any() if name.endswith("unsafe") else not exact.all(), name


def test_openvino_without_vnni_clamps_sums_of_pairs(narrow: dict[str, dict[str, Any]]) -> None:
    """Its products are those of the NumPy reference, bit for bit: these are the kernels of a processor without VNNI."""
    for cases in narrow.values():
        assert all(case["clamped"] for case in cases.values())
        products = [case for name, case in cases.items() if name.startswith(("Gemm", "MatMul"))]
        assert [any(case["exact"]) for case in products] == [True, False, True, False]


def test_openvino_here_is_exact_unless_its_kernels_are_judged_not_to_be() -> None:
    layer = of_channels(CASES[0], UNSAFE[0])
    data = layer.graph().SerializeToString()
    exact = not adds_pairs_in_16_bits()
    with (
        open_engine("ort-cpu", data, threads=1, optimize=False) as plain,
        open_engine("openvino", data, threads=1, allow_inexact=True) as opened,
    ):
        for x in layer.inputs():
            assert np.array_equal(opened.run({"x": x})["y"], plain.run({"x": x})["y"]) is exact
