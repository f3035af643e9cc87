"""May these figures be compared? What differs in how they came about, and which figures that touches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from gacq_deploy.compare.records import RunRecords
from gacq_deploy.errors import GacqError
from gacq_deploy.parity.budget import hold_out
from gacq_deploy.parity.report import decides_measurement, protocol_changes
from gacq_deploy.storage.digests import digest_array, digest_json

Topic = Literal["steps", "images", "gates", "size", "speed", "calibration"]
"""What a figure is of: single steps, whole trajectories and their images, the verdict, bytes, time, learning."""
_JUDGED: frozenset[Topic] = frozenset(("steps", "images", "gates"))
_SAMPLE: Mapping[str, frozenset[Topic]] = {
    "images": _JUDGED,
    "steps": _JUDGED,
    "seed": _JUDGED,
    "buckets": frozenset(("steps", "gates")),
}
"""Key of the recipe's parity section -> figures that are of other images or steps where it differs."""
_BUSY = 0.5
"""Of the cores, taken by others when a benchmark began."""


@dataclass(frozen=True)
class Ground:
    """Why figures of these topics are not ranked; without topics a remark."""

    topics: frozenset[Topic]
    sentence: str


def find_grounds(records: Sequence[RunRecords], names: Sequence[str]) -> tuple[Ground, ...]:
    """Return what makes runs not comparable, in words; ``names`` are theirs."""
    return (*_differences(records, names), *_protocols(records, names), *_loads(records, names))


def _differences(records: Sequence[RunRecords], names: Sequence[str]) -> Iterator[Ground]:
    for read, topics, words in _READERS:
        if told := _told_apart([read(record) for record in records], names):
            yield Ground(topics, words.format(told))


def _loads(records: Sequence[RunRecords], names: Sequence[str]) -> Iterator[Ground]:
    for record, name in zip(records, names, strict=True):
        host = record.bench.host if record.bench else None
        if host is not None and host.load_average > _BUSY * host.cores:
            load = f"a load of {host.load_average:g} on {host.cores} cores"
            yield Ground(frozenset(), f"{name} was measured at {load}: its times are uncertain.")


def _told_apart(values: Sequence[str | None], names: Sequence[str]) -> str:
    """Return who has which value; "" where all that have one have the same."""
    holders: dict[str, list[str]] = {}
    for value, name in zip(values, names, strict=True):
        if value is not None:
            holders.setdefault(value, []).append(name)
    if len(holders) < 2:
        return ""
    return "; ".join(f"{', '.join(those)}: {value}" for value, those in holders.items())


def _protocols(records: Sequence[RunRecords], names: Sequence[str]) -> Iterator[Ground]:
    sections = [None if record.parity is None else record.parity.protocol for record in records]
    judged = [section for section in sections if section is not None]
    changed = dict.fromkeys(key for section in judged for key in protocol_changes(judged[0], section))
    for key in changed:
        values = [None if section is None else str(_at(section, key)) for section in sections]
        told = _told_apart(values, names)
        if key in _SAMPLE:
            yield Ground(_SAMPLE[key], f"Parity judged other images: parity.{key} differs ({told}).")
        elif not decides_measurement(key):
            yield Ground(frozenset(("gates",)), f"The bounds differ: parity.{key} ({told}).")


def _at(section: object, key: str) -> object:
    for part in key.split("."):
        section = getattr(section, part)
    return section


def _weights(record: RunRecords) -> str | None:
    if record.artifact is None:
        return None
    model = record.artifact.model
    fused = "".join(f" with LoRA {lora.sha256[:12]} x {lora.scale:g}" for lora in model.loras)
    return f"{model.weights_sha256[:12]}{fused}"


def _conditions(record: RunRecords) -> str | None:
    """Return a digest of where the judged images start, and what steers them, under the protocol that judged."""
    artifact, parity = record.artifact, record.parity
    if parity is None or artifact is None or artifact.probe is None:
        return None
    try:
        held = hold_out(artifact.model, artifact.probe, parity.protocol, 1)
    except GacqError:
        return None  # the artifact is not the one that was judged
    feeds = {name: digest_array(rows) for name, rows in held.conditions.feeds().items()}
    document = {"shape": list(held.shape), "seeds": list(held.seeds), "scale": held.conditions.scale}
    return digest_json({**document, "feeds": feeds})[:12]


def _processor(record: RunRecords) -> str | None:
    said = None if record.parity is None else record.parity.subject.get("processor")
    return f"{said.get('name')}, {said.get('machine')}" if isinstance(said, dict) else None


def _machine(record: RunRecords) -> str | None:
    if record.bench is None:
        return None
    host = record.bench.host
    return f"{host.cpu}, {host.cores} cores, {host.platform}, threads {record.bench.threads}"


def _versions(record: RunRecords) -> str | None:
    if record.bench is None:
        return None
    return ", ".join(sorted({candidate.label for candidate in record.bench.candidates}))


def _samples(record: RunRecords) -> str | None:
    return None if record.artifact is None else record.artifact.samples_sha256[:12]


_Reader = Callable[[RunRecords], str | None]
_READERS: tuple[tuple[_Reader, frozenset[Topic], str], ...] = (
    (
        _weights,
        _JUDGED | {"calibration"},
        "The models have other weights ({}): each is judged by its own float model.",
    ),
    (_conditions, _JUDGED, "The judged images have other seeds, prompts or classes (digests {})."),
    (_processor, frozenset(), "Parity ran on other processors ({}): last digits may differ."),
    (_machine, frozenset(("speed",)), "Speed was measured on other machines or threads ({})."),
    (_versions, frozenset(("speed",)), "Speed was measured with other versions ({})."),
    (_samples, frozenset(("calibration",)), "Calibration measured its output on other samples (digests {})."),
)
"""What is read of each run -> figures that are not ranked where runs differ in it, and the sentence about it."""
