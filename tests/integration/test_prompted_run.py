"""A text-to-image model makes images of prompts from the command line, inside its own pipeline."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from gacq_deploy.diffusers import load_denoiser
from gacq_deploy.generate.distributed import share_request
from gacq_deploy.generate.grid import to_uint8, write_grid
from gacq_deploy.generate.request import ImageRequest
from gacq_deploy.processes.group import Group
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.samples.prompts import BUILTIN, draw_prompts
from gacq_deploy.storage.documents import read_json
from gacq_deploy.storage.files import write_json
from tests.support.models.family_runs import UNETS
from tests.support.programs.commands import invoke, run_child

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # diffusers'
]
PROMPTS = ("a cat", "an oil painting of a lake")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibrated and exported pipeline: ``model`` and ``run``. Never written to: copy it."""
    root = tmp_path_factory.mktemp("prompted")
    UNETS["sd"].run(root)
    return root


def command(*words: object) -> Any:
    return invoke(list(map(str, words)))


def result_of(*words: object) -> Any:
    done = command(*words, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def asked(*prompts: str) -> list[str]:
    return [word for prompt in prompts for word in ("--prompt", prompt)]


def by_hand(root: Path, prompts: Sequence[str], seeds: Sequence[int], **given: Any) -> np.ndarray:
    """Make the images as a user of the drop-in would."""
    with load_denoiser(root / "run", threads=1) as denoiser:
        pipeline = DiffusionPipeline.from_pretrained(
            root / "model",
            unet=denoiser,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        images = pipeline(
            list(prompts), generator=generators, num_inference_steps=2, output_type="np", **given
        ).images
    return np.asarray(images, np.float32).transpose(0, 3, 1, 2) * 2 - 1


def assert_same_picture(path: Path, images: np.ndarray, tmp_path: Path) -> None:
    write_grid(tmp_path / "expected.png", images)
    ours, expected = (np.asarray(Image.open(file), np.int64) for file in (path, tmp_path / "expected.png"))
    assert ours.shape == expected.shape
    assert expected.std() > 5
    assert np.abs(ours - expected).max() <= 1


def test_images_are_those_of_the_pipeline(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "images.png"
    made = result_of("run", root / "run", *asked(*PROMPTS), "--seed", 5, "--threads", 1, "-o", file)
    assert made["prompts"] == list(PROMPTS)
    assert (made["seeds"], made["guidance_scale"], made["sampler"]) == ([5, 6], 7.5, "PNDMScheduler")
    assert_same_picture(file, by_hand(root, PROMPTS, [5, 6]), tmp_path)


def test_what_steers_reaches_the_pipeline(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "images.png"
    conditioning = ("--negative-prompt", "blurred", "--guidance-scale", 2, "--threads", 1, "--batch", 1)
    made = result_of("run", root / "run", *asked("a cat"), "-n", 2, *conditioning, "-o", file)
    assert (made["negative_prompt"], made["guidance_scale"]) == ("blurred", 2)
    expected = by_hand(root, ["a cat"] * 2, [0, 1], negative_prompt=["blurred"] * 2, guidance_scale=2.0)
    assert_same_picture(file, expected, tmp_path)


def test_unasked_an_image_takes_the_prompt_of_its_seed(root: Path, tmp_path: Path) -> None:
    first, second = (
        result_of("run", root / "run", "-n", 2, "--seed", seed, "-o", tmp_path / "images.png")["prompts"]
        for seed in (0, 1)
    )
    assert first[1] == second[0] != second[1]


def test_another_scheduler_and_some_steps_in_float(root: Path, tmp_path: Path) -> None:
    more = ("--scheduler", "ddim", "--steps", 3, "--float-steps", 1)
    made = result_of("run", root / "run", *asked("a cat"), *more, "-o", tmp_path / "images.png")
    assert made["sampler"] == "DDIMScheduler"
    assert len(made["timesteps"]) == 3
    assert len(made["step_policy"]["float_timesteps"]) == 1
    assert "(float)" in made["engine"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--class", 3), "takes no class labels"),
        (("--width", 64), "the graph takes 32 pixels only"),
        (("--height", 33), "not a multiple of 2"),
        ((*asked(" "),), "A prompt is empty"),
        (("--scheduler", "Euler"), "no scheduler 'Euler'"),
        (("-n", 0), "0 images"),
        (("--pipeline", "nowhere"), "neither a folder nor a hub id"),
    ],
)
def test_what_cannot_be_is_refused(root: Path, tmp_path: Path, options: Sequence[Any], message: str) -> None:
    result = command("run", root / "run", *options, "-o", tmp_path / "images.png")
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "images.png").exists()


def test_the_pipeline_may_have_moved_and_needs_no_float_denoiser(root: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(root / "model", tmp_path / "moved"))
    for weights in (moved / "unet").glob("*.safetensors"):
        weights.unlink()
    file = tmp_path / "images.png"
    (root / "model").rename(root / "away")
    try:
        lost = command("run", root / "run", *asked("a cat"), "-o", file)
        found = command("run", root / "run", *asked("a cat"), "--pipeline", moved, "-o", file)
        unseen = command("report", root / "run", "-o", tmp_path / "unseen.html", "--json")
        seen = result_of("report", root / "run", "-o", tmp_path / "seen.html", "--pipeline", moved)
    finally:
        (root / "away").rename(root / "model")
    assert "Prompts need the model's pipeline" in json.loads(unseen.stdout)["missing"]["pictures"]
    assert "pass --pipeline FOLDER" in (tmp_path / "unseen.html").read_text()
    assert "pictures" not in seen["missing"]
    assert lost.exit_code == 2
    assert "pass --pipeline FOLDER" in lost.stderr
    assert found.exit_code == 0, found.stderr
    assert file.is_file()


def test_the_report_shows_what_the_pipeline_makes_of_the_prompts(root: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert "pictures" not in result_of("report", root / "run", "-o", page)["missing"]
    tiles = re.findall(
        r'src="data:image/png;base64,([^"]+)" alt="INT8: ([^"]+), seed (\d+)"', page.read_text()
    )
    assert len(tiles) == 4
    recipe = RunDirectory(root / "run").load_recipe()
    prompts = draw_prompts(recipe.samples.prompts or BUILTIN, recipe.samples.seed, 0, 4)
    expected = to_uint8(by_hand(root, prompts, range(4)))
    for png, prompt, seed in tiles:
        assert html.unescape(prompt) == prompts[int(seed)]
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(png))), np.int64)
        assert np.abs(shown - expected[int(seed)]).max() <= 1


def test_without_torch_the_report_says_what_its_images_need(root: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    before = "import sys\nsys.modules['torch'] = sys.modules['diffusers'] = None"
    done = run_child(["report", str(root / "run"), "-o", str(page), "--json"], before=before)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "A model with prompts is not available" in json.loads(done.stdout)["missing"]["pictures"]
    images = page.read_text().partition('<section id="images">')[2].partition("</section>")[0]
    assert "pip install" in images
    assert "gacq-deploy[calibrate,text]" in images


@pytest.mark.parametrize(
    ("part", "message"), [("vae", "has no decoder"), ("text_encoder", "has no text encoder")]
)
def test_a_pipeline_without_a_part_is_refused(root: Path, tmp_path: Path, part: str, message: str) -> None:
    broken = Path(shutil.copytree(root / "model", tmp_path / "broken"))
    index = read_json(broken / "model_index.json", what="index", hint="")
    write_json(broken / "model_index.json", index | {part: [None, None]})
    result = command(
        "run", root / "run", *asked("a cat"), "--pipeline", broken, "-o", tmp_path / "images.png"
    )
    assert result.exit_code == 2
    assert message in result.stderr


def test_two_processes_share_seeds_and_prompts(root: Path) -> None:
    whole = ImageRequest(count=3, seed=5, batch=2, prompts=PROMPTS)
    shares = [share_request(RunDirectory(root / "run"), whole, Group(rank, 2)) for rank in range(2)]
    taken = [
        (share.seed + i, share.prompts[i % len(PROMPTS)], share.labels)
        for share in shares
        if share is not None
        for i in range(share.count)
    ]
    assert taken == [(5, PROMPTS[0], None), (6, PROMPTS[1], None), (7, PROMPTS[0], None)]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--class", "3"), "takes no class labels"),
        (("-n", "0"), "0 images"),
        (("--engine", "ort-cup"), "Did you mean 'ort-cpu'?"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_what_needs_no_pipeline_to_be_refused_is_refused_before_it_is_imported(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], says: str
) -> None:
    monkeypatch.setitem(sys.modules, "gacq_deploy.generate.pipeline.prompted", None)
    result = command("run", root / "run", *options, "-o", tmp_path / "images.png")
    assert result.exit_code == 2
    assert says in result.stderr
