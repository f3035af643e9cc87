"""Write what a wheel brings with it, as CycloneDX: `make sbom`.

The packages are those of the release image, docker/serving.txt; which of them needs which, their own metadata says, in
the environment that runs this.
"""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from importlib.metadata import Distribution, PathDistribution, distribution
from pathlib import Path

from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import LicenseExpression
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from docker.lock import EXTRAS, LOCK, read_lock


def describe(wheel: Path) -> str:
    """Return the bill of materials of a wheel of ours as JSON.

    Args:
        wheel: the file; its hash, version and licence are the root's.

    Raises:
        SystemExit: a package of docker/serving.txt is not installed here in that version.
    """
    ours = next(entry for entry in zipfile.Path(wheel).iterdir() if entry.name.endswith(".dist-info"))
    metadata = PathDistribution(ours)
    root = _component(metadata.name, metadata.version, (sha256(wheel.read_bytes()).hexdigest(),))
    root.licenses.add(LicenseExpression(metadata.metadata["License-Expression"]))
    bom = Bom()
    bom.metadata.component = root
    locked = {name: _component(name, version, hashes) for name, version, hashes in read_lock(LOCK)}
    bom.components.update(locked.values())
    bom.register_dependency(root, _needed(metadata, EXTRAS, locked))
    for component in locked.values():
        bom.register_dependency(component, _needed(_installed(component), (), locked))
    return JsonV1Dot6(bom).output_as_string(indent=2) + "\n"


def _component(name: str, version: str, hashes: Iterable[str]) -> Component:
    """Return a package of ours or of others; one that is compiled has a hash for every machine."""
    name = canonicalize_name(name)
    purl = PackageURL("pypi", name=name, version=version)
    return Component(
        name=name,
        version=version,
        type=ComponentType.LIBRARY,
        purl=purl,
        bom_ref=purl.to_string(),
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest) for digest in hashes],
    )


def _installed(component: Component) -> Distribution:
    found = distribution(component.name)
    if found.version != component.version:
        sys.exit(
            f"error: {component.name} {found.version} is installed, {LOCK} has {component.version}: make lock"
        )
    return found


def _needed(
    package: Distribution, extras: Iterable[str], locked: Mapping[str, Component]
) -> Iterator[Component]:
    for line in package.requires or ():
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield locked[canonicalize_name(requirement.name)]


def main(wheel: Path) -> None:
    """Write the bill beside the wheel."""
    path = wheel.with_name(f"{'-'.join(wheel.name.split('-')[:2])}.cdx.json")
    path.write_text(describe(wheel), encoding="utf-8")
    print(path)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        main(Path(name))
