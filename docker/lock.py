"""Write what the release image installs, each wheel with its sha256: `make lock`, after constraints.txt changed.

pip itself chooses and fetches the wheels, from wherever its configuration says; this only writes down what came.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path

from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "docker" / "serving.txt"
"""What the release image installs."""
_ENTRY = re.compile(r"^([\w.-]+)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", re.MULTILINE)
EXTRAS = ("cpu", "sign")
"""Of the release image: what runs and checks a run."""
PYTHON = "3.11"
"""Of the base image."""
MACHINES = ("x86_64", "aarch64")
GLIBC = range(17, 37)
"""Minor versions of the C library whose wheels the base image runs: its own, 2.36, and older ones."""


def main() -> None:
    """Write both files."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    runtime = [*project["project"]["dependencies"], *(line for name in EXTRAS for line in extras[name])]
    for name, requirements in (("serving", runtime), ("build", project["build-system"]["requires"])):
        path = ROOT / "docker" / f"{name}.txt"
        path.write_text("".join(_locked(requirements)), encoding="utf-8")


def read_lock(path: Path) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Yield name, version and hashes of every package in a file that `make lock` wrote."""
    for name, version, lines in _ENTRY.findall(path.read_text(encoding="utf-8")):
        yield name, version, tuple(re.findall("[0-9a-f]{64}", lines))


def _locked(requirements: Iterable[str]) -> Iterator[str]:
    yield f"# Written by `make lock`, for Python {PYTHON} on {' and '.join(MACHINES)}; pip install --require-hashes.\n"
    found: dict[str, set[str]] = defaultdict(set)
    for machine in MACHINES:
        with tempfile.TemporaryDirectory() as folder:
            _fetch(requirements, machine, folder)
            for wheel in Path(folder).iterdir():
                name, version, *_ = parse_wheel_filename(wheel.name)
                found[f"{name}=={version}"].add(sha256(wheel.read_bytes()).hexdigest())
    for pin, digests in sorted(found.items()):
        yield " \\\n".join((pin, *(f"    --hash=sha256:{digest}" for digest in sorted(digests)))) + "\n"


def _fetch(requirements: Iterable[str], machine: str, folder: str) -> None:
    tags = [f"manylinux_2_{minor}_{machine}" for minor in reversed(GLIBC)]
    platforms = [word for tag in (*tags, f"manylinux2014_{machine}") for word in ("--platform", tag)]
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
            *("--constraint", str(ROOT / "constraints.txt"), "--only-binary", ":all:", "--dest", folder),
            *("--implementation", "cp", "--python-version", PYTHON, *platforms, *requirements),
        ],
        check=True,
    )


if __name__ == "__main__":
    main()
