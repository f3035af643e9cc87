"""What do a recipe's rules mean for this model? Rules and sites become a quantization plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from gacq_deploy.errors import RecipeError
from gacq_deploy.recipe.quantization import MseRange, Rule
from gacq_deploy.recipe.sections import Recipe
from gacq_deploy.spec import LayerKind, PlannedSite, QuantPlan, Site, TensorSpec


def resolve_plan(recipe: Recipe, sites: Sequence[Site], ties: Mapping[Site, str] | None = None) -> QuantPlan:
    """Decide for every site of the model what the rules ask for.

    Args:
        recipe: its ``quantization.rules`` are applied in order, the last match wins.
        sites: weight, input and output sites in execution order; convolutions are the layers with an output site.
        ties: site -> tie name; a site without one stands alone.

    Raises:
        RecipeError: a rule that matches nothing, a site no rule matches, a weight quantized without its input or
            the reverse (TensorRT would fall back to half precision). INT4 weights in blocks are the exception: their
            input must stay float.
    """
    ties = ties or {}
    convolutions = {s.module for s in sites if s.role == "output"}
    used: set[int] = set()
    planned: list[PlannedSite] = []
    for site in sites:
        kind: LayerKind = "conv" if site.module in convolutions else "linear"
        matching = matching_rules(recipe.quantization.rules, site, kind)
        if not matching:
            raise RecipeError(
                f"No quantization rule matches site '{site}'.",
                "Start the rules with `match: '*'` for a default.",
            )
        used.update(matching)
        winner = recipe.quantization.rules[matching[-1]]
        if winner.quantizes(site.role):
            planned.append(_plan_site(site, winner, ties.get(site, str(site))))
    for number, rule in enumerate(recipe.quantization.rules):
        if number not in used and not rule.optional:
            raise RecipeError(
                f"Rule {number + 1} (match '{rule.match}', role '{rule.role}') matches no layer of this model.",
                "Correct the pattern (`gacq-deploy calibrate --dry-run` lists the sites), or add `optional: true`.",
            )
    plan = QuantPlan(tuple(planned))
    _check_pairs(plan)
    return plan


def matching_rules(rules: Sequence[Rule], site: Site, kind: LayerKind) -> list[int]:
    """Return the positions of the rules that match ``site`` of a layer of this kind; the last one wins."""
    return [
        number
        for number, rule in enumerate(rules)
        if rule.role in ("*", site.role)
        and rule.layer in ("*", kind)
        and fnmatchcase(site.module, rule.match)
    ]


def _plan_site(site: Site, rule: Rule, tie: str) -> PlannedSite:
    bits = rule.bits or 8
    is_weight = site.role == "weight"
    spec = TensorSpec(bits=bits, axis=0 if is_weight else None, narrow=is_weight, block=rule.block)
    method = rule.range or MseRange(method="mse")
    return PlannedSite(site, spec, tie, method.text)


def _check_pairs(plan: QuantPlan) -> None:
    inputs = {e.site.module for e in plan.of_role("input")}
    if both := [module for module in plan.weight_only if module in inputs]:
        raise RecipeError(
            f"Module '{both[0]}' has INT4 weights in blocks and a quantized input: no engine multiplies those.",
            "Leave role: weight out of the rule with `block`, so that it leaves the input float, or take `block` out.",
        )
    weights = set(plan.integer_modules)
    for module in sorted(weights ^ inputs):
        have, lack = ("weight", "input") if module in weights else ("input", "weight")
        raise RecipeError(
            f"Module '{module}' has a quantized {have} but a float {lack}: no engine runs that in INT8.",
            "Quantize both or neither in quantization.rules.",
        )
