"""How far is the model's output from the float model's? Sample by sample, and in decibels a timestep."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from gacq_deploy.calibration.replay import full_pass
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.placement import to_tensor
from gacq_deploy.models.structure.trace import replaced_forward
from gacq_deploy.samples.calibration_set import CalibrationSet
from gacq_deploy.samples.row_file import Rows

_MODULE = "denoiser."
_CEILING_DB = 200.0
"""Reported where there is no error at all: diagnostics hold finite numbers only."""


def output_loss(
    denoiser: Denoiser, samples: CalibrationSet, checkpoints: Collection[str] = ()
) -> Callable[[Mapping[str, Tensor], NDArray[np.int64]], Tensor]:
    """Return ``losses(parameters, rows)`` [B]: mean squared error of the output, with parameters put in by name.

    Modules named in ``checkpoints`` keep their inputs alone and run again when gradients are due (Chen et al. 2016,
    arXiv 1604.06174). They then run on the module's own parameters: others must have the same values.
    """
    module, device = denoiser.call_module(), denoiser.device

    def losses(parameters: Mapping[str, Tensor], rows: NDArray[np.int64]) -> Tensor:
        inputs: tuple[Rows, ...] = (
            samples.latents,
            samples.model_timesteps,
            *(samples.conditioning[a.name] for a in denoiser.call.arguments),
        )
        renamed = {f"{_MODULE}{name}": value for name, value in parameters.items()}
        values = tuple(to_tensor(x[rows], device) for x in inputs)
        # names are unique; torch's own search for tied ones loses a parameter of a module that layers share
        with _checkpointed(denoiser.module, checkpoints):
            output: Tensor = functional_call(module, renamed, values, tie_weights=False)
        error: Tensor = (output - to_tensor(samples.targets[rows], device)).pow(2).flatten(1).mean(1)
        return error

    return losses


@contextmanager
def _checkpointed(module: nn.Module, names: Collection[str]) -> Iterator[None]:
    with ExitStack() as stack:
        for block in map(module.get_submodule, names):
            again = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
            stack.enter_context(replaced_forward(block, again))
        yield


def output_losses(
    denoiser: Denoiser,
    samples: CalibrationSet,
    rows: NDArray[np.int64],
    chunk: int,
    advance: Callable[[], None] = lambda: None,
) -> NDArray[np.float64]:
    """Return the mean squared output error of the given rows [N], without a graph; ``advance`` after every chunk."""
    chosen = samples.rows(rows)
    outputs = []
    for output in full_pass(denoiser, chosen, chunk):
        outputs.append(output)
        advance()
    errors = np.concatenate(outputs).astype(np.float64) - chosen.targets
    return (errors**2).reshape(len(rows), -1).mean(1)  # type: ignore[no-any-return]


def sqnr_by_group(
    signal: NDArray[np.float64], noise: NDArray[np.float64], groups: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the SQNR in dB of each group 0, 1, ... [G], all rows of a group pooled.

    Args:
        signal: mean square of each row's target [N].
        noise: mean square of each row's error [N].
        groups: of each row [N].
    """
    ratios = []
    for group in range(int(groups.max()) + 1):
        here = groups == group
        ratios.append(signal[here].sum() / max(float(noise[here].sum()), 1e-300))
    # an output of zeros has no signal: the ceiling's counterpart stands for its minus infinity
    decibels = 10 * np.log10(np.maximum(ratios, 1e-20))
    return np.asarray(np.minimum(decibels, _CEILING_DB), np.float32)
