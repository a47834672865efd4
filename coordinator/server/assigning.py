# SPDX-License-Identifier: Apache-2.0
"""Which node of a fleet takes part in which run. Pure: the same question has the same answer.

A node is in one run at a time, of those that it said yes to, and stays there until the run is over or another one
cannot begin without it. First each run, in its order, gets the nodes that it cannot begin without; it gets none if
there are too few for that, since they would wait for nothing. What is left over is dealt out to the runs with the
fewest nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

__all__ = ["Wanted", "assigned"]


@dataclass(frozen=True)
class Wanted:
    """A run that nodes are wanted for.

    Attributes:
        run: Its name.
        least: Nodes that it cannot begin without.
    """

    run: str
    least: int


def assigned(
    runs: Sequence[Wanted], able: Mapping[str, Set[str]], places: Mapping[str, str], away: Set[str] = frozenset()
) -> dict[str, str]:
    """The run of each node that takes part in one.

    Args:
        runs: In the order in which they were submitted.
        able: By node, the runs that it said yes to.
        places: Where nodes are now.
        away: Nodes that are not there: they keep their places, and count for nothing.

    Example:
        >>> runs, everywhere = [Wanted("a", 2), Wanted("b", 1)], {"a", "b"}
        >>> able = {"n1": everywhere, "n2": everywhere, "n3": {"b"}, "n4": everywhere}
        >>> assigned(runs, able, {})
        {'n1': 'a', 'n2': 'a', 'n3': 'b', 'n4': 'b'}
        >>> assigned([*runs, Wanted("c", 1)], {**able, "n4": {"b", "c"}}, {"n1": "a", "n2": "a", "n3": "b", "n4": "b"})
        {'n1': 'a', 'n2': 'a', 'n3': 'b', 'n4': 'c'}
    """
    before, found = dict(places), _once(runs, able, places, away)
    # What was dealt out may be what a run lacks. A run that has enough keeps it, so this ends.
    while found != before:
        before, found = found, _once(runs, able, found, away)
    return found


def _once(
    runs: Sequence[Wanted], able: Mapping[str, Set[str]], places: Mapping[str, str], away: Set[str]
) -> dict[str, str]:
    least = {wanted.run: wanted.least for wanted in runs}
    found = {node: run for node, run in places.items() if run in least and run in able.get(node, ())}
    for wanted in runs:
        _fill(wanted, least, able, found, away)
    for node in sorted(able.keys() - found.keys() - away):
        open_ = [one.run for one in runs if one.run in able[node] and _there(one.run, found, away) >= one.least]
        if open_:
            found[node] = min(open_, key=lambda run: (len(_in(run, found)), list(least).index(run)))
    return dict(sorted(found.items()))


def _in(run: str, found: Mapping[str, str]) -> list[str]:
    return sorted(node for node, place in found.items() if place == run)


def _there(run: str, found: Mapping[str, str], away: Set[str]) -> int:
    return sum(node not in away for node in _in(run, found))


def _fill(
    wanted: Wanted, least: Mapping[str, int], able: Mapping[str, Set[str]], found: dict[str, str], away: Set[str]
) -> None:
    """Give a run what it cannot begin without: free nodes, those first that can do least else, then such as others can
    spare."""
    lacks = wanted.least - _there(wanted.run, found, away)
    if lacks <= 0:
        return
    candidates = {node for node, runs in able.items() if wanted.run in runs} - away
    free = sorted(candidates - found.keys(), key=lambda node: (len(able[node]), node))
    spare: list[str] = []
    for other in least:
        there = [node for node in _in(other, found) if node not in away]
        much = max(0, len(there) - least[other]) if other != wanted.run else 0
        spare += [node for node in reversed(there) if node in candidates][:much]
    chosen = [*free, *spare][:lacks]
    if len(chosen) < lacks and not _in(wanted.run, found):
        return
    found.update(dict.fromkeys(chosen, wanted.run))
