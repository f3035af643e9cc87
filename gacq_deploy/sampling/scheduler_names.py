"""Which schedulers does the installed diffusers have? Read from its own list: importing it takes seconds."""

from __future__ import annotations

import re
from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path

from gacq_deploy.errors import UsageError, did_you_mean

EXAMPLES = "For instance: ddim, EulerDiscreteScheduler, PNDMScheduler."
OWN = ("ddim", "flow")
"""Samplers that need no diffusers."""


def unknown_scheduler(name: str, known: Collection[str]) -> UsageError:
    """Return what is said of a scheduler that diffusers does not have."""
    return UsageError(f"diffusers has no scheduler '{name}'.", f"{did_you_mean(name, known)}{EXAMPLES}")


def check_scheduler_name(name: str | None) -> None:
    """Refuse a name that is no scheduler of the installed diffusers, before it is imported.

    Raises:
        UsageError: there is none of this name.
    """
    if name is None or name in OWN:
        return
    known = _listed()
    if known and name not in known:
        raise unknown_scheduler(name, known)


def _listed() -> frozenset[str]:
    """Return the names in the list of diffusers' schedulers; none where it is not installed, or keeps no such list."""
    spec = find_spec("diffusers")
    places = [] if spec is None else spec.submodule_search_locations or []
    files = [Path(place) / "schedulers" / "__init__.py" for place in places]
    texts = (file.read_text(encoding="utf-8") for file in files if file.is_file())
    return frozenset(re.findall(r'"(\w+Scheduler)"', "".join(texts)))
