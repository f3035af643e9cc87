"""Diagnostics come back as they went, and cannot hold what is no weight, cosine or number."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gacq_deploy.artifact.diagnostics import (
    ERROR_STAGES,
    Diagnostics,
    StageWeights,
    load_diagnostics,
    save_diagnostics,
)
from gacq_deploy.errors import ArtifactError
from gacq_deploy.storage.arrays import load_arrays, save_arrays
from tests.support.artifacts.diagnostics import example_diagnostics


def assert_equal(one: Diagnostics, other: Diagnostics) -> None:
    for name in ("timesteps", "trajectory", "groups", "error_timesteps"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), strict=True)
    assert set(one.error_sqnr_db) == set(other.error_sqnr_db)
    for name, values in one.error_sqnr_db.items():
        np.testing.assert_array_equal(values, other.error_sqnr_db[name], strict=True)
    assert len(one.stages) == len(other.stages)
    for a, b in zip(one.stages, other.stages, strict=True):
        assert (a.stage, a.mode, a.effective_samples, a.notes) == (
            b.stage,
            b.mode,
            b.effective_samples,
            b.notes,
        )
        assert set(a.trace) == set(b.trace)
        pairs = [(getattr(a, k), getattr(b, k)) for k in ("alignment", "cosine_before", "cosine_after")]
        for left, right in [(a.weights, b.weights), *pairs, *((a.trace[k], b.trace[k]) for k in a.trace)]:
            assert (left is None) == (right is None)
            if left is not None and right is not None:
                np.testing.assert_array_equal(left, right, strict=True)


@settings(max_examples=25, deadline=None)
@given(
    trajectories=st.integers(1, 4),
    steps=st.integers(1, 12),
    groups=st.integers(1, 6),
    mode=st.sampled_from(["uniform", "gac", "mse"]),
    polish=st.booleans(),
)
def test_round_trip(trajectories: int, steps: int, groups: int, mode: str, polish: bool) -> None:
    made = example_diagnostics(
        trajectories=trajectories, steps=steps, groups=groups, mode=mode, polish=polish
    )
    with tempfile.TemporaryDirectory() as folder:
        save_diagnostics(Path(folder) / "d.safetensors", made)
        assert_equal(load_diagnostics(Path(folder) / "d.safetensors"), made)


def test_equal_diagnostics_are_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_diagnostics(tmp_path / name, example_diagnostics())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_words_in_any_script_come_back(tmp_path: Path) -> None:
    made = example_diagnostics()
    stage = replace(made.stages[0], stage="blöck/0", notes=("größer als 10 %", "fell back: «mse»"))
    made = replace(made, stages=(stage, *made.stages[1:]))
    save_diagnostics(tmp_path / "d", made)
    assert_equal(load_diagnostics(tmp_path / "d"), made)
    assert made.stage("blöck/0") is stage
    assert made.stage("other") is None


def _with_nan(array: Any) -> Any:
    changed = array.copy()
    changed.flat[0] = np.nan
    return changed


BAD_STAGES: list[tuple[str, Any, str]] = [
    ("weights of another mean", lambda s: {"weights": s.weights * np.float32(1.01)}, "have mean 1.01"),
    ("negative weight", lambda s: {"weights": -s.weights}, "not negative"),
    ("no weights", lambda s: {"weights": s.weights[:0]}, "must be there"),
    ("weights of another kind", lambda s: {"weights": s.weights.astype(np.float64)}, "must be float32"),
    ("weights of rank 2", lambda s: {"weights": s.weights[:, None]}, "of shape"),
    ("NaN weight", lambda s: {"weights": _with_nan(s.weights)}, "not finite"),
    ("NaN alignment", lambda s: {"alignment": _with_nan(s.alignment)}, "not finite"),
    ("alignment of fewer rows", lambda s: {"alignment": s.alignment[1:]}, "alignment must be"),
    ("no cosine", lambda s: {"cosine_before": s.cosine_before * np.float32(2)}, "is no cosine"),
    ("cosines that are not square", lambda s: {"cosine_after": s.cosine_after[:, 1:]}, "cosine_after must be"),
    ("too many effective samples", lambda _: {"effective_samples": 1e9}, "effective samples of"),
    ("NaN effective samples", lambda _: {"effective_samples": float("nan")}, "effective samples of"),
    ("traces of unequal length", lambda s: {"trace": {**s.trace, "loss": s.trace["loss"][1:]}}, "trace"),
    ("nameless", lambda _: {"stage": ""}, "needs a name"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), [b[1:] for b in BAD_STAGES], ids=[b[0] for b in BAD_STAGES])
def test_a_stage_that_cannot_be_is_refused(change: Any, message: str) -> None:
    stage: StageWeights = example_diagnostics().stages[0]
    with pytest.raises(ValueError, match=message):
        replace(stage, **change(stage))


BAD: list[tuple[str, Any, str]] = [
    ("rows of unequal number", lambda d: {"groups": d.groups[1:]}, "groups must be"),
    ("float timesteps", lambda d: {"timesteps": d.timesteps.astype(float)}, "timesteps must be int64"),
    ("group below 0", lambda d: {"groups": d.groups - 1}, "count from 0"),
    ("more groups than cosines", lambda d: {"groups": d.groups + 1}, "the rows have 6"),
    ("a stage twice", lambda d: {"stages": (d.stages[0], d.stages[0])}, "twice"),
    ("errors clean first", lambda d: {"error_timesteps": d.error_timesteps[::-1]}, "noisiest first"),
    ("unknown error stage", lambda d: {"error_sqnr_db": {"magic": d.error_sqnr_db["nearest"]}}, "magic"),
    ("missing error", lambda d: {"error_sqnr_db": {"nearest": d.error_sqnr_db["nearest"][1:]}}, "error_sqnr"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_diagnostics_that_cannot_be_are_refused(change: Any, message: str) -> None:
    made = example_diagnostics()
    assert tuple(made.error_sqnr_db) == ERROR_STAGES
    with pytest.raises(ValueError, match=message):
        replace(made, **change(made))


def test_weights_of_fewer_rows_than_there_are_is_refused() -> None:
    made, other = example_diagnostics(), example_diagnostics(trajectories=3)
    with pytest.raises(ValueError, match="30 weights for 120 rows"):
        replace(made, stages=other.stages)


@pytest.mark.parametrize("damage", ["missing", "truncated", "another schema", "lost array", "bad weights"])
def test_a_damaged_file_is_an_artifact_error(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "d.safetensors"
    save_diagnostics(path, example_diagnostics())
    arrays = load_arrays(path, what="", hint="")
    match damage:
        case "missing":
            path.unlink()
        case "truncated":
            path.write_bytes(path.read_bytes()[:-9])
        case "another schema":
            text = arrays["record"].tobytes().replace(b"diagnostics/1", b"diagnostics/9")
            save_arrays(path, arrays | {"record": np.frombuffer(text, np.uint8)}, schema="x")
        case "lost array":
            del arrays["stages/0/weights"]
            save_arrays(path, arrays, schema="x")
        case "bad weights":
            save_arrays(path, arrays | {"stages/0/weights": arrays["stages/0/weights"] * 2}, schema="x")
    with pytest.raises(ArtifactError) as caught:
        load_diagnostics(path)
    assert caught.value.hint
