"""A finished step counts for what it is named, and what it lacks is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gacq_deploy.calibration.checkpoint import Checkpoint, load_checkpoint
from gacq_deploy.errors import RESTORE, ArtifactError
from gacq_deploy.storage.files import write_json


def _two_steps(folder: Path) -> Checkpoint:
    checkpoint = Checkpoint(folder, "key")
    checkpoint.put("one", {"a": np.ones(2)})
    checkpoint.put("two", {"b": np.zeros(3)})
    return checkpoint


def test_steps_are_kept_in_order_and_count_under_their_key_alone(tmp_path: Path) -> None:
    checkpoint = _two_steps(tmp_path)
    checkpoint.put("one", {"a": np.full(2, 5.0)})
    assert checkpoint.steps == ("one", "two")
    step = checkpoint.get("one")
    assert step is not None
    np.testing.assert_array_equal(step["a"], [5, 5])
    assert Checkpoint(tmp_path, "another").get("one") is None


def test_the_entry_of_another_step_is_refused(tmp_path: Path) -> None:
    checkpoint, path = _two_steps(tmp_path), tmp_path / "checkpoint.json"
    document = json.loads(path.read_bytes())
    steps = document["steps"]
    steps["one"], steps["two"] = steps["two"], steps["one"]
    write_json(path, document)
    with pytest.raises(ArtifactError, match=r"steps: .*step 'one' is not in 001-two\.safetensors") as caught:
        checkpoint.get("one")
    assert caught.value.hint == RESTORE


@pytest.mark.parametrize(
    "file", ["../000-one.safetensors", "/etc/passwd", "000-on.safetensors", "-one.safetensors"]
)
def test_a_file_of_another_name_is_refused(file: str, tmp_path: Path) -> None:
    _two_steps(tmp_path)
    path = tmp_path / "checkpoint.json"
    document = json.loads(path.read_bytes())
    document["steps"]["one"]["file"] = file
    write_json(path, document)
    with pytest.raises(ArtifactError, match="step 'one' is not in"):
        load_checkpoint(path)


def test_an_array_that_a_step_lacks_is_named(tmp_path: Path) -> None:
    step = _two_steps(tmp_path).get("two")
    assert step is not None
    with pytest.raises(ArtifactError, match=r"step 'two' in .*001-two\.safetensors lacks 'weights'"):
        step["weights"]
