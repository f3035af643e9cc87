"""What are the open dimensions of a graph called?"""

from __future__ import annotations

import re

from onnx import ModelProto

BATCH, HEIGHT, WIDTH = "batch", "height", "width"
_AXES = {0: BATCH, 2: HEIGHT, 3: WIDTH}
"""By axis of a state [N, C, H, W]; its channels are never open."""
_SIZE = re.compile(r"(?:([0-9]+)\*)?([A-Za-z_][A-Za-z0-9_]*)")


def name_dimensions(model: ModelProto) -> None:
    """Give the exporter's symbols plain names, by the open dimensions of the first input, in expressions too.

    Where an input's dimension is a multiple, as in ``8*s4``, the whole is called ``height`` and every other
    ``s4`` becomes ``(height/8)``.
    """
    renamed = [
        _renaming(dim.dim_param, _AXES[axis])
        for axis, dim in enumerate(model.graph.input[0].type.tensor_type.shape.dim)
        if dim.dim_param
    ]
    graph = model.graph
    for info in (*graph.input, *graph.output, *graph.value_info):
        for dim in info.type.tensor_type.shape.dim:
            for whole, name, symbol, part in renamed if dim.dim_param else ():
                dim.dim_param = name if dim.dim_param == whole else symbol.sub(part, dim.dim_param)


def _renaming(expression: str, name: str) -> tuple[str, str, re.Pattern[str], str]:
    """Return the dimension as it was written, its name, its symbol and what that is in terms of the name."""
    found = _SIZE.fullmatch(expression)
    assert found is not None, f"the exporter wrote an input's dimension as {expression!r}"
    multiple, symbol = found.groups()
    return (
        expression,
        name,
        re.compile(rf"\b{re.escape(symbol)}\b"),
        f"({name}/{multiple})" if multiple else name,
    )
