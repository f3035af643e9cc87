"""Whatever stands in a record, its reader takes it or says what is wrong: one contract, a row a reader.

Each healthy file is the writer's own. Damage is seeded: values of other types at any place, sealed again as an attacker
would, and texts that are no document of ours.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gacq_deploy.artifact.artifact import load_artifact
from gacq_deploy.artifact.call import CallRecord, StateRecord
from gacq_deploy.artifact.samples_record import LayoutRecord, SamplesRecord, load_samples_record
from gacq_deploy.bench.report import BenchReport, Host, Ratio, Spread, load_bench
from gacq_deploy.build_trt.coverage import Coverage, NodeCoverage
from gacq_deploy.build_trt.manifest import engines_of, read_engine
from gacq_deploy.calibration.checkpoint import Checkpoint, load_checkpoint
from gacq_deploy.errors import ArtifactError, GacqError, RecipeError, UsageError
from gacq_deploy.export.record import ExportRecord, read_record
from gacq_deploy.models.folders import read_shards
from gacq_deploy.origin.check import check_origin
from gacq_deploy.origin.keys import SigningKey, TrustedKeys
from gacq_deploy.origin.signature import RunSignature, load_signature, production_files
from gacq_deploy.parity.probe_folder import saved_commands
from gacq_deploy.parity.report import SegmentRecord, assemble, load_report, measured
from gacq_deploy.recipe.load import load_recipe
from gacq_deploy.recipe.sections import ParitySection
from gacq_deploy.report.sensitivity import sensitivity_part
from gacq_deploy.report.tables import compiled_table
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.samples.prompts import read_prompts
from gacq_deploy.sensitivity.report import load_sensitivity, save_sensitivity
from gacq_deploy.storage.digests import canonical_json, describe_file, digest_json
from gacq_deploy.storage.files import write_json
from gacq_deploy.storage.records import ListedFile
from gacq_deploy.storage.sealed import write_sealed
from gacq_deploy.workflow.picture import PictureRecord, load_comparison
from tests.support.artifacts.engine_folder import made_from, written
from tests.support.artifacts.sensitivity import example_study

GOLDEN = Path(__file__).parents[1] / "golden" / "artifact-v1"
SHA = "0" * 64
FLIPS = 200
"""Damaged values a reader."""
OTHER_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 3, 10**17, 1.5, 1e300, "", "x", "1", [], {}, [[]], [None], {"a": 1}, "\x1b]0;x\x07",
)  # fmt: skip
TEXTS: tuple[bytes, ...] = (
    b"", b"{", b"[]", b"null", b"\xff\xfe\x00", b'{"a": NaN}', b'{"a": -Infinity}', b'{"a": 1e999}',
    b'{"a": "\\ud800"}', b'{"\\udc00": 1}', b'{"a": 1, "a": 2}', b'{"a": ' + b"9" * 5000 + b"}",
    b'{"a": 36893488147419103232}', b"[" * 100_000, b'{"a":' * 300 + b"1" + b"}" * 300, b'{"a": "\x00"}',
)  # fmt: skip
"""No document of ours, whatever the reader."""


@dataclass(frozen=True)
class Reader:
    """Who reads which file of a run, and how its digest covers it."""

    file: str
    read: Callable[[RunDirectory], object]
    sealed: bool = False
    beside: tuple[str, ...] = ()


def _read_parity(run: RunDirectory) -> object:
    report = load_report(run.parity_json)
    return report.to_text(), report.failed_gates, report.remarks, report.why_stale(run)


def _read_engines(run: RunDirectory) -> object:
    return compiled_table([record for _, record in engines_of(run)])


def _read_signature(run: RunDirectory) -> object:
    signature = load_signature(run)
    check_origin(run, TrustedKeys(run.root / "keys.pem", frozenset((signature.key,))))
    return signature


def _engine(run: RunDirectory) -> Path:
    return next(run.engines.glob("*/"))


READERS = {
    "artifact": Reader(
        "artifact/manifest.json", lambda run: load_artifact(run.artifact), sealed=True, beside=("build",)
    ),
    "samples": Reader("samples.json", lambda run: load_samples_record(run.samples_record_path)),
    "checkpoint": Reader("work/checkpoint.json", lambda run: load_checkpoint(run.work / "checkpoint.json")),
    "export": Reader("onnx/manifest.json", read_record, sealed=True),
    "parity": Reader("parity.json", _read_parity, sealed=True),
    "bench": Reader(
        "bench.json", lambda run: load_bench(run.bench_json).speed("a/int8.onnx", 1), sealed=True
    ),
    "sensitivity": Reader(
        "sensitivity.json", lambda run: sensitivity_part(load_sensitivity(run)), sealed=True
    ),
    "engine": Reader("engines/KEY/manifest.json", _read_engines, sealed=True),
    "engine order": Reader("engines/order.json", _read_engines),
    "comparison": Reader("comparison.json", lambda run: load_comparison(run).why_stale(run), sealed=True),
    "signature": Reader("signature.json", _read_signature, sealed=True),
    "probe folder": Reader("saved/manifest.json", lambda run: saved_commands(run.root / "saved")),
    "weight index": Reader(
        "model.safetensors.index.json", lambda run: read_shards(run.root / "model.safetensors.index.json")
    ),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """Return a run directory that holds every record, each as its writer leaves it."""
    run = RunDirectory(tmp_path_factory.mktemp("run"))
    recipe = load_recipe("fashion-w8a8")
    recipe.save(run.recipe_path)
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
    coverage = Coverage((NodeCoverage("n", "Conv", "mid.conv", int8=False, kernel="k"),), {"int8": 0})
    manifest = read_engine(_engine(run), "")
    manifest.model_copy(update={"coverage": coverage.document()}).save(_engine(run))
    _write_comparison(run)
    (run.root / "saved").mkdir()
    listed = {"files": ["inputs.json"], "commands": [{"about": "compare", "line": "polygraphy run"}]}
    write_json(run.root / "saved" / "manifest.json", {"schema": "gacq-deploy/polygraphy/1", **listed})
    _sign(run)
    write_json(run.root / "model.safetensors.index.json", {"metadata": {}, "weight_map": {"a": "b"}})
    return run


def _sign(run: RunDirectory) -> None:
    key = SigningKey(Ed25519PrivateKey.generate())
    files = {name: ListedFile(**describe_file(path)) for name, path in production_files(run).items()}
    unsigned = RunSignature(key=key.public, files=files)
    unsigned.model_copy(update={"signature": key.sign(unsigned.message)}).save(run.signature_json)


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


def _file(run: RunDirectory, reader: Reader) -> Path:
    return run.root / reader.file.replace("KEY", _engine(run).name)


def _read_damaged(run: RunDirectory, reader: Reader, data: bytes) -> GacqError | None:
    """Put ``data`` in the file's place and read it; return the refusal. Anything else that is raised is a bug."""
    path = _file(run, reader)
    healthy = path.read_bytes()
    path.write_bytes(data)
    try:
        reader.read(run)
    except GacqError as error:
        return error
    finally:
        path.write_bytes(healthy)
    return None


def _places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        yield (*place, key)
        yield from _places(inner, (*place, key))


def _damaged(document: dict[str, Any], reader: Reader, random: Random) -> dict[str, Any]:
    changed = copy.deepcopy(document)
    *parents, last = random.choice([place for place in _places(document) if place != ("digest",)])
    inside: Any = changed
    for key in parents:
        inside = inside[key]
    match random.choice(("other", "other", "gone", "more")):
        case "gone":
            del inside[last]
        case "more" if isinstance(inside[last], dict):
            inside[last]["unheard of"] = 1
        case "more":
            inside[last] = [inside[last]]
        case _:
            inside[last] = random.choice(OTHER_VALUES)
    if reader.sealed:
        body = {k: v for k, v in changed.items() if k != "digest" and k not in reader.beside}
        changed["digest"] = digest_json(body)
    return changed


@pytest.mark.parametrize("name", READERS)
def test_what_the_writer_left_is_read(run: RunDirectory, name: str) -> None:
    reader = READERS[name]
    data = _file(run, reader).read_bytes()
    assert data == canonical_json(json.loads(data)), "the seal is of the canonical form"
    assert _read_damaged(run, reader, data) is None


@pytest.mark.parametrize("name", READERS)
def test_a_value_of_another_type_is_taken_or_refused(run: RunDirectory, name: str) -> None:
    reader, random = READERS[name], Random(name)
    document = json.loads(_file(run, reader).read_bytes())
    refused = 0
    for _ in range(FLIPS):
        changed = _damaged(document, reader, random)
        error = _read_damaged(run, reader, canonical_json(changed))
        assert error is None or type(error) is ArtifactError, error
        if error is not None:
            refused += 1
            assert error.hint
            assert "\x1b" not in str(error)
    assert refused > FLIPS // 5


@pytest.mark.parametrize("name", READERS)
def test_no_document_is_refused_with_file_and_remedy(run: RunDirectory, name: str) -> None:
    reader, random = READERS[name], Random(name)
    healthy = _file(run, reader).read_bytes()
    cut = [healthy[: random.randrange(len(healthy) - 2)] for _ in range(5)]
    noise = [random.randbytes(random.randrange(1, 200)) for _ in range(5)]
    for data in (*TEXTS, *cut, *noise):
        error = _read_damaged(run, reader, data)
        assert type(error) is ArtifactError
        assert _file(run, reader).name in error.message
        assert error.hint


YAML_TEXTS = (
    b"", b"\xe9t\xe9: latin-1", b"\x00\x01", b"&a [*a]", b"a: &a {<<: *a}", b"? [a]\n: b", b"k: " + b"[" * 100_000,
    b"samples: {steps: " + b"9" * 5000 + b"}", b"parity: {budget: {eps_cosine: .inf}}", b"name: 2024-13-45",
    b"samples: {steps: 0x_}", b"name: !!python/object:os.system x", b'name: "\\ud800"',
    b"parity: {budget: {eps_cosine: '1e999'}}", b"export: {targets: !!set {a, b}}", b"1: 2",
)  # fmt: skip


@pytest.mark.parametrize("text", YAML_TEXTS, ids=range(len(YAML_TEXTS)))
def test_a_recipe_that_is_none_is_the_users_error(run: RunDirectory, text: bytes) -> None:
    healthy = run.recipe_path.read_bytes()
    try:
        run.recipe_path.write_bytes(text)
        with pytest.raises(RecipeError, match=r"recipe\.yaml"):
            run.load_recipe()
    finally:
        run.recipe_path.write_bytes(healthy)
    with pytest.raises(RecipeError, match="--set"):
        load_recipe("fashion-w8a8", [f"parity={text.decode('latin-1') or '['}"])


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_prompts_that_are_none_are_the_users_error(tmp_path: Path, text: bytes) -> None:
    for suffix in ("json", "jsonl"):
        file = tmp_path / f"prompts.{suffix}"
        file.write_bytes(text)
        with pytest.raises(UsageError, match="prompts"):
            read_prompts(file)
