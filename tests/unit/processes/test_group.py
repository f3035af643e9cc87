"""Do the shares of a group make one whole, and does a process without a launcher need none of it?"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gacq_deploy.errors import UsageError
from gacq_deploy.generate.distributed import share_request
from gacq_deploy.generate.request import ImageRequest
from gacq_deploy.processes.group import ALONE, Group, joined_group, own_rank, speaks_first
from gacq_deploy.recipe.load import load_recipe
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.storage.files import TEMP_PREFIX
from tests.support.artifacts.judged_run import make_run
from tests.support.programs.commands import child_environment, command_code, invoke
from tests.support.programs.parallel_worker import collect
from tests.support.programs.warm_process import WarmProcess, warm_command

LAUNCHED = {
    "RANK": "1",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "1",
}


@given(count=st.integers(1, 40), batch=st.integers(1, 9), size=st.integers(1, 5), labels=st.integers(1, 4))
def test_shares_of_a_request_are_its_own_whole_batches(
    count: int, batch: int, size: int, labels: int
) -> None:
    asked = ImageRequest(count=count, seed=7, labels=tuple(range(labels)), batch=batch)
    nowhere = RunDirectory(Path("nowhere"))
    shares = [share_request(nowhere, asked, Group(rank, size)) for rank in range(size)]
    images = [
        (s.seed + i, s.labels[i % len(s.labels)])
        for s in shares
        if s is not None and s.labels is not None
        for i in range(s.count)
    ]
    assert images == [(7 + i, i % labels) for i in range(count)]
    assert all((s.seed - 7) % batch == 0 and s.batch == batch for s in shares if s is not None)


@given(size=st.integers(1, 9), count=st.integers(0, 40))
def test_every_index_is_somebodys_and_nobody_has_two_more_than_another(size: int, count: int) -> None:
    shares = [Group(rank, size).indices(count) for rank in range(size)]
    assert sorted(piece for share in shares for piece in share) == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_process_alone_hears_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    with joined_group() as group:
        assert group is ALONE
        assert group.is_main
        assert group.broadcast("word") == "word"
        assert group.gather(3) == [3]
        group.wait()
    assert own_rank() == 0
    assert speaks_first()


def test_alone_it_needs_no_torch() -> None:
    code = (
        "import sys; from gacq_deploy.processes.group import joined_group, speaks_first\n"
        "with joined_group() as group: group.wait()\n"
        "assert speaks_first() and 'torch' not in sys.modules"
    )
    environment = {k: v for k, v in child_environment().items() if k not in LAUNCHED}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_processes_on_several_machines_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert own_rank() == 1
    with (
        pytest.raises(UsageError, match="2 processes on several machines: 1 of them run here"),
        joined_group(),
    ):
        pass


def torchrun(worker: Sequence[str], arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Start two processes as a user does, with a port of their own."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {k: v for k, v in child_environment().items() if k not in LAUNCHED}
    return subprocess.run(
        [*launcher, "--no-python", *worker, *arguments],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture
def collecting(warm_server: str) -> tuple[str, ...]:
    """What torchrun starts in place of ``python -m tests.support.programs.parallel_worker``."""
    code = "import runpy; runpy.run_module('tests.support.programs.parallel_worker', run_name='__main__')"
    return warm_command(warm_server, code)


DRAWN = """
schema: gacq-deploy/recipe/1
name: drawn
samples: {trajectories: 5, steps: 3, batch: 2}
quantization: {rules: [{match: '*', bits: 8}]}
calibration: {threads: 1}
parity: {probe: {trajectories: 2}}
"""
PROMPTED = (
    DRAWN.replace("drawn", "prompted")
    + "model: {source: 'python:tests.support.models.odd_family:make_pipeline', component: painter}"
)


@pytest.mark.slow
def test_samples_are_the_same_bytes_however_many_processes_collect_them(
    collecting: tuple[str, ...], tmp_path: Path
) -> None:
    files = {}
    for name, text in (("drawn", DRAWN), ("prompted", PROMPTED)):
        files[name] = tmp_path / f"{name}.yaml"
        files[name].write_text(text, encoding="utf-8")
    done = torchrun(collecting, [str(tmp_path / "two"), *map(str, files.values())], tmp_path)
    assert done.returncode == 0, done.stderr
    for number, file in enumerate(files.values()):
        alone, together = (RunDirectory(tmp_path / f / str(number)) for f in ("one", "two"))
        collect(load_recipe(str(file)).allowing_python(), alone, ALONE)
        made = sorted(p.relative_to(alone.root) for p in alone.root.rglob("*") if p.is_file())
        assert made == sorted(p.relative_to(together.root) for p in together.root.rglob("*") if p.is_file())
        assert alone.samples_path.relative_to(alone.root) in made
        for path in made:
            assert (alone.root / path).read_bytes() == (together.root / path).read_bytes(), path


@pytest.mark.slow
def test_images_are_the_same_bytes_and_an_error_is_said_once(warm_server: str, tmp_path: Path) -> None:
    directory = make_run(tmp_path)
    command = warm_command(warm_server, command_code())
    ask = ["run", str(directory.root), "-n", "5", "--batch", "2", "--seed", "3", "-o"]
    done = torchrun(command, [*ask, "two.png", "--json"], tmp_path)
    assert done.returncode == 0, done.stderr
    message = json.loads(done.stdout)
    assert message["seeds"] == [3, 4, 5, 6, 7]
    assert message["class_labels"] == [0, 1, 2, 3, 0]
    assert invoke([*ask, str(tmp_path / "one.png"), "-q"]).exit_code == 0
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    failed = torchrun(command, [*ask, "no.png", "--class", "77"], tmp_path)
    assert failed.returncode != 0
    assert failed.stderr.count("Class label 77 is out of range") == 1
    assert not (tmp_path / "no.png").exists()


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_others(collecting: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(DRAWN, encoding="utf-8")
    done = torchrun(collecting, [str(tmp_path / "run"), str(tmp_path / "recipe.yaml"), "--die"], tmp_path)
    assert done.returncode != 0
    assert not RunDirectory(tmp_path / "run" / "0").samples_path.exists()


@pytest.mark.slow
def test_processes_that_are_told_to_end_save_state_as_one_does(warm_server: str, tmp_path: Path) -> None:
    """The launcher passes a signal on to each; here they get it without one."""
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(DRAWN.replace("trajectories: 5", "trajectories: 400"), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    with ExitStack() as stack:
        processes = []
        for rank in ("0", "1"):
            place = {**LAUNCHED, "RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": port}
            code = command_code(f"import os; os.environ.update({place!r})")
            words = ("calibrate", "-r", str(recipe), "-o", str(run), "--json")
            processes.append(stack.enter_context(WarmProcess(warm_server, code, *words)))
        assert any("collect samples" in line for line in processes[0].stderr)
        for process in processes:
            process.send_signal(signal.SIGTERM)
        said, errors = zip(*(process.communicate(timeout=20) for process in processes), strict=True)
        assert [process.returncode for process in processes] == [143, 143]
    messages = [json.loads(text)["error"]["message"] for text in said if text]
    # both, if the first took the table of the group with it
    assert messages
    assert all("state saved" in message for message in messages)
    assert "Traceback" not in "".join(errors)
    assert not list(run.rglob(f"{TEMP_PREFIX}*"))
    assert not RunDirectory(run).samples_path.exists()
