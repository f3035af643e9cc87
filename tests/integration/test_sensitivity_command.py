"""What does `sensitivity` print, write and answer for an exit code?"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from gacq_deploy.recipe.load import load_recipe
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.sensitivity import load_sensitivity
from tests.support.programs.commands import invoke

QUICK = ("--threads", "1", "--states", "4", "--graph", "int8.onnx")


def _json(*arguments: str, code: int = 0) -> Any:
    done = invoke(["sensitivity", *arguments, "--json"])
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


@pytest.fixture
def few_copy(few_layers: Path, tmp_path: Path) -> Path:
    """A run with few quantized layers, for one test to write to."""
    return Path(shutil.copytree(few_layers, tmp_path / "few"))


@pytest.mark.slow
def test_the_document_is_the_file(few_copy: Path) -> None:
    document = _json(str(few_copy), *QUICK, "--min-sqnr", "-50", "--bucket-count", "4")
    written = json.loads((few_copy / "sensitivity.json").read_text())
    assert {k: v for k, v in written.items() if k != "digest"} == document
    assert load_sensitivity(RunDirectory(few_copy)).document() == document
    assert len(document["buckets"]) == 4
    assert document["proposal"]["reached"]


@pytest.mark.slow
def test_a_target_out_of_reach_exits_3_with_the_best_found(few_copy: Path) -> None:
    done = invoke(["sensitivity", str(few_copy), *QUICK, "--min-sqnr", "150", "--max-float", "1"])
    assert done.exit_code == 3, done.output
    assert "NOT REACHED: target 150.00 dB (in the worst bucket). The best found: with" in done.stdout
    assert "engine runs" in done.stderr
    assert (few_copy / "sensitivity.json").is_file()


@pytest.mark.slow
def test_the_lines_can_be_pasted_into_the_recipe(few_copy: Path) -> None:
    done = invoke(["sensitivity", str(few_copy), *QUICK, "--max-drop", "0", "--max-float", "2", "--top", "3"])
    assert done.exit_code == 0
    assert "3 of " in done.stdout
    reached = load_sensitivity(RunDirectory(few_copy)).proposal
    lines = [line for line in done.stdout.splitlines() if line.strip().startswith("- {match")]
    assert [rule["match"] for rule in yaml.safe_load("\n".join(lines)) or []] == list(reached.modules)
    assert reached.modules
    words = shlex.split(done.stdout.splitlines()[-1].removeprefix("Next: "))
    assert words[:3] == ["gacq-deploy", "calibrate", "-r"]
    before, after = load_recipe(words[3]), load_recipe(words[3], [words[words.index("--set") + 1]])
    added = after.quantization.rules[len(before.quantization.rules) :]
    assert [rule.match for rule in added] == list(reached.modules)


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("--min-sqnr", "20", "--max-drop", "1"), 2, "Ask for one of the two"),
        (("--max-drop", "-1"), 2, "Pass 0 or more"),
        (("--graph", "int8.trt.onnx"), 2, "was not exported"),
        (("--states", "1"), 2, "buckets empty"),
        (("--bucket-count", "0"), 2, "--bucket-count"),
        (("--threads", "-1"), 2, "--threads"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_bad_options(run_copy: Path, options: tuple[str, ...], code: int, says: str) -> None:
    done = invoke(["sensitivity", str(run_copy), *options, "--json"])
    assert done.exit_code == code, done.output
    assert says in done.output
    assert json.loads(done.stdout)["error"]["hint"]
    assert not (run_copy / "sensitivity.json").exists()


def test_not_exported(run_copy: Path) -> None:
    shutil.rmtree(run_copy / "onnx")
    assert "export --onnx" in _json(str(run_copy), code=5)["error"]["hint"]


def test_an_altered_graph(run_copy: Path) -> None:
    path = run_copy / "onnx" / "float.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert "altered" in _json(str(run_copy), code=5)["error"]["message"]


def test_no_run_directory(tmp_path: Path) -> None:
    assert "not a run directory" in _json(str(tmp_path), code=5)["error"]["message"]


def test_without_onnxruntime(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "gacq_deploy.backends.ort", raising=False)
    assert "gacq-deploy[cpu]" in _json(str(run_copy), code=4)["error"]["hint"]
