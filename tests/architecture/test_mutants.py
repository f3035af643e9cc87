"""The mutants fit the code: what each takes out stands where it says, and the tests that it names exist."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.support.programs.commands import ROOT
from tests.support.programs.mutants import mutants

MUTANTS = {mutant.without: mutant for _, mutant in mutants()}


def test_no_two_lack_the_same() -> None:
    assert [name for name, count in Counter(m.without for _, m in mutants()).items() if count > 1] == []


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
