# SPDX-License-Identifier: Apache-2.0
"""How a data set's examples are dealt to clients; pure functions of a seed."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedcore.errors import ConfigError

__all__ = ["Split", "deal", "parse_split"]

_DRAWS = 1000


@dataclass(frozen=True)
class Split:
    """How examples are dealt.

    - `iid`: evenly, at random.
    - `dirichlet`: each class by a Dirichlet draw of `alpha`; smaller is more uneven.
    - `natural`: whole groups (who speaks), so that nobody's examples are at two clients; `column` says whose, where the
      data set does not know it.
    - `labels`: each client has classes that few others have, or none: where there are fewer classes than clients, a
      client has one, and clients with the same one have equal parts of it.
    """

    kind: Literal["iid", "dirichlet", "natural", "labels"]
    alpha: float = 0.0
    column: str = ""

    def __str__(self) -> str:
        if self.kind == "dirichlet":
            return f"dirichlet:{self.alpha:g}"
        return f"by:{self.column}" if self.column else self.kind


def parse_split(text: str) -> Split:
    """`iid`, `dirichlet:0.5` or `by:COLUMN`.

    Raises:
        ConfigError: Something else.

    Example:
        >>> parse_split("dirichlet:0.5").alpha, parse_split("by:speaker").column
        (0.5, 'speaker')
    """
    if text == "iid":
        return Split("iid")
    if text.startswith("by:") and text != "by:":
        return Split("natural", column=text[len("by:") :])
    found = re.fullmatch(r"dirichlet:(\d+(?:\.\d+)?)", text)
    if found is None or not 0 < float(found.group(1)) < 1e6:
        raise ConfigError(f"{text!r} is not a split", place="--split", remedy="write iid, dirichlet:0.5 or by:COLUMN")
    return Split("dirichlet", float(found.group(1)))


def deal(classes: Sequence[Hashable], clients: int, split: Split, seed: int, *, least: int = 1) -> list[list[int]]:
    """Indices of each client's examples; every example goes to exactly one client.

    Args:
        classes: What each example counts as: its label, the bin of its score, or its group.
        clients: How many.
        split: How.
        seed: Of the draw.
        least: Examples that every client must get; a draw with fewer is drawn again, as in the paper's code.

    Raises:
        ConfigError: There are too few examples, or no draw gives everybody enough.

    Example:
        >>> parts = deal([0, 1] * 50, 4, Split("dirichlet", 0.5), 0)
        >>> sorted(index for part in parts for index in part) == list(range(100))
        True
    """
    if len(classes) < clients * least:
        raise ConfigError(
            f"{len(classes)} examples are too few for {clients} clients with {least} each", place="--split"
        )
    chance = np.random.default_rng([seed, clients])
    if split.kind == "iid":
        return [sorted(part.tolist()) for part in np.array_split(chance.permutation(len(classes)), clients)]
    members: dict[Hashable, list[int]] = {}
    for index, kind in enumerate(classes):
        members.setdefault(kind, []).append(index)
    by_class = [members[kind] for kind in sorted(members, key=repr)]
    for _ in range(_DRAWS):
        parts = (
            _whole_groups(by_class, clients, chance)
            if split.kind == "natural" or (split.kind == "labels" and len(by_class) >= clients)
            else _shared_classes(by_class, clients, chance)
            if split.kind == "labels"
            else _by_dirichlet(by_class, clients, split.alpha, chance)
        )
        if min(map(len, parts)) >= least:
            return [sorted(part) for part in parts]
    raise ConfigError(
        f"no draw of {split} gives {clients} clients {least} examples each", place="--split", remedy="fewer clients"
    )


def _by_dirichlet(
    by_class: list[list[int]], clients: int, alpha: float, chance: np.random.Generator
) -> list[list[int]]:
    parts: list[list[int]] = [[] for _ in range(clients)]
    for members in by_class:
        own = chance.permutation(members)
        shares = chance.dirichlet([alpha] * clients)
        cuts = (np.cumsum(shares)[:-1] * len(own)).round().astype(int)
        for part, dealt in zip(parts, np.split(own, cuts), strict=True):
            part.extend(dealt.tolist())
    return parts


def _whole_groups(by_class: list[list[int]], clients: int, chance: np.random.Generator) -> list[list[int]]:
    """As many groups for everybody, give or take one; groups are of very different sizes."""
    parts: list[list[int]] = [[] for _ in range(clients)]
    for position, group in enumerate(chance.permutation(len(by_class))):
        parts[position % clients] += by_class[group]
    return parts


def _shared_classes(by_class: list[list[int]], clients: int, chance: np.random.Generator) -> list[list[int]]:
    """One class a client, fewer classes than clients; which ones have one client more is drawn."""
    order = chance.permutation(len(by_class))
    parts: list[list[int]] = []
    for position, index in enumerate(order):
        # Clients position, position + classes, position + 2 classes, ...
        sharing = len(range(position, clients, len(by_class)))
        own = chance.permutation(by_class[index])
        parts += [part.tolist() for part in np.array_split(own, sharing)]
    return parts
