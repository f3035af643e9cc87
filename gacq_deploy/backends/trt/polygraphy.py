"""Is Polygraphy here, NVIDIA's toolkit around TensorRT, and how is it told which library to drive?"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from gacq_deploy.backends.trt.library import TrtLibrary
from gacq_deploy.errors import BackendUnavailable
from gacq_deploy.spec import Array

_OLDEST = (0, 53, 4)
"""The first version that knows both libraries as this package uses them."""
_INSTALL = (
    f"pip install 'polygraphy>={'.'.join(map(str, _OLDEST))}'    (the extras trt and rtx bring it along)"
)


@dataclass(frozen=True)
class Polygraphy:
    """What of it this package uses: its makers of what a builder takes, and what it raises."""

    profile: Any
    create_config: Any
    decompose_attention: Any
    refusal: type[Exception]


def require_polygraphy(what: str) -> None:
    """Refuse ``what`` before any work where Polygraphy is missing or too old; nothing is imported.

    Raises:
        BackendUnavailable: with the version found and the command that installs it.
    """
    try:
        found = metadata.version("polygraphy")
    except metadata.PackageNotFoundError:
        raise BackendUnavailable(f"{what} needs Polygraphy, which is not installed.", _INSTALL) from None
    if tuple(int(number) for number in re.findall(r"\d+", found)[:3]) < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        raise BackendUnavailable(
            f"{what} needs Polygraphy {oldest} or newer; {found} is installed.", _INSTALL
        )


def load_polygraphy(library: TrtLibrary) -> Polygraphy:
    """Import what of Polygraphy configures a build with ``library``; a process can do so for one library only.

    Raises:
        BackendUnavailable: as for :func:`require_polygraphy`.
    """
    require_polygraphy(f"Building with {library.name}")
    rtx = library.name == "tensorrt-rtx"
    # read once, while it is imported
    os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1" if rtx else "0"
    # it knows each library by one name, and TensorRT-RTX serves without the package of that name
    sys.modules.setdefault(library.name.replace("-", "_"), library.module)
    logger = import_module("polygraphy.logger").G_LOGGER
    # the rest would stand on stdout, among a worker's reports; what it refuses it also raises
    logger.module_severity = logger.CRITICAL
    driver = import_module("polygraphy.backend.trt")
    of_rtx = import_module("polygraphy.backend.tensorrt_rtx")
    return Polygraphy(
        profile=driver.Profile,
        create_config=of_rtx.CreateConfigRTX if rtx else driver.CreateConfig,
        decompose_attention=driver.SetDecomposableAttentions,
        refusal=import_module("polygraphy.exception").PolygraphyException,
    )


def save_feeds(path: Path, feeds: Sequence[Mapping[str, Array]]) -> None:
    """Write inputs for Polygraphy's ``--load-inputs``: name -> array for each iteration."""
    with _silent():
        import_module("polygraphy.json").save_json([dict(feed) for feed in feeds], str(path))


def save_results(path: Path, runner: str, outputs: Sequence[Mapping[str, Array]]) -> None:
    """Write the outputs of ``runner`` for Polygraphy's ``--load-outputs``: name -> array for each iteration."""
    with _silent():
        results = import_module("polygraphy.comparator").RunResults()
        results.add([dict(output) for output in outputs], runner_name=runner)
        results.save(str(path))


def _silent() -> Any:
    """Return a block in which Polygraphy writes nothing to stdout; its logger is the caller's own as well."""
    return import_module("polygraphy.logger").G_LOGGER.verbosity()
