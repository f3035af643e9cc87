"""Which layers run although nothing uses their result? An exported graph does not hold them.

The text branch of a last joint block is one, if what it returns is dropped. Autograd records one forward pass for which
the layers' parameters ask for gradients; what the model's output cannot be traced back to is unused. No backward pass
follows, so none of the tensors that it would need are kept.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gacq_deploy.models.base import Denoiser

_ROWS = 2
"""A batch of one would be squeezed away by some models."""
_VALUE_READERS = frozenset(
    [
        "__array__",
        "__bool__",
        "__complex__",
        "__contains__",
        "__float__",
        "__index__",
        "__int__",
        "allclose",
        "equal",
        "is_nonzero",
        "item",
        "numpy",
        "tolist",
    ]
)
"""What makes of a tensor's values something that is no tensor."""
_SHAPE_READERS = frozenset(
    ["empty_like", "ones_like", "rand_like", "randn_like", "zeros_like", "new_empty", "new_ones", "new_zeros"]
)
"""What makes a tensor of another's shape and type, whatever its values."""


def find_unused(denoiser: Denoiser, names: Collection[str]) -> frozenset[str]:
    """Return those of the layers in ``names`` from whose result the model's output is certainly not computed.

    A layer counts as used where autograd cannot tell: its result is read without gradients, as integers or as numbers,
    its parameters cannot have a gradient, or the model cannot run while autograd records.
    """
    layers = {name: denoiser.module.get_submodule(name) for name in names}
    inputs = denoiser.example_inputs(_ROWS)
    sample, timestep = inputs.pop("sample"), inputs.pop("timestep")
    ran: set[str] = set()
    reads = _UntracedReads()
    with ExitStack() as stack, warnings.catch_warnings():
        # the passes before this one gave the model's own; this one adds what autograd says of numbers read
        warnings.simplefilter("ignore")
        for name, layer in layers.items():
            stack.callback(layer.register_forward_pre_hook(_noting(ran, name)).remove)
        try:
            stack.enter_context(_asking_for_gradients(layers.values()))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(_forget, _forgotten))
            with reads:
                output = denoiser(sample, timestep, inputs)
        except RuntimeError:
            # autograd forbids some changes in place, and reading a tensor as a NumPy array
            return frozenset()
        if not output.requires_grad:
            return frozenset()
        used = _traced_back([*reads.origins, _origin(output)])
        return frozenset(name for name in ran if not _is_used(layers[name], used))


def _noting(ran: set[str], name: str) -> Any:
    return lambda _module, _args: ran.add(name)


def _forget(_value: Any) -> None:
    return None


def _forgotten(_value: Any) -> Any:
    raise RuntimeError("the model differentiates itself, but nothing was kept for that")


def _is_used(layer: nn.Module, used: set[int]) -> bool:
    asking = [p for p in layer.parameters() if p.requires_grad and p.is_leaf]
    return not asking or any(id(p) in used for p in asking)


@contextmanager
def _asking_for_gradients(layers: Collection[nn.Module]) -> Iterator[None]:
    """Let the layers' parameters require gradients, as far as they can, until the context ends."""
    changed = {
        p: p.requires_grad
        for layer in layers
        for p in layer.parameters()
        if p.is_leaf and (p.is_floating_point() or p.is_complex())
    }
    try:
        for parameter in changed:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, before in changed.items():
            parameter.requires_grad_(before)


def _origin(tensor: Tensor) -> Any:
    """Return what autograd knows of how a tensor was made: a node of its graph, or the parameter itself."""
    return tensor if tensor.grad_fn is None else tensor.grad_fn


def _traced_back(origins: Collection[Any]) -> set[int]:
    """Return the ids of the parameters from which any of the tensors with these origins was computed."""
    found: set[int] = set()
    seen: set[Any] = set()
    pending = list(origins)
    while pending:
        node = pending.pop()
        if isinstance(node, Tensor):
            found.add(id(node))
        elif node is not None and node not in seen:
            seen.add(node)
            pending += [following for following, _ in node.next_functions]
            pending.append(getattr(node, "variable", None))
    return found


class _UntracedReads(TorchFunctionMode):
    """Notes the origins of what is read in ways that leave no trace in autograd's graph."""

    def __init__(self) -> None:
        super().__init__()
        self.origins: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        # before the call: it may change its arguments in place
        read = [_origin(t) for t in (*_tensors(args), *_tensors(named.values())) if t.requires_grad]
        result = func(*args, **named)
        if read and _leaves_no_trace(func, result):
            self.origins += read
        return result


def _leaves_no_trace(func: Any, result: Any) -> bool:
    name = getattr(func, "__name__", "")
    if name in _SHAPE_READERS:
        return False
    if not torch.is_grad_enabled() or name in _VALUE_READERS:
        return True
    return any(not t.requires_grad for t in _tensors((result,)))


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """Return the tensors among some values and in the sequences and mappings that they hold."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, tuple | list):
            found += _tensors(value)
        elif isinstance(value, Mapping):
            found += _tensors(value.values())
    return found
