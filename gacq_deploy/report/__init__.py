"""What would one show about a run? Everything that stands in its directory, on one page.

``collect`` reads and judges nothing anew, ``verdict`` says what the evidence amounts to, ``summary`` what one sees
first, ``pictures``, ``figures`` and ``tables`` turn images and numbers into tiles, drawings and tables, ``stage`` puts
them together.
"""

from gacq_deploy.report.stage import ReportPage, ensure_report, write_report

__all__ = ["ReportPage", "ensure_report", "write_report"]
