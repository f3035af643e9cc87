"""Which Python packages are installed, and are they as new as this one needs?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib import metadata

from packaging.requirements import Requirement

from gacq_deploy.doctor.findings import Check, FindingStatus

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
    old = too_old(extra for extra, _ in OPTIONAL_PACKAGES.values())
    base = (Check(name, "fail", "not installed", "pip install gacq-deploy") for name in BASE_PACKAGES)
    found = [_package(missing, old, "fail") for missing in base]
    for name, (extra, purpose) in OPTIONAL_PACKAGES.items():
        missing = Check(name, "absent", f"not installed: {purpose}", f"pip install 'gacq-deploy[{extra}]'")
        found.append(_package(missing, old, "warning"))
    return found


def version(name: str) -> str | None:
    """Return the installed version of a distribution."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def too_old(extras: Iterable[str] = ()) -> dict[str, str]:
    """Return the installed distributions that are older than this package asks for, and its words: ``torch>=2.9``.

    Args:
        extras: those whose packages count, beside the base install's.
    """
    asked = ("", *extras)
    try:
        lines = metadata.requires("gacq-deploy") or ()
    except metadata.PackageNotFoundError:
        return {}  # run from a folder that nobody installed: nothing says what it needs
    old = {}
    for requirement in map(Requirement, lines):
        marker, found = requirement.marker, version(requirement.name)
        counts = marker is None or any(marker.evaluate({"extra": extra}) for extra in asked)
        if counts and found is not None and not requirement.specifier.contains(found, prereleases=True):
            old[requirement.name] = f"{requirement.name}{requirement.specifier}"
    return old


def _package(missing: Check, old: Mapping[str, str], if_old: FindingStatus) -> Check:
    found = version(missing.name)
    if found is None:
        return missing
    if missing.name in old:
        return replace(missing, status=if_old, value=f"{found} is too old: {old[missing.name]}")
    return Check(missing.name, "ok", found)
