"""Which layers should stay float so that the output is good enough? A greedy search on real graphs.

Next comes the module with the largest share of the error in the bucket that is worst now. What leaving a module
float was measured to gain would be the more direct guide, but it holds half a dB of luck: other roundings flip
with it, and flip anew in the next calibration.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from gacq_deploy.engines.catalogue import rules_for
from gacq_deploy.errors import UsageError
from gacq_deploy.lint.lint import errors_in, lint_graph
from gacq_deploy.sensitivity.measure import Meter, Ranking, States
from gacq_deploy.sensitivity.report import Asked, Levels, Proposal, Step
from gacq_deploy.sensitivity.variants import Variants

MARGIN_DB = 1.0
"""Added to the recipe's gate: parity measures other states than the probe holds."""
_SHARE = 4
"""One in so many modules may stay float, where the request gives no number."""


@dataclass(frozen=True)
class Request:
    """What the worst timestep bucket should reach. At most one of the two bounds; none takes the recipe's gate.

    ``min_sqnr``: in dB. ``max_drop``: at most so many dB below the best that leaving ``max_float`` modules float
    reaches. ``max_float``: how many modules may stay float; default a quarter of the planned ones.
    """

    min_sqnr: float | None = None
    max_drop: float | None = None
    max_float: int | None = None

    def __post_init__(self) -> None:
        if self.min_sqnr is not None and self.max_drop is not None:
            raise UsageError(
                "Both a least SQNR and a largest drop were asked for.", "Ask for one of the two."
            )
        if self.min_sqnr is not None and not math.isfinite(self.min_sqnr):
            raise UsageError(f"A least SQNR of {self.min_sqnr:g} dB was asked for.", "Pass a finite number.")
        if self.max_drop is not None and not (self.max_drop >= 0 and math.isfinite(self.max_drop)):
            raise UsageError(f"A drop of {self.max_drop:g} dB was asked for.", "Pass 0 or more.")
        if self.max_float is not None and self.max_float < 0:
            raise UsageError(f"At most {self.max_float} float modules were asked for.", "Pass 0 or more.")

    def limit(self, planned: int) -> int:
        """Return how many of ``planned`` modules may stay float; one at least stays quantized."""
        return min(planned - 1, math.ceil(planned / _SHARE) if self.max_float is None else self.max_float)

    def describe(self, gate_db: float) -> tuple[Asked, float]:
        """Return what was asked and its value in dB; ``gate_db`` is the recipe's ``eps_sqnr_db``."""
        if self.max_drop is not None:
            return "max-drop", self.max_drop
        return ("budget", gate_db) if self.min_sqnr is None else ("min-sqnr", self.min_sqnr)


@dataclass(frozen=True)
class Trial:
    """A set of modules left float and the levels of every judged graph with it, file -> SQNR by bucket."""

    modules: tuple[str, ...]
    levels: dict[str, Levels]

    @property
    def worst(self) -> float:
        """Least SQNR over all graphs and buckets."""
        return min(min(v) for v in self.levels.values())


@dataclass
class Search:
    """Chooses modules for one request; ``judged[0]`` is the ranked graph."""

    judged: Sequence[Variants]
    ranking: Ranking
    states: States
    meter: Meter
    trials: list[Trial] = field(default_factory=list)

    def propose(self, request: Request, gate_db: float) -> Proposal:
        """Search, build the chosen graphs, measure and lint them."""
        asked, value = request.describe(gate_db)
        limit = request.limit(len(self.judged[0].modules))
        self.meter.report.stage("sensitivity: search", len(self.judged) * (1 + limit))
        target = value + MARGIN_DB if asked == "budget" else value
        first = self._try(())
        for _ in range(limit):
            # the best that can be reached is known only after the last trial
            if asked != "max-drop" and self.trials[-1].worst >= target:
                break
            self._try((*self.trials[-1].modules, self._next(self.trials[-1])))
        best = max(self.trials, key=lambda t: t.worst)
        if asked == "max-drop":
            target = best.worst - value
        chosen = next((t for t in self.trials if t.worst >= target), best)
        broken = self._lint(chosen.modules)
        rules = tuple(rule_line(module) for module in chosen.modules)
        steps = tuple(Step(module=t.modules[-1], worst_db=t.worst) for t in self.trials if t.modules)
        return Proposal(
            asked=asked,
            asked_db=value,
            target_db=target,
            reached=chosen.worst >= target and not broken,
            max_float=limit,
            modules=chosen.modules,
            rules=rules,
            before_db=first.levels,
            after_db=chosen.levels,
            steps=steps,
            lint_errors=broken,
        )

    def _try(self, modules: tuple[str, ...]) -> Trial:
        levels = {v.flavour.file: self.meter.levels(v.without(modules), self.states) for v in self.judged}
        self.trials.append(Trial(modules, levels))
        return self.trials[-1]

    def _next(self, trial: Trial) -> str:
        now = trial.levels[self.judged[0].flavour.file]
        bucket = now.index(min(now))
        left = [m for m in self.ranking.modules if m.module not in trial.modules]
        return max(left, key=lambda m: m.share[bucket]).module

    def _lint(self, modules: Collection[str]) -> tuple[str, ...]:
        return tuple(
            f"{v.flavour.file} for {target}: {finding}"
            for v in self.judged
            for target in rules_for(v.flavour.file)
            for finding in errors_in(lint_graph(v.without(modules), target=target))
        )


def rule_line(module: str) -> str:
    """Return the recipe line that leaves a module float."""
    return f"- {{match: {json.dumps(module)}, ignore: true}}"
