from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from gacq_deploy.generate.difference import PALETTE
from gacq_deploy.generate.pairs import ImagePairs
from gacq_deploy.metrics.images import psnr
from gacq_deploy.report.pictures import Tile, draw_tiles, reduced
from gacq_deploy.spec import Array


def _pairs(count: int, shape: tuple[int, int, int], conditions: tuple[str, ...] = ()) -> ImagePairs:
    """Random images, of which the second graph's are the further off the later they come."""
    rng = np.random.default_rng(0)
    exact = rng.uniform(-1, 1, (count, *shape)).astype(np.float32)
    far = np.linspace(0.01, 0.2, count, dtype=np.float32).reshape(-1, 1, 1, 1)
    quantized = exact + far * rng.standard_normal(exact.shape).astype(np.float32)
    return ImagePairs(
        exact=exact,
        quantized=quantized,
        psnr_db=tuple(map(float, psnr(exact, quantized))),
        seeds=tuple(range(count)),
        conditions=conditions or ("",) * count,
        graphs=("float.onnx", "int8.cpu.onnx"),
        engine="an engine",
        steps=20,
    )


def _decoded(uri: str) -> Array:
    png = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def _bytes(tile: Tile) -> int:
    return len(tile.exact) + len(tile.quantized) + len(tile.difference)


def test_the_worst_stands_first_and_alone_is_marked() -> None:
    drawn = draw_tiles(_pairs(4, (1, 8, 8), ("a cat", "a lake", "a dog", "a tree")))
    assert [tile.seed for tile in drawn.tiles] == [3, 2, 1, 0]
    assert [tile.condition for tile in drawn.tiles] == ["a tree", "a dog", "a lake", "a cat"]
    assert [tile.worst for tile in drawn.tiles] == [True, False, False, False]
    levels = [tile.psnr_db for tile in drawn.tiles]
    assert levels == sorted(levels)
    assert drawn.mean_db == pytest.approx(np.mean(levels))


def test_the_caption_says_which_images_the_mean_is_over_and_how_the_difference_is_scaled() -> None:
    drawn = draw_tiles(_pairs(4, (1, 8, 8)))
    assert drawn.caption.startswith("4 images, seeds 0 to 3, 20 steps: PSNR ")
    assert "the largest of all these images" in drawn.caption


@pytest.mark.parametrize("channels", [1, 3])
def test_a_tile_shows_both_images_and_where_they_differ(channels: int) -> None:
    pairs = _pairs(2, (channels, 8, 8))
    worst = draw_tiles(pairs).tiles[0]
    shown = np.round((np.clip(pairs.quantized[1], -1, 1) + 1) * 127.5).transpose(1, 2, 0)
    assert np.array_equal(_decoded(worst.quantized), np.broadcast_to(shown, (8, 8, 3)))
    colours = {tuple(c) for c in _decoded(worst.difference).reshape(-1, 3).tolist()}
    assert colours <= {tuple(c) for c in PALETTE.tolist()}
    assert tuple(PALETTE[255].tolist()) in colours


@pytest.mark.parametrize(("count", "side"), [(12, 192), (4, 512), (4, 1024)])
def test_even_noise_leaves_the_page_small(count: int, side: int) -> None:
    drawn = draw_tiles(_pairs(count, (3, side, side)))
    assert sum(map(_bytes, drawn.tiles)) < 1_500_000
    assert max(drawn.size) <= 192


def test_large_images_are_reduced_by_whole_factors() -> None:
    images = np.random.default_rng(0).integers(0, 256, (400, 300, 3)).astype(np.uint8)
    small = reduced(images, 192)
    assert small.shape == (134, 100, 3)
    assert abs(float(small.mean()) - float(images.mean())) < 1
    assert reduced(small, 192) is small
    assert reduced(images[:, :, :1], 192).shape == (134, 100)
