"""Another record in the catalogue of engines: for one test, or as an installed package adds it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gacq_deploy.engines import catalogue


def change_engine(monkeypatch: pytest.MonkeyPatch, name: str, **changes: Any) -> None:
    """Let the engine's record differ in this process."""
    changed = tuple(replace(r, **changes) if r.name == name else r for r in catalogue.BUILT_IN)
    monkeypatch.setattr(catalogue, "BUILT_IN", changed)
    monkeypatch.setattr(catalogue, "known_engines", catalogue.known_engines.__wrapped__)


def install_package(folder: Path, source: str, value: str, name: str = "gacq_added_engine") -> Path:
    """Write a package with an entry point, as pip would; it is installed where ``folder`` is on the path.

    Args:
        folder: becomes a folder of installed packages.
        source: the module's text.
        value: the entry point's, ``module:attribute``.
        name: of the module and of the distribution.
    """
    metadata = folder / f"{name}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (folder / f"{name}.py").write_text(source)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{catalogue.ENTRY_POINTS}]\nadded = {value}\n")
    return folder
