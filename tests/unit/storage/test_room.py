"""What cannot fit is refused, or warned of, before work begins."""

from __future__ import annotations

from pathlib import Path

import pytest

from gacq_deploy.errors import ResourceError
from gacq_deploy.storage import room


def test_a_disk_far_too_small_is_refused_for_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    place = tmp_path / "not" / "yet"
    with pytest.raises(ResourceError, match=r"the graph needs at least 1000000000000\.0 MB") as caught:
        room.check_disk(1e18, place, "the graph", otherwise=", or take less")
    assert caught.value.hint == "Free disk space, or take less."
    assert not place.parent.exists()
    room.check_disk(0.0, place, "nothing")


def test_memory_that_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "available_memory", lambda: 500e6)
    assert room.memory_shortage(400e6, "end it") is None
    said = room.memory_shortage(900e6, "end it")
    assert said is not None
    assert "900 MB" in said
    assert "500 MB" in said
    monkeypatch.setattr(room, "available_memory", lambda: None)
    assert room.memory_shortage(900e6, "end it") is None
