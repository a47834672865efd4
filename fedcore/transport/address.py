# SPDX-License-Identifier: Apache-2.0
"""Where an MQTT broker is, and who we are there."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from fedcore.errors import ConfigError

__all__ = ["MqttSettings", "check_url", "is_encrypted"]


@dataclass(frozen=True)
class MqttSettings:
    """Where the broker is and who we are there.

    Attributes:
        url: `mqtt://host:port`, or `mqtts://host:port` for TLS with host verification; `ws://host:port/path` and
            `wss://host:port/path` for the same over WebSockets.
        client_id: Fixed for a node, so that the broker keeps its session.
        username, password: Login.
        ca_file: Certificate authority; the system's by default.
        certificate_file, key_file: The client's own certificate.
        messages_per_second, bytes_per_second: No more is published than this; 0 for no limit.
        qos: With which it is published and subscribed.
    """

    url: str
    client_id: str
    username: str | None = None
    password: str | None = None
    ca_file: str | None = None
    certificate_file: str | None = None
    key_file: str | None = None
    messages_per_second: float = 0.0
    bytes_per_second: int = 0
    qos: int = 1

    @property
    def address(self) -> tuple[str, int]:
        """Host and port.

        Raises:
            ConfigError: Not an MQTT address.
        """
        check_url(self.url)
        parts = urlsplit(self.url)
        assert parts.hostname is not None, "checked"
        return parts.hostname, parts.port or _PORTS[parts.scheme]

    @property
    def tls(self) -> bool:
        """Whether the link is encrypted."""
        return is_encrypted(self.url)

    @property
    def websockets(self) -> bool:
        """Whether MQTT travels over WebSockets, which pass where only the web's ports do."""
        return urlsplit(self.url).scheme in ("ws", "wss")

    @property
    def path(self) -> str:
        """Where the WebSocket is; a query, with which some brokers know their clients, is part of it."""
        parts = urlsplit(self.url)
        return (parts.path or "/mqtt") + (f"?{parts.query}" if parts.query else "")


_PORTS = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}


def is_encrypted(url: str) -> bool:
    """Whether an address is one of TLS.

    Example:
        >>> is_encrypted("mqtts://host"), is_encrypted("wss://host"), is_encrypted("mqtt://host")
        (True, True, False)
    """
    return urlsplit(url).scheme in ("mqtts", "wss")


def check_url(url: str) -> None:
    """Return if it is an MQTT address. A password in it is not repeated: errors are printed and logged.

    Raises:
        ConfigError: It is not, or it has a login in it.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        port, parts = 0, urlsplit("")
    if "@" in url:
        raise ConfigError(
            "an address has no login in it",
            place="broker.url",
            remedy="set broker.username, and broker.password_file with a file that only you can read",
        )
    # Nothing is asked for in an MQTT address, and a blank that nobody sees is no part of a name.
    more = parts.path.strip("/") + parts.query if parts.scheme in ("mqtt", "mqtts") else ""
    blank = any(not character.isprintable() or character.isspace() for character in url)
    if parts.scheme not in _PORTS or not parts.hostname or port == 0 or more or parts.fragment or blank:
        raise ConfigError(
            f"{url!r} is not an MQTT address",
            place="broker.url",
            remedy="write mqtts://host:8883, or wss://host/path for WebSockets",
        )
