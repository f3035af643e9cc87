"""The readers of a run's records: each takes its file, or says what is wrong in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

from gacq_deploy.artifact.artifact import load_artifact
from gacq_deploy.artifact.samples_record import load_samples_record
from gacq_deploy.bench.report import load_bench
from gacq_deploy.build_trt.manifest import engines_of
from gacq_deploy.calibration.checkpoint import load_checkpoint
from gacq_deploy.errors import ArtifactError
from gacq_deploy.export.record import read_record
from gacq_deploy.origin.check import check_origin
from gacq_deploy.origin.keys import TrustedKeys
from gacq_deploy.origin.signature import load_signature
from gacq_deploy.parity.probe_folder import saved_commands
from gacq_deploy.parity.report import load_report
from gacq_deploy.report.sensitivity import sensitivity_part
from gacq_deploy.report.tables import compiled_table
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.sensitivity.report import load_sensitivity
from gacq_deploy.workflow.picture import load_comparison
from tests.support.fuzz.document_changes import changed_document, sealed_again
from tests.support.fuzz.inputs import Input
from tests.support.fuzz.reader import FuzzedReader, Opened
from tests.support.fuzz.run_of_records import SAVED, run_of_records

TRIES = 400


@dataclass(frozen=True)
class RecordFile:
    """Who reads which file of a run, and which keys of it no digest covers."""

    file: str
    """``KEY`` stands for an engine's."""
    read: Callable[[RunDirectory], object]
    beside: tuple[str, ...] = ()

    def path(self, run: RunDirectory) -> Path:
        """Return where it lies."""
        return run.root / self.file.replace("KEY", next(run.engines.glob("*/")).name)


def _read_parity(run: RunDirectory) -> object:
    report = load_report(run.parity_json)
    return report.to_text(), report.failed_gates, report.remarks, report.why_stale(run)


def _read_engines(run: RunDirectory) -> object:
    return compiled_table([record for _, record in engines_of(run)])


def _read_signature(run: RunDirectory) -> object:
    signature = load_signature(run)
    check_origin(run, TrustedKeys(run.root / "keys.pem", frozenset((signature.key,))))
    return signature


FILES: Mapping[str, RecordFile] = {
    "artifact": RecordFile(
        "artifact/manifest.json", lambda run: load_artifact(run.artifact), beside=("build",)
    ),
    "samples": RecordFile("samples.json", lambda run: load_samples_record(run.samples_record_path)),
    "checkpoint": RecordFile(
        "work/checkpoint.json", lambda run: load_checkpoint(run.work / "checkpoint.json")
    ),
    "export": RecordFile("onnx/manifest.json", read_record),
    "parity": RecordFile("parity.json", _read_parity),
    "bench": RecordFile("bench.json", lambda run: load_bench(run.bench_json).speed("a/int8.onnx", 1)),
    "sensitivity": RecordFile("sensitivity.json", lambda run: sensitivity_part(load_sensitivity(run))),
    "engine": RecordFile("engines/KEY/manifest.json", _read_engines),
    "engine-order": RecordFile("engines/order.json", _read_engines),
    "comparison": RecordFile("comparison.json", lambda run: load_comparison(run).why_stale(run)),
    "signature": RecordFile("signature.json", _read_signature),
    "probe-folder": RecordFile(f"{SAVED}/manifest.json", lambda run: saved_commands(run.root / SAVED)),
}
"""Reader -> its file."""


def restructured(rng: Random, tried: Input, beside: tuple[str, ...] = ()) -> Input:
    """Return a record with changed values, sealed again where it has a seal."""
    text = sealed_again(rng, changed_document(rng, json.loads(tried.data)), beside)
    return tried.holding(text.encode("utf-8", "surrogatepass"))


def _row(record: RecordFile) -> FuzzedReader:
    def open_in(folder: Path) -> Opened:
        run = run_of_records(folder)
        path = record.path(run)

        def read(tried: Input) -> None:
            path.write_bytes(tried.data)
            record.read(run)

        return Opened((Input("json", path.read_bytes()),), read)

    def restructure(rng: Random, tried: Input) -> Input:
        return restructured(rng, tried, record.beside)

    return FuzzedReader(open_in, restructure, ArtifactError, TRIES)


RECORDS: Mapping[str, FuzzedReader] = {name: _row(record) for name, record in FILES.items()}
