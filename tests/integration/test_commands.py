"""What do the commands print and write when all is well?"""

from __future__ import annotations

import json
import operator
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from gacq_deploy.calibration import stage as calibration
from gacq_deploy.recipe.load import builtin_recipes, load_recipe
from gacq_deploy.recipe.presets import PRESETS
from gacq_deploy.workflow import quickstart as chain
from gacq_deploy_cli.main import cli
from tests.support.models.tiny import save_model, tiny_unet
from tests.support.programs.commands import invoke


def _json(*arguments: str, code: int = 0) -> Any:
    done = invoke([*arguments, "--json"])
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


def test_calibrate_again_does_nothing(run_copy: Path, recipe_file: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (run_copy / "artifact").iterdir()}
    digest = _json("inspect", str(run_copy))["digest"]
    done = invoke(["calibrate", "-r", str(recipe_file), "-o", str(run_copy)])
    assert "calibration is already done" in done.stderr
    assert digest[:12] in done.stdout
    gains = [line for line in done.stdout.splitlines() if " dB in " in line]
    assert [line.partition(": ")[0] for line in gains] == ["nearest", "reconstruction", "polish"]
    assert {p: p.stat().st_mtime_ns for p in (run_copy / "artifact").iterdir()} == before


def test_the_next_command_can_be_pasted(finished_run: Path, recipe_file: Path, tmp_path: Path) -> None:
    run = str(shutil.copytree(finished_run, tmp_path / "my runs" / "it's"))
    first = ["calibrate", "-r", str(recipe_file), "-o", run]
    for given, following in (
        (first, ["export", run]),
        (["export", "--onnx", run], ["parity", run]),
    ):
        (line,) = (line for line in invoke(given).stdout.splitlines() if line.startswith("Next: "))
        assert shlex.split(line) == ["Next:", "gacq-deploy", *following]


def test_fresh_calibrates_another_recipe(run_copy: Path, recipe_file: Path) -> None:
    old = _json("inspect", str(run_copy))["digest"]
    new = _json(
        "calibrate", "-r", str(recipe_file), "-o", str(run_copy), "--set", "samples.steps=2", "--fresh"
    )
    assert new["artifact"] != old
    assert yaml.safe_load((run_copy / "recipe.yaml").read_text())["samples"]["steps"] == 2


def test_dry_run_estimates_and_writes_nothing(recipe_file: Path, tmp_path: Path) -> None:
    target = tmp_path / "new"
    document = _json("calibrate", "-r", str(recipe_file), "-o", str(target), "--dry-run", "--seed", "5")
    assert not target.exists()
    estimate = document["estimate"]
    assert estimate["samples"] + estimate["validation_samples"] == 16
    assert estimate["quantized_modules"] == len(
        [s for s in estimate["sites"] if s["site"].endswith(":weight")]
    )
    assert estimate["seconds"] > 0
    assert estimate["memory_mb"] > 0
    assert estimate["disk_mb"] > 0
    assert estimate["weights"] == "uniform"
    assert estimate["polish"].startswith("4 steps, activation scales, biases")
    assert document["recipe"]["samples"]["seed"] == document["recipe"]["calibration"]["seed"] == 5
    shown = invoke(["calibrate", "-r", str(recipe_file), "-o", str(target), "--dry-run"]).stdout
    assert "nothing was written" in shown
    *_, summary = shown.splitlines()
    assert re.fullmatch(
        r"\d+ of \d+ layers to quantize, (about .+|a few seconds)\. Leave --dry-run out to do it\.", summary
    )
    assert set(estimate["stages"]) <= {
        line.strip().removeprefix("- ").split("  ")[0] for line in shown.splitlines()
    }


def test_a_preset_sets_the_effort_and_set_comes_after_it(recipe_file: Path, tmp_path: Path) -> None:
    def resolved(*more: str) -> Any:
        target = str(tmp_path / "new")
        document = _json("calibrate", "-r", str(recipe_file), "-o", target, "--dry-run", *more)
        return document["recipe"]

    ci = resolved("--preset", "ci")
    assert ci["samples"]["trajectories"] == 8
    assert ci["calibration"]["polish"]["steps"] == 20
    assert ci["samples"]["steps"] == 4, "what the preset does not name stays the recipe's"
    chosen = resolved("--set", "calibration.polish.steps=3", "--preset", "ci")
    assert chosen["calibration"]["polish"]["steps"] == 3
    assert chosen["samples"]["trajectories"] == 8
    assert resolved()["samples"]["trajectories"] == 4
    done = invoke(["calibrate", "-r", str(recipe_file), "-o", str(tmp_path), "--preset", "huge"])
    assert done.exit_code == 2
    assert "quick" in done.stderr


@pytest.mark.parametrize("more", [(), ("--dry-run",)], ids=["calibrate", "dry-run"])
def test_trajectories_that_are_all_held_out_are_refused_first(
    recipe_file: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    few = ("--set", "samples.trajectories=2", "--set", "samples.validation_share=0.9")
    target = tmp_path / "new"
    refused = _json("calibrate", "-r", str(recipe_file), "-o", str(target), *few, *more, code=1)["error"]
    assert refused["message"] == "All trajectories are held out for validation."
    assert not (target / "samples.safetensors").exists()


def test_the_seed_changes_the_artifact(run_copy: Path, recipe_file: Path, tmp_path: Path) -> None:
    done = invoke(
        ["calibrate", "-r", str(recipe_file), "-o", str(tmp_path / "other"), "--seed", "1", "--json"]
    )
    assert json.loads(done.stdout)["artifact"] != _json("inspect", str(run_copy))["digest"]
    cost, first, *_ = done.stderr.splitlines()
    assert cost.startswith("this calibration: ")
    assert first.startswith("collect samples ... (stage 1 of ")


def test_unasked_the_models_class_chooses_the_recipe(tmp_path: Path) -> None:
    model = tmp_path / "my ddpm"
    save_model(tiny_unet(classes=None), model)
    done = invoke(["calibrate", "--model", str(model), "-o", str(tmp_path / "new"), "--dry-run", "--json"])
    assert done.exit_code == 0, done.output
    recipe = json.loads(done.stdout)["recipe"]
    assert (recipe["name"], recipe["model"]["source"]) == ("unet-w8a8", str(model))
    assert "recipe: unet-w8a8, for UNet2DModel is a UNet without text" in done.stderr


def test_a_relative_model_is_recorded_as_an_absolute_path(
    model_folder: Path, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model_folder.parent)
    document = _json(
        "calibrate", "-r", str(recipe_file), "-o", str(tmp_path / "new"), "--model", "pipeline", "--dry-run"
    )
    assert document["recipe"]["model"]["source"] == str(model_folder)


def test_export_for_one_target_writes_only_its_graph(run_copy: Path) -> None:
    shutil.rmtree(run_copy / "onnx")
    record = _json("export", "--onnx", str(run_copy), "--target", "ort-cpu")
    assert set(record["files"]) == {"float.onnx", "int8.cpu.onnx"} == {
        p.name for p in (run_copy / "onnx").glob("*.onnx")
    }  # fmt: skip
    again = invoke(["export", "--onnx", str(run_copy), "--target", "ort-cpu"])
    assert "export is already done" in again.stderr


def test_run_draws_the_same_images_in_any_batch(run_copy: Path, tmp_path: Path) -> None:
    pictures = []
    for batch in ("1", "3", "8"):
        file = tmp_path / f"{batch}.png"
        made = _json(
            "run",
            str(run_copy),
            "-n",
            "5",
            "--seed",
            "3",
            "--batch",
            batch,
            "--threads",
            "1",
            "-o",
            str(file),
        )
        assert made["seeds"] == [3, 4, 5, 6, 7]
        assert made["graph"] == "int8.cpu.onnx"
        pictures.append(np.asarray(Image.open(file)))
    assert np.array_equal(pictures[0], pictures[1])
    assert np.array_equal(pictures[0], pictures[2])


@pytest.mark.parametrize(
    ("engine", "graph"), [("float", "float.onnx"), ("openvino", "int8.onnx"), ("ort-cpu", "int8.cpu.onnx")]
)
def test_run_takes_the_graph_that_suits_the_engine(
    run_copy: Path, tmp_path: Path, engine: str, graph: str
) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino")
    made = _json(
        "run", str(run_copy), "-n", "2", "--engine", engine, "--threads", "1", "-o", str(tmp_path / "a.png")
    )
    assert made["graph"] == graph


# diffusers' schedulers hand torch tensors to numpy
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_run_takes_classes_in_turn_and_any_scheduler(run_copy: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    options = ["--class", "2", "--class", "0", "--steps", "4", "--scheduler", "EulerDiscreteScheduler"]
    made = _json("run", str(run_copy), "-n", "3", *options, "--threads", "1", "-o", str(file))
    assert made["class_labels"] == [2, 0, 2]
    assert made["timesteps"] == [999, 666, 333, 0]
    assert file.is_file()


def test_rejudging_writes_nothing(run_copy: Path, tmp_path: Path) -> None:
    thresholds = tmp_path / "t.yaml"
    thresholds.write_text("budget: {image_psnr_db: 99}")
    before = (run_copy / "parity.json").read_bytes()
    assert not _json("parity", str(run_copy), "--rejudge", str(thresholds), code=3)["passed"]
    assert (run_copy / "parity.json").read_bytes() == before
    shown = invoke(["parity", str(run_copy), "--rejudge", str(thresholds)])
    assert shown.exit_code == 3
    verdict, *rest = shown.stdout[shown.stdout.index("DO NOT SHIP") :].splitlines()
    assert verdict.startswith("DO NOT SHIP: 2 of ")
    said = [line for line in rest if line.startswith("- ")]
    assert [line.rpartition(": ")[2].partition(" is ")[0] for line in said] == [
        "PSNR of same-seed images, mean (dB)"
    ] * 2
    assert all(line.endswith(", needs 99") for line in said)
    commands = [shlex.split(line) for line in rest if line.startswith("    gacq-deploy ")]
    assert [words[1] for words in commands] == ["calibrate", "calibrate", "sensitivity"]


def test_rejudging_takes_a_recipe_file(run_copy: Path, recipe_file: Path, tmp_path: Path) -> None:
    strict = tmp_path / "strict.yaml"
    document = yaml.safe_load(recipe_file.read_text())
    document["parity"]["budget"]["image_psnr_db"] = 99
    strict.write_text(yaml.safe_dump(document))
    assert not _json("parity", str(run_copy), "--rejudge", str(strict), code=3)["passed"]
    assert _json("parity", str(run_copy), "--rejudge", str(recipe_file))["passed"]
    del document["parity"]
    strict.write_text(yaml.safe_dump(document))
    assert _json("parity", str(run_copy), "--rejudge", str(strict))["passed"], "it changes no threshold"


def test_verify_names_what_is_absent(run_copy: Path) -> None:
    links = {link["name"]: link["status"] for link in _json("verify", str(run_copy))["links"]}
    assert links == {
        "recipe": "ok", "samples": "ok", "finished steps": "ok", "artifact": "ok", "graphs": "ok",
        "engines": "absent",
        "parity": "ok",
        "bench": "absent",
        "sensitivity": "absent",
        "comparison": "absent",
        "report": "absent",
        "signature": "absent",
    }  # fmt: skip


def test_inspect_names_the_winning_rule(run_copy: Path) -> None:
    document = _json("inspect", str(run_copy))
    weights = [s for s in document["sites"] if s["site"].endswith(":weight")]
    assert {s["rule"] for s in weights} == {2}
    assert {s["rule"] for s in document["sites"] if s not in weights} == {1}
    assert all(s["granularity"] == "axis 0" and 0 < s["saturated"] <= 1 for s in weights)
    assert document["blocks"]
    assert _json("inspect", str(run_copy / "artifact"))["digest"] == document["digest"]
    shown = invoke(["inspect", str(run_copy), "--sites", "mid_block*:weight"]).stdout
    assert "mid_block.resnets.0.conv1:weight" in shown
    assert "up_blocks" not in shown.split("reconstruction")[0]


def test_lint_judges_a_run_for_every_engine(run_copy: Path) -> None:
    judged = _json("lint", str(run_copy))
    assert [(Path(j["file"]).name, j["target"]) for j in judged] == [
        ("int8.onnx", "openvino"), ("int8.onnx", "tensorrt"), ("int8.cpu.onnx", "ort-cpu"),
    ]  # fmt: skip
    assert all(j["counts"]["error"] == 0 for j in judged)
    assert [j["target"] for j in _json("lint", str(run_copy), "--target", "tensorrt")] == ["tensorrt"]
    wrong = _json("lint", str(run_copy / "onnx/int8.cpu.onnx"), "--target", "tensorrt", code=3)
    assert "uint8-codes" in {f["rule"] for f in wrong[0]["findings"]}


@pytest.mark.usefixtures("warm_benches")
@pytest.mark.slow
def test_bench_writes_its_report(run_copy: Path) -> None:
    report = _json("bench", str(run_copy), "--engine", "ort-cpu", "--batch", "2", "--repeats", "1")
    written = json.loads((run_copy / "bench.json").read_text())
    assert written.pop("digest")
    assert report == written
    assert {c["name"] for c in report["candidates"]} == {"ort-cpu/float.onnx", "ort-cpu/int8.cpu.onnx"}
    shown = invoke(["bench", str(run_copy), "--engine", "ort-cpu", "--batch", "2", "--repeats", "1"]).stdout
    assert "times faster" in shown
    assert re.search(
        r"^ort-cpu/int8\.cpu\.onnx: \d\.\d\dx the speed of ort-cpu/float\.onnx at batch 2", shown, re.M
    )
    assert shown.splitlines()[-1] == f"Next: gacq-deploy report {run_copy}"
    links = {link["name"]: link["status"] for link in _json("verify", str(run_copy))["links"]}
    assert links["bench"] == "ok"


def _as_it_stands(recipe: Path) -> list[str]:
    """Return options that set back whatever the default preset of `quickstart` changes."""
    own = load_recipe(recipe).document()
    return [
        option
        for path in _paths(PRESETS["nearest"])
        for option in ("--set", f"{'.'.join(path)}={reduce(operator.getitem, path, own)}")
    ]


def _paths(values: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for key, value in values.items():
        yield from ((key, *rest) for rest in _paths(value)) if isinstance(value, Mapping) else ((key,),)


def test_quickstart_takes_the_cheapest_preset_unless_told(run_copy: Path, recipe_file: Path) -> None:
    assert "[default: nearest]" in " ".join(invoke(["quickstart", "--help"]).stdout.split())
    # the finished run was made with the recipe's own effort
    refused = _json("quickstart", "-r", str(recipe_file), "-o", str(run_copy), code=2)
    assert "another recipe" in refused["error"]["message"]
    assert "samples.keep_every" in refused["error"]["message"]


@pytest.mark.parametrize(
    ("command", "said", "stages"),
    [("quickstart", "preset nearest", 15), ("calibrate", "this calibration", 5)],
    ids=["quickstart", "calibrate"],
)
def test_what_a_run_will_take_is_said_before_its_first_sample(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, said: str, stages: int
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(calibration, "load_samples", stop)  # behind the first stage
    done = invoke([command, "-r", str(recipe_file), "-o", str(tmp_path / "new")])
    assert done.exit_code == 130, done.output
    assert "Run the same command again: it goes on where it stopped." in done.stderr
    ahead, _, _ = done.stderr.partition("collect samples ...")
    assert re.search(
        rf"^{said}: (about [^,]+|a few seconds), .* of memory, .* of disk; \d+ tensors to quantize, \d+ samples",
        ahead,
        re.M,
    )
    (count,) = re.findall(r"collect samples \.\.\. \(stage 1 of (\d+)", done.stderr)
    assert int(count) > stages


@pytest.mark.usefixtures("warm_benches")
@pytest.mark.slow
def test_quickstart_runs_once_and_says_so(
    run_copy: Path, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain, "BENCH", replace(chain.BENCH, repeats=1, turn_seconds=0.001))
    arguments = ("quickstart", "-r", str(recipe_file), "-o", str(run_copy), *_as_it_stands(recipe_file))
    first = _json(*arguments)
    assert first["passed"]
    assert set(first["already_done"]) >= {"calibrate", "export"}
    # the parity at hand judged ort-cpu alone, and OpenVINO is installed
    assert not {"parity", "bench", "comparison"} & set(first["already_done"])
    assert {row["engine"] for row in first["rows"]} == {"ort-cpu", "openvino"}
    assert {row["file"] for row in first["rows"]} >= {"int8.cpu.onnx"}
    row = next(row for row in first["rows"] if row["file"] == "int8.cpu.onnx")
    assert row["int8_bytes"] < row["float_bytes"]
    assert set(row["speedup"]) == {"1", "8"}
    assert row["passed"]
    with Image.open(first["comparison"]) as picture:
        assert picture.width > picture.height
    assert first["report"] == str(run_copy / "report.html")
    assert "Parity passed" in (run_copy / "report.html").read_text()
    files = {
        p: p.stat().st_mtime_ns for p in run_copy.rglob("*") if p.is_file() and not p.name.startswith(".")
    }
    again = invoke(list(arguments))
    assert again.exit_code == 0, again.output
    assert "already done: calibrate, export, parity, bench, comparison" in again.stdout
    table, *_ = again.stdout.split("already done")
    assert f"{row['float_bytes'] / row['int8_bytes']:.1f}x smaller" in table
    lines = again.stdout.splitlines()
    assert lines[-3].startswith("SHIP IT: ")
    assert lines[-2:] == [
        "Next, your own model:",
        "    gacq-deploy calibrate --model ./my-model -o runs/mine",
    ]
    assert "gacq-deploy bench" not in again.stdout, "its figures stand there already"
    assert str(run_copy / "report.html") in again.stdout
    written = {p for p, stamp in files.items() if p.stat().st_mtime_ns != stamp}
    assert written <= {run_copy / "recipe.yaml"}
    links = {link["name"]: link["status"] for link in _json("verify", str(run_copy))["links"]}
    assert links.pop("sensitivity") == "absent"
    assert links.pop("engines") == "absent"
    assert links.pop("signature") == "absent"
    assert set(links.values()) == {"ok"}
    picture_bytes = Path(first["comparison"]).read_bytes()
    Path(first["comparison"]).write_bytes(b"not a picture")
    assert not _json("verify", str(run_copy), code=5)["passed"]
    (run_copy / "parity.json").write_text("{}")
    mended = _json(*arguments)
    assert Path(mended["comparison"]).read_bytes() == picture_bytes
    again_judged = next(row for row in mended["rows"] if row["file"] == "int8.cpu.onnx")
    assert again_judged == row


@pytest.mark.parametrize("name", sorted(builtin_recipes()))
def test_a_shown_recipe_is_the_recipe(name: str, tmp_path: Path) -> None:
    shown = invoke(["recipes", "show", name]).stdout
    file = tmp_path / "shown.yaml"
    file.write_text(shown)
    assert load_recipe(str(file)).digest == load_recipe(name).digest
    assert shown.count("#") > 30
    assert _json("recipes", "validate", str(file))["valid"]


def test_the_schema_explains_every_section() -> None:
    schema = _json("recipes", "schema")
    assert {"samples", "quantization", "parity"} <= set(schema["properties"])
    assert all("description" in section for section in schema["$defs"].values())


def test_recipes_are_listed() -> None:
    assert {r["name"] for r in _json("recipes", "list")} == set(builtin_recipes())


def test_quiet_and_verbose_and_debug(run_copy: Path, tmp_path: Path) -> None:
    quiet = invoke(["run", str(run_copy), "-n", "2", "--threads", "1", "-o", str(tmp_path / "a.png"), "-q"])
    assert quiet.stderr == ""
    loud = invoke(["run", str(run_copy), "-n", "2", "--threads", "1", "-o", str(tmp_path / "a.png")])
    assert "denoise" in loud.stderr
    failed = invoke(["--debug", "run", str(run_copy), "-n", "0", "-o", str(tmp_path / "a.png")])
    assert failed.exit_code == 2
    assert "Traceback" in failed.stderr
    assert "Traceback" not in invoke(["run", str(run_copy), "-n", "0", "-o", str(tmp_path / "a.png")]).stderr


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_takes_the_common_options(name: str) -> None:
    shown = invoke([name, "--help"])
    assert shown.exit_code == 0
    if name != "recipes":
        assert {"--json", "--quiet", "--verbose", "--debug"} <= set(shown.stdout.replace(",", " ").split())


ENDINGS = (
    "verify {run}",
    "inspect {run}",
    "lint {run}",
    "lint {run}/onnx/int8.onnx",
    "check {run} --target ort-cpu",
    "check {run}/onnx/int8.cpu.onnx --target ort-cpu",
    "report {run} --no-images",
    "run {run} -n 1 --threads 1 -o {tmp}/a.png",
    "export {run}",
    "list {run}",
    "parity {run} --rejudge {same}",
    "doctor",
    "recipes list",
    "recipes validate fashion-w8a8",
)


def test_every_command_ends_with_the_next_one_ready_to_paste(finished_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished_run, tmp_path / "my runs" / "it's"))
    same = tmp_path / "same.yaml"
    same.write_text("{}")
    for line in ENDINGS:
        words = [word.format(run=run, tmp=tmp_path, same=same) for word in line.split()]
        done = invoke(words)
        assert done.exit_code == 0, done.output
        *_, sentence, last = done.stdout.splitlines()
        program, name, *rest = shlex.split(last.removeprefix("Next: "))
        assert program == "gacq-deploy", last
        command = cli.commands[name]
        if name != "recipes":
            command.make_context(name, [*rest])
            assert str(run) in rest or name in ("quickstart", "calibrate") or "onnx" in rest[0]
        assert sentence.rstrip(":.)").strip(), "a sentence stands before it"


def test_a_dry_run_counts_tensors_alike_and_names_each_when_asked(recipe_file: Path, tmp_path: Path) -> None:
    command = ["calibrate", "-r", str(recipe_file), "-o", str(tmp_path / "new"), "--dry-run"]
    sites = _json(*command)["estimate"]["sites"]
    short, full = invoke(command).stdout, invoke([*command, "-v"]).stdout
    assert len(short.splitlines()) < 40
    weights = [site for site in sites if site["site"].endswith(":weight")]
    assert f"{len(weights)} weight 7 minmax" in " ".join(short.split())
    assert all(site["site"] in full.split() for site in sites)
    assert "Leave --dry-run out to do it." in short
