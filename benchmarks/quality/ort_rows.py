"""What does ONNX Runtime's own static quantizer make of the model? Q/DQ, int8, symmetric, per output channel."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from benchmarks.quality.candidates import CANONICAL, CPU, Candidate, peak_mb
from gacq_deploy.graph.index import module_of
from gacq_deploy.samples.calibration_set import CalibrationSet
from gacq_deploy.spec import QuantPlan

OPERATORS = ("Conv", "Gemm", "MatMul")
METHODS = {"ort-minmax": CalibrationMethod.MinMax, "ort-percentile": CalibrationMethod.Percentile}
_BATCH = 16


class SampleReader(CalibrationDataReader):  # type: ignore[misc]
    """Feeds the same training samples that every row learns from; a range at a time, to bound memory."""

    def __init__(self, samples: CalibrationSet) -> None:
        self._batches = [samples.rows(np.arange(s.start, s.stop)) for s in samples.chunks(_BATCH)]
        self._queue = iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Serve batches ``start_index`` to ``end_index`` next."""
        self._queue = iter(self._batches[start_index:end_index])

    def get_next(self) -> dict[str, Any] | None:
        """Return the next feeds, or None at the end."""
        batch = next(self._queue, None)
        if batch is None:
            return None
        return {"sample": batch.latents, "timestep": batch.timesteps, **batch.conditioning}


def quantized(method: str, graph: onnx.ModelProto, plan: QuantPlan, samples: CalibrationSet) -> Candidate:
    """Return ONNX Runtime's graphs: Q/DQ on inputs only, as TensorRT takes it, and its default with outputs too."""
    planned = set(plan.modules)
    layers = [n for n in graph.graph.node if n.op_type in OPERATORS]
    excluded = [n.name for n in layers if module_of(n) not in planned]
    started = time.process_time()
    with tempfile.TemporaryDirectory(prefix="ort-static-") as folder, _quiet():
        ranges, source = Path(folder) / "ranges.json", Path(folder) / "float.onnx"
        source.write_bytes(graph.SerializeToString())

        def make(name: str, **options: Any) -> onnx.ModelProto:
            quantize_static(
                source,
                str(Path(folder) / name),
                SampleReader(samples),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(OPERATORS),
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=excluded,
                calibrate_method=METHODS[method],
                calibration_cache_path=ranges,
                extra_options={
                    "ActivationSymmetric": True,
                    "WeightSymmetric": True,
                    "CalibStridedMinMax": 1,
                    "CalibPercentile": 99.9,
                    "MatMulConstBOnly": True,
                    **options,
                },
            )
            return onnx.load(str(Path(folder) / name))

        canonical = make(CANONICAL, OpTypesToExcludeOutputQuantization=list(OPERATORS), QuantizeBias=False)
        cost = {"cpu_s": time.process_time() - started, "peak_mb": peak_mb()}
        graphs = {CANONICAL: canonical, CPU: make(CPU)}
    quantized_layers = len(layers) - len(excluded)
    return Candidate(graphs, cost, {"layers": quantized_layers, "excluded": len(excluded)})


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the advice to pre-process: the float graph is measured as it is in every row."""
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.getLogger().setLevel(level)
