"""Which blocks does a denoiser have, in which order, which feeds which, and which tensors can be quantized?

All of it is observed on two small forward passes with other inputs and another number of rows: what follows the rows
is per-sample, what is the same in both is a constant, and where neither holds the cut was too coarse.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gacq_deploy.artifact.call import Place
from gacq_deploy.errors import ModelError
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.pytree import leaves, replaced, same, spoken
from gacq_deploy.models.structure.blocks import cut_blocks
from gacq_deploy.models.structure.trace import Observed, TracedBlock, observe
from gacq_deploy.models.structure.unused import find_unused
from gacq_deploy.spec import Role, Site

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_ROWS = ((3, 2), (5, 4), (7, 6), (11, 10), (13, 12))
"""Rows of the two passes; the next pair where a constant happens to have as many."""
_SUPPORTED = (
    "A block takes and returns tensors (also in tuples, lists and dicts) whose first dimension is the sample; all "
    "else has to be the same in every call."
)


_Name = TypeVar("_Name")


@dataclass(frozen=True)
class TensorShape:
    """Shape without the batch dimension, and dtype."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Bytes of one sample."""
        return int(torch.Size(self.shape).numel()) * self.dtype.itemsize


@dataclass(frozen=True)
class Block:
    """A module that is computed and reconstructed as one piece.

    ``inputs`` are its per-sample tensor arguments and ``outputs`` the per-sample tensors that it returns, wherever
    they are nested; ``result`` is what it returns with None in their places. ``depends_on`` are the earlier blocks
    its inputs are computed from (through the glue between them), ``last_use`` is the last block that needs its outputs
    (``len(blocks)``: the model's own output does).
    """

    name: str
    sites: tuple[Site, ...]
    inputs: Mapping[Place, TensorShape]
    outputs: Mapping[Place, TensorShape]
    depends_on: tuple[int, ...]
    last_use: int
    result: Any = field(default=None, repr=False, compare=False)

    @property
    def output_bytes(self) -> int:
        """Bytes of the outputs for one sample."""
        return sum(t.bytes for t in self.outputs.values())

    @property
    def bytes_per_sample(self) -> int:
        """Bytes of the inputs and the outputs for one sample."""
        return sum(t.bytes for t in self.inputs.values()) + self.output_bytes


@dataclass(frozen=True)
class ModelGraph:
    """Blocks and sites in execution order; ``ties`` maps an input site to its tie name.

    ``shared_tensor`` maps an input site to the first site that reads the very same tensor; ``repeated`` holds the
    layers that run more than once in a step, on different tensors, and ``uncut`` those that lie in no block, with the
    reason: both have to stay float. ``unused`` are the layers that run although the output is not computed from their
    result: exported graphs do not hold them.
    """

    blocks: tuple[Block, ...]
    sites: tuple[Site, ...]
    ties: Mapping[Site, str]
    shared_tensor: Mapping[Site, Site]
    repeated: frozenset[str] = frozenset()
    uncut: Mapping[str, str] = field(default_factory=dict)
    unused: frozenset[str] = frozenset()

    @property
    def bytes_per_sample(self) -> int:
        """Bytes of the largest block's inputs and outputs for one sample."""
        return max(b.bytes_per_sample for b in self.blocks)

    @property
    def bytes_of_all_blocks(self) -> int:
        """Bytes of every block's inputs and outputs for one sample."""
        return sum(b.bytes_per_sample for b in self.blocks)

    def tied(self, groups: Iterable[Sequence[Site]]) -> ModelGraph:
        """Return the graph in which the input sites of each group read one tensor, too."""
        shared, ties = dict(self.shared_tensor), dict(self.ties)
        for group in groups:
            shared, ties = _joined(shared, group), _joined(ties, group)
        return replace(self, shared_tensor=shared, ties=ties)

    def modules(self, denoiser: Denoiser) -> dict[str, nn.Module]:
        """Return the blocks' modules by name, in execution order, as they are now."""
        return {b.name: denoiser.module.get_submodule(b.name) for b in self.blocks}


def trace_model(denoiser: Denoiser) -> ModelGraph:
    """Observe the model and return its graph.

    A module that cannot be a block (it runs twice in a step, changes what it is given, or takes or returns what neither
    has a row for each sample nor is the same for all) is cut into its children; a layer for which that ends in nothing
    stands in ``uncut``.

    Raises:
        ModelError: nothing in the model can be a block.
    """
    refused: dict[str, str] = {}
    while True:
        seen = _observe_twice(denoiser, cut_blocks(denoiser.module, refused))
        if not seen.troubles:
            break
        refused |= seen.troubles
    if not seen.blocks:
        reasons = ", ".join(f"'{name}' {reason}" for name, reason in refused.items())
        raise ModelError(f"No module can be a block: {reasons or 'none runs'}.", _SUPPORTED)
    unused = find_unused(denoiser, [layer.name for layer in seen.layers])
    return _graph(denoiser.module, seen, refused, unused)


class _Coincidence(Exception):
    """A tensor has as many rows as the batch in both passes or in one: another batch has to tell."""


def _observe_twice(denoiser: Denoiser, cut: Mapping[str, nn.Module]) -> Observed:
    """Return what the first of two passes saw, with the troubles of both."""
    for first_rows, second_rows in _ROWS:
        inputs = denoiser.example_inputs(first_rows)
        first = observe(denoiser, cut, inputs)
        if first.troubles:
            return first
        second = observe(denoiser, cut, _other_inputs(denoiser, inputs, second_rows))
        first.troubles = second.troubles
        if first.troubles:
            return first
        try:
            first.troubles = _differences(first, second)
        except _Coincidence:
            continue
        return first
    raise ModelError(
        f"Which tensors hold a row for each sample cannot be seen from batches of {_ROWS}.", _SUPPORTED
    )


def _other_inputs(denoiser: Denoiser, inputs: Mapping[str, Tensor], rows: int) -> dict[str, Tensor]:
    """Return other inputs; what is one for all rows (position ids, say) stays: it is so in every call of a size."""
    other = denoiser.example_inputs(rows, seed=1)
    for name, value in inputs.items():
        if bool((value == value[:1]).all()):
            other[name] = value[:1].expand(rows, *value.shape[1:]).clone()
    return other


def _differences(first: Observed, second: Observed) -> dict[str, str]:
    """Return the blocks that take or return what is neither per-sample nor constant, with the reason."""
    troubles: dict[str, str] = {}
    others = {b.name: b for b in second.blocks}
    for one in first.blocks:
        other = others.get(one.name)
        if other is None:
            troubles[one.name] = "does not run in every step"
        elif reason := _difference(one, other):
            troubles[one.name] = reason
    return troubles


def _difference(one: TracedBlock, other: TracedBlock) -> str | None:
    for word, mine, its in (
        ("is given", one.inputs, other.inputs),
        ("returns", dict(leaves(one.result, ("output",))), dict(leaves(other.result, ("output",)))),
    ):
        if mine.keys() != its.keys():
            return f"{word} other things in other steps"
        for path, value in mine.items():
            if reason := _leaf_difference(value, its[path]):
                return f"{word} {spoken(path)}, {reason}"
    made = [v for _, v in leaves(one.result) if _has_rows(v)]
    if not made:
        return "returns nothing that has a row for each sample"
    if odd := [v.dtype for v in made if not (v.is_floating_point() or v.is_complex())]:
        return f"returns {odd[0]}, by which nothing tells what depends on it"
    return None


def _leaf_difference(one: Any, other: Any) -> str | None:
    tensors = isinstance(one, Tensor) and isinstance(other, Tensor)
    if tensors and (_has_rows(one) or _has_rows(other)):
        if (
            _has_rows(one)
            and _has_rows(other)
            and (one.shape[1:], one.dtype) == (other.shape[1:], other.dtype)
        ):
            return None
        if one.shape == other.shape:
            raise _Coincidence
    elif same(one, other):
        return None
    if tensors and one.shape != other.shape:
        return f"of shape {list(one.shape)} in one call and {list(other.shape)} in another"
    return (
        "which differs from call to call"
        if not tensors
        else "which has no row for each sample and yet differs"
    )


def _has_rows(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_meta


def _graph(root: nn.Module, seen: Observed, refused: Mapping[str, str], unused: frozenset[str]) -> ModelGraph:
    names = [b.name for b in seen.blocks]
    last_use = list(range(len(names)))
    for producer in seen.final_dependencies:
        last_use[producer] = len(names)
    for consumer, block in enumerate(seen.blocks):
        for producer in block.depends_on:
            last_use[producer] = max(last_use[producer], consumer)
    sites = tuple(s for layer in seen.layers for s in _layer_sites(root, layer.name))
    uncut = _uncut(seen, names, refused)
    cut = [s for s in sites if s.module not in uncut]
    blocks = tuple(_block(block, cut, last_use[i]) for i, block in enumerate(seen.blocks))
    return ModelGraph(blocks, sites, *_ties(seen), frozenset(seen.repeated), uncut, unused)


def _block(traced: TracedBlock, sites: Iterable[Site], last_use: int) -> Block:
    outputs = _rows(dict(leaves(traced.result)))
    return Block(
        name=traced.name,
        sites=tuple(s for s in sites if _within(s.module, traced.name)),
        inputs=_rows(traced.inputs),
        outputs=outputs,
        depends_on=traced.depends_on,
        last_use=last_use,
        result=replaced(traced.result, dict.fromkeys(outputs)),
    )


def _rows(values: Mapping[Place, Any]) -> dict[Place, TensorShape]:
    return {path: TensorShape(tuple(v.shape[1:]), v.dtype) for path, v in values.items() if _has_rows(v)}


def _uncut(seen: Observed, blocks: list[str], refused: Mapping[str, str]) -> dict[str, str]:
    """Return the layers that lie in no block, or do not run in theirs, with the reason."""
    found: dict[str, str] = {}
    for layer in seen.layers:
        owner = next((b for b in blocks if _within(layer.name, b)), None)
        if layer.name in seen.repeated or (owner is not None and owner == layer.block):
            continue
        reasons = [f"'{name}' {why}" for name, why in refused.items() if _within(layer.name, name)]
        found[layer.name] = reasons[-1] if reasons else f"it runs outside the block '{owner}' that holds it"
    return found


def _within(name: str, block: str) -> bool:
    return name == block or name.startswith(f"{block}.")


def _ties(seen: Observed) -> tuple[dict[Site, str], dict[Site, Site]]:
    """Union of sites that read one tensor, or tensors that meet at a concatenation."""
    first_reader: dict[tuple[int, int], Site] = {}
    shared: dict[Site, Site] = {}
    parent: dict[Site, Site] = {}  # of a union-find: a site that is its own parent names the tie
    for layer in seen.layers:
        site = Site(layer.name, "input")
        first = first_reader.setdefault(layer.contents, site)
        shared[site] = first
        parent[site] = parent.get(first, first)
    for result, members in seen.concats.items():
        readers = [first_reader[t] for t in (result, *members) if t in first_reader]
        roots = [_root(parent, r) for r in readers]
        for other in roots[1:]:
            parent[other] = roots[0]
    return {site: str(_root(parent, site)) for site in parent}, shared


def _joined(names: dict[Site, _Name], group: Sequence[Site]) -> dict[Site, _Name]:
    """Return names in which all sites of a group have one, and with each of them whoever had the same as it."""
    found = {names[site]: None for site in group if site in names}
    if len(found) < 2:
        return names
    first = next(iter(found))
    return {site: first if name in found else name for site, name in names.items()}


def _root(parent: Mapping[Site, Site], site: Site) -> Site:
    while parent[site] != site:
        site = parent[site]
    return site


def _layer_sites(root: nn.Module, name: str) -> list[Site]:
    roles: list[Role] = ["weight", "input"]
    if isinstance(root.get_submodule(name), _CONVOLUTIONS):
        roles.append("output")
    return [Site(name, role) for role in roles]
