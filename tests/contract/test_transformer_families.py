"""Transformers of every kind go the whole way."""

from __future__ import annotations

from typing import ClassVar

import pytest

from tests.support.models.family_contract import FamilyContract
from tests.support.models.family_runs import TRANSFORMERS, FamilyCase


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' schedulers
@pytest.mark.parametrize("made", sorted(TRANSFORMERS), indirect=True, scope="class")
class TestTransformers(FamilyContract):
    cases: ClassVar[dict[str, FamilyCase]] = TRANSFORMERS
