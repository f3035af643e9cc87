from __future__ import annotations

import pytest
import torch

from gacq_deploy.calibration import budget
from gacq_deploy.calibration.planning import make_plan
from gacq_deploy.errors import ResourceError
from gacq_deploy.models.structure.graph import trace_model
from gacq_deploy.recipe.load import load_recipe
from tests.support.models.tiny import tiny_denoiser

HOST, CARD = torch.device("cpu"), torch.device("cuda", 1)


def test_a_card_of_one_size_gives_one_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    found = set()
    for total in (24_576, 24_564):
        monkeypatch.setattr(budget, "card_mb", lambda _device, total=total: total)
        found.add(budget.settled(load_recipe("fashion-w8a8"), CARD).calibration.gpu_memory_mb)
    assert found == {20_736}


def test_what_is_asked_stands_and_a_cpu_has_no_budget() -> None:
    asked = load_recipe("fashion-w8a8", ["calibration.device=cuda:1", "calibration.gpu_memory_mb=1000"])
    on_card = budget.settled(asked, CARD)
    assert (on_card.calibration.device, on_card.calibration.gpu_memory_mb) == ("cuda", 1000)
    plain = load_recipe("fashion-w8a8")
    here = budget.settled(plain, HOST)
    assert (here.calibration.device, here.calibration.gpu_memory_mb) == ("cpu", None)
    assert here.calibration_digest == plain.calibration_digest != on_card.calibration_digest


def test_the_model_takes_its_part_first() -> None:
    denoiser, recipe = tiny_denoiser(), load_recipe("fashion-w8a8")
    plan = make_plan(recipe, trace_model(denoiser))
    assert budget.activation_mb(recipe.calibration, denoiser, plan) == recipe.calibration.memory_mb
    roomy = recipe.on_device("cuda", 2000).calibration
    assert budget.activation_mb(roomy, denoiser, plan) == 2000 - budget.resident_mb(denoiser, plan)
    with pytest.raises(ResourceError, match="nothing is left to compute in"):
        budget.activation_mb(recipe.on_device("cuda", 600).calibration, denoiser, plan)
