"""Which inputs represent the denoising path? States of float trajectories, on disk and in numpy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from gacq_deploy.errors import RESTORE, ArtifactError, UsageError
from gacq_deploy.samples.row_file import Rows, SampleWriter
from gacq_deploy.spec import Array
from gacq_deploy.storage.digests import held

CONDITION_PREFIX = "cond."
INDEX_PREFIX = "cond-index."


@dataclass(frozen=True)
class TableRows:
    """Rows that repeat: ``table`` [K, ...] holds each once, ``index`` [N] int64 says which.

    A prompt's embedding is the same in all steps of a trajectory, and weighs more than the state.
    """

    table: Array
    index: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, ...]:
        """``(N, ...)``."""
        return (len(self.index), *self.table.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values."""
        return self.table.dtype

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: Any) -> Array:
        return np.asarray(self.table[self.index[index]])

    def take(self, index: NDArray[Any] | slice) -> TableRows:
        """Return some rows; the table is shared."""
        return TableRows(self.table, np.asarray(self.index[index]))


@dataclass(frozen=True)
class CalibrationSet:
    """``N`` states of float trajectories, rows ordered by trajectory, then from noisy to clean.

    ``latents`` [N, C, H, W] float32, ``timesteps`` [N] int64, ``targets`` [N, C, H, W] float32 (the float model's
    own output), ``conditioning`` name -> [N, ...], ``trajectory`` [N] int64, ``step`` [N] int64 (0 = noisiest),
    ``validation`` [N] uint8 (1 = held out; whole trajectories only). States may be of any rank. Under guidance a step
    has two rows, the negative one first.

    ``float_timesteps`` [N] float32 is what the network is fed where that is no whole number; ``timesteps`` then
    are the nearest whole ones on the training scale. None: they are what it is fed.
    """

    latents: NDArray[np.float32]
    timesteps: NDArray[np.int64]
    targets: NDArray[np.float32]
    conditioning: Mapping[str, Rows]
    trajectory: NDArray[np.int64]
    step: NDArray[np.int64]
    validation: NDArray[np.uint8]
    float_timesteps: NDArray[np.float32] | None = None

    @property
    def model_timesteps(self) -> NDArray[Any]:
        """What the network is fed: ``[N]`` int64, or float32."""
        return self.timesteps if self.float_timesteps is None else self.float_timesteps

    def __len__(self) -> int:
        return len(self.timesteps)

    def rows(self, index: NDArray[Any] | slice) -> CalibrationSet:
        """Return the given rows, copied into memory."""
        conditioning = {name: _chosen(value, index) for name, value in self.conditioning.items()}
        fed = None if self.float_timesteps is None else np.array(self.float_timesteps[index])
        return CalibrationSet(
            latents=np.array(self.latents[index]),
            timesteps=np.array(self.timesteps[index]),
            targets=np.array(self.targets[index]),
            conditioning=conditioning,
            trajectory=np.array(self.trajectory[index]),
            step=np.array(self.step[index]),
            validation=np.array(self.validation[index]),
            float_timesteps=fed,
        )

    @property
    def training(self) -> CalibrationSet:
        """The rows that are learned from."""
        return self.rows(np.flatnonzero(self.validation == 0))

    @property
    def held_out(self) -> CalibrationSet:
        """The rows kept for validation."""
        return self.rows(np.flatnonzero(self.validation == 1))

    def chunks(self, size: int) -> Iterator[slice]:
        """Yield consecutive row ranges of at most ``size``; the last partial one included."""
        for start in range(0, len(self), size):
            yield slice(start, min(start + size, len(self)))

    def check(self, *, where: str) -> None:
        """Check ranks, row counts and finiteness.

        Raises:
            UsageError: naming the tensor and the first bad row.
        """
        if len(self) == 0:
            raise UsageError(
                f"{where} holds no samples.", "Set samples.trajectories and samples.steps to at least 1."
            )
        for name, value in _tensors(self).items():
            if len(value) != len(self):
                raise UsageError(
                    f"{where}: tensor '{name}' has {len(value)} rows, expected {len(self)}.",
                    RESTORE,
                )
            if np.issubdtype(value.dtype, np.floating):
                bad = _bad_rows(value)
                if bool(bad.any()):
                    row = int(np.flatnonzero(bad)[0])
                    raise UsageError(
                        f"{where}: '{name}' holds NaN or Inf in {int(bad.sum())} of {len(self)} rows, "
                        f"first in row {row} "
                        f"(trajectory {int(self.trajectory[row])}, timestep {int(self.timesteps[row])}).",
                        "Check the model's weights and dtype, then calibrate into another folder with -o.",
                    )


def _chosen(value: Rows, index: NDArray[Any] | slice) -> Rows:
    return value.take(index) if isinstance(value, TableRows) else np.array(value[index])


def _bad_rows(value: Rows) -> NDArray[np.bool_]:
    """Return which rows ``[N]`` hold a value that is not finite."""
    if isinstance(value, TableRows):
        return np.asarray(_bad_rows(value.table)[value.index])
    return np.asarray(~np.isfinite(value).reshape(len(value), -1).all(axis=1))  # type: ignore[call-overload]


def timestep_buckets(timesteps: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Return for each row its timestep bucket, 0 = noisiest: contiguous groups of equally many distinct steps.

    ``timesteps`` [N] are int64, or float32 as some networks are fed them; larger is noisier.
    """
    distinct, place = np.unique(timesteps, return_inverse=True)
    rank = len(distinct) - 1 - place
    return np.asarray(rank * min(count, len(distinct)) // len(distinct), np.int64)


def _conditioning(tensors: Mapping[str, Array]) -> dict[str, Rows]:
    found: dict[str, Rows] = {}
    for key, value in tensors.items():
        if key.startswith(CONDITION_PREFIX):
            name = key.removeprefix(CONDITION_PREFIX)
            index = tensors.get(f"{INDEX_PREFIX}{name}")
            found[name] = value if index is None else TableRows(value, index)
    return found


def save_samples(samples: CalibrationSet, path: Path) -> None:
    """Write a set that is already in memory."""
    tensors: dict[str, Array] = {}
    for name, value in _tensors(samples).items():
        if isinstance(value, TableRows):
            tensors[name] = value.table
            tensors[f"{INDEX_PREFIX}{name.removeprefix(CONDITION_PREFIX)}"] = value.index
        else:
            tensors[name] = np.asarray(value)
    with SampleWriter(path, {k: (v.dtype.name, v.shape) for k, v in tensors.items()}) as writer:
        writer.write(0, tensors)


def load_samples(path: Path, *, sha256: str | None = None) -> CalibrationSet:
    """Read a calibration set, checking its digest when one is given.

    Raises:
        ArtifactError: missing, truncated, altered, or a tensor is missing.
        UsageError: the content is empty or not finite.
    """
    if not path.is_file():
        raise ArtifactError(f"Calibration samples are missing: {path}", RESTORE)
    reading = (
        nullcontext() if sha256 is None else held(path, sha256, what="Calibration samples", hint=RESTORE)
    )
    try:
        with reading, safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        samples = CalibrationSet(
            conditioning=_conditioning(tensors),
            **{k: v for k, v in tensors.items() if not k.startswith((CONDITION_PREFIX, INDEX_PREFIX))},
        )
    except (OSError, SafetensorError, TypeError) as error:
        raise ArtifactError(f"Calibration samples {path} are not whole: {error}", RESTORE) from error
    samples.check(where=str(path))
    return samples


def _tensors(samples: CalibrationSet) -> dict[str, Rows]:
    tensors: dict[str, Rows] = {}
    if samples.float_timesteps is not None:
        tensors["float_timesteps"] = samples.float_timesteps
    tensors.update(
        latents=samples.latents,
        timesteps=samples.timesteps,
        targets=samples.targets,
        trajectory=samples.trajectory,
        step=samples.step,
        validation=samples.validation,
    )
    return tensors | {f"{CONDITION_PREFIX}{name}": value for name, value in samples.conditioning.items()}
