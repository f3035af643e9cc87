"""Moving a model: to the device ``meta``, which any build of torch has."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from gacq_deploy.models.half_storage import HalfStored, keep_half
from gacq_deploy.models.placement import home_of, move, to_host, to_tensor

META = torch.device("meta")


def test_parameters_and_buffers_move_and_what_is_shared_stays_shared() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.weight = first.weight
    norm = nn.BatchNorm1d(2)
    module = nn.Sequential(first, second, norm)
    assert move(module, META) is module
    assert {t.device for t in (*module.parameters(), *module.buffers())} == {META}
    assert first.weight is second.weight


def test_half_precision_stays_so() -> None:
    module = keep_half(nn.Linear(4, 4).half().requires_grad_(False))
    move(module, META)
    weight = module.weight
    assert isinstance(weight, HalfStored)
    assert weight.stored.dtype == torch.float16
    assert weight.stored.device == META
    assert weight.dtype == torch.float32


def test_a_model_that_lies_there_keeps_its_tensors() -> None:
    module = nn.Linear(2, 2)
    before = module.weight
    assert move(module, torch.device("cpu")).weight is before


def test_a_module_without_tensors_lies_on_the_cpu() -> None:
    assert home_of(nn.SiLU()) == torch.device("cpu")


def test_rows_are_copied_in_order() -> None:
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)[:, ::-1]
    made = to_tensor(rows)
    rows[0, 0] = 9
    assert to_host(made).tolist() == [[2, 1, 0], [5, 4, 3]]
    assert made.is_contiguous()
