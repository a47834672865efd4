# SPDX-License-Identifier: Apache-2.0
"""When a node rests and goes on, without a clock: the test says what time it is."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from plans import make_plan

from devices.base import Facts
from devices.kinds.simulated import Simulated
from edge_client.agent.events import MayWork, MustRest, PlanArrived
from edge_client.agent.resting import Resting
from edge_client.agent.session import Session
from edge_client.agent.storage import Storage, round_bytes
from edge_client.owner.policy import PolicySection

AT_NIGHT = PolicySection(hours="22:00-06:00", patience_seconds=0, settle_seconds=0)


class Scene:
    """A node whose local hour and disk limit the test sets."""

    def __init__(self, folder: Path, policy: PolicySection, limit_bytes: int = 10**12) -> None:
        self.hour = 12
        self.session, self.said = Session("n"), list[str]()
        self.resting = Resting(
            policy,
            Storage(folder, limit_bytes, 0),
            Simulated(facts=Facts("simulated", "board")),
            lambda: datetime(2026, 5, 4, self.hour, 30),
            self.session,
            self.said.append,
        )

    def look(self, at_seconds: float, *, quiet: bool = True) -> list[MustRest | MayWork]:
        events = self.resting.look(at_seconds, quiet=quiet)
        for event in events:
            self.session.handle(event)
        return events


def test_a_node_rests_out_of_hours_and_says_so_once(tmp_path: Path) -> None:
    scene = Scene(tmp_path, AT_NIGHT)
    (rest,) = scene.look(1.0)
    assert isinstance(rest, MustRest) and rest.cause == "policy" and "22:00-06:00" in rest.reason
    assert scene.look(3.0) == [] and scene.said == [f"resting: {rest.reason}"]
    scene.hour = 23
    assert scene.look(5.0, quiet=False) == [], "a worker that was let go may have a word to say"
    assert scene.look(7.0) == [MayWork("policy")]


def test_the_device_is_looked_at_every_second_and_another_policy_at_once(tmp_path: Path) -> None:
    scene = Scene(tmp_path, PolicySection())
    assert scene.look(10.0) == []
    scene.resting.set_policy(AT_NIGHT)
    assert [event.cause for event in scene.look(10.1)] == ["policy"]
    scene.hour = 23
    assert scene.look(10.5) == []
    assert scene.look(11.2) == [MayWork("policy")]


def test_a_full_disk_is_looked_at_every_five_seconds_until_a_round_fits(tmp_path: Path) -> None:
    need = round_bytes(make_plan(1))
    for limit, expected in ((need - 1, []), (need, [MayWork("storage")])):
        scene = Scene(tmp_path, PolicySection(), limit)
        scene.session.handle(PlanArrived(make_plan(1)))
        scene.session.handle(MustRest("storage", "full"))
        assert scene.look(100.0) == expected
        scene.session.handle(MustRest("storage", "full again"))
        assert scene.look(104.9) == []
        assert scene.look(105.0) == expected
