"""Those who are asked about graphs of others: lint, the prediction of what compiles, check."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from unittest import mock
from zlib import crc32

import onnx
from onnx import ModelProto

from gacq_deploy.check import check
from gacq_deploy.check.check import check_file
from gacq_deploy.check.evidence import Examination
from gacq_deploy.check.targets import Target
from gacq_deploy.errors import GacqError
from gacq_deploy.graph.files import read_graph
from gacq_deploy.lint.lint import RULE_SETS, lint_file, predict_compilation
from tests.support.fuzz.inputs import Input
from tests.support.fuzz.reader import FuzzedReader, Opened
from tests.support.graphs import qdq_blocks as blocks
from tests.support.graphs import qdq_graphs as graphs
from tests.support.graphs.foreign_graphs import SIGNED, quantized_by_onnxruntime
from tests.support.graphs.mutations import mutated
from tests.support.graphs.qdq_patterns import RESIZE

BASES: Mapping[str, Callable[[], ModelProto]] = {
    "nested joins": lambda: graphs.joined("nested"),
    "pooled joins": lambda: graphs.joined("then-pooled"),
    "blocks": lambda: graphs.int4_blocks(32),
    "integer bias": graphs.integer_bias,
    "computed scale": lambda: graphs.scale_from("data"),
    "resize": lambda: graphs.behind(RESIZE, before=True),
    "attention": lambda: blocks.attention(quantized="q"),
    "foreign pair": graphs.foreign_pair,
}


def _lint(path: Path, choice: int) -> None:
    lint_file(path, target=RULE_SETS[choice % len(RULE_SETS)])


def _predict(path: Path, _: int) -> None:
    predict_compilation(read_graph(path))


def _check(path: Path, choice: int) -> None:
    # no library is asked: that is a process of its own each time, and its answer is not in question here
    with mock.patch.object(check, "ask_tensorrt", return_value=Examination()):
        check_file(path, TARGETS[choice % len(TARGETS)])


TARGETS: tuple[Target, ...] = ("tensorrt-10", "tensorrt-11")
QUESTIONS: Mapping[str, Callable[[Path, int], None]] = {"lint": _lint, "predict": _predict, "check": _check}


def _row(question: Callable[[Path, int], None]) -> FuzzedReader:
    def open_in(folder: Path) -> Opened:
        path = folder / "graph.onnx"
        real = onnx.load(quantized_by_onnxruntime(folder / "real.onnx", **SIGNED))
        # every other one is of a real tool's graph
        bases = [model for build in BASES.values() for model in (real, build())]

        def read(tried: Input) -> None:
            path.write_bytes(tried.data)
            question(path, crc32(tried.data))

        return Opened(tuple(Input("onnx", base.SerializeToString()) for base in bases), read)

    return FuzzedReader(open_in, _restructure, GacqError, tries=350)


def _restructure(rng: Random, tried: Input) -> Input:
    return tried.holding(mutated(ModelProto.FromString(tried.data), rng).SerializeToString())


GRAPHS: Mapping[str, FuzzedReader] = {name: _row(question) for name, question in QUESTIONS.items()}
