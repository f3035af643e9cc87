"""UNets of every kind, and a denoiser that nobody prepared for, go the whole way."""

from __future__ import annotations

from typing import ClassVar

import pytest

from tests.support.models.family_contract import FamilyContract
from tests.support.models.family_runs import ODD, UNETS, FamilyCase

CASES = {**UNETS, "odd": ODD}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' schedulers
@pytest.mark.parametrize("made", sorted(CASES), indirect=True, scope="class")
class TestUNets(FamilyContract):
    cases: ClassVar[dict[str, FamilyCase]] = CASES
