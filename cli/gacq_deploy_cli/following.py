"""Which command comes next for a run? As its records tell, so that no two commands propose different ones."""

from __future__ import annotations

from pathlib import Path

from gacq_deploy_cli.console import NextStep


def next_for(directory: Path, *, just_done: str = "") -> tuple[NextStep, ...]:
    """Return the command that brings a run one step further; none where ``directory`` is no run, or one is held.

    Args:
        directory: what the user named.
        just_done: the command that asks: where it would be proposed again, the run is whole, and is verified.
    """
    from gacq_deploy.inspection.state import state_of
    from gacq_deploy.run_directory import RunDirectory

    run = RunDirectory(directory)
    if not run.recipe_path.is_file():
        return ()
    words = state_of(run).next_words
    if not words:
        return ()
    if words[0] == just_done:
        return (NextStep(("verify", directory), "before it is shipped"),)
    return (NextStep(words),)
