"""Is this machine able to do what the commands need, and if not, what is missing?"""

from gacq_deploy.doctor.examine import examine
from gacq_deploy.doctor.findings import Check, DoctorReport

__all__ = ["Check", "DoctorReport", "examine"]
