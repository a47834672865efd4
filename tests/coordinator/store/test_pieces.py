# SPDX-License-Identifier: Apache-2.0
"""A view in pieces is the view: whole, and put together again from what changed."""

from __future__ import annotations

import dataclasses
import random

import msgspec
import pytest

from coordinator.store.pieces import Followed, Pieces
from coordinator.store.rows import RoundRow
from coordinator.store.view import EventView, NodeView, RunView


def row(number: int, accuracy: float | None = None) -> RoundRow:
    return RoundRow(number, ("a", "b"), 1, 2, 3.0, 0.5, accuracy, norms={"a": 1.5})


def change(view: RunView, chance: random.Random) -> None:
    kind = chance.randrange(6)
    if kind == 0:
        view.rows = [*view.rows, row(len(view.rows) + 1)]
    elif kind == 1 and view.rows:
        place = chance.randrange(len(view.rows))
        view.rows = [*view.rows[:place], row(place + 1, chance.random()), *view.rows[place + 1 :]]
    elif kind == 2:
        name = f"n-{chance.randrange(9)}"
        view.nodes.setdefault(name, NodeView(name)).step = chance.randrange(3)
    elif kind == 3:
        view.events = [*view.events[-4:], EventView(1.0, "refused", '"written_at":0.0', 1, "late")]
    elif kind == 4:
        view.phase, view.cohort = chance.choice([("open", ("a",)), ("closing", ())])


@pytest.mark.parametrize("seed", range(20))
def test_whatever_changes_the_whole_is_what_the_view_encodes_and_the_news_add_up_to_it(seed: int) -> None:
    chance, view = random.Random(seed), RunView("r", "m", 9)
    whole, pieces, followed = Pieces(), Pieces(), Followed()
    for at in range(60):
        change(view, chance)
        dated = dataclasses.replace(view, written_at=float(at))
        assert whole.whole(view, float(at)) == dated.encoded()
        news = pieces.news(view, float(at))
        if news is not None:
            followed.take(news)
            assert followed.view == dated and followed.encoded() == dated.encoded()
        assert pieces.news(view, at + 0.5) is None, "nothing changed since"


def test_what_is_told_of_a_long_run_is_as_short_as_what_happened() -> None:
    names = [f"n-{number}" for number in range(100)]
    view = RunView("r", "m", 1000, nodes={name: NodeView(name) for name in names})
    view.rows = [msgspec.structs.replace(row(number), participants=tuple(names)) for number in range(1, 1001)]
    pieces = Pieces()
    first = pieces.news(view, 1.0)
    view.rows = [*view.rows, msgspec.structs.replace(row(1001), participants=tuple(names))]
    view.nodes["n-7"].step = 1
    news = pieces.news(view, 2.0)
    assert first is not None and news is not None and len(news) < len(first) / 300
    assert [one.round for one in RunView.decoded(news).rows] == [1001] and [*RunView.decoded(news).nodes] == ["n-7"]
