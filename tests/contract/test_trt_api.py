"""Does every name exist that the sources use on TensorRT's objects, in each library that they are written for?

``tests/data/trt_api`` holds the names that the Python bindings of each version have, so that this needs none of them.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest

from gacq_deploy.backends.trt.deserialized import _DTYPES
from gacq_deploy.backends.trt.library import load_trt
from tests.support.trt import fake_trt
from tests.support.trt.fake_cuda import FakeDriver
from tests.support.trt.trt_usage import MODULE, probed, unnamed, uses

ROOT = Path(__file__).parents[2]
RECORDED = {
    p.stem: json.loads(p.read_text(encoding="utf-8")) for p in sorted((ROOT / "tests/data/trt_api").glob("*"))
}
RTX = "tensorrt-rtx-1.7.1.116"

RUNTIME = {
    "trt": MODULE,
    "module": MODULE,
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "_context": "IExecutionContext",
    "config": "IRuntimeConfig",
}
BUILDER = {
    "trt": MODULE,
    "module": MODULE,
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "engine": "ICudaEngine",
    "inspector": "EngineInspector",
    "e": "ParserError",
}
FILES: dict[str, dict[str, str]] = {
    "gacq_deploy/backends/trt/library.py": {"module": MODULE},
    "gacq_deploy/backends/trt/polygraphy.py": {"module": MODULE},
    "gacq_deploy/backends/trt/deserialized.py": RUNTIME,
    "gacq_deploy/backends/trt/bucket.py": RUNTIME,
    "gacq_deploy/build_trt/worker.py": BUILDER,
    "gacq_deploy/doctor/probe.py": {"trt": MODULE},
}
RETURNS = {"get_timing_cache": "ITimingCache"}
PLAIN = {"dtype", "dims", "names", "on_host", "shape", "serialized", "text", "chosen", "fits", "label"}
"""Names that take what the library returns and are not used as objects of it."""
ONLY_SOME: dict[tuple[str, str], str] = {
    ("Runtime", "get_engine_validity"): "get_engine_validity",
    (MODULE, "EngineValidity"): "get_engine_validity",
    ("EngineValidity", "VALID"): "get_engine_validity",
    ("EngineValidity", "SUBOPTIMAL"): "get_engine_validity",
    (MODULE, "EngineInvalidityDiagnostics"): "get_engine_validity",
    (MODULE, "CudaGraphStrategy"): "CudaGraphStrategy",
    ("CudaGraphStrategy", "WHOLE_GRAPH_CAPTURE"): "CudaGraphStrategy",
    ("CudaGraphStrategy", "DISABLED"): "CudaGraphStrategy",
    ("IRuntimeConfig", "cuda_graph_strategy"): "CudaGraphStrategy",
}
"""Names that one library lacks -> what the file asks with hasattr before it uses them."""


def _source(file: str) -> str:
    return (ROOT / file).read_text(encoding="utf-8")


def _known(api: dict[str, Any], owner: str, name: str) -> bool:
    if owner == MODULE:
        return name in api["names"]
    return name in api["classes"].get(owner, ())


def _all_uses() -> list[tuple[str, str, str, int]]:
    return [
        (file, use.owner, use.name, use.line)
        for file, receivers in FILES.items()
        for use in uses(_source(file), receivers, RETURNS)
    ]


@pytest.mark.parametrize("library", RECORDED)
def test_every_name_exists(library: str) -> None:
    missing = [
        f"{file}:{line}: {owner}.{name}"
        for file, owner, name, line in _all_uses()
        if not _known(RECORDED[library], owner, name) and ((owner, name) not in ONLY_SOME or library == RTX)
    ]
    assert missing == []


def test_what_only_some_libraries_have_is_asked_for_first() -> None:
    seen = set()
    for file, owner, name, line in _all_uses():
        guard = ONLY_SOME.get((owner, name))
        if guard is not None:
            seen.add((owner, name))
            assert guard in probed(_source(file)), f"{file}:{line}: {owner}.{name}"
    assert seen == set(ONLY_SOME)
    for owner, name in ONLY_SOME:
        assert not all(_known(api, owner, name) for api in RECORDED.values()), f"{owner}.{name} is everywhere"


@pytest.mark.parametrize("library", RECORDED)
def test_names_in_the_table_exist(library: str) -> None:
    assert set(_DTYPES) <= set(RECORDED[library]["classes"]["DataType"])


@pytest.mark.parametrize("file", FILES)
def test_the_tables_know_every_object(file: str) -> None:
    receivers = FILES[file]
    assert set(unnamed(_source(file), receivers, RETURNS)) - PLAIN == set()


def test_every_file_that_drives_the_library_is_in_the_table() -> None:
    drives = re.compile(r"\btrt\.[A-Z]\w+\(|library\.module\b")
    sources = [p for room in ("gacq_deploy", "cli", "benchmarks") for p in (ROOT / room).rglob("*.py")]
    found = {str(p.relative_to(ROOT)) for p in sources if drives.search(p.read_text(encoding="utf-8"))}
    assert found <= set(FILES)


def test_a_name_that_does_not_exist_is_found() -> None:
    source = (
        "def f(trt, engine, log):\n"
        "    engine.execute_async_v4(1)\n"
        "    trt.DataType.FLOAT32\n"
        "    trt.Runtime(log).deserialise(b'')\n"
        "    class Log(trt.ILogger):\n"
        "        def report(self): ...\n"
    )
    found = [u for u in uses(source, RUNTIME, RETURNS) if not _known(RECORDED[RTX], u.owner, u.name)]
    assert [f"{u.owner}.{u.name}" for u in found] == [
        "ICudaEngine.execute_async_v4", "DataType.FLOAT32", "Runtime.deserialise", "ILogger.report",
    ]  # fmt: skip
    assert list(unnamed("thing = engine.create_execution_context()", RUNTIME, RETURNS)) == ["thing"]


@pytest.mark.rtx
def test_every_name_exists_in_the_library_that_is_installed() -> None:
    module = load_trt("tensorrt-rtx").module
    missing = []
    for file, owner, name, line in _all_uses():
        holder = module if owner == MODULE else getattr(module, owner)
        if not hasattr(holder, name):
            missing.append(f"{file}:{line}: {owner}.{name}")
    assert missing == []


FAKES = (
    fake_trt.RtxRuntime, fake_trt.ICudaEngine, fake_trt.IExecutionContext, fake_trt.IRuntimeConfig, fake_trt.ILogger,
    fake_trt.DataType, fake_trt.TensorIOMode, fake_trt.TensorLocation, fake_trt.EngineValidity,
    fake_trt.EngineInvalidityDiagnostics, fake_trt.ExecutionContextAllocationStrategy, fake_trt.CudaGraphStrategy,
)  # fmt: skip


@pytest.mark.parametrize("fake", FAKES, ids=lambda fake: fake.__name__)
def test_the_fake_has_no_names_of_its_own(fake: type) -> None:
    own = {n for n in vars(fake) if not n.startswith("_")}
    assert own
    assert own <= set(RECORDED[RTX]["classes"][fake.__name__.replace("RtxRuntime", "Runtime")])


@pytest.mark.rtx
def test_every_driver_call_exists() -> None:
    driver = importlib.import_module("cuda.bindings.driver")
    source = _source("gacq_deploy/backends/trt/cuda.py")
    found = {u.name for u in uses(source, {"driver": MODULE, "_driver": MODULE}, {}) if u.owner == MODULE}
    assert len(found) > 20
    assert {n for n in found if not hasattr(driver, n)} == set()
    for owner in ("CUresult", "CUdevice_attribute", "CUstream_flags", "CUstreamCaptureMode"):
        fake = getattr(FakeDriver, owner)
        assert all(int(getattr(getattr(driver, owner), m.name)) == m.value for m in fake)


@pytest.mark.rtx
def test_the_fake_driver_takes_the_arguments_that_the_real_one_takes() -> None:
    driver = importlib.import_module("cuda.bindings.driver")
    for name, method in vars(FakeDriver).items():
        if name.startswith("cu"):
            taken = len(inspect.signature(method).parameters) - 1
            assert taken == len(inspect.signature(getattr(driver, name)).parameters), name
