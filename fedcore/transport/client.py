# SPDX-License-Identifier: Apache-2.0
"""paho's client, made for one attempt to connect; and what the broker's answer says about the broker."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
from typing import Any, Final

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from fedcore.errors import BrokerUnreachable
from fedcore.transport.address import MqttSettings
from fedcore.transport.base import Limits, Message
from fedcore.transport.tls import client_context

__all__ = [
    "LACKS_FOR_WILLS",
    "LONGEST_CLIENT_ID",
    "client_id",
    "connect_options",
    "cut",
    "limits_of",
    "new_client",
    "short_client_id",
    "unreachable",
]

LONGEST_CLIENT_ID: Final = 128
"""Of what common managed brokers take; MQTT itself allows 65,535 bytes."""
_NO_RETAIN, _NO_QOS = 154, 155
LACKS_FOR_WILLS: Final = frozenset((_NO_RETAIN, _NO_QOS))
"""With what version 5 refuses whoever wants a retained will, or one that comes at least once, where there is none."""
_SESSION_SECONDS = 24 * 3600


def client_id(run: str, name: str) -> str:
    """The id under which a broker keeps a client's session: the same at each start.

    Args:
        run: The run's name.
        name: A node, or `coordinator`.

    Example:
        >>> client_id("voice", "kitchen"), len(client_id("r" * 64, "n" * 64))
        ('fedkrso-voice-kitchen', 128)
    """
    whole = f"fedkrso-{run}-{name}"
    return whole if len(whole) <= LONGEST_CLIENT_ID else f"{whole[:95]}-{_digest(whole)[:32]}"


def short_client_id(whole: str) -> str:
    """The same in 23 letters and digits, which is all that a broker of MQTT 3.1.1 has to take."""
    return f"f{_digest(whole)[:22]}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def new_client(
    settings: MqttSettings,
    name: str,
    protocol: MQTTProtocolVersion,
    will: Message | None,
    lacks: frozenset[int] = frozenset(),
) -> paho.Client:
    """A client that is not connected yet; certificates are read anew for each.

    Args:
        settings: Broker and login.
        name: Client id.
        protocol: Version to speak.
        will: What the broker says when the link is lost.
        lacks: Which of `LACKS_FOR_WILLS` this broker has refused us with.

    Raises:
        ConfigError: A certificate or key cannot be used.
    """
    five = protocol == MQTTProtocolVersion.MQTTv5
    options: dict[str, Any] = {} if five else {"clean_session": False}
    client = paho.Client(
        CallbackAPIVersion.VERSION2,
        client_id=name,
        protocol=protocol,
        transport="websockets" if settings.websockets else "tcp",
        reconnect_on_failure=False,
        **options,
    )
    if settings.websockets:
        client.ws_set_options(path=settings.path)
    if settings.username is not None:
        client.username_pw_set(settings.username, settings.password)
    if settings.tls:
        client.tls_set_context(client_context(settings.ca_file, settings.certificate_file, settings.key_file))
    if will is not None:
        qos, retain = min(settings.qos, int(_NO_QOS not in lacks)), will.retain and _NO_RETAIN not in lacks
        client.will_set(will.topic, will.payload, qos=qos, retain=retain)
    return client


def cut(client: paho.Client) -> None:
    """End a client's link without a word, as a crash would; its network thread notices."""
    sock = client.socket()
    if sock is None:
        return
    # By its number, since a WebSocket's wrapper cannot be shut down.
    with contextlib.suppress(OSError, ValueError), socket.socket(fileno=os.dup(sock.fileno())) as same:
        same.shutdown(socket.SHUT_RDWR)


def unreachable(error: OSError | None, place: str, *, tls: bool) -> BrokerUnreachable:
    """Why there is no link, as one line with the remedy.

    Args:
        error: What connecting raised; None where the broker closed the connection without a word.
        place: The broker's host and port.
        tls: Whether the link was to be encrypted.
    """
    if error is None:
        doubt = "it may not take our certificate" if tls else "if it wants TLS, write mqtts:// in broker.url"
        words, remedy = "the broker closed the connection", f"see the broker's log; {doubt}"
        return BrokerUnreachable(words, place=place, remedy=remedy)
    remedy = "is the broker running there?"
    if tls and isinstance(error, ConnectionResetError):
        remedy = "is the broker running there, and is this its port for TLS?"
    elif isinstance(error, socket.gaierror):
        remedy = "is its name right in broker.url, and known in this network?"
    return BrokerUnreachable(f"{error.strerror or error}", place=place, remedy=remedy)


def connect_options(protocol: MQTTProtocolVersion, most_under_way: int) -> dict[str, Any]:
    """Arguments of `connect`, for a session that outlives the link.

    Args:
        protocol: Version to speak.
        most_under_way: Messages that the broker may send without our acknowledgement.
    """
    if protocol != MQTTProtocolVersion.MQTTv5:
        return {}
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.SessionExpiryInterval = _SESSION_SECONDS
    properties.ReceiveMaximum = most_under_way
    return {"clean_start": False, "properties": properties}


def limits_of(properties: Any, protocol: MQTTProtocolVersion) -> Limits:
    """What a broker says about itself as it accepts us; version 3.1.1 says nothing.

    Args:
        properties: Of its CONNACK; None without version 5.
        protocol: Version that is spoken.
    """
    return Limits(
        getattr(properties, "MaximumPacketSize", None),
        "MQTT 5" if protocol == MQTTProtocolVersion.MQTTv5 else "MQTT 3.1.1",
        max_qos=int(getattr(properties, "MaximumQoS", 2)),
        retain=bool(getattr(properties, "RetainAvailable", 1)),
        wildcards=bool(getattr(properties, "WildcardSubscriptionAvailable", 1)),
        session_seconds=getattr(properties, "SessionExpiryInterval", None),
    )
