# SPDX-License-Identifier: Apache-2.0
"""Brokers as a service that limit what they do not tell: known by their host. The figures' sources are in
docs/details/brokers.md."""

from __future__ import annotations

from dataclasses import dataclass

from fedcore.transport.address import MqttSettings

__all__ = ["limits_untold"]

# A fleet's `fedkrso/2/FLEET/runs/RUN/node/NODE/up/KIND`.
_FLEET_SLASHES = 8
# Of what is taken: room for what goes out at once, which in bytes may be a chunk.
_SHARES = {"messages": 4 / 5, "bytes": 2 / 3}


@dataclass(frozen=True)
class _Service:
    """Of one client's link; what is above the rates is dropped."""

    name: str
    part: str
    """What all of its hosts have in them."""
    end: str
    messages_per_second: int
    bytes_per_second: int
    slashes: int | None


_SERVICES = (
    _Service("AWS IoT Core", ".iot.", ".amazonaws.com", 100, 512 * 1024, 7),
    _Service("AWS IoT Core", ".iot.", ".amazonaws.com.cn", 100, 512 * 1024, 7),
    _Service("Azure Event Grid", "", ".eventgrid.azure.net", 1000, 1024 * 1024, None),
)


def limits_untold(settings: MqttSettings, *, fleet: bool = False) -> list[str]:
    """A line for each limit of a known service that these settings break; none for brokers that are not known.

    Args:
        settings: Where the broker is, and how fast we publish.
        fleet: Whether the topics of a fleet are used.

    Example:
        >>> aws = "mqtts://abc-ats.iot.eu-west-1.amazonaws.com:8883"
        >>> [words] = limits_untold(MqttSettings(aws, "c", messages_per_second=80))
        >>> words.split(" of one ")[0], words.split(": ")[1]
        ('AWS IoT Core takes 524288 bytes a second', 'set broker.bytes_per_second = 349525')
    """
    host = settings.address[0]
    found = next((one for one in _SERVICES if one.part in host and host.endswith(one.end)), None)
    if found is None:
        return []
    said = []
    for what in ("messages", "bytes"):
        most, ours = getattr(found, f"{what}_per_second"), getattr(settings, f"{what}_per_second")
        if not 0 < ours <= most:
            said.append(
                f"{found.name} takes {most} {what} a second of one client and drops the rest: "
                f"set broker.{what}_per_second = {int(most * _SHARES[what])}"
            )
    if fleet and found.slashes is not None and found.slashes < _FLEET_SLASHES:
        said.append(
            f"{found.name} takes topics with {found.slashes} slashes, a fleet's have {_FLEET_SLASHES}: "
            "lead runs by themselves there"
        )
    return said
