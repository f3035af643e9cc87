"""Does parity judge a mix of float and INT8 steps by what the mix does, and nothing else?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gacq_deploy.backends.base import Engine
from gacq_deploy.backends.function import FunctionEngine
from gacq_deploy.engines.open import open_engine
from gacq_deploy.errors import EngineError
from gacq_deploy.parity.candidates import Candidate
from gacq_deploy.parity.comparisons import Setting, Subject, measure_comparisons
from gacq_deploy.parity.exact import CANONICAL
from gacq_deploy.parity.report import Comparison, ParityReport
from gacq_deploy.recipe.sections import StepPolicySection
from gacq_deploy.sampling.loop import model_sampler
from gacq_deploy.sampling.step_policy import resolve_policy
from tests.support.artifacts.judged_run import make_run, setting_of, subject_of

STEPS = 3
ORT_INT8 = Candidate(CANONICAL, "ort-cpu")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Subject, Setting]:
    run = make_run(tmp_path_factory.mktemp("steps"))
    whole = setting_of(run)
    return subject_of(run), replace(
        whole, section=whole.section.model_copy(update={"images": 4, "steps": STEPS})
    )


def judge(parts: tuple[Subject, Setting], float_steps: int, **changes: Any) -> ParityReport:
    subject, setting = parts
    sampler = model_sampler(subject.artifact.model, STEPS)
    asked = StepPolicySection(float_steps=float_steps, where="first")
    policy = resolve_policy(asked, sampler.timesteps, subject.artifact)
    return measure_comparisons(subject, [ORT_INT8], replace(setting, policy=policy, **changes), {})


def comparison(report: ParityReport, evidence: str) -> Comparison:
    (found,) = [e for e in report.comparisons if e.evidence == evidence]
    return found


def test_a_mix_comes_closer_step_by_step_and_ends_at_the_float_model(parts: tuple[Subject, Setting]) -> None:
    levels = []
    for count in range(STEPS + 1):
        report = judge(parts, count)
        levels.append(comparison(report, "mixed").metrics["image_psnr_db"] or 0.0)
        if count == 0:
            single = comparison(report, "single").metrics
            assert levels[0] == single["image_psnr_db"], "without float steps the mix is the INT8 engine"
        assert comparison(report, "single").metrics == single
    assert levels[0] < levels[-1] == 100
    assert levels == sorted(levels)


def test_a_mix_that_cannot_run_is_not_evaluated(parts: tuple[Subject, Setting]) -> None:
    inside: list[str] = []

    class Guarded(FunctionEngine):
        """Says when it is open: only a mix opens a second engine beside it."""

        def _close(self) -> None:
            inside.pop()

    def open_one(name: str, model: Path | bytes, *, threads: int = 0, optimize: bool = True) -> Engine:
        if inside:
            raise EngineError("a second engine does not open", "Mend it.")
        engine = open_engine(name, model, threads=threads, optimize=optimize)
        inside.append(name)
        return Guarded(engine.run, engine.inputs, engine.outputs, engine.label)

    report = judge(parts, 1, open_engine=open_one)
    mixed = comparison(report, "mixed")
    assert not report
    assert not mixed.evaluated
    assert not mixed.passed
    assert mixed.worst["error"] == "a second engine does not open"
    assert comparison(report, "single").evaluated
    assert "image_psnr_db" not in report.fidelity[ORT_INT8.name], "not the INT8 engine's own images instead"
