"""The key without whose value all would be well is found, within the work that is allowed."""

from __future__ import annotations

from typing import Any

import pytest

from gacq_deploy.models.guilty import WorkSpent, guilty_keys

DEFAULTS: dict[str, Any] = {"a": 1, "b": 2, "c": (4, 8), "d": None, "e": True}


def nothing(_config: object) -> bool:
    return False


class Looker:
    """Finds wrong whatever ``right`` does not allow, and keeps what it was shown."""

    def __init__(self, right: Any, most: int = 1000) -> None:
        self.right, self.most = right, most
        self.shown: list[dict[str, Any]] = []

    def __call__(self, config: Any) -> str | None:
        if len(self.shown) == self.most:
            raise WorkSpent("spent")
        self.shown.append(dict(config))
        return None if self.right(config) else f"a is {config['a']}"


def guilty(config: dict[str, Any], look: Looker, sizes: Any = ()) -> list[str]:
    return guilty_keys(config, DEFAULTS, look, f"a is {config['a']}", sizes)


@pytest.mark.parametrize(
    ("lie", "right", "keys"),
    [
        ({"b": 5}, lambda c: c["b"] == 2, ["b"]),
        ({"a": 5, "b": 5}, lambda c: c["a"] == 1 or c["b"] == 2, ["a", "b"]),
        ({}, lambda c: c["e"] is False, ["e"]),
        ({}, lambda c: c["c"] == [2, 4], ["c"]),
        ({"a": 5, "c": [4]}, lambda c: c["d"] == 1, ["d"]),
        ({"a": 5, "b": 5}, nothing, ["a"]),
        ({}, nothing, ["a"]),
    ],
)
def test_who_heals_is_guilty_and_else_who_changes_what_is_seen(
    lie: dict[str, Any], right: Any, keys: list[str]
) -> None:
    assert guilty({**DEFAULTS, "c": [4, 8], **lie}, Looker(right)) == keys


def test_a_size_that_is_known_is_tried() -> None:
    config = {**DEFAULTS, "b": 6}
    assert guilty(config, Looker(lambda c: c["b"] == 9), [(48, 72)]) == ["b"]
    assert guilty(config, Looker(lambda c: c["b"] == 9)) == ["a"]


def test_no_configuration_is_looked_at_twice_and_none_is_the_one_that_is_wrong() -> None:
    config = {**DEFAULTS, "a": 63, "b": 1, "c": [4, 8]}
    look = Looker(nothing)
    guilty(config, look, [(1, 2), (2, 4)])
    written = [repr(sorted(shown.items())) for shown in look.shown]
    assert len(set(written)) == len(written)
    assert config not in look.shown


@pytest.mark.parametrize("most", range(12))
def test_where_the_work_is_spent_what_was_found_is_told(most: int) -> None:
    config = {**DEFAULTS, "b": 5}
    assert guilty(config, Looker(lambda c: c["b"] == 2, most)) == (["b"] if most else [])
