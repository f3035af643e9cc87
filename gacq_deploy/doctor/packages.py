"""Which Python packages are installed, in which versions?"""

from __future__ import annotations

from importlib import metadata

from gacq_deploy.doctor.findings import Check

BASE_PACKAGES = ("numpy", "onnx", "safetensors", "pydantic", "PyYAML", "click", "rich", "jinja2", "pillow")
CALIBRATE_PACKAGES = ("torch", "diffusers", "onnxscript")


def checks() -> list[Check]:
    """Look for the packages of the base install, and for those of the extra `calibrate`."""
    base = [_package(name, required=True, extra="") for name in BASE_PACKAGES]
    return base + [_package(name, required=False, extra="calibrate") for name in CALIBRATE_PACKAGES]


def version(name: str) -> str | None:
    """Return the installed version of a distribution."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _package(name: str, *, required: bool, extra: str) -> Check:
    found = version(name)
    if found is not None:
        return Check(name, "ok", found)
    target = f"'gacq-deploy[{extra}]'" if extra else "gacq-deploy"
    return Check(name, "fail" if required else "absent", "not installed", f"pip install {target}")
