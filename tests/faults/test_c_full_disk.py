"""Group C: a disk full at the first byte, in the middle or near the end of a file leaves the earlier file whole.

A limit on the size of files stands for the disk: the system answers the same way, and any user may set it.
"""

from __future__ import annotations

import json
import re
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from gacq_deploy.artifact.artifact import load_artifact
from gacq_deploy.build_trt import compiler
from gacq_deploy.build_trt.options import CompileOptions
from gacq_deploy.calibration.checkpoint import Checkpoint, load_checkpoint
from gacq_deploy.errors import ResourceError
from gacq_deploy.export.record import read_record
from gacq_deploy.graph.files import read_graph, write_graph
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.samples.calibration_set import load_samples, save_samples
from gacq_deploy.storage.lock import LOCK_NAME
from gacq_deploy_cli.exit_codes import RESOURCES, explain
from tests.faults.matrix import FULL_AT, WRITTEN
from tests.support.programs.commands import invoke

Write = Callable[[], object]
Writer = Callable[[RunDirectory], tuple[Path, Write]]
"""Of a run: the file whose size counts, and what writes it anew."""
SHARES = dict(zip(FULL_AT, (0.0, 0.5, 0.99), strict=True))
BUILDER = """
import resource, sys
from pathlib import Path
from gacq_deploy.build_trt import worker
def build(job):
    resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))
    worker.write_made(job.with_name("engine.plan"), memoryview(bytes({size})))
worker.main = build
sys.exit(worker.run(Path(sys.argv[1])))
"""
"""A worker that finds no room for the plan: what it does then is its own."""


@contextmanager
def _room(limit: int) -> Iterator[None]:
    """Let no file grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _of_artifact(name: str) -> Writer:
    def writer(run: RunDirectory) -> tuple[Path, Write]:
        artifact = load_artifact(run.artifact)
        return run.artifact / name, lambda: artifact.save(run.artifact)

    return writer


def _step(run: RunDirectory) -> tuple[Path, Write]:
    record = load_checkpoint(run.work / "checkpoint.json")
    step = max(record.steps, key=lambda name: record.steps[name].bytes)
    checkpoint = Checkpoint(run.work, record.key)
    arrays = checkpoint.get(step)
    assert arrays is not None
    changed = {name: np.asarray(value) for name, value in arrays.items()}
    return run.work / record.steps[step].file, lambda: checkpoint.put(step, changed)


def _graph(external_mb: int) -> Writer:
    def writer(run: RunDirectory) -> tuple[Path, Write]:
        path = run.int8_onnx if external_mb == 0 else run.cpu_onnx
        model = read_graph(path)
        large = path.with_name(f"{path.name}.data") if external_mb == 0 else path
        return large, lambda: write_graph(model, path, external_data_mb=external_mb)

    return writer


def _manifest(run: RunDirectory) -> tuple[Path, Write]:
    record = read_record(run)
    return run.onnx_manifest, lambda: record.save(run.onnx_manifest)


def _samples(run: RunDirectory) -> tuple[Path, Write]:
    samples = load_samples(run.samples_path)
    return run.samples_path, lambda: save_samples(samples, run.samples_path)


WRITERS: dict[str, Writer] = {
    "weights": _of_artifact("probe.safetensors"),
    "scales": _of_artifact("tensors.safetensors"),
    "finished step": _step,
    "ONNX graph": _graph(1024),
    "external data": _graph(0),
    "manifest": _manifest,
    "samples": _samples,
}


def _files(folder: Path) -> dict[Path, bytes]:
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != LOCK_NAME)
    return {path: path.read_bytes() for path in found}


def _check_said(message: str) -> None:
    """What there is, and how much that is too little."""
    assert "No space left" in message
    said = re.search(
        r"(?:may have|has) (\d+) bytes .*? and (\d+) bytes are needed, so (\d+) are missing", message
    )
    assert said is not None, message
    there, needed, missing = map(int, said.groups())
    assert needed - there == missing > 0


@pytest.mark.parametrize("share", FULL_AT)
@pytest.mark.parametrize("written", WRITTEN)
def test_c(written: str, share: str, run: RunDirectory) -> None:
    path, write = WRITERS[written](run)
    before = _files(run.root)
    with _room(int(SHARES[share] * path.stat().st_size)), pytest.raises(ResourceError) as caught:
        write()
    assert explain(caught.value).exit_code == RESOURCES
    _check_said(caught.value.message)
    assert _files(run.root) == before
    write()
    assert _files(run.root).keys() == before.keys()


@pytest.mark.parametrize("share", FULL_AT)
def test_c_report(share: str, run: RunDirectory) -> None:
    words = ["report", str(run.root), "--no-images", "--json"]
    assert invoke(words).exit_code == 0
    before = _files(run.root)
    with _room(int(SHARES[share] * run.report_html.stat().st_size)):
        done = invoke(words)
    assert done.exit_code == RESOURCES, done.output
    _check_said(json.loads(done.stdout)["error"]["message"])
    assert _files(run.root) == before


@pytest.mark.parametrize("share", FULL_AT)
def test_c_engine(share: str, run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = BUILDER.format(limit=int(SHARES[share] * 10_000), size=10_000)
    monkeypatch.setattr(compiler, "WORKER", (sys.executable, "-c", code))
    folder = tmp_path / "build"
    folder.mkdir()
    with pytest.raises(ResourceError) as caught:
        compiler.compile_graph(run.int8_onnx, CompileOptions(backend="tensorrt-rtx"), folder=folder)
    _check_said(caught.value.message)
    assert not (folder / "engine.plan").exists()
