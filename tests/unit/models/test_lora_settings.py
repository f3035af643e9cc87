"""A LoRA's metadata choose ranks and scales, and nothing else that peft could be told to do."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig

from gacq_deploy.errors import ModelError
from gacq_deploy.models.lora_settings import PairSettings, check_settings

FILE = Path("lora.safetensors")
USUAL: dict[str, Any] = LoraConfig(r=4, lora_alpha=8, target_modules=["to_q"]).to_dict()
"""What peft itself writes."""


def _metadata(settings: dict[str, Any], component: str = "unet") -> dict[str, Any]:
    return {f"{component}.{name}": value for name, value in settings.items()}


@pytest.mark.parametrize(
    "settings",
    [
        USUAL | {"target_modules": ["to_q"]},
        {
            "r": 4,
            "lora_alpha": 2.5,
            "rank_pattern": {"to_q": 8},
            "alpha_pattern": {"to_q": 1},
            "use_rslora": True,
        },
        {"init_lora_weights": "gaussian", "base_model_name_or_path": "owner/name", "peft_version": "99"},
        {"a setting of a newer release": None, "another": False},
        {},
    ],
    ids=["as peft writes it", "patterns", "of training", "newer", "nothing"],
)
def test_a_plain_pair_is_taken(settings: dict[str, Any]) -> None:
    check_settings(_metadata(settings), "unet", FILE)
    check_settings(None, "unet", FILE)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("megatron_core", "antigravity"),
        ("megatron_config", {"a": 1}),
        ("init_lora_weights", "pissa"),
        ("bias", "all"),
        ("use_dora", True),
        ("lora_bias", True),
        ("modules_to_save", ["conv_in"]),
        ("layer_replication", [[0, 9]]),
        ("loftq_config", {"loftq_bits": 4}),
        ("a setting of a newer release", 1),
        ("r", 0),
        ("r", "4"),
        ("r", True),
        ("lora_alpha", float("inf")),
        ("rank_pattern", {"to_q": -1}),
        ("alpha_pattern", ["to_q"]),
        ("target_modules", 3),
    ],
)
def test_any_other_setting_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ModelError, match=rf"^LoRA {FILE}: its metadata (ask|say) .*{name}") as caught:
        check_settings(_metadata(USUAL | {"target_modules": ["to_q"], name: value}), "unet", FILE)
    assert caught.value.hint
    # of another component it is not asked
    check_settings(_metadata({name: value}, "text_encoder"), "unet", FILE)


SCALARS = st.none() | st.booleans() | st.integers() | st.text()


@given(st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_whatever_stands_there_is_taken_or_refused(value: Any) -> None:
    for metadata in (
        value,
        *(_metadata({name: value}) for name in (*PairSettings.model_fields, "megatron_core")),
    ):
        with suppress(ModelError):
            check_settings(metadata, "unet", FILE)
