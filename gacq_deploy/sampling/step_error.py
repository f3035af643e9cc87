"""How much does the INT8 error of one sampler step move the image? From the probe that every artifact holds.

An error of the model's output enters the next state by the sampler's own coefficient: DDIM's (Song et al. 2021, eq.
12), or a flow's difference of sigmas. From there on it is taken to keep its size: data and noise have about unit
variance, so a state's variance stays where it is. The SQNR of single steps says something else: the output of the
cleanest steps has the worst, and hardly moves the image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gacq_deploy.artifact.probe import Probe
from gacq_deploy.artifact.records import ModelRecord
from gacq_deploy.errors import ArtifactError
from gacq_deploy.sampling.ddim import DdimConfig, parse_scheduler
from gacq_deploy.sampling.flow import FLOW_CLASS, parse_flow
from gacq_deploy.sampling.timesteps import Keys, training_keys

_TINY = np.finfo(np.float64).tiny


@dataclass(frozen=True)
class OutputError:
    """RMS error of the quantized model's output: ``rms`` float64 [K] at ``timesteps`` int64 [K], ascending."""

    timesteps: Keys
    rms: NDArray[np.float64]

    def at(self, timesteps: Keys) -> NDArray[np.float64]:
        """Return the error [S] at any timesteps [S]: logarithms in between, the ends beyond them."""
        logs = np.log(np.maximum(self.rms, _TINY))
        return np.asarray(np.exp(np.interp(timesteps, self.timesteps, logs)))


def output_error(probe: Probe | None, timestep_scale: float = 1.0) -> OutputError:
    """Return the error of the fake-quantized model's output on the probe's states, by timestep.

    Args:
        probe: of the artifact.
        timestep_scale: what the network was fed is the timestep times this.

    Raises:
        ArtifactError: the artifact holds no probe, or one without float or quantized outputs.
    """
    outputs = {} if probe is None else probe.outputs
    if probe is None or not {"float", "input_quant"} <= set(outputs):
        raise ArtifactError(
            "The artifact's probe has no float and quantized outputs, so nothing says which steps are worst.",
            "Run `gacq-deploy calibrate` again, or choose the steps by `first`, `last` or `steps`.",
        )
    gaps = outputs["input_quant"].astype(np.float64) - outputs["float"]
    squares = np.mean(gaps.reshape(len(gaps), -1) ** 2, axis=1)
    rows = training_keys(probe.inputs["timestep"], timestep_scale)
    timesteps = np.unique(rows)
    return OutputError(timesteps, np.array([np.sqrt(squares[rows == t].mean()) for t in timesteps]))


def image_errors(error: OutputError, record: ModelRecord, timesteps: Keys) -> NDArray[np.float64]:
    """Return what each of the sampler steps alone adds to the image, RMS, ``[S]``.

    Args:
        error: of the model's output.
        record: the model's, with its noise schedule.
        timesteps: distinct, noisiest first, ``[S]``.

    Raises:
        ModelError: neither DDIM nor a flow can follow that configuration.
    """
    scheduler = record.scheduler
    if scheduler.get("_class_name") == FLOW_CLASS:
        levels = np.append(timesteps / parse_flow(scheduler).num_train_timesteps, 0.0)
        return error.at(timesteps) * np.abs(np.diff(levels))
    config = parse_scheduler(scheduler)
    alphas = np.array(record.alphas_cumprod)
    here = np.maximum(alphas[timesteps], _TINY)
    after = np.append(alphas[timesteps[1:]], 1.0)
    return error.at(timesteps) * np.abs(_state_change(config, here, after))


def _state_change(
    config: DdimConfig, alpha: NDArray[np.float64], after: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the change of the next state for one unit of change of the model's output."""
    clean: NDArray[np.float64] | float
    noise: NDArray[np.float64] | float
    match config.prediction_type:
        case "epsilon":
            clean, noise = -np.sqrt((1 - alpha) / alpha), 1.0
        case "sample":
            clean, noise = 1.0, -np.sqrt(alpha / (1 - alpha))
        case "v_prediction":
            clean, noise = -np.sqrt(1 - alpha), np.sqrt(alpha)
    return np.asarray(np.sqrt(after) * clean + np.sqrt(1 - after) * noise)
