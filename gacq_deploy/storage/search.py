"""Which folders below one hold a file of this name?"""

from __future__ import annotations

import os
from pathlib import Path

from gacq_deploy.storage.outputs import require_name

SEARCH_DEPTH = 3
"""Folders below the first one: enough for runs that are sorted by model and date, and quick in a home directory."""


def find_holders(folder: Path, name: str, depth: int = SEARCH_DEPTH) -> tuple[Path, ...]:
    """Return the folders, ``folder`` itself and down to ``depth`` below it, that hold a file ``name``; sorted by path.

    Hidden folders and those that may not be read are left out; one that several links lead to is named once.

    Raises:
        UsageError: no folder can be called so.
    """
    require_name(folder)
    level, seen, found = [folder], set[Path](), list[Path]()
    for _ in range(depth + 1):
        below: list[Path] = []
        for place in level:
            real = place.resolve()
            if real in seen:
                continue
            seen.add(real)
            if os.access(place / name, os.F_OK) and (place / name).is_file():
                found.append(place)
            below += _folders_in(place)
        level = below
    return tuple(sorted(found))


def _folders_in(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            shown = [entry for entry in entries if not entry.name.startswith(".") and _is_folder(entry)]
    except OSError:
        return []  # gone meanwhile, or not ours to read
    # a folder is named by its own place, not by a link to it
    shown.sort(key=lambda entry: (entry.is_symlink(), entry.name))
    return [folder / entry.name for entry in shown]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link to itself
