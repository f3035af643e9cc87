"""What happens when the disk, the memory, the time or another process gets in the way?"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gacq_deploy.storage.files import TEMP_PREFIX
from gacq_deploy.storage.lock import LOCK_NAME
from tests.support.programs.commands import child_environment, command_code, invoke, run_child
from tests.support.programs.warm_process import WarmProcess

HOLDER = """
import sys
from pathlib import Path
from gacq_deploy.storage.lock import lock_directory
with lock_directory(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def _files(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != LOCK_NAME
    }


@pytest.mark.parametrize(
    "command", ["calibrate -r {recipe} -o {run}", "export --onnx {run}", "parity {run}", "bench {run}"]
)
def test_a_directory_in_use_is_refused(run_copy: Path, recipe_file: Path, command: str) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run_copy)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=child_environment(),
    )  # fmt: skip
    with holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        before = _files(run_copy)
        done = invoke([*command.format(run=run_copy, recipe=recipe_file).split(), "--json"])
        holder.stdin.close()
    assert done.exit_code == 6, done.output
    error = json.loads(done.stdout)["error"]
    assert f"in use by process {holder.pid}" in error["message"]
    assert "Wait for it" in error["hint"]
    assert _files(run_copy) == before


def test_the_lock_of_a_dead_process_is_taken_over(run_copy: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run_copy)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=child_environment(),
    )  # fmt: skip
    with holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        (run_copy / f"{TEMP_PREFIX}{holder.pid}-half.bin").write_bytes(b"half")
        holder.kill()
    done = invoke(["export", "--onnx", str(run_copy)])
    assert done.exit_code == 0, done.output
    assert not list(run_copy.rglob(f"{TEMP_PREFIX}*"))


def test_a_file_size_limit_ends_calibrate_cleanly(
    warm_server: str, recipe_file: Path, tmp_path: Path
) -> None:
    code = command_code("import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))")
    arguments = ["calibrate", "-r", str(recipe_file), "-o", str(tmp_path / "run"), "--json"]
    with WarmProcess(warm_server, code, *arguments) as child:
        stdout, stderr = child.communicate(timeout=300)
    assert child.returncode == 6, stderr
    error = json.loads(stdout)["error"]
    assert "No space left" in error["message"]
    assert "Free disk space" in error["hint"]
    assert "Traceback" not in stderr
    assert not list((tmp_path / "run").rglob(f"{TEMP_PREFIX}*"))
    assert not (tmp_path / "run" / "artifact").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB, where this process may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", os.fsencode(place), b"tmpfs", 0, b"size=4m") != 0:
        pytest.skip(f"mounting is not permitted here: {os.strerror(ctypes.get_errno())}")
    yield place
    libc.umount2(os.fsencode(place), 2)


@pytest.mark.slow
@pytest.mark.parametrize("free", [0, 100_000], ids=["full", "nearly-full"])
@pytest.mark.parametrize("stage", ["export", "parity", "run", "calibrate"])
def test_a_full_disk_leaves_earlier_files_alone(
    small_disk: Path, finished_run: Path, recipe_file: Path, stage: str, free: int
) -> None:
    run = Path(shutil.copytree(finished_run, small_disk / "run"))
    stale = {"export": "onnx/manifest.json", "parity": "parity.json", "calibrate": "artifact/manifest.json"}
    if stage in stale:
        (run / stale[stage]).unlink()
    if stage == "calibrate":
        shutil.rmtree(run / "work")
    space = shutil.disk_usage(small_disk).free
    (small_disk / "ballast").write_bytes(bytes(max(0, space - free)))
    before = _files(small_disk)
    command = {
        "export": f"export --onnx {run}",
        "parity": f"parity {run} --engine ort-cpu --threads 1",
        "run": f"run {run} -n 2 --threads 1 -o {run}/images.png",
        "calibrate": f"calibrate -r {recipe_file} -o {run}",
    }[stage]
    done = invoke([*command.split(), "--json"])
    if done.exit_code == 0:
        assert free > 0, "wrote to a full disk"
        return
    assert done.exit_code == 6, done.output
    error = json.loads(done.stdout)["error"]
    # what is known to be too much is refused before it begins
    foreseen = stage in ("export", "calibrate")
    assert ("free disk" if foreseen else "No space left") in error["message"]
    assert error["hint"]
    after = _files(small_disk)
    assert {name: after.get(name) for name in before} == before
    assert not [name for name in after if TEMP_PREFIX in name]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_saves_state_and_the_run_resumes(
    warm_server: str, recipe_file: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    run = tmp_path / "run"
    slow = ["--set", "calibration.reconstruction.iterations=60"]
    arguments = ["calibrate", "-r", str(recipe_file), "-o", str(run), *slow]
    with WarmProcess(warm_server, command_code(), *arguments, "--json") as child:
        assert any("reconstruct blocks" in line for line in child.stderr)
        child.send_signal(number)
        stdout, stderr = child.communicate(timeout=120)
    assert child.returncode == code, stderr
    assert "Traceback" not in stderr
    assert "state saved" in json.loads(stdout)["error"]["message"]
    assert not (run / "artifact" / "manifest.json").exists()
    assert not list(run.rglob(f"{TEMP_PREFIX}*"))
    if number != signal.SIGTERM:
        return  # they leave the same behind
    resumed = invoke([*arguments, "--json"])
    fresh = invoke(["calibrate", "-r", str(recipe_file), "-o", str(tmp_path / "other"), *slow, "--json"])
    assert resumed.exit_code == fresh.exit_code == 0, resumed.output
    assert json.loads(resumed.stdout)["artifact"] == json.loads(fresh.stdout)["artifact"]


@pytest.mark.slow
def test_the_first_process_of_a_container_hears_that_it_is_to_end(finished_run: Path, tmp_path: Path) -> None:
    """The kernel drops a signal that process 1 has no handler for: every stop would be a kill."""
    alone = ["unshare", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a namespace of its own is not permitted here")
    words = [
        "run",
        str(finished_run),
        "-n",
        "20000",
        "--batch",
        "4",
        "--threads",
        "1",
        "-o",
        str(tmp_path / "a.png"),
    ]
    with subprocess.Popen(
        [*alone, sys.executable, "-c", command_code(), *words],
        env=child_environment(), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    ) as child:  # fmt: skip
        assert child.stderr is not None
        assert any("denoise" in line for line in child.stderr)
        (inner,) = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
        os.kill(int(inner), signal.SIGTERM)
        assert child.wait(30) == 143
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_too_little_memory_is_said_and_not_a_traceback(
    warm_server: str, recipe_file: Path, tmp_path: Path
) -> None:
    # everything is imported; what is left holds a thousand images of 64 x 64, not the first layer's output of them
    before = (
        "import resource\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 400_000_000, resource.RLIM_INFINITY))"
    )
    settings = ("model.sample_size=64", "samples.trajectories=1000", "samples.batch=1000")
    wide = [part for setting in settings for part in ("--set", setting)]
    arguments = ["calibrate", "-r", str(recipe_file), "-o", str(tmp_path / "run"), *wide, "--json"]
    with WarmProcess(warm_server, command_code(before), *arguments) as child:
        stdout, stderr = child.communicate(timeout=300)
    assert child.returncode == 6, stdout + stderr
    error = json.loads(stdout)["error"]
    assert "memory" in error["message"]
    assert "--batch" in error["hint"] or "batch" in error["hint"]
    assert "Traceback" not in stderr


def test_a_closed_pipe_is_quiet() -> None:
    command = f"{sys.executable} -m gacq_deploy_cli.main recipes schema | head -c 10"
    done = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        env=child_environment(),
        timeout=60,
        check=False,
    )
    assert done.stdout == '{\n  "$defs'
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_limits_of_this_process_are_untouched() -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("calibrate -r {recipe} -o {tmp}/new", "calibrate"),
        ("calibrate -r {recipe} -o {tmp}/new --dry-run", "calibrate"),
        ("export --onnx {run} --target tensorrt", "calibrate"),
        ("run {run} --scheduler EulerDiscreteScheduler -o {tmp}/a.png", "calibrate"),
        ("quickstart -r {recipe} -o {tmp}/new", "cpu,calibrate"),
    ],
    ids=["calibrate", "dry-run", "export", "scheduler", "quickstart"],
)
def test_without_torch_the_pip_line_is_named(
    command: str, extra: str, run_copy: Path, recipe_file: Path, tmp_path: Path
) -> None:
    (run_copy / "onnx" / "manifest.json").unlink() if "export" in command else None
    before = "import sys\nsys.modules['torch'] = sys.modules['diffusers'] = None"
    argv = command.format(run=run_copy, recipe=recipe_file, tmp=tmp_path).split()
    done = run_child([*argv, "--json"], before=before)
    assert done.returncode == 4, done.stdout + done.stderr
    error = json.loads(done.stdout)["error"]
    assert f"pip install 'gacq-deploy[{extra}]'" in error["hint"]
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_without_torch_the_rest_works(run_copy: Path, tmp_path: Path) -> None:
    before = "import sys\nsys.modules['torch'] = sys.modules['diffusers'] = None"
    for command in (
        f"run {run_copy} -n 2 --threads 1 -o {tmp_path}/a.png",
        f"parity {run_copy} --engine ort-cpu --threads 1",
        f"verify {run_copy}",
        f"inspect {run_copy}",
        f"lint {run_copy}",
        f"report {run_copy} -o {tmp_path}/a.html",
    ):
        done = run_child([*command.split(), "--json"], before=before)
        assert done.returncode == 0, done.stdout + done.stderr
        assert json.loads(done.stdout)
        assert '"pictures"' not in done.stdout  # the page lacks none
