"""A record is what its model says, down to the type, or the refusal names the place."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import ValidationError

from gacq_deploy.errors import ArtifactError
from gacq_deploy.storage.files import write_json
from gacq_deploy.storage.records import Record, as_record, load_record, load_sealed_record, shaped_by
from gacq_deploy.storage.sealed import write_sealed


class _Part(Record):
    size: int


class _Whole(Record):
    names: tuple[str, ...]
    parts: dict[str, _Part]
    share: float
    kept: Annotated[dict[str, Any], shaped_by(_Part)] = {"size": 0}  # noqa: RUF012 (pydantic copies it)


GOOD = {"names": ["a"], "parts": {"p": {"size": 1}}, "share": 1, "kept": {"size": 2}}
WORDS = {"what": "Record", "hint": "Make it again."}


def test_both_kinds_are_read_back(tmp_path: Path) -> None:
    write_json(tmp_path / "plain", GOOD)
    write_sealed(tmp_path / "sealed", GOOD)
    for found in (
        load_record(_Whole, tmp_path / "plain", **WORDS),
        load_sealed_record(_Whole, tmp_path / "sealed", **WORDS),
    ):
        assert (found.names, found.parts["p"].size, found.share) == (("a",), 1, 1.0)
        assert found.kept == {"size": 2}, "it stays the plain dict that it is"


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"names": "a"}, "names: Input should be a valid array (got 'a')"),
        ({"names": [1]}, "names.0: "),
        ({"parts": {"p": {"size": "1"}}}, "parts.p.size: "),
        ({"parts": {"p": {"size": True}}}, "parts.p.size: "),
        ({"parts": {"\x1b[2J": {}}}, r"parts.\x1b[2J.size: Field required"),
        ({"share": None}, "share: "),
        ({"kept": {"size": 1.5}}, "kept: size: "),
        ({"more": 1}, "more: Extra inputs"),
    ],
)
def test_another_type_is_refused_with_place_and_remedy(changes: dict[str, Any], place: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        as_record(_Whole, GOOD | changes, where="Record x.json", hint="Make it again.")
    assert caught.value.message.startswith(f"Record x.json is inconsistent: {place}")
    assert caught.value.hint == "Make it again."


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_writer_makes_a_record_of_what_no_reader_takes(value: float) -> None:
    with pytest.raises(ValidationError, match="finite number"):
        _Whole(names=(), parts={}, share=value)
