"""How do the probe and the engines' outputs reach NVIDIA's tools? A folder in Polygraphy's formats, whole or absent."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from gacq_deploy.artifact.probe import Probe
from gacq_deploy.backends.base import Engine
from gacq_deploy.backends.trt.polygraphy import require_polygraphy, save_feeds, save_results
from gacq_deploy.engines.catalogue import CANONICAL, COMPILED, FLOAT, REFERENCE
from gacq_deploy.errors import ArtifactError, UsageError, quoted
from gacq_deploy.metrics.arrays import sqnr_db
from gacq_deploy.parity import exact as exact_numbers
from gacq_deploy.parity.tool_commands import (
    SavedFiles,
    ToolCommand,
    compare_command,
    graph_to_reduce,
    least_snr_db,
    reduce_commands,
    trtexec_command,
)
from gacq_deploy.recipe.sections import ParitySection
from gacq_deploy.spec import Array
from gacq_deploy.storage.files import atomic_directory, write_bytes, write_json
from gacq_deploy.storage.outputs import require_folder_for
from gacq_deploy.storage.records import Record, load_record

_SCHEMA = "gacq-deploy/polygraphy/1"
MANIFEST, INPUTS, FEW, LOADER, COMMANDS = (
    "manifest.json", "inputs.json", "first-rows.json", "load_data.py", "commands.txt",
)  # fmt: skip
_FEW_ROWS = 2
"""Taking a graph apart keeps every tensor of every row; one row alone may take kernels of its own."""
_BYTECODE = "__pycache__"
"""What Python leaves where Polygraphy has imported the loader."""
_LOAD_DATA = '''"""The probe's inputs, for: polygraphy ... --data-loader-script load_data.py"""

from pathlib import Path

from polygraphy.json import load_json


def load_data():
    """Return the list of feeds: input name -> array."""
    return load_json(str(Path(__file__).with_name("inputs.json")))
'''


class _CommandRecord(Record):
    about: str
    line: str


class _FolderRecord(Record):
    """What the folder's ``manifest.json`` says."""

    schema_: Literal["gacq-deploy/polygraphy/1"] = Field(alias="schema")
    files: tuple[str, ...]
    commands: tuple[_CommandRecord, ...]


@dataclass(frozen=True)
class _Outputs:
    """An engine's output for every row of the probe; ``rows`` [M, C, H, W]."""

    graph: str
    name: str
    output: str
    rows: Array


class ProbeFolder:
    """Keeps the engines' outputs while parity measures, and writes them with the inputs at its end."""

    def __init__(self, folder: Path | str) -> None:
        """Refuse before any work what could not be written.

        Raises:
            BackendUnavailable: Polygraphy is missing or too old.
            UsageError: the folder holds something else, or cannot be made.
        """
        require_polygraphy("--save-polygraphy")
        self.folder = Path(folder)
        _require_ours(self.folder)
        self._outputs: list[_Outputs] = []

    def keep(self, graph: str, name: str, engine: Engine, rows: Array) -> None:
        """Take up the output of ``engine``, reported as ``name``, in the graph of this file name."""
        self._outputs.append(_Outputs(graph, name, engine.outputs[0].name, rows))

    def write(self, probe: Probe, onnx: Path, *, batch: int, section: ParitySection) -> None:
        """Write the folder, in the place of one of its own.

        Args:
            probe: its inputs [M, ...] and the float model's outputs.
            onnx: the folder of the graphs.
            batch: rows of one iteration.
            section: the recipe's gates.

        Raises:
            ResourceError: the disk is full.
            UsageError: the folder cannot be written.
        """
        rows = len(next(iter(probe.inputs.values())))
        parts = [slice(first, first + batch) for first in range(0, rows, batch)]
        # beside the final folder first; commands name the final one
        with atomic_directory(self.folder, ("*",)) as temp:
            saved = _save_inputs(temp, self.folder, probe.inputs, parts)
            commands = self._save_outputs(temp, onnx, saved, parts, _least_db(probe, parts, section))
            text = "".join(f"# {command.about}\n{command.line}\n\n" for command in commands)
            write_bytes(temp / COMMANDS, text.encode())
            write_bytes(temp / LOADER, _LOAD_DATA.encode())
            files = sorted(str(path.relative_to(temp)) for path in temp.rglob("*") if path.is_file())
            listed = {"files": files, "commands": [asdict(command) for command in commands]}
            write_json(temp / MANIFEST, {"schema": _SCHEMA, **listed})

    def _save_outputs(
        self, temp: Path, onnx: Path, saved: SavedFiles, parts: list[slice], least_db: Mapping[str, float]
    ) -> list[ToolCommand]:
        commands = []
        for kept in self._outputs:
            place = Path("outputs") / f"{kept.name.replace(' ', '-')}.json"
            (temp / place).parent.mkdir(exist_ok=True)
            rows = [{kept.output: kept.rows[part]} for part in parts]
            save_results(temp / place, kept.name, rows)
            graph, at = onnx / kept.graph, self.folder / place
            commands.append(compare_command(graph, saved, at, kept.name, least_db[kept.graph]))
        judged = {kept.graph for kept in self._outputs}
        if (reduced := graph_to_reduce(judged)) is not None:
            engines = {kept.name.partition("@")[2].split()[0] for kept in self._outputs}
            engine = next((name for name in COMPILED if name in engines), REFERENCE)
            commands += reduce_commands(onnx / reduced, saved, engine, least_db[reduced])
        if CANONICAL in judged:
            commands.append(trtexec_command(onnx / CANONICAL, saved))
        return commands


def _least_db(probe: Probe, parts: list[slice], section: ParitySection) -> dict[str, float]:
    """Return for each graph how close any execution of it must come to another one, in every iteration."""
    exact, bounds = probe.outputs["float"], {FLOAT: least_snr_db(section)}
    for flavour in (exact_numbers.CANONICAL, exact_numbers.CPU):
        quantized = probe.outputs[flavour.placement]
        int8_db = min(sqnr_db(exact[part], quantized[part]) for part in parts)
        bounds[flavour.file] = least_snr_db(section, int8_db)
    return bounds


def saved_commands(folder: Path | str) -> tuple[ToolCommand, ...]:
    """Return the commands that go on from what :func:`check_parity` saved in ``folder``.

    Raises:
        ArtifactError: it saved nothing there.
    """
    return tuple(ToolCommand(said.about, said.line) for said in _read(Path(folder)).commands)


def _save_inputs(temp: Path, folder: Path, inputs: Mapping[str, Any], parts: list[slice]) -> SavedFiles:
    """Write the inputs for Polygraphy, their first rows, and the first iteration as plain values for trtexec."""
    save_feeds(temp / INPUTS, [_rows(inputs, part) for part in parts])
    few, first = _rows(inputs, slice(0, _FEW_ROWS)), _rows(inputs, parts[0])
    save_feeds(temp / FEW, [few])
    raw: dict[str, Path] = {}
    (temp / "raw").mkdir()
    for name, values in first.items():
        place = Path("raw") / f"{name}.bin"
        (temp / place).write_bytes(values.tobytes())
        raw[name] = folder / place
    return SavedFiles(
        inputs=folder / INPUTS,
        few=folder / FEW,
        few_shapes=_shapes(few),
        raw=raw,
        raw_shapes=_shapes(first),
    )


def _shapes(inputs: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    return {name: values.shape for name, values in inputs.items()}


def _rows(inputs: Mapping[str, Any], part: slice) -> dict[str, Array]:
    return {name: np.ascontiguousarray(inputs[name][part]) for name in sorted(inputs)}


def _read(folder: Path) -> _FolderRecord:
    hint = f"Run `gacq-deploy parity --save-polygraphy {quoted(folder)}`."
    return load_record(_FolderRecord, folder / MANIFEST, what="The list of saved files", hint=hint)


def _require_ours(folder: Path) -> None:
    """Refuse a folder with anything in it that is not listed as saved before: it would be replaced as a whole."""
    hint = "Name a folder that is empty or not there yet."
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UsageError(f"--save-polygraphy {folder} is not a folder.", hint)
    if not folder.exists():
        place = next(p for p in folder.absolute().parents if p.exists())
        if not place.is_dir() or not os.access(place, os.W_OK):
            raise UsageError(
                f"--save-polygraphy {folder}: {place} is not a folder that can be written.", hint
            )
        require_folder_for(folder)
        return
    found = {
        str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir() and p.parent.name != _BYTECODE
    }
    if not found:
        return
    try:
        listed = {MANIFEST, *_read(folder).files}
    except ArtifactError:
        listed = set()  # without a list of ours every file in it is somebody else's
    if other := sorted(found - listed):
        raise UsageError(f"--save-polygraphy {folder} holds {other[0]}, which was not saved there.", hint)
