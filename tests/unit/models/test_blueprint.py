"""Whatever stands in a model's configuration, it loads or its key is named, and no memory is taken for it."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel
from torch import nn

from gacq_deploy.errors import ArtifactError, GacqError, ModelError, RecipeError
from gacq_deploy.models.blueprint import Blueprint
from gacq_deploy.models.configuration import check_values
from gacq_deploy.models.source import family_of, find_source, load_module
from gacq_deploy.recipe.sections import ModelSection
from tests.support.models.configurations import MODELS
from tests.support.models.tiny import SCHEDULER, tiny_unet

LIES = (0, -1, 10**9, "8", [], None, True, 1.5)
STRIDES = {UNet2DModel: 3, UNet2DConditionModel: 7, DiTTransformer2DModel: 1}
"""Every so manieth case of the table is tried: all of them hold, and take twenty seconds; `model-config` of the fuzzed
readers tries others."""


@cache
def healthy(kind: Any) -> Blueprint:
    """Return a model of the table; nothing of it is changed."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        module = kind(**MODELS[kind])
    config = json.loads(json.dumps({k: v for k, v in module.config.items() if not k.startswith("_")}))
    stored = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    return Blueprint.of_diffusers(kind, config, Path("unet/config.json"), stored)


def blueprint(kind: Any, **lies: object) -> Blueprint:
    """Return a model of the table whose weights are right, and whose configuration lies."""
    whole = healthy(kind)
    return replace(whole, config={**whole.config, **lies})


def refusal(lying: Blueprint) -> GacqError | None:
    """Return what is said of a configuration; any other exception is a failure of the test."""
    try:
        check_values(lying.kind, lying.config, lying.place)
        lying.check(family_of(lying.kind.__name__))
    except GacqError as error:
        return error
    return None


@pytest.mark.parametrize("kind", MODELS)
def test_a_value_that_lies_is_named_or_does_no_harm(kind: Any) -> None:
    keys = sorted(blueprint(kind).config)
    for key, lie in itertools.islice(itertools.product(keys, LIES), 0, None, STRIDES[kind]):
        said = refusal(blueprint(kind, **{key: lie}))
        if said is not None:
            assert isinstance(said, ArtifactError), (key, lie, said)
            assert f"{key} = {lie!r}" in said.message, (key, lie, said)
            assert said.message.startswith("unet/config.json: ")
            assert said.hint


@pytest.mark.parametrize(
    ("kind", "lie", "fragment"),
    [
        (UNet2DModel, {"in_channels": True}, "in_channels = True is no int, as UNet2DModel takes it"),
        (UNet2DModel, {"block_out_channels": []}, "block_out_channels = .* is empty"),
        (UNet2DModel, {"block_out_channels": [8, "16"]}, "block_out_channels = .* is no tuple"),
        (UNet2DModel, {"norm_num_groups": 1 << 40}, "norm_num_groups = .* is beyond 100000000"),
        (UNet2DModel, {"sample_size": [8, 8, 8]}, "sample_size = .* is no height and width from 1 to 16384"),
        (UNet2DModel, {"norm_num_groups": 3}, "norm_num_groups = 3 cannot be: ValueError"),
        (UNet2DModel, {"sample_size": 7}, "sample_size = 7 cannot run: RuntimeError: Sizes of tensors"),
        (UNet2DModel, {"in_channels": 2}, "in_channels = 2 makes 'conv_in.weight' .* the weights hold"),
        (
            UNet2DModel,
            {"layers_per_block": 1 << 20},
            "layers_per_block = 1048576 cannot be: .*more than twice",
        ),
        (DiTTransformer2DModel, {"num_layers": 1 << 20}, "num_layers = 1048576 cannot be: .*more than twice"),
        (DiTTransformer2DModel, {"activation_fn": "8"}, "activation_fn = '8' cannot be: UnboundLocalError"),
    ],
)
def test_the_message_says_what_is_wrong(kind: Any, lie: dict[str, object], fragment: str) -> None:
    said = refusal(blueprint(kind, **lie))
    assert said is not None
    assert re.match(f"unet/config.json: {fragment}", said.message), said
    assert "Restore the file" in said.hint


@pytest.mark.parametrize(
    ("kind", "lie", "blamed"),
    [
        (UNet2DConditionModel, {"cross_attention_dim": 48}, "cross_attention_dim = 48 makes"),
        (DiTTransformer2DModel, {"num_attention_heads": 48}, "num_attention_heads = 48 makes"),
        (DiTTransformer2DModel, {"attention_head_dim": 48}, "attention_head_dim = 48 makes"),
    ],
)
def test_no_key_is_blamed_beside_the_one_that_the_weights_show(
    kind: Any, lie: dict[str, object], blamed: str
) -> None:
    said = refusal(blueprint(kind, **lie))
    assert said is not None
    assert said.message.startswith(f"unet/config.json: {blamed}")


def test_the_search_for_a_guilty_key_makes_a_bounded_number_of_models() -> None:
    # no other value of a key makes these weights
    lying = blueprint(UNet2DConditionModel)
    lying = replace(lying, stored=dict.fromkeys(lying.stored, (7, 7)))
    made = 0

    def count(_module: object, _name: str, parameter: object) -> None:
        nonlocal made
        made += parameter is not None

    handle = nn.modules.module.register_module_parameter_registration_hook(count)
    try:
        said = refusal(lying)
    finally:
        handle.remove()
    assert said is not None
    assert "the weights hold [7, 7]" in said.message
    assert made < 48 * len(lying.stored)


def test_a_size_that_the_recipe_asks_for_is_the_recipe_s_fault() -> None:
    with pytest.raises(RecipeError, match=r"model.sample_size is 7, .* at that size") as caught:
        blueprint(UNet2DModel).check(family_of("UNet2DModel"), 7)
    assert "a multiple of 2" in caught.value.hint
    blueprint(UNet2DModel).check(family_of("UNet2DModel"), 10)


def test_a_check_leaves_torch_s_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    blueprint(UNet2DModel).check(family_of("UNet2DModel"))
    assert torch.equal(before, torch.get_rng_state())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "model"
    tiny_unet().save_pretrained(folder)
    scheduler = folder / "scheduler" / "scheduler_config.json"
    scheduler.parent.mkdir()
    scheduler.write_text(json.dumps(SCHEDULER), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("lies", "error", "fragment"),
    [
        ({"in_channels": "1"}, ArtifactError, "in_channels = '1' is no int"),
        ({"sample_size": 0}, ArtifactError, "sample_size = 0 is no height and width"),
        ({"layers_per_block": 2}, ArtifactError, "layers_per_block = 2 makes"),
        ({"add_attention": False}, ModelError, "config.json says .*add_attention = False"),
    ],
)
def test_a_folder_is_refused_with_its_key(
    whole: Path, tmp_path: Path, lies: dict[str, object], error: type[GacqError], fragment: str
) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "model"))
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | lies), encoding="utf-8")
    with pytest.raises(error, match=fragment):
        load_module(find_source(ModelSection(source=str(folder))))
