"""A run that cannot fit is refused, or warned of, before it begins."""

from __future__ import annotations

from pathlib import Path

import pytest

from gacq_deploy.calibration.cost import room
from gacq_deploy.errors import ResourceError


def test_a_disk_far_too_small_is_refused_for_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    place = tmp_path / "not" / "yet"
    with pytest.raises(ResourceError, match="needs about 1000000000000") as caught:
        room.check_disk(1e12, place)
    assert "samples.trajectories" in caught.value.hint
    assert not place.parent.exists()
    room.check_disk(0.0, place)


def test_memory_that_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "available_memory", lambda: 500 * 2**20)
    assert room.memory_shortage(400) is None
    said = room.memory_shortage(900)
    assert said is not None
    assert "900 MB" in said
    assert "500 MB" in said
    monkeypatch.setattr(room, "available_memory", lambda: None)
    assert room.memory_shortage(900) is None
