from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from benchmarks import soak
from benchmarks.store import load_rows
from gacq_deploy.errors import ArtifactError
from tests.support.fuzz.inputs import Input
from tests.support.fuzz.reader import FuzzedReader, Opened
from tests.support.fuzz.record_rows import RECORDS


def reader_of(read: Callable[[Input], object]) -> FuzzedReader:
    def restructure(rng: Random, tried: Input) -> Input:
        return tried.holding(rng.choice((b"good", b"bad", b"wrong")))

    return FuzzedReader(
        lambda _: Opened((Input("json", b"good"),), read),
        restructure,
        ArtifactError,
        tries=0,
        most_calls=10**9,
    )


def read_wrongly(tried: Input) -> None:
    if tried.data == b"wrong":
        raise KeyError("wrong")
    if tried.data != b"good":
        raise ArtifactError("It is damaged.", "Restore it.")


def test_what_fails_is_counted_by_its_place_and_kept(tmp_path: Path) -> None:
    run, corpus = tmp_path / "run", tmp_path / "corpus"
    tally = soak.soak("mine", reader_of(read_wrongly), run, soak.Soak(seed=1, seconds=0.05, corpus=corpus))
    row = tally.row(1)
    assert row["failures"] == {"KeyError at test_soak.py:read_wrongly": row["failed"]}
    assert row["tried"] == row["accepted"] + row["refused"] + row["failed"]
    assert min(row["accepted"], row["refused"], row["failed"]) > 0
    assert [file.read_bytes() for file in (corpus / "mine").iterdir()] == [b"wrong"]


def test_work_that_makes_no_calls_is_ended_and_kept(tmp_path: Path) -> None:
    def read(_: Input) -> None:
        while True:
            pass

    asked = soak.Soak(seed=1, seconds=0.05, corpus=tmp_path, most_seconds=0.02)
    tally = soak.soak("mine", reader_of(read), tmp_path / "run", asked)
    assert sum(tally.failed.values()) == sum(tally.tried.values()) > 0
    assert {name.partition(" ")[0] for name in tally.failed} == {"Unbounded"}


def test_a_line_a_reader_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = replace(reader_of(read_wrongly), open=lambda _: Opened((Input("json", b"wrong"),), read_wrongly))
    monkeypatch.setattr(soak, "READERS", {"bench": RECORDS["bench"], "mine": broken})
    monkeypatch.setattr(soak, "keep", lambda *_: tmp_path)
    out = tmp_path / "soak.jsonl"
    asked = ["--minutes", "0.001", "--seed", "7", "--out", str(out)]
    assert soak.main([*asked, "--readers", "bench"]) == 0
    assert soak.main(asked) == 1
    rows = load_rows(out)
    assert list(rows) == ["bench", "mine"]
    assert rows["bench"]["seed"] == 7
    assert rows["bench"]["refused"] > 0
    with pytest.raises(SystemExit):
        soak.main(["--readers", "bnech"])
    assert "no readers: bnech" in capsys.readouterr().err
