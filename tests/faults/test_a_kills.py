"""Group A: a calibration that is killed loses nothing that was finished, and the next run ends on the same bytes."""

from __future__ import annotations

import fnmatch
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

from gacq_deploy.calibration.checkpoint import Checkpoint, load_checkpoint
from gacq_deploy.errors import ArtifactError
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.storage.documents import read_json
from gacq_deploy.storage.files import TEMP_PREFIX
from tests.faults.matrix import KILLED_AT, RANDOM_KILLS
from tests.support.programs.commands import command_code, invoke
from tests.support.programs.warm_process import WarmProcess

AT_A_POINT = """
import os, signal
from fnmatch import fnmatch
from pathlib import Path
from gacq_deploy.samples.row_file import RowFile

event, pattern = {event!r}, {pattern!r}

def strike(now, name):
    if now == event and fnmatch(name, pattern):
        os.kill(os.getpid(), signal.SIGKILL)

def moving(move):
    def moved(self, target):
        strike("before", Path(target).name)
        result = move(self, target)
        strike("after", Path(target).name)
        return result
    return moved

class Halved:
    def __init__(self, file):
        self.file, self.writes = file, 0

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def write(self, data):
        self.writes += 1
        if self.writes == 2:  # the first is the header
            self.file.write(memoryview(data)[: len(data) // 2])
            self.file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.file.write(data)

def opening(open_file):
    def opened(self, *how, **named):
        file = open_file(self, *how, **named)
        halved = event == "half" and how == ("wb",) and fnmatch(self.name, pattern)
        return Halved(file) if halved else file
    return opened

def filling(write):
    def filled(self, start, tensors):
        write(self, start, tensors)
        strike("half", self.path.name)
    return filled

Path.replace, Path.rename, Path.open = moving(Path.replace), moving(Path.rename), opening(Path.open)
RowFile.write = filling(RowFile.write)
"""
"""It strikes itself before or after a file of that name takes its place, or when half of it is written."""
AT_A_MOMENT = """
import os, signal, sys, threading
from gacq_deploy_cli import interruption

strike, delay, count = {strike}, {delay}, 0
advance = interruption.Attentive.advance

def counted(self, n=1, **values):
    global count
    count += 1
    if count == strike:
        threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
    advance(self, n, **values)

interruption.Attentive.advance = counted
import atexit
atexit.register(lambda: print("counted", count, file=sys.stderr))
"""
"""It strikes itself a moment after it has got so far, wherever it is then; never, where it is to count only."""
POINTS: Mapping[str, tuple[str, str]] = {
    "samples half written": ("half", "*samples.safetensors"),
    "samples written, not renamed": ("before", "samples.safetensors"),
    "samples without their record": ("after", "samples.safetensors"),
    "ranges half written": ("half", "*-ranges.safetensors"),
    "ranges without their entry": ("after", "*-ranges.safetensors"),
    "block half written": ("half", "*-block-*.safetensors"),
    "block without its entry": ("after", "*-block-*.safetensors"),
    "entry written, not renamed": ("before", "checkpoint.json"),
    "polish state without its entry": ("after", "*-polish-00002.safetensors"),
    "artifact whole, not renamed": ("before", "artifact"),
}


@dataclass(frozen=True)
class Struck:
    """What a kill left."""

    code: int
    steps: frozenset[str]
    sound: bool
    """Whether every finished step is what its entry says."""
    names: frozenset[str]
    """Of all files and folders, but what was being written."""


def _calibrate(recipe: Path, root: Path) -> list[str]:
    return ["calibrate", "-r", str(recipe), "-o", str(root), "--json"]


def _steps(root: Path) -> dict[str, Checkpoint]:
    """Return finished step -> the checkpoint that names it."""
    steps = {}
    for path in (root / "work").rglob("checkpoint.json"):
        checkpoint = Checkpoint(path.parent, load_checkpoint(path).key)
        steps |= dict.fromkeys(checkpoint.steps, checkpoint)
    return steps


def _bytes_of(root: Path) -> dict[str, object]:
    """Return what has to be the same: all but the times that the manifest holds beside its digest."""
    artifact = RunDirectory(root).artifact
    names = [path.name for path in artifact.iterdir() if path.suffix == ".safetensors"]
    files: dict[str, object] = {name: (artifact / name).read_bytes() for name in names}
    digest = read_json(artifact / "manifest.json", what="", hint="")["digest"]
    return files | {"samples": (root / "samples.safetensors").read_bytes(), "digest": digest}


def _is_sound(checkpoint: Checkpoint, step: str) -> bool:
    try:
        return checkpoint.get(step) is not None
    except ArtifactError:
        return False


def _strike(server: str, code: str, recipe: Path, root: Path) -> Struck:
    with WarmProcess(server, command_code(code), *_calibrate(recipe, root)) as child:
        child.communicate(timeout=120)
    steps = _steps(root)
    sound = all(_is_sound(checkpoint, step) for step, checkpoint in steps.items())
    assert child.returncode is not None
    names = frozenset(path.name for path in root.rglob("*") if not path.name.startswith(TEMP_PREFIX))
    return Struck(child.returncode, frozenset(steps), sound, names)


@dataclass(frozen=True)
class Chain:
    """One calibration that was killed at every point in turn, and then was to end."""

    root: Path
    struck: Mapping[str, Struck]
    end: Result


@pytest.fixture(scope="module")
def chain(warm_server: str, recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    root = tmp_path_factory.mktemp("chain") / "run"
    struck = {}
    for point in KILLED_AT:
        event, pattern = POINTS[point]
        code = AT_A_POINT.format(event=event, pattern=pattern)
        struck[point] = _strike(warm_server, code, recipe_file, root)
    return Chain(root, struck, invoke(_calibrate(recipe_file, root)))


@pytest.mark.slow
@pytest.mark.parametrize("point", KILLED_AT)
def test_a_point(point: str, chain: Chain, finished_run: Path) -> None:
    struck, root = chain.struck, chain.root
    now = struck[point]
    assert now.code == -signal.SIGKILL, "it ended before it came to that point"
    assert now.sound
    event, pattern = POINTS[point]
    if event != "after" and point != "entry written, not renamed":
        assert not fnmatch.filter(now.names, pattern), "half of it stands under its final name"
    earlier = [struck[other].steps for other in KILLED_AT[: KILLED_AT.index(point)]]
    assert all(steps <= now.steps for steps in earlier), "a finished step was lost"
    assert chain.end.exit_code == 0, chain.end.output
    assert _bytes_of(root) == _bytes_of(finished_run)
    assert not list(root.rglob(f"{TEMP_PREFIX}*"))


@pytest.fixture(scope="module")
def moments(warm_server: str, recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> int:
    """How often a calibration says that it has got further."""
    code = command_code(AT_A_MOMENT.format(strike=0, delay=0))
    root = tmp_path_factory.mktemp("whole") / "run"
    with WarmProcess(warm_server, code, *_calibrate(recipe_file, root)) as child:
        _, stderr = child.communicate(timeout=120)
    assert child.returncode == 0, stderr
    return int(stderr.split()[-1])


@pytest.mark.parametrize(
    "seed",
    [
        pytest.param(
            seed, id=f"random moment {seed}", marks=pytest.mark.soak if seed % 10 else pytest.mark.slow
        )
        for seed in range(RANDOM_KILLS)
    ],
)
def test_a_random(
    seed: int, moments: int, warm_server: str, recipe_file: Path, finished_run: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(seed)
    strike, delay = int(rng.integers(1, moments)), float(rng.uniform(0, 0.02))
    root = tmp_path / "run"
    code = AT_A_MOMENT.format(strike=strike, delay=delay)
    now = _strike(warm_server, code, recipe_file, root)
    assert now.code == -signal.SIGKILL
    assert now.sound
    done = invoke(_calibrate(recipe_file, root))
    assert done.exit_code == 0, done.output
    assert now.steps <= set(_steps(root))
    assert _bytes_of(root) == _bytes_of(finished_run)
    assert not list(root.rglob(f"{TEMP_PREFIX}*"))
