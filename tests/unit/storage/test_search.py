"""Are the folders that hold a file found, each once, however they are linked?"""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from gacq_deploy.storage.search import find_holders

NAME = "recipe.yaml"


def _hold(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / NAME).touch()


@settings(deadline=None)
@given(
    places=st.sets(st.lists(st.sampled_from(["a", "b", "c"]), max_size=5).map(tuple)), depth=st.integers(0, 5)
)
def test_what_is_deep_enough_is_found_in_order(places: set[tuple[str, ...]], depth: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        for place in places:
            _hold(Path(name, *place))
        expected = sorted(Path(name, *place) for place in places if len(place) <= depth)
        assert list(find_holders(Path(name), NAME, depth)) == expected


def test_links_lead_to_runs_elsewhere_and_never_in_circles(tmp_path: Path) -> None:
    _hold(tmp_path / "disk" / "big")
    runs = tmp_path / "runs"
    _hold(runs / "mine")
    (runs / "again").symlink_to(runs / "mine")
    (runs / "round").symlink_to(runs)
    (runs / "big").symlink_to(tmp_path / "disk" / "big")
    (runs / "nowhere").symlink_to(runs / "nowhere")
    assert find_holders(runs, NAME) == (runs / "big", runs / "mine")


def test_hidden_folders_files_and_missing_folders_hold_nothing(tmp_path: Path) -> None:
    _hold(tmp_path / ".cache" / "run")
    (tmp_path / "folder" / NAME).mkdir(parents=True)
    assert find_holders(tmp_path, NAME) == ()
    assert find_holders(tmp_path / "none", NAME) == ()
    (tmp_path / "file").touch()
    assert find_holders(tmp_path / "file", NAME) == ()
