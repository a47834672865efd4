# SPDX-License-Identifier: Apache-2.0
"""A round's exact sum in pieces: some of its entries, of some of its updates each.

What a piece comes to are the same 64-bit integers that one sum has of it, and adding them up rounds nothing: so neither
the cut, nor who adds up which piece, nor in which order can change a bit."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedcore.errors import ExactnessError
from fedcore.model.update import IndexedUpdate, WeightedUpdate, read_together
from fedcore.numbers.accumulator import RunningSum, Share
from fedcore.round.plan import Plan
from fedcore.system.durable import sha256_of

__all__ = ["Cut", "Piece", "add_piece", "cut_for", "empty_sum", "take_sum", "write_sum"]

_FILE_SECONDS: Final = 3e-4
"""To find an update's records, once for each block of entries."""
_NUMBER_SECONDS: Final = 3e-8
"""To write, hash, read and add a number of a piece's sum."""


class Piece(NamedTuple):
    """A piece of a sum, by its numbers in a cut."""

    block: int
    shard: int


@dataclass(frozen=True)
class Cut:
    """How a sum is cut: in blocks of entries, and each block in shards of updates.

    Attributes:
        blocks: Names of entries, each in one block.
        shards: Update i is in shard i modulo this.
    """

    blocks: tuple[tuple[str, ...], ...]
    shards: int

    def pieces(self) -> Iterator[Piece]:
        """All of them."""
        return (Piece(block, shard) for block in range(len(self.blocks)) for shard in range(self.shards))


def cut_for(shapes: Mapping[str, tuple[int, int]], updates: int, pieces: int) -> Cut:
    """The cut into at least so many pieces, where that can be, that costs the least beside the adding itself: blocks
    have each update's file looked through once more, shards write the entries once more.

    Args:
        shapes: Of the sum's entries.
        updates: How many.
        pieces: At least.

    Example:
        >>> cut_for({"a": (10, 10), "b": (10, 10)}, 1000, 4)
        Cut(blocks=(('a', 'b'),), shards=4)
        >>> cut_for({"a": (10**4, 10**4), "b": (10**4, 10**4)}, 10, 2)
        Cut(blocks=(('a',), ('b',)), shards=1)
    """
    numbers = sum(math.prod(shape) for shape in shapes.values())

    def cost(blocks: int) -> tuple[float, int]:
        shards = min(updates, -(-pieces // blocks))
        beyond = max(0, pieces - blocks * shards)
        return beyond + blocks * updates * _FILE_SECONDS + shards * numbers * _NUMBER_SECONDS, blocks

    blocks = min(range(1, min(pieces, max(1, len(shapes))) + 1), key=cost)
    return Cut(_blocks(shapes, blocks), max(1, min(updates, -(-pieces // blocks))))


def _blocks(shapes: Mapping[str, tuple[int, int]], count: int) -> tuple[tuple[str, ...], ...]:
    """Entries in so many groups of about as many numbers each, neighbours together."""
    groups: list[list[str]] = [[] for _ in range(count)]
    total, before = sum(math.prod(shape) for shape in shapes.values()), 0
    for position, name in enumerate(shapes):
        # By its middle; never so far on that a group stays empty.
        middle = before + math.prod(shapes[name]) // 2
        wanted = min(count - 1, middle * count // max(1, total))
        left = len(shapes) - position
        first = next((index for index, group in enumerate(groups) if not group), count - 1)
        groups[min(wanted, first) if left > count - first else first].append(name)
        before += math.prod(shapes[name])
    return tuple(tuple(group) for group in groups)


def empty_sum(plan: Plan, names: Collection[str]) -> RunningSum:
    """A sum of some entries of a round, with nothing added.

    Args:
        plan: The round's.
        names: Of entries.
    """
    training, schema = plan.training, plan.model_schema
    shapes = training.shapes(schema)
    return RunningSum({name: shapes[name] for name in names}, training.averaged_by_column(schema) & frozenset(names))


def add_piece(updates: Sequence[WeightedUpdate], plan: Plan, cut: Cut, piece: Piece, total: RunningSum) -> None:
    """Add a piece of the updates, checking what is read of each once more. Their examples are not counted.

    Args:
        updates: All of the round's, in one order for all pieces.
        plan: The round's.
        cut: In which the piece is one.
        piece: Which.
        total: Has the piece's entries.

    Raises:
        UpdateRefused: As `fedcore.model.update.add_updates`. The sum is then of no more use.
    """
    left, together = iter(updates[piece.shard :: cut.shards]), read_together(plan)
    while some := [IndexedUpdate(update, plan) for update in islice(left, together)]:
        for name in cut.blocks[piece.block]:
            shares = [_share(update, name) for update in some if name in update]
            if shares:
                total.add_together(name, shares)


def _share(update: IndexedUpdate, name: str) -> Share:
    record, columns = update.record(name)
    return Share(record.part, update.weight, columns, update.clip)


def write_sum(path: Path, total: RunningSum) -> str:
    """Write what a piece comes to, whole or not at all; the file's SHA-256."""
    arrays: dict[str, NDArray[np.int64]] = {f"sum/{name}": array for name, array in total.sums()}
    arrays |= {f"having/{name}": array for name, array in total.having.items()}
    beside = path.with_name(path.name + ".new")
    with beside.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    sha256 = sha256_of(beside)
    beside.replace(path)
    return sha256


def take_sum(path: Path, sha256: str, plan: Plan, names: Collection[str], total: RunningSum) -> None:
    """Add what a piece came to, all of it or nothing.

    Args:
        path: Of `write_sum`.
        sha256: What that said.
        plan: The round's.
        names: Of the piece's entries.
        total: Of the round.

    Raises:
        ExactnessError: The file is not there, or not what was written.
    """
    expected = empty_sum(plan, names)
    try:
        if sha256_of(path) != sha256:
            raise ValueError("it has other bytes")
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            found = {key: stored[key] for key in stored.files}
        shapes = {f"sum/{name}": array.shape for name, array in expected.sums()}
        shapes |= {f"having/{name}": array.shape for name, array in expected.having.items()}
        if {key: array.shape for key, array in found.items()} != shapes:
            raise ValueError("it is of other entries")
        if any(array.dtype != np.int64 for array in found.values()):
            raise ValueError("it has other numbers than 64-bit integers")
    except (OSError, ValueError, EOFError) as error:
        raise ExactnessError(f"a piece of the sum cannot be used: {error}", place=str(path)) from None
    for name in names:
        total.take(name, found[f"sum/{name}"], found.get(f"having/{name}"))
