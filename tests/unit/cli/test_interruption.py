"""An interrupt that somebody swallowed takes effect at the next report; afterwards signals are as before."""

from __future__ import annotations

import contextlib
import os
import signal

import pytest

from gacq_deploy.progress import SILENT
from gacq_deploy_cli.entry import Ended, heed_signals
from gacq_deploy_cli.exit_codes import explain
from gacq_deploy_cli.interruption import attentive

SIGNALS = [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Ended), (signal.SIGHUP, Ended)]


@pytest.mark.parametrize(("number", "kind"), SIGNALS)
def test_a_swallowed_interrupt_takes_effect_at_the_next_report(
    number: signal.Signals, kind: type[BaseException]
) -> None:
    before = signal.getsignal(number)
    with attentive(SILENT) as report:
        report.stage("work", 2)
        report.advance()
        with contextlib.suppress(BaseException):  # as a bare `except:` around an import does
            os.kill(os.getpid(), number)
        with pytest.raises(kind):
            report.advance()
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(("number", "kind"), SIGNALS)
def test_an_interrupt_is_raised_where_it_arrives(number: signal.Signals, kind: type[BaseException]) -> None:
    with pytest.raises(kind), attentive(SILENT):
        os.kill(os.getpid(), number)


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        heed_signals()
        with attentive(SILENT) as report:
            os.kill(os.getpid(), signal.SIGHUP)
            report.note("it goes on")
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_the_exit_code_names_the_signal(number: signal.Signals, code: int) -> None:
    failure = explain(Ended(number))
    assert failure.exit_code == code
    assert "state saved" in failure.message
