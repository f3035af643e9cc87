"""Is what will run still the model that was calibrated? Four kinds of evidence, one verdict."""

from gacq_deploy.parity.probe_folder import saved_commands
from gacq_deploy.parity.report import Comparison, ParityReport, load_report
from gacq_deploy.parity.stage import check_parity, rejudge

__all__ = ["Comparison", "ParityReport", "check_parity", "load_report", "rejudge", "saved_commands"]
