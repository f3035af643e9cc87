"""Does the graph make images of the size that is asked for? Said before a pipeline is opened, where it can be told."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gacq_deploy.errors import GacqError, UsageError
from gacq_deploy.storage.documents import read_json


def check_pixels(name: str, pixels: int, factor: int, latent: int | None) -> None:
    """Refuse a side that is no multiple of the decoder's factor, or not the graph's one size.

    Args:
        name: ``width`` or ``height``.
        pixels: what is asked for.
        factor: pixels a latent.
        latent: side of the graph's state; None: it is open.

    Raises:
        UsageError: the side does not fit.
    """
    if pixels % factor or pixels < factor:
        raise UsageError(f"--{name} {pixels} is not a multiple of {factor}.", f"Choose one of {factor}.")
    if latent is not None and latent * factor != pixels:
        raise UsageError(
            f"--{name} {pixels}: the graph takes {latent * factor} pixels only.",
            "Leave it out, or set export.dynamic_resolution in the recipe and export again, if the model allows it.",
        )


def factor_of(decoder: Path) -> int | None:
    """Return the pixels a latent of a decoder of diffusers; None where its configuration does not say it.

    Every level but one doubles the size.
    """
    try:
        config = read_json(decoder / "config.json", what="Decoder configuration", hint="", others=True)
    except GacqError:
        return None  # the pipeline itself will say what is wrong
    levels = config.get("block_out_channels")
    return 2 ** (len(levels) - 1) if isinstance(levels, list) and levels else None


def check_size(width: int | None, height: int | None, shape: Sequence[int], decoder: Path | None) -> None:
    """Refuse a size that a graph of one size cannot make, as far as the decoder's folder tells.

    Args:
        width: in pixels, None where it is not asked for.
        height: the same.
        shape: of the graph's state, ``[C, H, W]``; other states are not judged here.
        decoder: its folder; None: there is none.

    Raises:
        UsageError: a side does not fit.
    """
    factor = None if decoder is None or len(shape) != 3 else factor_of(decoder)
    if factor is None:
        return
    for name, pixels, latent in (("height", height, shape[1]), ("width", width, shape[2])):
        if pixels is not None:
            check_pixels(name, pixels, factor, latent)
