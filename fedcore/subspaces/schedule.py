# SPDX-License-Identifier: Apache-2.0
"""Which seeds a round has, and which subspace each interval trains. Pure functions of the job's seed.

- `pool`: the same K seeds for the whole run (the default on an int8 base: nothing is ever merged).
- `fresh`: K new seeds every round, the paper's rule.
- `refresh_every = E`: K new seeds every E rounds.

Where seeds change, the finished subspaces are merged into the base first (`fedcore.model.merge`).
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
from collections.abc import Sequence

from fedcore.errors import ConfigError
from fedcore.fields.types import Order

__all__ = ["generation_of", "interval_order", "pool_seeds", "step_directions", "subset"]


def _words(domain: str, *numbers: int | str, count: int) -> list[int]:
    text = "/".join(["fedkrso", domain, *map(str, numbers)])
    digest = hashlib.shake_128(text.encode()).digest(8 * count)
    return [int.from_bytes(digest[i : i + 8], "little") for i in range(0, 8 * count, 8)]


def generation_of(server_round: int, refresh_every: int) -> int:
    """How often the seeds have changed before a round (rounds count from 1). `refresh_every` 0 means never.

    Example:
        >>> [generation_of(t, 2) for t in (1, 2, 3, 4, 5)]
        [0, 0, 1, 1, 2]
    """
    if server_round < 1 or refresh_every < 0:
        raise ConfigError(f"round {server_round} with refresh_every {refresh_every} does not exist")
    return (server_round - 1) // refresh_every if refresh_every else 0


def pool_seeds(run_seed: int, generation: int, num_seeds: int) -> tuple[int, ...]:
    """The K seeds of a generation, distinct (a repeated 64-bit draw is skipped)."""
    drawn: dict[int, None] = {}
    count = num_seeds
    while len(drawn) < num_seeds:
        drawn = dict.fromkeys(_words("pool", run_seed, generation, count=count))
        count += num_seeds
    return tuple(drawn)[:num_seeds]


def interval_order(
    order: Order, run_seed: int, server_round: int, num_seeds: int, intervals: int, node: str
) -> tuple[int, ...]:
    """The subspace index of each of a participant's intervals in a round.

    Args:
        order: `cycle` goes through all subspaces without replacement before any comes again, continuing from round to
            round, and is the same for all participants, so that their accumulators meet in the same subspaces;
            `uniform` draws with replacement, for each node on its own (the paper's rule).
        run_seed: The job's seed.
        server_round: From 1.
        num_seeds: K.
        intervals: Intervals in the round.
        node: The participant's id; matters for `uniform` only.

    Example:
        >>> sorted(interval_order("cycle", 0, 1, 4, 4, "a"))
        [0, 1, 2, 3]
    """
    if order == "uniform":
        return tuple(word % num_seeds for word in _words("uniform", run_seed, server_round, node, count=intervals))
    first = (server_round - 1) * intervals
    out = []
    for position in range(first, first + intervals):
        lap, step = divmod(position, num_seeds)
        words = _words("cycle", run_seed, lap, count=num_seeds)
        out.append(sorted(range(num_seeds), key=lambda k: (words[k], k))[step])
    return tuple(out)


def step_directions(
    run_seed: int, server_round: int, node: str, steps: int, probabilities: Sequence[float]
) -> tuple[int, ...]:
    """The direction that each of a participant's steps takes, drawn with replacement.

    Args:
        run_seed: The job's seed.
        server_round: From 1.
        node: The participant's id.
        steps: Steps in the round.
        probabilities: Of the directions; they need not add up to one.

    Example:
        >>> step_directions(0, 1, "a", 3, [0.0, 1.0, 0.0])
        (1, 1, 1)
    """
    upto = list(itertools.accumulate(probabilities))
    words = _words("directions", run_seed, server_round, node, count=steps)
    return tuple(bisect.bisect(upto, word / 2**64 * upto[-1], hi=len(upto) - 1) for word in words)


def subset(run_seed: int, server_round: int, node: str, what: str, size: int, count: int) -> tuple[int, ...]:
    """`size` of the numbers below `count`, ascending, drawn without replacement for a participant and `what`."""
    words = _words("subset", run_seed, server_round, node, what, count=count)
    return tuple(sorted(sorted(range(count), key=lambda k: (words[k], k))[:size]))
