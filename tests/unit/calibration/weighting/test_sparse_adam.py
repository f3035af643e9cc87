"""Visited entries move as under torch's Adam, the others not at all."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gacq_deploy.calibration.weighting.sparse_adam import SparseAdam


def test_an_entry_moves_as_if_it_were_alone_under_adam() -> None:
    gradients = np.random.default_rng(0).normal(size=(12, 3))
    visits = np.random.default_rng(1).random((12, 3)) < 0.6
    values, ours = np.zeros(3), SparseAdam(3)
    for gradient, visited in zip(gradients, visits, strict=True):
        index = np.flatnonzero(visited)
        ours.step(values, index, gradient[index], 0.05)
    for entry in range(3):
        parameter = torch.zeros((), dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([parameter], lr=0.05, eps=1e-6)
        for gradient in gradients[visits[:, entry], entry]:
            parameter.grad = torch.tensor(gradient)
            optimizer.step()
        assert values[entry] == pytest.approx(float(parameter.detach()), rel=1e-9)


def test_entries_that_are_not_visited_stay() -> None:
    values, optimizer = np.arange(4.0), SparseAdam(4)
    optimizer.step(values, np.array([1, 3]), np.array([1.0, -1.0]), 0.1)
    assert values == pytest.approx([0.0, 0.9, 2.0, 3.1], abs=1e-5)
