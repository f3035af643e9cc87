from __future__ import annotations

import re
from pathlib import Path

import gacq_deploy.report
from gacq_deploy.artifact.diagnostics import ERROR_STAGES
from gacq_deploy.report.colours import COLOURS, GRAPHS, graph_colour, stage_colour


def test_every_graph_in_every_engine_and_every_stage_has_a_colour_of_its_own() -> None:
    own = [*map(graph_colour, GRAPHS), *map(stage_colour, ERROR_STAGES)]
    assert sorted(own) == list(range(COLOURS))


def test_a_variant_has_the_colour_of_its_graph() -> None:
    for name in ("int8.cpu.onnx@ort-cpu", "int8.onnx@tensorrt"):
        assert graph_colour(f"{name} batch 8") == graph_colour(f"{name} mixed") == graph_colour(name)


def test_an_engine_of_another_package_keeps_its_colour() -> None:
    assert graph_colour("int8.onnx@mine") == graph_colour("int8.onnx@mine") < len(GRAPHS)


def test_the_style_sheet_knows_every_colour_in_light_and_dark() -> None:
    style = (Path(gacq_deploy.report.__file__).parent / "template" / "page.css").read_text(encoding="utf-8")
    for number in range(COLOURS):
        assert len(re.findall(rf"--s{number}: #", style)) == 2
        assert f".line.s{number} {{ stroke: var(--s{number})" in style
        assert f".dot.s{number}" in style


def test_lines_of_one_chart_differ_in_their_dashes_too() -> None:
    style = (Path(gacq_deploy.report.__file__).parent / "template" / "page.css").read_text(encoding="utf-8")
    dashes = dict(re.findall(r"\.line\.s(\d+) {[^}]*stroke-dasharray: ([\d ]+);", style))
    for names in (map(graph_colour, GRAPHS), map(stage_colour, ERROR_STAGES)):
        drawn = [dashes.get(str(number), "solid") for number in names]
        assert len(set(drawn)) == len(drawn)
