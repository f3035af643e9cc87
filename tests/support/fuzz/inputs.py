"""What is one input of a fuzzed reader, and which of them are kept?"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

CORPUS = Path(__file__).parents[2] / "data" / "corpus"


@dataclass(frozen=True)
class Input:
    """Bytes, and which of a reader's files they stand for: ``json``, ``bench.json``."""

    kind: str
    data: bytes

    @property
    def name(self) -> str:
        """A file's name that tells what is in it."""
        return f"{hashlib.sha256(self.data).hexdigest()[:16]}.{self.kind}"

    def holding(self, data: bytes) -> Input:
        """Return other bytes for the same file."""
        return replace(self, data=data)


def kept_inputs(reader: str) -> tuple[Input, ...]:
    """Return the inputs that once failed in a reader."""
    files = sorted((CORPUS / reader).glob("*"))
    return tuple(Input(file.name.partition(".")[2], file.read_bytes()) for file in files)


def keep(reader: str, tried: Input, corpus: Path = CORPUS) -> Path:
    """Add an input to the corpus; return its file."""
    file = corpus / reader / tried.name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(tried.data)
    return file
