# SPDX-License-Identifier: Apache-2.0
"""What a node tells of itself, taken into what is shown of it."""

from __future__ import annotations

from coordinator.store.view import NodeView
from fedcore.wire.messages import Status, Telemetry

__all__ = ["take_status", "take_telemetry"]


def take_status(seen: NodeView, status: Status) -> None:
    """A node's word about itself; what it holds is taken elsewhere, once it is checked.

    Args:
        seen: Is changed. A node that leaves out what it said before has not lost it.
        status: What it says.
    """
    seen.online, seen.state, seen.device, seen.reason = status.online, status.state, status.device, status.reason
    seen.memory_group, seen.security = status.memory_group or seen.memory_group, status.security or seen.security
    seen.software, seen.route = status.software or seen.software, status.route or seen.route
    if status.online:
        seen.budget_bytes = status.budget_bytes


def take_telemetry(seen: NodeView, numbers: Telemetry) -> None:
    """A node's numbers.

    Args:
        seen: Is changed; peaks only rise.
        numbers: What it measures.
    """
    seen.state, seen.step, seen.steps, seen.loss = numbers.state, numbers.step, numbers.steps, numbers.loss
    seen.agent_rss_bytes, seen.worker_bytes = numbers.agent_rss_bytes, numbers.worker_bytes
    seen.worker_anonymous_bytes, seen.accelerator_bytes = numbers.worker_anonymous_bytes, numbers.accelerator_bytes
    seen.budget_bytes, seen.available_bytes = numbers.budget_bytes, numbers.available_bytes
    seen.readings, seen.components = numbers.readings, numbers.components or seen.components
    seen.uplink_bytes, seen.downlink_bytes = numbers.uplink_bytes, numbers.downlink_bytes
    seen.peak_bytes = max(seen.peak_bytes, numbers.peak_bytes)
    seen.agent_peak_rss_bytes = max(seen.agent_peak_rss_bytes, numbers.agent_peak_rss_bytes)
