"""Is a document the record that its reader takes? Every record is a frozen model; a refusal names the place in it."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from gacq_deploy.errors import ArtifactError
from gacq_deploy.storage.digests import verify_file
from gacq_deploy.storage.documents import read_json, shown
from gacq_deploy.storage.sealed import read_sealed

KindT = TypeVar("KindT", bound=BaseModel)


class Record(BaseModel):
    """What crosses the disk: frozen, without unknown keys, without NaN or infinities."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False)


class OpenRecord(Record):
    """One that may hold more than its reader asks for."""

    model_config = ConfigDict(extra="allow")


class ListedFile(Record):
    """What a record vouches for a file with."""

    sha256: str
    bytes: int = Field(ge=0)


def verify_listed(
    manifest: Path,
    listed: Mapping[str, ListedFile],
    *,
    known: Collection[str],
    needed: str,
    what: str,
    hint: str,
) -> None:
    """Check every file that a manifest vouches for, before the first of them is parsed.

    Args:
        manifest: beside the files.
        listed: name -> what it is vouched for with.
        known: the names that may stand there.
        needed: the name without which it vouches for nothing.
        what: role of the files, for the message.
        hint: the remedy.

    Raises:
        ArtifactError: a name is foreign or missing; a file is, or is not what was written.
    """
    if needed not in listed:
        raise ArtifactError(f"{manifest} does not list {needed}, so nothing vouches for it.", hint)
    for name, entry in listed.items():
        if name not in known:
            raise ArtifactError(f"{manifest} names a foreign file '{shown(name)}'.", hint)
        verify_file(manifest.with_name(name), entry.model_dump(), what=what, hint=hint)


def as_record(kind: type[KindT], document: Any, *, where: str, hint: str) -> KindT:
    """Return plain data as the record that they are; nothing is converted: ``"3"`` is no number.

    Args:
        kind: of the record.
        document: plain data.
        where: what is read, for the message: a role and a path.
        hint: the remedy.

    Raises:
        ArtifactError: a value is missing, of another type or out of its bounds, or a key is unknown.
    """
    try:
        return _validated(kind, document)
    except ValidationError as error:
        raise ArtifactError(f"{where} is inconsistent: {first_fault(error)}.", hint) from None


def load_record(kind: type[KindT], path: Path, *, what: str, hint: str) -> KindT:
    """Read a record that states no digest.

    Raises:
        ArtifactError: missing, not a JSON object, or as :func:`as_record`.
    """
    return as_record(kind, read_json(path, what=what, hint=hint), where=f"{what} {path}", hint=hint)


def load_sealed_record(kind: type[KindT], path: Path, *, what: str, hint: str) -> KindT:
    """Read a record that states its own digest.

    Raises:
        ArtifactError: as :func:`~gacq_deploy.storage.sealed.read_sealed` and :func:`as_record`.
    """
    return as_record(kind, read_sealed(path, what=what, hint=hint), where=f"{what} {path}", hint=hint)


def shaped_by(kind: type[BaseModel]) -> AfterValidator:
    """Return a check for a field that stays the plain dict that it is: a record of this kind could be made of it."""

    def check(value: dict[str, Any]) -> dict[str, Any]:
        try:
            _validated(kind, value)
        except ValidationError as error:
            raise PydanticCustomError("shape", "{fault}", {"fault": first_fault(error)}) from None
        return value

    return AfterValidator(check)


def first_fault(error: ValidationError) -> str:
    """Return the first fault in words: where it is, what is wrong, and the value where it is a short one."""
    item = error.errors(include_url=False)[0]
    place = ".".join(shown(str(part)) for part in item["loc"])
    given = "" if isinstance(item["input"], dict | list) else f" (got {shown(repr(item['input']))})"
    return f"{f'{place}: ' if place else ''}{item['msg']}{given}"


def _validated(kind: type[KindT], document: Any) -> KindT:
    # as JSON: there a list may become a tuple, where nothing else becomes what it is not
    return kind.model_validate_json(json.dumps(document), strict=True)
