"""Which Python packages are installed, in which versions?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import metadata

from gacq_deploy.doctor.findings import Check

BASE_PACKAGES = ("numpy", "onnx", "safetensors", "pydantic", "PyYAML", "click", "rich", "jinja2", "pillow")
OPTIONAL_PACKAGES: Mapping[str, tuple[str, str]] = {
    "torch": ("calibrate", "to calibrate and export"),
    "diffusers": ("calibrate", "to calibrate and export"),
    "onnxscript": ("calibrate", "to export"),
    "transformers": ("text", "for models that read prompts"),
    "peft": ("lora", "to fuse a LoRA"),
    "cryptography": ("sign", "to sign runs and check signatures"),
}
"""Distribution -> the extra that brings it, and what for."""


def checks() -> list[Check]:
    """Look for the packages of the base install, and for those of the extras that are no engines."""
    missing = Check("", "fail", "not installed", "pip install gacq-deploy")
    base = [_package(name, missing) for name in BASE_PACKAGES]
    for name, (extra, purpose) in OPTIONAL_PACKAGES.items():
        hint = f"pip install 'gacq-deploy[{extra}]'"
        base.append(_package(name, Check("", "absent", f"not installed: {purpose}", hint)))
    return base


def version(name: str) -> str | None:
    """Return the installed version of a distribution."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _package(name: str, missing: Check) -> Check:
    found = version(name)
    return replace(missing, name=name) if found is None else Check(name, "ok", found)
