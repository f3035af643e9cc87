"""How does a model that is stored in half precision stay that small, and yet compute in float32?

Its weight matrices stay as they are stored, mapped from their files, and every use sees their exact float32 values,
made for that use. So whatever is learned, recorded and digested is what the same values stored as float32 would give,
bit for bit, and no operator has to exist in half precision.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import ml_dtypes
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from gacq_deploy.models.folders import weight_files

HALF = (torch.float16, torch.bfloat16)
_STORED = {"F16": torch.float16, "BF16": torch.bfloat16}
_VIEWS = (torch.ops.aten.detach.default, torch.ops.aten.alias.default)
"""Operations that keep the storage: nn.Parameter detaches what it is made of, and refuses another class in return."""


class HalfStored(torch.Tensor):
    """A constant that shows itself as float32 and is stored in half precision. It cannot be written to."""

    stored: Tensor

    @staticmethod
    def __new__(cls, stored: Tensor) -> Self:
        """Wrap ``stored``, float16 or bfloat16, which is not copied."""
        made: Self = torch.Tensor._make_wrapper_subclass(
            cls, stored.shape, strides=stored.stride(), dtype=torch.float32, device=stored.device
        )
        made.stored = stored
        return made

    # or else torch would turn every float32 result into this class again
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run any operation on the float32 values."""
        del types
        if func in _VIEWS:
            return cls(args[0].stored)
        for argument, given in zip(func._schema.arguments, args, strict=False):
            if isinstance(given, cls) and argument.alias_info is not None and argument.alias_info.is_write:
                raise RuntimeError(f"{func} would write to a weight that is stored in half precision")
        plain_args, plain_kwargs = tree_map(_plain, (args, dict(kwargs or {})))
        return func(*plain_args, **plain_kwargs)

    def numpy(self, *, force: bool = False) -> Any:
        """Return the float32 values."""
        del force
        return self.stored.float().cpu().numpy()

    def element_size(self) -> int:
        """Return what a value takes where it is stored, in bytes."""
        return self.stored.element_size()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"HalfStored({self.stored!r})"


def _plain(value: Any) -> Any:
    return value.stored.float() if isinstance(value, HalfStored) else value


def stored_type(parameter: Tensor) -> torch.dtype:
    """Return the type that the values of a parameter are stored in."""
    return parameter.stored.dtype if isinstance(parameter, HalfStored) else parameter.dtype


def stored_values(parameter: Tensor) -> NDArray[Any]:
    """Return the values of a parameter as they are stored; those in half precision are not copied."""
    if not isinstance(parameter, HalfStored):
        values: NDArray[Any] = parameter.detach().cpu().numpy()
        return values
    half = parameter.stored.detach().cpu()
    if half.dtype == torch.bfloat16:  # which numpy itself does not know
        return half.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return half.numpy()


def keep_half(module: nn.Module) -> nn.Module:
    """Make a module compute in float32 in place; its half-precision weight matrices stay as they are stored."""
    for owner in module.modules():
        for name, value in list(owner.named_parameters(recurse=False)):
            if value.dtype in HALF:
                _put(owner, name, value.detach())
        for name, buffer in list(owner.named_buffers(recurse=False)):
            if buffer.dtype in HALF:
                owner._buffers[name] = buffer.float()
    return module.float()


def load_half(kind: Any, config: Mapping[str, Any], folder: Path) -> nn.Module | None:
    """Load a model of diffusers whose weights are all stored in half precision.

    Args:
        kind: its class.
        config: its configuration.
        folder: holds its safetensors files.

    Returns:
        The model, which shows itself as float32; None for one that is stored otherwise, whose names or shapes are not
        the class's own, or which has parameters that several layers share: diffusers' own loader knows more.
    """
    tensors: dict[str, Tensor] = {}
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as opened:
            names = list(opened.keys())
            kinds = {opened.get_slice(name).get_dtype() for name in names}
            if not kinds <= _STORED.keys():
                return None
            tensors |= {name: opened.get_tensor(name) for name in names}
    with without_weights():
        module: nn.Module = kind.from_config(dict(config))
    wanted = {name: value.shape for name, value in module.state_dict().items()}
    if wanted != {name: value.shape for name, value in tensors.items()}:
        return None
    if len(list(module.parameters())) != len(list(module.named_parameters(remove_duplicate=False))):
        return None
    for name, value in tensors.items():
        parent, _, child = name.rpartition(".")
        owner = module.get_submodule(parent)
        if child in owner._parameters:
            _put(owner, child, value)
        else:
            owner._buffers[child] = value.float()
    return module


@contextmanager
def without_weights() -> Iterator[None]:
    """Make parameters without memory inside the context; buffers, which no file may hold, are computed as always."""
    register = nn.Module.register_parameter

    def register_empty(owner: nn.Module, name: str, value: nn.Parameter | None) -> None:
        register(owner, name, None if value is None else nn.Parameter(value.to("meta"), requires_grad=False))

    # constructors draw initial weights, and loading a model may not move torch's global generator
    with torch.random.fork_rng(devices=[]):
        nn.Module.register_parameter = register_empty  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            nn.Module.register_parameter = register  # type: ignore[method-assign]


def _put(owner: nn.Module, name: str, value: Tensor) -> None:
    """Set a parameter; vectors, which weigh nothing, become float32 in fact."""
    kept = HalfStored(value) if value.ndim > 1 else value.float()
    owner._parameters[name] = nn.Parameter(kept, requires_grad=False)
