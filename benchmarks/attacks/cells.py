# SPDX-License-Identifier: Apache-2.0
"""What the tables compare: a rule, an attack, and how many of the nodes lie; and what came of it, kept line by line so
that a table that was interrupted goes on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.attacks.lies import OF_ROWS, OF_UPDATES
from coordinator.job import SafetySection
from fedcore.numbers.rules import Mean

__all__ = ["ATTACKS", "RULES", "Cell", "Found", "Kept", "cells", "safety_of", "table", "withstands"]

NODES: Final = 20
ATTACKS: Final = (*OF_UPDATES, *OF_ROWS)
RULES: Final[Mapping[str, Mapping[str, Any]]] = {
    "mean, any norm": {"norm_ratio": 0.0},
    "mean": {},
    "trimmed-mean": {"rule": "trimmed-mean"},
    "median": {"rule": "median"},
    "median, pairs": {"rule": "median", "bucket": 2},
    "geometric-median": {"rule": "geometric-median"},
    "krum": {"rule": "krum"},
    "multi-krum": {"rule": "multi-krum"},
}
"""Keys of `[safety]` by the names that tables have."""


class Cell(msgspec.Struct, frozen=True):
    """One run.

    Attributes:
        split: How rows are dealt.
        rule: In `RULES`.
        attack: In `ATTACKS`; empty where nobody lies.
        liars: How many of the nodes.
        nodes: How many there are.
        rounds: Of the whole model after which it is measured; 0 for the head alone.
    """

    split: str
    rule: str
    attack: str
    liars: int
    nodes: int = NODES
    rounds: int = 0


class Found(msgspec.Struct, frozen=True):
    """What a run came to.

    Attributes:
        cell: Which.
        accuracy: On held-out rows.
        success: Of the backdoor: how many held-out rows of the other label have its label once they have the word.
        before: The same without the word.
    """

    cell: Cell
    accuracy: float
    success: float
    before: float


def cells(split: str, liars: Sequence[int], nodes: int = NODES, rounds: int = 0) -> Iterator[Cell]:
    """All of a split: every rule with nobody lying, then every attack by so many liars, and by others."""
    for rule in RULES:
        yield Cell(split, rule, "", 0, nodes, rounds)
    for count in liars:
        for attack in ATTACKS:
            yield from (Cell(split, rule, attack, count, nodes, rounds) for rule in RULES)


def safety_of(cell: Cell) -> SafetySection:
    """A job's `[safety]`, told how many lie where a rule asks for it."""
    told: dict[str, Any] = {**RULES[cell.rule], "liars": max(1, cell.liars)}
    return SafetySection(**told, trim=min(0.45, max(1, cell.liars) / cell.nodes))


def withstands(cell: Cell) -> bool:
    """Whether the rule says that it does."""
    rule = safety_of(cell).combining()
    return not isinstance(rule, Mean) and rule.withstands(cell.nodes) >= cell.liars


class Kept:
    """Results in a file, one a line.

    Args:
        path: The file; what it has is not measured again.
    """

    def __init__(self, path: Path) -> None:
        self._path, self.found = path, dict[Cell, Found]()
        if path.exists():
            for line in path.read_bytes().splitlines():
                one = msgspec.json.decode(line, type=Found)
                self.found[one.cell] = one

    def left(self, wanted: Iterable[Cell]) -> list[Cell]:
        """Those that are not there."""
        return [cell for cell in wanted if cell not in self.found]

    def add(self, found: Found) -> None:
        """Write one down."""
        self.found[found.cell] = found
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(found) + b"\n")


def measured(cell: Cell, said: Sequence[NDArray[np.int64]], labels: NDArray[np.int64], target: int = 1) -> Found:
    """Accuracy, and what the backdoor's word does.

    Args:
        cell: Which.
        said: Labels that the model gives held-out rows, and those of another label than the backdoor's with the word.
        labels: What is right for held-out rows.
        target: The backdoor's.
    """
    plain, words = said
    return Found(
        cell,
        float((plain == labels).mean()),
        float((words == target).mean()),
        float((plain[labels != target] == target).mean()),
    )


def table(kept: Kept, split: str, liars: Sequence[int], nodes: int = NODES, rounds: int = 0) -> Iterator[str]:
    """Accuracy of each attack and share of liars by rule; of the backdoor what the word does, too. In brackets where a
    rule does not withstand so many."""
    shown = [name for name in RULES if Cell(split, name, "", 0, nodes, rounds) in kept.found]
    yield f"| attack | liars of {nodes} | {' | '.join(shown)} |"
    yield "|---" * (len(shown) + 2) + "|"
    for attack in ("", *ATTACKS):
        for count in sorted(liars) if attack else (0,):
            row = [kept.found.get(Cell(split, rule, attack, count, nodes, rounds)) for rule in shown]
            if not any(row):
                continue
            numbers = [_shown(one) for one in row]
            yield f"| {attack or 'none'} | {count or '–'} | {' | '.join(numbers)} |"


def _shown(found: Found | None) -> str:
    if found is None:
        return ""
    text = f"{found.accuracy:.3f}"
    if found.cell.attack == "backdoor":
        text += f", word {found.before:.2f} → {found.success:.2f}"
    return text if not found.cell.liars or withstands(found.cell) else f"({text})"
