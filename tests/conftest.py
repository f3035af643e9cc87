"""What does a test need that a machine may lack, and what do all tests share?"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

# imports make objects that stay: to look for garbage among them takes a third of the collection of the tests
gc.disable()
# a test that is about a width sets it
os.environ.pop("COLUMNS", None)
RTX_MODULES = ("tensorrt_rtx", "tensorrt_rtx_bindings")


COLLECTED = pytest.StashKey[frozenset[str]]()
"""Node ids of this session, those that marks then leave out too."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep what there is, for the table that names tests."""
    config.stash[COLLECTED] = frozenset(item.nodeid for item in items)


def pytest_collection_finish() -> None:
    """Let no garbage collection look at what was imported: a tenth of what torch's exporter takes."""
    gc.freeze()
    gc.enable()
    gc.set_threshold(100_000, 20, 100)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test marked `rtx` where the library is not installed; where CI is set, that is a failure."""
    if item.get_closest_marker("rtx") is None or any(find_spec(name) for name in RTX_MODULES):
        return
    reason = "TensorRT-RTX is not installed: pip install 'gacq-deploy[rtx]'"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the processes of one test run share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def warm_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address to give a `WarmProcess` that calibrates or exports."""
    from tests.support.programs.warm_process import CALIBRATION, serving

    with serving(tmp_path_factory.mktemp("warm"), CALIBRATION) as address:
        yield address


@pytest.fixture(scope="session")
def build_worker_command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, ...]]:
    """A command that does what the TensorRT worker's own does, with the library imported once for all builds."""
    from tests.support.programs.warm_process import build_workers

    with build_workers(tmp_path_factory.mktemp("builds")) as command:
        yield command


@pytest.fixture
def warm_builds(build_worker_command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test compile in workers that have the library imported; what tests the process itself goes without."""
    from gacq_deploy.build_trt import compiler

    monkeypatch.setattr(compiler, "WORKER", build_worker_command)


@pytest.fixture(scope="session")
def bench_worker_command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, ...]]:
    """A command that does what the one that measures an engine does, with its imports done once for all."""
    from tests.support.programs.warm_process import bench_workers

    with bench_workers(tmp_path_factory.mktemp("benches")) as command:
        yield command


@pytest.fixture
def warm_benches(bench_worker_command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test measure in processes that have the libraries imported; figures of memory then mean nothing."""
    from gacq_deploy.bench import measure

    monkeypatch.setattr(measure, "module_command", lambda _: bench_worker_command)


@pytest.fixture(scope="session", autouse=True)
def exported_once(shared_folder: Path) -> Iterator[None]:
    """Let the stages find a float graph that was exported before, by this test process or by another."""
    from tests.support.graphs.float_graphs import FOLDER, keep_graphs

    folder = shared_folder / "float-graphs"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER, str(folder))
        keep_graphs(patch.setattr)
        yield
