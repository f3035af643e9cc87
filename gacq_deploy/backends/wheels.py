"""Which wheels own the module ``onnxruntime``? Two of them overwrite each other in silence."""

from __future__ import annotations

from importlib.metadata import distributions

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
    for distribution in distributions():
        name = (distribution.name or "").lower().replace("_", "-")
        if name in OWNERS:
            found.setdefault(name, distribution.version)
    return dict(sorted(found.items()))


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
