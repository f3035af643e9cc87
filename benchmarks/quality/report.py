"""How do the rows read side by side? Markdown tables: costs, pictures, and paired tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from benchmarks.quality.pairing import compare_pairs, spread
from benchmarks.quality.rows import MODELS, NOTHING, SETTINGS, UNIFORM

Rows = Mapping[str, Mapping[str, Any]]
_GRAPHS = ("int8.onnx", "int8.cpu.onnx")
_COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("PSNR (dB)", "psnr_db", ".2f"),
    ("SSIM", "ssim", ".4f"),
    ("paired feature distance", "paired_feature_distance", ".3f"),
    ("KID-Lite0", "kid_lite0", ".3f"),
    ("FD-Lite0", "fd_lite0", ".1f"),
    ("class accuracy", "class_accuracy", ".3f"),
    ("precision", "precision", ".3f"),
    ("recall", "recall", ".3f"),
    ("diversity", "diversity", ".3f"),
)
_TESTED: tuple[tuple[str, Callable[[Mapping[str, Any]], float]], ...] = (
    ("PSNR (dB)", lambda g: g["psnr_db"]),
    ("mean SQNR of the buckets (dB)", lambda g: float(np.mean(g["sqnr_db_by_bucket"]))),
    ("pooled SQNR (dB)", lambda g: g["sqnr_db"]),
    ("SQNR, noisiest bucket (dB)", lambda g: g["sqnr_db_by_bucket"][0]),
    ("SQNR, cleanest bucket (dB)", lambda g: g["sqnr_db_by_bucket"][-1]),
    ("paired feature distance", lambda g: g["paired_feature_distance"]),
)
COMPARISONS = (
    # (blocks, polish) of the first and of the second: second minus first
    ((UNIFORM, UNIFORM), (UNIFORM, "gac")),
    ((UNIFORM, UNIFORM), (UNIFORM, "noisy")),
    ((UNIFORM, UNIFORM), (UNIFORM, "clean")),
    ((UNIFORM, UNIFORM), (UNIFORM, "relative")),
    ((UNIFORM, "relative"), (UNIFORM, "gac")),
    ((UNIFORM, "noisy"), (UNIFORM, "gac")),
    ((UNIFORM, NOTHING), ("gac", NOTHING)),
    ((UNIFORM, UNIFORM), ("gac", "gac")),
    ((UNIFORM, UNIFORM), ("gac_faithful", "gac_faithful")),
    ((UNIFORM, UNIFORM), ("mse", "mse")),
    ((UNIFORM, UNIFORM), ("ptq4dm", "ptq4dm")),
    ((UNIFORM, NOTHING), (UNIFORM, UNIFORM)),
)


def render(rows: Rows) -> str:
    """Return all tables."""
    parts = [_heading(rows, model) for model in MODELS if f"{model}|float|fp|{NOTHING}|0" in rows]
    for model in MODELS:
        for setting in SETTINGS:
            for graph in _GRAPHS:
                parts += _tables(rows, model, setting, graph)
    refused = [r for r in rows.values() if "status" in r]
    parts += [f"{r['row']['model']}, {r['row']['setting']}: {r['status']}. {r['reason']}" for r in refused]
    return "\n\n".join(parts) or "No row is measured yet."


COMPACT = (
    # rows of the short table that a README has room for: (blocks, polish) -> what to call it
    (("nearest-minmax", NOTHING), "nearest, min-max"),
    (("nearest-percentile", NOTHING), "nearest, percentile 99.9"),
    (("nearest-mse", NOTHING), "nearest, MSE"),
    (("ort-minmax", NOTHING), "ONNX Runtime `quantize_static`, min-max"),
    (("ort-percentile", NOTHING), "ONNX Runtime `quantize_static`, percentile"),
    (("modelopt-max", NOTHING), "NVIDIA ModelOpt, default"),
    (("modelopt-smoothquant", NOTHING), "NVIDIA ModelOpt, SmoothQuant"),
    (("modelopt-percentile", NOTHING), "NVIDIA ModelOpt, percentile"),
    ((UNIFORM, NOTHING), "block reconstruction"),
    ((UNIFORM, UNIFORM), "+ polish, `uniform`"),
    ((UNIFORM, "noisy"), "+ polish, fixed exp(2 t/T)"),
    ((UNIFORM, "relative"), "+ polish, `relative`"),
    ((UNIFORM, "mse"), "+ polish, `mse`"),
    ((UNIFORM, "gac"), "**+ polish, `gac`**"),
)


def compact(rows: Rows, model: str) -> str:
    """Return the short table of one model: deployable graphs against float, mean ± sd over seeds."""
    columns = [
        "setting",
        "method",
        "seeds",
        "output SQNR, noisy to clean (dB)",
        "image PSNR (dB)",
        "KID-Lite0",
    ]
    lines = [*_header(columns[0], columns[1:])]
    for setting in SETTINGS:
        groups = _groups(rows, model, setting, _GRAPHS[0])
        for key, name in COMPACT:
            if key in groups:
                graphs = [m["graphs"][_GRAPHS[0]] for m in groups[key]]
                buckets = " ".join(
                    f"{spread(list(b)).mean:.1f}"
                    for b in zip(*(g["sqnr_db_by_bucket"] for g in graphs), strict=True)
                )
                psnr, kid = (
                    _cell([g[k] for g in graphs], f) for k, f in (("psnr_db", ".1f"), ("kid_lite0", ".2f"))
                )
                lines.append(f"| {setting.upper()} | {name} | {len(graphs)} | {buckets} | {psnr} | {kid} |")
    return "\n".join(lines)


def one_line(row: Mapping[str, Any]) -> str:
    """Return the most telling numbers of a row."""
    if "status" in row:
        return str(row["status"])
    found = row["graphs"][_GRAPHS[0]]
    buckets = " ".join(f"{v:.1f}" for v in found["sqnr_db_by_bucket"])
    cost = "" if "cost" not in row else f"  {row['cost']['cpu_s']:.0f} CPU-s {row['cost']['peak_mb']:.0f} MB"
    return f"SQNR {buckets}  PSNR {found['psnr_db']:.2f}  KID {found['kid_lite0']:.3f}{cost}"


def _heading(rows: Rows, model: str) -> str:
    row = rows[f"{model}|float|fp|{NOTHING}|0"]
    floor, measure = row["floor"], row["measure"]
    real = " | ".join(_cell([floor[k]], f) if k in floor else "" for _, k, f in _COLUMNS)
    own = " | ".join(_cell([row["graphs"][_GRAPHS[0]][k]], f) for _, k, f in _COLUMNS)
    return "\n".join(
        [
            f"**{model}**: N = {measure['images']} same-seed images, DDIM {measure['steps']} steps, image seeds from "
            f"{measure['seed']}; {floor['extractor']} at {floor['resize']} px, KID on c1280, FD on c320, paired "
            f"distance (in mean distances within a class of FP images), precision and recall (k = 3) on c1280; "
            f"against {floor['real_images']} real images. Not FID, and FD is biased in N.",
            "",
            *_header("", [name for name, _, _ in _COLUMNS]),
            f"| real test images ({floor['images']}): the floor | {real} |",
            f"| FP | {own} |",
        ]
    )


def _tables(rows: Rows, model: str, setting: str, graph: str) -> list[str]:
    groups = _groups(rows, model, setting, graph)
    if not groups:
        return []
    names = ["seeds", "eps SQNR, noisy to clean (dB)", *(c[0] for c in _COLUMNS), "CPU-s", "peak MB"]
    lines = [
        f"**{model}, {setting.upper()}, `{graph}`** (mean ± sd over seeds)",
        "",
        *_header("method", names),
    ]
    for (blocks, polish), members in groups.items():
        lines.append(f"| {_label(blocks, polish)} | {' | '.join(_cells(rows, members, graph))} |")
    parts = ["\n".join(lines)]
    tests = _tests(groups, graph)
    return parts + ([tests] if tests else [])


def _groups(
    rows: Rows, model: str, setting: str, graph: str
) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in sorted(rows.values(), key=lambda r: int(r["row"]["seed"])):
        asked = row["row"]
        if (asked["model"], asked["setting"]) == (model, setting) and graph in row.get("graphs", {}):
            groups.setdefault((asked["reconstruction"], asked["polish"]), []).append(row)
    return groups


def _cells(rows: Rows, members: list[Mapping[str, Any]], graph: str) -> Iterable[str]:
    graphs = [m["graphs"][graph] for m in members]
    yield str(len(members))
    buckets = zip(*(g["sqnr_db_by_bucket"] for g in graphs), strict=True)
    yield " ".join(f"{spread(list(b)).mean:.1f}" for b in buckets)
    for _, key, form in _COLUMNS:
        yield _cell([g[key] for g in graphs], form)
    costs = [_cpu_seconds(rows, m) for m in members]
    known = [c for c in costs if c is not None]
    yield _cell(known, ".0f") if known else ""
    yield _cell([m["cost"]["peak_mb"] for m in members], ".0f")


def _cpu_seconds(rows: Rows, row: Mapping[str, Any]) -> float | None:
    """Return the row's own seconds and its base's; None if a run was resumed and part of its cost is lost."""
    facts = row.get("facts", {})
    if facts.get("resumed"):
        return None
    own = float(row["cost"]["cpu_s"])
    base = facts.get("base")
    if base is None:
        return own
    if base not in rows:
        return None
    before = _cpu_seconds(rows, rows[base])
    return None if before is None else own + before


def _tests(groups: Mapping[tuple[str, str], list[Mapping[str, Any]]], graph: str) -> str:
    lines = []
    for first, second in COMPARISONS:
        if first not in groups or second not in groups:
            continue
        a = {m["row"]["seed"]: m["graphs"][graph] for m in groups[first]}
        b = {m["row"]["seed"]: m["graphs"][graph] for m in groups[second]}
        seeds = sorted(a.keys() & b.keys())
        if len(seeds) < 2:
            continue
        for name, value in _TESTED:
            test = compare_pairs([value(a[s]) for s in seeds], [value(b[s]) for s in seeds])
            lines.append(
                f"| {_label(*second)} minus {_label(*first)} | {name} | {len(seeds)} | {test.spread.mean:+.3f} ± "
                f"{test.spread.sd:.3f} | [{test.low:+.3f}, {test.high:+.3f}] | {test.p_value:.4f} "
                f"(least {test.smallest_p:.4f}) |"
            )
    if not lines:
        return ""
    columns = ["metric", "pairs", "mean ± sd", "95 % t-interval", "sign-flip p"]
    return "\n".join([*_header("paired difference", columns), *lines])


def _label(blocks: str, polish: str) -> str:
    return blocks if polish == NOTHING else f"{blocks} + polish ({polish})"


def _cell(values: list[float], form: str) -> str:
    found = spread(values)
    return f"{found.mean:{form}} ± {found.sd:{form}}" if found.count > 1 else f"{found.mean:{form}}"


def _header(first: str, names: list[str]) -> list[str]:
    return [f"| {first} | {' | '.join(names)} |", "|" + "---|" * (len(names) + 1)]
