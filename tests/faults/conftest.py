"""A finished run with weights outside a graph and an engine, made once; every row damages a copy of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gacq_deploy.export.record import read_record
from gacq_deploy.graph.files import read_graph, write_graph
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.storage.digests import describe_file
from gacq_deploy.storage.records import ListedFile
from tests.integration.conftest import finished_run, model_folder, recipe_file
from tests.support.artifacts.engine_folder import made_from, written
from tests.support.programs.made_once import made_once

__all__ = ["finished_run", "model_folder", "recipe_file"]


@pytest.fixture(scope="session")
def whole_run(finished_run: Path, shared_folder: Path) -> Path:
    """A run with every kind of file. Never written to: copy it."""

    def make(folder: Path) -> None:
        shutil.copytree(finished_run, folder)
        run = RunDirectory(folder)
        graph = read_graph(run.int8_onnx)
        described = {
            path.name: ListedFile(**describe_file(path))
            for path in write_graph(graph, run.int8_onnx, external_data_mb=0)
        }
        record = read_record(run)
        record.model_copy(update={"files": record.files | described}).save(run.onnx_manifest)
        written(folder, made_from(described["int8.onnx"].sha256))

    return made_once(shared_folder / "whole", make)


@pytest.fixture
def run(whole_run: Path, tmp_path: Path) -> RunDirectory:
    """A copy that a row may damage."""
    return RunDirectory(shutil.copytree(whole_run, tmp_path / "run"))
