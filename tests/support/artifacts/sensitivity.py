"""A sensitivity study that looks like a real one, without measuring: what reports and checks are shown."""

from __future__ import annotations

from typing import Any

from gacq_deploy.sensitivity.report import (
    ModuleSensitivity,
    Proposal,
    SensitivityReport,
    Step,
    TimestepBucket,
)


def example_module(name: str, share: float) -> ModuleSensitivity:
    """Return one module of two timestep buckets that makes ``share`` of the error in the cleaner one."""
    return ModuleSensitivity(
        module=name,
        alone_db=(300.0, 20.0),
        share=(0.5, share),
        role_db={"weight": (40.0, 21.0), "input": (41.0, 31.0)},
        left_float_db=(31.0, 16.0),
        gain_db=(-0.001, 1.5),
        worst_gain_db=1.5,
    )


def example_study(
    word: str, *, layers: int = 2, subject: dict[str, Any] | None = None, **changes: Any
) -> SensitivityReport:
    """Return a study whose target was not reached, with ``word`` wherever a run brings text."""
    modules = tuple(example_module(f"down.{i}{word}", 1 / (i + 2)) for i in range(layers))
    proposal = Proposal(
        asked="budget",
        asked_db=20.0,
        target_db=21.0,
        reached=False,
        max_float=1,
        modules=(modules[0].module,),
        rules=(f"- {{match: {word}, ignore: true}}",),
        before_db={word: (30.0, 14.5)},
        after_db={word: (31.0, 16.0)},
        steps=(Step(module=modules[0].module, worst_db=16.0),),
        lint_errors=(f"lint {word}",),
    )
    return SensitivityReport(
        subject={"artifact_sha256": "0" * 64, "files": {}} if subject is None else subject,
        engine=word,
        graph=word,
        buckets=(
            TimestepBucket(timestep_max=990, timestep_min=500),
            TimestepBucket(timestep_max=490, timestep_min=0),
        ),
        probe_states=8,
        ranked_states=4,
        engine_runs=9,
        unquantized_db=(300.0, 300.0),
        quantized_db=(30.0, 14.5),
        modules=modules,
        proposal=proposal.model_copy(update=changes),
    )
