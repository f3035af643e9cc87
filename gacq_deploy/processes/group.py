"""Which of several processes is this, and how do they work on one thing? `torchrun` starts them, on one machine.

They exchange small values alone, and arrays through files: gloo suffices, whatever device computes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

from gacq_deploy.errors import BackendUnavailable, ResourceError, UsageError

_NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_NUMBERS = tuple(name for name in _NAMES if name != "MASTER_ADDR")
_PATIENCE = timedelta(days=30)
"""One may wait for another as long as that works; of a process that died, torchrun ends the others."""
_CONNECT = timedelta(seconds=30)


@dataclass(frozen=True)
class Group:
    """Processes that run one command together; the first, of rank 0, is the main one: it writes and talks."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the first process."""
        return self.rank == 0

    def indices(self, count: int) -> range:
        """Return which of ``count`` work items are this process's: every ``size``-th."""
        return range(self.rank, count, self.size)

    def broadcast(self, value: Any) -> Any:
        """Return the first process's value in every process; what the others pass is ignored.

        Raises:
            ResourceError: another process ended.
        """
        if self.size == 1:
            return value
        values = [value if self.is_main else None]
        with _heard() as distributed:
            distributed.broadcast_object_list(values, src=0)
        return values[0]

    def gather(self, value: Any) -> list[Any]:
        """Return every process's value, by rank, in the first one; nothing in the others.

        Raises:
            ResourceError: another process ended.
        """
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.is_main else None
        with _heard() as distributed:
            distributed.gather_object(value, values, dst=0)
        return values or []

    def wait(self) -> None:
        """Return when every process has come this far.

        Raises:
            ResourceError: another process ended.
        """
        if self.size > 1:
            with _heard() as distributed:
                distributed.barrier()

    def close(self) -> None:
        """Leave; the others may go on alone."""
        if self.size > 1:
            from torch import distributed

            if distributed.is_initialized():
                distributed.destroy_process_group()


ALONE = Group()


def own_rank() -> int:
    """Return this process's rank, 0 where no launcher gave one that makes sense: a job's template may leave names."""
    return _place()[0] if _is_launched() and not _odd_names() else 0


@contextmanager
def joined_group() -> Iterator[Group]:
    """Yield the group that `torchrun` started this process in; without it, a group of one that needs no torch.

    Raises:
        UsageError: the processes are on several machines, or the environment names none that can be.
        BackendUnavailable: PyTorch is missing.
        ResourceError: the others cannot be reached.
    """
    if not _is_launched():
        yield ALONE
        return
    if odd := _odd_names():
        said = ", ".join(f"{name}={os.environ[name]!r}" for name in odd)
        raise UsageError(
            f"The environment names a group of processes that cannot be: {said}.",
            "Start them with torchrun, or unset the names: env -u RANK -u WORLD_SIZE gacq-deploy ...",
        )
    rank, size = _place()
    if int(os.environ["LOCAL_WORLD_SIZE"]) != size:
        raise UsageError(
            f"{size} processes on several machines: {os.environ['LOCAL_WORLD_SIZE']} of them run here.",
            "They share files, so start all on one machine: torchrun --nproc-per-node N.",
        )
    try:
        from torch import distributed
    except ImportError as error:
        raise BackendUnavailable(
            f"Several processes need PyTorch: {error}.", "pip install 'gacq-deploy[calibrate]'"
        ) from error
    _take_own_device()
    with _heard():
        distributed.init_process_group("gloo", store=_store(), rank=rank, world_size=size, timeout=_PATIENCE)
    group = Group(rank, size)
    try:
        yield group
    finally:
        group.close()


def speaks_first() -> bool:
    """Return whether this process is the first of its group to fail, whose message is the one that counts."""
    if not _is_launched() or _odd_names():
        return True
    try:
        return int(_store().add("gacq-deploy/failure", 1)) == 1
    except (ImportError, RuntimeError, OSError, ValueError):
        # nobody to ask: better a message twice than none
        return True


def _is_launched() -> bool:
    """Tell whether a launcher started this process with others; one whose names are there and empty did not."""
    return all(os.environ.get(name) for name in _NAMES) and os.environ["WORLD_SIZE"] != "1"


def _place() -> tuple[int, int]:
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def _odd_names() -> list[str]:
    """Return the names that are no numbers a group can have."""
    odd = [name for name in _NUMBERS if not re.fullmatch("[0-9]{1,6}", os.environ[name])]
    if odd:
        return odd
    rank, size = _place()
    return [] if rank < size else ["RANK", "WORLD_SIZE"]


@cache
def _store() -> Any:
    """Return the connection to the group's table: the launcher's own, which outlives every process, or the first's."""
    from torch import distributed

    return distributed.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        int(os.environ["WORLD_SIZE"]),
        # torchrun's own agent serves the table; where it does not, the first process has to
        is_master=os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" and own_rank() == 0,
        timeout=_CONNECT,
        # a process that ends asks who speaks: it may be the only one that is left, or was ever there
        wait_for_workers=False,
    )


def _take_own_device() -> None:
    """Show this process one GPU, its own: engines take the first they see."""
    import torch

    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = seen.split(",") if seen else list(map(str, range(torch.cuda.device_count())))
    if devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[int(os.environ["LOCAL_RANK"]) % len(devices)]


@contextmanager
def _heard() -> Iterator[Any]:
    """Yield torch's module for groups; what it raises where another process ended becomes an error of ours."""
    from torch import distributed

    try:
        yield distributed
    except (RuntimeError, OSError) as error:
        first = str(error).strip().partition("\n")[0]
        raise ResourceError(
            f"Another process of the group ended or cannot be reached: {first}",
            "Its own message says why; the system's log does if it was killed (out of memory).",
        ) from error
