"""Which engines does a run directory hold, and is each still what was built, from the graph that is there?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from gacq_deploy.backends.trt.deserialized import Expected
from gacq_deploy.backends.trt.library import Device
from gacq_deploy.build_trt.coverage import CoverageRecord, holds
from gacq_deploy.build_trt.options import CompileOptions
from gacq_deploy.engines.catalogue import CANONICAL, FLOAT, TrtName
from gacq_deploy.errors import ArtifactError, quoted
from gacq_deploy.export.record import ExportRecord
from gacq_deploy.recipe.build import FloatType
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.storage.digests import digest_json
from gacq_deploy.storage.files import write_json
from gacq_deploy.storage.records import ListedFile, Record, as_record, load_record, shaped_by, verify_listed
from gacq_deploy.storage.sealed import read_sealed, write_sealed

_SCHEMA = "gacq-deploy/engine/1"
MANIFEST, ENGINE_FILE, LAYERS, NETWORK = "manifest.json", "engine.plan", "layers.json", "network.onnx"
ORDER = "order.json"
ENGINE_FILES = (ENGINE_FILE, LAYERS, NETWORK, f"{NETWORK}.data")
"""What a manifest may vouch for: a name with a path in it must not lead out of the folder."""
LICENCE = (
    "The engine was made by NVIDIA's library under its own licence; it holds weights of the model and kernels of the "
    "library. Read both licences before giving it to others."
)
_KEY_LENGTH = 16


class DeviceRecord(Record):
    """The GPU an engine was tuned on."""

    name: str
    compute_capability: str
    driver: int


class EngineInputs(Record):
    """Everything an engine is made from; its digest is the engine's key."""

    graph: Literal["int8.onnx", "float.onnx"]
    graph_sha256: str
    float_type: FloatType
    library: TrtName
    version: str
    options: CompileOptions
    device: DeviceRecord | None

    @property
    def key(self) -> str:
        """Name of the engine's folder."""
        document = self.model_dump(mode="json")
        del document["options"]["timing_cache"]  # where timings are kept changes nothing
        return digest_json(document)[:_KEY_LENGTH]


class EngineOrder(Record):
    """What ``engines/order.json`` says."""

    schema_: Literal["gacq-deploy/engine-order/1"] = Field(
        default="gacq-deploy/engine-order/1", alias="schema"
    )
    newest_first: tuple[str, ...]
    """Keys of the engines, the one asked for last first."""


class EngineManifest(Record):
    """What ``engines/<key>/manifest.json`` says."""

    schema_: Literal["gacq-deploy/engine/1"] = Field(default="gacq-deploy/engine/1", alias="schema")
    inputs: EngineInputs
    files: dict[str, ListedFile]
    coverage: Annotated[dict[str, Any], shaped_by(CoverageRecord)] | None
    """Of a quantized graph; see ``Coverage.document``."""
    least_coverage: float = Field(default=0.95, ge=0, le=1)
    """The gate it was last judged by: share of the planned layers that must be INT8."""
    half: dict[str, Any] | None = None
    """Range report of the conversion to float16."""
    step_policy: dict[str, Any] | None = None
    """Which sampler steps run in the float engine, if any do."""
    seconds: float
    peak_mb: int
    licence: str = LICENCE

    def why_stale(self, export: ExportRecord) -> str | None:
        """Return why this was built from another graph than the exported one; None: it was not."""
        if self.inputs.graph_sha256 == graph_digest(export, self.inputs.graph):
            return None
        return f"{self.inputs.graph} changed since it was built"

    @property
    def is_int8(self) -> bool:
        """Tell whether this is the engine, and not its float baseline."""
        return self.inputs.graph == CANONICAL

    @property
    def label(self) -> str:
        """``tensorrt-rtx-1.7.1.116``."""
        return f"{self.inputs.library}-{self.inputs.version}"

    @property
    def expected(self) -> Expected:
        """What the runtime holds library and GPU against, before it deserializes the engine."""
        options, device = self.inputs.options, self.inputs.device
        targets = options.compute_capabilities or None
        if targets is None and device is not None and not options.hw_compat:
            targets = (device.compute_capability,)
        return Expected(self.inputs.library, self.inputs.version, targets, options.version_compat)

    def runs_on(self, device: Device | None) -> bool:
        """Tell whether the engine may run as it is: on a GPU it was built for, with its weights in it."""
        if device is None or self.inputs.options.strip:
            return False
        targets = self.expected.compute_capabilities
        return targets is None or device.compute_capability in targets

    def save(self, folder: Path) -> None:
        """Write the manifest with its own digest."""
        write_sealed(folder / MANIFEST, self.model_dump(mode="json", by_alias=True))


def read_manifest(folder: Path, hint: str) -> EngineManifest:
    """Return what an engine's manifest says, without a look at the files.

    Raises:
        ArtifactError: missing, altered, of another version, or of another folder.
    """
    body = read_sealed(folder / MANIFEST, what="Engine manifest", hint=hint)
    if body.get("schema") != _SCHEMA:
        raise ArtifactError(
            f"{folder / MANIFEST} is not an engine manifest of this version ({_SCHEMA}).", hint
        )
    record = as_record(EngineManifest, body, where=str(folder / MANIFEST), hint=hint)
    if record.inputs.key != folder.name:
        raise ArtifactError(f"{folder} holds the engine {record.inputs.key}: it was moved or copied.", hint)
    return record


def read_engine(folder: Path, hint: str) -> EngineManifest:
    """Return what an engine's manifest says, every file checked against it.

    Raises:
        ArtifactError: as for :func:`read_manifest`, or a file is missing or altered.
    """
    record = read_manifest(folder, hint)
    verify_listed(
        folder / MANIFEST, record.files, known=ENGINE_FILES, needed=ENGINE_FILE, what="Engine file", hint=hint
    )
    return record


def engines_of(directory: RunDirectory) -> Iterator[tuple[Path, EngineManifest]]:
    """Yield folder and record of every engine of a run, the one asked for last first; each is checked when reached.

    The order is written down: a copy of the run has the same, whatever times the copy gave its files. Engines that are
    in no order come last, by name.

    Raises:
        ArtifactError: as for :func:`read_engine`; the order is damaged.
    """
    order = _order(directory)
    folders = [path.parent for path in directory.engines.glob(f"*/{MANIFEST}")]
    places = {key: place for place, key in enumerate(order)}
    for folder in sorted(folders, key=lambda f: (places.get(f.name, len(order)), f.name)):
        yield (
            folder,
            read_engine(
                folder, f"Delete {quoted(folder)}, then run `gacq-deploy build-trt {quoted(directory.root)}`."
            ),
        )


def make_newest(directory: RunDirectory, folder: Path) -> None:
    """Let ``folder`` be the engine that :func:`find_engine` returns: the one that was asked for last.

    Raises:
        ArtifactError: the order is damaged.
        ResourceError, UsageError: it cannot be written.
    """
    before = _order(directory)
    others = (key for key in before if key != folder.name and (directory.engines / key / MANIFEST).is_file())
    order = [folder.name, *others]
    if order != before:
        record = EngineOrder(newest_first=tuple(order))
        write_json(directory.engines / ORDER, record.model_dump(mode="json", by_alias=True))


def _order(directory: RunDirectory) -> list[str]:
    """Return the keys of the engines that were asked for, the newest first; none where no order was written."""
    path = directory.engines / ORDER
    if not path.exists():
        return []
    hint = f"Delete it, then run `gacq-deploy build-trt {quoted(directory.root)}`."
    return list(load_record(EngineOrder, path, what="Order of the engines", hint=hint).newest_first)


def find_engine(
    directory: RunDirectory,
    export: ExportRecord,
    library: TrtName,
    *,
    graph: str = CANONICAL,
) -> tuple[Path, EngineManifest]:
    """Return the newest engine of ``library`` that was built from the graphs that are there now.

    One that failed its own coverage gate is returned only if there is no other: the gate then speaks.

    Args:
        directory: the run.
        export: its checked export record.
        library: `tensorrt` or `tensorrt-rtx`.
        graph: ``int8.onnx``, or ``float.onnx`` for the baseline.

    Raises:
        ArtifactError: none was built, all are stale, or the newest is damaged.
    """
    baseline = " --fp16-baseline" if graph == FLOAT else ""
    hint = f"Run `gacq-deploy build-trt {quoted(directory.root)} --backend {library}{baseline}`."
    stale, below = 0, None
    for folder, record in engines_of(directory):
        if record.inputs.library != library or record.inputs.graph != graph:
            continue
        if record.why_stale(export):
            stale += 1
        elif record.coverage is not None and not holds(record.coverage, record.least_coverage):
            below = below or (folder, record)
        else:
            return folder, record
    if below is not None:
        return below
    if stale:
        raise ArtifactError(
            f"The {stale} {library} engines in {directory.engines} are stale: {graph} changed since.", hint
        )
    raise ArtifactError(f"{directory.root} holds no {library} engine of {graph}.", hint)


def graph_digest(export: ExportRecord, graph: str) -> str:
    """Return one digest of a graph and its weight file."""
    names = sorted(n for n in (graph, f"{graph}.data") if n in export.files)
    return digest_json({name: export.files[name].sha256 for name in names})
