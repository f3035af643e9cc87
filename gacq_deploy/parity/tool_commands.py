"""Which commands of NVIDIA's tools go on from where parity ends? Ready to type, on files that parity saved."""

from __future__ import annotations

import math
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from gacq_deploy.backends.trt.profiles import Shape
from gacq_deploy.engines.catalogue import CANONICAL, COMPILED, CPU, FLOAT
from gacq_deploy.recipe.sections import ParitySection

UNOPTIMIZED = ("--graph-optimization-level", "ORT_DISABLE_ALL")
"""Polygraphy's sessions cannot be told to keep exact kernels on every processor: without optimizations
ONNX Runtime computes each Q/DQ node as it is written, everywhere."""
_LAYERS, _LAYER_INPUTS, _PART = "layerwise.json", "layerwise-inputs.json", "polygraphy_debug.onnx"


@dataclass(frozen=True)
class ToolCommand:
    """A line to type, and what it is for."""

    about: str
    line: str


@dataclass(frozen=True)
class SavedFiles:
    """Where the saved files lie, as the user would type it, and the shapes in them.

    ``inputs`` holds every row of the probe, ``few`` its first rows, of the shapes ``few_shapes``; ``raw`` has one
    file of plain values for each input, of the shapes ``raw_shapes``.
    """

    inputs: Path
    few: Path
    few_shapes: Mapping[str, Shape]
    raw: Mapping[str, Path]
    raw_shapes: Mapping[str, Shape]


def least_snr_db(section: ParitySection, int8_db: float | None = None) -> float:
    """Return how close another execution of a graph must come to the saved outputs, in dB.

    Args:
        section: the recipe's gates. Float rounding may cost ``local_rtol``.
        int8_db: SQNR of the quantized model against the float one; None for the float graph. Rounding ties move
            a quantized network's output as far as INT8 itself does, and in any direction. But of two executions
            neither is further from float than the error gate allows, so both distances are the most between them.
    """
    rounding_db = -20 * math.log10(section.local_rtol)
    if int8_db is None:
        return rounding_db
    return min(rounding_db, int8_db - section.error_difference_db - 20 * math.log10(2))


def compare_command(graph: Path, saved: SavedFiles, outputs: Path, name: str, least_db: float) -> ToolCommand:
    """Return how ONNX Runtime's outputs are compared with the saved ones of ``name``.

    Args:
        graph: the file that ``name`` ran.
        saved: the inputs.
        outputs: the saved outputs.
        name: ``int8.onnx@ort-cpu``.
        least_db: see :func:`least_snr_db`.
    """
    level = () if graph.name == FLOAT else UNOPTIMIZED
    line = _run(graph, "--onnxrt", *level, saved=saved.inputs, outputs=outputs, least_db=least_db)
    return ToolCommand(f"{graph.name} in ONNX Runtime against the outputs of {name}", line)


def reduce_commands(graph: Path, saved: SavedFiles, engine: str, least_db: float) -> tuple[ToolCommand, ...]:
    """Return how the smallest part of ``graph`` is found that an engine computes otherwise than it is written.

    The last one needs the package ``onnx-graphsurgeon``. What they write goes to the working directory.

    Args:
        graph: a quantized graph.
        saved: the inputs.
        engine: one that is compiled for, or ONNX Runtime's.
        least_db: how close each part must come.
    """
    every = ("--onnx-outputs", "mark", "all", "--load-inputs", str(saved.few), "--save-outputs", _LAYERS)
    runner = ("--trt", "--strongly-typed") if engine in COMPILED else ("--onnxrt",)
    # the check runs as its child
    library = "POLYGRAPHY_USE_TENSORRT_RTX=1 " if engine == "tensorrt-rtx" else ""
    check = _run(Path(_PART), *runner, saved=Path(_LAYER_INPUTS), outputs=Path(_LAYERS), least_db=least_db)
    shapes = [f"{name}:[{','.join(map(str, shape))}]" for name, shape in saved.few_shapes.items()]
    # branches that are cut off are folded to what they hold: of these inputs, or else of random ones
    fed = ("--load-inputs", str(saved.few), "--model-input-shapes", *shapes)
    reduce = ("debug", "reduce", str(graph), "-o", "reduced.onnx", *fed)
    return (
        ToolCommand(
            f"every tensor of {graph.name}, each node computed as it is written",
            _join("run", str(graph), "--onnxrt", *UNOPTIMIZED, *every),
        ),
        ToolCommand(
            "the same as inputs of any part of it",
            _join("data", "merge", str(saved.few), _LAYERS, "-o", _LAYER_INPUTS),
        ),
        ToolCommand(
            "the smallest part that differs (needs: pip install onnx-graphsurgeon)",
            f"{library}{_join(*reduce)} --check {check}",
        ),
    )


def trtexec_command(graph: Path, saved: SavedFiles) -> ToolCommand:
    """Return how trtexec builds ``graph`` and runs it on the first batch of the probe."""
    shapes = ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in saved.raw_shapes.items())
    inputs = ",".join(f"{name}:{path}" for name, path in saved.raw.items())
    line = ["trtexec", f"--onnx={graph}", "--stronglyTyped", f"--shapes={shapes}", f"--loadInputs={inputs}"]
    return ToolCommand(
        f"{graph.name} in TensorRT, on the first batch", shlex.join([*line, "--exportOutput=trtexec.json"])
    )


def graph_to_reduce(judged: Collection[str]) -> str | None:
    """Return which of the judged graphs is taken apart: what TensorRT compiles, or else another quantized one."""
    return next((name for name in (CANONICAL, CPU) if name in judged), None)


def _run(graph: Path, *how: str, saved: Path, outputs: Path, least_db: float) -> str:
    loaded = ("--load-inputs", str(saved), "--load-outputs", str(outputs))
    # rounded down: the threshold is a bound
    bound = f"{math.floor(least_db * 100) / 100:g}"
    return _join("run", str(graph), *how, *loaded, "--compare", "snr", "--snr-threshold", bound)


def _join(*words: str) -> str:
    return shlex.join(["polygraphy", *words])
