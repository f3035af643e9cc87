"""What is a GPU without one? Tensors that say they lie on another device, with real numbers on the CPU behind them.

Mixing them with the CPU's raises what CUDA raises, and so does ``numpy()``. What makes a GPU and its host wait for each
other is counted, with the line of the package that asked, and the bytes that are alive, with their peak.

It cannot show: operators that are not deterministic on a card (``bincount`` with weights, ``scatter_add``, upsampling's
gradient), how slow float64 is there, TF32 and other arithmetic, autocast, pinned memory and streams, kernels that a
card lacks, and how a card's allocator cuts memory into pieces. Those are handled by reading.
"""

from __future__ import annotations

import sys
import weakref
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch.utils._mode_utils import no_dispatch
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "fakegpu"
DEVICE = f"{NAME}:0"
PACKAGE = "/gacq_deploy/"
TRANSFER = "models/placement.py"
_aten = torch.ops.aten
_COPIES = {_aten._to_copy.default, _aten.copy_.default, _aten._copy_from.default, _aten.copy.default}
_INDEXING = {
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
    _aten._unsafe_index.Tensor,
}
_AS_RESHAPE = {_aten.view.default, _aten._unsafe_view.default}
"""The CPU's strides may differ from those that a card would have: such a view is made by a copy instead."""


class MixedDevices(RuntimeError):
    """Tensors of two devices in one operation."""


class Ledger:
    """What happened on the device: events by kind, waits by the package's line, bytes alive and their peak."""

    def __init__(self) -> None:
        self.events: Counter[str] = Counter()
        self.waits: dict[str, Counter[str]] = defaultdict(Counter)
        self.alive = 0
        self.peak = 0
        self._storages: Counter[int] = Counter()

    def wait(self, kind: str) -> None:
        """Note that host and device wait for each other."""
        self.events[kind] += 1
        self.waits[_line()][kind] += 1

    def moved(self, kind: str, tensor: torch.Tensor) -> None:
        """Note that a tensor's bytes cross the bus; what comes to the host, it waits for."""
        size = tensor.numel() * tensor.element_size()
        self.events[f"{kind}, bytes"] += size
        self.wait(kind) if kind == TO_HOST else self.events.update([kind])

    def holds(self, raw: torch.Tensor, wrapper: Any) -> None:
        """Count a storage as alive while a tensor of the device uses it."""
        storage = raw.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        self._storages[key] += 1
        if self._storages[key] == 1:
            self.alive += size
            self.peak = max(self.peak, self.alive)
        weakref.finalize(wrapper, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._storages[key] -= 1
        if not self._storages[key]:
            del self._storages[key]
            self.alive -= size

    def restart(self) -> None:
        """Begin anew: what waited is forgotten, and the peak is what is alive."""
        self.waits.clear()
        self.peak = self.alive


TO_HOST, TO_DEVICE = "device to host", "host to device"
SCALAR, INDEX = "number read", "index tensor on the host"
LEDGER = Ledger()


def _line() -> str:
    """Return file, function and line of the package's innermost frame that is not the transfer itself."""
    frame = sys._getframe(1)
    while frame is not None:
        _, package, name = frame.f_code.co_filename.rpartition(PACKAGE)
        if package and name != TRANSFER:
            return f"{name} {frame.f_code.co_qualname} {frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"


class DeviceTensor(torch.Tensor):
    """A tensor of the fake device; ``raw`` holds its numbers."""

    raw: torch.Tensor

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> Self:
        made: Self = torch.Tensor._make_wrapper_subclass(
            cls,
            raw.shape,
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=DEVICE,
        )
        made.raw = raw
        LEDGER.holds(raw, made)
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if any(not issubclass(t, DeviceTensor | torch.nn.Parameter) and t is not torch.Tensor for t in types):
            return NotImplemented
        return _run(func, args, dict(kwargs or {}))

    def data_ptr(self) -> int:
        return self.raw.data_ptr()

    def untyped_storage(self) -> Any:
        return self.raw.untyped_storage()

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError(f"can't convert {DEVICE} device type tensor to numpy. Use Tensor.cpu() first.")
        return self.detach().cpu().numpy()

    def __array__(self, *_args: Any, **_kwargs: Any) -> Any:
        return self.numpy()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"DeviceTensor({self.raw!r})"


def _is_ours(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _goes_to_device(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Tell whether the result lies on the device; count what crosses the bus."""
    if func is _aten._local_scalar_dense.default:
        LEDGER.wait(SCALAR)
    elif func is _aten._to_copy.default:
        ours, wanted = isinstance(args[0], DeviceTensor), kwargs.get("device")
        goes = ours if wanted is None else _is_ours(wanted)
        if ours != goes:
            LEDGER.moved(TO_DEVICE if goes else TO_HOST, args[0])
        return goes
    elif func in (_aten.copy_.default, _aten._copy_from.default):
        target, source = args[:2] if func is _aten.copy_.default else args[1::-1]
        if isinstance(target, DeviceTensor) != isinstance(source, DeviceTensor):
            LEDGER.moved(TO_DEVICE if isinstance(target, DeviceTensor) else TO_HOST, source)
        return isinstance(target, DeviceTensor)
    else:
        LEDGER.events["kernels"] += 1
    return True


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    flat, spec = tree_flatten((args, kwargs))
    tensors = [x for x in flat if isinstance(x, torch.Tensor)]
    strangers = [x for x in tensors if not isinstance(x, DeviceTensor)]
    if strangers and func not in _COPIES:
        if func in _INDEXING:
            LEDGER.wait(INDEX)
        elif any(x.dim() > 0 for x in strangers) and len(strangers) < len(tensors):
            raise MixedDevices(
                f"Expected all tensors to be on the same device, but found at least two devices, {DEVICE} and cpu! "
                f"({func}; {[list(x.shape) for x in strangers]} on the cpu)"
            )
    goes = _goes_to_device(func, args, kwargs)
    raw_flat = [_raw(x) for x in flat]
    raw_args, raw_kwargs = tree_unflatten(raw_flat, spec)
    try:
        out = func(*raw_args, **raw_kwargs)
    except RuntimeError as error:
        if func not in _AS_RESHAPE or "view size is not compatible" not in str(error):
            raise
        out = _aten.reshape.default(*raw_args, **raw_kwargs)
    if torch.Tag.inplace_view in func.tags:  # unsqueeze_ and the like: the wrapper's own shape has to follow
        with no_dispatch():
            func(*args, **kwargs)
    known = {id(r): x for r, x in zip(raw_flat, flat, strict=True) if isinstance(x, DeviceTensor)}

    def wrap(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        if id(x) in known:
            return known[id(x)]
        return DeviceTensor(x) if goes and not any(x is s for s in strangers) else x

    return tree_map(wrap, out)


def _raw(value: Any) -> Any:
    if isinstance(value, DeviceTensor):
        return value.raw
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == NAME else value


class _Backend:
    """What torch asks of a device's module."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, _seed: int) -> None:
        """Do nothing: numbers are drawn on the CPU."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def synchronize(self, *_args: Any) -> None:
        LEDGER.wait("synchronize")


_LIBRARIES: list[torch.library.Library] = []


def install() -> None:
    """Make the device known to torch, in this process, for good."""
    if _LIBRARIES:
        return
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
    torch.__future__.set_swap_module_params_on_conversion(True)
    fallback = torch.library.Library("_", "IMPL")
    fallback.fallback(lambda op, *args, **kwargs: _run(op, args, kwargs), "PrivateUse1")
    factories = torch.library.Library("aten", "IMPL")
    for name in torch._C._dispatch_get_all_op_names():
        if operator := _factory(name):
            factories.impl(name.removeprefix("aten::"), _made_on_device(operator), "PrivateUse1")
    factories.impl("_copy_from", _copy_from, "PrivateUse1")
    _LIBRARIES.extend([fallback, factories])


def _factory(full: str) -> Any:
    """Return the operator of that name if it makes a tensor on a device from no tensor."""
    if not full.startswith("aten::"):
        return None
    name, _, overload = full.removeprefix("aten::").partition(".")
    try:
        operator = getattr(getattr(_aten, name), overload or "default")
    except (AttributeError, RuntimeError):
        return None
    schema = operator._schema
    makes_one = len(schema.returns) == 1 and str(schema.returns[0].type) == "Tensor"
    takes_device = any(a.name == "device" for a in schema.arguments)
    takes_tensor = any("Tensor" in str(a.type) for a in schema.arguments)
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(full, "CompositeImplicitAutograd")
    return operator if makes_one and takes_device and not takes_tensor and not composite else None


def _made_on_device(operator: Any) -> Any:
    def kernel(*args: Any, **kwargs: Any) -> DeviceTensor:
        LEDGER.events["kernels"] += 1
        if kwargs.get("device") is not None:
            kwargs["device"] = torch.device("cpu")
        kwargs.pop("pin_memory", None)
        return DeviceTensor(operator(*args, **kwargs))

    return kernel


def _copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    del non_blocking
    ours = isinstance(target, DeviceTensor)
    LEDGER.moved(TO_DEVICE if ours else TO_HOST, source)
    _raw(target).copy_(_raw(source))
    return target
