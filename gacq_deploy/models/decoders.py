"""Where does the decoder of a model's latents lie? In the pipeline's folder, beside the denoiser. Needs no torch."""

from __future__ import annotations

from pathlib import Path

from gacq_deploy.errors import GacqError, ModelError, UsageError
from gacq_deploy.metrics.images import is_image
from gacq_deploy.models.folders import BUILTIN_PREFIX, check_weights, locate_root, pipeline_index
from gacq_deploy.recipe.sections import ModelSection

_NAMES = ("vae", "vqvae")
"""What pipelines call their decoder."""


def find_decoder(section: ModelSection, shape: tuple[int, ...]) -> Path | None:
    """Return the folder of the decoder, None where states are images themselves.

    Args:
        section: names the model.
        shape: of one state.

    Raises:
        UsageError: states are latents, and no pipeline with a decoder is there.
        ModelError, ArtifactError: the decoder is missing, pickled or damaged.
    """
    source = section.source
    lies_here = source.startswith(BUILTIN_PREFIX) or Path(source).expanduser().is_dir()
    if not lies_here and is_image(shape):
        return None  # an engine of a pixel model runs where its model is not
    hint = "Pass --pipeline FOLDER, the pipeline that the model belongs to."
    try:
        root = locate_root(section, _NAMES, weights=True)
    except GacqError as error:
        if is_image(shape):
            return None
        raise type(error)(f"Latents need their decoder. {error.message}", f"{hint} {error.hint}") from error
    index = pipeline_index(root) or {}
    for name in _NAMES:
        if isinstance(index.get(name), list) and index[name][-1]:
            if not (root / name / "config.json").is_file():
                raise ModelError(
                    f"{root} is not complete: its decoder '{name}' has no config.json.",
                    "Finish the download.",
                )
            check_weights(root / name)
            return root / name
    if is_image(shape):
        return None
    raise UsageError(
        f"The model makes latents {list(shape)}, which need their decoder, and {root} holds none "
        f"({' or '.join(_NAMES)} in model_index.json).",
        hint,
    )
