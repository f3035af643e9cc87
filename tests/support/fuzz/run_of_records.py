"""What does a run directory hold that has every record? Each is as its writer leaves it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gacq_deploy.artifact.artifact import load_artifact
from gacq_deploy.artifact.call import CallRecord, StateRecord
from gacq_deploy.artifact.samples_record import LayoutRecord, SamplesRecord
from gacq_deploy.bench.report import BenchReport, Host, Ratio, Spread
from gacq_deploy.build_trt.coverage import Coverage, NodeCoverage
from gacq_deploy.build_trt.manifest import read_engine
from gacq_deploy.calibration.checkpoint import Checkpoint
from gacq_deploy.export.record import ExportRecord
from gacq_deploy.origin.keys import SigningKey
from gacq_deploy.origin.signature import RunSignature, production_files
from gacq_deploy.parity.report import SegmentRecord, assemble, measured
from gacq_deploy.recipe.load import load_recipe
from gacq_deploy.recipe.sections import ParitySection
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.sensitivity.report import save_sensitivity
from gacq_deploy.storage.digests import describe_file
from gacq_deploy.storage.files import write_json
from gacq_deploy.storage.records import ListedFile
from gacq_deploy.storage.sealed import write_sealed
from gacq_deploy.workflow.picture import PictureRecord
from tests.support.artifacts.engine_folder import made_from, written
from tests.support.artifacts.sensitivity import example_study

GOLDEN = Path(__file__).parents[2] / "golden" / "artifact-v1"
SHA = "0" * 64
SAVED = "saved"
"""Folder of what parity saves for other tools."""


def run_of_records(root: Path) -> RunDirectory:
    """Write a run directory with every record in it."""
    run = RunDirectory(root)
    load_recipe("fashion-w8a8").save(run.recipe_path)
    shutil.copytree(GOLDEN, run.artifact)
    about = {"artifact_sha256": load_artifact(run.artifact).manifest_digest, "files": {}}
    _write_samples(run)
    Checkpoint(run.work, "key").put("ranges", {"a": np.ones(2)})
    run.onnx.mkdir()
    _write_export(run, about["artifact_sha256"])
    _write_parity(run, about)
    _write_bench(run, about)
    save_sensitivity(example_study("w", subject=about), run)
    written(run.root, made_from(SHA))
    engine = next(run.engines.glob("*/"))
    coverage = Coverage((NodeCoverage("n", "Conv", "mid.conv", int8=False, kernel="k"),), {"int8": 0})
    read_engine(engine, "").model_copy(update={"coverage": coverage.document()}).save(engine)
    _write_comparison(run)
    _write_saved(run.root / SAVED)
    _sign(run)
    return run


def _sign(run: RunDirectory) -> None:
    key = SigningKey(Ed25519PrivateKey.generate())
    files = {name: ListedFile(**describe_file(path)) for name, path in production_files(run).items()}
    unsigned = RunSignature(key=key.public, files=files)
    unsigned.model_copy(update={"signature": key.sign(unsigned.message)}).save(run.signature_json)


def _write_saved(folder: Path) -> None:
    folder.mkdir()
    listed = {"files": ["inputs.json"], "commands": [{"about": "compare", "line": "polygraphy run"}]}
    write_json(folder / "manifest.json", {"schema": "gacq-deploy/polygraphy/1", **listed})


def _write_samples(run: RunDirectory) -> None:
    record = SamplesRecord(
        key="key",
        sha256=SHA,
        probe_sha256=SHA,
        call=CallRecord(state=StateRecord(shape=(1, 2, 2))),
        scheduler={"_class_name": "DDIMScheduler", "num_train_timesteps": 10},
        layout=LayoutRecord(branches=2, by_image=False, negative=0),
        guidance_scale=7.5,
    )
    write_json(run.samples_record_path, record.model_dump(mode="json"))


def _write_export(run: RunDirectory, artifact_sha256: str) -> None:
    ExportRecord(
        artifact_sha256=artifact_sha256,
        recipe_sha256=SHA,
        settings_sha256=SHA,
        opset=20,
        files={"float.onnx": ListedFile(sha256=SHA, bytes=3)},
        quantized_sites={"int8.onnx": 3},
        lint=(),
        self_check={"float.onnx": 0.0},
    ).save(run.onnx_manifest)


def _write_parity(run: RunDirectory, about: dict[str, Any]) -> None:
    segments = tuple(SegmentRecord(site=s, values=3, equal_share=1.0, steps=0.0) for s in ("a", "output"))
    local = {"unchecked": 0.0, "equal_share": 1.0, "steps": 0.0, "output_relative_error": 0.0}
    row = {"bucket": 0, "timestep_max": 9, "timestep_min": 0, "sqnr_db": 30.0, "cosine": 1.0}
    assemble(
        (
            measured("local", "a", "int8.onnx@ort-cpu", local, segments=segments),
            measured("budget", "a", "int8.onnx@ort-cpu", {"eps_sqnr_db": 30.0}, by_timestep=(row,)),
        ),
        ParitySection(),
        trajectory={"images": 4, "by_step": {"int8.onnx@ort-cpu": [{"timestep": 9, "mean": 1.0}]}},
        noise_floor={"float.onnx": {"rerun_max_abs": 0.0}},
        subject={
            **about,
            "processor": {"machine": "x", "name": "y"},
            "not_judged": {"a": "b"},
            "step_policy": {},
        },
    ).save(run.parity_json)


def _write_bench(run: RunDirectory, about: dict[str, Any]) -> None:
    spread = Spread(median=2.0, q1=1.0, q3=2.0, low=1.0, high=3.0)
    BenchReport(
        subject=about,
        host=Host(cpu="c", cores=1, platform="p", python="3", load_average=0.0),
        threads=1,
        repeats=1,
        batches=(1,),
        candidates=(),
        ratios=(
            Ratio(candidate="a/int8.onnx", baseline="ort-cpu/float.onnx", batch=1, cpu=spread, wall=spread),
        ),
        skipped={},
    ).save(run.bench_json)


def _write_comparison(run: RunDirectory) -> None:
    run.comparison_png.write_bytes(b"png")
    picture = ListedFile(**describe_file(run.comparison_png))
    record = PictureRecord(
        graphs={}, step_policy=None, seeds=(0,), conditions=("",), engine="e", psnr_db=(1.0,), picture=picture
    )
    write_sealed(run.comparison_json, record.model_dump(mode="json", by_alias=True))
