"""How much faster and smaller is INT8, measured? The stage, its report, and how to read one back."""

from gacq_deploy.bench.report import BenchReport, load_bench
from gacq_deploy.bench.stage import run_bench

__all__ = ["BenchReport", "load_bench", "run_bench"]
