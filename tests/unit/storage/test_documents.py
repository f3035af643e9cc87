"""JSON of anybody becomes plain data, or is refused in words."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gacq_deploy.errors import ArtifactError
from gacq_deploy.storage import documents
from gacq_deploy.storage.digests import canonical_json
from gacq_deploy.storage.documents import Malformed, decode_json, read_bytes, read_json, shown

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
NUMBERS = st.integers(-(1 << 63), (1 << 63) - 1) | st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | NUMBERS
DOCUMENTS: st.SearchStrategy[Any] = st.recursive(
    SCALARS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


def is_plain(value: object) -> bool:
    """Return whether JSON as we write it can hold a value."""
    match value:
        case dict():
            return all(isinstance(key, str) for key in value) and all(
                map(is_plain, [*value, *value.values()])
            )
        case list():
            return all(map(is_plain, value))
        case str():
            return not any(0xD800 <= ord(c) < 0xE000 for c in value)
        case float():
            return math.isfinite(value)
        case int():
            return -(1 << 63) <= value < 1 << 63
        case _:
            return value is None


@given(DOCUMENTS)
def test_what_we_write_is_read_back(document: Any) -> None:
    assert decode_json(canonical_json(document)) == document
    assert decode_json(json.dumps(document)) == document, (
        "escapes are joined to the characters they stand for"
    )


@given(st.binary(max_size=40) | st.text('[]{}:,"\\\\ud8\u00e90189eE+-.NaInfty ', max_size=40))
def test_anything_else_is_malformed(data: bytes | str) -> None:
    try:
        value = decode_json(data)
    except Malformed:
        return
    assert is_plain(value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("1e999", "1e999 is no finite number"),
        ("-1e999", "no finite number"),
        ('{"a": NaN}', "it holds NaN"),
        ("[-Infinity]", "it holds -Infinity"),
        (r'"\ud83d"', "half a surrogate pair"),
        (r'{"\udc00": 1}', "half a surrogate pair"),
        ('{"a": {"b": 1, "b": 2}}', "key 'b' stands twice"),
        ("9" * 5000, "an integer has 5000 characters"),
        (str(1 << 63), "9223372036854775808 has more than 64 bits"),
        ("[" * 101 + "]" * 101, "more than 100 levels deep"),
        ("[" * 100_000, "more than 100 levels deep"),
        ("[1,", "line 1"),
        (b"\xe9", "byte 0 is not UTF-8"),
        (b"[1]\x00", "Extra data"),
    ],
)
def test_what_no_record_holds_is_refused(text: str | bytes, problem: str) -> None:
    with pytest.raises(Malformed) as caught:
        decode_json(text)
    assert problem in str(caught.value)


def test_bounds_are_of_the_document_and_not_of_its_strings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MOST_VALUES", 100)
    assert decode_json(json.dumps(["," * 1000, '"[[[' * 1000]))
    assert decode_json("[" + "1," * 98 + "1]")
    with pytest.raises(Malformed, match="more than 100 values"):
        decode_json("[" + "1," * 99 + "1]")


@pytest.mark.parametrize(
    "content", [None, b"", b"{", b"\xff\xfe", b"[]", b'"x"', b'{"a": NaN}', b"[" * 100_000]
)
def test_unreadable_json_is_an_artifact_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"The record.*(missing|not readable)") as caught:
        read_json(path, what="The record", hint="mend it")
    assert caught.value.hint == "mend it"


def test_nothing_waits_for_a_pipe_and_no_device_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(Malformed, match="not a regular file"):
            read_bytes(path)
    assert read_bytes(tmp_path / "pipe", pipes=True) == b"", "nobody writes"


def test_a_pipe_that_somebody_writes_is_taken_where_a_user_names_it() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"name: x")
    os.close(writing)
    try:
        assert read_bytes(Path(f"/dev/fd/{reading}"), pipes=True) == b"name: x"
    finally:
        os.close(reading)


def test_a_file_has_a_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MOST_BYTES", 1 << 20)
    (tmp_path / "x").write_bytes(bytes(1 << 20))
    assert len(read_bytes(tmp_path / "x")) == 1 << 20
    (tmp_path / "x").write_bytes(bytes((1 << 20) + 1))
    with pytest.raises(Malformed, match="more than 1 MiB"):
        read_bytes(tmp_path / "x")


def test_a_mark_of_an_editor_before_the_text_is_no_part_of_it() -> None:
    assert decode_json(b"\xef\xbb\xbf[1]") == [1]


def test_what_is_shown_stays_on_its_line_and_is_short() -> None:
    assert shown("für 🙂") == "für 🙂"
    assert shown("a\x1b[2J\nb") == r"a\x1b[2J\nb"
    assert shown("x" * 1000) == "x" * 80 + "..."


def test_what_libraries_write_is_read_of_theirs_and_not_of_ours() -> None:
    """Diffusers writes ``-Infinity`` into a scheduler's configuration, transformers 10**30 for no limit."""
    for text in (
        '{"lambda_min_clipped": -Infinity}',
        '{"model_max_length": 1000000000000000019884624838656}',
    ):
        assert decode_json(text, others=True) == json.loads(text)
        with pytest.raises(Malformed):
            decode_json(text)
    for text in ('{"a": 1, "a": 2}', "[" * 200, '{"a": ' + "9" * 200 + "}"):
        with pytest.raises(Malformed):
            decode_json(text, others=True)
