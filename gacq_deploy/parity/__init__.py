"""Is what will run still the model that was calibrated? Four kinds of evidence, one verdict."""

from gacq_deploy.parity.check import check_parity, rejudge
from gacq_deploy.parity.report import Edge, ParityReport, load_report

__all__ = ["Edge", "ParityReport", "check_parity", "load_report", "rejudge"]
