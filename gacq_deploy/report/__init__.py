"""What would one show about a run? Everything that stands in its directory, on one page.

``collect`` reads and judges nothing anew, ``verdict`` says what the evidence amounts to, ``figures`` and ``tables``
turn numbers into drawings and tables, ``stage`` puts them together.
"""

from gacq_deploy.report.stage import ReportPage, ensure_report, write_report

__all__ = ["ReportPage", "ensure_report", "write_report"]
