"""Which inputs of linear layers are smoothed, by how much, and who carries it? Measured before the ranges."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gacq_deploy.calibration.checkpoint import Checkpoint, scalar
from gacq_deploy.calibration.replay import full_pass
from gacq_deploy.calibration.session import Session
from gacq_deploy.errors import CalibrationError, RecipeError
from gacq_deploy.models.placement import to_host
from gacq_deploy.models.structure.graph import Block, ModelGraph
from gacq_deploy.models.structure.norms import norms_of_linears
from gacq_deploy.quant.smoothing import (
    Reader,
    Smoothing,
    SmoothingRows,
    SmoothingSearch,
    channel_range,
    smoothing_factor,
)
from gacq_deploy.recipe.quantization import SmoothingSection
from gacq_deploy.spec import Array, PlannedSite, QuantPlan, Role, Site

SMOOTH, SEARCH = "smooth", "search smoothing"
"""The stages, as they are announced."""
SEARCHED_STATES = 128
"""Calibration states that the search looks at, at most."""
_SEARCHED_ROWS = 1024
"""Rows (tokens) of one tensor that it takes from them."""
_SEED_STREAM = 1 << 46
"""Second Philox key of the states drawn: beyond the numbers of trajectories, apart from other draws."""
_STEP = "smoothing"


def smoothing_groups(
    section: SmoothingSection, plan: QuantPlan, graph: ModelGraph
) -> tuple[tuple[str, ...], ...]:
    """Return the linear layers to smooth, grouped by the tensor they read, in execution order.

    A tensor that a quantized convolution reads as well is left alone, and so is a layer whose input stays float.

    Raises:
        RecipeError: the section's `match` chooses no layer, or only some of those that share a tensor's quantizer.
    """
    convolutions = {s.module for s in graph.sites if s.role == "output"}
    tensors: dict[Site, list[str]] = {}
    for entry in plan.of_role("input"):
        tensors.setdefault(graph.shared_tensor[entry.site], []).append(entry.site.module)
    groups = [tuple(names) for names in tensors.values() if not convolutions.intersection(names)]
    chosen = []
    for names in groups:
        matching = [name for name in names if fnmatchcase(name, section.match)]
        if matching and len(matching) < len(names):
            other = next(name for name in names if name not in matching)
            raise RecipeError(
                f"quantization.smoothing.match '{section.match}' chooses '{matching[0]}' but not '{other}', which "
                "reads the same tensor through the same quantizer.",
                "Choose both or neither.",
            )
        if matching:
            chosen.append(names)
    if not chosen:
        raise RecipeError(
            f"quantization.smoothing.match '{section.match}' chooses none of {sum(map(len, groups))} quantized "
            "linear layers.",
            "Correct the pattern (`gacq-deploy calibrate --dry-run` lists the sites), or remove the section.",
        )
    return tuple(chosen)


def ensure_smoothing(session: Session, checkpoint: Checkpoint) -> dict[str, Smoothing]:
    """Load or measure how every chosen layer is smoothed, by the layer's name; layers that share a tensor share it.

    A norm carries it if the layers of one group alone read its output and stand in its block, so that the block
    computes what it did.

    Raises:
        RecipeError: as :func:`smoothing_groups`.
        CalibrationError: an activation is not finite.
    """
    section = session.recipe.quantization.smoothing
    if section is None:
        return {}
    groups = smoothing_groups(section, session.plan, session.graph)
    done = checkpoint.get(_STEP)
    if done is None:
        done = _Measurement(session, section, groups).run()
        checkpoint.put(_STEP, done)
    norms = {readers: norm for norm, readers in norms_of_linears(session.denoiser).items()}
    smoothed, device = {}, session.denoiser.device
    for names in groups:
        factor = done.get(f"{names[0]}:factor")
        if factor is None:
            continue
        norm = norms.get(frozenset(names))
        carrier = norm if norm is not None and _in_one_block(session.graph, (norm, *names)) else None
        one = Smoothing(torch.from_numpy(factor).to(device), float(done[f"{names[0]}:alpha"]), carrier)
        smoothed.update(dict.fromkeys(names, one))
    return smoothed


def _in_one_block(graph: ModelGraph, names: Sequence[str]) -> bool:
    return any(_holds_all(block, names) for block in graph.blocks)


def _holds_all(block: Block, names: Sequence[str]) -> bool:
    return all(name.startswith(f"{block.name}.") for name in names)


def _by_state(x: Tensor, states: int) -> Tensor:
    """Return an activation [..., in] of so many states as [states, rows, in].

    Every state gets the whole of a tensor that does not hold rows of each.
    """
    rows = x.reshape(-1, x.shape[-1])
    if len(rows) % states:
        return rows.expand(states, *rows.shape)
    return rows.reshape(states, -1, x.shape[-1])


@dataclass(frozen=True)
class _Measurement:
    """One pass over all training states for the channels' ranges; the search takes rows of some states in another."""

    session: Session
    section: SmoothingSection
    groups: tuple[tuple[str, ...], ...]

    def run(self) -> dict[str, Array]:
        """Return factor and alpha of every group by its first layer; a group without them is not smoothed."""
        ranges = self._channel_ranges()
        alphas: Mapping[str, float | None]
        if self.section.alpha == "search":
            alphas = self._search(ranges)
        else:
            alphas = {names[0]: self.section.alpha for names in self.groups}
        found: dict[str, Array] = {}
        for names in self.groups:
            first, alpha = names[0], alphas[names[0]]
            weight = torch.stack([channel_range(self._weight(name)) for name in names]).amax(0)
            factor = None if alpha is None else smoothing_factor(ranges[first].amax(0), weight, alpha)
            if factor is not None and alpha is not None:
                found |= {f"{first}:factor": to_host(factor), f"{first}:alpha": scalar(alpha)}
        # a step is never empty, even if the search smooths nothing
        return {**found, "tensors": scalar(len(self.groups))}

    def _folds(self) -> Tensor:
        """Return to which half every training state belongs, [N] of 0 and 1: whole trajectories, if there are two."""
        split = self.session.split
        trajectories = split.samples.trajectory[split.training]
        known, number = np.unique(trajectories, return_inverse=True)
        return torch.from_numpy((number if len(known) > 1 else np.arange(len(number))) % 2)

    def _channel_ranges(self) -> dict[str, Tensor]:
        """Return max|x| [2, in] of every group's tensor, by half."""
        rows, folds = self.session.split.training, self._folds()
        ranges: dict[str, Tensor] = {}

        def observe(name: str, x: Tensor, states: Tensor) -> None:
            seen = _by_state(x.abs(), len(states)).amax(1)
            if not bool(torch.isfinite(seen).all()):
                raise CalibrationError(
                    f"The float activation at '{name}:input' holds NaN or Inf.",
                    "Check the model's weights and the samples.",
                )
            so_far = ranges.setdefault(name, torch.zeros(2, x.shape[-1], device=x.device))
            for half in range(2):
                mine = seen[folds[states] == half]
                so_far[half] = torch.cat([so_far[half : half + 1], mine]).amax(0)

        self.session.report.stage(SMOOTH, -(-len(rows) // self.session.chunk))
        self._pass(rows, [names[0] for names in self.groups], observe)
        return ranges

    def _search(self, ranges: Mapping[str, Tensor]) -> dict[str, float | None]:
        """Return every group's best alpha; as many tensors at once as memory holds."""
        training = self.session.split.training
        count = min(SEARCHED_STATES, len(training))
        key = [self.session.recipe.calibration.seed, _SEED_STREAM]
        generator = np.random.Generator(np.random.Philox(key=key))
        states = np.sort(generator.choice(len(training), count, replace=False))
        alphas: dict[str, float | None] = {}
        for groups in self._portions(ranges):
            self.session.report.stage(SEARCH, -(-count // self.session.chunk) + len(groups))
            rows = self._rows(states, groups)
            for names in groups:
                alphas[names[0]] = self._prepared(names, rows[names[0]], ranges[names[0]]).best()
                self.session.report.advance()
        return alphas

    def _portions(self, ranges: Mapping[str, Tensor]) -> Iterator[list[tuple[str, ...]]]:
        room = self.session.memory_mb * 2**20 // 2
        portion: list[tuple[str, ...]] = []
        used = 0
        for names in self.groups:
            size = 4 * _SEARCHED_ROWS * ranges[names[0]].shape[1]
            if portion and used + size > room:
                yield portion
                portion, used = [], 0
            portion.append(names)
            used += size
        yield portion

    def _rows(
        self, states: NDArray[np.int64], groups: Sequence[tuple[str, ...]]
    ) -> dict[str, list[tuple[int, Tensor]]]:
        """Return some rows [R, in] of every group's tensor, with the training state that they are of."""
        each = -(-_SEARCHED_ROWS // len(states))
        rows: dict[str, list[tuple[int, Tensor]]] = {names[0]: [] for names in groups}

        def observe(name: str, x: Tensor, numbers: Tensor) -> None:
            tokens = _by_state(x, len(numbers))
            taken = min(each, tokens.shape[1])
            spread = torch.arange(taken) * tokens.shape[1] // taken
            for number, sample in zip(numbers.tolist(), tokens, strict=True):
                # other places in every state
                rows[name].append((int(states[number]), sample[(spread + number) % tokens.shape[1]]))

        self._pass(self.session.split.training[states], list(rows), observe)
        return rows

    def _prepared(
        self, names: tuple[str, ...], rows: Sequence[tuple[int, Tensor]], largest: Tensor
    ) -> SmoothingSearch:
        folds = self._folds()
        every = [x for _, x in rows]

        def half(number: int) -> SmoothingRows:
            # the states drawn for the search may all be of one half: the other then takes them too
            mine = [x for state, x in rows if int(folds[state]) == number] or every
            return SmoothingRows(torch.cat(mine), largest[number])

        source = self._planned(names[0], "input")
        weights = [(name, self._planned(name, "weight")) for name in names]
        readers = [Reader(self._weight(name), entry.spec, entry.range_method) for name, entry in weights]
        return SmoothingSearch((half(0), half(1)), readers, source.spec, source.range_method)

    def _planned(self, name: str, role: Role) -> PlannedSite:
        entry = self.session.plan.get(Site(name, role))
        assert entry is not None, f"{name}: planned without its {role}"
        return entry

    def _pass(
        self,
        rows: NDArray[np.int64],
        names: Sequence[str],
        observe: Callable[[str, Tensor, Tensor], None],
    ) -> None:
        """Run the float model over ``rows``; ``observe`` sees what layers of ``names`` read, and its rows' numbers."""
        session, samples = self.session, self.session.split.samples.rows(rows)
        running = torch.zeros(0, dtype=torch.int64)

        def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
            return lambda _module, args: observe(name, args[0].detach(), running)

        with ExitStack() as stack:
            for name in names:
                layer = session.denoiser.module.get_submodule(name)
                stack.callback(layer.register_forward_pre_hook(hook(name)).remove)
            for chunk in samples.chunks(session.chunk):
                running = torch.arange(chunk.start, chunk.stop)
                for _ in full_pass(session.denoiser, samples.rows(chunk), session.chunk):
                    session.report.advance()

    def _weight(self, name: str) -> Tensor:
        return self.session.denoiser.module.get_submodule(name).get_parameter("weight").detach()
