"""What the command line names is what the library knows."""

from __future__ import annotations

from gacq_deploy.parity.deployable import ENGINES
from gacq_deploy_cli import options


def test_the_engines_offered_are_the_engines_that_make_images() -> None:
    # written out in both, so that --help imports no engine
    assert sorted(options.ENGINES) == sorted(ENGINES)
