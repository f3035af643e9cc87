"""Can a test that needs TensorRT-RTX vanish unseen? Not where CI is set."""

from __future__ import annotations

from typing import cast

import pytest

from tests import conftest


class Marked:
    """As much of a test item as the hook looks at."""

    def __init__(self, *markers: str) -> None:
        self._markers = markers

    def get_closest_marker(self, name: str) -> object | None:
        return name if name in self._markers else None


def _set_up(*markers: str) -> None:
    conftest.pytest_runtest_setup(cast(pytest.Item, Marked(*markers)))


@pytest.fixture
def without_rtx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conftest, "find_spec", lambda _name: None)


def test_it_is_a_failure_in_continuous_integration(
    without_rtx: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "1")
    with pytest.raises(pytest.fail.Exception, match="TensorRT-RTX is not installed"):
        _set_up("rtx")


def test_elsewhere_it_is_a_skip_that_says_what_to_install(
    without_rtx: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"gacq-deploy\[rtx\]"):
        _set_up("rtx")


def test_other_tests_run(without_rtx: None) -> None:
    _set_up("slow")


def test_installed_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        conftest, "find_spec", lambda name: object() if name == "tensorrt_rtx_bindings" else None
    )
    _set_up("rtx")
