from __future__ import annotations

import re

import pytest

from gacq_deploy.calibration.planning import checked_plan
from gacq_deploy.errors import ExportError
from gacq_deploy.models.base import Denoiser
from gacq_deploy.recipe.load import load_recipe
from gacq_deploy.recipe.sections import Recipe
from gacq_deploy.spec import Site
from tests.support.models.architectures import small_sd_unet
from tests.support.models.tiny import tiny_denoiser

EVERYTHING = 'quantization.rules=[{match: "*", bits: 8}]'


def _recipe(*sets: str, name: str = "fashion-w8a8") -> Recipe:
    return load_recipe(name, list(sets))


def test_equal_computations_of_several_layers_share_a_scale() -> None:
    """Every resnet applies SiLU to one time embedding of its own accord; in the graph that is one tensor."""
    _, plan = checked_plan(_recipe(EVERYTHING), tiny_denoiser())
    ties = {entry.tie for entry in plan if re.fullmatch(r".*\.time_emb_proj:input", str(entry.site))}
    assert len(ties) == 1
    conv = plan.get(Site("mid_block.resnets.0.conv1", "input"))
    assert conv is not None
    assert conv.tie not in ties


def test_the_plan_of_what_export_took_before_is_the_same() -> None:
    """Whom graphs join nobody, no tie changes."""
    _, plan = checked_plan(_recipe(), tiny_denoiser())
    inputs = [entry for entry in plan if entry.site.role == "input"]
    attention = [e.tie for e in inputs if e.site.module.endswith(("to_q", "to_k", "to_v"))]
    assert len(set(attention)) * 3 == len(attention)


def _sliced() -> Denoiser:
    denoiser = small_sd_unet()
    denoiser.module.set_attention_slice(1)
    return denoiser


def _hooked() -> Denoiser:
    denoiser = tiny_denoiser()
    denoiser.module.mid_block.register_forward_hook(lambda *_: None)
    return denoiser


def _replaced() -> Denoiser:
    denoiser = tiny_denoiser()
    denoiser.module.mid_block.forward = lambda hidden_states, *_, **__: hidden_states
    return denoiser


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_sliced, r"slices its attention \(SlicedAttnProcessor\)"),
        (_hooked, "'mid_block' still carries forward_hooks"),
        (_replaced, "'mid_block' still carries a replaced forward"),
    ],
)
def test_what_export_would_refuse_is_refused_before_the_first_sample(make, said: str) -> None:
    name = "sd15-w8a8" if make is _sliced else "fashion-w8a8"
    with pytest.raises(ExportError, match=said):
        checked_plan(_recipe(name=name), make())
