from __future__ import annotations

import logging

import pytest

from gacq_deploy.progress import SILENT, LoggingReporter, Reporter


def test_stages_and_notes_are_logged_at_the_level_asked(caplog: pytest.LogCaptureFixture) -> None:
    report: Reporter = LoggingReporter(logging.WARNING)
    with caplog.at_level(logging.WARNING, logger="gacq_deploy"):
        report.stage("collect samples", 48)
        report.advance(3, loss=0.5)
        report.note("export is already done")
    assert [(r.levelname, r.name, r.getMessage()) for r in caplog.records] == [
        ("WARNING", "gacq_deploy", "collect samples (48)"),
        ("WARNING", "gacq_deploy", "export is already done"),
    ]


def test_silence_takes_everything() -> None:
    SILENT.stage("x", 1)
    SILENT.advance()
    SILENT.note("y")
