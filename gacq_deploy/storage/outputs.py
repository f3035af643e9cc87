"""May a file or folder be written where somebody asked for it?"""

from __future__ import annotations

from pathlib import Path

from gacq_deploy.errors import UsageError, quoted

_BEGINNINGS = {".png": b"\x89PNG", ".html": b"<!doctype html"}
"""Kind of output by its suffix -> what a file of it begins with."""


def is_text(path: str | Path) -> bool:
    """Tell whether a path is UTF-8: Linux takes any bytes, the libraries that open files by name do not."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def require_name(path: str | Path) -> None:
    """Refuse a path that can be that of no file.

    Raises:
        UsageError: it holds a NUL character, at which a name ends for the system.
    """
    if "\0" in str(path):
        raise UsageError(
            f"The path {str(path)!r} holds a NUL character, which no name of a file can.", "Correct the path."
        )


def require_path(path: str) -> None:
    """Refuse a path that names nothing, or that not every library can open.

    Raises:
        UsageError: it is empty, or holds a NUL character or bytes that are no UTF-8.
    """
    if not path:
        raise UsageError(
            "The path is empty.",
            "Name a folder or file; a shell variable that is not set gives an empty path.",
        )
    require_name(path)
    if not is_text(path):
        raise UsageError(
            f"The path {path!r} holds bytes that are no UTF-8: not every library can open it.", "Rename it."
        )


def require_folder_for(path: Path) -> None:
    """Refuse a path that was asked for where its folder is not there: a mistyped one is not made in silence.

    Raises:
        UsageError: there is no such folder; the message names the first one that is missing.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        missing = next(f for f in reversed((folder, *folder.parents)) if not f.is_dir())
        if missing.exists():
            raise UsageError(
                f"Cannot write {path}: {missing} is a file, not a folder.", "Choose another place."
            )
        raise UsageError(
            f"Cannot write {path}: there is no folder {missing}.",
            f"Choose another place, or make it: mkdir -p {quoted(folder)}",
        )


def require_suffix(path: Path, suffix: str) -> None:
    """Refuse a file's name that would say it is of another kind.

    Raises:
        UsageError: it does not end in ``suffix``.
    """
    if path.suffix.lower() != suffix:
        raise UsageError(
            f"{path} does not end in {suffix}: it would be one of another kind.",
            f"Name a file that ends in {suffix}.",
        )


def require_output(path: Path, suffix: str) -> None:
    """Refuse a file that was asked for by its path where it would not be one of its kind, or replace one of another.

    Args:
        path: where it is to be written.
        suffix: of its kind, ``.png`` or ``.html``.

    Raises:
        UsageError: it does not end so, its folder is not there, or a file of another kind lies there.
    """
    require_suffix(path, suffix)
    begins, found = _BEGINNINGS[suffix], b""
    try:
        require_folder_for(path)
        if path.exists() and not path.is_file():
            raise UsageError(f"Cannot write {path}: it is there, and no file.", "Choose another name.")
        if path.exists():
            with path.open("rb") as file:
                found = file.read(len(begins))
    except OSError as error:
        raise UsageError(f"Cannot write {path}: {error.strerror}.", "Choose another name.") from error
    if found and found.lower() != begins.lower():
        raise UsageError(
            f"{path} is no {suffix[1:].upper()} file, whatever its name says: it is not replaced.",
            "Choose another name, or remove it first.",
        )
