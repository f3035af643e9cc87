"""Parity of engines that run nothing but what was compiled for them; ONNX Runtime stands in for the plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gacq_deploy.backends import open_engine
from gacq_deploy.backends.base import Array, Engine, Feeds, HostEngine
from gacq_deploy.errors import ArtifactError, EngineError
from gacq_deploy.parity import check, check_parity
from gacq_deploy.parity.edges import CompiledEngine
from gacq_deploy.run_directory import RunDirectory
from tests.support.judged_run import make_run

MOST = 3


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return make_run(tmp_path_factory.mktemp("compiled"))


class Limited(HostEngine):
    """A graph in ONNX Runtime that refuses more rows than its profile has, and may compute them wrongly."""

    def __init__(self, inner: Engine, seen: list[int], error: float) -> None:
        super().__init__(f"plan/{inner.label}", inner.inputs, inner.outputs)
        self.inner, self.seen, self.error = inner, seen, error

    @property
    def max_rows(self) -> int | None:
        return MOST

    def _run(self, feeds: Feeds) -> dict[str, Array]:
        rows = len(feeds["sample"])
        self.seen.append(rows)
        if rows > MOST:
            raise EngineError("no profile", "")
        results = self.inner.run(feeds)
        return {name: value + self.error * (rows == MOST) for name, value in results.items()}

    def _close(self) -> None:
        self.inner.__exit__(None, None, None)


def compiled(run: RunDirectory, seen: list[int], error: float = 0.0) -> Any:
    def of(_directory: RunDirectory, _library: str, **_: Any) -> CompiledEngine:
        def opened(file: str) -> Engine:
            return Limited(open_engine("ort-cpu", run.onnx / file, threads=1), seen, error)

        return CompiledEngine(opened, (1, 2, MOST))

    return of


def test_a_plan_is_judged_at_every_batch_it_was_built_for(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(check, "_compiled", compiled(run, seen))
    report = check_parity(run, engines=["ort-cpu", "tensorrt-rtx"], threads=1)
    mine = {e.candidate: e for e in report.edges if "tensorrt-rtx" in e.candidate}
    assert report, report.to_text()
    assert [name for name, e in mine.items() if e.evidence == "error"] == [
        f"int8.onnx@tensorrt-rtx batch {n}" for n in (1, 2, MOST)
    ]
    assert mine["int8.onnx@tensorrt-rtx"].evidence == "budget"
    assert mine["int8.onnx@tensorrt-rtx"].engine is not None
    assert mine["int8.onnx@tensorrt-rtx"].engine.startswith("plan/")
    assert not [e for e in mine.values() if e.evidence == "local"]
    assert {1, 2, MOST} <= set(seen)
    assert max(seen) == MOST
    assert report.noise_floor["int8.onnx@tensorrt-rtx batch 2"]["rerun_max_abs"] == 0


def test_an_engine_that_is_wrong_at_one_batch_only_is_caught(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "_compiled", compiled(run, [], error=0.5))
    report = check_parity(run, engines=["tensorrt-rtx"], threads=1)
    failed = {e.candidate for e in report.edges if not e.passed and e.evidence == "error"}
    assert failed == {f"int8.onnx@tensorrt-rtx batch {MOST}"}
    assert not report


def test_without_a_plan_nothing_is_judged(run: RunDirectory, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no tensorrt engine"):
        check_parity(run, engines=["tensorrt"], threads=1)
