"""What did the fake-quantized model predict, and from what? The reference of every exported graph, on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gacq_deploy.samples.calibration_set import TableRows
from gacq_deploy.samples.conditioning import Conditions
from gacq_deploy.spec import Array
from gacq_deploy.storage.arrays import map_arrays, save_arrays

_SCALE = "guidance_scale"


@dataclass(frozen=True)
class Probe:
    """The fake-quantized torch model's own outputs, the reference of every exported graph.

    ``inputs`` name -> [M, ...], arrays or ``TableRows`` of the calibration set; ``outputs`` keys ``float``,
    ``input_quant`` (Q/DQ on inputs and weights) and ``output_quant`` (also on convolution outputs) -> [M, C, H, W];
    ``local`` maps placement -> site -> the fake-quantized tensor of the first ``P`` states.
    """

    inputs: Mapping[str, Any]
    outputs: Mapping[str, Array]
    local: Mapping[str, Mapping[str, Array]]
    conditions: Conditions | None = None
    """The conditioning of the probe's trajectories, one row each, where it cannot be drawn: encoded prompts."""


def save_probe(path: Path, probe: Probe, *, schema: str) -> None:
    """Write a probe as one safetensors file, whole or not at all."""
    save_arrays(path, _flatten(probe), schema=schema)


def load_probe(path: Path, *, hint: str, sha256: str | None = None) -> Probe:
    """Read a probe; large arrays stay in the file, read-only.

    Raises:
        ArtifactError: the file is missing, malformed, or not of that digest.
    """
    flat = map_arrays(path, what="Artifact probe", hint=hint, sha256=sha256)
    local: dict[str, dict[str, Array]] = {}
    for key, value in flat.items():
        if key.startswith("local/"):
            _, placement, site = key.split("/", 2)
            local.setdefault(placement, {})[site] = value
    tables = {k: TableRows(v, flat[f"index/{k}"]) for k, v in _part(flat, "table/").items()}
    return Probe(
        inputs={**_part(flat, "inputs/"), **tables},
        outputs=_part(flat, "outputs/"),
        local=local,
        conditions=_load_conditions(flat),
    )


def _flatten(probe: Probe) -> dict[str, Array]:
    flat: dict[str, Array] = {}
    for name, rows in probe.inputs.items():
        if isinstance(rows, TableRows):
            flat |= {f"table/{name}": rows.table, f"index/{name}": rows.index}
        else:
            flat[f"inputs/{name}"] = np.asarray(rows)
    if probe.conditions is not None:
        flat[_SCALE] = np.array(probe.conditions.scale, np.float64)
        for side, values in (
            ("positive", probe.conditions.positive),
            ("negative", probe.conditions.negative),
        ):
            flat |= {f"{side}/{k}": v for k, v in (values or {}).items()}
    flat |= {f"outputs/{k}": v for k, v in probe.outputs.items()}
    for placement, tensors in probe.local.items():
        flat |= {f"local/{placement}/{k}": v for k, v in tensors.items()}
    return flat


def _load_conditions(flat: Mapping[str, Array]) -> Conditions | None:
    if _SCALE not in flat:
        return None
    return Conditions(_part(flat, "positive/"), _part(flat, "negative/") or None, float(flat[_SCALE]))


def _part(flat: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {k.removeprefix(prefix): v for k, v in flat.items() if k.startswith(prefix)}
