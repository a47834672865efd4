# SPDX-License-Identifier: Apache-2.0
"""FedKRSO's server half (arXiv 2602.03019, algorithm 1), with exact sums and, by default, a pool of seeds that stays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from fedcore.accumulator import RunningSum
from fedcore.method import MethodSettings
from fedcore.plan import Plan, Training
from fedcore.schedule import generation_of, pool_seeds
from fedcore.schema import ModelSchema
from fedcore.state import ExactState, state_shapes
from fedcore.update import CheckedUpdate, WeightedUpdate, add_update, check_update

__all__ = ["FedKRSO"]


class FedKRSO:
    """Seeds down, accumulators up, their exact mean into the cumulative state."""

    def __init__(self, settings: MethodSettings, schema: ModelSchema) -> None:
        self._settings = settings
        self._schema = schema

    def start(self, run_seed: int) -> ExactState:
        """Zero, in the first generation's subspaces."""
        return ExactState.zero(self._schema, pool_seeds(run_seed, 0, self._settings.num_seeds), self._settings.rank)

    def training(self, state: ExactState, server_round: int, run_seed: int) -> Training:
        """The round's seeds and bounds."""
        settings = self._settings
        generation = generation_of(server_round, settings.folds_every)
        return Training(
            method=settings.name,
            seeds=pool_seeds(run_seed, generation, settings.num_seeds),
            generation=generation,
            rank=settings.rank,
            min_rank=settings.min_rank or settings.rank,
            order=settings.order,
            intervals=settings.steps // settings.interval_steps,
            interval_steps=settings.interval_steps,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            tensor_learning_rate=settings.tensor_learning_rate,
            bits=settings.bits,
            share=settings.share,
            run_seed=run_seed,
        )

    def open(self, state: ExactState, training: Training) -> ExactState:
        """The same state, or zero layers under new seeds when the generation changed."""
        return state if state.seeds == training.seeds else state.refreshed(self._schema, training.seeds)

    def shapes(self, training: Training) -> Mapping[str, tuple[int, int]]:
        """K r columns for a layer, its own for a tensor trained whole."""
        return state_shapes(self._schema, len(training.seeds), training.rank)

    def check(self, path: Path, plan: Plan, run: str, node: str) -> CheckedUpdate:
        """Header and every record against the plan."""
        return check_update(path, plan, run, node)

    def aggregate(self, state: ExactState, plan: Plan, updates: Iterable[WeightedUpdate]) -> ExactState:
        """S plus the weighted mean of the accumulators; a seed that a participant did not use counts as zero."""
        total = RunningSum(self.shapes(plan.training))
        for update in updates:
            add_update(update, plan, total)
        return state.after(total)
