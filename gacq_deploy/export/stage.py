"""The export stage, in order: float graph, Q/DQ graphs, lint, self-check, manifest."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import ref

import numpy as np
import onnx

from gacq_deploy.artifact.artifact import CalibrationArtifact, load_artifact
from gacq_deploy.artifact.probe import Probe
from gacq_deploy.backends.pieces import open_frugally
from gacq_deploy.engines.catalogue import FLOAT, TARGETS, graphs_for
from gacq_deploy.errors import ArtifactError, ExportError, UsageError
from gacq_deploy.export.qdq import check_legal, expected_sites, needed_opset
from gacq_deploy.export.quantized import placement_of, quantized_graph
from gacq_deploy.export.record import (
    EXPORT_FILES,
    ExportRecord,
    LintCounts,
    artifact_digest,
    load_export,
    read_record,
)
from gacq_deploy.export.same_function import FloatReference, float_reference, require_same
from gacq_deploy.graph.files import FindValues, read_graph, weight_store, write_graph
from gacq_deploy.graph.index import opset_of
from gacq_deploy.graph.weights import Store, with_values
from gacq_deploy.metrics.arrays import euclidean_error
from gacq_deploy.processes.freed_memory import give_back_memory, large_blocks_apart
from gacq_deploy.progress import SILENT, Reporter
from gacq_deploy.recipe.sections import Recipe
from gacq_deploy.run_directory import AnyRun, RunDirectory, as_run
from gacq_deploy.spec import Array
from gacq_deploy.storage.digests import describe_file, digest_json
from gacq_deploy.storage.files import atomic_directory, scratch
from gacq_deploy.storage.records import ListedFile
from gacq_deploy.storage.room import check_disk
from gacq_deploy.storage.sealed import require_current

if TYPE_CHECKING:
    from gacq_deploy.models.base import Denoiser

EXPORT_STAGES = (
    "export the float graph",
    "self-check: torch's answers",
    "quantize graphs",
    "self-check: the graphs' answers",
)
"""As they are announced: of a large model the checks take longer than all the rest."""
_CHECKED_ROWS = range(2, 17)
"""Fewest and most: a first look; parity runs every row of the probe."""
_CHECKED_BYTES = 4 << 30
"""Of weights, counted once for each row: the look at a large model may not take hours."""


def export_onnx(
    directory: AnyRun,
    *,
    targets: Sequence[str] | None = None,
    allow_python: bool = False,
    report: Reporter = SILENT,
) -> ExportRecord:
    """Write ``float.onnx``, ``int8.onnx`` and ``int8.cpu.onnx`` and prove that they run; once.

    A failure, whatever its cause, leaves the graphs of an earlier export as they were. Graphs that an earlier
    export made from the same artifact and settings are kept: they are made again with the others.

    Args:
        directory: holds the resolved recipe and the artifact; receives ``onnx/``, replaced as a whole.
        targets: engines that the graphs are for, of ``engines.catalogue.TARGETS``; default: the recipe's.
        allow_python: run the Python function that the run's recipe names as its model.
        report: progress.

    Raises:
        UsageError: the model is a Python function, and that is not allowed.
        ArtifactError: no or another artifact than recipe and model ask for.
        ExportError: a graph cannot be made, breaks a lint rule, or computes something else than it should.
        BackendUnavailable: ONNX Runtime is missing, so nothing can be checked.
        ResourceError: the disk is full, or another process uses the directory.
    """
    directory = as_run(directory)
    recipe = directory.load_recipe().allowing_python(allow_python)
    with directory.writing():
        wanted = _with_kept(directory, recipe, graphs_for(_known(targets or recipe.export.targets)))
        current = _up_to_date(directory, recipe, wanted)
        if current is not None:
            report.note("export is already done")
            return current
        artifact = load_artifact(directory.artifact)
        probe = _checked_probe(recipe, artifact, directory)
        with scratch(directory.onnx, folder=True) as staging, large_blocks_apart():
            return _Export(directory, recipe, artifact, probe, wanted, staging, report).run()


@dataclass
class _Export:
    """What the steps of one export share."""

    directory: RunDirectory
    recipe: Recipe
    artifact: CalibrationArtifact
    probe: Probe
    wanted: tuple[str, ...]
    staging: Path
    report: Reporter
    files: dict[str, ListedFile] = field(default_factory=dict)
    sites: dict[str, int] = field(default_factory=dict)
    checked: tuple[dict[str, Array], Array] = field(default_factory=lambda: ({}, np.empty(0)))
    """Rows of the probe that the graphs are checked on, and torch's answers."""
    reference: FloatReference | None = None
    """What torch answers; there as soon as the float graph is."""
    lint: list[LintCounts] = field(default_factory=list)

    def run(self) -> ExportRecord:
        """Write, lint and check the graphs beside their place, then put them there all at once."""
        # apart from what follows: torch's exporter does not say how far it is
        self.report.stage(EXPORT_STAGES[0], 1)
        denoiser = self._denoiser()
        graph = self._float_graph(denoiser)
        self.report.advance()
        self.report.stage(EXPORT_STAGES[1], 1)
        self.reference = float_reference(denoiser, *self.checked)
        weights = [ref(parameter) for parameter in denoiser.module.parameters()]
        del denoiser  # the graphs need no model beside them
        if any(weight() is not None for weight in weights):
            gc.collect()  # the model refers to itself; for others it would look through all objects for nothing
        give_back_memory()
        self.report.advance()
        self.report.stage(EXPORT_STAGES[2], len(self.wanted) - 1)
        for name in self.wanted[1:]:
            with weight_store(graph, self.staging) as store:
                self._quantize(name, graph, store)
        record = ExportRecord(
            artifact_sha256=artifact_digest(self.directory),
            recipe_sha256=self.recipe.digest,
            settings_sha256=_settings_digest(self.recipe),
            opset=opset_of(graph),
            files=self.files,
            quantized_sites=self.sites,
            lint=tuple(self.lint),
            self_check=self._self_check(),
        )
        record.save(self.staging / self.directory.onnx_manifest.name)
        self._publish()
        return record

    def _float_graph(self, denoiser: Denoiser) -> onnx.ModelProto:
        """Write the float graph; return it with its weights where they lie."""
        from gacq_deploy.export.float_graph.graph import weightless_graph

        # as they are stored; the quantized graphs come on top
        weights = sum(p.numel() * p.element_size() for p in denoiser.module.parameters())
        check_disk(weights, self.directory.onnx, "the float graph")
        export = self.recipe.export
        opset = needed_opset(self.artifact.plan, export.opset)
        if opset != export.opset:
            self.report.note(f"opset {opset} instead of {export.opset}: INT4 weights in blocks need it")
        graph = weightless_graph(denoiser, opset=opset, dynamic_resolution=export.dynamic_resolution)
        give_back_memory()
        self._write(FLOAT, graph.model, partial(graph.find, denoiser.module))
        self.checked = _probe_rows(self.probe, _CHECKED_BYTES // max(weights, 1))
        return read_graph(self.staging / FLOAT)

    def _denoiser(self) -> Denoiser:
        from gacq_deploy.models.source import load_float_denoiser

        denoiser = load_float_denoiser(self.recipe.model, self.artifact.model, keep_stored=True)
        if denoiser.record.weights_sha256 != self.artifact.model.weights_sha256:
            raise ArtifactError(
                f"Model '{self.recipe.model.source}' has weights {denoiser.record.weights_sha256[:12]}, the "
                f"artifact was calibrated on {self.artifact.model.weights_sha256[:12]}.",
                "Restore the model's weights, or calibrate into another folder with -o.",
            )
        return denoiser

    def _quantize(self, name: str, source: onnx.ModelProto, store: Store) -> None:
        graph, lint = quantized_graph(name, source, self.artifact, store=store)
        self.lint += lint
        self.sites[name] = len(expected_sites(self.artifact.plan, placement_of(name)))
        self._write(name, graph)
        self.report.advance()

    def _write(self, name: str, graph: onnx.ModelProto, find: FindValues = with_values) -> None:
        limit = self.recipe.export.external_data_mb
        for path in write_graph(graph, self.staging / name, external_data_mb=limit, find=find):
            self.files[path.name] = ListedFile(**describe_file(path))
        if name != FLOAT and f"{name}.data" in self.files:
            check_legal(self.staging / name)

    def _publish(self) -> None:
        """Swap the folder; of the old one only files that no export wrote come along."""
        own = (*EXPORT_FILES, self.directory.onnx_manifest.name)
        with atomic_directory(self.directory.onnx, own) as folder:
            for name in (*self.files, self.directory.onnx_manifest.name):
                (self.staging / name).rename(folder / name)

    def _self_check(self) -> dict[str, float]:
        self.report.stage(EXPORT_STAGES[3], len(self.wanted))
        inputs, expected = self.checked
        outputs = {FLOAT: self._check_float()[: len(expected)]}
        errors = {FLOAT: euclidean_error(outputs[FLOAT], expected)}
        self.report.advance()
        for name in self.wanted[1:]:
            outputs[name] = self._run(self.staging / name, inputs)
            self.report.advance()
            _check_quantized(name, outputs[name], outputs[FLOAT])
            errors[name] = euclidean_error(outputs[name], outputs[FLOAT])
        return errors

    def _check_float(self) -> Array:
        """Return what the float graph answers, if that is what torch does."""
        assert self.reference is not None, "the float graph comes first"
        path = self.staging / FLOAT
        output = self._run(path, self.reference.inputs)
        require_same(path, output, self.reference, self._denoiser)
        return output

    def _run(self, path: Path, inputs: Mapping[str, Array]) -> Array:
        with open_frugally(path, inputs, threads=self.recipe.calibration.threads) as engine:
            return engine.run(inputs)["output"]


def _probe_rows(probe: Probe, count: int) -> tuple[dict[str, Array], Array]:
    """Return about ``count`` rows of the probe, spread over it, and torch's float outputs."""
    rows = len(probe.outputs["float"])
    wanted = min(rows, max(count, _CHECKED_ROWS.start), _CHECKED_ROWS.stop - 1)
    chosen = np.unique(np.linspace(0, rows - 1, wanted).round().astype(int))
    return {name: value[chosen] for name, value in probe.inputs.items()}, probe.outputs["float"][chosen]


def _check_quantized(name: str, output: Array, reference: Array) -> None:
    if not bool(np.isfinite(output).all()):
        raise ExportError(
            f"{name} returns NaN or Inf on the probe inputs.", "Calibrate again; inspect the scales."
        )
    if np.array_equal(output, reference):
        raise ExportError(
            f"{name} returns exactly what {FLOAT} does: quantization took no effect.",
            "Please report this model.",
        )


def _settings_digest(recipe: Recipe) -> str:
    return digest_json(recipe.export.model_dump(mode="json", exclude={"targets"}))


def _known(targets: Sequence[str]) -> Sequence[str]:
    for name in targets:
        if name not in TARGETS:
            raise UsageError(f"No graph is made for '{name}'.", f"Choose from: {', '.join(TARGETS)}.")
    return targets


def _with_kept(directory: RunDirectory, recipe: Recipe, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Add the graphs that the current export vouches for, damaged ones included, unless it is of other making."""
    try:
        record = read_record(directory)
    except ArtifactError:
        return wanted  # no export yet, or an unreadable one that vouches for nothing
    same = record.artifact_sha256 == artifact_digest(directory)
    kept = record.graphs if same and record.settings_sha256 == _settings_digest(recipe) else ()
    return tuple(name for name in graphs_for(TARGETS) if name in wanted or name in kept)


def _up_to_date(directory: RunDirectory, recipe: Recipe, wanted: tuple[str, ...]) -> ExportRecord | None:
    try:
        record = load_export(directory)
    except ArtifactError:
        return None  # absent, stale or damaged: exactly what a new export mends
    same = record.settings_sha256 == _settings_digest(recipe) and set(wanted) <= set(record.files)
    return record if same else None


def _checked_probe(recipe: Recipe, artifact: CalibrationArtifact, directory: RunDirectory) -> Probe:
    """Return the artifact's probe if the artifact is what the recipe asks for."""
    hint = "Restore recipe.yaml, or calibrate by it into another folder with -o."
    require_current(directory.artifact, artifact.why_stale(recipe.decisive()), hint)
    if artifact.probe is None:
        raise ArtifactError(
            f"Artifact {directory.artifact} has no probe to check the graphs with.", "Calibrate again."
        )
    return artifact.probe


__all__ = ["ExportRecord", "euclidean_error", "export_onnx", "load_export"]
