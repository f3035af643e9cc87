"""Prompt files in every form that people keep them in, and what is wrong with the others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gacq_deploy.errors import UsageError
from gacq_deploy.samples.prompts import BUILTIN, MOST_CHARACTERS, draw_prompts, read_prompts


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "a cat\n\n  a dog \n"),
        ("a.txt", "\ufeffa cat\r\na dog"),
        ("a.json", '["a cat", {"prompt": "a dog", "seed": 3}]'),
        ("a.jsonl", '{"caption": "a cat"}\n\n"a dog"\n'),
        ("a.jsonl", '{"caption": "a cat"}\r"a dog"\r\n'),
    ],
)
def test_every_form_gives_the_same_prompts(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_prompts(tmp_path / name) == ("a cat", "a dog")


@pytest.mark.parametrize("end", ["\u2028", "\u2029", "\x85", "\x0c", "\x1d"])
def test_only_a_line_feed_or_a_carriage_return_ends_a_line(end: str, tmp_path: Path) -> None:
    text, lines = tmp_path / "a.txt", tmp_path / "a.jsonl"
    text.write_text(f"a cat{end}on a mat\na dog", encoding="utf-8")
    lines.write_text(
        json.dumps(f"a cat{end}on a mat", ensure_ascii=ord(end) < 32) + '\n"a dog"', encoding="utf-8"
    )
    assert read_prompts(text) == read_prompts(lines) == (f"a cat{end}on a mat", "a dog")


@pytest.mark.parametrize(
    ("name", "content", "fragment"),
    [
        ("a.txt", b"", "holds no prompt"),
        ("a.txt", b"\xff\xfe\x00", "cannot be read"),
        ("a.txt", b"x" * (MOST_CHARACTERS + 1), f"has {MOST_CHARACTERS + 1} characters"),
        ("a.txt", b"a\0b", "NUL"),
        ("a.json", b"{", "not valid JSON"),
        ("a.json", b'{"prompt": "a"}', "holds dict, not a list"),
        ("a.json", b'["a", 3]', "Prompt 2 .* is int"),
        ("a.jsonl", b'"a"\n{"title": "b"}', "Prompt 2 .* is dict"),
        ("a.jsonl", b'"a"\n{', "a.jsonl:2"),
    ],
)
def test_a_wrong_file_is_refused_with_its_place(
    name: str, content: bytes, fragment: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=fragment) as caught:
        read_prompts(tmp_path / name)
    assert "One prompt a line" in caught.value.hint


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_prompts(tmp_path / "none.txt")


@given(st.integers(0, 2**31 - 1), st.integers(0, 200), st.integers(1, 100))
def test_drawing_is_seeded_and_goes_round(seed: int, first: int, count: int) -> None:
    prompts = [str(i) for i in range(17)]
    whole = draw_prompts(prompts, seed, 0, first + count)
    assert draw_prompts(prompts, seed, first, count) == whole[first:]
    assert set(whole[:17]) <= set(prompts)
    assert len(set(whole[:17])) == min(17, len(whole))


def test_the_built_in_prompts_are_many_and_distinct() -> None:
    assert len(BUILTIN) == len(set(BUILTIN)) >= 64
    assert json.loads(json.dumps(BUILTIN)) == list(BUILTIN)
