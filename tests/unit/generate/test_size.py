"""A size that the graph cannot make is refused from the decoder's folder alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gacq_deploy.errors import UsageError
from gacq_deploy.generate.size import check_size, factor_of


@pytest.fixture
def decoder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"block_out_channels": [8, 16, 32]}))
    return tmp_path


@pytest.mark.parametrize(("width", "height"), [(64, None), (None, 64), (64, 64), (None, None)])
def test_the_graphs_own_size_is_taken(decoder: Path, width: int | None, height: int | None) -> None:
    check_size(width, height, (4, 16, 16), decoder)


@pytest.mark.parametrize(
    ("width", "message"),
    [(128, "takes 64 pixels only"), (30, "not a multiple of 4"), (2, "not a multiple of 4")],
)
def test_another_is_refused(decoder: Path, width: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_size(width, None, (4, 16, 16), decoder)


@pytest.mark.parametrize(
    "content", [None, "{", "{}", '{"block_out_channels": 3}', '{"block_out_channels": []}']
)
def test_what_cannot_be_told_is_not_judged_here(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    assert factor_of(tmp_path) is None
    check_size(7, 7, (4, 16, 16), tmp_path)
    check_size(7, 7, (64, 64), None)
