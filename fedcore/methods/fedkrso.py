# SPDX-License-Identifier: Apache-2.0
"""FedKRSO's server half (arXiv 2602.03019, algorithm 1), with exact sums and, by default, a pool of seeds that
stays."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from fedcore.errors import ConfigError
from fedcore.fields.types import Bits, Moments, Order
from fedcore.methods.interface import SteppedSettings, after_rule, require_within
from fedcore.numbers.rules import MEAN, Rule
from fedcore.round.plan import Plan
from fedcore.round.training import USUAL_RANK, SubspaceTraining
from fedcore.round.training.subspace import ProjectionName
from fedcore.subspaces.schedule import generation_of, pool_seeds

if TYPE_CHECKING:
    from fedcore.model.state import ExactState
    from fedcore.model.update import WeightedUpdate

__all__ = ["FedKRSO", "FedKRSOSettings"]


class FedKRSOSettings(
    SteppedSettings, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="name", tag="fedkrso"
):
    """`name = "fedkrso"`."""

    rank: int = USUAL_RANK
    """Rows of each projection, r."""
    min_rank: int | None = None
    """Smallest rank that a device may train instead; by default the full rank."""
    num_seeds: int = 5
    """Subspaces in the pool, K."""
    schedule: Literal["pool", "fresh"] = "pool"
    """`pool` keeps the seeds; `fresh` draws new ones every `refresh_every` rounds and merges the old into the base."""
    refresh_every: int = 1
    """Rounds that seeds last with `fresh`."""
    order: Order = "cycle"
    """`cycle`: without replacement; `uniform`: with replacement, the paper's rule."""
    moments: Moments = "reset"
    """Adam's, at an interval's end: `reset`, the paper's rule; `carried` into the round's next one; `averaged` over
    nodes, seed by seed; or over nodes by `rows` of the weights, one number each."""
    projection: ProjectionName = "coordinate"
    """What rows of subspaces are made of: docs/methods.md."""
    informed_share: float = 1.0
    """With `informed`: that part of the subspaces, one at least; the others have signs."""
    bits: Bits = 4
    """Bits of an update's numbers on the wire: 4, 8 or 16. What 4 save is better spent on the rank
    (docs/results.md)."""
    published_bits: int = 8
    """Bits of a published state's numbers, 8 to 16: what is rounded once is far less than what updates of 4 bits leave
    open."""

    def __post_init__(self) -> None:
        SteppedSettings.__post_init__(self)
        require_within(self, rank=4096, num_seeds=1024, refresh_every=2**31 - 1)
        if self.min_rank is not None and not 1 <= self.min_rank <= self.rank:
            raise ConfigError(f"min_rank {self.min_rank} is outside 1 to rank {self.rank}", place="method.min_rank")
        if self.projection == "informed" and self.schedule == "fresh":
            remedy = 'use schedule = "pool", or another projection'
            raise ConfigError(
                "informed rows are there once, and fresh asks for new ones", place="method.schedule", remedy=remedy
            )
        if not 0 < self.informed_share <= 1 or (self.informed_share < 1 and self.projection != "informed"):
            remedy = 'from above 0 to 1, with projection = "informed"'
            raise ConfigError(
                f"informed_share {self.informed_share:g} means nothing here",
                place="method.informed_share",
                remedy=remedy,
            )

    @property
    def merges_every(self) -> int:
        """Rounds between merges; 0 for never."""
        return self.refresh_every if self.schedule == "fresh" else 0

    @property
    def informed_subspaces(self) -> int:
        """How many of the pool's subspaces have informed rows."""
        return max(1, round(self.informed_share * self.num_seeds)) if self.projection == "informed" else 0

    @property
    def not_by_coordinate(self) -> str:
        """Accumulators of a seed are coefficients of the same rows of P, if participants meet in the same seeds."""
        return (
            ""
            if self.order == "cycle"
            else 'with order = "uniform" each participant has subspaces of its own: most are zero where one is not'
        )

    @property
    def not_buffered(self) -> str:
        """Accumulators of all versions are coefficients of the same rows of P, as long as the seeds stay."""
        if self.schedule == "fresh":
            return 'with schedule = "fresh" seeds change between versions, and what was learned is merged into the base'
        return f'moments = "{self.moments}" are no changes' if self._shares_moments else ""

    @property
    def _shares_moments(self) -> bool:
        return self.moments in ("averaged", "rows")

    @property
    def sums_alone(self) -> bool:
        """Averaged moments are of those alone who used a seed, and no roots may lose their bounds under masks."""
        return not self._shares_moments

    @property
    def not_with_noise(self) -> str:
        """A sum of accumulators is one of changes, whichever subspaces a participant used; roots of second moments are
        a mean over those who have them."""
        return f'moments = "{self.moments}" are no sums' if self._shares_moments else ""

    @property
    def not_by_example(self) -> str:
        """A factor's gradient is small enough to be there once for each example of a micro-batch."""
        return ""

    def described(self) -> str:
        """For a person, in short."""
        rows = "" if self.projection == "coordinate" else f", {self.projection}"
        seeds = f"{self.num_seeds} seeds ({self.schedule}{rows})"
        return f"{self.name}, rank {self.rank}, {seeds}, {self.steps} steps, {self.bits} bits"


class FedKRSO:
    """Seeds down, accumulators up, their exact mean into the cumulative state.

    Args:
        settings: Of the job.
        artefact: SHA-256 of the run's informed rows, once they are there.
    """

    def __init__(self, settings: FedKRSOSettings, artefact: str = "") -> None:
        self._settings, self._artefact = settings, artefact

    def training(self, server_round: int, run_seed: int) -> SubspaceTraining:
        """The round's seeds and bounds."""
        settings = self._settings
        generation = generation_of(server_round, settings.merges_every)
        return SubspaceTraining(
            seeds=pool_seeds(run_seed, generation, settings.num_seeds),
            rank=settings.rank,
            min_rank=settings.min_rank or settings.rank,
            order=settings.order,
            moments=settings.moments,
            projection=settings.projection,
            artefact=self._artefact,
            informed_subspaces=settings.informed_subspaces,
            **settings.common(server_round, generation, run_seed),
        )

    def aggregate(
        self, state: ExactState, plan: Plan, updates: Iterable[WeightedUpdate], rule: Rule = MEAN
    ) -> ExactState:
        """S plus the weighted mean of the accumulators, or what the rule makes of them; a seed that a participant did
        not use counts as zero."""
        settings = self._settings
        step, momentum = settings.server_step, settings.server_momentum
        return after_rule(state, plan, updates, rule, step=step, momentum=momentum)
