# SPDX-License-Identifier: Apache-2.0
"""How large the experiment is: the paper's own size, and two for two processor cores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

__all__ = ["PRESETS", "Preset"]


@dataclass(frozen=True)
class Preset:
    """Sizes of a run; brackets on the command line and flags override them.

    Attributes:
        clients: How many; all take part in each round.
        rounds: Of a run.
        tune_rounds: Of a run that tries a learning rate.
        max_length: Tokens of an example.
        most_train: Rows that clients share at most; 0 for all.
        most_held: Rows held out at most.
        most_dev: Rows of the development set at most; 0 for all.
        micro_batch_size: Examples at a time through the model; decides nothing but memory.
        common: Settings of every method that has them.
        own: Settings of one method.
        measure_every: Rounds from one measurement to the next.
    """

    clients: int
    rounds: int
    tune_rounds: int
    max_length: int
    most_train: int
    most_held: int
    micro_batch_size: int
    common: Mapping[str, Any]
    own: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    measure_every: int = 1
    most_dev: int = 0

    def settings(self, method: str) -> dict[str, Any]:
        """Values by field for a method."""
        return {**self.common, **self.own.get(method, {})}

    def changed(self, steps: int | None = None, learning_rate_decay: float | None = None) -> Preset:
        """The same with another T, or with rates that fall otherwise.

        Args:
            steps: T; J goes with it where it is T, and stays where it is less.
            learning_rate_decay: From round to round.

        Example:
            >>> [PRESETS[name].changed(steps=100).common["interval_steps"] for name in ("small", "paper")]
            [100, 10]
            >>> PRESETS["paper"].changed(learning_rate_decay=0.95).settings("fedavg")["learning_rate_decay"]
            0.95
        """
        common = dict(self.common)
        if steps is not None:
            whole = common["interval_steps"] == common["steps"]
            common |= {"steps": steps, "interval_steps": steps if whole else min(steps, common["interval_steps"])}
        if learning_rate_decay is not None:
            common["learning_rate_decay"] = learning_rate_decay
        return replace(self, common=common)


# A run of SST-2 with all-MiniLM-L6-v2 is 2,000 steps of 8 short sentences and 19,000 sentences to measure.
_SMALL = Preset(
    clients=10,
    rounds=10,
    tune_rounds=4,
    max_length=64,
    most_train=4000,
    most_held=1000,
    micro_batch_size=8,
    common={"steps": 20, "interval_steps": 20, "batch_size": 8, "learning_rate_decay": 0.8},
)

# Small enough for every method, task and split on two cores, from a head of sums: round 1 is the head's.
_TABLE = Preset(
    clients=4,
    rounds=4,
    tune_rounds=3,
    max_length=48,
    most_train=1600,
    most_held=500,
    most_dev=500,
    micro_batch_size=8,
    common={"steps": 12, "interval_steps": 12, "batch_size": 8, "learning_rate_decay": 0.8, "published_bits": 8},
    own={name: {"published_bits": 16} for name in ("fedkseed", "fedkseed-pro")},
    measure_every=2,
)

# Ten times as long, where more is learned than a head: 1,440 steps of 16 rows from all that there is.
_LEARN = replace(
    _TABLE,
    rounds=13,
    most_train=16000,
    most_held=1000,
    most_dev=1000,
    micro_batch_size=16,
    common={**_TABLE.common, "steps": 30, "interval_steps": 30, "batch_size": 16, "learning_rate_decay": 0.9},
    measure_every=3,
)

PRESETS = {
    "small": _SMALL,
    # As many steps in all, for tasks that take a model more of them one after the other: half the clients, twice the
    # rounds.
    "long": replace(
        _SMALL, clients=5, rounds=20, measure_every=4, common={**_SMALL.common, "learning_rate_decay": 0.9}
    ),
    "table": _TABLE,
    "learn": _LEARN,
    # As many rounds as give 1,000 steps one after the other: a pass of the same model over the same rows at one place.
    "deep": replace(_LEARN, rounds=34, common={**_LEARN.common, "learning_rate_decay": 0.962}, measure_every=6),
    # arXiv 2602.03019; LoRA's alpha as in the authors' code.
    "paper": Preset(
        clients=10,
        rounds=30,
        tune_rounds=10,
        max_length=128,
        most_train=0,
        most_held=2000,
        micro_batch_size=32,
        common={"steps": 100, "interval_steps": 10, "batch_size": 32, "rank": 4, "alpha": 8.0},
        own={"fedkrso": {"num_seeds": 10}},
    ),
}
