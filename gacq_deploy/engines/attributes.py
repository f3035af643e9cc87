"""How is what ``module:attribute`` names imported, when it is needed?"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from gacq_deploy.errors import BackendUnavailable


def import_attribute(target: str, *, what: str, hint: str) -> Any:
    """Import ``module:attribute``; only a failure of that import counts as a missing library.

    Raises:
        BackendUnavailable: a library outside this package is missing, its shared objects do not load, or it has no such
            attribute.
    """
    module, _, attribute = target.partition(":")
    try:
        loaded = import_module(module)
    except ImportError as error:
        if (error.name or "").startswith("gacq_deploy"):
            raise  # our own mistake, not a missing package
        raise BackendUnavailable(f"{what} is not available: {error}.", hint) from error
    except OSError as error:
        raise BackendUnavailable(f"{what} is installed but does not load: {error}.", hint) from error
    try:
        return getattr(loaded, attribute)
    except AttributeError as error:
        if module.startswith("gacq_deploy"):
            raise
        raise BackendUnavailable(f"{what} is not available: {error}.", hint) from error
