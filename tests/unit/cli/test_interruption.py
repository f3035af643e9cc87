"""An interrupt that somebody swallowed takes effect at the next report; afterwards signals are as before."""

from __future__ import annotations

import contextlib
import os
import signal

import pytest

from gacq_deploy.progress import SILENT
from gacq_deploy_cli.interruption import attentive


def test_a_swallowed_interrupt_takes_effect_at_the_next_report() -> None:
    before = signal.getsignal(signal.SIGINT)
    with attentive(SILENT) as report:
        report.stage("work", 2)
        report.advance()
        with contextlib.suppress(BaseException):  # as a bare `except:` around an import does
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            report.advance()
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_is_raised_where_it_arrives() -> None:
    with pytest.raises(KeyboardInterrupt), attentive(SILENT):
        os.kill(os.getpid(), signal.SIGINT)
