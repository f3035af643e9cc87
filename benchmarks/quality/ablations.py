"""What does each part contribute on its own? One change at a time, from the identical reconstructed blocks.

``python -m benchmarks.quality.ablations`` (about half a minute a line and seed on digits8; finished lines are kept)
measures every variant as the quality benchmark measures its rows and writes ``benchmarks/results/ablations.jsonl``;
``--table`` prints paired differences to the uniform polish.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality.candidates import Workshop
from benchmarks.quality.exam import Measure
from benchmarks.quality.measure import measure_row, row_digest
from benchmarks.quality.pairing import spread
from benchmarks.quality.rows import NOTHING, UNIFORM, Row
from benchmarks.store import RESULTS, finished, keep_row, load_rows

OUT = RESULTS / "ablations.jsonl"
ABOUT = {"command": "python -m benchmarks.quality.ablations"}
CANONICAL = "int8.onnx"
BASE = "polish: uniform weights"
_W = "calibration.weighting"
_P = "calibration.polish"
VARIANTS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    # name -> blocks, polish, overrides
    "no polish": (UNIFORM, NOTHING, ()),
    BASE: (UNIFORM, UNIFORM, ()),
    "polish of activation scales only": (UNIFORM, UNIFORM, (f"{_P}.parameters=[activation_scales]",)),
    "polish of biases only": (UNIFORM, UNIFORM, (f"{_P}.parameters=[biases]",)),
    "polish of weight scales only": (UNIFORM, UNIFORM, (f"{_P}.parameters=[weight_scales]",)),
    "polish of norm affines only": (UNIFORM, UNIFORM, (f"{_P}.parameters=[norm_affines]",)),
    "polish of activation scales and biases": (
        UNIFORM,
        UNIFORM,
        (f"{_P}.parameters=[activation_scales, biases]",),
    ),
    "polish, 400 steps": (UNIFORM, UNIFORM, (f"{_P}.steps=400",)),
    "gac": (UNIFORM, "gac", ()),
    "gac, objective eps": (UNIFORM, "gac", ("calibration.objective=eps",)),
    "gac, objective images": (UNIFORM, "gac", ("calibration.objective=images",)),
    "gac, plain look-ahead": (UNIFORM, "gac", (f"{_W}.look_ahead=plain",)),
    "gac, without gradient matching": (UNIFORM, "gac", (f"{_W}.lambda_gm=0",)),
    "relative": (UNIFORM, "relative", ()),
    "relative, objective images": (UNIFORM, "relative", ("calibration.objective=images",)),
    "relative in blocks and polish": ("relative", "relative", ()),
    "gac in blocks and polish": ("gac", "gac", ()),
}


def main() -> None:
    """Measure what is missing, or print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="digits8")
    parser.add_argument("--setting", default="w4a8")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--iterations", type=int, default=250)
    parser.add_argument("--work", type=Path, default=Path("runs/quality"))
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if args.table:
        print(render(load_rows(args.out)))
        return
    measure = Measure(args.images, 48, cpu_graph=False)
    for seed in args.seeds:
        for name in args.only:
            blocks, polish, overrides = VARIANTS[name]
            row = Row(args.model, args.setting, blocks, polish, seed)
            common = (f"calibration.reconstruction.iterations={args.iterations}",)
            shop = Workshop(args.work.resolve(), (*common, *overrides))
            key = f"{args.model}|{args.setting}|{name}|{seed}"
            if finished(load_rows(args.out), key, row_digest(row, shop, measure)):
                continue
            keep_row(args.out, key, measure_row(row, shop, measure, Path()), ABOUT)
            print(key, flush=True)


def render(rows: dict[str, dict[str, Any]]) -> str:
    """Return a table per model and setting: means over seeds and paired differences to the uniform polish."""
    parts = []
    for head in sorted({tuple(key.split("|")[:2]) for key in rows}):
        lines = [
            f"**{head[0]}, {head[1].upper()}** (mean ± sd; differences are paired by seed with `{BASE}`)",
            "",
            "| variant | seeds | SQNR, noisy to clean (dB) | mean SQNR, difference | PSNR (dB) | difference |",
            "|---|---|---|---|---|---|",
        ]
        lines += [_line(rows, head, name) for name in VARIANTS if _seeds(rows, head, name)]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _seeds(rows: dict[str, dict[str, Any]], head: tuple[str, ...], name: str) -> dict[int, Any]:
    prefix = f"{head[0]}|{head[1]}|{name}|"
    return {
        int(k.removeprefix(prefix)): v["graphs"][CANONICAL] for k, v in rows.items() if k.startswith(prefix)
    }


def _line(rows: dict[str, dict[str, Any]], head: tuple[str, ...], name: str) -> str:
    found, base = _seeds(rows, head, name), _seeds(rows, head, BASE)
    buckets = np.mean([g["sqnr_db_by_bucket"] for g in found.values()], 0)
    psnr = spread([g["psnr_db"] for g in found.values()])
    deviation = f" ± {psnr.sd:.2f}" if len(found) > 1 else ""
    both = sorted(found.keys() & base.keys())
    differences = ["", ""]
    if name != BASE and both:
        pairs = [
            spread([value(found[s]) - value(base[s]) for s in both])
            for value in (lambda g: float(np.mean(g["sqnr_db_by_bucket"])), lambda g: g["psnr_db"])
        ]
        differences = [f"{p.mean:+.2f}" + (f" ± {p.sd:.2f}" if len(both) > 1 else "") for p in pairs]
    return (
        f"| {name} | {len(found)} | {' '.join(f'{b:.1f}' for b in buckets)} | {differences[0]} | "
        f"{psnr.mean:.2f}{deviation} | {differences[1]} |"
    )


if __name__ == "__main__":
    main()
