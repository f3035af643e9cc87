"""What the build's table says of INT8 layers, and of INT4 weights beside or instead of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gacq_deploy_cli.build_trt import coverage_text, next_step, plan_text, size_lines

WEIGHTS = {"weight_only": {"planned": 7, "int4": 6}}


@pytest.mark.parametrize(
    ("coverage", "text"),
    [
        (None, "float baseline"),
        ({"planned": 4, "int8": 3, "share": 0.75}, "3 of 4 planned layers (75.0%)"),
        (
            {"planned": 4, "int8": 4, "share": 1.0, **WEIGHTS},
            "4 of 4 planned layers (100.0%); INT4 weights alone: 6 of 7 layers",
        ),
        ({"planned": 0, "int8": 0, "share": 1.0, **WEIGHTS}, "INT4 weights alone: 6 of 7 layers"),
    ],
)
def test_int4_weights_are_told_apart_from_int8_layers(coverage: dict[str, Any] | None, text: str) -> None:
    assert coverage_text(coverage) == text


@pytest.mark.parametrize(
    ("library", "plan", "is_said"),
    [("tensorrt-rtx", 5000, True), ("tensorrt-rtx", 10, False), ("tensorrt", 5000, False)],
)
def test_a_plan_larger_than_its_graph_is_explained(
    tmp_path: Path, library: str, plan: int, is_said: bool
) -> None:
    graph = tmp_path / "int8.onnx"
    graph.write_bytes(bytes(1000))
    record: Any = SimpleNamespace(
        files={"engine.plan": SimpleNamespace(bytes=plan)}, inputs=SimpleNamespace(library=library)
    )
    lines = list(size_lines(record, graph))
    assert [("int8.onnx (1.0 kB)" in line and "source text" in line) for line in lines] == [True] * is_said


def _built(*capabilities: str) -> Any:
    record = SimpleNamespace(
        files={"engine.plan": SimpleNamespace(bytes=14_400_000)},
        inputs=SimpleNamespace(options=SimpleNamespace(compute_capabilities=capabilities), device=None),
        coverage={"planned": 48, "int8": 48, "share": 1.0},
    )
    return SimpleNamespace(record=record)


@pytest.mark.parametrize(
    ("capabilities", "where"), [((), "any GPU of this library (portable)"), (("8.6", "8.9"), "8.6, 8.9")]
)
def test_the_last_sentence_says_what_the_plan_is(capabilities: tuple[str, ...], where: str) -> None:
    assert plan_text([_built(*capabilities)]) == (
        f"plan for {where}: 14.4 MB, 48 of 48 planned layers (100.0%)."
    )


def test_a_plan_is_judged_where_it_can_run() -> None:
    proved: Any = SimpleNamespace()
    assert str(next_step(Path("my run"), proved)) == "Next: gacq-deploy bench 'my run'"
    assert str(next_step(Path("my run"), None)) == (
        "Next, on a machine with such a GPU, with a copy of this folder:\n    gacq-deploy parity 'my run'"
    )
