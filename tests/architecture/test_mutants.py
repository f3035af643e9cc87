"""The mutants fit the code: what each takes out stands where it says, and the tests that it names exist."""

from __future__ import annotations

from collections import Counter

import pytest

from benchmarks.store import RESULTS, load_rows
from tests.faults.matrix import ROWS
from tests.support.programs.commands import ROOT
from tests.support.programs.mutants import mutants

MUTANTS = {mutant.without: mutant for _, mutant in mutants()}


def test_no_two_lack_the_same() -> None:
    assert [name for name, count in Counter(m.without for _, m in mutants()).items() if count > 1] == []


def test_every_fault_of_the_matrix_is_shown_by_a_mutant() -> None:
    """To the case: a test of many rows that fails for one of them says nothing of the others."""
    named = {selector for mutant in MUTANTS.values() for selector in mutant.red}
    assert [row.shown_by for row in ROWS if row.tested and row.shown_by not in named] == []


def test_every_mutant_turned_its_tests_red_when_it_was_run_last() -> None:
    recorded = {
        key: set(row["why"]) for key, row in load_rows(RESULTS / "mutants.jsonl").items() if not row["lived"]
    }
    said = "python -m benchmarks.mutants FILE --only TEXT"
    assert recorded == {f"{file}: {mutant.without}": set(mutant.red) for file, mutant in mutants()}, said


@pytest.mark.parametrize("without", MUTANTS)
def test_what_a_mutant_takes_out_is_there(without: str) -> None:
    texts: dict[str, str] = {}
    for edit in MUTANTS[without].edits:
        text = texts.setdefault(edit.file, (ROOT / edit.file).read_text(encoding="utf-8"))
        texts[edit.file] = edit.applied(text)
        assert texts[edit.file] != text
    for selector in MUTANTS[without].red:
        file, _, test = selector.partition("::")
        name = test.partition("[")[0].rpartition("::")[2]
        assert f"def {name}" in (ROOT / file).read_text(encoding="utf-8")
