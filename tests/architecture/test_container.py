"""Does the Dockerfile keep its promises: two targets, no root, one TensorRT, and only the package in the context?"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
STAGES = dict(re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL))
RECORD = ROOT / "benchmarks" / "results" / "container.jsonl"


@pytest.mark.parametrize("target", ["cpu", "release", "gpu"])
def test_a_target_runs_without_root_and_carries_no_pip(target: str) -> None:
    instructions = [line.split() for line in STAGES[target].splitlines() if line and not line.startswith("#")]
    words = [line[0] for line in instructions]
    assert ["USER", "10001:10001"] in instructions
    assert "RUN" not in words[words.index("USER") :]
    assert "ENTRYPOINT" in words[words.index("USER") :]
    assert [line[1:] for line in instructions if line[0] == "COPY"] == [
        [f"--from={target}-environment", "/opt/gacq-deploy", "/opt/gacq-deploy"]
    ]


def test_one_version_of_tensorrt() -> None:
    assert len(re.findall(r"^ARG TENSORRT_VERSION=", DOCKERFILE, re.MULTILINE)) == 1
    assert not re.search(r"tensorrt\S*==\d", DOCKERFILE)
    for stage in ("gpu-environment", "gpu"):
        assert re.search(r"^ARG TENSORRT_VERSION$", STAGES[stage], re.MULTILINE)
        assert "${TENSORRT_VERSION}" in STAGES[stage]


def test_the_context_is_what_the_wheel_is_made_of() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for included in settings["tool"]["hatch"]["build"]["targets"]["wheel"]["include"]:
        assert any(included.strip("/").startswith(path) for path in allowed), f"{included} is ignored"
    assert allowed <= {
        "pyproject.toml", "constraints.txt", "docker/build.txt", "docker/serving.txt", "README.md", "LICENSE",
        "gacq_deploy", "cli", "recipes", "examples/models",
    }  # fmt: skip


def test_the_recorded_build_passed() -> None:
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    assert record["schema"] == "gacq-deploy/container/1"
    assert record["passed"]
    assert all(record["verdicts"].values())
    assert (ROOT / record["command"]).is_file()
    assert 0 < record["images"]["release"]["bytes"] < record["images"]["cpu"]["bytes"]
