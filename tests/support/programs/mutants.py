"""What is a mutant? The code with one mend taken out, and the tests that have to turn red for it.

``tests/mutants/*.toml`` holds them; ``make mutants`` runs them.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict, Field

from tests.support.programs.commands import ROOT

FOLDER = ROOT / "tests" / "mutants"


class Edit(BaseModel):
    """Text of a file, in the place of text that it has once."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    file: str
    """From the root of the checkout."""
    old: str
    new: str

    def applied(self, text: str) -> str:
        """Return the file's text after the edit.

        Raises:
            ValueError: the file has the old text not once.
        """
        if (count := text.count(self.old)) != 1:
            raise ValueError(f"{self.file} has {count} times {self.old!r}")
        return text.replace(self.old, self.new)


class Mutant(BaseModel):
    """One mend, and what shows that it is gone."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    without: str
    """What the mutant lacks, in words; no two are the same."""
    edits: tuple[Edit, ...] = Field(min_length=1)
    red: tuple[str, ...] = Field(min_length=1)
    """Tests that fail: node ids; of one that leaves the case out, one case has to fail."""


def mutants(names: frozenset[str] = frozenset()) -> Iterator[tuple[str, Mutant]]:
    """Yield the stem of the file and the mutant, of the files that are named or of all."""
    for path in sorted(FOLDER.glob("*.toml")):
        if not names or path.stem in names:
            for entry in tomllib.loads(path.read_text(encoding="utf-8"))["mutant"]:
                yield path.stem, Mutant.model_validate(entry)


def stands_for(selector: str, node: str) -> bool:
    """Tell whether a test is meant by a node id that may leave the case out."""
    return node == selector or node.startswith(f"{selector}[")
