"""What do the commands make of a step policy: some sampler steps in float, the others in INT8?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from gacq_deploy.bench.measure import BenchSettings
from gacq_deploy.recipe.load import load_recipe
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.workflow.quickstart import ChainResult, run_chain
from tests.support.programs.commands import invoke

POLICY = "runtime.step_policy={float_steps: 2, where: both}"
STEPS = 4
SHORT = BenchSettings(batches=(2,), repeats=1, turn_seconds=0.001)


def _json(*arguments: str, code: int = 0) -> Any:
    done = invoke([*arguments, "--json"])
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


def _draw(run: Path, file: Path, *more: str) -> tuple[bytes, Any]:
    """Return a picture's bytes and what `run` says about it."""
    said = _json("run", str(run), "-n", "3", "--threads", "1", "-o", str(file), *more)
    return file.read_bytes(), said


def _ask(run: Path, recipe: Path, *policy: str) -> None:
    """Give a finished run another recipe as a user does."""
    more = [part for one in policy for part in ("--set", one)]
    done = invoke(["calibrate", "-r", str(recipe), "-o", str(run), *more])
    assert done.exit_code == 0, done.output
    assert "calibration is already done" in done.stderr


def _chain(run: Path, recipe: Path, *policy: str) -> ChainResult:
    return run_chain(load_recipe(str(recipe), policy), RunDirectory(run), settings=SHORT)


def test_none_is_the_int8_engine_and_all_the_float_one_bit_for_bit(run_copy: Path, tmp_path: Path) -> None:
    int8, said = _draw(run_copy, tmp_path / "a.png")
    assert said["step_policy"] is None
    exact, _ = _draw(run_copy, tmp_path / "b.png", "--engine", "float")
    assert int8 != exact
    assert _draw(run_copy, tmp_path / "c.png", "--float-steps", "0")[0] == int8
    for where in ("worst", "first", "last", "both"):
        whole = _draw(run_copy, tmp_path / "d.png", "--float-steps", str(STEPS), "--float-where", where)
        assert whole[0] == exact
        assert whole[1]["step_policy"]["float_share"] == 1


def test_run_says_which_steps_ran_in_float(run_copy: Path, tmp_path: Path) -> None:
    mixed, said = _draw(run_copy, tmp_path / "a.png", "--float-steps", "1", "--float-where", "first")
    assert said["step_policy"]["asked"] == {"float_steps": 1, "where": "first", "steps": []}
    assert said["step_policy"]["float_timesteps"] == said["timesteps"][:1]
    assert "(INT8)" in said["engine"]
    assert "1 of 4 steps in float" in said["engine"]
    assert mixed != _draw(run_copy, tmp_path / "b.png")[0]
    batched = _draw(
        run_copy, tmp_path / "c.png", "--float-steps", "1", "--float-where", "first", "--batch", "1"
    )
    assert batched[0] == mixed
    shown = invoke(["run", str(run_copy), "-n", "2", "--float-steps", "1", "-o", str(tmp_path / "d.png")])
    assert "1 of 4 steps in float (worst: " in shown.stdout


def test_the_recipes_policy_runs_unless_told_otherwise(
    run_copy: Path, recipe_file: Path, tmp_path: Path
) -> None:
    before = (run_copy / "artifact/manifest.json").read_bytes()
    _ask(run_copy, recipe_file, POLICY)
    assert (run_copy / "artifact/manifest.json").read_bytes() == before
    assert (
        yaml.safe_load((run_copy / "recipe.yaml").read_text())["runtime"]["step_policy"]["float_steps"] == 2
    )
    asked, said = _draw(run_copy, tmp_path / "a.png")
    timesteps = said["timesteps"]
    assert said["step_policy"]["float_timesteps"] == [timesteps[0], timesteps[-1]]
    named = _draw(run_copy, tmp_path / "b.png", "--float-steps", "2", "--float-where", "both")
    assert named[0] == asked
    moved = _draw(run_copy, tmp_path / "c.png", "--float-where", "first")[1]["step_policy"]
    assert moved["float_timesteps"] == timesteps[:2]
    assert _draw(run_copy, tmp_path / "d.png", "--float-steps", "0")[1]["step_policy"] is None
    assert _draw(run_copy, tmp_path / "e.png", "--engine", "float")[1]["step_policy"] is None


def test_parity_judges_the_mix_and_says_what_it_judged(run_copy: Path, recipe_file: Path) -> None:
    plain = json.loads((run_copy / "parity.json").read_text())
    assert "step_policy" not in plain["subject"]
    assert {e["evidence"] for e in plain["comparisons"]} >= {"budget"}
    _ask(run_copy, recipe_file, POLICY)
    stale = next(n for n in _json("verify", str(run_copy), code=5)["links"] if n["name"] == "parity")
    assert "runtime.step_policy" in stale["detail"]
    judged = _json("parity", str(run_copy), "--engine", "ort-cpu", "--threads", "1")
    assert _json("verify", str(run_copy))["passed"]
    policy = judged["subject"]["step_policy"]
    assert policy["asked"]["where"] == "both"
    assert policy["float_share"] == 0.5
    comparisons = {(e["evidence"], e["candidate"]): e for e in judged["comparisons"]}
    assert "budget" not in {evidence for evidence, _ in comparisons}
    for file in ("int8.onnx", "int8.cpu.onnx"):
        name = f"{file}@ort-cpu"
        single, mixed = comparisons["single", name], comparisons["mixed", name]
        assert set(single["thresholds"]) == {"eps_sqnr_db", "eps_cosine"}
        assert set(mixed["thresholds"]) == {
            "latents_differ", "trajectory_cosine", "image_psnr_db", "image_ssim",
        }  # fmt: skip
        before = next(e for e in plain["comparisons"] if e["evidence"] == "budget" and e["candidate"] == name)
        assert single["metrics"] == before["metrics"], "the INT8 engine is what it was"
        assert mixed["metrics"]["image_psnr_db"] > single["metrics"]["image_psnr_db"]
        assert f"{name} mixed" in judged["trajectory"]["by_step"]
        assert "2 of 4 steps in float" in mixed["engine"]
    shown = invoke(["parity", str(run_copy), "--engine", "ort-cpu", "--threads", "1"])
    assert "mixed" in shown.stdout


def test_parity_of_a_wholly_float_trajectory_is_exact(run_copy: Path, recipe_file: Path) -> None:
    _ask(run_copy, recipe_file, f"runtime.step_policy={{float_steps: {STEPS}, where: first}}")
    judged = _json("parity", str(run_copy), "--engine", "ort-cpu", "--threads", "1")
    mixed = [e for e in judged["comparisons"] if e["evidence"] == "mixed"]
    assert len(mixed) == 2
    for comparison in mixed:
        assert comparison["metrics"]["image_psnr_db"] == comparison["metrics"]["image_psnr_db_min"] == 100
        assert comparison["metrics"]["trajectory_cosine_min"] == 1


def test_numbers_of_a_mix_are_judged_again_without_a_run(
    run_copy: Path, recipe_file: Path, tmp_path: Path
) -> None:
    thresholds = tmp_path / "t.yaml"
    thresholds.write_text("budget: {image_psnr_db: 99}")
    _ask(run_copy, recipe_file, POLICY)
    refused = _json("parity", str(run_copy), "--rejudge", str(thresholds), code=5)
    assert "runtime.step_policy" in refused["error"]["message"]
    _json("parity", str(run_copy), "--engine", "ort-cpu", "--threads", "1")
    strict = _json("parity", str(run_copy), "--rejudge", str(thresholds), code=3)
    assert {e["evidence"] for e in strict["comparisons"] if not e["passed"]} == {"mixed"}


def test_the_page_says_which_steps_run_in_float(run_copy: Path, recipe_file: Path) -> None:
    _json("report", str(run_copy), "--no-images")
    assert "Steps in float" not in (run_copy / "report.html").read_text()
    _ask(run_copy, recipe_file, POLICY)
    _json("parity", str(run_copy), "--engine", "ort-cpu", "--threads", "1")
    _json("report", str(run_copy), "--no-images")
    page = (run_copy / "report.html").read_text()
    assert "2 of 4 sampler steps run in float (timesteps " in page
    assert "Parity passed" in page


@pytest.mark.usefixtures("warm_benches")
@pytest.mark.slow
def test_bench_says_what_a_mixed_trajectory_takes(run_copy: Path, recipe_file: Path) -> None:
    command = ["bench", str(run_copy), "--engine", "ort-cpu", "--batch", "2", "--repeats", "1"]
    assert "steps in float" not in invoke(command).stdout
    _ask(run_copy, recipe_file, POLICY)
    assert "ort-cpu/int8.cpu.onnx, batch 2, with 2 of 4 steps in float" in invoke(command).stdout


@pytest.mark.usefixtures("warm_benches")
@pytest.mark.slow
def test_another_policy_is_judged_and_drawn_again_by_the_chain(run_copy: Path, recipe_file: Path) -> None:
    plain = _chain(run_copy, recipe_file)
    mixed, again = (_chain(run_copy, recipe_file, POLICY) for _ in range(2))
    assert not {"parity", "comparison"} & set(mixed.already_done)
    assert set(again.already_done) >= {"calibrate", "export", "parity", "comparison"}
    for before, after in zip(plain.rows, mixed.rows, strict=True):
        assert before.image_psnr_db is not None
        assert after.image_psnr_db is not None
        assert after.image_psnr_db > before.image_psnr_db
        assert after.eps_sqnr_db == before.eps_sqnr_db
