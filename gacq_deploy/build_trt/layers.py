"""What did the compiler make of each node? The builder's own dump of compiled layers, read into records."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

LayerType = Literal["int8", "float"]
_START = "Layers:"
_END = "Bindings:"
"""What stands before and behind the layers in the builder's log."""
_MATMULS = ("correlation", "gemm", "deconv")
"""Layer types of convolutions, matrix products and transposed convolutions."""
_CASK = {
    "CaskConvolution": "correlation",
    "CaskGemmConvolution": "correlation",
    "CaskDeconvolution": "deconv",
}
"""The engine inspector's names of the same, where it does not use the compiler's own."""
_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_TYPE = re.compile(r"Datatype: (\w+)")
_SECTION = re.compile(r", (LayerType|Inputs|Constants|Outputs|TacticName|StreamId|Metadata): ")


@dataclass(frozen=True)
class CompiledLayer:
    """One kernel of the engine: data types of what it reads and writes, and the ONNX nodes in it."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    constants: tuple[str, ...]
    outputs: tuple[str, ...]
    tactic: str
    nodes: tuple[str, ...]

    @property
    def is_product(self) -> bool:
        """Tell whether this is a convolution or matrix product in a kernel of its own."""
        return self.kind in _MATMULS

    @property
    def int8(self) -> bool:
        """Tell whether it multiplies int8 data by int8 weights.

        A fallback shows its weight as a second half input, and a fused kernel that dequantizes inside has another
        type, even where its input and constant say Int8.
        """
        return self.is_product and self.inputs[:1] == ("Int8",) and "Int8" in self.constants[:1]

    @property
    def int8_product(self) -> bool:
        """Tell whether it multiplies int8 activations (quantized attention): one product, or all of it fused.

        The constants of such a product are its two float factors.
        """
        integers = len(self.inputs) > 1 and set(self.inputs) == {"Int8"} and "Int8" not in self.constants
        return integers and (self.is_product or "mha" in self.tactic)

    @property
    def reformat(self) -> bool:
        """Tell whether it only moves data between layouts or types."""
        return self.kind in ("Reformat", "reformat", "copy") or "reformat" in self.name.lower()


def read_log(lines: Iterable[str]) -> tuple[CompiledLayer, ...]:
    """Return the layers that the builder's log lists, in execution order.

    Args:
        lines: the log as the worker wrote it, ``SEVERITY<tab>text``; the dump is one message of many lines.

    A log without a dump (verbosity too low, another library) gives no layers.
    """
    return tuple(_from_line(line) for line in _dump(lines))


def read_inspection(text: str) -> tuple[CompiledLayer, ...]:
    """Return the layers of ``EngineInspector``'s JSON.

    Raises:
        ValueError: not its JSON.
    """
    document = json.loads(text)
    try:
        listed = list(document["Layers"])
    except (KeyError, TypeError) as error:
        raise ValueError("no list 'Layers' in it") from error
    return tuple(_from_json(item) for item in listed if isinstance(item, dict))


def int8_nodes(layers: Iterable[CompiledLayer]) -> frozenset[str]:
    """Return the names of the ONNX nodes that run in an INT8 kernel; one kernel may hold several."""
    return frozenset(node for layer in layers if layer.int8 for node in layer.nodes)


def document(layers: Iterable[CompiledLayer]) -> list[dict[str, Any]]:
    """Return plain JSON data."""
    return [{**asdict(layer), "int8": layer.int8} for layer in layers]


def from_document(items: Iterable[dict[str, Any]]) -> tuple[CompiledLayer, ...]:
    """Return what :func:`document` wrote."""
    return tuple(_from_item(item) for item in items)


def _from_item(item: dict[str, Any]) -> CompiledLayer:
    listed = {field: tuple(item[field]) for field in ("inputs", "constants", "outputs", "nodes")}
    return CompiledLayer(item["name"], item["kind"], tactic=item["tactic"], **listed)


def _dump(lines: Iterable[str]) -> Iterator[str]:
    inside = False
    for raw in lines:
        text = raw.rstrip("\n").rpartition("\t")[2]
        if text == _START:
            inside = True
        elif inside and text.startswith(_END):
            inside = False
        elif inside and text.startswith("Name: ") and ", LayerType: " in text:
            yield text


def _from_line(line: str) -> CompiledLayer:
    first, *rest = _SECTION.split(line)
    parts = dict(zip(rest[::2], rest[1::2], strict=True))
    return CompiledLayer(
        name=first.removeprefix("Name: "),
        kind=parts.get("LayerType", ""),
        inputs=tuple(_TYPE.findall(parts.get("Inputs", ""))),
        constants=tuple(_TYPE.findall(parts.get("Constants", ""))),
        outputs=tuple(_TYPE.findall(parts.get("Outputs", ""))),
        tactic=parts.get("TacticName", ""),
        nodes=tuple(_NODE.findall(parts.get("Metadata", ""))),
    )


def _from_json(item: dict[str, Any]) -> CompiledLayer:
    kind = str(item.get("LayerType", ""))
    weights = item.get("Weights")
    constants = [weights] if isinstance(weights, dict) else item.get("Constants", [])
    return CompiledLayer(
        name=str(item.get("Name", "")),
        kind=_CASK.get(kind, kind),
        inputs=tuple(map(_json_type, item.get("Inputs", []))),
        constants=tuple(map(_json_type, constants)),
        outputs=tuple(map(_json_type, item.get("Outputs", []))),
        tactic=str(item.get("TacticName", "")),
        nodes=tuple(_NODE.findall(str(item.get("Metadata", "")))),
    )


def _json_type(tensor: dict[str, Any]) -> str:
    """Return ``Int8`` of a ``Datatype``, a ``Type``, or a sentence (`... row major Int8 format`)."""
    text = str(tensor.get("Datatype") or tensor.get("Type") or tensor.get("Format/Datatype") or "")
    known = re.search(r"\b(Int8|Int4|Half|FP16|BF16|Float|FP32|FP8|Int32|Int64|Bool|INT8|INT4)\b", text)
    spelled = {"FP16": "Half", "FP32": "Float", "INT8": "Int8", "INT4": "Int4"}
    return spelled.get(known[1], known[1]) if known else text
