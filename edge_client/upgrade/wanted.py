# SPDX-License-Identifier: Apache-2.0
"""What a fleet's server wants a node to run: read from the notice that the agent kept, and believed only as far as the
server's own signature goes. The agent, which has no right to change what it is, decides nothing here."""

from __future__ import annotations

import os
from pathlib import Path

from edge_client.node import Node
from edge_client.owner.accepting import RELEASE_FILE
from edge_client.upgrade.slots import Pinned, Slots
from fedcore.errors import ConfigError, WireError
from fedcore.wire.codec import MAX_MESSAGE_BYTES
from fedcore.wire.fleet import Notice, opened
from fedcore.wire.identity import load_public_key

__all__ = ["wanted"]


def wanted(node: Node, slots: Slots) -> Pinned | None:
    """The version that this node is to run; None where the server names none for it.

    Args:
        node: Its file, which belongs to the owner.
        slots: Remember the newest notice that was obeyed.

    Raises:
        ConfigError: The owner does not accept releases, or notices are not signed.
        WireError: The notice is not the server's, or older than one that was obeyed.
    """
    if not node.accept.releases:
        raise ConfigError("the owner accepts no releases", place="accept.releases", remedy="accept.releases = true")
    if not node.fleet or node.trust.coordinator_key is None:
        words = "releases count from a server whose notices are signed"
        raise ConfigError(words, place="trust.coordinator_key", remedy="fedkrso provision writes it")
    try:
        payload = _read(Path(node.folder) / RELEASE_FILE)
    except FileNotFoundError:
        return None
    except OSError as error:
        place = str(Path(node.folder) / RELEASE_FILE)
        raise ConfigError(f"cannot be read: {error.strerror}", place=place, remedy="remove it") from None
    envelope = opened(payload, node.fleet, load_public_key(node.trust.coordinator_key))
    if not isinstance(envelope.body, Notice) or envelope.node:
        raise WireError("no notice of the server", place=RELEASE_FILE)
    if envelope.number < slots.kept.notice:
        raise WireError("an older notice than one that was obeyed", place=RELEASE_FILE)
    slots.keep(notice=envelope.number)
    release = envelope.body.release
    if release is None or not release.names(node.node):
        return None
    return Pinned(version=release.version, sha256=release.sha256)


def _read(path: Path) -> bytes:
    """A file in the agent's folder, read with rights that the agent has not: no link is followed, and nothing waited
    for."""
    number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(number, "rb") as file:
        return file.read(MAX_MESSAGE_BYTES + 1)
