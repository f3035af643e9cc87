"""Is what we say of a target true where it can be asked?"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from onnx import defs

from gacq_deploy.check.targets import CHECK_TARGETS, FACTS
from gacq_deploy.lint.rules import RULE_SETS
from tests.support.programs.commands import child_environment

ASK = """
import json, sys
from gacq_deploy.backends.trt.library import load_trt
trt = load_trt("tensorrt-rtx").module
log = trt.Logger(trt.Logger.ERROR)
builder = trt.Builder(log)
network = builder.create_network(0)
parser = trt.OnnxParser(network, log)
print(json.dumps([name for name in json.load(sys.stdin) if parser.supports_operator(name)]))
"""


def test_every_target_has_facts() -> None:
    assert set(FACTS) == set(CHECK_TARGETS)
    for facts in FACTS.values():
        assert facts.rules in RULE_SETS
        assert 20 in facts.opsets
        assert not facts.refused & (facts.compiled or set())


@pytest.mark.parametrize("target", [t for t in CHECK_TARGETS if FACTS[t].compiled])
def test_the_operators_are_those_of_onnx(target: str) -> None:
    facts = FACTS[target]
    known = {s.name for s in defs.get_all_schemas_with_history() if s.domain == ""}
    # an older ONNX does not know the newest
    assert len((facts.compiled | facts.refused) - known) <= 10
    assert {"Conv", "Gemm", "MatMul", "QuantizeLinear", "DequantizeLinear"} <= facts.compiled
    assert {"QLinearConv", "ConvInteger", "DynamicQuantizeLinear", "DFT"} <= facts.refused


@pytest.mark.rtx
def test_the_parser_says_the_same() -> None:
    facts = FACTS["tensorrt-rtx"]
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        input=json.dumps(sorted(facts.compiled | facts.refused)),
        env=child_environment(), capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert set(json.loads(done.stdout.splitlines()[-1])) == facts.compiled
