"""What do the run directories given become in TensorRT-RTX? INT8 coverage, plan size, time and memory, by target.

``python -m benchmarks.tensorrt_builds DIR ...`` copies each exported run directory, builds it for no GPU in particular
and for every generation that the library knows, in float16 and in float32, and the first of them twice to compare
the bytes. No GPU is needed and nothing is run: what compiled to INT8 is proved, how fast it is is not. Writes
``results/tensorrt_builds.jsonl`` and ``results/tensorrt_builds.md``.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.store import RESULTS, Rows, write_rows
from gacq_deploy.build_trt.stage import BuildRequest, build_engines
from gacq_deploy.recipe.build import BuildSection
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.storage.files import write_bytes

TARGETS: tuple[tuple[str, ...], ...] = ((), ("7.5",), ("8.0",), ("8.6",), ("8.9",), ("12.0",))
BATCH = "4"


def build(run: RunDirectory, *, rebuild: bool = False, **section: Any) -> dict[str, Any]:
    """Build one plan and return what its manifest says of it."""
    asked = BuildSection(backend="tensorrt-rtx", fp16_baseline=False, min_int8_coverage=0, **section)
    (built,) = build_engines(run, BuildRequest(asked, rebuild=rebuild))
    record = built.record
    coverage = record.coverage
    assert coverage is not None, "the engine is quantized"
    return {
        "library": record.label,
        "float_type": record.inputs.float_type,
        "targets": list(record.inputs.options.compute_capabilities),
        "batch": list(asked.batch),
        "planned": coverage["planned"],
        "int8": coverage["int8"],
        "kernels": coverage["kernels"],
        "plan_bytes": record.files["engine.plan"].bytes,
        "plan_sha256": record.files["engine.plan"].sha256,
        "seconds": record.seconds,
        "peak_mb": record.peak_mb,
        "half_difference_db": None if record.half is None else record.half["difference_db"],
    }


def measure(source: Path, scratch: Path) -> Rows:
    """Build every variant of one run directory; the first row says whether a second build gave the same bytes."""
    run = RunDirectory(
        Path(shutil.copytree(source, scratch / source.name, ignore=shutil.ignore_patterns("engines")))
    )
    first = build(run, batch=(BATCH,))
    again = build(run, batch=(BATCH,), rebuild=True)
    rows = [first, build(run, batch=(BATCH,), float_type="float32"), build(run, batch=("1:4:8",))]
    rows += [build(run, batch=(BATCH,), compute_capabilities=targets) for targets in TARGETS if targets]
    first["same_bytes_twice"] = first["plan_sha256"] == again["plan_sha256"]
    return {
        f"{source.name}|{', '.join(row['targets']) or 'any'}|{row['batch'][0]}|{row['float_type']}": row
        for row in rows
    }


def to_table(rows: Rows) -> str:
    """Return the results as Markdown."""
    lines = [
        "| model | target | batch | float type | planned layers in INT8 | plan | peak memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for key, row in rows.items():
        variant = key.replace("|", " | ")
        sizes = f"{row['plan_bytes'] / 1e6:.1f} MB | {row['peak_mb']} MB"
        lines.append(f"| {variant} | {row['int8']} of {row['planned']} | {sizes} |")
    same = [key.partition("|")[0] for key, row in rows.items() if row.get("same_bytes_twice")]
    lines += ["", f"Two builds of one fixed batch gave the same bytes: {', '.join(same) or 'none'}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse, build, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directories", nargs="+", type=Path, help="calibrated and exported run directories")
    arguments = parser.parse_args()
    rows: Rows = {}
    with tempfile.TemporaryDirectory(prefix="builds-") as scratch:
        for directory in arguments.directories:
            rows |= measure(directory, Path(scratch))
    about = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": "python -m benchmarks.tensorrt_builds " + " ".join(d.name for d in arguments.directories),
        "platform": f"{platform.system()} {platform.machine()}, no GPU needed",
    }
    write_rows(RESULTS / "tensorrt_builds.jsonl", rows, about)
    write_bytes(RESULTS / "tensorrt_builds.md", to_table(rows).encode())
    print(to_table(rows))


if __name__ == "__main__":
    main()
