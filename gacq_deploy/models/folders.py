"""Where does a model lie, and is all of it there? A built-in, a folder, or what the hub holds; safetensors only."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from gacq_deploy.errors import (
    ArtifactError,
    BackendUnavailable,
    ModelError,
    RecipeError,
    UsageError,
    did_you_mean,
)
from gacq_deploy.recipe.sections import PYTHON_PREFIX, ModelSection
from gacq_deploy.storage.documents import read_json, shown
from gacq_deploy.storage.files import LONGEST_NAME
from gacq_deploy.storage.memory import lack_of_memory
from gacq_deploy.storage.records import OpenRecord, load_record

CONFIG = "config.json"
"""What a model's configuration is called in its folder."""
INDEX = "model_index.json"
"""What a pipeline's list of components is called in its folder."""
COMPONENTS = ("unet", "transformer")
"""What pipelines call their denoiser."""
BUILTIN_PREFIX = "builtin:"
_COMMIT = re.compile("[0-9a-f]{40}")
_WEIGHTLESS = ("scheduler", "tokenizer", "feature_extractor", "image_processor")
"""Components, by the beginning of their names, that hold no weights."""
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
"""Components that no trajectory needs."""
_TEXT_LIBRARY = "transformers"
INSTALL_TEXT = "pip install 'gacq-deploy[text]'"
"""What brings the libraries of text encoders."""
_INDEXES = "*.safetensors.index.json"
_OTHER_PRECISIONS = ("*.fp16.safetensors", "*.bf16.safetensors", "safety_checker/*")
"""What a repository holds beside what is loaded."""


def builtin_directory(name: str) -> Path:
    """Return the folder of a shipped model: inside the wheel, or under ``examples`` in a checkout."""
    package = Path(str(resources.files("gacq_deploy")))
    shelves = (package / "demo", package.parent / "examples" / "models")
    shipped = {folder.name: folder for shelf in shelves for folder in shelf.glob("*/")}
    if name not in shipped:
        hint = f"{did_you_mean(name, shipped)}Built-in: {', '.join(sorted(shipped))}."
        raise UsageError(f"There is no built-in model '{name}'.", hint)
    return shipped[name]


def locate_root(section: ModelSection, parts: Sequence[str], *, weights: bool) -> Path:
    """Return the folder of a pipeline or model; what lies on the hub is fetched, of it the named components only.

    Args:
        section: names the source.
        parts: components to fetch, beside configurations; empty means the whole pipeline.
        weights: fetch them, too.

    Raises:
        UsageError: there is no such folder or hub id, or the hub cannot be reached.
    """
    source = section.source
    if source.startswith(BUILTIN_PREFIX):
        return builtin_directory(source.removeprefix(BUILTIN_PREFIX))
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise UsageError(
            f"Model source {source} is a file, not a folder.", "Pass the folder that holds config.json."
        )
    if not is_on_hub(section):
        beside = (str(folder) for folder in path.parent.glob("*/"))
        raise UsageError(
            f"Model source '{source}' is neither a folder nor a hub id.",
            f"{did_you_mean(path, beside)}Pass a diffusers folder, or OWNER/NAME.",
        )
    return _download(source, section.revision, parts, weights=weights)


def is_on_hub(section: ModelSection) -> bool:
    """Tell whether the source is an id of the hub, which only the hub can judge."""
    source = section.source
    is_id = source.count("/") == 1 and not source.startswith((".", "/", "~", BUILTIN_PREFIX, PYTHON_PREFIX))
    return is_id and not Path(source).expanduser().exists()


def resolved_revision(section: ModelSection, root: Path | None) -> str | None:
    """Return the commit that was taken of a hub's model, whatever branch or tag was asked for; else what was asked for.

    Args:
        section: names the source.
        root: what :func:`locate_root` gave: of the hub the folder of a snapshot, which has the commit as its name.
    """
    if root is None or not is_on_hub(section) or not _COMMIT.fullmatch(root.name):
        return section.revision
    return root.name


def read_configuration(section: ModelSection, *, weights: bool) -> tuple[Path, Path, dict[str, Any]]:
    """Return the model's folder, that of its denoiser in it, and the denoiser's configuration.

    Raises:
        UsageError, ModelError: as :func:`locate_root` and :func:`component_folder`.
        ArtifactError: the configuration is damaged.
    """
    root = locate_root(section, (section.component,) if section.component else COMPONENTS, weights=weights)
    folder = component_folder(root, section.component)
    hint = "Pass a diffusers model folder."
    return root, folder, read_json(folder / CONFIG, what="Model configuration", hint=hint, others=True)


def _download(repo: str, revision: str | None, parts: Sequence[str], *, weights: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["model_index.json", "config.json", "scheduler/*.json"]
    patterns += [f"{part}/*.json" for part in parts or ("*",)]
    # a whole pipeline needs its tokenizers' vocabularies, which are no JSON
    patterns += [] if parts else ["*/*.txt", "*/*.model"]
    if weights:
        patterns += ["diffusion_pytorch_model*", *(f"{part}/*.safetensors" for part in parts or ("*",))]
    try:
        return Path(
            snapshot_download(
                repo, revision=revision, allow_patterns=patterns, ignore_patterns=list(_OTHER_PRECISIONS)
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise UsageError(
            f"Model '{repo}' (revision {revision or 'main'}) "
            f"cannot be fetched from the hub: {str(error).splitlines()[0]}",
            "Check the name and the network, or download the folder elsewhere and pass its path.",
        ) from error


def component_folder(root: Path, component: str | None) -> Path:
    """Return the folder of the denoiser: of a pipeline the named component, or the one that it has.

    Raises:
        RecipeError: the component's name leads elsewhere.
        ModelError: no such component, none, or several.
    """
    if component is not None:
        if not (component.isidentifier() and _is_plain(component)):
            raise RecipeError(
                f"model.component is {shown(repr(component))}, which is no name of a folder in a pipeline.",
                "Pass --model the folder that holds the pipeline, and name its component alone.",
            )
        if not (root / component / "config.json").is_file():
            if (root / "config.json").is_file():
                raise ModelError(
                    f"{root} is a model's own folder, it has no component '{component}'.",
                    "Pass the pipeline's folder, which holds it; a denoiser that needs no pipeline: leave out "
                    "model.component.",
                )
            have = sorted(p.parent.name for p in root.glob("*/config.json"))
            raise ModelError(
                f"{root} has no component '{component}' with a config.json.",
                f"Correct model.component; the folder holds: {', '.join(have) or 'none'}.",
            )
        return root / component
    if (root / "config.json").is_file():
        return root
    found = [name for name in COMPONENTS if (root / name / "config.json").is_file()]
    if len(found) != 1:
        raise ModelError(
            f"{root} holds {' and '.join(found) or 'no denoiser: neither config.json nor unet/ or transformer/'}.",
            "Pass a diffusers pipeline or model folder; name the component with model.component.",
        )
    return root / found[0]


def check_weights(folder: Path) -> None:
    """Refuse a folder whose weights are pickled, missing, incomplete or damaged, from their headers alone.

    Raises:
        ModelError: no safetensors, or a shard that the index names is not there.
        ArtifactError: a file or an index is truncated or malformed.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = sorted(
            p.name for p in (*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.ckpt"))
        )
        what = f"only pickled weights ({', '.join(pickled)})" if pickled else "no weights"
        raise ModelError(
            f"{folder} holds {what}; only safetensors are loaded.",
            "Convert once with `model.save_pretrained(folder, safe_serialization=True)`.",
        )
    for file in files:
        try:
            with safe_open(file, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise lack_of_memory(error, f"Opening {file}") or ArtifactError(
                f"Weights {file} are truncated or malformed: {error}", "Download them again."
            ) from error
    for index in sorted(folder.glob(_INDEXES)):
        shards = read_shards(index)
        lost = [shard for shard in shards if not (folder / shard).is_file()]
        if lost or not shards:
            raise ModelError(
                f"{folder} is not complete: {index.name} names {len(shards)} files, of which "
                f"{len(lost)} are missing, first {lost[0] if lost else 'none'}.",
                "Finish the download, then run again.",
            )


class _WeightIndex(OpenRecord):
    weight_map: dict[str, str]
    """Tensor -> name of its file."""


def weight_files(folder: Path, single: str = "diffusion_pytorch_model.safetensors") -> list[Path]:
    """Return the files that hold the weights of a model: what its index names, or the one.

    Args:
        folder: of the model.
        single: what its library calls the one file.

    Raises:
        ModelError: there is neither.
        ArtifactError: the index is damaged, or names what is no file beside it.
    """
    indexes = sorted(folder.glob(_INDEXES))
    if indexes:
        return [folder / shard for shard in read_shards(indexes[0])]
    file = folder / single
    if not file.is_file():
        have = ", ".join(sorted(path.name for path in folder.glob("*.safetensors"))) or "none"
        raise ModelError(
            f"{folder} holds no {file.name}, but {have}.", "Rename it, or download the folder again."
        )
    return [file]


def stored_shapes(
    folder: Path, single: str = "diffusion_pytorch_model.safetensors"
) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor in the weights of a model, from their headers alone.

    Args:
        folder: of the model.
        single: what its library calls the one file.

    Raises:
        ModelError, ArtifactError: as :func:`weight_files`.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for file in weight_files(folder, single):
        with safe_open(file, framework="numpy") as opened:
            shapes |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    return shapes


def read_shards(index: Path) -> list[str]:
    """Return the files that an index of weights names, sorted.

    Raises:
        ArtifactError: it is damaged, or names what is no file beside it.
    """
    hint = "Download the folder again."
    named = load_record(_WeightIndex, index, what="Weight index", hint=hint).weight_map
    for tensor, shard in named.items():
        if not _is_plain(shard):
            raise ArtifactError(
                f"{index}: weight_map lays '{shown(tensor)}' into {shown(repr(shard))}, which is no file beside it.",
                hint,
            )
    return sorted(set(named.values()))


def _is_plain(name: str) -> bool:
    """Tell whether a name is that of something in its folder, and leads nowhere else."""
    leads_nowhere_else = name not in (".", "..") and not set(name) & {"/", "\\", "\0"}
    return 0 < len(name.encode()) <= LONGEST_NAME and leads_nowhere_else


def pipeline_index(root: Path) -> dict[str, Any] | None:
    """Return what a pipeline's index says, as it stands there; None of a folder that has none.

    Raises:
        ArtifactError: it is no JSON object.
    """
    path = root / INDEX
    if not path.is_file():
        return None
    return read_json(path, what="Pipeline index", hint="Pass a diffusers pipeline folder.", others=True)


def read_pipeline(root: Path) -> dict[str, Any]:
    """Return what ``model_index.json`` says: the pipeline's class and component name -> [library, class].

    Raises:
        ModelError: there is none, or it asks for remote code.
        ArtifactError: it names what can be no component.
    """
    path, index = root / INDEX, pipeline_index(root)
    if index is None:
        raise ModelError(
            f"{root} is no pipeline: it has no model_index.json.",
            "A denoiser that is conditioned on text is calibrated inside its pipeline: pass the pipeline's folder.",
        )
    if not isinstance(index.get("_class_name"), str):
        raise ModelError(
            f"{path} names no stock pipeline class ({index.get('_class_name')!r}): it asks for remote code, which is "
            "never run.",
            "Pass python:MODULE:FUNCTION, an installed function of yours that returns the pipeline.",
        )
    for name, entry in index.items():
        _check_component(path, name, entry)
    return index


def _check_component(index: Path, name: str, entry: Any) -> None:
    """Refuse an entry of a pipeline's index that is a component by a name, or of a kind, that none has."""
    if name.startswith("_") or not isinstance(entry, list | dict):
        return
    hint = "Restore model_index.json from where the model came from."
    if not (name.isidentifier() and _is_plain(name)):
        raise ArtifactError(
            f"{index}: {shown(repr(name))} is no name of a component in the pipeline's folder.", hint
        )
    words = entry if isinstance(entry, list) else [entry]
    if len(words) == 2 and not all(word is None or (isinstance(word, str) and word) for word in words):
        raise ArtifactError(f"{index}: {name} = {entry!r} names no library and class.", hint)


def listed_components(index: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the components of a pipeline's index: name -> library and class, both None where it has none."""
    return {k: (v[0], v[1]) for k, v in index.items() if isinstance(v, list) and len(v) == 2}


def check_text_library(root: Path) -> None:
    """Refuse a pipeline whose text encoders nothing can open here; a folder without an index is none.

    Raises:
        BackendUnavailable: their library is not installed.
        ArtifactError: the index is damaged.
    """
    index = None if find_spec(_TEXT_LIBRARY) is not None else pipeline_index(root)
    parts = listed_components(index or {}).items()
    if any(library == _TEXT_LIBRARY for name, (library, kind) in parts if kind and name not in UNUSED):
        raise BackendUnavailable(
            f"The text encoders of {root} need {_TEXT_LIBRARY}, which is not installed.",
            INSTALL_TEXT,
        )


def check_pipeline(root: Path, index: Mapping[str, Any]) -> None:
    """Refuse a pipeline of which something is missing, before anything is loaded.

    Raises:
        ModelError: a component's folder, its weights or a shard of them is missing, weights are pickled, or no text
            encoder is left.
        ArtifactError: a weight file is truncated or malformed.
    """
    listed = listed_components(index)
    encoders = [name for name in listed if name.startswith("text_encoder")]
    if encoders and not any(listed[name][1] for name in encoders):
        raise ModelError(
            f"{root} has no text encoder ({', '.join(encoders)} null): nothing can turn prompts into embeddings.",
            "Restore the encoders in the folder and in model_index.json.",
        )
    for name, (_library, kind) in listed.items():
        if kind is None or name in UNUSED:
            continue
        folder = root / name
        if not folder.is_dir():
            raise ModelError(
                f"{root} is not complete: component '{name}' ({kind}) has no folder.",
                "Finish the download, or set the component to null in model_index.json if it is optional.",
            )
        if not name.startswith(_WEIGHTLESS):
            check_weights(folder)
