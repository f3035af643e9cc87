"""Where is a denoiser cut into blocks? At what diffusers and the model's class declare, whatever the architecture."""

from __future__ import annotations

from collections.abc import Collection
from types import ModuleType

from diffusers.models import attention, downsampling, resnet, upsampling
from torch import nn

QUANTIZABLE_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_LISTS = (nn.ModuleList, nn.Sequential)


def _declared_in(library: ModuleType, ending: str = "") -> tuple[type[nn.Module], ...]:
    """Return the modules that ``library`` itself defines, by the end of their name."""
    return tuple(
        kind
        for name, kind in vars(library).items()
        if isinstance(kind, type)
        and issubclass(kind, nn.Module)
        and kind.__module__ == library.__name__
        and name.endswith(ending)
    )


_KNOWN = (
    *_declared_in(resnet),
    *_declared_in(downsampling),
    *_declared_in(upsampling),
    *_declared_in(attention, "Block"),
)
"""What the U-Nets of diffusers are made of, and its transformer blocks that many models share."""


def cut_blocks(root: nn.Module, refused: Collection[str] = ()) -> dict[str, nn.Module]:
    """Return the blocks of a model by name: every parameter but those of refused modules lies in exactly one.

    Blocks are diffusers' own residual blocks, samplers and transformer blocks, and those that the model's class
    names as its repeated or indivisible ones (`_repeated_blocks`, `_no_split_modules`) unless they hold others. Of a
    model that names none, they are the members of module lists that hold two layers or more. The outermost wins;
    around them the largest modules that hold parameters are blocks. A refused module is cut into its children.
    """
    found: dict[str, nn.Module] = {}
    _cut(root, "", _matches(root), refused, found)
    return found


def _matches(root: nn.Module) -> set[nn.Module]:
    names = {
        *(getattr(root, "_repeated_blocks", None) or ()),
        *(getattr(root, "_no_split_modules", None) or ()),
    }
    known = {m for m in root.modules() if isinstance(m, _KNOWN)}
    declared = {m for m in root.modules() if m is not root and type(m).__name__ in names}
    # a class may name its stages beside their blocks: they keep whole levels, with all their skips, on one device
    named = {m for m in declared if m in known or not _holds(m, known | declared)}
    listed: set[nn.Module] = set()
    if not declared:
        members = {m for owner in root.modules() if isinstance(owner, _LISTS) for m in owner.children()}
        listed = {m for m in members if _layers(m) > 1 and not _holds(m, known)}
    return known | named | {m for m in listed if not isinstance(m, nn.ModuleList)}


def _layers(module: nn.Module) -> int:
    return sum(isinstance(m, QUANTIZABLE_LAYERS) for m in module.modules())


def _holds(module: nn.Module, others: set[nn.Module]) -> bool:
    return any(m in others for m in module.modules() if m is not module)


def _cut(
    module: nn.Module,
    name: str,
    matches: set[nn.Module],
    refused: Collection[str],
    found: dict[str, nn.Module],
) -> None:
    whole = module in matches or not (_holds(module, matches) or isinstance(module, nn.ModuleList))
    if name and name not in refused and whole:
        if any(True for _ in module.parameters()):
            found[name] = module
        return
    for child_name, child in module.named_children():
        _cut(child, f"{name}.{child_name}" if name else child_name, matches, refused, found)
