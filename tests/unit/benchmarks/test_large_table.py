"""The page about large models shows what was measured, and nothing else."""

from __future__ import annotations

from pathlib import Path

from benchmarks.large_table import foreseen_lines, took_lines, weightless_lines

PAGE = Path(__file__).resolve().parents[3] / "docs" / "large-models.md"


def test_the_page_holds_the_tables_as_they_were_measured() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for table in (took_lines(), foreseen_lines(), weightless_lines()):
        assert "\n".join(table) + "\n\n" in page, "python -m benchmarks.large_table"
