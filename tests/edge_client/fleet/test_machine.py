# SPDX-License-Identifier: Apache-2.0
"""A fleet's node as a machine: it goes where it is named and has said yes, and nowhere else."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_client.fleet.machine import Action, FleetNode, Heard, Leave, Left, LookAt, Looked, TakePart, Tell
from edge_client.owner.accepting import AcceptSection, Offering, why_not
from fedcore.config.sections import DataSection
from fedcore.errors import ConfigError
from fedcore.wire.fleet import FleetRun, Notice

DATA = DataSection(source="reviews.csv")
OFFERING = Offering(accept=AcceptSection(), data=DATA, models={"minilm": "/models/minilm"})


def run(name: str, *nodes: str, submission: int = 0, **more: Any) -> FleetRun:
    given: dict[str, object] = {
        "task": "text-classification", "method": "fedkrso", "model": "minilm", "nodes": nodes, **more
    }  # fmt: skip
    return msgspec.convert({"run": name, "submission": f"{submission or ord(name[0]):032x}", **given}, FleetRun)


def kinds(actions: list[Action]) -> list[str]:
    return [type(action).__name__ for action in actions]


def test_it_looks_says_yes_takes_part_when_it_is_named_and_leaves_when_the_run_is_gone() -> None:
    node = FleetNode("n", OFFERING)
    a = run("a")
    assert node.handle(Heard(1, Notice((a,)))) == [LookAt(a), Tell()]
    assert node.handle(Looked(a.submission, "")) == [Tell()]
    assert node.candidate().able == (a.submission,) and node.candidate().heard == 1
    named = msgspec.structs.replace(a, nodes=("n",))
    assert node.handle(Heard(2, Notice((named,)))) == [TakePart(named), Tell()]
    assert node.candidate().run == "a"
    assert node.handle(Heard(3, Notice(()))) == [Leave("run a is over"), Tell()]
    assert kinds(node.handle(Heard(4, Notice(())))) == ["Tell"], "it is leaving already"
    assert kinds(node.handle(Left())) == ["Tell"] and node.current is None
    node.check()


def test_it_is_not_named_without_having_said_yes() -> None:
    node = FleetNode("n", OFFERING)
    assert kinds(node.handle(Heard(1, Notice((run("a", "n"),))))) == ["LookAt", "Tell"]
    assert kinds(node.handle(Looked(run("a").submission, "reviews.csv:3: label 'x' is unknown"))) == ["Tell"]
    assert node.current is None
    assert node.candidate().declined == {"a": "reviews.csv:3: label 'x' is unknown"} and node.candidate().able == ()


def test_after_a_restart_it_looks_again_and_goes_where_it_is_named() -> None:
    node = FleetNode("n", OFFERING, number=7)
    a = run("a", "n")
    node.handle(Heard(7, Notice((a,))))
    assert node.handle(Looked(a.submission, "")) == [TakePart(a), Tell()]


def test_a_finished_run_is_not_entered_again_and_what_failed_neither() -> None:
    for left in (Left(over=True), Left("a budget of 1 MiB does not do")):
        node = FleetNode("n", OFFERING)
        a, b = run("a", "n"), run("b")
        node.handle(Heard(1, Notice((a,))))
        node.handle(Looked(a.submission, ""))
        assert node.current == a
        node.handle(left)
        assert "TakePart" not in kinds(node.handle(Heard(2, Notice((a, b)))))
        assert a.submission not in node.candidate().able
        again = run("a", "n", submission=99)
        node.handle(Looked(b.submission, ""))
        node.handle(Heard(3, Notice((again,))))
        assert TakePart(again) in node.handle(Looked(again.submission, "")), "another submission of the name"


def test_it_is_moved_to_another_run_when_the_server_says_so() -> None:
    node = FleetNode("n", OFFERING)
    a, b = run("a", "n"), run("b")
    node.handle(Heard(1, Notice((a, b))))
    node.handle(Looked(a.submission, ""))
    assert node.current == a, "it does not look at others while it is in a run"
    node.handle(Left())
    node.handle(Heard(2, Notice((run("a"), b))))
    node.handle(Looked(b.submission, ""))
    node.handle(Heard(3, Notice((a, b))))
    assert node.current == a
    moved = Notice((run("a"), run("b", "n")))
    assert Leave("run a goes on without this node") in node.handle(Heard(4, moved))
    node.handle(Left())
    assert TakePart(run("b", "n")) in node.handle(Heard(4, moved))


def test_an_owner_who_changes_the_rules_ends_what_they_forbid() -> None:
    node = FleetNode("n", OFFERING)
    a = run("a", "n")
    node.handle(Heard(1, Notice((a,))))
    node.handle(Looked(a.submission, ""))
    stricter = msgspec.structs.replace(OFFERING, privacy="example")
    assert kinds(node.offer(stricter)) == ["Leave", "Tell"]
    node.check()


@pytest.mark.parametrize(
    ("offering", "wanted", "words"),
    [
        ({"accept": AcceptSection(runs=("voice-*",))}, {}, "its owner accepts no runs but voice-*"),
        ({"accept": AcceptSection(methods=("fedavg",))}, {}, "no methods but fedavg, and this is fedkrso"),
        ({"accept": AcceptSection(tasks=("regression",))}, {}, "its data is for regression"),
        ({}, {"task": "pair-classification"}, "data.text_pair names no column"),
        ({"data": DataSection(source="a.csv", label=None)}, {}, "needs labels, and data.label names no column"),
        ({}, {"task": "of-tomorrow"}, "no task 'of-tomorrow' is installed here"),
        ({}, {"model": "llama"}, "no model 'llama' is here; there is minilm"),
        ({"privacy": "node"}, {}, "promise no privacy, and this node wants privacy.node"),
        ({"privacy": "example"}, {"privacy": "node"}, "promise privacy.node, and this node wants privacy.example"),
        ({"masked": True}, {}, "wants secure aggregation"),
        ({"privacy": "node", "masked": True}, {"privacy": "example", "secure": True}, ""),
        ({"accept": AcceptSection(runs=("a", "b"))}, {}, ""),
    ],
)  # fmt: skip
def test_each_reason_is_said(offering: dict[str, object], wanted: dict[str, Any], words: str) -> None:
    said = why_not(msgspec.structs.replace(OFFERING, **offering), run("a", **wanted))
    assert words in said if words else said == ""


def test_rules_that_accept_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"accept\.runs"):
        AcceptSection(runs=())


def test_a_look_that_ends_late_takes_nothing_back_that_was_refused_meanwhile() -> None:
    node = FleetNode("n", OFFERING)
    node.handle(Heard(1, Notice((run("b"),))))
    node.handle(Heard(2, Notice((run("b", "n", model="other"),))))
    assert not any(isinstance(action, TakePart) for action in node.handle(Looked(node.looking, "")))
    assert node.current is None and "b" in node.candidate().declined


def test_a_run_that_left_the_notice_is_forgotten_also_by_who_was_in_it() -> None:
    for left in (Left("", over=True), Left("no room")):
        node = FleetNode("n", OFFERING)
        node.handle(Heard(1, Notice((run("a", "n"),))))
        node.handle(Looked(node.looking, ""))
        assert node.current is not None
        node.handle(Heard(2, Notice(())))
        node.handle(left)
        node.check()
        assert node.current is None and not node.over and not node.verdicts


NOTICES = st.lists(
    st.tuples(
        st.sampled_from(["notice", "good", "bad", "left", "over", "failed"]),
        st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.sampled_from(["minilm", "other"])), max_size=3),
    ),
    max_size=40,
)


@settings(max_examples=80, deadline=None)
@given(NOTICES)
def test_whatever_comes_it_is_in_one_run_at_most_and_only_where_it_is_named(
    events: list[tuple[str, list[tuple[str, bool, str]]]],
) -> None:
    node, inside, number = FleetNode("n", OFFERING), "", 0
    for what, runs in events:
        actions: list[Action] = []
        if what == "notice":
            number += 1
            found = {name: run(name, *(["n"] if named else []), model=model) for name, named, model in runs}
            actions = node.handle(Heard(number, Notice(tuple(found.values()))))
        elif what in ("good", "bad") and node.looking:
            actions = node.handle(Looked(node.looking, "" if what == "good" else "a wrong row"))
        elif node.current is not None and what in ("left", "over", "failed"):
            if what == "left" and not node.leaving:
                continue
            actions, inside = node.handle(Left("no room" if what == "failed" else "", what == "over")), ""
        for action in actions:
            if isinstance(action, TakePart):
                assert not inside and "n" in action.run.nodes and action.run.model == "minilm"
                inside = action.run.run
        node.check()
        assert (node.current.run if node.current else "") == inside == node.candidate().run
