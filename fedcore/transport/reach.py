# SPDX-License-Identifier: Apache-2.0
"""Whether a broker lets us in, and what it says about itself."""

from __future__ import annotations

import random

from fedcore.transport.address import MqttSettings
from fedcore.transport.base import Limits
from fedcore.transport.mqtt import MqttTransport

__all__ = ["reach"]


def reach(settings: MqttSettings, timeout_seconds: float) -> Limits:
    """Connect, and leave at once.

    Args:
        settings: Of a client that nobody else is: a broker ends the session of who comes by the same id.
        timeout_seconds: How long to try.

    Raises:
        BrokerRefused: It does not let us in.
        BrokerUnreachable: It is not there.

    Example:
        >>> from fedcore.errors import TransportError
        >>> try:
        ...     reach(MqttSettings("mqtt://127.0.0.1:1", "doctor", "", ""), 0.1)
        ... except TransportError as error:
        ...     print(error.place)
        127.0.0.1:1
    """
    transport = MqttTransport(settings, random.Random(0))  # noqa: S311 - spreads reconnects
    transport.start(lambda event: None)
    try:
        return transport.wait_connected(timeout_seconds)
    finally:
        transport.stop()
