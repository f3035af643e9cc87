"""A sealed document is given back as it was written, or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gacq_deploy.errors import ArtifactError
from gacq_deploy.storage.digests import digest_json
from gacq_deploy.storage.files import write_json
from gacq_deploy.storage.sealed import read_sealed, unseal, write_sealed

BODY = {"schema": "x/1", "values": [1, 2.5, None], "nested": {"passed": True}}
WORDS = {"what": "Report", "hint": "Run it again."}


def test_what_is_sealed_is_read_back_and_states_its_own_digest(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    assert write_sealed(path, BODY) == digest_json(BODY) == json.loads(path.read_bytes())["digest"]
    assert read_sealed(path, **WORDS) == BODY


def test_keys_beside_it_are_written_and_may_change(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    write_sealed(path, BODY, beside={"build": {"seconds": 3}})
    document = json.loads(path.read_bytes())
    assert document["build"] == {"seconds": 3}
    other = document | {"build": {"seconds": 4}}
    assert unseal(other, path, **WORDS, beside=("build",)) == BODY
    with pytest.raises(ArtifactError, match="was altered"):
        unseal(other, path, **WORDS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": "x/2"}, r"report\.json was altered: its digest is"),
        ({"more": 1}, "was altered"),
        ({"digest": "0" * 64}, "it states 000000000000"),
        ({"digest": None}, "states no digest"),
    ],
)
def test_whatever_was_changed_is_refused_with_the_remedy(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    path = tmp_path / "report.json"
    write_sealed(path, BODY)
    write_json(path, json.loads(path.read_bytes()) | changes)
    with pytest.raises(ArtifactError, match=message) as caught:
        read_sealed(path, **WORDS)
    assert caught.value.hint == "Run it again."
