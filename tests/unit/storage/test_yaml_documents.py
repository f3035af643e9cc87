"""YAML of anybody becomes plain data, or is refused in words, before it takes time or memory."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gacq_deploy.storage import yaml_documents
from gacq_deploy.storage.documents import Malformed
from gacq_deploy.storage.yaml_documents import decode_yaml, encode_yaml
from tests.unit.storage.test_documents import DOCUMENTS, is_plain

BOMB = "a0: &a0 [x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 40)
)


@given(DOCUMENTS)
def test_what_we_write_is_read_back(document: Any) -> None:
    assert decode_yaml(encode_yaml(document)).value == document


@given(st.binary(max_size=40) | st.text("[]{}:,-?&*!|>'\"%@ \n\tab019.e+_~<=#", max_size=40))
def test_anything_else_is_malformed(data: bytes | str) -> None:
    try:
        value = decode_yaml(data).value
    except Malformed:
        return
    assert is_plain(value)


@pytest.mark.parametrize(
    ("text", "problem", "line"),
    [
        (BOMB, "more than 1,000,000 values", None),
        ("a: &a " + "x" * 1_000_000 + "\nb: [" + ", ".join(["*a"] * 70) + "]", "characters in them", None),
        ("a: 1\nb: &b [*b]", "*b stands for nothing whole before it", 2),
        ("&a {<<: *a}", "*a stands for nothing", 1),
        ("*a", "*a stands for nothing", 1),
        ("k: " + "[" * 100_000, "more than 100 levels deep", None),
        ("- " * 100_000, "more than 100 levels deep", None),
        ("[" * 101 + "]" * 101, "more than 100 levels deep", None),
        ("a: 1\na: 2", "duplicate key 'a'", 2),
        ("x: &x {a: 1, a: 2}", "duplicate key 'a'", 1),
        ("? [a]\n: 1", "a key is no text", 1),
        ("1: a", "key 1 is no text", None),
        (".inf", ".inf is no finite number", 1),
        ("a:\n  - -.Inf", "-.Inf is no finite number", 2),
        (".nan", "no finite number", 1),
        ("1.0e+999", "no finite number", 1),
        ("9" * 5000, "is no integer", 1),
        ("0x_", "0x_ is no integer", 1),
        ("0b__", "is no integer", 1),
        (str(1 << 63), "more than 64 bits", None),
        (":".join(["59"] * 400) + ".5", "is no number", 1),
        ("2024-13-45", "2024-13-45 is a date", 1),
        ("!!python/object/apply:os.system [x]", "a tag is not taken", 1),
        ("!!binary x", "a tag is not taken", 1),
        ("!!bool x", "a tag is not taken", 1),
        (r'"\ud83d"', "Unicode", 1),
        ("\ud83d", "character 0 is half a surrogate pair", None),
        (b"a: \xe9", "byte 3 is not UTF-8", None),
        ("a: 1\nb: ]", "did not find expected node", 2),
        ("a\n---\nb", "another document", 2),
    ],
)  # fmt: skip
def test_what_no_document_holds_is_refused_with_its_line(
    text: str | bytes, problem: str, line: int | None
) -> None:
    with pytest.raises(Malformed) as caught:
        decode_yaml(text)
    assert problem in caught.value.problem
    assert line is None or caught.value.line == line


def test_an_alias_is_a_copy_of_what_it_stands_for() -> None:
    value = decode_yaml("a: &x {k: [1]}\nb: *x\nc: {<<: *x, l: 2}").value
    assert value == {"a": {"k": [1]}, "b": {"k": [1]}, "c": {"k": [1], "l": 2}}
    value["a"]["k"].append(2)
    assert value["b"] == {"k": [1]}


def test_aliases_count_as_what_they_expand_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_documents, "MOST_VALUES", 30)
    assert decode_yaml("[&a [1, 2, 3], *a, *a, *a]").value == [[1, 2, 3]] * 4
    with pytest.raises(Malformed, match="values"):
        decode_yaml("[&a [1, 2, 3], " + ", ".join(["*a"] * 8) + "]")


def test_tags_that_say_nothing_more_are_taken() -> None:
    assert decode_yaml("!!map {a: !!str 3, b: !!seq [! x]}").value == {"a": "3", "b": ["x"]}


def test_places_have_lines() -> None:
    document = decode_yaml("a:\n  - x\n  - b: 1\nc: 2\n")
    places: list[tuple[tuple[int | str, ...], int]] = [
        ((), 1), (("a",), 1), (("a", 1), 3), (("a", 1, "b"), 3), (("c", "nothing"), 4), (("d",), 1),
    ]  # fmt: skip
    assert [document.line(place) for place, _ in places] == [line for _, line in places]
