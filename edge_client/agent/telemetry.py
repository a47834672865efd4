# SPDX-License-Identifier: Apache-2.0
"""What a node says about itself: its status when it changes, its numbers every second, for whoever watches the run; and
what it holds, for its server."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from edge_client.agent.messages import Messages
from edge_client.agent.session import Session
from edge_client.memory.monitor import Reading
from edge_client.memory.probes import own_peak_rss_bytes, own_rss_bytes
from edge_client.node import Node
from edge_client.process.supervisor import Supervisor
from fedcore.device.readings import Readings
from fedcore.round.measurement import Measurement
from fedcore.wire.messages import Status, Telemetry
from fedcore.worker.serving import Held

__all__ = ["held_of", "last_word", "status", "telemetry"]


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
        software=_software(),
        route=supervisor.route,
        measured=_last_measurement(session),
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
    session: Session, supervisor: Supervisor, reading: Reading, readings: Readings | None, messages: Messages
) -> Telemetry:
    """The node's numbers.

    Args:
        session: What it is doing.
        supervisor: What it does it with.
        reading: Memory, just sampled.
        readings: The device's sensors; None while they do not answer.
        messages: Counts what crossed the wire.
    """
    progress, worker = supervisor.progress, supervisor.worker_memory
    return Telemetry(
        state=session.state,
        step=progress.step,
        steps=progress.steps,
        loss=progress.loss if progress.step else None,
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
        plan=session.plan.key if session.plan is not None else "",
        uplink_bytes=messages.uplink_bytes,
        downlink_bytes=messages.downlink_bytes,
    )


def _software() -> str:
    try:
        return version("fedkrso")
    except PackageNotFoundError:
        # Run from a checkout that nothing was installed from.
        return ""
