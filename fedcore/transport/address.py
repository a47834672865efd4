# SPDX-License-Identifier: Apache-2.0
"""Where an MQTT broker is, and who we are there."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from fedcore.errors import ConfigError

__all__ = ["MqttSettings"]


@dataclass(frozen=True)
class MqttSettings:
    """Where the broker is and who we are there.

    Attributes:
        url: `mqtt://host:port`, or `mqtts://host:port` for TLS with host verification.
        client_id: Fixed for a node, so that the broker keeps its session.
        username, password: Login.
        ca_file: Certificate authority; the system's by default.
        certificate_file, key_file: The client's own certificate.
    """

    url: str
    client_id: str
    username: str | None = None
    password: str | None = None
    ca_file: str | None = None
    certificate_file: str | None = None
    key_file: str | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Host and port.

        Raises:
            ConfigError: Not an MQTT address.
        """
        parts = urlsplit(self.url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or port == -1:
            raise ConfigError(
                f"{self.url!r} is not an MQTT address", place="broker.url", remedy="write mqtts://host:8883"
            )
        return parts.hostname, port or (8883 if self.tls else 1883)

    @property
    def tls(self) -> bool:
        """Whether the link is encrypted."""
        return urlsplit(self.url).scheme == "mqtts"
