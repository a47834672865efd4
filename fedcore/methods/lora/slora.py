# SPDX-License-Identifier: Apache-2.0
"""Server half of SLoRA (Babakniya et al., arXiv 2308.06522): where nodes' texts differ, LoRA begins too far from where
full fine-tuning would go. So the first rounds train a few numbers of each row of every weight, the same ones for
everybody; then the coordinator decomposes what they learned, and LoRA's factors begin with that instead of at random.

- First stage: the mean of the numbers is that of the models, exactly.
- The switch, at the end of the stage's last round: of what a layer learned, D, the best approximation of rank r by
  singular values, alpha / r B A with A = V^T and B = U s r / alpha; what is beyond rank r is dropped, as in the paper.
  Only the coordinator does it, so it does not matter that no two machines' decompositions are the same in every bit;
  the factors are published as any state, and the base stays the checkpoint: a newcomer needs the newest state alone.
- Second stage: as `fedit`, not exact. Where the first stage's last round failed, factors begin as `fedit`'s, and what
  was learned before stays beside them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fedcore.methods.interface import MethodSettings, after_rule, require_within
from fedcore.numbers.rules import MEAN, Rule
from fedcore.round.plan import Plan
from fedcore.round.training import SparseTraining
from fedcore.round.training.sparse import SPARSE

if TYPE_CHECKING:
    from fedcore.model.state import ExactState
    from fedcore.model.update import WeightedUpdate

__all__ = ["SLoRA", "SLoRASettings"]


class SLoRASettings(
    MethodSettings, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="name", tag="slora"
):
    """`name = "slora"`."""

    rank: int = 8
    """Rows of A, r."""
    alpha: float = 16.0
    """The factors' product counts alpha / r times."""
    density: float = 0.01
    """Part of each row of W that trains in the first stage."""
    sparse_rounds: int = 3
    """Rounds of the first stage."""

    def __post_init__(self) -> None:
        MethodSettings.__post_init__(self)
        require_within(self, rank=4096, alpha=1e6, density=1, sparse_rounds=2**31 - 1)

    @property
    def not_by_coordinate(self) -> str:
        """Number by number, in both stages: all participants' changes begin with the same ones."""
        return ""

    def described(self) -> str:
        """For a person, in short."""
        return (
            f"{self.name}, {self.sparse_rounds} rounds of {self.density:g} of each row, then rank {self.rank}, alpha"
            f" {self.alpha:g}, {self.steps} steps, {self.bits} bits"
        )


class SLoRA:
    """The exact mean of either stage's numbers, and the switch between them."""

    def __init__(self, settings: SLoRASettings) -> None:
        self._settings = settings

    def training(self, server_round: int, run_seed: int) -> SparseTraining:
        """The round's stage, and its bounds."""
        settings = self._settings
        return SparseTraining(
            rank=settings.rank,
            alpha=settings.alpha,
            density=settings.density,
            stage="sparse" if server_round <= settings.sparse_rounds else "factors",
            last=server_round == settings.sparse_rounds,
            **settings.common(server_round, 0, run_seed),
        )

    def aggregate(
        self, state: ExactState, plan: Plan, updates: Iterable[WeightedUpdate], rule: Rule = MEAN
    ) -> ExactState:
        """The state plus the weighted mean of the changes, or what the rule makes of them; after the first stage's last
        round as factors."""
        after, training = after_rule(state, plan, updates, rule), plan.training
        assert isinstance(training, SparseTraining)
        return _switched(after, plan, training) if training.last else after


def _switched(state: ExactState, plan: Plan, training: SparseTraining) -> ExactState:
    """With what each layer's sparse numbers say as factors, and the numbers zero."""
    import numpy as np

    from fedcore.numbers.accumulator import FRACTION_BITS
    from fedcore.subspaces.sparse import positions, scattered
    from fedcore.weights.initial import initial_factor

    unit = 2.0**-FRACTION_BITS
    sums = dict(state.sums)
    for layer in plan.model_schema.layers:
        name = layer.name + SPARSE
        values = np.multiply(sums[name], unit, dtype=np.float64)
        places = positions(training.run_seed, layer.name, layer.rows, layer.columns, values.shape[1])
        learned: Any = scattered(values, places, layer.columns)
        u, s, v = np.linalg.svd(learned, full_matrices=False)
        rank = min(training.rank, len(s))
        up = np.zeros((layer.rows, training.rank))
        up[:, :rank] = u[:, :rank] * (s[:rank] * training.rank / training.alpha)
        first = initial_factor(f"{layer.name}/A", training.rank, layer.columns, training.run_seed).astype(np.float64)
        down = first.copy()
        down[:rank] = v[:rank]
        sums[name] = np.zeros_like(sums[name])
        # The state has what was added to first values.
        sums[f"{layer.name}/A"] = np.rint((down - first) / unit).astype(np.int64)
        sums[f"{layer.name}/B"] = np.rint(up / unit).astype(np.int64)
    return replace(state, sums=sums)
