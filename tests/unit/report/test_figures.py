from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.stats import spearmanr

from gacq_deploy.artifact.diagnostics import Diagnostics
from gacq_deploy.parity.report import ParityReport, assemble, measured
from gacq_deploy.recipe.sections import ParitySection
from gacq_deploy.report.colours import graph_colour
from gacq_deploy.report.figures import (
    BINS,
    MOST_PANELS,
    alignment_bins,
    bucket_error_figure,
    default_stage,
    even_sentence,
    even_table,
    is_uniform,
    spearman,
    stage_error_figure,
    stage_panels,
    stage_table,
    trajectory_figure,
    weight_quantiles,
)
from tests.support.artifacts.diagnostics import example_diagnostics


def _parity(by_step: object) -> ParityReport:
    rows = [
        {"bucket": 0, "timestep_max": 999, "timestep_min": 500, "sqnr_db": 40.0, "cosine": 0.999},
        {"bucket": 1, "timestep_max": 499, "timestep_min": 0, "sqnr_db": None, "cosine": None},
    ]
    comparison = measured("budget", "float.onnx@ort-cpu", "int8.onnx@openvino", {}, by_timestep=rows)
    return assemble(
        (comparison,), ParitySection(), trajectory={"by_step": by_step}, noise_floor={}, subject={}
    )


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(-3, 3)), min_size=2, max_size=40))
def test_spearman_is_that_of_scipy(pairs: list[tuple[int, int]]) -> None:
    a, b = (np.array(values, float) for values in zip(*pairs, strict=True))
    found = spearman(a, b)
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        assert found is None
    else:
        assert found == pytest.approx(float(spearmanr(a, b).statistic))


@given(st.integers(1, 300))
def test_bins_hold_the_samples_in_the_order_of_their_weight(count: int) -> None:
    rng = np.random.default_rng(count)
    weights = rng.permutation(count).astype(np.float32)
    means = alignment_bins(weights, weights / count)
    assert means.size == min(BINS, count)
    assert bool(np.all(np.diff(means) > 0))


def test_quantiles_are_those_of_the_rows_of_a_timestep() -> None:
    timesteps = np.array([10, 900, 10, 900, 10], np.int64)
    spread = weight_quantiles(timesteps, np.array([1, 5, 2, 7, 3], np.float32))
    assert spread.x.tolist() == [900, 10]
    assert spread.quantiles[:, 1].tolist() == [1, 1.5, 2, 2.5, 3]


def test_the_polish_is_shown_first() -> None:
    panels = stage_panels(example_diagnostics())
    assert [panel.stage for panel in panels if panel.chosen] == ["polish"]
    assert [len(panel.figures) for panel in panels] == [5] * len(panels)


def test_without_a_polish_the_last_stage_that_learned_is_shown_first() -> None:
    learned = example_diagnostics(polish=False)
    even = example_diagnostics(polish=False, mode="uniform", blocks=("late",))
    stages = (*learned.stages, replace(even.stages[0], weights=np.ones(120, np.float32)))
    assert default_stage(stages) == learned.stages[-1].stage
    assert default_stage(even.stages) == "late"
    assert default_stage(()) == ""


def test_uniform_stages_have_no_weights_to_draw() -> None:
    uniform = example_diagnostics(mode="uniform")
    assert all(is_uniform(stage) for stage in uniform.stages)
    assert stage_panels(uniform) == ()
    assert stage_table(uniform) is None
    assert even_sentence(uniform) == "In all 4 stages every sample counts the same: they learned no weights."
    assert even_sentence(example_diagnostics()) == ""
    cosines = example_diagnostics().stages[0].cosine_before
    seen = replace(uniform, stages=tuple(replace(s, cosine_before=cosines) for s in uniform.stages))
    assert stage_table(seen) is None
    table = even_table(seen)
    assert table is not None
    assert (len(table.rows), [column.name for column in table.columns]) == (
        4,
        ["stage", "cosine before", "cosine after"],
    )
    assert all(
        [figure.title for figure in panel.figures] == ["Gradient cosines before the stage"]
        for panel in stage_panels(seen)
    )


def test_meta_iterations_are_drawn_where_something_was_learned() -> None:
    learned = example_diagnostics().stages[-1]
    one = replace(learned, trace={key: values[:1] for key, values in learned.trace.items()})
    for stage, count in ((learned, 20), (one, 1)):
        [panel] = stage_panels(replace(example_diagnostics(), stages=(stage,)))
        drawn = panel.figures[-1]
        assert drawn.title == "Learning the weights"
        assert drawn.caption.startswith(f"{count} meta iterations: loss ")
        assert drawn.numbers is not None
        assert [c.name for c in drawn.numbers.columns] == ["iteration", "loss", "cosine", "ratio"]
        assert len(drawn.numbers.rows) == count
    [panel] = stage_panels(replace(example_diagnostics(), stages=(replace(learned, trace={}),)))
    assert "Learning the weights" not in {figure.title for figure in panel.figures}


def test_stages_that_learned_no_weights_take_no_rows() -> None:
    learned, even = example_diagnostics(), example_diagnostics(mode="uniform", blocks=("late",), polish=False)
    both = replace(learned, stages=(*even.stages, *learned.stages))
    table = stage_table(both)
    assert table is not None
    assert len(table.rows) == len(learned.stages) == len(stage_panels(both))
    assert even_sentence(both).startswith("In 1 of 5 stages every sample counts the same")


def test_very_many_stages_stand_in_the_table_alone() -> None:
    many = example_diagnostics(blocks=[f"block.{i}" for i in range(40)], trajectories=2)
    panels = stage_panels(many)
    assert len(panels) == MOST_PANELS
    assert "polish" in {panel.stage for panel in panels}
    table = stage_table(many)
    assert table is not None
    assert len(table.rows) == 41


def test_the_stage_table_says_how_gradients_agree() -> None:
    table = stage_table(example_diagnostics())
    assert table is not None
    row = dict(zip([c.name for c in table.columns], table.rows[-1], strict=True))
    before, after = row["cosine before"].number, row["cosine after"].number
    assert before is not None
    assert after is not None
    assert before < after
    assert 0 < (row["of all"].number or 0) <= 1


def test_errors_of_the_stages_that_ran_are_drawn() -> None:
    both = stage_error_figure(example_diagnostics())
    assert both is not None
    assert both.numbers is not None
    assert [c.name for c in both.numbers.columns] == [
        "timestep",
        "nearest dB",
        "reconstruction dB",
        "polish dB",
    ]
    assert "polish" in both.svg
    assert "output SQNR gained after nearest (dB)" in both.svg
    without = stage_error_figure(example_diagnostics(polish=False))
    assert without is not None
    assert "polish" not in without.svg
    nearest = {"nearest": example_diagnostics().error_sqnr_db["nearest"]}
    alone = stage_error_figure(replace(example_diagnostics(), error_sqnr_db=nearest))
    assert alone is not None
    assert "output SQNR (dB)" in alone.svg  # nothing to gain on


def test_no_measured_errors_give_no_figure() -> None:
    diagnostics: Diagnostics = replace(
        example_diagnostics(), error_timesteps=np.zeros(0, np.int64), error_sqnr_db={}
    )
    assert stage_error_figure(diagnostics) is None


def test_engines_are_drawn_with_their_gate() -> None:
    drawn = bucket_error_figure(_parity({}))
    assert drawn is not None
    assert "int8 openvino" in drawn.svg
    assert "20 dB" in drawn.caption
    assert drawn.numbers is not None
    assert drawn.numbers.rows[1][2].text == "-"


def test_trajectories_are_drawn_step_by_step() -> None:
    steps = [{"timestep": 900, "mean": 1.0, "min": 1.0}, {"timestep": 5, "mean": 0.999, "min": 0.9}]
    drawn = trajectory_figure(
        _parity({"int8.onnx@ort-cpu": [*steps, {"timestep": None, "mean": 1, "min": 1}]})
    )
    assert drawn is not None
    assert drawn.numbers is not None
    assert len(drawn.numbers.rows) == 2


def test_a_report_without_trajectories_gives_no_figure() -> None:
    assert trajectory_figure(_parity({})) is None


@pytest.mark.parametrize("found", [[], {"a": 3}, {"a": [{"timestep": "soon"}]}], ids=str)
def test_something_else_than_trajectories_is_no_report(found: object) -> None:
    with pytest.raises(ValidationError, match=r"trajectory\s+by_step"):
        _parity(found)


def test_a_graph_has_one_colour_whatever_stands_beside_it() -> None:
    first, second = "int8.cpu.onnx@ort-cpu", "int8.onnx@openvino"
    steps = [{"timestep": 900, "mean": 1.0, "min": 1.0}, {"timestep": 5, "mean": 0.999, "min": 0.9}]
    colours = []
    for order in ((first, second), (second, first)):
        drawn = trajectory_figure(_parity(dict.fromkeys(order, steps)))
        buckets = bucket_error_figure(_parity({}))
        assert drawn is not None
        assert buckets is not None
        lines = [e.attrib["class"] for e in ET.fromstring(drawn.svg).iter("polyline")]
        colours.append(lines[:2])
        assert f'"line s{graph_colour(second)}"' in buckets.svg
    assert colours[0] == colours[1] == [f"line s{graph_colour(name)}" for name in (first, second)]
