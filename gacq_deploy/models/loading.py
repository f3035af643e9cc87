"""How are weights loaded without a word? Diffusers draws bars, and warns of what nothing here needs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import diffusers


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Silence diffusers' progress bars and warnings inside the context."""
    logger = logging.getLogger("diffusers")
    level, bars = logger.level, diffusers.utils.logging.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    diffusers.utils.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # newer releases call the argument dtype, the oldest supported one torch_dtype alone
            warnings.filterwarnings("ignore", ".*torch_dtype", FutureWarning)
            yield
    finally:
        logger.setLevel(level)
        if bars:
            diffusers.utils.logging.enable_progress_bar()
