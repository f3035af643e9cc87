"""Command line of the quality benchmark: plan, run what is missing, print tables."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.quality import report
from benchmarks.quality.candidates import Workshop
from benchmarks.quality.exam import Measure
from benchmarks.quality.measure import measure_row, row_digest
from benchmarks.quality.rows import MODELS, PARTS, SETTINGS, Row, planned
from benchmarks.store import RESULTS, finished, keep_row, load_rows

ROOT = Path(__file__).resolve().parents[2]
OUT = RESULTS / "quality.jsonl"


def main() -> None:
    """Parse, then run one row (in the child), or every missing one, or print."""
    args = _parser().parse_args()
    shop = Workshop(args.work.resolve(), tuple(args.set))
    measure = Measure(args.images, args.trajectories, cpu_graph=args.cpu_graph)
    if args.answer is not None:
        row = measure_row(Row.parse(args.row[0]), shop, measure, args.modelopt)
        args.answer.write_text(json.dumps(row))
        return
    if args.table:
        print(report.render(load_rows(args.out)))
        return
    if args.compact:
        print(report.compact(load_rows(args.out), args.compact))
        return
    if args.figure is not None:
        from benchmarks.quality.figure import draw_cosines

        draw_cosines([shop.directory(Row.parse(key)).artifact for key in args.row], args.figure)
        return
    rows = [Row.parse(key) for key in args.row]
    rows += [r for part in args.part for r in planned(part, args.models, args.settings, args.seeds)]
    rows = list(dict.fromkeys(rows))
    if args.list:
        print("\n".join(row.key for row in rows))
        return
    failed = [row.key for row in rows if not _ensure(row, shop, measure, args)]
    if failed:
        sys.exit(f"{len(failed)} of {len(rows)} rows failed: {', '.join(failed)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--part", nargs="+", default=[], choices=[*PARTS, "deploy"], help="rows by purpose")
    parser.add_argument("--row", nargs="+", default=[], help="rows by key: model|setting|blocks|polish|seed")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS[:2]), choices=SETTINGS[:2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--trajectories", type=int, default=48)
    parser.add_argument("--cpu-graph", action="store_true", help="also measure int8.cpu.onnx")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="recipe overrides for every row"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/quality"))
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument(
        "--modelopt", type=Path, default=ROOT / "runs" / "modelopt" / "venv" / "bin" / "python"
    )
    parser.add_argument("--list", action="store_true", help="print the rows and stop")
    parser.add_argument("--table", action="store_true", help="print the tables and stop")
    parser.add_argument("--compact", choices=MODELS, help="print the short table of a model and stop")
    parser.add_argument(
        "--figure", type=Path, help="draw the gradient cosines of the rows and stop (.svg or .png)"
    )
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    return parser


def _ensure(row: Row, shop: Workshop, measure: Measure, args: argparse.Namespace) -> bool:
    """Measure a row in a child process unless it is there; tell whether it is there now."""
    if finished(load_rows(args.out), row.key, row_digest(row, shop, measure)):
        return True
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="quality-") as folder:
        answer = Path(folder) / "row.json"
        command = [sys.executable, "-m", "benchmarks.quality", "--row", row.key, "--answer", str(answer)]
        command += ["--images", str(measure.images), "--trajectories", str(measure.trajectories)]
        command += ["--work", str(shop.root), "--modelopt", str(args.modelopt)]
        command += ["--cpu-graph"] if measure.cpu_graph else []
        command += ["--set", *shop.overrides] if shop.overrides else []
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            print(f"FAILED {row.key}\n{done.stderr.strip()[-2000:]}", flush=True)
            return False
        measured = json.loads(answer.read_text())
    keep_row(args.out, row.key, measured, {"command": "python -m benchmarks.quality"})
    print(f"{time.monotonic() - started:6.0f} s  {row.key}  {report.one_line(measured)}", flush=True)
    return True


if __name__ == "__main__":
    main()
