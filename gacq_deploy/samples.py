"""Which inputs represent the denoising path? States of float trajectories, on disk and in numpy."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from gacq_deploy.errors import ArtifactError, UsageError
from gacq_deploy.storage import Array, atomic_path, digest_file

SCHEMA = "gacq-deploy/samples/1"
CONDITION_PREFIX = "cond."
_DTYPES = {"float32": "F32", "int64": "I64", "uint8": "U8"}


@dataclass(frozen=True)
class CalibrationSet:
    """``N`` states of float trajectories, rows ordered by trajectory, then from noisy to clean.

    ``latents`` [N, C, H, W] float32, ``timesteps`` [N] int64, ``targets`` [N, C, H, W] float32 (the float model's
    own output), ``conditioning`` name -> [N, ...], ``trajectory`` [N] int64, ``step`` [N] int64 (0 = noisiest),
    ``validation`` [N] uint8 (1 = held out; whole trajectories only).
    """

    latents: NDArray[np.float32]
    timesteps: NDArray[np.int64]
    targets: NDArray[np.float32]
    conditioning: Mapping[str, Array]
    trajectory: NDArray[np.int64]
    step: NDArray[np.int64]
    validation: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.timesteps)

    def rows(self, index: NDArray[Any] | slice) -> CalibrationSet:
        """Return the given rows, copied into memory."""
        return CalibrationSet(
            latents=np.array(self.latents[index]),
            timesteps=np.array(self.timesteps[index]),
            targets=np.array(self.targets[index]),
            conditioning={k: np.array(v[index]) for k, v in self.conditioning.items()},
            trajectory=np.array(self.trajectory[index]),
            step=np.array(self.step[index]),
            validation=np.array(self.validation[index]),
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
                    "Collect the samples again with --fresh.",
                )
            if np.issubdtype(value.dtype, np.floating):
                bad = ~np.isfinite(value).reshape(len(value), -1).all(axis=1)
                if bool(bad.any()):
                    row = int(np.flatnonzero(bad)[0])
                    raise UsageError(
                        f"{where}: '{name}' holds NaN or Inf in {int(bad.sum())} of {len(self)} rows, "
                        f"first in row {row} "
                        f"(trajectory {int(self.trajectory[row])}, timestep {int(self.timesteps[row])}).",
                        "Check the model's weights and dtype; collect the samples again with --fresh.",
                    )


def timestep_buckets(timesteps: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return for each row its timestep bucket, 0 = noisiest: contiguous groups of equally many distinct steps."""
    distinct = np.unique(timesteps)[::-1]
    rank = {int(t): i for i, t in enumerate(distinct)}
    groups = min(count, len(distinct))
    return np.array([rank[int(t)] * groups // len(distinct) for t in timesteps], dtype=np.int64)


class SampleWriter:
    """Streams rows into a safetensors file whose size is known beforehand; whole or absent.

    Use as a context manager; ``write(row, ...)`` fills consecutive rows of every tensor.
    """

    def __init__(self, path: Path, layout: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
        """``layout``: tensor name -> (numpy dtype name, full shape ``[N, ...]``)."""
        self._path = path
        self._layout = dict(sorted(layout.items()))
        self._maps: dict[str, Array] = {}

    def __enter__(self) -> SampleWriter:
        self._context = atomic_path(self._path)
        temp = self._context.__enter__()
        try:
            self._create(temp)
        except BaseException as error:
            self._context.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        for view in self._maps.values():
            view.flush()  # type: ignore[attr-defined]
        self._maps.clear()
        self._context.__exit__(kind, error, trace)

    def write(self, start: int, tensors: Mapping[str, Array]) -> None:
        """Write rows ``start ..`` of every named tensor."""
        for name, value in tensors.items():
            self._maps[name][start : start + len(value)] = value

    def _create(self, temp: Path) -> None:
        header: dict[str, Any] = {"__metadata__": {"schema": SCHEMA}}
        offset = 0
        offsets: dict[str, int] = {}
        for name, (dtype, shape) in self._layout.items():
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            header[name] = {
                "dtype": _DTYPES[dtype],
                "shape": list(shape),
                "data_offsets": [offset, offset + size],
            }
            offsets[name] = offset
            offset += size
        head = json.dumps(header, separators=(",", ":")).encode()
        head += b" " * (-len(head) % 8)
        with temp.open("wb") as file:
            file.write(len(head).to_bytes(8, "little") + head)
            base = file.tell()
            # written, not seeked over: a full disk must show here and not as a bus error in the mapping
            remaining = offset
            while remaining > 0:
                remaining -= file.write(bytes(min(remaining, 1 << 20)))
        for name, (dtype, shape) in self._layout.items():
            self._maps[name] = np.memmap(temp, dtype, "r+", base + offsets[name], shape)


def save_samples(samples: CalibrationSet, path: Path) -> None:
    """Write a set that is already in memory."""
    tensors = _tensors(samples)
    with SampleWriter(path, {k: (v.dtype.name, v.shape) for k, v in tensors.items()}) as writer:
        writer.write(0, tensors)


def load_samples(path: Path, *, sha256: str | None = None) -> CalibrationSet:
    """Read a calibration set, checking its digest when one is given.

    Raises:
        ArtifactError: missing, truncated, altered, or a tensor is missing.
        UsageError: the content is empty or not finite.
    """
    hint = "Run `gacq-deploy calibrate --fresh` to collect the samples again."
    if not path.is_file():
        raise ArtifactError(f"Calibration samples are missing: {path}", hint)
    if sha256 is not None and digest_file(path) != sha256:
        raise ArtifactError(
            f"Calibration samples {path} were altered: sha256 differs from the recorded one.", hint
        )
    try:
        with safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        conditioning = {
            k.removeprefix(CONDITION_PREFIX): v for k, v in tensors.items() if k.startswith(CONDITION_PREFIX)
        }
        samples = CalibrationSet(
            conditioning=conditioning,
            **{k: v for k, v in tensors.items() if not k.startswith(CONDITION_PREFIX)},
        )
    except (OSError, SafetensorError, TypeError) as error:
        raise ArtifactError(f"Calibration samples {path} are not whole: {error}", hint) from error
    samples.check(where=str(path))
    return samples


def _tensors(samples: CalibrationSet) -> dict[str, Array]:
    return {
        "latents": samples.latents,
        "timesteps": samples.timesteps,
        "targets": samples.targets,
        "trajectory": samples.trajectory,
        "step": samples.step,
        "validation": samples.validation,
        **{f"{CONDITION_PREFIX}{k}": v for k, v in samples.conditioning.items()},
    }
