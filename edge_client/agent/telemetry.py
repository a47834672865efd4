# SPDX-License-Identifier: Apache-2.0
"""What a node says about itself: its status when it changes, its numbers, for whoever watches the run; and what it
holds, for its server."""

from __future__ import annotations

import random
from pathlib import Path

from edge_client.agent.messages import Messages
from edge_client.agent.session import Session
from edge_client.memory.monitor import Reading
from edge_client.memory.probes import own_peak_rss_bytes, own_rss_bytes
from edge_client.node import Node
from edge_client.process.published import HeldNote
from edge_client.process.supervisor import Supervisor
from fedcore.device.readings import Readings
from fedcore.fields.formats import SPOKEN
from fedcore.round.measurement import Measurement
from fedcore.system.software import software
from fedcore.wire.messages import Status, Telemetry
from fedcore.worker.serving import Held

__all__ = ["Pace", "Telling", "held_of", "last_word", "status", "telemetry"]


_SHORTEST_SECONDS, _LONGEST_SECONDS = 1.0, 45.0
_MOST_A_SECOND = 100.0


class Pace:
    """When a node's numbers are due: when something has changed that the coordinator goes by; each time they are taken
    while it works, or as often as leaves a hundred a second of all who are invited with it; and else again after pauses
    that double, since any message may be lost. So an idle node costs a metered link about a megabyte a day, and a
    thousand that train no broker more than a hundred do.

    Args:
        jitter: Spreads the messages of many nodes.
    """

    def __init__(self, jitter: random.Random) -> None:
        self._jitter = jitter
        self._said: tuple[object, ...] = ()
        self._due_at, self._pause = float("-inf"), _SHORTEST_SECONDS

    def soon(self) -> None:
        """Somebody waits for them: a plan was heard, perhaps not for the first time."""
        self._said = ()

    def due(self, now: float, numbers: Telemetry, *, working: bool, invited: int = 1) -> bool:
        """Whether to send numbers that were just taken.

        Args:
            now: Steady clock, seconds.
            numbers: What would be sent.
            working: The node trains, loads, fetches or sends.
            invited: How many nodes are in the round.
        """
        least = max(_SHORTEST_SECONDS, invited / _MOST_A_SECOND) if working else _SHORTEST_SECONDS
        said = (
            numbers.state,
            numbers.version,
            numbers.generation,
            numbers.digest,
            numbers.plan,
            numbers.refused,
            numbers.budget_bytes,
        )
        if said != self._said:
            self._said, self._pause = said, least
        elif now < self._due_at and (not working or least > _SHORTEST_SECONDS):
            return False
        self._due_at = now + self._pause * self._jitter.uniform(0.75, 1.25)
        self._pause = least if working else min(2 * self._pause, _LONGEST_SECONDS)
        return True


def status(session: Session, supervisor: Supervisor, device: str, security: str) -> Status:
    """The node's word about itself.

    Args:
        session: What it is doing.
        supervisor: What it does it with.
        device: What kind of machine it is, for a person.
        security: How its link and messages are protected.
    """
    return Status(
        online=True,
        state=session.state,
        device=device,
        version=session.version,
        generation=session.generation,
        digest=session.digest,
        budget_bytes=supervisor.monitor.budget_bytes,
        memory_group=supervisor.memory_group,
        reason=session.reason,
        security=security,
        software=software(),
        route=supervisor.route,
        measured=_last_measurement(session),
        formats=dict(SPOKEN),
    )


def last_word(session: Session) -> Status:
    """The word of a node that leaves.

    Args:
        session: What it was doing.
    """
    return Status(
        online=False,
        state=session.state,
        version=session.version,
        generation=session.generation,
        digest=session.digest,
        measured=_last_measurement(session),
    )


def _last_measurement(session: Session) -> Measurement | None:
    """Of the run's last state; of every other the next update tells."""
    return session.measurement if session.plan is not None and session.plan.phase == "finished" else None


def held_of(node: Node, session: Session) -> Held | None:
    """What the node's worker proved last that it holds; None while nothing is loaded."""
    plan = session.plan
    if plan is None or not session.digest:
        return None
    return Held(
        run=node.run,
        node=node.node,
        version=session.version,
        generation=session.generation,
        digest=session.digest,
        plan=plan,
    )


def telemetry(
    session: Session,
    supervisor: Supervisor,
    reading: Reading,
    readings: Readings | None,
    messages: Messages,
    refused: str,
) -> Telemetry:
    """The node's numbers.

    Args:
        session: What it is doing.
        supervisor: What it does it with.
        reading: Memory, just sampled.
        readings: The device's sensors; None while they do not answer.
        messages: Counts what crossed the wire.
        refused: Why a message was refused last; empty for never.
    """
    progress, worker = supervisor.progress, supervisor.worker_memory
    # With secure aggregation nothing that comes from the text is said of one node.
    hidden = session.plan is not None and session.plan.secure is not None
    return Telemetry(
        state=session.state,
        step=progress.step,
        steps=progress.steps,
        loss=progress.loss if progress.step and not hidden else None,
        agent_rss_bytes=own_rss_bytes(),
        agent_peak_rss_bytes=own_peak_rss_bytes() or own_rss_bytes(),
        worker_bytes=reading.worker_bytes,
        worker_anonymous_bytes=worker.anonymous_bytes if worker is not None else None,
        accelerator_bytes=supervisor.accelerator_bytes,
        peak_bytes=supervisor.peak_bytes,
        budget_bytes=supervisor.monitor.budget_bytes,
        available_bytes=reading.device_available_bytes,
        pressure_percent=reading.pressure_percent,
        components=supervisor.components,
        readings=readings,
        version=session.version,
        generation=session.generation,
        digest=session.digest,
        plan=session.heard.key if session.heard is not None else "",
        uplink_bytes=messages.uplink_bytes,
        downlink_bytes=messages.downlink_bytes,
        refused=refused,
    )


class Telling:
    """Says it, when it is due.

    Args:
        node: Its file.
        session: What it is doing.
        supervisor: What it does it with.
        messages: Its way out.
        device: What kind of machine it is, for a person.
        jitter: Spreads the messages of many nodes.
    """

    def __init__(
        self,
        node: Node,
        session: Session,
        supervisor: Supervisor,
        messages: Messages,
        device: str,
        jitter: random.Random,
    ) -> None:
        self._node, self._session, self._supervisor = node, session, supervisor
        self._messages, self._device, self._pace = messages, device, Pace(jitter)
        self._note = HeldNote(Path(node.folder))

    def tell(self) -> None:
        """The node's status, to all; and what it holds, to its server."""
        self._messages.tell(status(self._session, self._supervisor, self._device, self._messages.security))
        if (held := held_of(self._node, self._session)) is not None:
            self._note.write(held)

    def last_word(self) -> None:
        """The word of a node that leaves."""
        self._messages.tell(last_word(self._session))

    def soon(self) -> None:
        """Send the numbers the next time they are taken."""
        self._pace.soon()

    def sample(self, now: float, readings: Readings | None, refused: str) -> None:
        """Take the numbers, and send them when they are due.

        Args:
            now: Steady clock, seconds.
            readings: The device's sensors; None while they do not answer.
            refused: Why a message was refused last.
        """
        session, reading = self._session, self._supervisor.sample(now)
        numbers = telemetry(session, self._supervisor, reading, readings, self._messages, refused)
        plan, working = session.plan, session.busy or session.state == "sending"
        if self._pace.due(now, numbers, working=working, invited=len(plan.cohort) if plan else 1):
            self._messages.up("telemetry", numbers, plan.round if plan else 0)
