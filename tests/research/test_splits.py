# SPDX-License-Identifier: Apache-2.0
"""Who gets which example, and who is missing when: pure functions of a seed."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcore.data.splits import Split, deal
from fedcore.errors import ConfigError
from research.data.splits import parse_split
from research.presence import Downlink, taking_part

SPLITS = (
    Split("iid"),
    Split("natural"),
    Split("labels"),
    Split("dirichlet", 0.25),
    Split("dirichlet", 0.5),
    Split("dirichlet", 100.0),
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 5), min_size=60, max_size=200),
    st.integers(1, 6),
    st.sampled_from(SPLITS),
    st.integers(0, 2**40),
)
def test_every_example_goes_to_exactly_one_client(classes: list[int], clients: int, split: Split, seed: int) -> None:
    try:
        parts = deal(classes, clients, split, seed, least=1)
    except ConfigError as error:
        # Fewer groups than clients, or a draw that always leaves one with nothing.
        assert split.kind != "iid" and "least" not in error.message
        return
    assert sorted(index for part in parts for index in part) == list(range(len(classes)))
    assert len(parts) == clients and all(parts) and all(part == sorted(part) for part in parts)
    assert parts == deal(classes, clients, split, seed, least=1)


@settings(max_examples=40, deadline=None)
@given(st.integers(20, 200), st.integers(1, 10), st.integers(0, 99))
def test_an_even_split_is_even(count: int, clients: int, seed: int) -> None:
    sizes = [len(part) for part in deal([0] * count, clients, Split("iid"), seed)]
    assert max(sizes) - min(sizes) <= 1


def test_a_natural_split_leaves_groups_whole() -> None:
    groups = [name for name, size in zip("abcdefgh", (1, 2, 3, 5, 8, 13, 21, 34), strict=True) for _ in range(size)]
    parts = deal(groups, 4, Split("natural"), 0)
    owners = [{groups[index] for index in part} for part in parts]
    assert all(len(own) == 2 for own in owners) and len(set().union(*owners)) == 8
    assert deal(groups, 4, Split("natural"), 1) != parts


def test_a_split_by_labels_gives_a_client_labels_of_its_own_or_its_part_of_one() -> None:
    two = [index % 2 for index in range(100)]
    parts = deal(two, 5, parse_split("labels"), 3)
    owned = [{two[index] for index in part} for part in parts]
    assert all(len(own) == 1 for own in owned) and sorted(map(len, parts)) in ([16, 17, 17, 25, 25],)
    many = [index % 30 for index in range(300)]
    owned = [{many[index] for index in part} for part in deal(many, 4, parse_split("labels"), 0)]
    assert sorted(map(len, owned)) == [7, 7, 8, 8] and len(set().union(*owned)) == 30


def test_a_smaller_alpha_is_more_uneven() -> None:
    classes = [index % 2 for index in range(4000)]

    def largest_share(alpha: float) -> float:
        """Of the commoner label at a client, mean over clients and seeds."""
        parts = [part for seed in range(10) for part in deal(classes, 10, Split("dirichlet", alpha), seed, least=8)]
        return sum(max(Counter(classes[index] for index in part).values()) / len(part) for part in parts) / len(parts)

    shares = [largest_share(alpha) for alpha in (0.25, 0.5, 5.0, 1000.0)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.75 and shares[-1] < 0.55


def test_everybody_gets_the_least_that_was_asked_for() -> None:
    parts = deal([index % 2 for index in range(200)], 10, Split("dirichlet", 0.25), 3, least=8)
    assert min(map(len, parts)) >= 8


def test_draws_are_the_same_everywhere() -> None:
    dealt = [[2, 4, 6, 8, 14, 16, 18], [1, 3, 7, 12, 15, 17], [0, 5, 9, 10, 11, 13, 19]]
    assert deal([0, 1] * 10, 3, Split("dirichlet", 0.5), 0) == dealt
    assert deal([0, 1] * 5, 2, Split("iid"), 0) == [[0, 1, 2, 5, 8], [3, 4, 6, 7, 9]]
    assert deal([*"aabbbc"], 2, Split("natural"), 0) == [[0, 1, 5], [2, 3, 4]]
    assert [taking_part(6, 0.5, 0, server_round) for server_round in (1, 2, 3)] == [
        (0, 1, 2, 3),
        (0, 1, 2, 4, 5),
        (0, 1, 2, 5),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Dirichlet:0.5",
        "dirichlet",
        "dirichlet:",
        "dirichlet:0",
        "dirichlet:-1",
        "dirichlet:1e9",
        "by label",
        "by:speaker",
    ],
)
def test_what_is_no_split_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a split") as refused:
        parse_split(text)
    assert "\n" not in refused.value.one_line() and "dirichlet:0.5" in refused.value.remedy


@pytest.mark.parametrize("text", ["iid", "natural", "dirichlet:0.5", "dirichlet:0.25"])
def test_a_split_is_written_as_it_is_read(text: str) -> None:
    assert str(parse_split(text)) == text


def test_too_few_examples_or_groups_are_refused() -> None:
    with pytest.raises(ConfigError, match="9 examples are too few for 5 clients with 2 each"):
        deal([0] * 9, 5, Split("iid"), 0, least=2)
    with pytest.raises(ConfigError, match="no draw of natural"):
        deal(["a", "b"] * 10, 3, Split("natural"), 0)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.floats(0, 0.99), st.floats(0, 0.99), st.integers(0, 1000), st.integers(1, 50))
def test_who_is_missing_at_some_rate_is_missing_at_every_higher_one(
    clients: int, a: float, b: float, seed: int, server_round: int
) -> None:
    few, many = (taking_part(clients, rate, seed, server_round) for rate in sorted((a, b), reverse=True))
    assert set(few) <= set(many) and few and list(few) == sorted(few)
    assert taking_part(clients, 0.0, seed, server_round) == tuple(range(clients))


def test_clients_miss_rounds_as_often_as_asked_for() -> None:
    count = sum(len(taking_part(10, 0.3, seed, server_round)) for seed in range(10) for server_round in range(1, 31))
    assert 0.67 < count / 3000 < 0.73


def test_who_comes_back_fetches_the_way_with_the_fewest_bytes() -> None:
    link = Downlink(3, 65_536)
    fetched = [link.fetch((0, 1, 2))]
    for version, sizes in enumerate(
        ({"whole": 1000}, {"whole": 1000, "difference": 300}, {"whole": 1100, "difference": 300}), 1
    ):
        link.publish(version, 0, sizes)
        fetched.append(link.fetch((0,)))
    # Nothing yet; then client 0 takes whole, difference, difference. Client 1 comes back: the whole state. Nobody takes
    # it twice.
    assert fetched == [0, 1000, 300, 300]
    assert (link.fetch((1,)), link.fetch((1,))) == (1100, 0)
    link.publish(4, 0, {"whole": 5000, "difference": 10})
    # From version 0 the last whole that is small, and the difference: less than the newest whole.
    assert link.fetch((2,)) == 1110


def test_who_comes_back_after_merges_fetches_the_end_of_every_generation() -> None:
    link, sizes = Downlink(2, 65_536), (100, 200, 300, 400)
    for version, size in enumerate(sizes, 1):
        link.publish(version, version - 1, {"whole": size})
        assert link.fetch((0,)) == size
    assert link.fetch((1,)) == sum(sizes)


def test_presence_does_not_depend_on_other_rounds() -> None:
    alone = [taking_part(8, 0.4, 7, server_round) for server_round in (5, 3, 4)]
    assert alone == [taking_part(8, 0.4, 7, server_round) for server_round in (3, 4, 5)][2:] + alone[1:]
    assert len(set(itertools.islice((taking_part(8, 0.4, 7, r) for r in range(1, 20)), 19))) > 5
