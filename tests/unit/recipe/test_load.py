"""Recipes are validated with file and line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from gacq_deploy.errors import RecipeError
from gacq_deploy.recipe.load import builtin_recipes, load_recipe, parse_recipe
from gacq_deploy.recipe.presets import PRESETS, preset_of
from gacq_deploy.recipe.sections import Recipe

HEAD = "schema: gacq-deploy/recipe/1\nname: x\nquantization:\n  rules:\n"
BASE = HEAD + "    - {match: '*', bits: 8}\n"


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
        (BASE + "calibration:\n  reconstruction:\n    iteratons: 3\n", 8, "iteratons: there is no such key"),
        (BASE + "samples:\n  steps: 0\n", 7, "greater than or equal to 1"),
        (BASE + "samples:\n  seed: many\n", 7, "valid integer"),
        (HEAD + "    - {match: '*', bits: 9}\n", 5, "less than or equal to 8"),
        (HEAD + "    - {match: '*', bits: 8}\n    - {match: a}\n", 6, "needs 'bits' or 'ignore: true'"),
        (
            HEAD + "    - {match: '*', bits: 8, range: {method: magic}}\n",
            5,
            "does not match any of the expected",
        ),
        (BASE + "nonsense: 1\n", 6, "nonsense: there is no such key"),
        (BASE + "samples: [\n", 7, "not valid YAML"),
        (BASE + "schema: gacq-deploy/recipe/1\n", 6, "duplicate key 'schema'"),
        (
            BASE + "samples: {prompts: &loop [*loop]}\n",
            6,
            "not valid YAML: *loop stands for nothing whole before it",
        ),
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


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("sample.steps=10", "samples"),
        ("samples.stepz=10", "steps"),
        ("schma=1", "schema"),
        ("calibration.polsih.steps=1", "polish"),
        ("calibration.polish.stesp=1", "steps"),
        ("quantization.rules.0.bit=4", "bits"),
        ("quantization.rules.0.range={method: percentile, percentil: 99}", "percentile"),
        ("quantization.smoothing.alhpa=0.5", "alpha"),
        ("model.loras=[{source: a, scal: 1}]", "scale"),
        ("parity.budget.image_psnr=30", "image_psnr_db"),
    ],
)
def test_a_wrong_key_is_told_the_nearest_at_every_depth(override: str, meant: str) -> None:
    with pytest.raises(RecipeError, match="there is no such key") as caught:
        parse_recipe(BASE, origin="x", overrides=[override])
    assert f"--set {override}: " in caught.value.message
    assert f"Did you mean '{meant}'?" in caught.value.message


def test_items_are_added_to_the_end_of_a_list() -> None:
    added = "quantization.rules+=[{match: conv_in, ignore: true}]"
    recipe = parse_recipe(BASE, origin="x", overrides=[added, "model.loras+=[{source: a}]"])
    assert [rule.match for rule in recipe.quantization.rules] == ["*", "conv_in"]
    assert [lora.source for lora in recipe.model.loras] == ["a"]
    for wrong in ("quantization.rules+=3", "name+=[x]"):
        with pytest.raises(RecipeError, match="only a list can be added"):
            parse_recipe(BASE, origin="x", overrides=[wrong])
    with pytest.raises(RecipeError, match="Did you mean 'match'") as caught:
        parse_recipe(BASE, origin="x", overrides=["quantization.rules+=[{mach: conv_in, ignore: true}]"])
    assert "--set quantization.rules+=" in caught.value.message


def test_an_item_of_a_list_is_set_by_its_number() -> None:
    recipe = parse_recipe(BASE, origin="x", overrides=["quantization.rules.0.bits=4"])
    assert [rule.bits for rule in recipe.quantization.rules] == [4]
    whole = parse_recipe(BASE, origin="x", overrides=["quantization.rules.0={match: '*', bits: 5}"])
    assert [rule.bits for rule in whole.quantization.rules] == [5]


@pytest.mark.parametrize(
    ("override", "says", "hint"),
    [
        ("quantization.rules.1.bits=4", "the list has 1 items, and none is '1'", "Choose 0 to 0"),
        ("quantization.rules.first.bits=4", "the list has 1 items, and none is 'first'", "Choose 0 to 0"),
        ("model.loras.0.scale=2", "there is no list that item 0 could be of", "KEY=[...]"),
        ("name.x=1", "name is 'x', with no keys inside", "recipes schema"),
    ],
)
def test_a_place_that_is_not_there_is_said(override: str, says: str, hint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(BASE, origin="x", overrides=[override])
    assert says in caught.value.message
    assert hint in caught.value.hint


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


def test_a_step_policy_does_not_change_what_calibration_learns() -> None:
    plain = load_recipe("fashion-w8a8")
    mixed = load_recipe("fashion-w8a8", ["runtime.step_policy={float_steps: 3, where: both}"])
    assert not plain.runtime.step_policy
    assert mixed.runtime.step_policy
    assert plain.calibration_digest == mixed.calibration_digest


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("{float_steps: -1}", "greater than or equal to 0"),
        ("{float_steps: 21}", "float_steps 21, a trajectory has 20"),
        ("{steps: [0, 20]}", "step 20, a trajectory has 20"),
        ("{steps: [-1]}", "greater than or equal to 0"),
        ("{steps: [3, 3]}", "stands twice"),
        ("{float_steps: 1, steps: [3]}", "not both"),
        ("{float_steps: 1, where: middle}", "'worst', 'first', 'last' or 'both'"),
        ("{floats: 1}", "there is no such key"),
        ("worst", "valid dictionary"),
    ],
)
def test_step_policies_that_make_no_sense_are_refused(policy: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        parse_recipe(BASE, origin="x", overrides=[f"runtime.step_policy={policy}"])
    assert "--set runtime.step_policy" in caught.value.message


def test_a_step_policy_is_judged_on_the_steps_it_runs_on() -> None:
    policy = "runtime.step_policy.float_steps=2"
    with pytest.raises(RecipeError, match=r"runtime.steps is 10, parity.steps is 20"):
        parse_recipe(BASE, origin="x", overrides=[policy, "runtime.steps=10"])
    assert parse_recipe(BASE, origin="x", overrides=[policy, "runtime.steps=10", "parity.steps=10"])


def test_gates_do_not_change_what_calibration_learns() -> None:
    plain, gated = (
        load_recipe("fashion-w8a8"),
        load_recipe("fashion-w8a8", ["parity.budget.image_psnr_db=10"]),
    )
    other = load_recipe("fashion-w8a8", ["calibration.seed=1"])
    assert plain.calibration_digest == gated.calibration_digest != other.calibration_digest
    assert plain.digest != gated.digest


def test_sections_go_last_and_a_preset_first() -> None:
    recipe = load_recipe(
        "fashion-w8a8",
        ["samples.steps=7", "samples.trajectories=9"],
        preset="standard",
        samples={"steps": 8, "prompts": ["a cat: black", "two\nlines"]},
        model={"source": Path("somewhere")},
    )
    assert (recipe.samples.trajectories, recipe.samples.steps) == (9, 8)
    assert recipe.samples.prompts == ("a cat: black", "two\nlines")
    assert recipe.calibration.reconstruction.iterations == 800
    assert recipe.model.source == "somewhere"


def test_a_section_that_is_wrong_is_named() -> None:
    with pytest.raises(RecipeError, match=r"samples\.steps"):
        load_recipe("fashion-w8a8", samples={"steps": "many"})
    with pytest.raises(RecipeError, match="nothing"):
        load_recipe("fashion-w8a8", nothing={"steps": 1})
    with pytest.raises(RecipeError, match="'fast'"):
        load_recipe("fashion-w8a8", preset="fast")


@pytest.mark.parametrize("preset", PRESETS)
def test_a_recipe_tells_its_preset(preset: str) -> None:
    assert preset_of(load_recipe("fashion-w8a8", preset=preset)) == preset
    assert preset_of(load_recipe("fashion-w8a8", ["samples.trajectories=7"], preset=preset)) is None


def _whole_numbers(schema: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield every place of a recipe where a whole number may stand."""
    for key, value in schema.items():
        place = f"{where}/{key}"
        if isinstance(value, dict):
            if value.get("type") == "integer" and "const" not in value and "enum" not in value:
                yield place, value
            yield from _whole_numbers(value, place)
        elif isinstance(value, list):
            yield from _whole_numbers(dict(enumerate(value)), place)


def test_every_whole_number_has_an_upper_bound() -> None:
    found = dict(_whole_numbers(Recipe.model_json_schema()))
    assert len(found) > 30
    assert not [place for place, said in found.items() if not {"maximum", "exclusiveMaximum"} & said.keys()]


def test_more_threads_than_any_machine_has_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"calibration.threads.*1024"):
        load_recipe("fashion-w8a8", ["calibration.threads=100000"])
