"""Does everything stand whole on a real terminal, of whatever width and kind?"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.programs.commands import invoke
from tests.support.programs.terminal import LIGHT, see
from tests.support.programs.warm_process import serving

WIDTHS = (20, 40, 80, 120, 200)
COLOR = re.compile(rb"\x1b\[[0-9;]*3[0-7][0-9;]*m")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that has imported what light commands need."""
    with serving(tmp_path_factory.mktemp("terminal"), LIGHT) as address:
        yield address


@pytest.fixture(scope="module")
def same_thresholds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that changes no threshold: `parity --rejudge` judges as before, and runs nothing."""
    file = tmp_path_factory.mktemp("thresholds") / "same.yaml"
    file.write_text("{}")
    return file


def _document(*arguments: str) -> Any:
    return json.loads(invoke([*arguments, "--json"]).stdout)


@pytest.fixture(scope="module")
def verdict(finished_run: Path, same_thresholds: Path) -> Any:
    """The document of a verdict."""
    return _document("parity", str(finished_run), "--rejudge", str(same_thresholds))


@pytest.fixture(scope="module")
def artifact(finished_run: Path) -> Any:
    """The document of an artifact."""
    return _document("inspect", str(finished_run))


def _gates(document: Any) -> Iterator[str]:
    """Yield every word and number of a verdict, as they are written for people."""
    for comparison in document["comparisons"]:
        yield from (comparison["evidence"], comparison["reference"], comparison["candidate"])
        for metric, bound in comparison["thresholds"].items():
            yield from (metric, f"{bound:g}")
            yield f"{comparison['metrics'][metric]:.6g}"


def _sites(document: Any) -> Iterator[str]:
    """Yield every word and number of the quantized tensors of an artifact."""
    for site in document["sites"]:
        yield from (site["site"], str(site["bits"]), site["tie"], *site["range"].split())
        yield from (
            f"{site[end]:.3g}" for end in ("scale_min", "scale_max") if site["granularity"] != "tensor"
        )


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_of_a_verdict_is_cut(
    server: str, finished_run: Path, same_thresholds: Path, verdict: Any, width: int
) -> None:
    seen = see(server, ("parity", str(finished_run), "--rejudge", str(same_thresholds), "-v"), width=width)
    assert seen.exit_code == 0
    shown = seen.text(width)
    assert [word for word in _gates(verdict) if word not in shown] == []
    assert "SHIP IT" in shown
    assert f"gacq-deploy bench {finished_run}" in shown
    assert "…" not in shown


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_of_an_artifact_is_cut(server: str, finished_run: Path, artifact: Any, width: int) -> None:
    seen = see(server, ("inspect", str(finished_run)), width=width)
    assert seen.exit_code == 0
    shown = seen.text(width)
    assert [word for word in _sites(artifact) if word not in shown] == []
    assert "…" not in shown


@pytest.mark.parametrize(
    ("environment", "is_colored"),
    [
        ({}, True),
        ({"NO_COLOR": "1"}, False),
        ({"TERM": "dumb"}, False),
        ({"NO_COLOR": "", "FORCE_COLOR": "1"}, True),
    ],
    ids=["terminal", "NO_COLOR", "dumb", "FORCE_COLOR"],
)
def test_colors_are_shown_where_they_are_wanted(
    server: str, finished_run: Path, environment: dict[str, str], is_colored: bool
) -> None:
    told = {"environment": environment, "width": 80}
    verified = see(server, ("verify", str(finished_run)), **told)
    refused = see(server, ("verify", str(finished_run / "nowhere")), **told)
    assert (verified.exit_code, refused.exit_code) == (0, 5)
    assert bool(COLOR.search(verified.sent)) == is_colored
    assert bool(COLOR.search(refused.sent)) == is_colored
    assert "INTACT" in verified.text(80)
    assert refused.text(80).startswith("Error: ")


def test_a_dumb_terminal_gets_plain_lines(server: str, finished_run: Path) -> None:
    seen = see(server, ("list", str(finished_run)), width=80, environment={"TERM": "dumb"})
    assert seen.exit_code == 0
    assert b"\x1b" not in seen.sent
    assert "read runs: 1/1 in" in seen.text(80)


def test_color_can_be_forced_into_a_pipe(finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["verify", str(finished_run)]
    assert not COLOR.search(invoke(command).stdout.encode())
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert COLOR.search(invoke(command).stdout.encode())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not COLOR.search(invoke(command).stdout.encode())
