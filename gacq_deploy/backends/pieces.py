"""How does ONNX Runtime run a graph that would not fit into memory as a whole?

Piece by piece and row by row: a piece is opened, run and closed, and a tensor that crosses from one to another is
dropped once nobody reads it any more. Weights stay in their file, from which the system maps what is being read.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from gacq_deploy.backends.base import Engine, Feeds, HostEngine, TensorInfo
from gacq_deploy.engines.catalogue import REFERENCE, engine_named
from gacq_deploy.errors import EngineError
from gacq_deploy.graph.header import read_header, size_multiple
from gacq_deploy.graph.pieces import Piece, cut_into_pieces, held_bytes, tensor_types
from gacq_deploy.processes.freed_memory import give_back_memory
from gacq_deploy.spec import Array

WHOLE_BYTES = 128 << 20
"""A whole session is used for a graph whose weights, and whose largest tensor, take no more."""
_PIECE_BYTES = 128 << 20
"""Of the weights of a piece: what a session may copy of them, to compute half precision as float32."""
_SCORES_BYTES = 64 << 20
"""Of the scores of an attention that are computed at once, of one head at least."""


def open_frugally(path: Path, feeds: Feeds, *, threads: int = 0, optimize: bool = True) -> Engine:
    """Open a graph in ONNX Runtime on the CPU, as a whole if that fits, in pieces otherwise.

    Which of them depends on the graph and the shapes alone: results are the same on any machine.

    Args:
        path: an ONNX file.
        feeds: what it will be run on, of any number of rows.
        threads: CPU threads; 0 lets ONNX Runtime choose.
        optimize: False keeps every node as it is written.

    Raises:
        BackendUnavailable: ONNX Runtime is missing.
        ArtifactError: the file is missing, corrupt, or its external data is not its own.
        EngineError: the graph cannot run.
    """
    header = read_header(path)
    rows = len(next(iter(feeds.values())))
    weights = sum(held_bytes(tensor) for tensor in header.graph.initializer)
    if weights <= WHOLE_BYTES and rows * _largest_tensor(header, feeds) <= WHOLE_BYTES:
        return engine_named(REFERENCE).open(path, threads=threads, optimize=optimize)
    return PieceEngine(path, threads=threads, optimize=optimize)


class PieceEngine(HostEngine):
    """A graph in ONNX Runtime on the CPU, opened piece by piece for each row of a run."""

    def __init__(
        self, path: Path, *, threads: int = 0, optimize: bool = True, weight_bytes: int = _PIECE_BYTES,
        scores_bytes: int = _SCORES_BYTES, watched: Collection[str] = (),
    ) -> None:  # fmt: skip
        """Cut the graph of ``path``; ``watched`` names tensors that :meth:`watch` yields."""
        engine_named(REFERENCE).load()  # a missing library is said with its remedy
        from gacq_deploy.backends.ort import CPU_LABEL, OrtPiece

        self._open_piece = OrtPiece
        self._header = read_header(path)
        graph, multiple = self._header.graph, size_multiple(self._header)
        stored = {tensor.name for tensor in graph.initializer}
        inputs = tuple(_tensor_info(i, multiple) for i in graph.input if i.name not in stored)
        super().__init__(CPU_LABEL, inputs, tuple(_tensor_info(o, multiple) for o in graph.output))
        self._folder = path.parent.resolve()
        self._threads, self._optimize, self._scores_bytes = threads, optimize, scores_bytes
        self._watched = frozenset(watched)
        self._pieces = cut_into_pieces(self._header, weight_bytes=weight_bytes, watched=watched)

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The pieces, in the order in which they run."""
        return self._pieces

    def watch(self, feeds: Feeds) -> Iterator[tuple[str, Array]]:
        """Run once and yield each watched tensor as soon as it is there, then the outputs.

        Args:
            feeds: one row, or several where their tensors fit together.

        Raises:
            EngineError: the run failed.
            ResourceError: out of memory.
        """
        known = dict(feeds)
        outputs = {info.name for info in self._outputs}
        for piece in self._pieces:
            results = self._run_piece(piece, {given: known[name] for given, name in piece.inputs.items()})
            yield from ((n, results[n]) for n in piece.outputs if n in self._watched and n not in outputs)
            known |= results
            for name in piece.dropped:
                del known[name]
            give_back_memory()
        yield from ((name, known[name]) for name in outputs)

    def _run(self, feeds: Feeds) -> dict[str, Array]:
        if not all(info.shape and info.shape[0] is None for info in self._inputs):
            return self._run_once(feeds)
        rows = len(feeds[self._inputs[0].name])
        if rows == 1:  # then an output may have no rows: the largest value of a tensor, for instance
            return self._run_once(feeds)
        parts = [self._run_once({k: v[row : row + 1] for k, v in feeds.items()}) for row in range(rows)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _run_once(self, feeds: Feeds) -> dict[str, Array]:
        names = {info.name for info in self._outputs}
        return {name: value for name, value in self.watch(feeds) if name in names}

    def _run_piece(self, piece: Piece, feeds: Feeds) -> dict[str, Array]:
        session = self._open_piece(piece.model, self._folder, threads=self._threads, optimize=self._optimize)
        if piece.attention is None:
            return session.run(feeds)
        queries, keys = feeds[piece.attention.queries], feeds[piece.attention.keys]
        heads = queries.shape[-3]
        scores = math.prod(queries.shape[:-1]) * keys.shape[-1] * queries.itemsize // heads
        size = max(self._scores_bytes // max(scores, 1), 1)
        parts = [session.run(_some_heads(feeds, heads, first, size)) for first in range(0, heads, size)]
        return {name: np.concatenate([part[name] for part in parts], axis=-3) for name in parts[0]}

    def _close(self) -> None:
        """Nothing stays open between runs."""


def _some_heads(feeds: Feeds, heads: int, first: int, count: int) -> dict[str, Array]:
    """Return what ``count`` heads read; what is the same for all of them as it is."""
    return {
        name: value[..., first : first + count, :, :]
        if value.ndim > 2 and value.shape[-3] == heads
        else value
        for name, value in feeds.items()
    }


def _largest_tensor(model: ModelProto, feeds: Feeds) -> int:
    """Return the bytes of the largest tensor that is computed for one row of ``feeds``, as far as that is known."""
    sized = ModelProto()
    sized.CopyFrom(model)
    for info in sized.graph.input:
        if info.name in feeds:
            for dim, size in zip(
                info.type.tensor_type.shape.dim, (1, *feeds[info.name].shape[1:]), strict=True
            ):
                dim.dim_value = size
    sized.graph.ClearField("value_info")
    types = tensor_types(sized).values()
    return max((math.prod(d.dim_value for d in t.type.tensor_type.shape.dim) * 4 for t in types), default=0)


def _tensor_info(info: ValueInfoProto, multiple: int) -> TensorInfo:
    kind = info.type.tensor_type
    if kind.elem_type == TensorProto.UNDEFINED:
        raise EngineError(f"'{info.name}' of the graph has no type.", "Export it again.")
    shape = tuple(d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim)
    return TensorInfo(info.name, helper.tensor_dtype_to_np_dtype(kind.elem_type).name, shape, multiple)
