"""Which blocks does a denoiser have, in which order, which feeds which, and which tensors can be quantized?

All of it is observed on one small forward pass, so a family only has to name its block types.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gacq_deploy.errors import ModelError
from gacq_deploy.models.base import Denoiser
from gacq_deploy.spec import Role, Site

QUANTIZABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRACE_BATCH = 3
Key = tuple[str, int | str]
"""Place of an argument: ("args", 0) or ("kwargs", "temb")."""


@dataclass(frozen=True)
class TensorShape:
    """Shape without the batch dimension, and dtype."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Bytes of one sample."""
        return int(torch.Size(self.shape).numel()) * self.dtype.itemsize


@dataclass(frozen=True)
class Block:
    """A module that is computed and reconstructed as one piece.

    ``inputs`` are its per-sample tensor arguments, ``depends_on`` the earlier blocks its inputs are computed from
    (through parameter-free glue), ``last_use`` the last block that needs its output (``len(blocks)``: the model's
    own output does).
    """

    name: str
    sites: tuple[Site, ...]
    inputs: Mapping[Key, TensorShape]
    output: TensorShape
    depends_on: tuple[int, ...]
    last_use: int

    @property
    def bytes_per_sample(self) -> int:
        """Bytes of the inputs and the output for one sample."""
        return sum(t.bytes for t in self.inputs.values()) + self.output.bytes


@dataclass(frozen=True)
class ModelGraph:
    """Blocks and sites in execution order; ``ties`` maps an input site to its tie name.

    ``shared_tensor`` maps an input site to the first site that reads the very same tensor; ``repeated`` holds the
    layers that run more than once in a step, on different tensors: they have to stay float.
    """

    blocks: tuple[Block, ...]
    sites: tuple[Site, ...]
    ties: Mapping[Site, str]
    shared_tensor: Mapping[Site, Site]
    repeated: frozenset[str] = frozenset()

    @property
    def bytes_per_sample(self) -> int:
        """Bytes of the largest block's inputs and output for one sample."""
        return max(b.bytes_per_sample for b in self.blocks)

    @property
    def bytes_of_all_blocks(self) -> int:
        """Bytes of every block's inputs and output for one sample."""
        return sum(b.bytes_per_sample for b in self.blocks)


def call_with(args: tuple[Any, ...], kwargs: Mapping[str, Any], tensors: Mapping[Key, Tensor]) -> Any:
    """Return ``args, kwargs`` with the tensors put in their places."""
    new_args = tuple(tensors.get(("args", i), a) for i, a in enumerate(args))
    return new_args, {k: tensors.get(("kwargs", k), v) for k, v in kwargs.items()}


def tensor_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[Key, Tensor]:
    """Return the tensor arguments of a call by place."""
    placed: list[tuple[Key, Any]] = [(("args", i), a) for i, a in enumerate(args)]
    placed += [(("kwargs", k), v) for k, v in kwargs.items()]
    return {key: value for key, value in placed if isinstance(value, Tensor)}


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let ``forward`` answer calls of ``module`` until the context ends."""
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        del module.__dict__["forward"]


def block_modules(denoiser: Denoiser) -> dict[str, nn.Module]:
    """Cut the module tree: the family's block types, and around them the largest modules that hold parameters."""
    found: dict[str, nn.Module] = {}
    _cut(denoiser.module, "", denoiser.family.block_types, found)
    return found


def _cut(
    module: nn.Module, name: str, types: tuple[type[nn.Module], ...], found: dict[str, nn.Module]
) -> None:
    is_root = not name
    holds_blocks = any(isinstance(m, types) for m in module.modules() if m is not module)
    if not is_root and (isinstance(module, types) or not (holds_blocks or isinstance(module, nn.ModuleList))):
        if any(True for _ in module.parameters()):
            found[name] = module
        return
    for child_name, child in module.named_children():
        _cut(child, f"{name}.{child_name}" if name else child_name, types, found)


def trace_model(denoiser: Denoiser) -> ModelGraph:
    """Observe one forward pass and return the model's graph.

    Raises:
        ModelError: a block is called more than once, a block does not return one tensor, or a tensor argument is
            nested.
    """
    trace = _Trace()
    modules = block_modules(denoiser)
    inputs = denoiser.example_inputs(_TRACE_BATCH)
    conditioning = {k: v for k, v in inputs.items() if k not in ("sample", "timestep")}
    with ExitStack() as stack:
        for name, module in modules.items():
            stack.enter_context(replaced_forward(module, trace.observe_block(name, module)))
        for name, layer in denoiser.module.named_modules():
            if isinstance(layer, QUANTIZABLE):
                handle = layer.register_forward_pre_hook(trace.observe_layer(name))
                stack.callback(handle.remove)
        stack.enter_context(trace.concats)
        stack.enter_context(torch.enable_grad())
        output = denoiser(inputs["sample"], inputs["timestep"], conditioning)
        trace.final_dependencies = trace.dependencies([output])
    return trace.graph(denoiser)


@dataclass
class _Trace:
    """What one observed forward pass told."""

    names: list[str] = field(default_factory=list)
    inputs: list[dict[Key, TensorShape]] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    depends: list[tuple[int, ...]] = field(default_factory=list)
    layers: list[tuple[str, Tensor]] = field(default_factory=list)
    repeated: set[str] = field(default_factory=set)
    final_dependencies: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self.concats = _ConcatRecorder()

    def observe_block(self, name: str, module: nn.Module) -> Callable[..., Tensor]:
        original = module.forward

        def forward(*args: Any, **kwargs: Any) -> Tensor:
            if name in self.names:
                raise ModelError(
                    f"Block '{name}' is called twice in one step.", "Such models are not supported."
                )
            tensors = tensor_arguments(args, kwargs)
            depends = self.dependencies(list(tensors.values()))
            with torch.no_grad():
                output = original(*args, **kwargs)
            if not isinstance(output, Tensor):
                raise ModelError(
                    f"Block '{name}' returns {type(output).__name__}, not one tensor.",
                    "Such models are not supported.",
                )
            self.names.append(name)
            self.depends.append(depends)
            self.inputs.append(
                {k: TensorShape(tuple(t.shape[1:]), t.dtype) for k, t in tensors.items() if _is_per_sample(t)}
            )
            # a leaf: what depends on it is then told by autograd, through the glue between blocks
            leaf = output.detach().clone().requires_grad_(output.is_floating_point())
            self.outputs.append(leaf)
            return leaf

        return forward

    def observe_layer(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            if any(name == known for known, _ in self.layers):
                self.repeated.add(name)
            else:
                self.layers.append((name, args[0]))

        return hook

    def dependencies(self, tensors: list[Tensor]) -> tuple[int, ...]:
        live = [t for t in tensors if t.requires_grad]
        leaves = [o for o in self.outputs if o.requires_grad]
        if not live or not leaves:
            return ()
        total = torch.stack([t.float().sum() for t in live]).sum()
        grads: tuple[Tensor | None, ...] = torch.autograd.grad(
            total, leaves, allow_unused=True, retain_graph=True
        )
        used = {id(leaf) for leaf, grad in zip(leaves, grads, strict=True) if grad is not None}
        return tuple(i for i, o in enumerate(self.outputs) if id(o) in used)

    def graph(self, denoiser: Denoiser) -> ModelGraph:
        last_use = [len(self.names) if i in self.final_dependencies else i for i in range(len(self.names))]
        for consumer, depends in enumerate(self.depends):
            for producer in depends:
                last_use[producer] = max(last_use[producer], consumer)
        sites = tuple(s for name, _ in self.layers for s in _layer_sites(denoiser.module, name))
        blocks = tuple(
            Block(
                name=name,
                sites=tuple(s for s in sites if s.module == name or s.module.startswith(f"{name}.")),
                inputs=self.inputs[i],
                output=TensorShape(tuple(self.outputs[i].shape[1:]), self.outputs[i].dtype),
                depends_on=self.depends[i],
                last_use=last_use[i],
            )
            for i, name in enumerate(self.names)
        )
        covered = {s for b in blocks for s in b.sites}
        if lost := [str(s) for s in sites if s not in covered]:
            raise ModelError(
                f"Layers outside every block: {', '.join(lost)}.", "Report the model's architecture."
            )
        return ModelGraph(blocks, sites, *self._ties(), frozenset(self.repeated))

    def _ties(self) -> tuple[dict[Site, str], dict[Site, Site]]:
        """Union of sites that read one tensor, or tensors that meet at a concatenation."""
        first_reader: dict[int, Site] = {}
        shared: dict[Site, Site] = {}
        parent: dict[Site, Site] = {}
        for name, tensor in self.layers:
            site = Site(name, "input")
            first = first_reader.setdefault(id(tensor), site)
            shared[site] = first
            parent[site] = parent.get(first, first)
        for result, members in self.concats.members.items():
            readers = [first_reader[t] for t in (result, *members) if t in first_reader]
            roots = [_root(parent, r) for r in readers]
            for other in roots[1:]:
                parent[other] = roots[0]
        return {site: str(_root(parent, site)) for site in parent}, shared


class _ConcatRecorder(TorchFunctionMode):
    """Remembers which tensors every ``torch.cat`` joined (and keeps them alive, so identities stay unique)."""

    def __init__(self) -> None:
        super().__init__()
        self.members: dict[int, tuple[int, ...]] = {}
        self._alive: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.cat, torch.concat):
            tensors = args[0] if args else (kwargs or {})["tensors"]
            self.members[id(result)] = tuple(id(t) for t in tensors)
            self._alive += [result, *tensors]
        return result


def _root(parent: Mapping[Site, Site], site: Site) -> Site:
    while parent[site] != site:
        site = parent[site]
    return site


def _is_per_sample(tensor: Tensor) -> bool:
    return tensor.ndim >= 1 and tensor.shape[0] == _TRACE_BATCH


def _layer_sites(root: nn.Module, name: str) -> list[Site]:
    roles: list[Role] = ["weight", "input"]
    if isinstance(root.get_submodule(name), _CONVOLUTIONS):
        roles.append("output")
    return [Site(name, role) for role in roles]
