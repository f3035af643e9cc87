from pathlib import Path

import pytest

from benchmarks.store import RESULTS, finished, keep_row, load_rows, write_rows
from gacq_deploy.errors import ArtifactError

ABOUT = {"command": "x"}


def test_rows_are_kept_one_by_one_and_count_for_one_digest(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert load_rows(path) == {}
    for key, digest in (("b", "0"), ("a", "1"), ("b", "2")):
        keep_row(path, key, {"digest": digest}, ABOUT)
    rows = load_rows(path)
    assert finished(rows, "a", "1")
    assert finished(rows, "b", "2")
    assert not finished(rows, "a", "2")
    assert not finished(rows, "c", "1")
    assert list(rows) == ["a", "b"]


def test_a_row_is_a_line_that_begins_with_its_key(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = {"b": {"psnr_db": 0.1 + 0.2}, "a": {"text": "one\u2028line\n"}}
    write_rows(path, rows, ABOUT)
    lines = path.read_text(encoding="utf-8").split("\n")
    assert lines[:2] == ['{"about": {"command": "x"}}', '{"key": "b", "psnr_db": 0.30000000000000004}']
    assert load_rows(path) == rows
    assert list(load_rows(path)) == ["b", "a"]
    write_rows(path, {"a": {}})
    assert path.read_text(encoding="utf-8") == '{"key": "a"}\n'


@pytest.mark.parametrize("line", ['{"key": "b"', "[1]"])
def test_a_broken_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"key": "a"}}\n{line}\n')
    with pytest.raises(ArtifactError, match=r"rows\.jsonl:2"):
        load_rows(path)


def test_every_kept_result_has_this_form() -> None:
    assert not list(RESULTS.rglob("*.json"))
    for path in RESULTS.rglob("*.jsonl"):
        load_rows(path)
