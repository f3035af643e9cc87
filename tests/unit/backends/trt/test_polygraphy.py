"""Is it said before any work that Polygraphy is missing or too old?"""

from __future__ import annotations

from importlib import metadata

import pytest

from gacq_deploy.backends.trt import polygraphy
from gacq_deploy.errors import BackendUnavailable


def _installed(version: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(name: str) -> str:
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(polygraphy.metadata, "version", found)


@pytest.mark.parametrize("version", ["0.53.4", "0.53.10", "0.54.0rc1", "1.0"])
def test_a_version_that_serves(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _installed(version, monkeypatch)
    polygraphy.require_polygraphy("this")


@pytest.mark.parametrize(
    ("version", "says"),
    [
        (None, "this needs Polygraphy, which is not"),
        ("0.49.26", "this needs Polygraphy 0.53.4 or newer; 0.49.26 is"),
    ],
)
def test_one_that_does_not(version: str | None, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _installed(version, monkeypatch)
    with pytest.raises(BackendUnavailable, match=says) as caught:
        polygraphy.require_polygraphy("this")
    assert "pip install 'polygraphy>=0.53.4'" in caught.value.hint
