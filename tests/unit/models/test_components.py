"""A component that lies is refused with its file, its key and its value, before the pipeline is opened."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from gacq_deploy.errors import ArtifactError, GacqError, ModelError, RecipeError
from gacq_deploy.models.components import check_components
from gacq_deploy.models.folders import component_folder, read_pipeline
from gacq_deploy.models.pipelines import check_conditioning, open_pipeline
from gacq_deploy.models.source import find_source, load_module
from gacq_deploy.recipe.sections import ModelSection, SamplesSection
from tests.support.models.pipelines import PIPELINES

TEXT, DECODER = "text_encoder/config.json", "vae/config.json"
SCHEDULER, TOKENIZER = "scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json"
VOCABULARY, MERGES = "tokenizer/vocab.json", "tokenizer/merges.txt"
TEXT_WEIGHTS, DECODER_WEIGHTS = (
    "text_encoder/model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return PIPELINES["sd"](tmp_path_factory.mktemp("whole") / "model")


def refusal(root: Path) -> GacqError | None:
    """Return what is said of the folder; any other exception is a failure of the test."""
    try:
        check_components(root, read_pipeline(root), denoiser="unet")
    except GacqError as error:
        return error
    return None


def test_what_is_whole_passes(whole: Path) -> None:
    assert refusal(whole) is None


@pytest.mark.parametrize(
    ("file", "key", "lies"),
    [
        (TEXT, "hidden_size", (0, -1, 10**9, "8", [], None, True, 1.5, 50)),
        (TEXT, "num_hidden_layers", (0, -1, "8", 3, 50, 10**7)),
        (TEXT, "vocab_size", (0, 10**9, 7)),
        (TEXT, "hidden_act", (3, "eight")),
        (DECODER, "latent_channels", (0, -1, 10**9, "8", [], None, True, 1.5)),
        (DECODER, "block_out_channels", (0, "8", [], [16, "32"], None)),
        (DECODER, "scaling_factor", ("8", [], True)),
        (DECODER, "layers_per_block", (10**7, 10**9)),
        (SCHEDULER, "num_train_timesteps", (0, -1, 10**6, 10**9, "8", [], None, True, 1.5)),
        (SCHEDULER, "beta_start", (-1, 1.5, "8", [], True, None)),
        (SCHEDULER, "beta_schedule", (3, "eight", None)),
        (SCHEDULER, "trained_betas", (3, "8", [], [0.5, 2.0], ["a"])),
        (TOKENIZER, "model_max_length", (0, -5, 10**9, "x", True)),
    ],
)
def test_a_value_that_lies_is_named(
    whole: Path, tmp_path: Path, file: str, key: str, lies: tuple[object, ...]
) -> None:
    root = Path(shutil.copytree(whole, tmp_path / "model"))
    honest = json.loads((root / file).read_text(encoding="utf-8"))
    for lie in lies:
        (root / file).write_text(json.dumps(honest | {key: lie}), encoding="utf-8")
        said = refusal(root)
        assert isinstance(said, ArtifactError), (lie, said)
        assert said.message.startswith(f"{root / file}: "), said
        assert f"{key} = {lie!r} " in said.message, said
        assert said.hint


@pytest.mark.parametrize(
    ("file", "content", "fragment"),
    [
        (VOCABULARY, b"{}", "vocab.json holds no entry"),
        (VOCABULARY, b"[", "vocab.json is not readable JSON"),
        (VOCABULARY, b'{"a": "b"}', "vocab.json: 'a' is 'b', no number from 0 to"),
        (VOCABULARY, b'{"a": -4}', "vocab.json: 'a' is -4, no number from 0 to"),
        (VOCABULARY, b'{"a": true}', "vocab.json: 'a' is True, no number from 0 to"),
        (TOKENIZER, b"[]", "tokenizer_config.json is not readable JSON"),
        ("model_index.json", b'{"_class_name": "P", "../..": ["diffusers", "X"]}', r"'\.\./\.\.' is no name"),
        ("model_index.json", b'{"_class_name": "P", "/etc": ["diffusers", "X"]}', "'/etc' is no name"),
        ("model_index.json", b'{"_class_name": "P", "vae": [1, 2]}', r"vae = \[1, 2\] names no library"),
    ],
)
def test_what_no_library_could_read_is_refused(
    whole: Path, tmp_path: Path, file: str, content: bytes, fragment: str
) -> None:
    root = Path(shutil.copytree(whole, tmp_path / "model"))
    (root / file).write_bytes(content)
    said = refusal(root)
    assert isinstance(said, ArtifactError)
    assert re.search(fragment, said.message), said


def spoil_merges(root: Path) -> None:
    (root / MERGES).write_bytes(bytes(range(256)))


def shrink(root: Path) -> None:
    state = {name: value * 1e-42 for name, value in load_file(root / TEXT_WEIGHTS).items()}
    save_file(state, root / TEXT_WEIGHTS, metadata={"format": "pt"})


def poison(file: str, value: float) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        state: dict[str, Any] = load_file(root / file)
        state[min(state)].view(-1)[0] = value
        save_file(state, root / file, metadata={"format": "pt"})

    return spoil


def rename(file: str) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        state: dict[str, Any] = load_file(root / file)
        state["nobody.weight"] = state.pop(min(state))
        save_file(state, root / file, metadata={"format": "pt"})

    return spoil


@pytest.mark.parametrize(
    ("spoil", "kind", "fragment"),
    [
        (spoil_merges, ModelError, "Tokenizer .*/tokenizer cannot be loaded: .*Merges text file invalid"),
        (poison(TEXT_WEIGHTS, float("nan")), ArtifactError, "/text_encoder: weight '.*' holds NaN or Inf"),
        (
            shrink,
            ArtifactError,
            "/text_encoder: no number in weight '.*' is larger than .*: all of it is denormal",
        ),
        (rename(DECODER_WEIGHTS), ModelError, r"/vae: the weights lack tensor '.*' \(1 in all\)"),
        (poison(DECODER_WEIGHTS, float("-inf")), ArtifactError, "/vae: weight '.*' holds NaN or Inf"),
    ],
)
def test_what_shows_when_it_is_loaded_is_refused_with_its_component(
    whole: Path, tmp_path: Path, spoil: Callable[[Path], None], kind: type[GacqError], fragment: str
) -> None:
    root = Path(shutil.copytree(whole, tmp_path / "model"))
    spoil(root)
    source = find_source(ModelSection(source=str(root)))
    check_conditioning(source, SamplesSection())
    with pytest.raises(kind, match=fragment):
        open_pipeline(source, load_module(source))


def test_a_text_encoder_whose_weights_lack_a_tensor_is_refused_before_it_is_opened(
    whole: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(whole, tmp_path / "model"))
    rename(TEXT_WEIGHTS)(root)
    said = refusal(root)
    assert isinstance(said, ModelError)
    assert re.search(r"/text_encoder: the weights lack tensor '.*' \(1 in all\)", said.message)


@pytest.mark.parametrize("shard", [3, None, ["a"], "../x.safetensors", "/etc/passwd", "", "..", "a\0b"])
def test_an_index_names_files_beside_itself(whole: Path, tmp_path: Path, shard: object) -> None:
    root = Path(shutil.copytree(whole, tmp_path / "model"))
    index = root / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": shard}}), encoding="utf-8")
    with pytest.raises(
        ArtifactError,
        match=r"weight_map lays 'conv_in.weight' into .*, which is no file|weight_map.conv_in.weight: ",
    ) as said:
        load_module(find_source(ModelSection(source=str(root))))
    quoted = ascii(shard)[1:-1] if isinstance(shard, str) else str(shard)
    assert isinstance(shard, list) or quoted in said.value.message


@pytest.mark.parametrize("component", ["..", "../..", "/etc", "unet/../..", ""])
def test_a_component_that_leads_elsewhere_is_the_recipe_s_fault(whole: Path, component: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(f"model.component is {component!r}")):
        component_folder(whole, component)
