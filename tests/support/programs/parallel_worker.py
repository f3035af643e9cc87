"""One process of a group that collects samples.

``python -m tests.support.programs.parallel_worker FOLDER RECIPE...``
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from gacq_deploy.models.trajectories import drawn as trajectory
from gacq_deploy.models.trajectories import prompted
from gacq_deploy.models.trajectories.collect import find_model, open_trajectories
from gacq_deploy.models.trajectories.worker import help_calibrate
from gacq_deploy.processes.group import Group, joined_group
from gacq_deploy.processes.threads import limited_threads
from gacq_deploy.progress import SILENT
from gacq_deploy.recipe.load import load_recipe
from gacq_deploy.recipe.sections import Recipe
from gacq_deploy.run_directory import RunDirectory


def collect(recipe: Recipe, directory: RunDirectory, group: Group) -> None:
    """Collect samples as the first process of a group does."""
    with limited_threads(recipe.calibration.threads):
        open_trajectories(find_model(recipe), recipe, directory, group).ensure_samples(SILENT)
    group.broadcast(None)


def main(folder: str, *recipes: str) -> None:
    """Collect by every recipe in turn, into a folder each."""
    with joined_group() as group:
        for number, recipe in enumerate(recipes):
            directory = RunDirectory(Path(folder) / str(number))
            if group.is_main:
                collect(load_recipe(recipe).allowing_python(), directory, group)
            else:
                help_calibrate(load_recipe(recipe).allowing_python(), group)


def die_at_work() -> None:
    """Let every process but the first be killed in its first batch."""

    def killed(*_: object) -> None:
        os.kill(os.getpid(), 9)

    if os.environ["RANK"] != "0":
        trajectory._run = killed
        prompted._run = killed


if __name__ == "__main__":
    arguments = [a for a in sys.argv[1:] if a != "--die"]
    if "--die" in sys.argv:
        die_at_work()
    main(*arguments)
