"""Engine folders as the build stage writes them, around a plan that nothing could run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gacq_deploy.build_trt.manifest import EngineInputs, EngineManifest, make_newest
from gacq_deploy.build_trt.options import CompileOptions, ShapeRange
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.storage.digests import describe_file
from gacq_deploy.storage.records import ListedFile


def made_from(graph_sha256: str, **changes: Any) -> EngineInputs:
    """Return what an engine is made from; ``options`` changes compile options."""
    profile = {"sample": ShapeRange(min=(1, 4), opt=(2, 4), max=(8, 4))}
    options = CompileOptions(backend="tensorrt-rtx", profiles=(profile,), **changes.pop("options", {}))
    known = {
        "graph": "int8.onnx",
        "graph_sha256": graph_sha256,
        "float_type": "float16",
        "library": "tensorrt-rtx",
        "version": "1.7.1.116",
        "options": options,
        "device": None,
    }
    return EngineInputs.model_validate({**known, **changes})


def written(root: Path, inputs: EngineInputs, share: float = 1.0) -> Path:
    """Write an engine into the run directory ``root``; return its folder."""
    folder = root / "engines" / inputs.key
    folder.mkdir(parents=True)
    (folder / "engine.plan").write_bytes(b"plan")
    (folder / "layers.json").write_text("{}")
    files = {p.name: ListedFile(**describe_file(p)) for p in folder.iterdir()}
    coverage = {"planned": 100, "int8": round(100 * share), "share": share, "kernels": {}, "lost": []}
    record = EngineManifest(inputs=inputs, files=files, coverage=coverage, seconds=1.0, peak_mb=1)
    record.save(folder)
    make_newest(RunDirectory(root), folder)
    return folder
