# SPDX-License-Identifier: Apache-2.0
"""Whether a run can end with the mean of its last states: what has no such mean is refused by name before it begins."""

from __future__ import annotations

from fedcore.errors import ConfigError
from fedcore.methods.interface import MethodSettings, ServerHalf

__all__ = ["require_averageable"]


def require_averageable(settings: MethodSettings, half: ServerHalf, seed: int, rounds: int, count: int) -> None:
    """Check that the last states of a run are numbers of one kind.

    Args:
        settings: Of the method.
        half: Its server half.
        seed: Of the run.
        rounds: Of the run.
        count: How many states.

    Raises:
        ConfigError: They are not.
    """
    if count < 2:
        return
    last = [half.training(number, seed) for number in range(max(1, rounds - count + 1), rounds + 1)]
    why = settings.not_averaged
    if not last[-1].shares_model:
        why = "nodes have models of their own"
    elif len({training.generation for training in last}) > 1:
        why = "what a round learned is merged into the base before the next, so there is no state of all of it"
    if why:
        words = f"the last states of {settings.name} as it is here have no mean: {why}"
        raise ConfigError(words, place="round.average_last", remedy="leave it out")
