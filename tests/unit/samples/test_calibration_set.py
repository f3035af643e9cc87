"""Calibration sets are whole, finite and split by trajectory; the streamed file is a plain safetensors file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from gacq_deploy.errors import ArtifactError, UsageError
from gacq_deploy.samples.calibration_set import CalibrationSet, load_samples, save_samples, timestep_buckets
from gacq_deploy.samples.row_file import SampleWriter
from gacq_deploy.storage.digests import digest_file


def make_set(trajectories: int = 4, steps: int = 5) -> CalibrationSet:
    rng = np.random.default_rng(0)
    n = trajectories * steps
    return CalibrationSet(
        latents=rng.standard_normal((n, 1, 4, 4), dtype=np.float32),
        timesteps=np.tile(np.arange(steps, dtype=np.int64)[::-1] * 100, trajectories),
        targets=rng.standard_normal((n, 1, 4, 4), dtype=np.float32),
        conditioning={"class_labels": rng.integers(0, 4, n)},
        trajectory=np.repeat(np.arange(trajectories), steps),
        step=np.tile(np.arange(steps), trajectories),
        validation=np.repeat(np.array([0, 0, 1, 0], np.uint8)[:trajectories], steps),
    )


def test_a_set_round_trips_and_any_safetensors_reader_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "samples.safetensors"
    original = make_set()
    save_samples(original, path)
    loaded = load_samples(path, sha256=digest_file(path))
    np.testing.assert_array_equal(loaded.latents, original.latents)
    np.testing.assert_array_equal(loaded.conditioning["class_labels"], original.conditioning["class_labels"])
    np.testing.assert_array_equal(load_file(path)["timesteps"], original.timesteps)
    save_samples(original, tmp_path / "again")
    assert digest_file(path) == digest_file(tmp_path / "again")


def test_the_split_never_cuts_a_trajectory() -> None:
    samples = make_set()
    train, held = samples.training, samples.held_out
    assert len(train) + len(held) == len(samples)
    assert not set(train.trajectory) & set(held.trajectory)


def test_chunks_cover_every_row_once_the_last_partial_one_included() -> None:
    rows = [i for s in make_set().chunks(7) for i in range(s.start, s.stop)]
    assert rows == list(range(20))


def test_an_interrupted_writer_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), SampleWriter(tmp_path / "s", {"x": ("float32", (4, 2))}) as writer:
        writer.write(0, {"x": np.ones((2, 2), np.float32)})
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_that_is_not_finite_is_named(tmp_path: Path, bad: float) -> None:
    samples = make_set()
    samples.latents[7, 0, 1, 1] = bad
    save_samples(samples, tmp_path / "s")
    with pytest.raises(
        UsageError, match=r"'latents' holds NaN or Inf in 1 of 20 rows, first in row 7 \(trajectory 1"
    ):
        load_samples(tmp_path / "s")


def test_an_empty_set_is_refused() -> None:
    empty = make_set().rows(np.array([], dtype=np.int64))
    with pytest.raises(UsageError, match="holds no samples"):
        empty.check(where="set")


def test_tensors_of_unequal_length_are_refused() -> None:
    with pytest.raises(UsageError, match="'targets' has 3 rows, expected 20"):
        replace(make_set(), targets=np.zeros((3, 1, 4, 4), np.float32)).check(where="set")


@pytest.mark.parametrize("damage", ["missing", "truncated", "altered", "tensor missing"])
def test_damaged_files_are_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "s"
    save_samples(make_set(), path)
    sha256 = digest_file(path)
    data = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "altered":
        data[-1] ^= 1
        path.write_bytes(data)
    else:
        with SampleWriter(path, {"latents": ("float32", (1, 1))}) as writer:
            writer.write(0, {"latents": np.ones((1, 1), np.float32)})
    with pytest.raises(ArtifactError, match="samples"):
        load_samples(path, sha256=None if damage in ("truncated", "tensor missing") else sha256)


@given(steps=st.integers(1, 40), repeats=st.integers(1, 3), count=st.integers(1, 8))
def test_buckets_are_contiguous_from_noisy_to_clean_and_even(steps: int, repeats: int, count: int) -> None:
    timesteps = np.tile(np.arange(steps) * 10, repeats)
    buckets = timestep_buckets(timesteps, count)
    assert buckets[timesteps.argmax()] == 0
    assert set(buckets) == set(range(min(count, steps)))
    order = np.argsort(-timesteps, kind="stable")
    assert bool((np.diff(buckets[order]) >= 0).all())
    sizes = np.bincount(buckets)
    assert sizes.max() - sizes.min() <= repeats


@given(st.lists(st.integers(0, 60), min_size=1, max_size=80), st.integers(1, 8))
def test_buckets_follow_the_order_of_timesteps_alone(timesteps: list[int], count: int) -> None:
    whole = np.array(timesteps)
    distinct = sorted(set(timesteps), reverse=True)
    groups = min(count, len(distinct))
    expected = [distinct.index(t) * groups // len(distinct) for t in timesteps]
    buckets = timestep_buckets(whole, count)
    assert buckets.dtype == np.int64
    assert buckets.tolist() == expected
    sigma = (whole * 0.001).astype(np.float32)
    np.testing.assert_array_equal(timestep_buckets(sigma, count), buckets)
