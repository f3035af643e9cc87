from __future__ import annotations

import math

import pytest
import yaml

from gacq_deploy.errors import UsageError
from gacq_deploy.recipe.quantization import Rule
from gacq_deploy.sensitivity.propose import Request, rule_line


@pytest.mark.parametrize(
    ("planned", "asked", "limit"), [(48, None, 12), (5, None, 2), (1, None, 0), (4, 9, 3), (4, 0, 0)]
)
def test_one_module_at_least_stays_quantized(planned: int, asked: int | None, limit: int) -> None:
    assert Request(max_float=asked).limit(planned) == limit


@pytest.mark.parametrize(
    "bad",
    [
        {"min_sqnr": 20.0, "max_drop": 1.0},
        {"min_sqnr": math.inf},
        {"min_sqnr": math.nan},
        {"max_drop": -1.0},
        {"max_drop": math.nan},
        {"max_float": -1},
    ],
    ids=str,
)
def test_impossible_requests_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(UsageError) as caught:
        Request(**bad)  # type: ignore[arg-type]
    assert caught.value.hint


def test_without_a_bound_the_recipe_decides() -> None:
    assert Request().describe(20.0) == ("budget", 20.0)
    assert Request(min_sqnr=25.0).describe(20.0) == ("min-sqnr", 25.0)
    assert Request(max_drop=0.0).describe(20.0) == ("max-drop", 0.0)


def test_a_line_is_a_rule_of_the_recipe() -> None:
    (parsed,) = yaml.safe_load(rule_line("mid_block.attentions.0.to_out.0"))
    assert Rule.model_validate(parsed) == Rule(match="mid_block.attentions.0.to_out.0", ignore=True)
