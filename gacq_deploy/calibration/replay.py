"""What does block b see? The network is run with finished blocks answered from a cache on disk.

Two streams are carried forward, the float and the quantized one. For each block only the parameter-free glue before it
is computed again, so calibration costs one float and one quantized forward per block, whatever the architecture.
"""

from __future__ import annotations

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

from gacq_deploy.errors import CalibrationError
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.graph import (
    Key,
    ModelGraph,
    TensorShape,
    block_modules,
    call_with,
    replaced_forward,
    tensor_arguments,
)
from gacq_deploy.quant.layers import float_mode, quantized_layers
from gacq_deploy.samples import CalibrationSet
from gacq_deploy.storage import TEMP_PREFIX, map_scratch

_OVERHEAD = 8
"""Activations inside a block and its backward pass, in multiples of its inputs and output; measured on UNets."""
_SECOND_ORDER = 21
"""What a sample holds while its losses are differentiated twice, in multiples of all blocks' inputs and outputs;
measured on UNets."""


class _Reached(Exception):
    """The wanted block's arguments are known; the rest of the network need not run."""


class BlockCall(Protocol):
    """Runs one block."""

    def __call__(
        self, tensors: Mapping[Key, Tensor], parameters: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Return the block's output."""


@dataclass(frozen=True)
class BlockData:
    """Everything one block is learned from: inputs of the quantized prefix, targets of the float model.

    Arrays are memory-mapped, ``[N, ...]``; ``call`` runs the block on tensors placed where they belong, with other
    parameters by their name in the block where some are given.
    """

    inputs: Mapping[Key, NDArray[Any]]
    targets: NDArray[Any]
    call: BlockCall

    def batch(self, index: NDArray[np.int64]) -> tuple[dict[Key, Tensor], Tensor]:
        """Return copies of some rows: inputs and targets."""
        return {k: to_tensor(v[index]) for k, v in self.inputs.items()}, to_tensor(self.targets[index])


class Replay:
    """Carries both streams of ``samples`` through the blocks of a prepared (fake-quantized) denoiser."""

    def __init__(
        self, denoiser: Denoiser, graph: ModelGraph, samples: CalibrationSet, folder: Path, memory_mb: int
    ) -> None:
        self._denoiser = denoiser
        self._graph = graph
        self._samples = samples
        self._folder = folder
        self._modules = block_modules(denoiser)
        self._outputs: dict[tuple[str, int], NDArray[Any]] = {}
        self._diverged: set[int] = set()
        self._chunk = chunk_size(graph, memory_mb)

    def prepare(self, index: int) -> BlockData:
        """Compute block ``index``'s quantized-prefix inputs and float targets.

        Raises:
            CalibrationError: the float output is not finite.
        """
        block = self._graph.blocks[index]
        module = self._modules[block.name]
        inputs = {
            key: self._map(f"in-{'-'.join(map(str, key))}", shape) for key, shape in block.inputs.items()
        }
        targets = self._map(f"float-{index}", block.output)
        fixed: list[tuple[Any, Any]] = []
        with float_mode(self._denoiser.module), torch.no_grad():
            for rows in self._samples.chunks(self._chunk):
                args, kwargs = self._arguments(index, rows, "float")
                targets[rows] = module(*args, **kwargs).numpy()
                if self._is_diverged(block.depends_on):
                    args, kwargs = self._arguments(index, rows, "quantized")
                for key, value in tensor_arguments(args, kwargs).items():
                    if key in inputs:
                        inputs[key][rows] = value.numpy()
                fixed[:] = [(args, kwargs)]
        if np.issubdtype(targets.dtype, np.floating) and not _finite(targets):
            raise CalibrationError(
                f"The float model's output of block '{block.name}' holds NaN or Inf.",
                "Check the weights and samples.",
            )
        self._outputs["float", index] = targets
        args, kwargs = fixed[0]

        def call(tensors: Mapping[Key, Tensor], parameters: Mapping[str, Tensor] | None = None) -> Tensor:
            new_args, new_kwargs = call_with(args, kwargs, tensors)
            # names are unique; torch's own search for tied ones loses a parameter of a module that layers share
            output: Tensor = functional_call(
                module, dict(parameters or {}), new_args, new_kwargs, tie_weights=False
            )
            return output

        return BlockData(inputs, targets, call)

    @torch.no_grad()
    def advance(self, index: int, data: BlockData) -> None:
        """Carry the quantized stream through block ``index`` and drop what no later block needs."""
        block = self._graph.blocks[index]
        if quantized_layers(self._modules[block.name]) or self._is_diverged(block.depends_on):
            output = self._map(f"quantized-{index}", block.output)
            for rows in self._samples.chunks(self._chunk):
                inputs, _ = data.batch(np.arange(rows.start, rows.stop))
                output[rows] = data.call(inputs).numpy()
            self._outputs["quantized", index] = output
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
                    (self._folder / f"{TEMP_PREFIX}{stream}-{done}.bin").unlink(missing_ok=True)

    def _arguments(self, index: int, rows: slice, stream: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Run the glue up to block ``index`` and return the arguments it is called with."""
        reached: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def stop(*args: Any, **kwargs: Any) -> Tensor:
            reached.append((args, kwargs))
            raise _Reached

        with ExitStack() as stack:
            for done, block in enumerate(self._graph.blocks[:index]):
                answer = self._answer(done, rows, stream)
                stack.enter_context(replaced_forward(self._modules[block.name], answer))
            stack.enter_context(replaced_forward(self._modules[self._graph.blocks[index].name], stop))
            conditioning = {k: to_tensor(v[rows]) for k, v in self._samples.conditioning.items()}
            try:
                self._denoiser(
                    to_tensor(self._samples.latents[rows]),
                    to_tensor(self._samples.model_timesteps[rows]),
                    conditioning,
                )
            except _Reached:
                return reached[0]
        raise AssertionError(f"block {index} was not reached")

    def _answer(self, done: int, rows: slice, stream: str) -> Callable[..., Tensor]:
        cached = self._outputs.get((stream, done))
        if cached is None:
            # no later block depends on it: the glue only needs the shape
            shape = self._graph.blocks[done].output
            blank = torch.zeros((), dtype=shape.dtype).expand(rows.stop - rows.start, *shape.shape)
            return lambda *_args, **_kwargs: blank
        value = to_tensor(cached[rows])
        return lambda *_args, **_kwargs: value

    def _map(self, name: str, shape: TensorShape) -> NDArray[Any]:
        dtype = torch.zeros((), dtype=shape.dtype).numpy().dtype
        path = self._folder / f"{TEMP_PREFIX}{name}.bin"
        path.unlink(missing_ok=True)
        return map_scratch(path, dtype, (len(self._samples), *shape.shape))


def to_tensor(rows: NDArray[Any]) -> Tensor:
    """Return a contiguous copy in torch's own aligned memory.

    Vectorized sums depend on the alignment of their data in the last bits; numpy's varies from run to run.
    """
    return torch.from_numpy(np.ascontiguousarray(rows)).clone()


def chunk_size(graph: ModelGraph, memory_mb: int) -> int:
    """Return how many samples may be in memory at once."""
    return _fitting(memory_mb, block_bytes(graph))


def graph_chunk_size(graph: ModelGraph, memory_mb: int) -> int:
    """Return how many samples may be in memory at once with the whole model's graph, of second order."""
    return _fitting(memory_mb, second_order_bytes(graph))


def _fitting(memory_mb: int, sample_bytes: int) -> int:
    return int(min(64, max(1, memory_mb * 2**20 // sample_bytes)))


def block_bytes(graph: ModelGraph) -> int:
    """Return what one sample holds in memory while the largest block is learned."""
    return _OVERHEAD * graph.bytes_per_sample


def second_order_bytes(graph: ModelGraph) -> int:
    """Return what one sample holds in memory with the whole model's graph, of second order."""
    return _SECOND_ORDER * graph.bytes_of_all_blocks


def cache_bytes(graph: ModelGraph, samples: int) -> int:
    """Return the largest size of the cache on disk: both streams of all live blocks, and one block's inputs."""
    peak = 0
    for index, block in enumerate(graph.blocks):
        live = sum(b.output.bytes for b in graph.blocks[: index + 1] if b.last_use > index)
        peak = max(peak, 2 * (live + block.output.bytes) + sum(t.bytes for t in block.inputs.values()))
    return peak * samples


def full_pass(denoiser: Denoiser, samples: CalibrationSet, chunk: int) -> Iterator[NDArray[Any]]:
    """Run the whole model over ``samples`` chunk by chunk, yielding its outputs."""
    for rows in samples.chunks(chunk):
        conditioning = {k: to_tensor(v[rows]) for k, v in samples.conditioning.items()}
        with torch.no_grad():
            output = denoiser(
                to_tensor(samples.latents[rows]),
                to_tensor(samples.model_timesteps[rows]),
                conditioning,
            )
        yield output.numpy()


def _finite(array: NDArray[Any]) -> bool:
    return all(bool(np.isfinite(row).all()) for row in array)
