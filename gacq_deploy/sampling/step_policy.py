"""Which sampler steps run in float, and which in INT8?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gacq_deploy.artifact.artifact import CalibrationArtifact
from gacq_deploy.errors import UsageError
from gacq_deploy.recipe.sections import StepPolicySection
from gacq_deploy.sampling.step_error import image_errors, output_error
from gacq_deploy.sampling.timesteps import Keys, ModelTimesteps


@dataclass(frozen=True)
class StepPolicy:
    """A choice for every timestep, made for one sampler's steps.

    ``timesteps`` are the sampler's S distinct timesteps on the training scale, noisiest first; ``in_float`` says for
    each whether it runs in float; ``model_timesteps`` is what the network is fed of them, if that is something else. A
    timestep between two of them belongs to the noisier one, whose step passes over it; one above the first belongs to
    the first.
    """

    asked: StepPolicySection
    timesteps: tuple[int, ...]
    in_float: tuple[bool, ...]
    model_timesteps: tuple[float, ...] = ()

    @property
    def float_timesteps(self) -> tuple[int, ...]:
        """The timesteps that run in float, noisiest first."""
        return tuple(t for t, chosen in zip(self.timesteps, self.in_float, strict=True) if chosen)

    @property
    def share(self) -> float:
        """Part of the steps that run in float, 0 to 1."""
        return sum(self.in_float) / len(self.in_float)

    def choose(self, timesteps: ModelTimesteps) -> NDArray[np.bool_]:
        """Return for each row of ``timesteps`` [N], as the network is fed them, whether it runs in float, ``[N]``."""
        ascending = np.array((self.model_timesteps or self.timesteps)[::-1])
        place = np.minimum(np.searchsorted(ascending, timesteps), len(ascending) - 1)
        return np.array(self.in_float[::-1], bool)[place]

    def describe(self) -> str:
        """Return ``4 of 20 steps in float (worst: 950 900 50 850)``."""
        how = "as listed" if self.asked.steps else self.asked.where
        listed = " ".join(map(str, self.float_timesteps)) or "none"
        return f"{sum(self.in_float)} of {len(self.timesteps)} steps in float ({how}: {listed})"


def resolve_policy(
    asked: StepPolicySection,
    timesteps: Sequence[int] | Keys,
    artifact: CalibrationArtifact,
    *,
    model_timesteps: ModelTimesteps | None = None,
) -> StepPolicy:
    """Choose the float steps of a sampler. More float steps always hold the fewer.

    Args:
        asked: the recipe's section.
        timesteps: of the engine calls on the training scale, noisiest first; one that comes twice is one step.
        artifact: its probe says which steps are worst.
        model_timesteps: what the network is fed at each of them, ``[S]``; None: the timesteps.

    Raises:
        UsageError: more float steps than the sampler has, or a listed step beyond its last.
        ArtifactError: ``worst`` without a probe to tell.
        ModelError: ``worst`` with a scheduler configuration that neither DDIM nor a flow can follow.
    """
    distinct = tuple(sorted({int(t) for t in timesteps}, reverse=True))
    count = len(distinct)
    if asked.float_steps > count or max(asked.steps, default=0) >= count:
        wanted = (
            f"{asked.float_steps} float steps were" if asked.float_steps else f"Step {max(asked.steps)} was"
        )
        last = count if asked.float_steps else count - 1
        raise UsageError(f"{wanted} asked for, the sampler has {count} steps.", f"Choose 0 to {last}.")
    ordered = _order(asked, distinct, artifact) if asked.float_steps else []
    chosen = {*asked.steps, *ordered[: asked.float_steps]}
    in_float = tuple(step in chosen for step in range(count))
    return StepPolicy(
        asked, distinct, in_float, _distinct_model_timesteps(distinct, timesteps, model_timesteps)
    )


def policy_document(policy: StepPolicy | None) -> dict[str, Any] | None:
    """Return a policy as plain JSON data, None for one that runs every step in INT8."""
    if policy is None:
        return None
    return {
        "asked": policy.asked.model_dump(mode="json"),
        "timesteps": list(policy.timesteps),
        "float_timesteps": list(policy.float_timesteps),
        "float_share": policy.share,
    }


def _distinct_model_timesteps(
    distinct: tuple[int, ...], timesteps: Sequence[int] | Keys, fed: ModelTimesteps | None
) -> tuple[float, ...]:
    """Return the noisiest value fed at each distinct timestep; empty where the timesteps themselves are fed."""
    if fed is None or np.array_equal(fed, np.asarray(timesteps)):
        return ()
    most: dict[int, float] = {}
    for key, value in zip(timesteps, fed.tolist(), strict=True):
        most[int(key)] = max(value, most.get(int(key), value))
    return tuple(most[key] for key in distinct)


def _order(asked: StepPolicySection, timesteps: Sequence[int], artifact: CalibrationArtifact) -> list[int]:
    """Return every step, the one that goes to float first at the front."""
    steps = list(range(len(timesteps)))
    match asked.where:
        case "first":
            return steps
        case "last":
            return steps[::-1]
        case "both":
            return [step for pair in zip(steps, steps[::-1], strict=True) for step in pair][: len(steps)]
        case "worst":
            grid = np.array(timesteps, np.int64)
            call = artifact.model.call
            error = output_error(artifact.probe, 1.0 if call is None else call.timestep.scale)
            errors = image_errors(error, artifact.model, grid)
            return sorted(steps, key=lambda step: -errors[step])
