from __future__ import annotations

import numpy as np
import pytest

from gacq_deploy.errors import UsageError
from gacq_deploy.generate.difference import PALETTE, difference_maps


def test_the_largest_difference_of_all_images_fills_the_scale() -> None:
    a = np.zeros((3, 3, 4, 5), np.float32)
    b = a.copy()
    b[0, 1, 2, 3] = 0.1
    b[2, :, 0, 0] = -0.2
    levels, largest = difference_maps(a, b)
    assert levels.shape == (3, 4, 5)
    assert (levels[2, 0, 0], levels[0, 2, 3], int(levels[1].max())) == (255, 128, 0)
    assert largest == pytest.approx(0.1)  # 0.2 of a range of 2


def test_images_that_do_not_differ_have_no_level() -> None:
    a = np.full((1, 1, 2, 2), 0.5, np.float32)
    levels, largest = difference_maps(a, a)
    assert (int(levels.max()), largest) == (0, 0.0)


def test_values_beyond_the_range_are_no_difference_that_one_sees() -> None:
    a = np.full((1, 1, 2, 2), 1.0, np.float32)
    assert difference_maps(a, a + 5)[1] == 0.0


def test_the_palette_grows_lighter_with_the_difference() -> None:
    brightness = PALETTE.astype(float) @ np.array([0.299, 0.587, 0.114])
    assert PALETTE.shape == (256, 3)
    assert bool((np.diff(brightness) >= 0).all())


def test_sets_of_different_shapes_are_refused() -> None:
    with pytest.raises(UsageError):
        difference_maps(np.zeros((2, 1, 4, 4)), np.zeros((1, 1, 4, 4)))
