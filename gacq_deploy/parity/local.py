"""Which segment of a candidate departs from the reference, given the reference's own inputs?

A quantized network amplifies a rounding tie into percents at its output, so executions are compared segment
by segment: each is fed what the reference recorded, and ends in a quantizer. Correct executions then differ
only where a value lies on the edge between two codes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gacq_deploy.backends.base import Engine, Feeds
from gacq_deploy.metrics.arrays import equal_share, relative_error
from gacq_deploy.metrics.error_difference import finite
from gacq_deploy.parity.cut import CutGraph, Segment
from gacq_deploy.parity.report import SegmentRecord
from gacq_deploy.spec import Array

_OFF_GRID = 1e-3
"""In steps: more than float rounding of code * scale leaves."""
_LARGEST_CODE = 128.5
"""Half a step beyond int8; uint8 around 128 is the same grid."""


@dataclass(frozen=True)
class LocalReference:
    """What the reference recorded on ``P`` states.

    ``inputs`` name -> [P, ...]; ``output`` [P, C, H, W]; ``recorded`` site -> quantized-dequantized tensor
    [P, ...]; ``scales`` site -> step of its quantizer.
    """

    inputs: Feeds
    output: Array
    recorded: Mapping[str, Array]
    scales: Mapping[str, float]


@dataclass(frozen=True)
class LocalResult:
    """Records in execution order, the model output last, and the sites nobody could check."""

    segments: tuple[SegmentRecord, ...]
    unchecked: tuple[str, ...]

    def metrics(self) -> dict[str, float]:
        """Return the worst figures over all segments, for the gates."""
        quantized, output = self.segments[:-1], self.segments[-1]
        # weights alone may be quantized: then there is one segment, without steps, and nothing is unchecked
        equal_share = min(_number(segment.equal_share) for segment in quantized or (output,))
        steps = max((_number(segment.steps) for segment in quantized), default=0.0)
        return {
            "unchecked": float(len(self.unchecked)),
            "equal_share": equal_share,
            "steps": steps,
            "output_relative_error": _number(output.steps),
        }


def compare_segments(
    engine: Engine, cut: CutGraph, reference: LocalReference, *, planned: Iterable[str], rtol: float
) -> LocalResult:
    """Run a cut graph on the reference's tensors and compare every segment with the recording.

    Args:
        engine: the candidate engine, opened on ``cut.model``.
        cut: the cut graph.
        reference: recordings in the reference's own words.
        planned: every activation site that must be covered.
        rtol: values count as equal within ``rtol`` times the largest magnitude of their tensor.
    """
    given = {s.given: np.asarray(reference.recorded[s.site], np.float32) for s in cut.segments}
    feeds = {**reference.inputs, **given}
    rows = len(reference.output)
    # the last row alone: one row and many may take different kernels
    batches = (slice(0, rows - 1), slice(rows - 1, rows)) if rows > 1 else (slice(0, 1),)
    results = _run(engine, feeds, batches)
    computed = {s.computed for s in cut.segments}
    segments = [_compare(s, results[s.computed], reference, rtol) for s in cut.segments]
    output = next(name for name in results if name not in computed)
    segments.append(_compare_output(output, results[output], reference.output, rtol))
    return LocalResult(tuple(segments), tuple(_unchecked(cut, reference, planned)))


def _run(engine: Engine, feeds: Feeds, batches: Sequence[slice]) -> dict[str, Array]:
    taken = [info.name for info in engine.inputs]
    parts = []
    for batch in batches:
        rows = {name: feeds[name][batch] for name in taken}
        parts.append(engine.run(rows))
    joined: dict[str, Array] = {}
    for name in parts[0]:
        joined[name] = np.concatenate([part[name] for part in parts])
    return joined


def _compare(segment: Segment, computed: Array, reference: LocalReference, rtol: float) -> SegmentRecord:
    expected = reference.recorded[segment.site]
    gap = np.abs(computed.astype(np.float64) - expected)
    return SegmentRecord(
        site=segment.site,
        values=expected.size,
        equal_share=equal_share(expected, computed, rtol),
        steps=finite(float(gap.max()) / reference.scales[segment.site]),
    )


def _compare_output(name: str, computed: Array, expected: Array, rtol: float) -> SegmentRecord:
    return SegmentRecord(
        site=name,
        values=expected.size,
        equal_share=equal_share(expected, computed, rtol),
        steps=finite(relative_error(expected, computed)),
    )


def _unchecked(cut: CutGraph, reference: LocalReference, planned: Iterable[str]) -> Iterator[str]:
    """Yield planned sites no segment ends in, and recordings that are not on their quantizer's grid."""
    yield from (site for site in planned if site not in cut.covered)
    for segment in cut.segments:
        if not _on_grid(reference.recorded[segment.site], reference.scales[segment.site]):
            yield f"{segment.site} (recording off the grid)"


def _on_grid(recorded: Array, step: float) -> bool:
    codes = recorded.astype(np.float64) / step
    whole = bool(np.all(np.abs(codes - np.rint(codes)) < _OFF_GRID))
    return whole and bool(np.abs(codes).max() < _LARGEST_CODE)


def _number(value: float | None) -> float:
    return math.nan if value is None else value
