"""What happens in one forward pass? Which blocks run on what, which feeds which, which layers read which tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from gacq_deploy.artifact.call import Place
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.pytree import call_leaves, leaves, replaced, spoken
from gacq_deploy.models.structure.blocks import QUANTIZABLE_LAYERS

Contents = tuple[int, int]
"""A tensor's serial number and its version: equal for two readers only if they read the same values."""


@dataclass(frozen=True)
class TracedBlock:
    """One block's call: leaves of its arguments by place, its result, and the earlier blocks that feed it.

    A tensor whose first dimension is the number of rows stands as a tensor on the device meta.
    """

    name: str
    inputs: Mapping[Place, Any]
    result: Any
    depends_on: tuple[int, ...]


@dataclass(frozen=True)
class LayerCall:
    """The first call of a layer: what it reads, and the block that was running."""

    name: str
    contents: Contents
    block: str | None


@dataclass
class Observed:
    """What one forward pass showed; ``troubles`` says which modules cannot be blocks, and why."""

    rows: int
    blocks: list[TracedBlock] = field(default_factory=list)
    layers: list[LayerCall] = field(default_factory=list)
    repeated: set[str] = field(default_factory=set)
    concats: dict[Contents, tuple[Contents, ...]] = field(default_factory=dict)
    final_dependencies: tuple[int, ...] = ()
    troubles: dict[str, str] = field(default_factory=dict)


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let ``forward`` take the calls of ``module`` until the context ends."""
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        del module.__dict__["forward"]


def observe(denoiser: Denoiser, cut: Mapping[str, nn.Module], inputs: Mapping[str, Tensor]) -> Observed:
    """Run the model once on ``inputs`` (sample, timestep, conditioning by name), the modules in ``cut`` as blocks."""
    observer = _Observer(Observed(len(inputs["sample"])), cut, denoiser.device)
    conditioning = {k: v for k, v in inputs.items() if k not in ("sample", "timestep")}
    with ExitStack() as stack:
        for name, module in cut.items():
            stack.enter_context(replaced_forward(module, observer.block(name, module)))
        for name, layer in denoiser.module.named_modules():
            if isinstance(layer, QUANTIZABLE_LAYERS):
                handle = layer.register_forward_pre_hook(observer.layer(name), with_kwargs=True)
                stack.callback(handle.remove)
        stack.enter_context(_ConcatRecorder(observer))
        stack.enter_context(torch.enable_grad())
        try:
            output = denoiser(inputs["sample"], inputs["timestep"], conditioning)
            observer.seen.final_dependencies = observer.dependencies(_tensors(output))
        except _Spoilt:
            return observer.seen
    observer.end()
    return observer.seen


class _Spoilt(Exception):
    """A block changed what it was given: the rest of the pass would tell nothing."""


class _Observer:
    """Fills in an :class:`Observed`."""

    def __init__(self, seen: Observed, cut: Mapping[str, nn.Module], device: torch.device) -> None:
        self.seen = seen
        self._cut = cut
        self._device = device
        self._called: set[str] = set()
        self._layers: set[str] = set()
        self._active: list[str] = []
        self._marks: list[Tensor] = []
        self._serials = WeakTensorKeyDictionary()
        self._count = 0
        self._aliased: list[tuple[str, Tensor, int]] = []

    def block(self, name: str, module: nn.Module) -> Callable[..., Any]:
        original = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if name in self._called:
                self.seen.troubles[name] = "runs twice in one step"
            elif self._active:
                self.seen.troubles[name] = f"runs inside the block '{self._active[-1]}'"
            if name in self.seen.troubles:
                return original(*args, **kwargs)
            self._called.add(name)
            given = call_leaves(args, kwargs)
            tensors = {path: t for path, t in given.items() if isinstance(t, Tensor)}
            noted = {path: self._note(value) for path, value in given.items()}
            versions = {path: t._version for path, t in tensors.items()}
            depends_on = self.dependencies(list(tensors.values()))
            self._active.append(name)
            try:
                with torch.no_grad():
                    result = original(*args, **kwargs)
            finally:
                self._active.pop()
            if changed := [path for path, t in tensors.items() if t._version != versions[path]]:
                self.seen.troubles[name] = f"changes its argument {spoken(changed[0])} in place"
                raise _Spoilt
            made = dict(leaves(result))
            self.seen.blocks.append(
                TracedBlock(
                    name,
                    noted,
                    replaced(result, {path: self._note(value) for path, value in made.items()}),
                    depends_on,
                )
            )
            return replaced(result, self._marked(name, made, list(tensors.values())))

        return forward

    def _note(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value.ndim and value.shape[0] == self.seen.rows:
            return torch.empty(value.shape, dtype=value.dtype, device="meta")
        return value.detach().clone()

    def _marked(self, name: str, made: Mapping[Place, Any], given: list[Tensor]) -> dict[Place, Tensor]:
        """Return the outputs, each with a zero added by which autograd tells what depends on this block."""
        mark = torch.zeros((), requires_grad=True, device=self._device)
        self._marks.append(mark)
        returned: dict[Place, Tensor] = {}
        outputs = [v for v in made.values() if isinstance(v, Tensor)]
        for path, value in made.items():
            if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
                continue
            returned[path] = value + mark
            # a block that hands its argument on: whoever reads either of the two reads one tensor
            if any(value is g for g in given) and value._version == 0:
                self._serials[returned[path]] = self.contents(value)[0]
            others = [t for t in outputs if t is not value and t.data_ptr() == value.data_ptr()]
            shared = [
                t for t in given if t.untyped_storage().data_ptr() == value.untyped_storage().data_ptr()
            ]
            if others or shared:
                self._aliased += [(name, t, t._version) for t in (returned[path], *shared)]
        return returned

    def layer(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if name in self._layers:
                self.seen.repeated.add(name)
                return
            self._layers.add(name)
            read = args[0] if args else kwargs["input"]
            # a block that is one layer: its hook comes before its forward
            block = name if name in self._cut else next(iter(self._active), None)
            self.seen.layers.append(LayerCall(name, self.contents(read), block))

        return hook

    def contents(self, tensor: Tensor) -> Contents:
        if tensor not in self._serials:
            self._count += 1
            self._serials[tensor] = self._count
        return int(self._serials[tensor]), tensor._version

    def dependencies(self, tensors: list[Tensor]) -> tuple[int, ...]:
        live = [t for t in tensors if t.requires_grad]
        if not live or not self._marks:
            return ()
        total = torch.stack([_sum(t) for t in live]).sum()
        # kept: one graph reaches through all blocks, and the next block asks it again
        grads: tuple[Tensor | None, ...] = torch.autograd.grad(
            total, self._marks, allow_unused=True, retain_graph=True
        )
        return tuple(i for i, grad in enumerate(grads) if grad is not None)

    def end(self) -> None:
        """Judge what only the whole pass can tell."""
        for name, tensor, version in self._aliased:
            if tensor._version != version:
                self.seen.troubles.setdefault(
                    name,
                    "returns memory that it shares with another tensor and that is later changed in place",
                )
        for layer in self.seen.layers:
            owner = next((b for b in self._cut if layer.name == b or layer.name.startswith(f"{b}.")), None)
            if owner is not None and owner not in self._called:
                self.seen.troubles.setdefault(owner, "never runs itself, only what it holds")


class _ConcatRecorder(TorchFunctionMode):
    """Notes which tensors every ``torch.cat`` joined."""

    def __init__(self, observer: _Observer) -> None:
        super().__init__()
        self._observer = observer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.cat, torch.concat):
            tensors = args[0] if args else (kwargs or {})["tensors"]
            contents = self._observer.contents
            self._observer.seen.concats[contents(result)] = tuple(contents(t) for t in tensors)
        return result


def _sum(tensor: Tensor) -> Tensor:
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return real.float().sum()


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for _, leaf in leaves(value) if isinstance(leaf, Tensor)]
