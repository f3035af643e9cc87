"""Recipes are validated with file and line; rules resolve deterministically, the last match wins."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gacq_deploy.errors import RecipeError
from gacq_deploy.recipe import builtin_recipes, load_recipe, parse_recipe, resolve_plan
from gacq_deploy.spec import Site

HEAD = "schema: gacq-deploy/recipe/1\nname: x\nquantization:\n  rules:\n"
BASE = HEAD + "    - {match: '*', bits: 8}\n"


def sites(*modules: str) -> list[Site]:
    return [Site(m, r) for m in modules for r in ("weight", "input")]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(builtin_recipes()))
def test_every_builtin_recipe_loads_and_says_what_it_is(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert len(recipe.description) > 40


def test_the_builtin_recipes_are_there() -> None:
    assert {"fashion-w8a8", "fashion-w4a8"} <= set(builtin_recipes())


@pytest.mark.parametrize(
    ("text", "line", "fragment"),
    [
        (BASE + "calibration:\n  reconstruction:\n    iteratons: 3\n", 8, "iteratons: Extra inputs"),
        (BASE + "samples:\n  steps: 0\n", 7, "greater than or equal to 1"),
        (BASE + "samples:\n  seed: many\n", 7, "valid integer"),
        (HEAD + "    - {match: '*', bits: 9}\n", 5, "less than or equal to 8"),
        (HEAD + "    - {match: '*', bits: 8}\n    - {match: a}\n", 6, "needs 'bits' or 'ignore: true'"),
        (
            HEAD + "    - {match: '*', bits: 8, range: {method: magic}}\n",
            5,
            "does not match any of the expected",
        ),
        (BASE + "nonsense: 1\n", 6, "nonsense: Extra inputs"),
        (BASE + "samples: [\n", 7, "not valid YAML"),
        (BASE + "schema: gacq-deploy/recipe/1\n", 6, "duplicate key 'schema'"),
        (BASE.replace("recipe/1", "recipe/9"), 1, "schema: Input should be 'gacq-deploy/recipe/1'"),
    ],
)
def test_errors_name_file_and_line(text: str, line: int, fragment: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, origin="my.yaml")
    assert f"my.yaml:{line}" in caught.value.message
    assert fragment in caught.value.message


@pytest.mark.parametrize("text", ["", "- 1\n", "7", "!!python/object/apply:os.system ['true']"])
def test_what_is_not_a_mapping_is_refused(text: str) -> None:
    with pytest.raises(RecipeError):
        parse_recipe(text, origin="my.yaml")


def test_a_missing_recipe_lists_the_builtin_ones() -> None:
    with pytest.raises(RecipeError, match="neither a built-in recipe nor a file") as caught:
        load_recipe("no-such-recipe")
    assert "fashion-w8a8" in caught.value.hint


def test_overrides_pass_the_same_validation() -> None:
    recipe = parse_recipe(
        BASE, origin="x", overrides=["samples.steps=7", "calibration.reconstruction.lr_scale=1e-4"]
    )
    assert recipe.samples.steps == 7
    assert recipe.calibration.reconstruction.lr_scale == 1e-4
    for bad in ("samples.steps=0", "samples.stepz=1", "samples.steps", "name.x=1", "=3", "samples.steps.x=1"):
        with pytest.raises(RecipeError, match="--set"):
            parse_recipe(BASE, origin="x", overrides=[bad])


@pytest.mark.parametrize("key", ["samples.seed", "calibration.seed", "parity.seed", "parity.probe.seed"])
@pytest.mark.parametrize("seed", [-1, 2**31, 10**25])
def test_seeds_no_generator_takes_are_refused(key: str, seed: int) -> None:
    with pytest.raises(RecipeError, match=f"--set {key}"):
        parse_recipe(BASE, origin="x", overrides=[f"{key}={seed}"])


def test_a_saved_recipe_is_the_same_recipe(tmp_path: Path) -> None:
    recipe = load_recipe("fashion-w4a8", ["samples.seed=5"])
    recipe.save(tmp_path / "recipe.yaml")
    assert parse_recipe((tmp_path / "recipe.yaml").read_text(), origin="saved") == recipe


def test_gates_do_not_change_what_calibration_learns() -> None:
    plain, gated = (
        load_recipe("fashion-w8a8"),
        load_recipe("fashion-w8a8", ["parity.budget.image_psnr_db=10"]),
    )
    other = load_recipe("fashion-w8a8", ["calibration.seed=1"])
    assert plain.calibration_digest == gated.calibration_digest != other.calibration_digest
    assert plain.digest != gated.digest


def test_the_last_matching_rule_wins() -> None:
    text = HEAD + (
        "    - {match: '*', bits: 8}\n    - {match: '*', role: weight, bits: 4}\n    - {match: 'b*', ignore: true}\n"
        "    - {match: 'bc', bits: 6, range: {method: percentile, percentile: 99}}\n"
    )
    plan = resolve_plan(parse_recipe(text, origin="x"), sites("a", "b", "bc"))
    assert {str(e.site): (e.spec.bits, e.range_method) for e in plan} == {
        "a:weight": (4, "mse:2.4"),
        "a:input": (8, "mse:2.4"),
        "bc:weight": (6, "percentile:99"),
        "bc:input": (6, "percentile:99"),
    }
    weight = plan.get(Site("a", "weight"))
    assert weight is not None
    assert (weight.spec.axis, weight.spec.narrow) == (0, True)


@pytest.mark.parametrize(
    ("rules", "fragment"),
    [
        ("    - {match: 'a', bits: 8}\n", "No quantization rule matches site 'b:weight'"),
        ("    - {match: '*', bits: 8}\n    - {match: 'zz*', ignore: true}\n", "matches no layer"),
        (
            "    - {match: '*', bits: 8}\n    - {match: 'b', role: input, ignore: true}\n",
            "quantized weight but a float",
        ),
    ],
)
def test_rules_that_do_not_fit_the_model_are_refused(rules: str, fragment: str) -> None:
    with pytest.raises(RecipeError, match=fragment.replace("*", r"\*")):
        resolve_plan(parse_recipe(HEAD + rules, origin="x"), sites("a", "b"))


def test_an_optional_rule_may_match_nothing() -> None:
    text = BASE + "    - {match: 'zz*', ignore: true, optional: true}\n"
    assert len(resolve_plan(parse_recipe(text, origin="x"), sites("a"))) == 2


@settings(max_examples=30, deadline=None)
@given(modules=st.lists(st.from_regex(r"[a-c]{1,3}", fullmatch=True), min_size=1, max_size=6, unique=True))
def test_resolution_is_deterministic_and_keeps_the_order(modules: list[str]) -> None:
    recipe = parse_recipe(BASE, origin="x")
    first, again = resolve_plan(recipe, sites(*modules)), resolve_plan(recipe, sites(*modules))
    assert first == again
    assert first.modules == tuple(modules)
