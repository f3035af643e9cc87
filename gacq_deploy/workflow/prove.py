"""Do the engines that were built hold on this GPU, and how fast are they?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gacq_deploy.backends.trt.library import current_device
from gacq_deploy.bench import BenchReport, run_bench
from gacq_deploy.bench.measure import BenchSettings
from gacq_deploy.build_trt.open import LocatedEngine
from gacq_deploy.build_trt.stage import BuiltEngine
from gacq_deploy.engines.catalogue import REFERENCE
from gacq_deploy.parity import ParityReport, check_parity
from gacq_deploy.progress import SILENT, Reporter
from gacq_deploy.run_directory import RunDirectory


@dataclass(frozen=True)
class Proof:
    """What running the engines on the GPU showed: parity, and the time beside the float baseline."""

    parity: ParityReport
    bench: BenchReport | None
    """None without a baseline to compare with."""

    @property
    def speed(self) -> dict[int, float]:
        """Batch -> how many times faster than the baseline, wall time, median of interleaved rounds."""
        if self.bench is None:
            return {}
        return {ratio.batch: ratio.wall.median for ratio in self.bench.ratios}


def prove_engines(
    directory: RunDirectory, built: Sequence[BuiltEngine], report: Reporter = SILENT
) -> Proof | None:
    """Run what was built; None where no GPU is that it was built for, or where the engine holds no weights.

    Writes ``parity.json``, and ``bench.json`` if the baseline was built.

    Raises:
        BackendUnavailable: CUDA's Python package is missing.
        ArtifactError, EngineError, ResourceError: an engine does not load or run.
    """
    if not built[0].record.runs_on(current_device()):
        return None
    library = built[0].record.inputs.library
    # these engines were made here, so the code they may carry is this library's own
    parity = check_parity(directory, engines=(REFERENCE, library), allow_host_code=True, report=report)
    bench = None
    if len(built) > 1:
        batches = LocatedEngine(built[0].folder, built[0].record).batches
        bench = run_bench(
            directory,
            engines=(library,),
            settings=BenchSettings(batches, allow_host_code=True, allow_failed=True),
            report=report,
        )
    return Proof(parity, bench)
