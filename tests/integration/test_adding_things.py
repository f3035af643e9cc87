"""What docs/development.md tells one to do to add something is done here, and it works."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from diffusers import DiTTransformer2DModel

from gacq_deploy.errors import ModelError
from gacq_deploy.models import source
from gacq_deploy.models.base import Family
from gacq_deploy.models.dit import DIT
from gacq_deploy.recipe.sections import ModelSection
from tests.support.graphs.graph_sketch import Sketch
from tests.support.models.architectures import save_pipeline, small_dit
from tests.support.programs.added_things import ADDITIONS
from tests.support.programs.edited_checkout import EditedCheckout, rows_of_the_table

TESTED = {"a model family"}
"""Rows of the table with a test below. A family is added by nothing, as the family contract shows with a
pipeline that nobody prepared for; its test here is of the exception."""


def adding(thing: str) -> pytest.MarkDecorator:
    """Give a test the checkout to which this was added."""
    TESTED.add(thing)
    return pytest.mark.parametrize("checkout", [thing], indirect=True)


@pytest.fixture
def checkout(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EditedCheckout]:
    """A checkout with one addition; whatever was touched for it, its row has to name."""
    edited = EditedCheckout(tmp_path / "checkout")
    ADDITIONS[request.param](edited)
    yield edited
    assert not edited.untold(rows_of_the_table()[request.param])


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """A quantized convolution, and an operator that draws random numbers."""
    sketch = Sketch()
    sketch.conv(sketch.pair("x", "a"), "h")
    sketch.node("RandomNormalLike", ["h"], "y", "dice")
    onnx.save(sketch.model(), tmp_path / "graph.onnx")
    return tmp_path / "graph.onnx"


def test_every_row_of_the_table_is_executed_here() -> None:
    assert set(rows_of_the_table()) == TESTED


@adding("a lint rule")
def test_an_added_rule_is_found_by_name(checkout: EditedCheckout, graph: Path) -> None:
    error, warning, nothing = checkout.commands(
        ["lint", graph, "--json"],
        ["lint", graph, "--target", "openvino"],
        ["lint", graph, "--target", "ort-cpu", "--json"],
    )
    assert error.code == 3
    found = [f for f in error.document[0]["findings"] if f["rule"] == "random-operator"]
    assert found == [
        {
            "rule": "random-operator",
            "severity": "error",
            "node": "dice",
            "detail": "RandomNormalLike draws anew in every run",
            "effect": "No two runs agree.",
            "remedy": "Draw the noise outside of the graph.",
        }
    ]
    assert warning.code == 0
    assert "random-operator" in warning.stdout
    assert "Draw the noise outside of the graph." in warning.stdout
    assert "random-operator" not in nothing.stdout


RANGES = """
import json, sys
import torch
from gacq_deploy.quant.prepare import estimate_activation_scales, insert_quantizers
from gacq_deploy.recipe.load import load_recipe
from gacq_deploy.recipe.plan import resolve_plan
from gacq_deploy.spec import Site

torch.manual_seed(0)
model, data = torch.nn.Sequential(torch.nn.Linear(64, 8)), torch.randn(32, 64)
plan = resolve_plan(load_recipe(sys.argv[1]), [Site("0", "weight"), Site("0", "input")])
expected = [2 * x.square().mean(1).sqrt() / 127 for x in (model[0].weight.detach(), data.reshape(1, -1))]
scales = estimate_activation_scales(model, plan, lambda: [model(data)])
layer = insert_quantizers(model, plan, scales)["0"]
print(json.dumps({
    "methods": [entry.range_method for entry in plan],
    "weight": [layer.weight_scale.tolist(), expected[0].tolist()],
    "input": [[scales["0:input"]], expected[1].tolist()],
}))
"""
RECIPE = """schema: gacq-deploy/recipe/1
name: mine
quantization: {{rules: [{{match: "*", bits: 8, range: {range}}}]}}
"""


@adding("a range method")
def test_an_added_range_method_is_chosen_in_a_recipe(checkout: EditedCheckout, tmp_path: Path) -> None:
    ranges = ("{method: spread, deviations: 2}", "{method: wide}", "{method: spread, deviations: 0}")
    files = [str(tmp_path / f"{number}.yaml") for number in range(len(ranges))]
    for file, text in zip(files, ranges, strict=True):
        Path(file).write_text(RECIPE.format(range=text))
    good, misspelt, out_of_range = checkout.commands(*(["recipes", "validate", file] for file in files))
    assert good.code == 0
    assert misspelt.code == out_of_range.code == 2
    assert "'minmax', 'spread'" in misspelt.stderr
    assert "quantization.rules.0.range.deviations: " in out_of_range.stderr
    found = json.loads(checkout.python(RANGES, files[0]))
    assert found["methods"] == ["spread:2", "spread:2"]
    for scales, expected in (found["weight"], found["input"]):
        assert scales == pytest.approx(expected, rel=1e-3)


FAILED = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from gacq_deploy.parity.report import load_report

print(json.dumps([asdict(gate) for gate in load_report(Path(sys.argv[1]) / "parity.json").failed_gates]))
"""


@adding("a parity gate")
def test_an_added_gate_is_part_of_the_verdict(
    checkout: EditedCheckout, run_copy: Path, tmp_path: Path
) -> None:
    lower = tmp_path / "lower.yaml"
    lower.write_text("{budget: {image_psnr_db_min: 1}}")
    measured, rejudged, shown = checkout.commands(
        ["parity", run_copy, "--engine", "ort-cpu", "--threads", "1", "--json"],
        ["parity", run_copy, "--rejudge", lower, "--json"],
        ["report", run_copy],
    )
    assert (measured.code, rejudged.code) == (3, 0), (measured, rejudged)
    failed = json.loads(checkout.python(FAILED, run_copy))
    assert {gate["candidate"] for gate in failed} == {"int8.onnx@ort-cpu", "int8.cpu.onnx@ort-cpu"}
    for gate in failed:
        assert (gate["evidence"], gate["metric"]) == ("budget", "image_psnr_db_min")
        assert 1 < gate["value"] < gate["bound"] == 99
        assert gate["at_least"]
        assert "parity.budget" in gate["advice"]
    assert shown.code == 0
    assert "PSNR of the worst image (dB)" in (run_copy / "report.html").read_text()


@adding("a command")
def test_an_added_command_behaves_like_the_others(
    checkout: EditedCheckout, graph: Path, tmp_path: Path
) -> None:
    listed, own_help, document, table, missing, usage = checkout.commands(
        ["--help"],
        ["census", "--help"],
        ["census", graph, "--json"],
        ["census", graph],
        ["census", tmp_path / "nowhere.onnx", "--json"],
        ["census"],
    )
    assert "  census " in listed.stdout
    assert "Count operators." in listed.stdout
    assert "--json" in own_help.stdout
    assert document.document["DequantizeLinear"] == 2
    assert "RandomNormalLike" in table.stdout
    assert missing.code == missing.document["error"]["exit_code"] == 5
    assert missing.stderr.startswith("Error: ")
    assert usage.code == 2
    assert "`gacq-deploy census --help` lists what it takes." in usage.stderr


@adding("a recipe")
def test_an_added_recipe_is_known_by_name(checkout: EditedCheckout) -> None:
    listed, valid, shown = checkout.commands(
        ["recipes", "list", "--json"],
        ["recipes", "validate", checkout.root / "recipes" / "mine-w8a8.yaml"],
        ["recipes", "show", "mine-w8a8"],
    )
    assert "mine-w8a8" in {recipe["name"] for recipe in listed.document}
    assert (valid.code, shown.code) == (0, 0)


@adding("an engine")
def test_an_engine_added_to_the_catalogue_runs(
    checkout: EditedCheckout, run_copy: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "images.png"
    told, made = checkout.commands(
        ["run", "--help"],
        ["run", run_copy, "--engine", "patient", "-n", "1", "--threads", "1", "-o", picture, "--json"],
    )
    assert "float, patient." in " ".join(told.stdout.split())
    assert made.code == 0, made
    assert "patient onnxruntime" in made.stdout
    assert picture.is_file()


GOLDEN_COPY = """
import json
from pathlib import Path
from gacq_deploy.artifact.artifact import load_artifact

golden = Path("tests/golden")
artifact = load_artifact(golden / "artifact-v1")
artifact.save(golden / "artifact-v2")
sums = {str(site): float(params.scale.sum()) for site, params in artifact.params.items()}
(golden / "expected-artifact-v2.json").write_text(json.dumps(sums))
"""


@adding("a version of the artifact")
def test_an_added_version_of_the_artifact_is_asked_for_its_golden_copy(checkout: EditedCheckout) -> None:
    tests = "tests/unit/artifact/test_golden.py"
    asked = checkout.pytest(tests)
    assert "1 failed, 2 passed" in asked.stdout, asked.stdout
    assert f"FAILED {tests}::test_there_is_a_golden_copy_of_the_current_version" in asked.stdout
    checkout.python(GOLDEN_COPY)
    checkout.touched |= {"tests/golden/artifact-v2/manifest.json", "tests/golden/expected-artifact-v2.json"}
    done = checkout.pytest(tests)
    assert "4 passed" in done.stdout, done.stdout


def test_a_class_without_a_pipeline_takes_a_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the first DiTs were published: under the name of another class."""
    folder = save_pipeline(small_dit(num_layers=1), tmp_path / "model")
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_class_name": "Transformer2DModel"}))
    section = ModelSection(source=str(folder))
    with pytest.raises(ModelError, match="How Transformer2DModel is called was not recorded"):
        source.load_float_denoiser(section)
    family = Family("Transformer2DModel", DIT.describe)
    monkeypatch.setitem(source.FAMILIES, family.name, family)
    denoiser = source.load_float_denoiser(section)
    assert isinstance(denoiser.module, DiTTransformer2DModel)
    inputs = denoiser.example_inputs(2)
    assert denoiser.call_module()(*inputs.values()).shape == np.shape(inputs["sample"])


_ENGINES, _DOCUMENTS = "tests/contract/test_engines.py", "tests/architecture/test_documents.py"
_PAGES = "tests/architecture/test_pages.py"
_REPORT, _LINT = "tests/unit/parity/test_report.py", "tests/unit/lint/test_lint.py"
PICKING_UP = (
    f"{_ENGINES}::test_computes_any_batch[patient-5]",
    f"{_ENGINES}::test_refuses_feeds_that_do_not_fit[patient/bytes-wrong rank]",
    f"{_DOCUMENTS}::test_documented_commands_parse[gacq-deploy census graph.onnx]",
    f"{_LINT}::test_rule_finds_its_pattern[random-operator-tensorrt]",
    f"{_REPORT}::test_every_gate_can_fail[bad-budget-image_psnr_db_min]",
    f"{_REPORT}::test_a_failed_gate_says_what_it_is_and_what_to_do[mixed-image_psnr_db_min]",
    "tests/unit/recipe/test_load.py::test_every_builtin_recipe_loads_and_says_what_it_is[mine-w8a8]",
)
"""Tests that run over all there are, each with an addition."""
ASKING = (
    "tests/architecture/test_contracts.py::test_every_module_stands_in_the_layers",
    "tests/architecture/test_imports.py::test_help_loads_nothing_heavy",
    f"{_DOCUMENTS}::test_every_place_that_a_document_names_exists[docs/development.md]",
    f"{_DOCUMENTS}::test_the_documents_show_the_whole_chain",
    f"{_PAGES}::test_a_generated_page_is_what_the_generator_gives",
    f"{_PAGES}::test_every_command_has_a_row",
    f"{_PAGES}::test_every_engine_has_a_row",
    f"{_PAGES}::test_models_take_the_recipes_that_their_rows_say",
    f"{_LINT}::test_every_rule_and_each_of_its_targets_is_known",
    _REPORT,
    "tests/unit/engines/test_catalogue.py",
    "tests/unit/recipe/test_load.py",
    "tests/unit/report/test_verdict.py",
)
"""Tests that hold one table against another, and ask for what an addition lacks."""


def test_the_other_tests_take_all_additions_and_ask_for_no_more(tmp_path: Path) -> None:
    checkout = EditedCheckout(tmp_path / "checkout")
    for thing, add in ADDITIONS.items():
        if thing != "a version of the artifact":  # asked for its golden copy above
            add(checkout)
    checkout.make_docs()
    done = checkout.pytest(*PICKING_UP, *ASKING)
    assert done.returncode == 0, done.stdout + done.stderr
