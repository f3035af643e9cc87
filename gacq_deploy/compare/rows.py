"""Which figures stand side by side, and which is the best of its row?"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gacq_deploy.artifact.diagnostics import ERROR_STAGES
from gacq_deploy.bench import BenchReport
from gacq_deploy.bench.report import BASELINE, Spread
from gacq_deploy.build_trt.manifest import ENGINE_FILE
from gacq_deploy.build_trt.open import is_compiled
from gacq_deploy.compare.grounds import Topic
from gacq_deploy.compare.records import RecordName, RunRecords
from gacq_deploy.engines.catalogue import FLOAT
from gacq_deploy.parity.report import GATES

_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_MORE_METRICS = {"image_psnr_db_min": "PSNR of same-seed images, worst (dB)"}
"""Measured beside what the gates bound."""


@dataclass(frozen=True)
class RowKey:
    """What a row is about: the table it stands in, its name, and what is better (None: nothing is)."""

    section: str
    name: str
    topic: Topic
    more_is_better: bool | None


@dataclass(frozen=True)
class RowValue:
    """A figure of one run. ``low`` and ``high`` bound it where it was measured several times."""

    number: float
    text: str
    is_current: bool
    """False: it is about other files than lie in the run now."""
    low: float
    high: float


@dataclass(frozen=True)
class ComparedRow:
    """One figure of every run, None where a run does not have it; ``best`` are places in ``values``."""

    key: RowKey
    values: tuple[RowValue | None, ...]
    best: tuple[int, ...]


def compare_figures(records: Sequence[RunRecords], unranked: Collection[Topic]) -> tuple[ComparedRow, ...]:
    """Return every figure that a run has, table by table; those of the topics in ``unranked`` have no best."""
    columns = [dict(_figures(record)) for record in records]
    keys = dict.fromkeys(key for column in columns for key in column)
    sections = list(dict.fromkeys(key.section for key in keys))
    rows = []
    for key in sorted(keys, key=lambda key: sections.index(key.section)):
        values = tuple(column.get(key) for column in columns)
        better = None if key.topic in unranked else key.more_is_better
        rows.append(ComparedRow(key, values, best_of(values, more_is_better=better)))
    return tuple(rows)


def best_of(values: Sequence[RowValue | None], *, more_is_better: bool | None) -> tuple[int, ...]:
    """Return the places of the best values: the leader, and those that its spread reaches.

    Empty where nothing is better, fewer than two values are current, or none is worse than the leader.
    """
    current = {i: value for i, value in enumerate(values) if value is not None and value.is_current}
    if more_is_better is None or len(current) < 2:
        return ()
    sign = 1.0 if more_is_better else -1.0
    leader = max(current.values(), key=lambda value: sign * value.number)
    least = min(sign * leader.low, sign * leader.high)
    best = tuple(i for i, value in current.items() if max(sign * value.low, sign * value.high) >= least)
    return best if len(best) < len(current) else ()


def _figures(record: RunRecords) -> Iterator[tuple[RowKey, RowValue]]:
    yield from _verdict(record)
    yield from _quality(record)
    yield from _sizes(record)
    yield from _speeds(record)
    yield from _learning(record)


def _value(
    record: RunRecords, source: RecordName, number: float, text: str, spread: Spread | None = None
) -> RowValue:
    low, high = (number, number) if spread is None else (spread.q1, spread.q3)
    return RowValue(float(number), text, record.is_current(source), float(low), float(high))


def _verdict(record: RunRecords) -> Iterator[tuple[RowKey, RowValue]]:
    if record.parity is None:
        return
    failed = len(record.parity.failed_gates)
    count = sum(len(comparison.thresholds) for comparison in record.parity.comparisons)
    key = RowKey("verdict", "gates that do not hold", "gates", more_is_better=False)
    yield key, _value(record, "parity", failed, f"{failed} of {count}")


def _quality(record: RunRecords) -> Iterator[tuple[RowKey, RowValue]]:
    gates = GATES["budget"]
    meanings = {name: gate.meaning for name, gate in gates.items() if gate.at_least} | _MORE_METRICS
    # a report that did not pass is false, and has figures all the same
    fidelity = {} if record.parity is None else record.parity.fidelity
    for candidate, metrics in fidelity.items():
        for name, meaning in meanings.items():
            number = metrics.get(name)
            if number is None:
                continue
            topic: Topic = "steps" if name.startswith("eps_") else "images"
            text = f"{number:.2f}" if "(dB)" in meaning else f"{number:.5f}"
            key = RowKey(f"quality of {candidate}", meaning, topic, more_is_better=True)
            yield key, _value(record, "parity", number, text)


def _sizes(record: RunRecords) -> Iterator[tuple[RowKey, RowValue]]:
    export = record.export
    for name in export.graphs if export else ():
        assert export is not None
        count = export.bytes_of(name)
        yield _size_key(name), _value(record, "graphs", count, _size(count))
        if name != FLOAT and FLOAT in export.files:
            times = export.bytes_of(FLOAT) / count
            key = RowKey("size", f"{name}, times smaller than {FLOAT}", "size", more_is_better=True)
            yield key, _value(record, "graphs", times, f"{times:.2f}")
    seen: set[str] = set()
    for engine in record.engines:
        name = f"{engine.label} engine of {engine.inputs.graph}"
        if name not in seen:  # the newest comes first
            seen.add(name)
            count = engine.files[ENGINE_FILE].bytes
            yield _size_key(name), _value(record, "engines", count, _size(count))


def _size_key(name: str) -> RowKey:
    return RowKey("size", name, "size", more_is_better=None if name.endswith(FLOAT) else False)


def _speeds(record: RunRecords) -> Iterator[tuple[RowKey, RowValue]]:
    bench = record.bench
    if bench is None:
        return
    for candidate in bench.candidates:
        if candidate.kernels is None:
            continue  # a float graph, which the others are held against
        yield from _ratios(record, bench, candidate.name)
        clock = _clock(candidate.name)
        for timing in candidate.timings:
            spread: Spread = getattr(timing, f"{clock}_ms")
            name = f"{_CLOCKS[clock]} of a call, batch {timing.batch} (ms)"
            key = RowKey(f"speed of {candidate.name}", name, "speed", more_is_better=False)
            yield key, _value(record, "bench", spread.median, f"{spread.median:.3g}", spread)


def _ratios(record: RunRecords, bench: BenchReport, candidate: str) -> Iterator[tuple[RowKey, RowValue]]:
    clock = _clock(candidate)
    for ratio in bench.ratios:
        # a compiled engine is held against one of its own kind alone
        if ratio.candidate == candidate and (ratio.baseline == BASELINE or clock == "wall"):
            spread: Spread = getattr(ratio, clock)
            name = f"times faster than {ratio.baseline}, batch {ratio.batch} ({_CLOCKS[clock]})"
            key = RowKey(f"speed of {candidate}", name, "speed", more_is_better=True)
            yield key, _value(record, "bench", spread.median, f"{spread.median:.2f}", spread)


_CLOCKS: Mapping[str, str] = {"cpu": "CPU time", "wall": "wall time"}


def _clock(candidate: str) -> str:
    """Return which time counts: of an engine on a GPU that of the wall, for the CPU waits."""
    return "wall" if is_compiled(candidate.partition("/")[0]) else "cpu"


def _learning(record: RunRecords) -> Iterator[tuple[RowKey, RowValue]]:
    found = record.artifact.diagnostics if record.artifact else None
    for stage in ERROR_STAGES if found else ():
        assert found is not None
        levels = found.error_sqnr_db.get(stage)
        if levels is None:
            continue
        for what, number in (("worst timestep", np.min(levels)), ("mean", np.mean(levels))):
            key = RowKey(
                "output SQNR in calibration (dB)",
                f"after {stage}, {what}",
                "calibration",
                more_is_better=True,
            )
            yield key, _value(record, "artifact", float(number), f"{number:.2f}")


def _size(count: float) -> str:
    for unit, name in _UNITS:
        if count >= unit:
            return f"{count / unit:.4g} {name}"
    return f"{count:.0f} B"
