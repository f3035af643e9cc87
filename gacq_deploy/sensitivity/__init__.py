"""Which layer, and which timestep, costs what INT8 costs? And which layers must stay float to mend it?"""

from gacq_deploy.sensitivity.propose import Request
from gacq_deploy.sensitivity.report import SensitivityReport, load_sensitivity
from gacq_deploy.sensitivity.stage import SensitivitySettings, measure_sensitivity

__all__ = ["Request", "SensitivityReport", "SensitivitySettings", "load_sensitivity", "measure_sensitivity"]
