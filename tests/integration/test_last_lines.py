"""What is the last thing that a command says? What was made, in one sentence with its numbers, and what comes next."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image

from gacq_deploy.parity import load_report
from gacq_deploy.recipe.load import load_recipe
from gacq_deploy.run_directory import RunDirectory
from tests.support.programs.commands import invoke

STRICT = "budget: {image_psnr_db: 99}"
NUMBER = r"\d+\.\d"
TIME = r"[\d.]+ (min \d+ )?s"
"""However long it takes."""


@pytest.fixture(scope="module")
def spaced_run(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy in a folder whose name needs quotes, beside thresholds as they were and stricter ones."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "same.yaml").write_text("{}")
    (folder / "strict.yaml").write_text(STRICT)
    return Path(shutil.copytree(finished_run, folder / "my run"))


ENDINGS = {
    "calibrate -r {recipe} -o {run}": (
        rf"W7A8: \d+ layers quantized \(artifact [0-9a-f]{{12}}\)\. Output SQNR in the worst timestep bucket: "
        rf"{NUMBER} dB with nearest rounding, {NUMBER} dB learned\. {TIME}\.",
        "export {run}",
    ),
    "export {run}": (
        rf"float\.onnx {NUMBER} kB, int8\.onnx {NUMBER} kB \({NUMBER}x smaller\), "
        rf"int8\.cpu\.onnx {NUMBER} kB \({NUMBER}x smaller\); lint clean\.",
        "parity {run}",
    ),
    "parity {run} --rejudge {folder}/same.yaml": (
        rf"SHIP IT: (\d+) of \1 gates hold \(image PSNR {NUMBER} dB, needs 10; worst timestep bucket {NUMBER} dB, "
        r"needs 10\)\. \(.*parity\.json\)",
        "bench {run}",
    ),
    "report {run} --no-images": (
        rf"report: .*/my run/report\.html \({NUMBER} kB\), verdict: passed\. Open it in a browser\.",
        "bench {run}",
    ),
    "run {run} -n 2 --threads 1 -o {folder}/a.png": (
        rf"2 images in {TIME} \(\d+\.\d\d s each\): .*/a\.png",
        "bench {run}",
    ),
}


@pytest.mark.parametrize("command", ENDINGS, ids=lambda command: command.split()[0])
def test_a_sentence_and_the_next_command(spaced_run: Path, recipe_file: Path, command: str) -> None:
    sentence, following = ENDINGS[command]
    places = {"run": str(spaced_run), "recipe": str(recipe_file), "folder": str(spaced_run.parent)}
    done = invoke([word.format(**places) for word in command.split()])
    assert done.exit_code == 0, done.output
    *_, said, last = done.stdout.splitlines()
    assert re.fullmatch(sentence, said), said
    assert last == f"Next: gacq-deploy {following.format(run=shlex.quote(str(spaced_run)))}"


def test_a_failed_verdict_names_gates_and_what_helps(spaced_run: Path) -> None:
    done = invoke(["parity", str(spaced_run), "--rejudge", str(spaced_run.parent / "strict.yaml")])
    assert done.exit_code == 3, done.output
    lines = done.stdout.splitlines()
    verdict = next(i for i, line in enumerate(lines) if line.startswith("DO NOT SHIP: 2 of "))
    assert re.match(r"DO NOT SHIP: 2 of \d+ gates failed\. \(.*parity\.json\)", lines[verdict])
    gates, helps = lines[verdict + 1 : verdict + 3], lines[verdict + 3 :]
    for gate, graph in zip(gates, ("int8.onnx", "int8.cpu.onnx"), strict=True):
        assert re.fullmatch(
            rf"- {graph}@ort-cpu: PSNR of same-seed images, mean \(dB\) is [\d.]+, needs 99", gate
        )
    assert [line for line in helps if line.startswith("What may help")] == [
        "What may help (1), learn with more effort:",
        "What may help (2), run 1 of 4 sampler steps in float, then judge again:",
        "What may help (3), find the layers to leave float:",
    ]
    commands = [shlex.split(line) for line in helps if line.startswith("    ")]
    assert [words[:2] for words in commands] == [
        ["gacq-deploy", "calibrate"], ["gacq-deploy", "calibrate"], ["gacq-deploy", "sensitivity"],
    ]  # fmt: skip
    assert commands[2][2:4] == [str(spaced_run), "--min-sqnr"]


def test_sensitivity_says_which_gate_its_target_comes_from(spaced_run: Path, tmp_path: Path) -> None:
    run = RunDirectory(shutil.copytree(spaced_run, tmp_path / "run"))
    strict = load_recipe(run.recipe_path, ["parity.budget.image_psnr_db=99"])
    strict.save(run.recipe_path)
    load_report(run.parity_json).under(strict.parity).save(run.parity_json)
    # what stops it stands behind the target: no graph has this name
    done = invoke(["sensitivity", str(run.root), "--graph", "none.onnx"])
    assert done.exit_code == 2
    said = " ".join(done.stderr.split())
    assert re.search(
        r"parity failed PSNR of same-seed images, mean \(dB\): the target is \d+ dB, from how much", said
    )
    assert "the target is" not in invoke(["sensitivity", str(spaced_run), "--graph", "none.onnx"]).stderr


def test_an_image_is_as_large_as_asked(spaced_run: Path, tmp_path: Path) -> None:
    sizes = []
    for scale in ((), ("--scale", "1"), ("--scale", "3")):
        made = invoke(
            ["run", str(spaced_run), "-n", "1", "--threads", "1", "-o", str(tmp_path / "a.png"), *scale]
        )
        assert made.exit_code == 0, made.output
        with Image.open(tmp_path / "a.png") as picture:
            sizes.append(picture.width - 4)  # two pixels of paper at each side
    assert sizes == [64, 8, 24]
