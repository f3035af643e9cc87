"""Rules resolve deterministically, the last match wins, and what no engine can run is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gacq_deploy.errors import RecipeError
from gacq_deploy.recipe.load import parse_recipe
from gacq_deploy.recipe.plan import resolve_plan
from gacq_deploy.spec import Site

HEAD = "schema: gacq-deploy/recipe/1\nname: x\nquantization:\n  rules:\n"
BASE = HEAD + "    - {match: '*', bits: 8}\n"


def sites(*modules: str) -> list[Site]:
    return [Site(m, r) for m in modules for r in ("weight", "input")]  # type: ignore[arg-type]


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


def test_int4_weights_leave_their_input_float_whatever_came_before() -> None:
    text = BASE + "    - {match: 'b', layer: linear, bits: 4, block: 32}\n"
    plan = resolve_plan(parse_recipe(text, origin="x"), sites("a", "b"))
    assert [str(e.site) for e in plan] == ["a:weight", "a:input", "b:weight"]
    assert (plan.weight_only, plan.integer_modules) == (("b",), ("a",))


def test_int4_weights_beside_a_quantized_input_are_refused() -> None:
    text = BASE + "    - {match: 'b', role: weight, layer: linear, bits: 4, block: 32}\n"
    with pytest.raises(RecipeError, match="'b' has INT4 weights in blocks and a quantized input"):
        resolve_plan(parse_recipe(text, origin="x"), sites("a", "b"))


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
