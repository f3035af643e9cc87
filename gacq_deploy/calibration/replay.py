"""What does block b see? The network is run with the outputs of finished blocks taken from a cache on disk.

Two streams are carried forward, the float and the quantized one. For each block only the parameter-free glue before it
is computed again, so calibration costs one float and one quantized forward per block, whatever the architecture.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call

from gacq_deploy.artifact.call import Place
from gacq_deploy.errors import CalibrationError
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.devices import HOST
from gacq_deploy.models.placement import to_host, to_tensor
from gacq_deploy.models.pytree import call_leaves, call_with, leaves, replaced, same, spoken
from gacq_deploy.models.structure.graph import Block, ModelGraph, TensorShape
from gacq_deploy.models.structure.trace import replaced_forward
from gacq_deploy.quant.layers import float_mode, quantized_layers
from gacq_deploy.samples.calibration_set import CalibrationSet
from gacq_deploy.storage.files import TEMP_PREFIX, map_scratch

_OVERHEAD = 8
"""Activations inside a block and its backward pass, in multiples of its inputs and output; measured on UNets."""
_FIRST_ORDER = 13
"""What a sample holds of the whole model's graph, in multiples of all blocks' inputs and outputs; measured on UNets."""
_SECOND_ORDER = 21
"""What a sample holds while its losses are differentiated twice, in multiples of all blocks' inputs and outputs;
measured on UNets."""


class _Reached(Exception):
    """The wanted block's arguments are known; the rest of the network need not run."""


class BlockCall(Protocol):
    """Runs one block."""

    def __call__(
        self, tensors: Mapping[Place, Tensor], parameters: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, ...]:
        """Return the block's per-sample outputs."""


@dataclass(frozen=True)
class BlockData:
    """Everything one block is learned from: inputs of the quantized prefix, targets of the float model.

    Arrays are memory-mapped, ``[N, ...]``, ``targets`` one for each output; ``call`` runs the block on tensors placed
    where they belong, with other parameters by their name in the block where some are given.
    """

    inputs: Mapping[Place, NDArray[Any]]
    targets: tuple[NDArray[Any], ...]
    call: BlockCall
    device: torch.device = HOST
    """Where the block is, and so where batches go."""

    def batch(self, index: NDArray[np.int64]) -> tuple[dict[Place, Tensor], tuple[Tensor, ...]]:
        """Return copies of some rows: inputs and targets."""
        inputs = {k: to_tensor(v[index], self.device) for k, v in self.inputs.items()}
        return inputs, tuple(to_tensor(t[index], self.device) for t in self.targets)


class Replay:
    """Carries both streams of ``samples`` through the blocks of a prepared (fake-quantized) denoiser."""

    def __init__(
        self, denoiser: Denoiser, graph: ModelGraph, samples: CalibrationSet, folder: Path, memory_mb: int
    ) -> None:
        self._denoiser = denoiser
        self._graph = graph
        self._samples = samples
        self._folder = folder
        self._modules = graph.modules(denoiser)
        self._outputs: dict[tuple[str, int], tuple[NDArray[Any], ...]] = {}
        self._diverged: set[int] = set()
        self._chunk = chunk_size(graph, memory_mb)

    def prepare(self, index: int) -> BlockData:
        """Compute block ``index``'s quantized-prefix inputs and float targets.

        Raises:
            CalibrationError: a float output is not finite, or what the trace took for a constant is none.
        """
        block = self._graph.blocks[index]
        module = self._modules[block.name]
        inputs = {
            key: self._map(f"in-{'-'.join(map(str, key))}", shape) for key, shape in block.inputs.items()
        }
        targets = self._map_outputs("float", index)
        constants: dict[Place, Any] = {}
        with float_mode(self._denoiser.module), torch.no_grad():
            for rows in self._samples.chunks(self._chunk):
                args, kwargs = self._arguments(index, rows, "float")
                _store(targets, rows, _outputs_of(block, module(*args, **kwargs)))
                # before the first quantized layer both streams are one: the float call's inputs serve
                if self._is_diverged(block.depends_on):
                    args, kwargs = self._arguments(index, rows, "quantized")
                given = call_leaves(args, kwargs)
                for key, array in inputs.items():
                    array[rows] = to_host(given.pop(key))
                constants = constants or given
                _check_constant(block, constants, given)
        if not all(_finite(t) for t in targets):
            raise CalibrationError(
                f"The float model's output of block '{block.name}' holds NaN or Inf.",
                "Check the weights and samples.",
            )
        self._outputs["float", index] = targets
        # the call is kept without the last chunk's tensors, which would stay in memory with it
        args, kwargs = call_with(args, kwargs, dict.fromkeys(inputs))

        def call(
            tensors: Mapping[Place, Tensor], parameters: Mapping[str, Tensor] | None = None
        ) -> tuple[Tensor, ...]:
            new_args, new_kwargs = call_with(args, kwargs, tensors)
            # names are unique; torch's own search for tied ones loses a parameter of a module that layers share
            result = functional_call(module, dict(parameters or {}), new_args, new_kwargs, tie_weights=False)
            return _outputs_of(block, result)

        return BlockData(inputs, targets, call, self._denoiser.device)

    @torch.no_grad()
    def advance(self, index: int, data: BlockData) -> None:
        """Carry the quantized stream through block ``index`` and drop what no later block needs."""
        block = self._graph.blocks[index]
        if quantized_layers(self._modules[block.name]) or self._is_diverged(block.depends_on):
            outputs = self._map_outputs("quantized", index)
            for rows in self._samples.chunks(self._chunk):
                inputs, _ = data.batch(np.arange(rows.start, rows.stop))
                _store(outputs, rows, data.call(inputs))
            self._outputs["quantized", index] = outputs
            self._diverged.add(index)
        else:
            self._outputs["quantized", index] = data.targets
        self._release(index)

    def close(self) -> None:
        """Delete the cache."""
        self._outputs.clear()
        for path in self._folder.glob(f"{TEMP_PREFIX}*.bin"):
            path.unlink(missing_ok=True)

    def _is_diverged(self, depends_on: tuple[int, ...]) -> bool:
        return any(i in self._diverged for i in depends_on)

    def _release(self, index: int) -> None:
        for done in range(index + 1):
            if self._graph.blocks[done].last_use <= index:
                for stream in ("float", "quantized"):
                    self._outputs.pop((stream, done), None)
                    for path in self._folder.glob(f"{TEMP_PREFIX}{stream}-{done}-*.bin"):
                        path.unlink(missing_ok=True)

    def _arguments(self, index: int, rows: slice, stream: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Run the glue up to block ``index`` and return the arguments it is called with."""
        reached: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def stop(*args: Any, **kwargs: Any) -> Any:
            reached.append((args, kwargs))
            raise _Reached

        with ExitStack() as stack:
            for done, block in enumerate(self._graph.blocks[:index]):
                forward = self._cached_forward(done, rows, stream)
                stack.enter_context(replaced_forward(self._modules[block.name], forward))
            stack.enter_context(replaced_forward(self._modules[self._graph.blocks[index].name], stop))
            try:
                run_rows(self._denoiser, self._samples, rows)
            except _Reached:
                return reached[0]
        raise AssertionError(f"block {index} was not reached")

    def _cached_forward(self, done: int, rows: slice, stream: str) -> Callable[..., Any]:
        block, device = self._graph.blocks[done], self._denoiser.device
        cached = self._outputs.get((stream, done))
        if cached is None:
            # no later block depends on it: the glue only needs the shapes, and may write into them
            count = rows.stop - rows.start
            values = [
                torch.zeros((count, *t.shape), dtype=t.dtype, device=device) for t in block.outputs.values()
            ]
        else:
            values = [to_tensor(array[rows], device) for array in cached]
        result = replaced(block.result, dict(zip(block.outputs, values, strict=True)))
        return lambda *_args, **_kwargs: result

    def _map_outputs(self, stream: str, index: int) -> tuple[NDArray[Any], ...]:
        shapes = self._graph.blocks[index].outputs.values()
        return tuple(self._map(f"{stream}-{index}-{k}", shape) for k, shape in enumerate(shapes))

    def _map(self, name: str, shape: TensorShape) -> NDArray[Any]:
        dtype = torch.zeros((), dtype=shape.dtype).numpy().dtype
        return map_scratch(
            self._folder / f"{TEMP_PREFIX}{name}.bin", dtype, (len(self._samples), *shape.shape)
        )


def _outputs_of(block: Block, result: Any) -> tuple[Tensor, ...]:
    found = dict(leaves(result))
    return tuple(found[path] for path in block.outputs)


def _store(arrays: tuple[NDArray[Any], ...], rows: slice, tensors: tuple[Tensor, ...]) -> None:
    for array, tensor in zip(arrays, tensors, strict=True):
        array[rows] = to_host(tensor)


def _check_constant(block: Block, known: Mapping[Place, Any], given: Mapping[Place, Any]) -> None:
    for path, value in given.items():
        if path not in known or not same(known[path], value):
            raise CalibrationError(
                f"Block '{block.name}' is given {spoken(path)}, which has no row for each sample and yet differs "
                "between samples.",
                "Samples of one calibration have to agree in it: draw them with the same size and settings.",
            )


def chunk_size(graph: ModelGraph, memory_mb: int) -> int:
    """Return how many samples may be in memory at once."""
    return _fitting(memory_mb, block_bytes(graph))


def graph_chunk_size(graph: ModelGraph, memory_mb: int, *, by_block: bool) -> int:
    """Return how many samples may be in memory at once with the whole model's graph.

    With the graph of second order, or, ``by_block``, with that of one block and the inputs of all.
    """
    return _fitting(memory_mb, checkpointed_bytes(graph) if by_block else second_order_bytes(graph))


def second_order_rows(graph: ModelGraph, memory_mb: int) -> int:
    """Return how many samples may be in memory at once with the whole model's graph of second order, one at least."""
    return max(1, memory_mb * 2**20 // second_order_bytes(graph))


def _fitting(memory_mb: int, sample_bytes: int) -> int:
    return int(min(64, max(1, memory_mb * 2**20 // sample_bytes)))


def block_bytes(graph: ModelGraph) -> int:
    """Return what one sample holds in memory while the largest block is learned."""
    return _OVERHEAD * graph.bytes_per_sample


def first_order_bytes(graph: ModelGraph) -> int:
    """Return what one sample holds in memory with the whole model's graph."""
    return _FIRST_ORDER * graph.bytes_of_all_blocks


def checkpointed_bytes(graph: ModelGraph) -> int:
    """Return what one sample holds if every block's graph is made again when its gradient is due."""
    return graph.bytes_of_all_blocks + _FIRST_ORDER * graph.bytes_per_sample


def second_order_bytes(graph: ModelGraph) -> int:
    """Return what one sample holds in memory with the whole model's graph, of second order."""
    return _SECOND_ORDER * graph.bytes_of_all_blocks


def cache_bytes(graph: ModelGraph, samples: int) -> int:
    """Return the largest size of the cache on disk: both streams of all live blocks, and one block's inputs."""
    peak = 0
    for index, block in enumerate(graph.blocks):
        live = sum(b.output_bytes for b in graph.blocks[: index + 1] if b.last_use > index)
        peak = max(peak, 2 * (live + block.output_bytes) + sum(t.bytes for t in block.inputs.values()))
    return peak * samples


def full_pass(denoiser: Denoiser, samples: CalibrationSet, chunk: int) -> Iterator[NDArray[Any]]:
    """Run the whole model over ``samples`` chunk by chunk, yielding its outputs."""
    for rows in samples.chunks(chunk):
        with torch.no_grad():
            output = run_rows(denoiser, samples, rows)
        yield to_host(output)


def run_rows(denoiser: Denoiser, samples: CalibrationSet, rows: slice) -> Tensor:
    """Return the model's output on some rows of the samples, where the model lies."""
    device = denoiser.device
    return denoiser(
        to_tensor(samples.latents[rows], device),
        to_tensor(samples.model_timesteps[rows], device),
        {name: to_tensor(value[rows], device) for name, value in samples.conditioning.items()},
    )


def time_blocks(
    denoiser: Denoiser, graph: ModelGraph, samples: CalibrationSet, rows: int
) -> dict[str, float]:
    """Return the seconds of each block's forward pass on ``rows`` samples, by name; the second of two passes counts."""
    seconds: dict[str, float] = {}

    def timed(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            result = forward(*args, **kwargs)
            seconds[name] = time.perf_counter() - started
            return result

        return run

    with ExitStack() as stack:
        for name, module in graph.modules(denoiser).items():
            stack.enter_context(replaced_forward(module, timed(name, module.forward)))
        few = samples.rows(np.arange(min(rows, len(samples))))
        for _ in range(2):
            list(full_pass(denoiser, few, rows))
    return seconds


def _finite(array: NDArray[Any]) -> bool:
    return not np.issubdtype(array.dtype, np.inexact) or all(bool(np.isfinite(row).all()) for row in array)
