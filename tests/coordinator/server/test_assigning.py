# SPDX-License-Identifier: Apache-2.0
"""Which node is in which run: nobody where it said no, nobody moved without need, nobody waits for nothing."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.server.assigning import Wanted, assigned

EVERYWHERE = frozenset("abc")


def fleet(count: int) -> dict[str, frozenset[str]]:
    return {f"n{index}": EVERYWHERE for index in range(count)}


def counts(places: dict[str, str]) -> dict[str, int]:
    return {run: list(places.values()).count(run) for run in sorted(set(places.values()))}


def test_three_runs_on_ten_nodes_share_them() -> None:
    runs = [Wanted("a", 3), Wanted("b", 3), Wanted("c", 3)]
    assert counts(assigned(runs, fleet(10), {})) == {"a": 4, "b": 3, "c": 3}
    # One after the other: the later ones get what the first can spare.
    places = assigned(runs[:1], fleet(10), {})
    assert counts(places) == {"a": 10}
    places = assigned(runs[:2], fleet(10), places)
    assert counts(places) == {"a": 7, "b": 3}
    assert counts(assigned(runs, fleet(10), places)) == {"a": 4, "b": 3, "c": 3}


def test_a_run_that_cannot_begin_holds_nobody() -> None:
    assert counts(assigned([Wanted("a", 8), Wanted("b", 2)], fleet(5), {})) == {"b": 5}


def test_who_can_do_least_else_is_taken_first() -> None:
    able = {"n1": EVERYWHERE, "n2": frozenset("a"), "n3": EVERYWHERE}
    assert assigned([Wanted("a", 1), Wanted("b", 2)], able, {}) == {"n1": "b", "n2": "a", "n3": "b"}


def test_who_is_away_keeps_its_place_and_is_replaced_where_somebody_can_be_spared() -> None:
    runs, places = [Wanted("a", 2), Wanted("b", 2)], {"n0": "a", "n1": "a", "n2": "b", "n3": "b", "n4": "b"}
    found = assigned(runs, fleet(5), places, {"n0"})
    assert found["n0"] == "a" and counts(found) == {"a": 3, "b": 2}
    # It is back: nobody is moved.
    assert assigned(runs, fleet(5), found) == found
    # Nobody can be spared: the run goes on with what it has.
    assert assigned(runs, fleet(5), found, {"n0", "n4"}) == found


CASES = st.tuples(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 5)), max_size=3, unique_by=lambda one: one[0]),
    st.dictionaries(st.sampled_from([f"n{index}" for index in range(8)]), st.frozensets(st.sampled_from("abc"))),
    st.dictionaries(st.sampled_from([f"n{index}" for index in range(8)]), st.sampled_from("abc")),
    st.frozensets(st.sampled_from([f"n{index}" for index in range(8)])),
)


@settings(max_examples=150, deadline=None)
@given(CASES)
def test_places_are_where_nodes_said_yes_and_stay_as_they_are(
    case: tuple[list[tuple[str, int]], dict[str, frozenset[str]], dict[str, str], frozenset[str]],
) -> None:
    given_, able, places, away = case
    runs = [Wanted(*one) for one in given_]
    found = assigned(runs, able, places, away)
    assert all(run in able[node] and run in {one.run for one in runs} for node, run in found.items())
    assert assigned(runs, able, found, away) == found, "asked again, nobody is moved"
    assert all(found[node] == places[node] for node in found if node in away), "who is away stays"
    for wanted in runs:
        there = [node for node, run in found.items() if run == wanted.run and node not in away]
        if not any(run == wanted.run for run in places.values()):
            assert not there or len(there) >= wanted.least, "nobody waits for nothing"
        left = [
            node
            for node, run in places.items()
            if run == wanted.run and run in able.get(node, ()) and found.get(node) != run
        ]
        assert not left or len(there) >= wanted.least, "nobody is taken from a run that needs them"
