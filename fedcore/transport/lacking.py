# SPDX-License-Identifier: Apache-2.0
"""What a broker lacks, and what follows from it: said before anybody wonders why nothing happens."""

from __future__ import annotations

from fedcore.transport.base import Limits

__all__ = ["lacking"]

# A coordinator that is away for longer than a night loses what was said meanwhile.
_SESSION_SECONDS = 12 * 3600
_SMALL_PACKET_BYTES = 32_768


def lacking(limits: Limits) -> list[str]:
    """One line for each thing that a broker does not do, with what follows; none for one that does all.

    Args:
        limits: What it said about itself.

    Example:
        >>> lacking(Limits(None, "MQTT 5"))
        []
        >>> lacking(Limits(None, "MQTT 5", max_qos=0))
        ['it delivers at most once (QoS 0): what is lost is sent again, which takes time']
    """
    found = []
    if not limits.wildcards:
        found.append("it takes no wildcards: a coordinator cannot hear its nodes there, take another broker")
    if not limits.retain:
        found.append(
            "it retains nothing: who comes late hears of plans by reminders, and after the run's end of nothing"
        )
    if limits.max_qos == 0:
        found.append("it delivers at most once (QoS 0): what is lost is sent again, which takes time")
    if limits.session_seconds is not None and limits.session_seconds < _SESSION_SECONDS:
        found.append(f"it keeps a session for {limits.session_seconds} s: what is said to who is away longer is lost")
    if limits.max_packet_bytes is not None and limits.max_packet_bytes < _SMALL_PACKET_BYTES:
        found.append(
            f"it takes packets of {limits.max_packet_bytes} bytes: a plan for many nodes is larger, "
            "set round.cohort to some hundred at most"
        )
    return found
