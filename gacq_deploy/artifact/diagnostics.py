"""How much did each calibration sample count, why, and what did it do to the error? Facts, drawn elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from gacq_deploy.errors import ArtifactError
from gacq_deploy.spec import Array
from gacq_deploy.storage.arrays import load_arrays, save_arrays
from gacq_deploy.storage.digests import canonical_json
from gacq_deploy.storage.documents import Malformed, decode_json
from gacq_deploy.storage.records import Record, as_record

_SCHEMA = "gacq-deploy/diagnostics/1"
ERROR_STAGES = ("nearest", "reconstruction", "polish")
"""Stages whose output error is measured, in the order of calibration."""
_RECORD = "record"
_MATRICES = ("cosine_before", "cosine_after")
_MEAN_TOLERANCE = 1e-3
"""How far the mean of weights may lie from 1: they have mean 1 in float64 and are kept in float32."""
_ROUNDING = 1e-3
"""What float32 may add to a cosine or alignment beyond 1, and to an effective number beyond that of samples."""
_HINT = "Run `gacq-deploy calibrate` again, or restore the file from a copy."


@dataclass(frozen=True)
class StageWeights:
    """What one stage (a block, or "polish") learned about its samples: N training rows, G timestep groups.

    ``weights`` float32 [N] have mean 1 and are not negative. ``alignment`` float32 [N] is the inner product of a
    sample's gradient with the mean of the groups' unit validation gradients, before the stage, divided by its largest
    magnitude; calibration measures it for "polish" only. ``cosine_before`` and ``cosine_after`` float32 [G, G] are
    cosines between the groups' validation gradients, group 0 the noisiest. ``trace`` maps "loss", "cosine" and "ratio"
    (of the gradient norms GM : MSE) to float32 [K], one value a meta iteration; it is empty where nothing was learned.

    Raises:
        ValueError: a shape or dtype is wrong, a number is not finite, or weights are negative or not of mean 1.
    """

    stage: str
    mode: str
    """The recipe's mode, or "uniform" after a fallback that ``notes`` record."""
    weights: NDArray[np.float32]
    alignment: NDArray[np.float32] | None
    cosine_before: NDArray[np.float32] | None
    cosine_after: NDArray[np.float32] | None
    effective_samples: float
    trace: Mapping[str, NDArray[np.float32]]
    notes: tuple[str, ...]
    """Warnings and fallbacks, in words."""

    def __post_init__(self) -> None:
        if not self.stage or not self.mode:
            raise ValueError(f"a stage needs a name and a mode, got {self.stage!r} and {self.mode!r}")
        self._check_weights()
        if self.alignment is not None:
            _check_bounded(f"{self.stage}: alignment", self.alignment, self.weights.shape, "alignment")
        for name in _MATRICES:
            matrix = getattr(self, name)
            if matrix is not None:
                _check_bounded(f"{self.stage}: {name}", matrix, (len(matrix), len(matrix)), "cosine")
        _check_series(f"{self.stage}: trace", self.trace, None)

    def _check_weights(self) -> None:
        weights, count = self.weights, self.weights.size
        _check_array(f"{self.stage}: weights", weights, np.float32, (count,))
        if count == 0 or float(weights.min()) < 0:
            raise ValueError(f"{self.stage}: weights must be there and not negative, got {weights}")
        mean = float(weights.mean(dtype=np.float64))
        if abs(mean - 1) > _MEAN_TOLERANCE:
            raise ValueError(f"{self.stage}: weights have mean {mean:.6g}, it must be 1")
        if not 0 < self.effective_samples <= count * (1 + _ROUNDING):
            raise ValueError(f"{self.stage}: {self.effective_samples} effective samples of {count}")


@dataclass(frozen=True)
class Diagnostics:
    """What calibration saw and did: N training rows, S distinct timesteps, noisiest first.

    ``timesteps``, ``trajectory`` and ``groups`` int64 [N] say which row is which; group 0 is the noisiest.
    ``error_timesteps`` int64 [S] are those of the validation rows, or of the training rows if there are no
    others. ``error_sqnr_db`` maps the stages of :data:`ERROR_STAGES` that ran to float32 [S], the output SQNR
    against the float model.

    Raises:
        ValueError: a shape or dtype is wrong, a number is not finite, or stages do not fit the rows.
    """

    timesteps: NDArray[np.int64]
    trajectory: NDArray[np.int64]
    groups: NDArray[np.int64]
    stages: tuple[StageWeights, ...]
    error_timesteps: NDArray[np.int64]
    error_sqnr_db: Mapping[str, NDArray[np.float32]]

    def __post_init__(self) -> None:
        rows = (self.timesteps.size,)
        for name in ("timesteps", "trajectory", "groups"):
            _check_array(name, getattr(self, name), np.int64, rows)
        if rows == (0,) or int(self.groups.min()) < 0:
            raise ValueError("diagnostics need rows, and groups that count from 0")
        names = [stage.stage for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"a stage stands twice in {names}")
        for stage in self.stages:
            self._check_stage(stage)
        self._check_errors()

    def stage(self, name: str) -> StageWeights | None:
        """Return the stage of this name, or None if it did not run."""
        return next((stage for stage in self.stages if stage.stage == name), None)

    def _check_stage(self, stage: StageWeights) -> None:
        if stage.weights.size != self.timesteps.size:
            raise ValueError(f"{stage.stage}: {stage.weights.size} weights for {self.timesteps.size} rows")
        least = int(self.groups.max()) + 1
        for name in _MATRICES:
            matrix = getattr(stage, name)
            if matrix is not None and len(matrix) < least:
                raise ValueError(f"{stage.stage}: {name} has {len(matrix)} groups, the rows have {least}")

    def _check_errors(self) -> None:
        count = self.error_timesteps.size
        _check_array("error_timesteps", self.error_timesteps, np.int64, (count,))
        if not bool(np.all(np.diff(self.error_timesteps) < 0)):
            raise ValueError("error_timesteps must be distinct and noisiest first")
        if unknown := sorted(set(self.error_sqnr_db) - set(ERROR_STAGES)):
            raise ValueError(f"error_sqnr_db knows no stage {unknown}; it knows {list(ERROR_STAGES)}")
        _check_series("error_sqnr_db", self.error_sqnr_db, count)


def mean_between_groups(matrix: NDArray[np.floating[Any]]) -> float:
    """Return the mean of a ``[G, G]`` matrix over the pairs of different groups, 0 for a single group."""
    count = len(matrix)
    return float((matrix.sum() - np.trace(matrix)) / (count * (count - 1))) if count > 1 else 0.0


class _StageRecord(Record):
    """The words of a stage, and its one number that is no array; its arrays lie beside it in the file."""

    stage: str
    mode: str
    effective_samples: float
    notes: tuple[str, ...]


class _DiagnosticsRecord(Record):
    """The words of the file."""

    schema_: Literal["gacq-deploy/diagnostics/1"] = Field(alias="schema")
    stages: tuple[_StageRecord, ...]


def save_diagnostics(path: Path, diagnostics: Diagnostics) -> None:
    """Write one safetensors file atomically: arrays, and the words as JSON bytes in the array ``record``."""
    arrays: dict[str, Array] = {
        "timesteps": diagnostics.timesteps,
        "trajectory": diagnostics.trajectory,
        "groups": diagnostics.groups,
        "error_timesteps": diagnostics.error_timesteps,
    }
    arrays |= {f"error_sqnr_db/{name}": value for name, value in diagnostics.error_sqnr_db.items()}
    records = []
    for number, stage in enumerate(diagnostics.stages):
        arrays |= {f"stages/{number}/{name}": value for name, value in _stage_arrays(stage).items()}
        record = _StageRecord(
            stage=stage.stage,
            mode=stage.mode,
            effective_samples=stage.effective_samples,
            notes=stage.notes,
        )
        records.append(record.model_dump(mode="json"))
    text = canonical_json({"schema": _SCHEMA, "stages": records})
    arrays[_RECORD] = np.frombuffer(text, np.uint8)
    save_arrays(path, arrays, schema=_SCHEMA)


def load_diagnostics(path: Path, *, sha256: str | None = None) -> Diagnostics:
    """Read what :func:`save_diagnostics` wrote.

    Raises:
        ArtifactError: missing, truncated, of another version or digest, or inconsistent.
    """
    arrays = load_arrays(path, what="Diagnostics", hint=_HINT, sha256=sha256)
    try:
        words = decode_json(arrays[_RECORD].tobytes())
        where = f"'{_RECORD}' of diagnostics {path}"
        stages = as_record(_DiagnosticsRecord, words, where=where, hint=_HINT).stages
        errors = _below(arrays, "error_sqnr_db/")
        return Diagnostics(
            timesteps=arrays["timesteps"],
            trajectory=arrays["trajectory"],
            groups=arrays["groups"],
            stages=tuple(_stage(entry, _below(arrays, f"stages/{i}/")) for i, entry in enumerate(stages)),
            error_timesteps=arrays["error_timesteps"],
            # a file has no order of its own
            error_sqnr_db={name: errors.pop(name) for name in ERROR_STAGES if name in errors} | errors,
        )
    except (KeyError, TypeError, ValueError, Malformed) as error:
        raise ArtifactError(f"Diagnostics {path} are inconsistent: {error!r}.", _HINT) from error


def _stage_arrays(stage: StageWeights) -> dict[str, Array]:
    arrays: dict[str, Array] = {"weights": stage.weights}
    for name in ("alignment", *_MATRICES):
        value = getattr(stage, name)
        if value is not None:
            arrays[name] = value
    return arrays | {f"trace/{name}": value for name, value in stage.trace.items()}


def _stage(record: _StageRecord, arrays: Mapping[str, Array]) -> StageWeights:
    return StageWeights(
        stage=record.stage,
        mode=record.mode,
        weights=arrays["weights"],
        alignment=arrays.get("alignment"),
        cosine_before=arrays.get("cosine_before"),
        cosine_after=arrays.get("cosine_after"),
        effective_samples=record.effective_samples,
        trace=_below(arrays, "trace/"),
        notes=record.notes,
    )


def _below(arrays: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def _check_array(what: str, array: Array, dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    if array.dtype != dtype or array.shape != shape:
        wanted = np.dtype(dtype).name
        raise ValueError(f"{what} must be {wanted} of shape {shape}, got {array.dtype} of {array.shape}")
    if not bool(np.isfinite(array).all()):
        raise ValueError(f"{what} holds numbers that are not finite")


def _check_bounded(what: str, array: Array, shape: tuple[int, ...], kind: str) -> None:
    """Check what lies within 1 of zero by definition."""
    _check_array(what, array, np.float32, shape)
    if array.size and float(np.abs(array).max()) > 1 + _ROUNDING:
        raise ValueError(f"{what} holds {float(np.abs(array).max()):.6g}, which is no {kind}")


def _check_series(what: str, series: Mapping[str, Array], length: int | None) -> None:
    """Check that all arrays are float32 of one length; None takes the length of the first."""
    for name, values in series.items():
        length = values.size if length is None else length
        _check_array(f"{what}['{name}']", values, np.float32, (length,))
