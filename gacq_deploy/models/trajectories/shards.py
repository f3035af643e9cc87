"""How do many batches of a pipeline's trajectories become one file, whoever ran them? A file a batch, then joined.

What is in memory at a time is one batch: prompts' embeddings may weigh more than the states.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from gacq_deploy.models.call_recorder import RecordedCall
from gacq_deploy.models.pipelines import OpenPipeline
from gacq_deploy.models.trajectories.prompted import Wanted, check_lengths, walk_share
from gacq_deploy.processes.group import ALONE, Group
from gacq_deploy.progress import SILENT, Reporter
from gacq_deploy.samples.calibration_set import CONDITION_PREFIX, INDEX_PREFIX, save_samples
from gacq_deploy.samples.row_file import RowFile, SampleWriter
from gacq_deploy.storage.files import TEMP_PREFIX

_PATTERN = "batch-*.safetensors"
"""The star is the batch's number, padded: sorted by name is sorted by number."""


@dataclass(frozen=True)
class PromptedShare:
    """What other processes need to know to take their share of a pipeline's trajectories."""

    recorded: RecordedCall
    wanted: Wanted
    folder: Path


def collect_file(
    opened: OpenPipeline,
    recorded: RecordedCall,
    wanted: Wanted,
    path: Path,
    report: Reporter = SILENT,
    group: Group = ALONE,
) -> None:
    """Run a pipeline's float trajectories and write what its denoiser took and returned to ``path``.

    Other processes of the group have to call :func:`help_collect_file` with what is broadcast.

    Raises:
        ModelError: a trajectory calls the denoiser otherwise than the recorded one did.
        CalibrationError: the float model's output is not finite.
        ResourceError: the disk is full, or another process of the group ended.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f"{TEMP_PREFIX}batches-", dir=path.parent) as folder:
        share = PromptedShare(recorded, wanted, Path(folder))
        group.broadcast(share)
        _walk(opened, share, group, report)
        group.wait()
        _join(sorted(Path(folder).glob(_PATTERN)), path)


def help_collect_file(opened: OpenPipeline, share: PromptedShare, group: Group) -> None:
    """Run this process's share of the batches into files that the first process joins.

    Raises:
        ModelError, CalibrationError, ResourceError: as :func:`collect_file`.
    """
    _walk(opened, share, group, SILENT)
    group.wait()


def _walk(opened: OpenPipeline, share: PromptedShare, group: Group, report: Reporter) -> None:
    for number, batch in walk_share(opened, share.recorded, share.wanted, report, group):
        save_samples(batch, share.folder / _PATTERN.replace("*", f"{number:06d}"))


def _join(files: list[Path], path: Path) -> None:
    """Put batches one behind the other; tables of conditioning as well."""
    shards = [RowFile(file, "r") for file in files]
    check_lengths([shard.tensors["trajectory"] for shard in shards])
    names = sorted(shards[0].tensors)
    layout: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name in names:
        first = shards[0].tensors[name]
        rows = sum(len(shard.tensors[name]) for shard in shards)
        layout[name] = (first.dtype.name, (rows, *first.shape[1:]))
    starts = dict.fromkeys(names, 0)
    with SampleWriter(path, layout) as writer:
        for shard in shards:
            for name, value in shard.tensors.items():
                table = f"{CONDITION_PREFIX}{name.removeprefix(INDEX_PREFIX)}"
                shifted: NDArray[np.int64] = value + starts[table] if name.startswith(INDEX_PREFIX) else value
                writer.write(starts[name], {name: shifted})
            starts = {name: starts[name] + len(value) for name, value in shard.tensors.items()}
            # let go of the mapping: only one batch's pages are needed at a time
            shard.tensors.clear()
