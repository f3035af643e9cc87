"""Are batches that were written one by one the set that one would have gathered in memory?"""

from __future__ import annotations

from pathlib import Path

import pytest

from gacq_deploy.models.call_recorder import record_call
from gacq_deploy.models.pipelines import open_pipeline
from gacq_deploy.models.source import find_source, load_module
from gacq_deploy.models.trajectories.prompted import wanted_samples
from gacq_deploy.models.trajectories.shards import collect_file
from gacq_deploy.progress import SILENT
from gacq_deploy.recipe.sections import ModelSection, SamplesSection
from gacq_deploy.samples.calibration_set import save_samples
from tests.support.artifacts.gathered import collect_prompted

SECTION = ModelSection(source="python:tests.support.models.odd_family:make_pipeline", component="painter")


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_the_file_is_that_of_the_gathered_set(batch: int, tmp_path: Path) -> None:
    source = find_source(SECTION)
    opened = open_pipeline(source, load_module(source))
    wanted = wanted_samples(SamplesSection(trajectories=3, steps=4, batch=batch, prompts=("a", "b")))
    recorded = record_call(opened, 4)
    save_samples(collect_prompted(opened, recorded, wanted, SILENT), tmp_path / "gathered")
    collect_file(opened, recorded, wanted, tmp_path / "new" / "joined")
    assert (tmp_path / "new" / "joined").read_bytes() == (tmp_path / "gathered").read_bytes()
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["joined"]
