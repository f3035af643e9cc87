from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gacq_deploy.errors import UsageError
from gacq_deploy.generate.grid import to_uint8, write_grid
from gacq_deploy.metrics.images import PSNR_CAP, is_image, psnr, ssim, value_range


def _images(count: int, channels: int = 1, height: int = 16, width: int = 16, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, (count, channels, height, width)).astype(np.float32)


def _slow_ssim(a: np.ndarray, b: np.ndarray, size: int) -> float:
    """The definition, window by window, with pixel values in 0 .. 255."""
    a, b = (a.astype(float) + 1) * 127.5, (b.astype(float) + 1) * 127.5
    half = size // 2
    weights = [
        [math.exp(-(i * i + j * j) / (2 * 1.5**2)) for j in range(-half, half + 1)]
        for i in range(-half, half + 1)
    ]
    total = sum(map(sum, weights))
    w = np.array(weights) / total
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for x, y in zip(a, b, strict=True):
        for top in range(x.shape[0] - size + 1):
            for left in range(x.shape[1] - size + 1):
                p, q = x[top : top + size, left : left + size], y[top : top + size, left : left + size]
                mp, mq = float((w * p).sum()), float((w * q).sum())
                vp, vq = float((w * (p - mp) ** 2).sum()), float((w * (q - mq) ** 2).sum())
                cov = float((w * (p - mp) * (q - mq)).sum())
                luminance = (2 * mp * mq + c1) / (mp * mp + mq * mq + c1)
                values.append(luminance * (2 * cov + c2) / (vp + vq + c2))
    return sum(values) / len(values)


@pytest.mark.parametrize(
    ("channels", "height", "width", "window"),
    [(1, 16, 16, 11), (3, 13, 20, 11), (1, 8, 8, 7), (1, 11, 9, 9), (1, 2, 5, 1)],
)
def test_ssim_is_wangs(channels: int, height: int, width: int, window: int) -> None:
    a = _images(2, channels, height, width)
    b = np.clip(a + 0.2 * _images(2, channels, height, width, seed=1), -1, 1)
    got = ssim(a, b)
    want = [_slow_ssim(x, y, window) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(got, want, atol=1e-9)


def test_identical_images() -> None:
    a = _images(3, 3)
    np.testing.assert_allclose(ssim(a, a), 1)
    np.testing.assert_array_equal(psnr(a, a), [PSNR_CAP] * 3)


def test_psnr_of_a_known_error() -> None:
    a = np.zeros((2, 1, 4, 4), np.float32)
    b = a.copy()
    b[1] += 0.02
    np.testing.assert_allclose(psnr(a, b), [PSNR_CAP, 40.0], atol=1e-5)


def test_values_beyond_the_range_are_clipped_as_they_are_when_shown() -> None:
    a = np.full((1, 1, 12, 12), 0.9, np.float32)
    np.testing.assert_array_equal(psnr(a * 2, a * 3), [PSNR_CAP])
    np.testing.assert_allclose(ssim(a * 2, a * 3), 1)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), noise=st.floats(1e-3, 0.5))
def test_more_noise_is_less_alike(seed: int, noise: float) -> None:
    a = _images(1, seed=seed) * 0.4
    error = _images(1, seed=seed + 1) * 0.3
    near, far = a + error * np.float32(noise), a + error * np.float32(noise * 2)
    assert psnr(a, near)[0] == pytest.approx(psnr(a, far)[0] + 20 * math.log10(2), abs=1e-2)
    assert ssim(a, far)[0] < ssim(a, near)[0] < 1
    np.testing.assert_allclose(ssim(a, near), ssim(near, a))


def test_uint8_is_rounded_and_clipped() -> None:
    row = np.array([-2, -1, -1 + 1 / 127.5, 0, 0.999, 1, 1.5], np.float32)
    np.testing.assert_array_equal(to_uint8(row.reshape(1, 1, 1, -1)).ravel(), [0, 0, 1, 128, 255, 255, 255])
    every = np.arange(256)
    np.testing.assert_array_equal(to_uint8((every / 127.5 - 1).reshape(1, 1, 16, 16)).ravel(), every)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_holds_the_images_row_by_row(tmp_path: Path, channels: int) -> None:
    images = _images(5, channels, 4, 6)
    write_grid(tmp_path / "grid.png", images, columns=3, zoom=1)
    with Image.open(tmp_path / "grid.png") as picture:
        pixels = np.asarray(picture).reshape(2 * 4 + 3 * 2, 3 * 6 + 4 * 2, channels)
    np.testing.assert_array_equal(pixels[2:6, 2:8], to_uint8(images)[0])
    np.testing.assert_array_equal(pixels[8:12, 10:16], to_uint8(images)[4])
    assert bool((pixels[8:12, 18:24] == 255).all())


def test_small_images_are_enlarged(tmp_path: Path) -> None:
    write_grid(tmp_path / "grid.png", _images(1, 1, 16, 16))
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.size == (68, 68)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((0, 1, 4, 4), np.float32), "no images"),
        (np.zeros((2, 4, 8, 8), np.float32), "decoder"),
        (np.zeros((8, 8), np.float32), "not a set"),
    ],
)
def test_what_is_no_image_is_refused(tmp_path: Path, images: np.ndarray, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        write_grid(tmp_path / "grid.png", images)
    assert not list(tmp_path.iterdir())


def test_bad_requests_are_refused(tmp_path: Path) -> None:
    a = _images(2)
    for call in (
        lambda: write_grid(tmp_path / "grid.jpg", a),
        lambda: write_grid(tmp_path / "grid.png", a, columns=-1),
        lambda: write_grid(tmp_path / "grid.png", a, zoom=0),
        lambda: psnr(a, a[:1]),
        lambda: ssim(a[0], a[0]),
    ):
        with pytest.raises(UsageError):
            call()
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_grid(tmp_path: Path) -> None:
    path = tmp_path / "grid.png"
    write_grid(path, _images(1))
    before = path.read_bytes()
    with pytest.raises(UsageError):
        write_grid(path, np.zeros((0, 1, 4, 4), np.float32))
    assert path.read_bytes() == before
    write_grid(path, _images(1, seed=1))
    assert path.read_bytes() != before
    assert [p.name for p in tmp_path.iterdir()] == ["grid.png"]


def test_latents_are_not_clipped() -> None:
    a = np.full((1, 4, 12, 12), 3.0, np.float32)
    a[0, 0, 0, 0] = -5.0
    limits = value_range(a)
    assert limits == (-5.0, 3.0)
    b = a + np.float32(0.8)
    assert psnr(a, b, limits)[0] == pytest.approx(20.0, abs=1e-4)
    assert ssim(a, b, limits)[0] < 0.999
    np.testing.assert_array_equal(psnr(a, a, limits), [PSNR_CAP])
    np.testing.assert_allclose(ssim(a, a, limits), 1)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), gain=st.floats(0.1, 50), offset=st.floats(-5, 5))
def test_a_latents_unit_does_not_matter(seed: int, gain: float, offset: float) -> None:
    a, b = (_images(2, 4, seed=seed + s).astype(np.float64) for s in (0, 1))
    moved = a * gain + offset, b * gain + offset
    np.testing.assert_allclose(psnr(*moved, value_range(moved[0])), psnr(a, b, value_range(a)))
    np.testing.assert_allclose(ssim(*moved, value_range(moved[0])), ssim(a, b, value_range(a)))


def test_the_limits_of_an_image_change_nothing() -> None:
    a, b = _images(2), _images(2, seed=1)
    np.testing.assert_array_equal(psnr(a, b), psnr(a, b, (-1.0, 1.0)))
    np.testing.assert_array_equal(ssim(a, b), ssim(a, b, (-1.0, 1.0)))


def test_a_constant_latent_has_a_range() -> None:
    a = np.full((1, 4, 12, 12), 2.5, np.float32)
    assert psnr(a, a + np.float32(0.2), value_range(a))[0] == pytest.approx(20.0, abs=1e-4)


def test_what_is_an_image() -> None:
    assert is_image((1, 8, 8))
    assert is_image((3, 8, 8))
    assert not any(map(is_image, [(4, 8, 8), (6, 64), (3, 2, 8, 8), ()]))
