"""A recipe is data: a function that a file names as its model is not run, and what the user's own does is hers."""

from __future__ import annotations

from pathlib import Path

import pytest

from gacq_deploy.errors import UsageError
from gacq_deploy.export.stage import export_onnx
from gacq_deploy.inspection.commands import words_for
from gacq_deploy.models.source import find_source
from gacq_deploy.recipe.load import load_recipe
from gacq_deploy.recipe.sections import ModelSection, Recipe
from gacq_deploy.run_directory import RunDirectory

MADE = "tests.support.models.odd_family:make_pipeline"


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe whose model is a module that leaves a trace when it is imported."""
    (tmp_path / "trap.py").write_text(
        "from pathlib import Path\nPath(__file__).with_name('sprung').touch()\ndef make(): raise KeyError('gone')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "schema: gacq-deploy/recipe/1\nname: x\nmodel: {source: 'python:trap:make'}\n"
        "quantization: {rules: [{match: '*', bits: 8}]}\n"
    )
    return recipe


def test_a_function_that_a_recipe_names_is_not_imported(trap: Path) -> None:
    for section in (
        load_recipe(trap).model,
        load_recipe(trap, ["samples.steps=3"], samples={"seed": 1}, model={"classes": 2}).model,
        load_recipe(trap).model.model_copy(update={"classes": 3}),
    ):
        with pytest.raises(UsageError, match="Code that a file names is not run") as caught:
            find_source(section)
        assert "--allow-python" in caught.value.hint
    assert not trap.with_name("sprung").exists()


@pytest.mark.parametrize(
    "named",
    [
        lambda trap: load_recipe(trap, ["model.source=python:trap:make"]),
        lambda trap: load_recipe(trap, ["model={source: 'python:trap:make'}"]),
        lambda trap: load_recipe(trap, model={"source": "python:trap:make"}),
        lambda trap: load_recipe(trap).allowing_python(),
    ],
)
def test_one_that_the_caller_names_is(named: object, trap: Path) -> None:
    recipe: Recipe = named(trap)  # type: ignore[operator]
    assert load_recipe(trap).document() == recipe.document(), "consent is no part of the recipe"
    with pytest.raises(UsageError, match=r"failed at .*trap.py:3: KeyError: 'gone'"):
        find_source(recipe.model)


def test_a_run_directory_that_somebody_sent_runs_nothing(trap: Path) -> None:
    run = RunDirectory(trap.parent)
    run.take()
    with pytest.raises(UsageError, match="not run"):
        find_source(run.load_recipe().model)
    assert words_for("graphs", run) == ("export", "--onnx", str(run.root), "--allow-python")
    assert words_for("artifact", run)[-1] == "--allow-python"
    with pytest.raises(Exception, match="manifest is missing"):
        export_onnx(run, allow_python=True)
    assert not trap.with_name("sprung").exists()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise ValueError('no GPU')", "ValueError: no GPU"),
        ("make(1)", "TypeError: make"),
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("raise Exception", "Exception"),
    ],
)
def test_what_the_users_function_raises_is_told_with_its_place(
    code: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    name = f"own_{abs(hash(code))}"
    (tmp_path / f"{name}.py").write_text(f"print('loading')\ndef make():\n    {code}\n")
    with pytest.raises(UsageError, match=rf"failed at .*{name}.py:[13]: {said}"):
        find_source(ModelSection(source=f"python:{name}:make"))
    assert capsys.readouterr().out == "", "standard output holds what was asked for"
    (tmp_path / f"bad_{name}.py").write_text("\ndef make(:\n")
    with pytest.raises(UsageError, match=rf"failed at .*bad_{name}.py:2: SyntaxError"):
        find_source(ModelSection(source=f"python:bad_{name}:make"))


def test_an_error_of_ours_that_it_raises_stays_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "ours.py").write_text(
        "from gacq_deploy.errors import ModelError\ndef make(): raise ModelError('no weights', 'Get some.')\n"
    )
    with pytest.raises(Exception, match="no weights"):
        find_source(ModelSection(source="python:ours:make"))
    assert find_source(ModelSection(source=f"python:{MADE}", component="painter")).pipeline is not None
