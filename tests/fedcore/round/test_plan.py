# SPDX-License-Identifier: Apache-2.0
"""The way to the present version: always one, never more bytes than any other."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from fedcore.fields.manifest import Manifest
from fedcore.round.plan import Position, StateObject, cheapest_way


def published(
    version: int, generation: int, size: int, base: int | None = None, *, snapshot: bool = False
) -> StateObject:
    name = f"{version}-{generation}-{base}-{snapshot}"
    return StateObject(version, generation, base, f"d{name}", Manifest(name, size, name, 64), snapshot)


def cost(way: Sequence[StateObject]) -> int:
    return sum(obj.manifest.size_bytes for obj in way)


class World:
    """A run of generations with so many rounds each, the last of which may have none closed yet."""

    def __init__(self, rounds: Sequence[int]) -> None:
        self.rounds = rounds
        self.generation = len(rounds) - 1
        self.ends = [sum(rounds[: g + 1]) for g in range(self.generation)]
        self.version = sum(rounds)

    def generation_of(self, version: int) -> int:
        return sum(end < version for end in self.ends)

    def candidates(self, sizes: Iterator[int]) -> list[StateObject]:
        """Everything that a coordinator could have published and may list."""
        out = [published(end, g, next(sizes)) for g, end in enumerate(self.ends)]
        out += [published(self.ends[g - 1], g, next(sizes), snapshot=True) for g in range(1, self.generation + 1)]
        if self.version and self.version not in self.ends:
            g = self.generation_of(self.version)
            out.append(published(self.version, g, next(sizes)))
            if self.rounds[g] > 1:
                out.append(published(self.version, g, next(sizes), self.version - 1))
        return out

    def positions(self) -> list[Position]:
        """Where a replica may stand: after any version, merged or not, or with its state lost at any generation."""
        out = {(v, self.generation_of(v)) for v in range(1, self.version + 1)} | {
            (end, g + 1) for g, end in enumerate(self.ends)
        }
        return sorted(out | {(0, g) for g in range(self.generation + 1)})

    def taken(self, at: Position, obj: StateObject, known: set[int]) -> Position | None:
        """Where a replica stands that takes an object as `Replica.adopt` does; None if it cannot. It knows the ends
        that are listed."""
        version, generation = at
        if obj.snapshot:
            return obj.version, obj.generation
        if obj.base_version is not None:
            return (obj.version, obj.generation) if at == (obj.base_version, obj.generation) else None
        follows = generation + 1 == obj.generation and version in known and self.ends[generation] == version
        return (obj.version, obj.generation) if obj.generation in (0, generation) or follows else None

    def there(self, at: Position, known: set[int]) -> bool:
        version, generation = at
        if version != self.version:
            return False
        return generation == self.generation or (
            version in known and version in self.ends and generation == self.generation - 1
        )

    def known(self, objects: Sequence[StateObject]) -> set[int]:
        return {obj.version for obj in objects if obj.version in self.ends}

    def fewest(self, objects: Sequence[StateObject], held: Position) -> int | None:
        """By trying every order of every part of the list."""
        known, best = self.known(objects), None
        stack: list[tuple[Position, int, frozenset[StateObject]]] = [(held, 0, frozenset(objects))]
        while stack:
            at, spent, left = stack.pop()
            if best is not None and spent >= best:
                continue
            if self.there(at, known):
                best = spent
                continue
            for obj in left:
                after = self.taken(at, obj, known)
                if after is not None:
                    stack.append((after, spent + obj.manifest.size_bytes, left - {obj}))
        return best

    def check(self, objects: Sequence[StateObject], held: Position) -> int | None:
        """What `cheapest_way` finds leads there, and nothing is cheaper; returns its bytes."""
        way = cheapest_way(tuple(objects), (self.version, self.generation), held)
        fewest = self.fewest(objects, held)
        if way is None:
            assert fewest is None, (self.rounds, held, objects)
            return None
        at, known = held, self.known(objects)
        for obj in way:
            after = self.taken(at, obj, known)
            assert after is not None, (self.rounds, held, way)
            at = after
        assert self.there(at, known) and cost(way) == fewest, (self.rounds, held, way, fewest)
        return fewest


def test_every_small_case() -> None:
    cases = 0
    for rounds in itertools.chain.from_iterable(itertools.product((1, 2), repeat=n) for n in (0, 1, 2)):
        for last in (0, 1, 2) if rounds else (1, 2):
            world = World((*rounds, last))
            for sizes in ((1, 1, 1, 1, 1, 1, 1), (3, 5, 4, 7, 2, 6, 1), (7, 5, 1, 2, 9, 8, 3)):
                candidates = world.candidates(iter(sizes))
                for count in range(len(candidates) + 1):
                    for objects in itertools.combinations(candidates, count):
                        for held in world.positions():
                            world.check(objects, held)
                            cases += 1
    assert cases > 3000


@settings(max_examples=300, deadline=None, derandomize=True)
@given(data=st.data())
def test_larger_cases(data: st.DataObject) -> None:
    earlier = data.draw(st.lists(st.integers(1, 3), max_size=4))
    world = World((*earlier, data.draw(st.integers(0 if earlier else 1, 3))))
    sizes = iter(data.draw(st.lists(st.integers(1, 50), min_size=12, max_size=12)))
    objects = [obj for obj in world.candidates(sizes) if data.draw(st.integers(0, 3))]
    world.check(data.draw(st.permutations(objects)), data.draw(st.sampled_from(world.positions())))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.data())
def test_whole_lists_always_lead_there(data: st.DataObject) -> None:
    """The checkpoint and all ends, or a snapshot and the ends after it, and the present version."""
    world = World(data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=5)))
    candidates = world.candidates(iter(data.draw(st.lists(st.integers(1, 50), min_size=14, max_size=14))))
    start = data.draw(st.integers(0, world.generation))
    objects = [
        obj
        for obj in candidates
        if not obj.snapshot and obj.generation >= start or obj.snapshot and obj.generation == start
    ]
    for held in world.positions():
        assert world.check(objects, held) is not None, (held, objects)


def test_a_way_that_reads_well() -> None:
    ends = (published(2, 0, 100), published(4, 1, 100), published(6, 2, 100))
    present = (published(7, 3, 5, 6), published(8, 3, 90), published(8, 3, 10, 7))
    snapshot = published(4, 2, 150, snapshot=True)
    goal = (8, 3)
    # Nothing to do, one difference, one round missed.
    assert cheapest_way((*ends, *present), goal, (8, 3)) == ()
    assert cheapest_way((*ends, *present), goal, (7, 3)) == present[2:]
    # A generation missed: its end, then the present whole; merged or not makes no difference.
    assert (
        cheapest_way((*ends, *present[1:]), goal, (4, 1))
        == cheapest_way((*ends, *present[1:]), goal, (4, 2))
        == (ends[2], present[1])
    )
    # Two ends are heavier than a snapshot, one is not.
    assert cheapest_way((*ends, snapshot, *present[1:]), goal, (1, 0)) == (snapshot, ends[2], present[1])
    assert cheapest_way((*ends, snapshot, *present[1:]), goal, (3, 1)) == (ends[1], ends[2], present[1])
    # Older than all that is listed; nothing learned; the state lost; ahead of the run.
    for held in ((1, 0), (0, 0), (0, 3), (9, 4)):
        assert cheapest_way((ends[2], snapshot, present[1]), goal, held) in (
            (snapshot, ends[2], present[1]),
            (present[1],),
        )
    # The checkpoint is everybody's: the first end can be taken from anywhere.
    assert cheapest_way(ends, (6, 3), (0, 3)) == ends
    assert cheapest_way(ends[1:], (6, 3), (0, 3)) is None
