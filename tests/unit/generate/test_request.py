"""How many images may be asked for."""

from __future__ import annotations

import pytest

from gacq_deploy.errors import UsageError
from gacq_deploy.generate.request import ImageRequest
from gacq_deploy.recipe.calibration import COUNT_MAX


@pytest.mark.parametrize("count", [-1, 0, COUNT_MAX + 1, 10**30])
def test_a_number_of_images_has_bounds(count: int) -> None:
    with pytest.raises(UsageError, match=f"{count} images were asked for") as caught:
        ImageRequest(count=count).check_count()
    assert str(COUNT_MAX) in caught.value.hint


def test_seeds_stay_in_range_to_the_last() -> None:
    ImageRequest(count=COUNT_MAX).check_count()
    with pytest.raises(UsageError, match="is out of range"):
        ImageRequest(count=2, seed=2**63 - 1).check_count()
