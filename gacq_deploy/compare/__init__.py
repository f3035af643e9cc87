"""Which of these runs is better, and may they be compared at all?

``records`` reads what each run says of itself, ``grounds`` finds what forbids to compare, ``rows`` puts figures side by
side and marks the best, ``stage`` joins them, and ``page`` shows it as one HTML file.
"""

from gacq_deploy.compare.page import write_compare_page
from gacq_deploy.compare.stage import RunComparison, compare_runs

__all__ = ["RunComparison", "compare_runs", "write_compare_page"]
