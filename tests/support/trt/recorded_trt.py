"""A TensorRT that has the recorded names of one version and no others, and notes what is asked of it.

``python -m tests.support.trt.recorded_trt API.json OPTIONS`` configures a build with it, as the worker does, and prints
the calls; a process of its own, for Polygraphy chooses its library once in a process.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from gacq_deploy.backends.trt.library import TrtLibrary
from gacq_deploy.backends.trt.polygraphy import load_polygraphy
from gacq_deploy.build_trt import worker
from gacq_deploy.build_trt.options import CompileOptions

RANGES = {"x": {"min": (1, 3), "opt": (4, 3), "max": (8, 3)}}
Calls = list[list[Any]]


class Recorded:
    """An object of a class: names that this version lacks cannot be read, called or set."""

    def __init__(self, owner: str, names: list[str], calls: Calls, **answers: Any) -> None:
        vars(self).update(_owner=owner, _names={*names}, _calls=calls, _answers=answers)

    def __getattr__(self, name: str) -> Any:
        self._require(name)
        if name in self._answers:
            return self._answers[name]

        def call(*arguments: Any, **named: Any) -> bool:
            self._calls.append([f"{self._owner}.{name}", *map(str, (*arguments, *named.values()))])
            return True

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        self._require(name)
        self._calls.append([f"{self._owner}.{name}", str(value)])

    def __str__(self) -> str:
        return str(self._owner)

    def _require(self, name: str) -> None:
        if name not in self._names:
            raise AttributeError(f"{self._owner} has no {name}")


def module_of(api: dict[str, Any]) -> ModuleType:
    """Return a module with the recorded names; a class's members are their own names."""
    name, _, version = api["library"].rpartition("-")
    module = ModuleType(name)
    module.__version__ = version  # type: ignore[attr-defined]
    for known in api["names"]:
        members = api["classes"].get(known, [])
        setattr(module, known, type(known, (), {member: f"{known}.{member}" for member in members}))
    return module


class _Tensor:
    name, shape, is_shape_tensor, dtype = "x", (-1, 3), False, "float32"


class _Layer:
    type = "LayerType.ATTENTION_INPUT"
    precision_is_set = False

    def __init__(self, calls: Calls, names: list[str]) -> None:
        self.attention = Recorded("IAttention", names, calls)


class _Network:
    num_inputs = num_layers = 1

    def __init__(self, layer: _Layer) -> None:
        self._layer = layer

    def get_input(self, _index: int) -> type[_Tensor]:
        return _Tensor

    def get_layer(self, _index: int) -> _Layer:
        return self._layer

    def __iter__(self) -> Any:
        return iter([self._layer])


def configure(api: dict[str, Any], options: CompileOptions) -> Calls:
    """Configure a build with the recorded library; return what was asked of its objects, in order."""
    calls: Calls = []
    classes = api["classes"]
    library = TrtLibrary(options.backend, module_of(api), api["library"].rpartition("-")[2])
    config = Recorded("IBuilderConfig", classes["IBuilderConfig"], calls)
    profile = Recorded("IOptimizationProfile", classes["IOptimizationProfile"], calls)
    builder = Recorded(
        "Builder", classes["Builder"], calls,
        create_builder_config=lambda: config, create_optimization_profile=lambda: profile,
    )  # fmt: skip
    network = _Network(_Layer(calls, classes["IAttention"]))
    polygraphy = load_polygraphy(library)
    polygraphy.decompose_attention((builder, network, None))()
    given = worker._given(library, options) | {"progress_monitor": "the monitor"}
    worker._config(polygraphy, builder, network, options, given)
    return calls


if __name__ == "__main__":
    document = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    asked = CompileOptions.model_validate({**json.loads(sys.argv[2]), "profiles": [RANGES]})
    sys.stdout.write(json.dumps(configure(document, asked)))
