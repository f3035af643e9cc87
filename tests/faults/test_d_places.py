"""Group D: places where nothing can be written, odd names, links and clocks. Refused in words, or it simply works."""

from __future__ import annotations

import errno
import json
import os
import resource
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gacq_deploy.run_directory import RunDirectory
from tests.support.programs.commands import invoke

Refusal = tuple[int, str]
"""Exit code, and what the message says."""


def _draw(run: RunDirectory, place: Path) -> list[str]:
    return ["run", str(run.root), "-n", "1", "-o", str(place), "--json"]


def _below_a_file(run: RunDirectory, tmp: Path) -> tuple[list[str], Refusal]:
    (tmp / "file").write_text("mine")
    return _draw(run, tmp / "file" / "a.png"), (2, "is a file, not a folder")


def _a_folder(run: RunDirectory, tmp: Path) -> tuple[list[str], Refusal]:
    (tmp / "a.png").mkdir()
    return _draw(run, tmp / "a.png"), (2, "a.png")


def _too_long(run: RunDirectory, tmp: Path) -> tuple[list[str], Refusal]:
    return _draw(run, tmp / ("x" * 300 + ".png")), (2, "File name too long")


def _deep(run: RunDirectory, tmp: Path) -> tuple[list[str], Refusal]:
    return _draw(run, Path("/".join([str(tmp), *["d" * 200] * 25, "a.png"]))), (2, "Cannot write")


def _dangling_folder(run: RunDirectory, tmp: Path) -> tuple[list[str], Refusal]:
    (tmp / "gone").symlink_to(tmp / "nowhere")
    return _draw(run, tmp / "gone" / "a.png"), (2, "there is no folder")


REFUSED: dict[str, Callable[[RunDirectory, Path], tuple[list[str], Refusal]]] = {
    "a folder that is a file": _below_a_file,
    "a file that is a folder": _a_folder,
    "a name of 300 bytes": _too_long,
    "a path of 5,000 bytes": _deep,
    "a folder behind a dangling link": _dangling_folder,
}


@pytest.mark.parametrize("case", REFUSED)
def test_d_refused(case: str, run: RunDirectory, tmp_path: Path) -> None:
    words, (code, said) = REFUSED[case](run, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    done = invoke(words)
    assert done.exit_code == code, done.output
    assert said in json.loads(done.stdout)["error"]["message"]
    assert "denoise" not in done.output, "it worked before it refused"
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("error", [errno.EROFS, errno.EACCES, errno.EXDEV, errno.EIO])
def test_d_a_place_that_takes_no_file(
    error: int, run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the system says of it, whatever it is, is told; nothing half written stays."""

    def refused(self: Path, target: Path) -> Path:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(Path, "replace", refused)
    before = sorted(run.root.rglob("*"))
    done = invoke(["report", str(run.root), "--no-images", "--json"])
    assert done.exit_code == 2
    assert os.strerror(error) in json.loads(done.stdout)["error"]["message"]
    assert sorted(run.root.rglob("*")) in (before, sorted([*before, run.root / ".gacq-lock"]))


@contextmanager
def _few_files() -> Iterator[None]:
    """Leave the process only the files that it has open."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_d_no_more_files_may_be_open(run: RunDirectory) -> None:
    invoke(["verify", str(run.root)])  # what it imports is imported
    with _few_files():
        done = invoke(["verify", str(run.root), "--json"])
    assert done.exit_code == 5, done.output
    assert "Too many open files" in done.stdout, done.stdout


def test_d_a_file_that_is_gone_between_check_and_use(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gacq_deploy.storage import records

    verified = records.verify_file

    def then_gone(path: Path, *about: object, **more: object) -> None:
        verified(path, *about, **more)  # type: ignore[arg-type]
        if path.name == "int8.cpu.onnx":
            path.unlink()

    monkeypatch.setattr(records, "verify_file", then_gone)
    done = invoke(_draw(run, tmp_path / "a.png"))
    assert done.exit_code == 5
    assert "int8.cpu.onnx" in json.loads(done.stdout)["error"]["message"]
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("name", ["two words", "größe 🙂", "-o", "a;b", "%s{x}", "x" * 200])
def test_d_a_run_of_any_name_works(name: str, run: RunDirectory, tmp_path: Path) -> None:
    odd = RunDirectory(shutil.copytree(run.root, tmp_path / name))
    done = invoke(["report", "--no-images", "--json", "--", str(odd.root)])
    assert done.exit_code == 0, done.output
    assert shlex.quote(str(odd.root)) in json.loads(done.stdout)["missing"]["bench"], (
        "no shell takes the remedy"
    )


def test_d_times_in_the_future_change_nothing(run: RunDirectory) -> None:
    before = json.loads(invoke(["verify", str(run.root), "--json"]).stdout)
    for path in run.root.rglob("*"):
        os.utime(path, (4e9, 4e9), follow_symlinks=False)
    assert json.loads(invoke(["verify", str(run.root), "--json"]).stdout) == before


def test_d_a_dangling_link_in_the_place_of_the_output_is_replaced(run: RunDirectory, tmp_path: Path) -> None:
    place = tmp_path / "a.png"
    place.symlink_to(tmp_path / "nowhere" / "b.png")
    assert invoke(_draw(run, place)).exit_code == 0
    assert not place.is_symlink()
    assert not (tmp_path / "nowhere").exists()
