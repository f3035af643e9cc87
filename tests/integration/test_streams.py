"""What happens where a stream is closed, cannot hold a character, or a path or a variable is odd?"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gacq_deploy.errors import UsageError
from gacq_deploy.run_directory import RunDirectory, find_runs
from tests.support.programs.commands import child_environment, invoke

GROUP = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def _run(words: list[str], *, shell: str = "", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Start the command line as a shell does, with redirections of its own."""
    call = ["bash", "-c", f'exec "$0" -m gacq_deploy "$@" {shell}', sys.executable, *words]
    return subprocess.run(
        call, env=child_environment() | environment, capture_output=True, timeout=120, check=False
    )


def test_without_standard_output_a_command_does_its_work(finished_run: Path, tmp_path: Path) -> None:
    quiet = _run(["verify", str(finished_run)], shell=">&- <&-")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, b"", b"")
    image = tmp_path / "a.png"
    drawn = _run(["run", str(finished_run), "-n", "1", "-o", str(image)], shell="2>&-")
    assert drawn.returncode == 0
    assert image.read_bytes().startswith(b"\x89PNG")


def test_a_stream_that_is_not_unicode_ends_nothing(finished_run: Path) -> None:
    table = _run(["verify", str(finished_run)], PYTHONIOENCODING="latin-1")
    assert table.returncode == 0
    assert b"-----" in table.stdout
    document = _run(["recipes", "list", "--json"], PYTHONIOENCODING="ascii")
    assert json.loads(document.stdout.decode("ascii")) == json.loads(
        _run(["recipes", "list", "--json"]).stdout
    )


def test_a_path_that_is_no_utf_8_is_refused_in_words(finished_run: Path, tmp_path: Path) -> None:
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    Path(odd).symlink_to(finished_run)
    for words in (["verify", odd], ["report", odd], ["run", str(finished_run), "-o", f"{odd}/a.png"]):
        done = _run(words)
        assert done.returncode == 2
        assert b"no UTF-8" in done.stderr
    with pytest.raises(UsageError, match="no UTF-8"):
        RunDirectory(odd)
    assert find_runs(tmp_path) == ()


@pytest.mark.parametrize(
    "odd", [dict.fromkeys(GROUP, ""), {"RANK": "x"}, {"RANK": "7"}, {"WORLD_SIZE": "-2"}, {"RANK": "9" * 50}]
)
def test_names_that_a_jobs_template_leaves_stop_no_command_that_works_alone(
    odd: dict[str, str], finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = dict(zip(GROUP, ("1", "1", "2", "2", "localhost", "1"), strict=True))
    for name, value in {**usual, **odd}.items():
        monkeypatch.setenv(name, value)
    assert invoke(["verify", str(finished_run), "--json"]).exit_code == 0
    image = tmp_path / "a.png"
    drawn = invoke(["run", str(finished_run), "-n", "1", "-o", str(image), "--json"])
    if "" in odd.values():
        assert drawn.exit_code == 0
    else:
        assert drawn.exit_code == 2
        assert next(iter(odd)) in json.loads(drawn.stdout)["error"]["message"]
        assert not image.exists()


def test_a_file_that_may_not_be_read_does_not_end_the_check(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Path.open

    def refused(path: Path, *how: str, **more: str) -> object:
        if path.name == "samples.safetensors":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *how, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", refused)  # the tests run as root, which may read everything
    done = invoke(["verify", str(run_copy), "--json"])
    assert done.exit_code == 5
    links = {link["name"]: link for link in json.loads(done.stdout)["links"]}
    assert "samples.safetensors cannot be read: Permission denied" in links["samples"]["detail"]
    assert links["graphs"]["status"] == "ok"


def test_a_fifo_in_the_place_of_a_file_is_not_waited_for(run_copy: Path) -> None:
    invoke(["report", str(run_copy), "--no-images"])
    names = [p.relative_to(run_copy) for p in sorted(run_copy.rglob("*")) if p.is_file()]
    waits = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it is waited for"))
    try:
        for name in names:
            path = run_copy / name
            data = path.read_bytes()
            path.unlink()
            os.mkfifo(path)
            signal.alarm(20)
            done = invoke(["verify", str(run_copy), "--json"])
            signal.alarm(0)
            path.unlink()
            path.write_bytes(data)
            assert done.exit_code in (0, 2, 5), (name, done.output)
            assert "Traceback" not in done.output
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, waits)
