"""Which wheels own the module ``onnxruntime``? Two of them overwrite each other in silence."""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

from gacq_deploy.errors import BackendUnavailable

OWNERS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-openvino",
    "onnxruntime-directml",
    "onnxruntime-qnn",
    "onnxruntime-rocm",
    "onnxruntime-training",
)


def onnxruntime_wheels() -> dict[str, str]:
    """Return distribution name -> version of every installed wheel that unpacks into ``onnxruntime/``."""
    found: dict[str, str] = {}
    for name in sorted(OWNERS):  # asked by name: reading every distribution takes ten times as long
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def require_one_onnxruntime() -> None:
    """Refuse an environment where ``onnxruntime`` belongs to two wheels.

    Raises:
        BackendUnavailable: with the two pip lines that mend it.
    """
    wheels = onnxruntime_wheels()
    if len(wheels) > 1:
        listed = " and ".join(f"{name} {version}" for name, version in wheels.items())
        raise BackendUnavailable(
            f"{listed} are both installed and overwrite each other's files: which one runs is chance.",
            f"pip uninstall -y {' '.join(wheels)}\n"
            "pip install 'gacq-deploy[cpu]'    (or 'gacq-deploy[gpu]' on a machine with CUDA)",
        )
