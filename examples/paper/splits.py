# SPDX-License-Identifier: Apache-2.0
"""How a task's examples are dealt to clients; pure functions of a seed."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from fedcore.errors import ConfigError

__all__ = ["Split", "deal", "parse_split"]

_DRAWS = 1000


@dataclass(frozen=True)
class Split:
    """How examples are dealt: `alpha` None for evenly at random, else each label by a Dirichlet draw (smaller is more uneven)."""

    alpha: float | None

    def __str__(self) -> str:
        return "iid" if self.alpha is None else f"dirichlet:{self.alpha:g}"


def parse_split(text: str) -> Split:
    """`iid` or `dirichlet:0.5`.

    Raises:
        ConfigError: Something else.

    Example:
        >>> parse_split("dirichlet:0.5").alpha
        0.5
    """
    if text == "iid":
        return Split(None)
    found = re.fullmatch(r"dirichlet:(\d+(?:\.\d+)?)", text)
    if found is None or not 0 < float(found.group(1)) < 1e6:
        raise ConfigError(f"{text!r} is not a split", place="--split", remedy="write iid or dirichlet:0.5")
    return Split(float(found.group(1)))


def deal(classes: Sequence[Hashable], clients: int, split: Split, seed: int, *, least: int = 1) -> list[list[int]]:
    """Indices of each client's examples; every example goes to exactly one client.

    Args:
        classes: What each example counts as; its label, or the bin of its score.
        clients: How many.
        split: How.
        seed: Of the draw.
        least: Examples that every client must get; a draw with fewer is drawn again, as in the paper's code.

    Raises:
        ConfigError: There are too few examples, or no draw gives everybody enough.

    Example:
        >>> parts = deal([0, 1] * 50, 4, Split(0.5), 0)
        >>> sorted(index for part in parts for index in part) == list(range(100))
        True
    """
    if len(classes) < clients * least:
        raise ConfigError(f"{len(classes)} examples are too few for {clients} clients with {least} each", place="--split")
    chance = np.random.default_rng([seed, clients])
    if split.alpha is None:
        return [sorted(part.tolist()) for part in np.array_split(chance.permutation(len(classes)), clients)]
    kinds = sorted(set(classes), key=repr)
    for _ in range(_DRAWS):
        parts: list[list[int]] = [[] for _ in range(clients)]
        for kind in kinds:
            own = chance.permutation([index for index, c in enumerate(classes) if c == kind])
            shares = chance.dirichlet([split.alpha] * clients)
            cuts = (np.cumsum(shares)[:-1] * len(own)).round().astype(int)
            for part, dealt in zip(parts, np.split(own, cuts), strict=True):
                part.extend(dealt.tolist())
        if min(map(len, parts)) >= least:
            return [sorted(part) for part in parts]
    raise ConfigError(f"no draw of {split} gives {clients} clients {least} examples each", place="--split", remedy="fewer clients")
