from __future__ import annotations

import pytest

from gacq_deploy.generate.pairs import image_count


@pytest.mark.parametrize(
    ("size", "count"), [((16, 16), 12), ((64, 64), 12), ((128, 128), 8), ((512, 512), 4)], ids=str
)
def test_large_images_are_fewer(size: tuple[int, int], count: int) -> None:
    assert image_count(size) == count
