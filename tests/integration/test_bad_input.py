"""What happens when a file, a value or the environment is wrong?

Every case: the right exit code, one message with the remedy, no traceback, and not one byte of the run changed.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import onnx
import pytest
from click.testing import Result
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file

from gacq_deploy.storage.digests import digest_file, digest_json
from gacq_deploy.storage.lock import LOCK_NAME
from tests.support.models.tiny import tiny_unet
from tests.support.programs.commands import invoke


@dataclass
class Scene:
    """Where a case happens: its own copy of the run, of the model, and of the recipe."""

    run: Path
    tmp: Path
    model: Path
    recipe: Path
    monkeypatch: pytest.MonkeyPatch

    def edit_recipe(self, old: str, new: str) -> None:
        """Change the recipe's text; the old text must be there."""
        text = self.recipe.read_text()
        assert old in text
        self.recipe.write_text(text.replace(old, new))

    def edit_json(self, path: str, **changes: object) -> None:
        """Change keys of a JSON file of the run."""
        file = self.run / path
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    def reseal(self, path: str, edit: Callable[[dict[str, Any]], object]) -> None:
        """Change a report of the run and give it the digest of its new content."""
        file = self.run / path
        document = json.loads(file.read_text())
        del document["digest"]
        edit(document)
        file.write_text(json.dumps({**document, "digest": digest_json(document)}))

    def point_run_at_model(self) -> None:
        """Let the run's own records name this scene's model, as if it had been calibrated from there."""
        for name in ("recipe.yaml", "artifact/manifest.json"):
            file = self.run / name
            text = file.read_text()
            source = json.loads((self.run / "artifact/manifest.json").read_text())["recipe"]["model"][
                "source"
            ]
            if name.endswith("yaml"):
                file.write_text(text.replace(source, str(self.model)))
        manifest = json.loads((self.run / "artifact/manifest.json").read_text())
        manifest["recipe"]["model"]["source"] = str(self.model)
        body = {k: v for k, v in manifest.items() if k not in ("digest", "build")}
        manifest["digest"] = digest_json(body)
        (self.run / "artifact/manifest.json").write_text(json.dumps(manifest))


Setup = Callable[[Scene], None]


def nothing(_: Scene) -> None:
    """Leave the scene as it is."""


@dataclass(frozen=True)
class Case:
    """One wrong thing: what is done to the scene, the command, its exit code, and what the message must say."""

    id: str
    argv: str
    code: int
    says: tuple[str, ...]
    setup: Setup = nothing
    is_report: bool = field(default=False)
    """The command prints its own report and no error document (a gate that was evaluated)."""


CALIBRATE = "calibrate -r {recipe} -o {tmp}/new"
AGAIN = "calibrate -r {recipe} -o {run}"
EXPORT = "export --onnx {run}"
PARITY = "parity {run} --engine ort-cpu --threads 1"
RUN = "run {run} -n 2 -o {tmp}/images.png --threads 1"
VERIFY = "verify {run}"
INT8, CPU, FLOAT = "onnx/int8.onnx", "onnx/int8.cpu.onnx", "onnx/float.onnx"
TENSORS, PROBE, MANIFEST = (
    "artifact/tensors.safetensors",
    "artifact/probe.safetensors",
    "artifact/manifest.json",
)
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def recipe_edit(old: str, new: str) -> Setup:
    return lambda scene: scene.edit_recipe(old, new)


def write(path: str, content: str | bytes) -> Setup:
    """Write a file relative to the scene's folder."""

    def setup(scene: Scene) -> None:
        file = scene.tmp / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())

    return setup


def flip(path: str, *, at: float = 0.9) -> Setup:
    """Flip one bit of a file of the run."""

    def setup(scene: Scene) -> None:
        data = bytearray((scene.run / path).read_bytes())
        data[int(len(data) * at)] ^= 1
        (scene.run / path).write_bytes(bytes(data))

    return setup


def cut(path: str, share: float = 0.5) -> Setup:
    """Truncate a file of the run; share 0 empties it."""

    def setup(scene: Scene) -> None:
        data = (scene.run / path).read_bytes()
        (scene.run / path).write_bytes(data[: int(len(data) * share)])

    return setup


def remove(*paths: str) -> Setup:
    def setup(scene: Scene) -> None:
        for path in paths:
            (scene.run / path).unlink()

    return setup


def both(*setups: Setup) -> Setup:
    def setup(scene: Scene) -> None:
        for one in setups:
            one(scene)

    return setup


def model_file(path: str, content: bytes) -> Setup:
    return lambda scene: _put(scene.model / path, content)


def model_config(**changes: object) -> Setup:
    def setup(scene: Scene) -> None:
        path = scene.model / "unet/config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return setup


def _put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def cut_model_weights(scene: Scene) -> None:
    data = (scene.model / WEIGHTS).read_bytes()
    (scene.model / WEIGHTS).write_bytes(data[: len(data) // 2])


def poison_model_weights(scene: Scene) -> None:
    tensors = load_file(scene.model / WEIGHTS)
    tensors["conv_in.bias"] = np.full_like(tensors["conv_in.bias"], np.nan)
    save_file(tensors, scene.model / WEIGHTS)


def change_model_weights(change: Callable[[dict[str, np.ndarray]], object]) -> Setup:
    def setup(scene: Scene) -> None:
        tensors = load_file(scene.model / WEIGHTS)
        change(tensors)
        save_file(tensors, scene.model / WEIGHTS)

    return setup


def pickled_model(scene: Scene) -> None:
    (scene.model / WEIGHTS).rename(scene.model / "unet/diffusion_pytorch_model.bin")


def another_model(scene: Scene) -> None:
    """The folder the run was calibrated from now holds other weights; the graphs are to be made again."""
    scene.point_run_at_model()
    tiny_unet(seed=7).save_pretrained(scene.model / "unet")
    (scene.run / "onnx/manifest.json").unlink()


def spoil_samples(change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> Setup:
    """Change the collected samples and their record, as a faulty disk or tool would that also keeps digests."""

    def setup(scene: Scene) -> None:
        path = scene.run / "samples.safetensors"
        save_file({k: np.ascontiguousarray(v) for k, v in change(load_file(path)).items()}, path)
        scene.edit_json("samples.json", sha256=digest_file(path))

    return setup


def with_nan(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    tensors["latents"][5, 0, 0, 0] = np.nan
    return tensors


def newer_export(scene: Scene) -> None:
    path = scene.run / "onnx/manifest.json"
    body = {k: v for k, v in json.loads(path.read_text()).items() if k != "digest"}
    body["schema"] = "gacq-deploy/export/2"
    path.write_text(json.dumps({**body, "digest": digest_json(body)}))


def stale_export(scene: Scene) -> None:
    path = scene.run / "onnx/manifest.json"
    body = {k: v for k, v in json.loads(path.read_text()).items() if k != "digest"}
    body["artifact_sha256"] = "0" * 64
    path.write_text(json.dumps({**body, "digest": digest_json(body)}))


def newer_artifact(scene: Scene) -> None:
    scene.edit_json(MANIFEST, schema_version=3)


def hard_link(scene: Scene) -> None:
    (scene.tmp / "other.onnx").hardlink_to(scene.run / CPU)


def symlink(scene: Scene) -> None:
    (scene.run / CPU).rename(scene.tmp / "moved.onnx")
    (scene.run / CPU).symlink_to(scene.tmp / "moved.onnx")


def empty(scene: Scene) -> None:
    (scene.tmp / "empty").mkdir()


def file_for_directory(scene: Scene) -> None:
    (scene.tmp / "new").write_text("a file, not a folder")


def spoil_scale(value: float) -> Setup:
    """Write a graph with one activation scale replaced to ``bad.onnx``."""

    def setup(scene: Scene) -> None:
        model = onnx.load(scene.run / INT8)
        tensor = next(t for t in model.graph.initializer if t.name.endswith(":input.scale"))
        tensor.CopyFrom(numpy_helper.from_array(np.array(value, np.float32), tensor.name))
        onnx.save(model, scene.tmp / "bad.onnx")

    return setup


def both_wheels(scene: Scene) -> None:
    info = scene.tmp / "site" / "onnxruntime_gpu-1.31.1.dist-info"
    _put(info / "METADATA", b"Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.31.1\n")
    scene.monkeypatch.syspath_prepend(str(info.parent))


def without(library: str, owner: str) -> Setup:
    """Make a library impossible to import, as if it were not installed."""

    def setup(scene: Scene) -> None:
        scene.monkeypatch.setitem(sys.modules, library, None)
        scene.monkeypatch.delitem(sys.modules, owner, raising=False)

    return setup


def installed(name: str, version: str) -> Setup:
    """Let the installer's records say that a version is installed."""

    def setup(scene: Scene) -> None:
        record = scene.tmp / "packages" / f"{name}-{version}.dist-info" / "METADATA"
        record.parent.mkdir(parents=True)
        record.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        scene.monkeypatch.syspath_prepend(scene.tmp / "packages")

    return setup


def stand_in(name: str, module: str, library: str) -> Setup:
    """Let diffusers have what it has of a class where a library is not installed."""

    def setup(scene: Scene) -> None:
        scene.monkeypatch.setitem(sys.modules, library, None)
        scene.monkeypatch.setattr(diffusers, name, getattr(import_module(f"diffusers.utils.{module}"), name))

    return setup


def hub_offline(scene: Scene) -> None:
    scene.monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    scene.monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(scene.tmp / "cache"))


RECIPE_CASES = (
    Case("unknown-key", CALIBRATE, 2, ("tiny.yaml:4", "trajectorys", "recipes schema"),
         recipe_edit("trajectories: 4,", "trajectorys: 4,")),
    Case("zero-samples", CALIBRATE, 2, ("samples.trajectories", "greater than or equal to 1"),
         recipe_edit("trajectories: 4,", "trajectories: 0,")),
    Case("bits-out-of-range", CALIBRATE, 2, ("bits", "less than or equal to 8"), recipe_edit("bits: 8", "bits: 16")),
    Case("wrong-type", CALIBRATE, 2, ("samples.steps", "integer"),
         recipe_edit("steps: 4, batch", "steps: many, batch")),
    Case("not-yaml", CALIBRATE, 2, ("tiny.yaml:", "not valid YAML"), write("tiny.yaml", "samples: [1, 2\nname: {")),
    Case("yaml-list", CALIBRATE, 2, ("a recipe is a mapping",), write("tiny.yaml", "- 1\n- 2\n")),
    Case("binary-recipe", CALIBRATE, 2, ("cannot be read",), write("tiny.yaml", b"\xff\xfe\x00\x80")),
    Case("yaml-object", CALIBRATE, 2, ("not valid YAML",),
         write("tiny.yaml", "name: !!python/object/apply:os.system ['touch canary']\n")),
    Case("recipe-missing", "calibrate -r {tmp}/none.yaml -o {tmp}/new", 2, ("neither a built-in", "fashion-w8a8")),
    Case("recipe-misspelt", "calibrate -r fashon-w8a8 -o {tmp}/new", 2, ("Did you mean 'fashion-w8a8'?",)),
    Case("unknown-section", "calibrate -r fashion-w8a8 --set sample.steps=3 -o {tmp}/new", 2,
         ("Did you mean 'samples'?",)),
    Case("misspelt-key", "calibrate -r fashion-w8a8 --set calibration.polish.stepps=3 -o {tmp}/new", 2,
         ("Did you mean 'steps'?",)),
    Case("newer-recipe", CALIBRATE, 2, ("gacq-deploy/recipe/1",), recipe_edit("recipe/1", "recipe/2")),
    Case("rule-says-nothing", CALIBRATE, 2, ("a rule needs 'bits' or 'ignore: true'",),
         recipe_edit("ignore: true}\n    - {match: \"conv_out\"", "optional: true}\n    - {match: \"conv_out\"")),
    Case("rule-matches-nothing", CALIBRATE, 2, ("matches no layer", "optional: true"),
         recipe_edit("conv_out", "convout")),
    Case("everything-float", CALIBRATE, 2, ("leave every layer float",),
         recipe_edit('"*", role: weight, bits: 7, range: {method: minmax}', '"*", ignore: true')),
    Case("half-a-pair", CALIBRATE, 2, ("quantized weight but a float input",),
         recipe_edit('- {match: "conv_in", ignore: true}', '- {match: "conv_in", role: input, ignore: true}')),
    Case("set-malformed", CALIBRATE + " --set samples.steps", 2, ("not of the form", "samples.steps=10")),
    Case("set-unknown-key", CALIBRATE + " --set samples.stepz=3", 2,
         ("--set samples.stepz", "there is no such key", "Did you mean 'steps'")),
    Case("set-out-of-range", CALIBRATE + " --set samples.steps=0", 2, ("--set samples.steps=0", "samples.steps")),
    Case("validate-bad", "recipes validate {recipe}", 2, ("buckets",), recipe_edit("buckets: 2", "buckets: -1")),
    Case("show-unknown", "recipes show nonsense", 2, ("neither a built-in",)),
    Case("option-missing", "calibrate -r fashion-w8a8", 2, ("--output-dir", "--help")),
    Case("unknown-command", "calibrat", 2, ("No such command", "--help")),
    Case("neither-model-nor-recipe", "calibrate -o {tmp}/new", 2, ("--model FOLDER", "unet-w8a8")),
)  # fmt: skip

MODEL_CASES = (
    Case("model-missing", CALIBRATE + " --model ./no/such/folder", 2, ("neither a folder nor a hub id",)),
    Case("hub-offline", CALIBRATE + " --model nobody/nothing", 2, ("cannot be fetched", "network"), hub_offline),
    Case("model-is-a-file", CALIBRATE + " --model {recipe}", 2, ("is a file, not a folder",)),
    Case("model-empty", CALIBRATE + " --model {tmp}/empty", 2, ("holds no denoiser", "pipeline or model folder"),
         empty),
    Case("builtin-unknown", CALIBRATE + " --model builtin:nope", 2, ("no built-in model 'nope'",)),
    Case("class-unknown", CALIBRATE, 2, ("'FooModel' is no model class",), model_config(_class_name="FooModel")),
    Case("remote-code", CALIBRATE, 2, ("remote code", "never run"), model_config(auto_map={"AutoModel": "evil.Model"})),
    Case("pickled-weights", CALIBRATE, 2, ("only pickled weights", "safe_serialization"), pickled_model),
    Case("config-not-json", CALIBRATE, 5, ("not readable JSON",), model_file("unet/config.json", b'{"_class')),
    Case("weights-truncated", CALIBRATE, 5, ("truncated or malformed",), cut_model_weights),
    Case("weights-empty", CALIBRATE, 5, ("truncated or malformed",), model_file(WEIGHTS, b"")),
    Case("weights-of-another-shape", CALIBRATE, 5, ("the weights hold", "belongs to these weights"),
         model_config(block_out_channels=[16, 16])),
    Case("weights-lack-a-tensor", CALIBRATE, 2, ("lack tensor 'conv_out.weight'", "belong together"),
         change_model_weights(lambda tensors: tensors.pop("conv_out.weight"))),
    Case("weights-hold-a-stranger", CALIBRATE, 2, ("unknown tensor 'evil.weight'",),
         change_model_weights(lambda tensors: tensors.setdefault("evil.weight", np.ones(3, np.float32)))),
    Case("weights-nan", CALIBRATE, 5, ("'conv_in.bias' holds NaN or Inf",), poison_model_weights),
    Case("no-scheduler", CALIBRATE, 2, ("scheduler_config.json", "save_pretrained"),
         lambda scene: shutil.rmtree(scene.model / "scheduler")),
    Case("prediction-unknown", CALIBRATE, 2, ("prediction_type 'flow'",),
         model_file("scheduler/scheduler_config.json", b'{"prediction_type": "flow"}')),
    Case("too-many-classes", CALIBRATE + " --set model.classes=99", 2, ("model.classes is 99", "4 entries")),
)  # fmt: skip

CHAIN_CASES = (
    Case("other-recipe", AGAIN + " --set samples.steps=2", 2, ("samples.steps", "another directory")),
    Case("other-recipe-planned", AGAIN + " --dry-run --set samples.steps=2", 2, ("samples.steps", "another directory")),
    Case("not-a-run", "parity {tmp}/empty", 5, ("not a run directory", "no recipe.yaml", "gacq-deploy calibrate"),
         empty),
    Case("samples-altered", AGAIN, 5, ("samples.safetensors", "altered", "Restore it"), flip("samples.safetensors")),
    Case("samples-truncated", AGAIN, 5, ("samples.safetensors", "Restore it"), cut("samples.safetensors")),
    Case("samples-nan", AGAIN, 2, ("'latents' holds NaN or Inf", "row 5", "another folder"), spoil_samples(with_nan)),
    Case("samples-none", AGAIN, 2, ("holds no samples",),
         spoil_samples(lambda tensors: {k: v[:0] for k, v in tensors.items()})),
    Case("samples-uneven", AGAIN, 2, ("'latents' has 3 rows",),
         spoil_samples(lambda tensors: {**tensors, "latents": tensors["latents"][:3]})),
    Case("samples-without-a-tensor", AGAIN, 5, ("not whole", "Restore it"),
         spoil_samples(lambda tensors: {k: v for k, v in tensors.items() if k != "targets"})),
    Case("export-newer", RUN, 5, ("not an export manifest of this version",), newer_export),
    Case("samples-record-cut", AGAIN, 5, ("samples.json", "JSON"), cut("samples.json")),
    Case("manifest-truncated", EXPORT, 5, ("manifest.json", "JSON"), cut(MANIFEST)),
    Case("manifest-empty", EXPORT, 5, ("manifest.json", "JSON"), cut(MANIFEST, 0)),
    Case("manifest-altered", PARITY, 5, ("was altered", "digest"),
         lambda scene: scene.edit_json(MANIFEST, samples_sha256="0" * 64)),
    Case("manifest-missing", EXPORT, 5, ("Artifact manifest is missing",), remove(MANIFEST)),
    Case("artifact-newer", "inspect {run}", 5, ("schema version 3", "pip install -U"), newer_artifact),
    Case("artifact-foreign", "inspect {run}", 5, ("not an artifact manifest",), write("run/" + MANIFEST, '{"a": 1}')),
    Case("tensors-altered", PARITY, 5, ("tensors.safetensors", "altered"), flip(TENSORS)),
    Case("tensors-truncated", "inspect {run}", 5, ("tensors.safetensors", "truncated"), cut(TENSORS)),
    Case("tensors-empty", RUN, 5, ("tensors.safetensors", "0 bytes"), cut(TENSORS, 0)),
    Case("tensors-missing", "inspect {run}", 5, ("tensors.safetensors", "missing"), remove(TENSORS)),
    Case("probe-altered", PARITY, 5, ("probe.safetensors", "altered"), flip(PROBE)),
    Case("probe-truncated", PARITY, 5, ("probe.safetensors", "truncated"), cut(PROBE)),
    Case("no-artifact", "inspect {tmp}/empty", 5, ("neither a run directory", "calibrate"), empty),
    Case("recipe-edited", EXPORT, 5, ("stale", "samples", "another folder"),
         both(remove("onnx/manifest.json"),
              lambda s: _replace(s.run / "recipe.yaml", "trajectories: 4", "trajectories: 5"))),
    Case("another-model", EXPORT, 5, ("has weights", "was calibrated on"), another_model),
    Case("int8-altered", PARITY, 5, ("int8.onnx", "altered", "export --onnx"), flip(INT8)),
    Case("cpu-truncated", RUN, 5, ("int8.cpu.onnx", "truncated", "export --onnx"), cut(CPU)),
    Case("cpu-empty", RUN, 5, ("int8.cpu.onnx", "0 bytes"), cut(CPU, 0)),
    Case("float-missing", RUN + " --engine float", 5, ("float.onnx", "missing"), remove(FLOAT)),
    Case("export-missing", RUN, 5, ("Export manifest is missing", "export --onnx"), remove("onnx/manifest.json")),
    Case("export-manifest-cut", PARITY, 5, ("onnx/manifest.json", "JSON"), cut("onnx/manifest.json")),
    Case("export-manifest-edited", PARITY, 5, ("was altered",),
         lambda scene: scene.edit_json("onnx/manifest.json", opset=19)),
    Case("export-stale", RUN, 5, ("stale", "export --onnx"), stale_export),
    Case("graph-hard-link", RUN, 5, ("hard links",), hard_link),
    Case("graph-symlink", RUN, 5, ("not a regular file",), symlink),
    Case("verify-not-a-run", "verify {tmp}", 5, ("not a run directory",)),
    Case("verify-recipe-binary", VERIFY, 5, ("recipe.yaml cannot be read", "UTF-8"),
         write("run/recipe.yaml", b"\xff\xfe\x00"), is_report=True),
    Case("parity-recipe-binary", PARITY, 2, ("recipe.yaml cannot be read", "UTF-8"),
         write("run/recipe.yaml", b"\xff\xfe\x00")),
    Case("verify-samples", VERIFY, 5, ("samples", "altered"), flip("samples.safetensors"), is_report=True),
    Case("verify-artifact", VERIFY, 5, ("tensors.safetensors", "altered"), flip(TENSORS), is_report=True),
    Case("verify-graph", VERIFY, 5, ("int8.cpu.onnx", "altered"), flip(CPU), is_report=True),
    Case("verify-orphan", VERIFY, 5, ("nothing vouches for",), remove("onnx/manifest.json"), is_report=True),
    Case("verify-checkpoint", VERIFY, 5, ("Finished step", "ranges"),
         lambda s: flip("work/" + next((s.run / "work").glob("*ranges*")).name)(s), is_report=True),
    Case("verify-stale-parity", VERIFY, 5, ("is not the file that it is about",),
         lambda s: s.reseal("parity.json", lambda d: d["subject"]["files"].update({"int8.onnx": "0" * 64})),
         is_report=True),
    Case("verify-parity-altered", VERIFY, 5, ("parity.json was altered", "digest"),
         lambda s: s.edit_json("parity.json", passed=False), is_report=True),
    Case("verify-parity-verdict", VERIFY, 5, ("parity.json contradicts itself",),
         lambda s: s.reseal("parity.json", lambda d: d["comparisons"][-1]["metrics"].update(image_psnr_db=1.0)),
         is_report=True),
    Case("verify-parity-thresholds", VERIFY, 5,
         ("other thresholds", "budget.image_psnr_db was 10.0, now is 99.0", "would not pass"),
         lambda s: _replace(s.run / "recipe.yaml", "image_psnr_db: 10.0", "image_psnr_db: 99.0"), is_report=True),
    Case("verify-parity-protocol", VERIFY, 5, ("other measurements", "images was 4, now is 5"),
         lambda s: _replace(s.run / "recipe.yaml", "images: 4", "images: 5"), is_report=True),
)  # fmt: skip

REQUEST_CASES = (
    Case("class-out-of-range", RUN + " --class 99", 2, ("Class label 99 is out of range", "0 to 3")),
    Case("class-negative", RUN + " --class -1", 2, ("Class label -1 is out of range",)),
    Case("no-images", "run {run} -n 0 -o {tmp}/a.png", 2, ("0 images", "at least one")),
    Case("negative-images", "run {run} -n -3 -o {tmp}/a.png", 2, ("-3 images",)),
    Case("seed-negative", RUN + " --seed -5", 2, ("Seed -5 is out of range",)),
    Case("seed-huge", RUN + " --scheduler DDPMScheduler --seed 18446744073709551615", 2, ("is out of range", "2**63")),
    Case("last-seed-huge", RUN + " --seed 9223372036854775807", 2, ("Seed 9223372036854775808 is out of range",)),
    Case("calibrate-seed-huge", CALIBRATE + " --seed 18446744073709551616", 2, ("seed", "less than")),
    Case("too-many-steps-of-another", RUN + " --steps 5000 --scheduler EulerDiscreteScheduler", 2, ("1 to 1000",)),
    Case("scheduler-base", RUN + " --scheduler SchedulerMixin", 2, ("it cannot denoise", "For instance")),
    Case("too-many-steps", RUN + " --steps 100000", 2, ("100000", "1 to 1000")),
    Case("no-steps", RUN + " --steps 0", 2, ("--steps", "--help")),
    Case("float-steps-too-many", RUN + " --float-steps 5", 2, ("5 float steps", "has 4 steps", "0 to 4")),
    Case("float-steps-of-fewer", RUN + " --float-steps 3 --steps 2", 2, ("3 float steps", "has 2 steps")),
    Case("float-steps-negative", RUN + " --float-steps -1", 2, ("--float-steps", "--help")),
    Case("float-steps-no-number", RUN + " --float-steps some", 2, ("--float-steps", "--help")),
    Case("float-where-unknown", RUN + " --float-steps 1 --float-where middle", 2, ("--float-where", "worst")),
    Case("float-where-alone", RUN + " --float-where first", 2, ("how many steps", "--float-steps")),
    Case("float-steps-of-float", RUN + " --engine float --float-steps 1", 2, ("every step in float",)),
    Case("policy-too-long", AGAIN + " --set runtime.step_policy.float_steps=5", 2,
         ("float_steps 5", "has 4 steps", "recipes schema")),
    Case("policy-unknown-word", AGAIN + " --set runtime.step_policy.where=middle", 2, ("'worst', 'first', 'last'",)),
    Case("policy-not-judged", AGAIN + " --set runtime.steps=3 --set runtime.step_policy.float_steps=1", 2,
         ("runtime.steps is 3, parity.steps is 4",)),
    Case("engine-unknown", RUN + " --engine warp", 2, ("'warp' is not known", "ort-cpu")),
    Case("scheduler-unknown", RUN + " --scheduler MagicScheduler", 2, ("no scheduler 'MagicScheduler'",)),
    Case("scheduler-not-one", RUN + " --scheduler UNet2DModel", 2, ("no scheduler 'UNet2DModel'",)),
    Case("not-a-png", "run {run} -o {tmp}/images.jpg", 2, ("does not end in .png",)),
    Case("png-is-a-folder", "run {run} -o {tmp}/folder.png", 2, ("folder.png", "directory"),
         lambda scene: (scene.tmp / "folder.png").mkdir()),
    Case("png-below-a-file", "run {run} -n 2 --threads 1 -o {recipe}/images.png", 2, ("Cannot write", "images.png")),
    Case("directory-is-a-file", CALIBRATE, 2, ("Cannot write", "-o"), file_for_directory),
    Case("parity-engine-unknown", "parity {run} --engine warp", 2, ("'warp' is not known",)),
    Case("rejudge-missing", "parity {run} --rejudge {tmp}/none.yaml", 2, ("none.yaml", "cannot be read")),
    Case("rejudge-saves-nothing", "parity {run} --rejudge {tmp}/t.yaml --save-polygraphy {tmp}/p", 2,
         ("--save-polygraphy has nothing to save",)),
    Case("save-polygraphy-elsewhere", "parity {run} --save-polygraphy {run}", 2, ("was not saved there",)),
    Case("rejudge-unknown-key", "parity {run} --rejudge {tmp}/t.yaml", 2, ("parity.budgett", "recipes schema"),
         write("t.yaml", "budgett: {}")),
    Case("rejudge-remeasure", "parity {run} --rejudge {tmp}/t.yaml", 2, ("decides what is measured",),
         write("t.yaml", "images: 8")),
    Case("rejudge-no-report", "parity {run} --rejudge {tmp}/t.yaml", 5, ("Parity report", "missing"),
         both(write("t.yaml", "budget: {}"), remove("parity.json"))),
    Case("rejudge-altered", "parity {run} --rejudge {tmp}/t.yaml", 5, ("parity.json was altered",),
         both(write("t.yaml", "budget: {}"), lambda s: s.edit_json("parity.json", passed=False))),
    Case("rejudge-stale", "parity {run} --rejudge {tmp}/t.yaml", 5, ("stale",),
         both(write("t.yaml", "budget: {}"), flip(INT8))),
    Case("rejudge-stricter", "parity {run} --rejudge {tmp}/t.yaml", 3, ("image_psnr_db",),
         write("t.yaml", "budget: {image_psnr_db: 99}"), is_report=True),
    Case("lint-missing", "lint {tmp}/none.onnx", 5, ("missing",)),
    Case("lint-empty", "lint {tmp}/empty.onnx", 5, ("empty.onnx", "no graph"), write("empty.onnx", b"")),
    Case("lint-not-onnx", "lint {recipe}", 5, ("not an ONNX model", "export --onnx")),
    Case("lint-truncated", "lint {run}/onnx/int8.onnx", 5, ("not an ONNX model", "export --onnx"), cut(INT8)),
    Case("lint-zero-scale", "lint {tmp}/bad.onnx", 3, ("scale-not-positive",), spoil_scale(0.0), is_report=True),
    Case("lint-nan-scale", "lint {tmp}/bad.onnx --target ort-cpu", 3, ("scale-not-finite",), spoil_scale(float("nan")),
         is_report=True),
    Case("lint-target-unknown", "lint {tmp}/bad.onnx --target warp", 2, ("--target", "tensorrt")),
    Case("lint-not-exported", "lint {run}", 5, ("is missing or not a regular file", "export --onnx"),
         remove(INT8, CPU)),
)  # fmt: skip

ENVIRONMENT_CASES = (
    Case("cuda-without-gpu", RUN + " --engine ort-cuda", 4, ("CUDAExecutionProvider", "gacq-deploy[gpu]")),
    Case("both-wheels", RUN, 4, ("onnxruntime-gpu", "pip uninstall"), both_wheels),
    Case("both-wheels-parity", PARITY, 4, ("onnxruntime-gpu", "pip uninstall"), both_wheels),
    Case("both-wheels-doctor", "doctor", 4, ("onnxruntime-gpu", "pip uninstall"), both_wheels, is_report=True),
    Case("no-onnxruntime", RUN, 4, ("onnxruntime", "gacq-deploy[cpu]"),
         without("onnxruntime", "gacq_deploy.backends.ort")),
    Case("no-onnxruntime-parity", PARITY, 4, ("onnxruntime", "gacq-deploy[cpu]"),
         without("onnxruntime", "gacq_deploy.backends.ort")),
    Case("no-onnxruntime-doctor", "doctor", 4, ("gacq-deploy[cpu]",),
         without("onnxruntime", "gacq_deploy.backends.ort"), is_report=True),
    Case("torch-too-old", CALIBRATE, 4, ("torch 2.4.0 (it takes torch>=", "gacq-deploy[calibrate]"),
         installed("torch", "2.4.0")),
    Case("torch-too-old-export", EXPORT, 4, ("torch 2.4.0", "gacq-deploy[calibrate]"), installed("torch", "2.4.0")),
    Case("no-scipy", RUN + " --scheduler LMSDiscreteScheduler", 4,
         ("LMSDiscreteScheduler needs scipy", "pip install scipy"),
         stand_in("LMSDiscreteScheduler", "dummy_torch_and_scipy_objects", "scipy")),
    Case("no-openvino", RUN + " --engine openvino", 4, ("openvino", "gacq-deploy[openvino]"),
         without("openvino", "gacq_deploy.backends.openvino")),
)  # fmt: skip

CASES = (*RECIPE_CASES, *MODEL_CASES, *CHAIN_CASES, *REQUEST_CASES, *ENVIRONMENT_CASES)


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def snapshot(folder: Path) -> dict[str, bytes]:
    """Return every file's content but the lock's."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != LOCK_NAME
    }


@pytest.fixture
def scene(
    finished_run: Path, model_folder: Path, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Scene:
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    model = Path(shutil.copytree(model_folder, tmp_path / "pipeline"))
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(recipe_file.read_text())
    monkeypatch.chdir(tmp_path)
    return Scene(run, tmp_path, model, recipe, monkeypatch)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_bad_input(case: Case, scene: Scene) -> None:
    if case in MODEL_CASES:
        text = scene.recipe.read_text()
        scene.recipe.write_text(text.replace(text.split('"')[1], str(scene.model), 1))
    case.setup(scene)
    before = snapshot(scene.tmp)
    argv = case.argv.format(run=scene.run, tmp=scene.tmp, recipe=scene.recipe).split()
    done = invoke([*argv, "--json"])
    assert done.exit_code == case.code, done.output
    assert "Traceback" not in done.output
    _check_message(case, done)
    _check_untouched(before, scene.tmp)


def _check_message(case: Case, done: Result) -> None:
    """One JSON document on stdout that says what and how to mend it, and the same in words on stderr."""
    document = json.loads(done.stdout)
    for words in case.says:
        assert words in done.output.replace("\\n", "\n"), done.output
    if case.is_report:
        assert "error" not in document
        return
    error = document["error"]
    assert error["exit_code"] == case.code
    assert error["hint"], error
    assert error["message"].splitlines()[0] in done.stderr


def _check_untouched(before: dict[str, bytes], folder: Path) -> None:
    after = snapshot(folder)
    changed = [name for name in before if after.get(name) != before[name]]
    new = [
        name for name in after if name not in before and not name.startswith(("cache/", "new/recipe.yaml"))
    ]
    assert not changed
    assert not new
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        assert not list((folder / "new" / "artifact").iterdir())


def test_there_are_many_cases() -> None:
    assert len({case.id for case in CASES}) == len(CASES) >= 40
