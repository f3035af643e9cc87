"""Which low-rank adapters are fused into the denoiser before anything else, and are they the same ones next time?

W' = W + scale * alpha / rank * B A (Hu et al., arXiv 2106.09685). diffusers names the file's tensors, peft adds them
up. What they leave out without a word is checked here: half pairs, pairs without a layer, factors that are no number.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.utils import logging as diffusers_logging
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from gacq_deploy.artifact.records import LoraRecord
from gacq_deploy.errors import RESTORE, ArtifactError, BackendUnavailable, ModelError, UsageError
from gacq_deploy.models.lora_settings import FUSE_IT, check_settings
from gacq_deploy.recipe.sections import LoraSection
from gacq_deploy.storage.digests import digest_file
from gacq_deploy.storage.documents import Malformed, decode_json

FILE = "pytorch_lora_weights.safetensors"
"""What training scripts call the one file of a folder."""
_FUSE_IT = f"Or {FUSE_IT[0].lower()}{FUSE_IT[1:]}"
_OF_ANOTHER_MODEL = (
    f"Pass a LoRA that was trained for this very model: SD 1.5, SDXL, SD3 and Flux do not mix. {_FUSE_IT}"
)
_SILENT = 60
"""Above every level of logging: errors are raised, too."""
_METADATA = "lora_adapter_metadata"
"""Key of the file's metadata under which diffusers keeps ranks and alphas."""
_FACTOR = re.compile(r"\.(lora_[AB])(?:\.weight)?$")
_FIRST = re.compile(r"lora_A|lora_down|lora\.down|lora_linear_layer\.down")
_TEXT = re.compile(r"text_encoder(?:_\d+)?(?=\.)")
_FOREIGN = ("dora_scale", "lora_magnitude_vector", ".lokr_", ".hada_", ".oft_", ".lora_mid")
"""In names of factors that are no plain pair: diffusers drops some of them without a word."""


@dataclass(frozen=True)
class _Adapter:
    """What a file holds, named as diffusers names it."""

    path: Path
    scale: float
    tensors: Mapping[str, Tensor]
    """``component.layer.factor`` -> values"""
    alphas: Mapping[str, float] | None
    metadata: Mapping[str, Any] | None

    def part(self, component: str) -> dict[str, Tensor]:
        """Return the tensors of one component, without its name."""
        prefix = f"{component}."
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}

    @property
    def text_encoders(self) -> list[str]:
        """Text encoders that it has a part for."""
        return sorted({found.group() for name in self.tensors if (found := _TEXT.match(name))})


def lora_file(section: LoraSection) -> Path:
    """Return the one file of an adapter, its header read.

    Raises:
        UsageError: there is no such file, or a folder without one.
        ModelError: pickled, or factors of another kind than pairs.
        ArtifactError: truncated or malformed.
    """
    path = Path(section.source).expanduser()
    if path.is_dir():
        if not (path / FILE).is_file():
            have = ", ".join(sorted(p.name for p in path.iterdir())[:5]) or "nothing"
            raise UsageError(
                f"{path} holds no {FILE} but {have}.", "Pass the LoRA's safetensors file itself."
            )
        path /= FILE
    if not path.is_file():
        raise UsageError(
            f"LoRA '{section.source}' is neither a file nor a folder.",
            "Download it first and pass its path: FILE or FILE:SCALE.",
        )
    if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"):
        raise ModelError(
            f"LoRA {path} is pickled; only safetensors are loaded.",
            f"Ask its author for a .safetensors file. {_FUSE_IT}",
        )
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
    except (SafetensorError, OSError) as error:
        raise ArtifactError(
            f"LoRA {path} is no safetensors file, or truncated: {error}", "Download it again."
        ) from error
    foreign = [name for name in names if _is_foreign(name)]
    if foreign:
        raise ModelError(
            f"LoRA {path} is no plain LoRA: it holds '{foreign[0]}' ({len(foreign)} such tensors; DoRA, LoKr, LoHa "
            "and their like are not supported).",
            _FUSE_IT,
        )
    if not any("lora" in name for name in names):
        raise ModelError(
            f"{path} is no LoRA: none of its {len(names)} tensors is one, first '{names[0] if names else ''}'.",
            "Pass the file of a LoRA; a whole model goes to --model.",
        )
    return path


def _is_foreign(name: str) -> bool:
    return any(mark in name for mark in _FOREIGN)


def check_loras(sections: Sequence[LoraSection], kind: type[Any]) -> None:
    """Refuse adapters that could never be fused into this class of denoisers, from their headers alone.

    Raises:
        UsageError, ModelError, ArtifactError: as :func:`lora_file`; or the class takes no adapters.
        BackendUnavailable: peft is missing.
    """
    if not sections:
        return
    for section in sections:
        lora_file(section)
    if not issubclass(kind, PeftAdapterMixin):
        raise ModelError(
            f"{kind.__name__} takes no LoRA: diffusers has no support for adapters in it.", _FUSE_IT
        )
    if find_spec("peft") is None:
        raise BackendUnavailable(
            "Fusing a LoRA needs the package peft, which is missing.", "pip install 'gacq-deploy[lora]'"
        )


def record_loras(sections: Sequence[LoraSection]) -> tuple[LoraRecord, ...]:
    """Return what an artifact keeps of the adapters.

    Raises:
        UsageError, ModelError, ArtifactError: as :func:`lora_file`.
    """
    return tuple(
        LoraRecord(source=s.source, sha256=digest_file(lora_file(s)), scale=s.scale) for s in sections
    )


def check_unchanged(sections: Sequence[LoraSection], recorded: Sequence[LoraRecord]) -> None:
    """Refuse adapters that are not those of the artifact.

    Raises:
        ArtifactError: another file, scale, order or number than was recorded.
    """
    current = record_loras(sections)
    hint = RESTORE
    if len(current) != len(recorded):
        raise ArtifactError(
            f"The recipe names {len(current)} LoRAs, the artifact was calibrated with {len(recorded)}.", hint
        )
    for now, then in zip(current, recorded, strict=True):
        if (now.sha256, now.scale) != (then.sha256, then.scale):
            raise ArtifactError(
                f"LoRA '{now.source}' is not the one the artifact was calibrated with: sha256 {now.sha256[:12]}, scale "
                f"{now.scale}, recorded {then.sha256[:12]}, scale {then.scale}.",
                hint,
            )


def fuse_loras(module: nn.Module, sections: Sequence[LoraSection], pipeline_class: type[Any] | None) -> None:
    """Fuse adapters into a denoiser in place, in order; its structure stays as it was.

    Args:
        module: the denoiser.
        sections: files and scales.
        pipeline_class: of the pipeline around it, whose conversion of foreign names is used; None for a bare denoiser.

    Raises:
        ModelError: a pair of factors fits no layer, is not whole or not finite, or nothing in the file is for this
            denoiser.
    """
    component = "unet" if type(module).__name__.startswith("UNet") else "transformer"
    for section in sections:
        adapter = _read(section, module, pipeline_class)
        factors = _denoiser_part(adapter, component)
        _check_pairs(adapter, factors)
        check_settings(adapter.metadata, component, adapter.path)
        with _quiet():
            _attach(adapter, factors, module, component)
            module.fuse_lora(lora_scale=section.scale)  # type: ignore[operator]
            module.unload_lora()  # type: ignore[operator]


def fuse_text_parts(pipeline: Any, sections: Sequence[LoraSection], denoiser: nn.Module) -> None:
    """Fuse what the adapters hold for text encoders into those of an open pipeline; the denoiser has its part already.

    Raises:
        ModelError: a part for an encoder that the pipeline lacks, or that does not fit it.
    """
    for section in sections:
        adapter = _read(section, denoiser, type(pipeline))
        for name in adapter.text_encoders:
            encoder = getattr(pipeline, name, None)
            pairs = _count_pairs(adapter.part(name))
            fitting = 0
            if isinstance(encoder, nn.Module):
                fitting = _fuse_text(pipeline, adapter, encoder, name)
            if fitting != pairs:
                raise ModelError(
                    f"LoRA {adapter.path} holds {pairs} pairs for {name}, of which {fitting} fit "
                    f"{type(encoder).__name__ if encoder is not None else 'it: the pipeline has none'}.",
                    f"Pass a LoRA that was trained for this model. {_FUSE_IT}",
                )


def text_parts(sections: Sequence[LoraSection], pipeline_class: type[Any] | None) -> list[str]:
    """Return the files, by name, that hold a part for text encoders."""
    marks = ("text_encoder", "lora_te")
    found = []
    for section in sections if pipeline_class is not None else ():
        path = lora_file(section)
        with safe_open(path, framework="pt") as file:
            if any(name.startswith(marks) for name in file.keys()):  # noqa: SIM118 (not a mapping)
                found.append(path.name)
    return found


def _read(section: LoraSection, module: nn.Module, pipeline_class: type[Any] | None) -> _Adapter:
    path = lora_file(section)
    with safe_open(path, framework="pt") as file:
        plain = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        written = (file.metadata() or {}).get(_METADATA)
    metadata = None if written is None else _read_metadata(written, path)
    for name, value in plain.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ModelError(f"LoRA {path}: '{name}' holds NaN or Inf.", "Download it again.")
    convert = getattr(pipeline_class, "lora_state_dict", None)
    if convert is None:
        return _Adapter(path, section.scale, plain, None, metadata)
    options = {"return_alphas": True, "return_lora_metadata": True, "unet_config": _config(module)}
    try:
        with _quiet():
            converted = convert(str(path), use_safetensors=True, local_files_only=True, **options)
    except (ValueError, KeyError, RuntimeError, TypeError, IndexError) as error:
        raise ModelError(
            f"LoRA {path} has names that {getattr(pipeline_class, '__name__', '')} does not know: {_in_a_line(error)}",
            f"Pass a LoRA that was trained for this model. {_FUSE_IT}",
        ) from error
    tensors, *more = converted if isinstance(converted, tuple) else (converted,)
    alphas = more[0] if len(more) > 1 else None
    lost = _count_pairs(plain) - _count_pairs(tensors)
    if lost > 0:
        raise ModelError(
            f"LoRA {path}: diffusers drops {lost} of its pairs as not its own.",
            f"Pass a LoRA that was trained for this model. {_FUSE_IT}",
        )
    return _Adapter(path, section.scale, tensors, alphas or None, None if alphas else metadata)


def _read_metadata(written: str, path: Path) -> Any:
    try:
        return decode_json(written)
    except Malformed as error:
        raise ModelError(f"LoRA {path}: its metadata are not JSON: {error}.", "Save it again.") from None


def _count_pairs(names: Iterable[str]) -> int:
    return sum(bool(_FIRST.search(name)) for name in names)


def _config(module: nn.Module) -> Any:
    return getattr(module, "config", None)


def _denoiser_part(adapter: _Adapter, component: str) -> dict[str, Tensor]:
    """Return the denoiser's factors under the names that peft gives them, ``layer.lora_A.weight``."""
    part = adapter.part(component)
    if part and not any("lora_A" in name for name in part):
        part = convert_unet_state_dict_to_peft(part)  # type: ignore[no-untyped-call]
    if part:
        return part
    heads = sorted({name.split(".")[0] for name in adapter.tensors})
    raise ModelError(
        f"LoRA {adapter.path} holds nothing for this denoiser: its tensors are for {', '.join(heads[:4])}, not "
        f"{component}.",
        "Pass a LoRA that was trained for this model; of a foreign format, pass the whole pipeline as --model, whose "
        "class knows how to convert it.",
    )


def _check_pairs(adapter: _Adapter, factors: Mapping[str, Tensor]) -> None:
    """Refuse half a pair: peft leaves the other half at what it drew it as."""
    pairs: dict[str, set[str]] = {}
    for name in factors:
        found = _FACTOR.search(name)
        if found is None:
            raise ModelError(
                f"LoRA {adapter.path} holds '{name}', which is no factor of a pair.",
                f"Only pairs of factors are fused. {_FUSE_IT}",
            )
        pairs.setdefault(name[: found.start()], set()).add(found.group(1))
    halves = sorted(name for name, found in pairs.items() if len(found) != 2)
    if halves:
        raise ModelError(
            f"LoRA {adapter.path} is not whole: layer '{halves[0]}' has {', '.join(pairs[halves[0]])} alone "
            f"({len(halves)} such layers).",
            "Download it again.",
        )


def _attach(adapter: _Adapter, factors: Mapping[str, Tensor], module: nn.Module, component: str) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    prefix = f"{component}."
    tensors = {f"{prefix}{name}": value.float() for name, value in factors.items()}
    has_metadata = any(name.startswith(prefix) for name in adapter.metadata or ())
    try:
        module.load_lora_adapter(  # type: ignore[operator]
            tensors,
            prefix=component,
            network_alphas=adapter.alphas,
            metadata=adapter.metadata if has_metadata else None,
            low_cpu_mem_usage=True,  # otherwise factors are drawn first, which moves torch's global generator
        )
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ModelError(
            f"LoRA {adapter.path} does not fit {type(module).__name__}: {_in_a_line(error)}",
            _OF_ANOTHER_MODEL,
        ) from error
    wanted = {_FACTOR.sub("", name) for name in factors}
    attached = {name for name, layer in module.named_modules() if isinstance(layer, BaseTunerLayer)}
    if lost := sorted(wanted - attached):
        raise ModelError(
            f"LoRA {adapter.path} does not fit {type(module).__name__}: {len(lost)} of its {len(wanted)} layers are "
            f"not in the model, first '{lost[0]}'.",
            _OF_ANOTHER_MODEL,
        )


def _fuse_text(pipeline: Any, adapter: _Adapter, encoder: nn.Module, name: str) -> int:
    """Fuse a text encoder's part and return in how many layers."""
    from diffusers.utils.peft_utils import recurse_remove_peft_layers
    from peft.tuners.tuners_utils import BaseTunerLayer

    load = getattr(type(pipeline), "load_lora_into_text_encoder", None)
    if load is None:
        return 0
    metadata = adapter.metadata
    if metadata is not None and not any(key.startswith(f"{name}.") for key in metadata):
        metadata = None
    check_settings(metadata, name, adapter.path)
    try:
        with _quiet(), torch.random.fork_rng(devices=[]):
            load(
                adapter.tensors,
                adapter.alphas,
                encoder,
                prefix=name,
                lora_scale=adapter.scale,
                metadata=metadata,
            )
            layers = [layer for layer in encoder.modules() if isinstance(layer, BaseTunerLayer)]
            for layer in layers:
                layer.merge(safe_merge=True)
            recurse_remove_peft_layers(encoder)  # type: ignore[no-untyped-call]
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ModelError(
            f"LoRA {adapter.path} cannot be loaded into {name}: {_in_a_line(error)}", _FUSE_IT
        ) from error
    encoder.requires_grad_(False).eval()
    return len(layers)


def _in_a_line(error: Exception, most: int = 200) -> str:
    """Return the message without its line breaks, cut short: torch names every layer that does not fit."""
    text = " ".join(str(error).split())
    return text if len(text) <= most else f"{text[:most]} ..."


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what diffusers and peft say about parts that are not there: what fits was counted."""
    level = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity(_SILENT)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        diffusers_logging.set_verbosity(level)
