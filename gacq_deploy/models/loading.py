"""How are classes and weights loaded without a word? Other libraries draw bars, and warn of what nothing here needs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import Any

import diffusers
from diffusers.utils.import_utils import DummyObject
from huggingface_hub import errors as hub_errors
from safetensors import SafetensorError

from gacq_deploy.errors import BackendUnavailable
from gacq_deploy.models.folders import INSTALL_TEXT

FAILURES: tuple[type[Exception], ...] = (
    ValueError,
    TypeError,
    RuntimeError,
    AttributeError,
    NameError,
    LookupError,
    ArithmeticError,
    AssertionError,
    ImportError,
    OSError,
    SafetensorError,
    # of a configuration of transformers that its class refuses; older releases look at none
    getattr(hub_errors, "StrictDataclassError", ValueError),
)
"""What the classes of other libraries raise of a file or a value that they cannot use."""


_TEXT = {"transformers", "sentencepiece"}
"""What the extra ``text`` installs."""


def first_line(error: BaseException) -> str:
    """Return what fits into a message of ours, with the line that says why where the first does not."""
    first, _, rest = str(error).strip().removesuffix(".").partition("\n")
    return f"{first} {rest.strip().partition(chr(10))[0]}" if first.endswith(":") and rest else first


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Silence the bars and warnings of diffusers and transformers inside the context; a download draws its bar outside.

    What they were told before, by the user's own program, holds again afterwards.
    """
    with ExitStack() as stack:
        for log in _logs():
            stack.enter_context(_quiet(log))
        stack.enter_context(warnings.catch_warnings())
        # newer releases call the argument dtype, the oldest supported one torch_dtype alone
        warnings.filterwarnings("ignore", ".*torch_dtype", FutureWarning)
        yield


def named_class(name: object) -> Any:
    """Return what diffusers calls so, None for nothing; the import names no packages that only others would need.

    Raises:
        BackendUnavailable: it needs packages that are not installed. diffusers then has a stand-in of its name.
    """
    with quiet_loading():
        found = getattr(diffusers, str(name), None)
    if isinstance(found, DummyObject):
        needed: list[str] = found._backends
        lacking = [package for package in needed if find_spec(package) is None] or needed
        ours = not set(lacking) - _TEXT
        raise BackendUnavailable(
            f"{name} needs {' and '.join(lacking)}, which diffusers {diffusers.__version__} does not find.",
            INSTALL_TEXT if ours else f"pip install {' '.join(lacking)}",
        )
    return found


def _logs() -> Iterator[Any]:
    yield diffusers.utils.logging
    if find_spec("transformers") is not None:
        # here, where diffusers imports it too: at the top it would be needed where no text is
        from transformers.utils import logging

        yield logging


@contextmanager
def _quiet(log: Any) -> Iterator[None]:
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
