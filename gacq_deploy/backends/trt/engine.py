"""How does a TensorRT engine run? One execution context, one set of buffers and one CUDA graph per shape bucket."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from gacq_deploy.backends.base import Feeds, HostEngine, check_feeds
from gacq_deploy.backends.trt.bucket import Bucket
from gacq_deploy.backends.trt.cuda import CudaDevice, Stream, open_device
from gacq_deploy.backends.trt.deserialized import DeserializedEngine, Expected, refuse_misfit
from gacq_deploy.backends.trt.dlpack import DeviceTensor, borrow, numpy_dtype
from gacq_deploy.backends.trt.library import TrtLibrary, choose_trt, load_trt
from gacq_deploy.backends.trt.profiles import Profile, ProfileChoice, choose_profile
from gacq_deploy.errors import EngineError, ResourceError, UsageError
from gacq_deploy.spec import Array

BUCKETS_KEPT = 8
"""Shape buckets that stay ready; the one unused for longest goes first."""
logger = logging.getLogger(__name__)


class TrtEngine(HostEngine):
    """An engine on one GPU; runs of one engine take turns on one stream.

    A feed is padded to at least ``pad_to`` rows where a profile allows it, by repeating its last row, and the results
    are cut back. With the default of 2 no row runs alone: INT8 kernels for one row round otherwise than those for
    several. A larger ``pad_to`` makes one fixed bucket of all smaller batches, so that a row does not depend on them.
    """

    def __init__(  # noqa: PLR0913 (all keyword-only, each one a thing the caller owns)
        self,
        path: Path,
        *,
        expected: Expected | None = None,
        library: TrtLibrary | None = None,
        device: CudaDevice | None = None,
        allow_host_code: bool = False,
        cuda_graphs: bool = True,
        pad_to: int = 2,
    ) -> None:
        """Open an engine.

        Args:
            path: of the serialized engine.
            expected: what its manifest says it was built for; None leaves it to TensorRT to refuse it.
            library: default: the one that ``expected`` names, else whichever is here.
            device: closed with the engine; default: the first GPU.
            allow_host_code: let a version-compatible engine run host code of its own in this process.
            cuda_graphs: capture the second run of a shape bucket and replay it from then on.
            pad_to: run at least so many rows; 1 pads nothing.

        Raises:
            BackendUnavailable: TensorRT, cuda-bindings, the driver or a GPU is missing.
            ArtifactError: the engine is missing, or was built by another version or for another GPU.
            EngineError: TensorRT does not load it.
            ResourceError: the GPU is out of memory.
        """
        if library is None:
            library = load_trt(expected.library) if expected else choose_trt()
        # before anything of TensorRT: its runtime crashes the process at exit where there is no driver
        self._device = device = device or open_device()
        with ExitStack() as opened:
            opened.callback(device.close)
            if pad_to < 1:
                raise UsageError(f"pad_to is {pad_to}.", "Pass 1 or more rows.")
            if expected is not None:
                refuse_misfit(expected, library, device, path, allow_host_code=allow_host_code)
            with device.active():
                self._loaded = DeserializedEngine(library)
                opened.callback(device.discard, self._loaded.close)
                self._loaded.load(path, allow_host_code=allow_host_code)
                self._stream: Stream = device.stream()
                opened.callback(self._stream.close)
                # one scratch memory for all contexts, large enough for any: their runs take turns
                self._scratch = device.allocate(int(self._loaded.engine.device_memory_size_v2))
                opened.callback(self._scratch.close)
            opened.callback(self._drop_buckets)
            self._resources = opened.pop_all()
        super().__init__(f"{library.label}/{device.name}", self._loaded.inputs, self._loaded.outputs)
        self._profiles = self._loaded.profiles
        self._batched = frozenset(i.name for i in self._loaded.inputs if i.shape and i.shape[0] is None)
        self._pad_to = pad_to
        self._graphs = cuda_graphs
        self._buckets: OrderedDict[Any, Bucket] = OrderedDict()
        self._lock = threading.RLock()

    @property
    def profiles(self) -> tuple[Profile, ...]:
        """The engine's optimization profiles."""
        return self._profiles

    @property
    def max_rows(self) -> int | None:
        """Largest batch that any profile takes; None where no input has rows."""
        return max((p.ranges[n].max[0] for p in self._profiles for n in self._batched), default=None)

    @property
    def cuda_graphs(self) -> bool:
        """False once a capture has failed: the engine then queues every run layer by layer."""
        return self._graphs

    def run_device(self, tensors: Mapping[str, Any]) -> dict[str, DeviceTensor]:
        """Run once on tensors of this GPU, without a copy through the host; done when it returns.

        Args:
            tensors: by input name, each with ``__dlpack__`` or ``__cuda_array_interface__``, contiguous. Unlike
                :meth:`run` this does not look for NaN: that would wait for the GPU.

        Returns:
            New device tensors that any DLPack consumer takes over, and that outlive the engine.

        Raises:
            EngineError: the tensors do not fit, the run failed, or the engine is closed.
            ResourceError: the GPU is out of memory.
        """
        with self._lock, self._running():
            borrowed = {n: borrow(n, t, self._device, self._stream.handle) for n, t in tensors.items()}
            # stand-ins of the same type and shape, to be checked as host arrays are
            stand_ins = {
                n: np.broadcast_to(np.zeros((), numpy_dtype(b.dtype)), b.shape) for n, b in borrowed.items()
            }
            check_feeds(self._inputs, stand_ins, engine=self._label)

            def place(name: str, address: int) -> None:
                self._stream.copy_between(address, borrowed[name].address, borrowed[name].nbytes)

            choice, bucket = self._compute({n: b.shape for n, b in borrowed.items()}, place)
            results = {}
            for name, shape in self._result_shapes(choice, bucket).items():
                dtype = bucket.outputs[name].dtype
                nbytes = prod(shape) * numpy_dtype(dtype).itemsize
                memory = self._device.allocate(nbytes)
                self._stream.copy_between(memory.address, bucket.outputs[name].memory.address, nbytes)
                results[name] = DeviceTensor(self._device, memory, dtype, shape)
            # the caller may reuse its inputs and read the results on any stream
            self._stream.wait()
            return results

    def _run(self, feeds: Feeds) -> dict[str, Array]:
        arrays = {n: np.ascontiguousarray(a) for n, a in feeds.items()}  # they live until the copies are done
        with self._lock, self._running():

            def place(name: str, address: int) -> None:
                self._stream.copy_in(address, arrays[name])

            choice, bucket = self._compute({n: a.shape for n, a in feeds.items()}, place)
            results = {}
            for name, shape in self._result_shapes(choice, bucket).items():
                results[name] = np.empty(shape, numpy_dtype(bucket.outputs[name].dtype))
                self._stream.copy_out(results[name], bucket.outputs[name].memory.address)
            self._stream.wait()
            return results

    def _running(self) -> ExitStack:
        """Make the device active; after an error let the stream settle, since it reads memory that goes away."""
        if not self._open:
            raise EngineError(f"{self._label}: the engine is closed.", "Run it inside its `with` block.")
        stack = ExitStack()
        stack.enter_context(self._device.active())
        stack.push(lambda kind, _error, _trace: self._stream.settle() if kind else None)
        return stack

    def _compute(
        self, shapes: Mapping[str, tuple[int, ...]], place: Callable[[str, int], None]
    ) -> tuple[ProfileChoice, Bucket]:
        """Queue a run; ``place`` queues the copy of an input to an address."""
        choice = choose_profile(
            self._profiles, shapes, self._batched, pad_to=self._pad_to, engine=self._label
        )
        bucket = self._bucket(choice)
        for name, target in bucket.inputs.items():
            place(name, target.memory.address)
            if name in self._batched:
                self._repeat_last_row(target.memory.address, target.nbytes, choice)
        self._execute(bucket)
        return choice, bucket

    def _repeat_last_row(self, address: int, nbytes: int, choice: ProfileChoice) -> None:
        rows, run = choice.rows or 0, choice.shapes[min(self._batched)][0]
        row = nbytes // run
        for index in range(rows, run):
            self._stream.copy_between(address + index * row, address + (rows - 1) * row, row)

    def _execute(self, bucket: Bucket) -> None:
        if self._graphs and bucket.graph is None and bucket.capturable:
            try:
                bucket.graph = self._stream.capture(bucket.enqueue)
            except (EngineError, ResourceError) as error:
                # not worth failing for: the same layers are queued one by one
                self._graphs = False
                logger.warning("%s: running without CUDA graphs: %s", self._label, error.message)
        if bucket.graph is not None:
            self._stream.launch(bucket.graph)
        else:
            bucket.enqueue()

    def _bucket(self, choice: ProfileChoice) -> Bucket:
        bucket = self._buckets.get(choice.key)
        if bucket is None:
            while len(self._buckets) >= BUCKETS_KEPT:
                self._buckets.popitem(last=False)[1].close()
            try:
                bucket = self._open_bucket(choice)
            except ResourceError:
                if not self._buckets:
                    raise
                # what other buckets hold can be made again: this run goes first
                self._drop_buckets()
                bucket = self._open_bucket(choice)
            self._buckets[choice.key] = bucket
        self._buckets.move_to_end(choice.key)
        return bucket

    def _open_bucket(self, choice: ProfileChoice) -> Bucket:
        return Bucket(
            self._loaded, self._device, self._stream, self._scratch, choice, cuda_graphs=self._graphs
        )

    def _result_shapes(self, choice: ProfileChoice, bucket: Bucket) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the results, without the rows that were padding."""
        shapes: dict[str, tuple[int, ...]] = {}
        for info in self._outputs:
            shape = bucket.outputs[info.name].shape
            if choice.rows is not None and info.shape and info.shape[0] is None:
                shape = (choice.rows, *shape[1:])
            shapes[info.name] = shape
        return shapes

    def _close(self) -> None:
        with self._lock:
            self._resources.close()

    def _drop_buckets(self) -> None:
        while self._buckets:
            self._buckets.popitem()[1].close()
