"""A step that fails is measured, too, and said."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import large_export
from benchmarks.store import load_rows


def test_a_refused_step_is_kept_with_its_error_and_is_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "rows.jsonl"
    monkeypatch.setattr(large_export, "OUT", out)
    steps = ["--only", "export", "verify"]
    monkeypatch.setattr(sys, "argv", ["large_export", "middle", "--work", str(tmp_path), "--keep", *steps])
    with pytest.raises(SystemExit, match="middle, export: it ended with 5"):
        large_export.main()
    kept = load_rows(out)["middle"]["steps"]
    assert list(kept) == ["export"]
    assert kept["export"]["code"] == 5
    assert str(tmp_path / "run") in kept["export"]["answer"]["error"]["message"]
