import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.quality.metrics import (
    frechet_distance,
    kernel_distance,
    paired_distance,
    precision_recall,
    spread_within_classes,
)


def normal(seed: int, rows: int, width: int, shift: float = 0.0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return (generator.standard_normal((rows, width)) + shift).astype(np.float32)


def test_frechet_distance_of_gaussians_is_the_closed_form() -> None:
    generator = np.random.default_rng(0)
    a = generator.standard_normal((20_000, 2)) * [1.0, 2.0]
    b = generator.standard_normal((20_000, 2)) * [3.0, 2.0] + [1.0, -1.0]
    # |m|^2 = 2, and (1 - 3)^2 + (2 - 2)^2 = 4 for commuting covariances
    assert frechet_distance(a.astype(np.float32), b.astype(np.float32)) == pytest.approx(6.0, abs=0.2)


def test_frechet_distance_of_covariances_that_do_not_commute() -> None:
    scipy_linalg = pytest.importorskip("scipy.linalg")
    a, b = normal(0, 400, 6) @ normal(5, 6, 6), normal(1, 400, 6) @ normal(6, 6, 6)
    one, two = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    cross = np.trace(scipy_linalg.sqrtm(one @ two)).real
    gap = a.mean(0).astype(np.float64) - b.mean(0)
    expected = gap @ gap + np.trace(one) + np.trace(two) - 2 * cross
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-5)


@given(seed=st.integers(0, 1000), shift=st.floats(-2, 2))
@settings(max_examples=25, deadline=None)
def test_distances_are_symmetric_and_frechet_of_a_set_with_itself_is_zero(seed: int, shift: float) -> None:
    a, b = normal(seed, 30, 4), normal(seed + 1, 40, 4, shift)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), abs=1e-9)
    assert kernel_distance(a, b) == pytest.approx(kernel_distance(b, a), abs=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, b) >= -1e-9


def test_kernel_distance_is_the_double_sum() -> None:
    a, b = normal(0, 5, 3).astype(np.float64), normal(1, 4, 3).astype(np.float64)

    def k(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / 3 + 1) ** 3)

    within_a = sum(k(a[i], a[j]) for i in range(5) for j in range(5) if i != j) / 20
    within_b = sum(k(b[i], b[j]) for i in range(4) for j in range(4) if i != j) / 12
    between = sum(k(x, y) for x in a for y in b) / 20
    found = kernel_distance(a.astype(np.float32), b.astype(np.float32))
    assert found == pytest.approx(within_a + within_b - 2 * between, rel=1e-5)


def test_kernel_distance_is_unbiased_where_the_sets_have_one_source() -> None:
    values = [kernel_distance(normal(2 * s, 50, 8), normal(2 * s + 1, 50, 8)) for s in range(60)]
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 4 * error
    assert kernel_distance(normal(0, 50, 8), normal(1, 50, 8, shift=1.0)) > 10 * np.std(values)


def test_precision_falls_with_strangers_and_recall_with_missing_modes() -> None:
    real = np.concatenate([normal(0, 100, 3), normal(1, 100, 3, shift=50)])
    one_mode = normal(2, 200, 3)
    found = precision_recall(real, one_mode)
    assert found.precision > 0.9
    assert 0.4 < found.recall < 0.55
    strangers = precision_recall(real, np.concatenate([real[::2], normal(3, 100, 3, shift=-80)]))
    assert strangers.precision == pytest.approx(0.5)


def test_precision_and_recall_of_a_set_with_itself_are_one() -> None:
    found = precision_recall(normal(0, 40, 5), normal(0, 40, 5))
    assert (found.precision, found.recall) == (1.0, 1.0)


def test_precision_needs_more_rows_than_neighbours() -> None:
    with pytest.raises(ValueError, match="too few for 3 neighbours"):
        precision_recall(normal(0, 3, 2), normal(1, 10, 2))


def test_paired_distance_keeps_the_order() -> None:
    a = np.zeros((2, 2), np.float32)
    b = np.array([[3, 4], [0, 0]], np.float32)
    assert paired_distance(a, b) == pytest.approx(2.5)
    with pytest.raises(ValueError, match="not paired"):
        paired_distance(a, b[:1])


def test_spread_within_classes_ignores_what_lies_between_them() -> None:
    features = np.array([[0, 0], [0, 1], [100, 0], [100, 3]], np.float32)
    assert spread_within_classes(features, np.array([0, 0, 1, 1])) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="no class has two rows"):
        spread_within_classes(features[:2], np.array([0, 1]))


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance, precision_recall])
def test_sets_of_different_widths_are_refused(distance: object) -> None:
    with pytest.raises(ValueError, match="do not compare"):
        distance(normal(0, 10, 2), normal(0, 10, 3))  # type: ignore[operator]
