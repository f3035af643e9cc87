"""A level or an exclusion begins the rules: spelled out when the recipe is read, overridden by what follows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gacq_deploy.errors import RecipeError
from gacq_deploy.recipe.load import load_recipe, parse_recipe
from gacq_deploy.recipe.plan import resolve_plan
from gacq_deploy.recipe.quantization import EXCLUSIONS, LEVELS, QuantizationSection, Rule
from gacq_deploy.recipe.sections import Recipe
from gacq_deploy.spec import Site

HEAD = "schema: gacq-deploy/recipe/1\nname: x\n"
CONVOLUTIONS = ("conv_in", "down.0.conv1", "down.0.conv_shortcut", "down.0.attentions.0.proj_out", "conv_out")
LINEARS = (
    "time_embedding.linear_1",
    "block.0.attn1.to_q",
    "block.0.attn2.to_v",
    "block.0.attn1.to_out.0",
    "block.0.ff.net.0.proj",
    "block.0.ff.net.2",
    "proj_out_1",
)
SITES = [
    *(Site(m, r) for m in CONVOLUTIONS for r in ("weight", "input", "output")),
    *(Site(m, r) for m in LINEARS for r in ("weight", "input")),
]


def recipe(text: str) -> Recipe:
    return parse_recipe(HEAD + text, origin="x")


def planned(text: str) -> set[str]:
    return set(resolve_plan(recipe(text), SITES).modules)


def level(name: str) -> set[str]:
    return planned(f"quantization: {{level: {name}}}\n")


def test_each_level_adds_to_the_one_before() -> None:
    conv, ffn, qkv, linear = (level(name) for name in ("conv", "ffn", "qkv", "linear"))
    assert conv == set(CONVOLUTIONS)
    assert ffn - conv == {"block.0.ff.net.0.proj", "block.0.ff.net.2"}
    assert qkv - ffn == {"block.0.attn1.to_q", "block.0.attn2.to_v"}
    assert linear - qkv == {"time_embedding.linear_1", "block.0.attn1.to_out.0", "proj_out_1"}
    assert conv < ffn < qkv < linear == {*CONVOLUTIONS, *LINEARS}


@pytest.mark.parametrize(
    ("level_name", "layers"),
    [
        (
            "ffn",
            "blocks.0.ff.net.2 blocks.0.ff.linear_1 blocks.0.ff_context.net.0.proj blocks.0.ff_context.out_projection "
            "blocks.0.ffn.net.2 blocks.0.txt_mlp.net.2 layers.0.feed_forward.linear_1 "
            "single_transformer_blocks.0.proj_mlp single_transformer_blocks.0.proj_out",
        ),
        ("qkv", "blocks.0.attn.add_q_proj blocks.0.attn.add_k_proj blocks.0.attn.add_v_proj"),
        (
            "linear",
            "blocks.0.attn.to_add_out blocks.0.norm1_context.linear blocks.0.proj_out proj_out x_embedder",
        ),
    ],
)
def test_other_transformers_layers_begin_at_the_level_of_their_like(level_name: str, layers: str) -> None:
    sites = [Site(name, role) for name in layers.split() for role in ("weight", "input")]
    for name in LEVELS:
        text = f"quantization: {{level: {name}, rules: [{{match: 'else', bits: 8, optional: true}}]}}\n"
        found = set(resolve_plan(recipe(text), sites).modules)
        begun = list(LEVELS).index(name) >= list(LEVELS).index(level_name)
        assert found == (set(layers.split()) if begun else set())


def test_the_int4_level_takes_linear_weights_alone() -> None:
    plan = resolve_plan(recipe("quantization: {level: int4}\n"), SITES)
    assert set(plan.weight_only) == set(plan.modules) == set(LINEARS)
    assert {(e.site.role, e.spec.bits, e.spec.block, e.spec.qmin) for e in plan} == {("weight", 4, 64, -7)}
    assert plan.integer_modules == ()


def test_a_level_of_convolutions_and_int4_weights_go_together() -> None:
    text = "quantization:\n  level: conv\n  rules: [{match: '*', layer: linear, bits: 4, block: 128}]\n"
    plan = resolve_plan(recipe(text), SITES)
    assert (set(plan.integer_modules), set(plan.weight_only)) == (set(CONVOLUTIONS), set(LINEARS))


def test_the_last_projection_of_attention_is_left_float_only_when_asked() -> None:
    text = "quantization: {{level: linear, exclude: {}}}\n"
    everywhere, at_the_end = (planned(text.format(name)) for name in EXCLUSIONS)
    assert at_the_end - everywhere == {"down.0.attentions.0.proj_out"}
    assert everywhere == {"down.0.conv1", *LINEARS} - {"time_embedding.linear_1", "proj_out_1"}


def test_rules_of_the_recipe_come_after_and_win() -> None:
    text = (
        "quantization:\n  level: ffn\n  exclude: nvidia-demo\n  rules:\n"
        "    - {match: 'conv_in', bits: 8}\n    - {match: '*.ff.net.2', ignore: true}\n"
    )
    assert planned(text) == {"conv_in", "down.0.conv1", "block.0.ff.net.0.proj"}


def test_the_resolved_recipe_holds_the_rules_in_full() -> None:
    short = recipe("quantization: {level: conv, exclude: nvidia-demo-final}\n")
    document = short.document()["quantization"]
    assert set(document) == {"rules", "tie_concat", "smoothing"}
    assert len(document["rules"]) == len(LEVELS["conv"]) + len(EXCLUSIONS["nvidia-demo-final"])
    again = Recipe.model_validate(short.document())
    assert again == short
    assert again.digest == short.digest


def test_presets_match_nothing_without_complaint() -> None:
    assert (
        resolve_plan(
            recipe("quantization: {level: qkv, exclude: nvidia-demo}\n"),
            [Site("a", "weight"), Site("a", "input")],
        ).modules
        == ()
    )


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("quantization: {}\n", "give 'level' or 'rules'"),
        ("quantization: {rules: []}\n", "give 'level' or 'rules'"),
        ("quantization: {level: most}\n", "Input should be 'conv', 'ffn', 'qkv', 'linear' or 'int4'"),
        ("quantization: {level: conv, exclude: everything}\n", "nvidia-demo"),
        (
            "quantization:\n  rules: [{match: '*', layer: norm, bits: 8}]\n",
            "Input should be 'conv', 'linear' or '*'",
        ),
        *(
            (f"quantization:\n  rules: [{{match: '*', {words}}}]\n", fragment)
            for words, fragment in (
                ("block: 64, bits: 4", "needs 'bits: 4' and 'layer: linear'"),
                ("block: 64, layer: linear, bits: 8", "needs 'bits: 4'"),
                ("block: 64, layer: linear, bits: 4, role: input", "'role', if given, is 'weight'"),
                ("block: 100, layer: linear, bits: 4", "Input should be 16, 32, 64, 128 or 256"),
                ("block: 64, layer: linear", "'bits'"),
            )
        ),
    ],
)
def test_what_no_preset_means_is_refused(text: str, fragment: str) -> None:
    with pytest.raises(RecipeError, match=r"x:\d+: quantization") as caught:
        recipe(text)
    assert fragment in caught.value.message


def test_an_override_chooses_the_level() -> None:
    chosen = load_recipe("sd15-w8a8", ["quantization.level=ffn"])
    assert set(resolve_plan(chosen, SITES).modules).isdisjoint(
        {"block.0.attn1.to_q", "block.0.attn1.to_out.0"}
    )


@given(
    st.sampled_from([None, *LEVELS]),
    st.sampled_from([None, *EXCLUSIONS]),
    st.lists(st.builds(Rule, match=st.just("a"), bits=st.integers(2, 8)), min_size=1, max_size=3),
)
def test_spelling_out_happens_once(chosen: str | None, excluded: str | None, rules: list[Rule]) -> None:
    section = QuantizationSection.model_validate({"level": chosen, "exclude": excluded, "rules": rules})
    assert section.rules[-len(rules) :] == tuple(rules)
    assert QuantizationSection.model_validate(section.model_dump()) == section
