"""On which device does torch compute? Asked once, of the recipe; everything else follows the model that it is given."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from gacq_deploy.errors import BackendUnavailable
from gacq_deploy.processes.threads import limited_threads

HOST = torch.device("cpu")
_INSTALL = "https://pytorch.org/get-started/locally shows the build for your CUDA"
_WORKSPACE = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
"""Without it cuBLAS may sum in another order each time; it is read when CUDA begins."""


def find_device(asked: str) -> torch.device:
    """Return the device that a recipe's ``calibration.device`` means on this machine.

    Args:
        asked: ``auto`` (the first GPU, or the CPU where there is none), ``cpu``, ``cuda`` (the first GPU), ``cuda:N``.

    Raises:
        BackendUnavailable: it is not here; says why.
    """
    kind, _, number = asked.partition(":")
    if kind == "cpu" or (kind == "auto" and not torch.cuda.is_available()):
        return HOST
    index = int(number or 0)
    if torch.version.cuda is None:
        raise BackendUnavailable(
            f"'{asked}' was asked for, and this PyTorch ({torch.__version__}) is built without CUDA.",
            f"Install one that has it ({_INSTALL}), or pass --device cpu.",
        )
    if not torch.cuda.is_available():
        raise BackendUnavailable(
            f"'{asked}' was asked for, and PyTorch {torch.__version__} finds no GPU that it can use.",
            "`gacq-deploy doctor` shows driver and GPUs; or pass --device cpu.",
        )
    if index >= torch.cuda.device_count():
        names = ", ".join(
            f"cuda:{n} {torch.cuda.get_device_name(n)}" for n in range(torch.cuda.device_count())
        )
        raise BackendUnavailable(
            f"'{asked}' was asked for; here is {names}.", "Pass --device with one of them."
        )
    return torch.device("cuda", index)


def device_class(device: torch.device) -> str:
    """Return what a run remembers of its device: ``cpu``, or ``cuda`` for any GPU."""
    return "cpu" if device.type == "cpu" else "cuda"


def card_mb(device: torch.device) -> int:
    """Return the memory of a GPU, in megabytes (2^20 bytes)."""
    return int(torch.cuda.get_device_properties(device).total_memory) >> 20


def device_facts(device: torch.device) -> dict[str, str]:
    """Return what a result's last bits depend on beside torch: the card's name, CUDA and cuDNN; of a CPU nothing."""
    if device.type != "cuda":
        return {}
    return {
        "device": torch.cuda.get_device_name(device),
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
    }


@contextmanager
def computing_on(device: torch.device, threads: int) -> Iterator[None]:
    """Let torch compute in full float32 and in one order of sums inside the context, on so many CPU threads.

    TF32 keeps 10 of 23 bits of a product's factors, and cuDNN takes it by default. Kernels that have no deterministic
    form are left as they are, with torch's own warning.
    """
    with ExitStack() as stack:
        stack.enter_context(limited_threads(threads))
        if device.type == "cuda":
            os.environ.setdefault(*_WORKSPACE)
            stack.enter_context(
                torch.backends.cudnn.flags(benchmark=False, deterministic=True, allow_tf32=False)
            )
            products = torch.backends.cuda.matmul
            stack.callback(setattr, products, "allow_tf32", products.allow_tf32)
            products.allow_tf32 = False
            stack.callback(torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled())
            torch.use_deterministic_algorithms(True, warn_only=True)
            stack.enter_context(torch.cuda.device(device))
        yield
