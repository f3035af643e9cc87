"""What `sensitivity` says of its target: reached as it is, reached with layers left float, or not."""

from __future__ import annotations

from typing import Any

import pytest

from gacq_deploy.sensitivity.report import Proposal
from gacq_deploy_cli.sensitivity import target_lines
from tests.support.artifacts.sensitivity import example_study

TARGET = "target 21.00 dB (the recipe's gate of 20 dB and a margin)"


def _proposal(**changes: Any) -> Proposal:
    proposal = example_study("x").proposal
    return proposal.model_copy(update={"lint_errors": (), **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"reached": True, "modules": (), "rules": ()},
            f"{TARGET}: reached as it is; no layer needs to stay float",
        ),
        (
            {"reached": True},
            f"{TARGET}: reached, with 1 layer float the worst bucket is 16.00 dB (before: 14.50)",
        ),
        (
            {},
            f"NOT REACHED: {TARGET}. The best found: with 1 layer float the worst bucket is 16.00 dB. "
            "Raise --max-float, or lower the target.",
        ),
    ],
    ids=["as it is", "reached", "not reached"],
)
def test_the_verdict_is_a_sentence_with_its_numbers(changes: dict[str, Any], said: str) -> None:
    proposal = _proposal(**changes)
    verdict, *rules = target_lines(proposal)
    assert verdict == said
    assert [line.strip() for line in rules[1:]] == list(proposal.rules), "to be pasted"
