# SPDX-License-Identifier: Apache-2.0
"""The agent's side of sharing a budget with the node's server: when a worker may start, and when an idle one should go.

Where serving has a share of its own (`[serve] while_training = "go_on"`), there is nobody to take turns with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edge_client.memory.sharing import Sharing, server_bytes
from edge_client.node import Node
from fedcore.round.plan import Plan

__all__ = ["Turns"]


class Turns:
    """Of one agent.

    Args:
        node: Its file.
        say: Gets one line for each thing that happens.
    """

    def __init__(self, node: Node, say: Callable[[str], None]) -> None:
        self._folder, self._say = Path(node.folder), say
        self._sharing = Sharing(self._folder, "training") if node.serve.while_training == "pause" else None
        self._waiting: Plan | None = None

    def may_start(self, plan: Plan) -> bool:
        """Whether there is memory for a worker; if not, `due` gives the plan back as soon as there is."""
        if self._sharing is None or self._sharing.take():
            return True
        if self._waiting is None:
            self._say("waits for the server to let go of the memory")
        self._waiting = plan
        return False

    def due(self) -> Plan | None:
        """The plan that waited for memory, once it is there."""
        if self._waiting is None or self._sharing is None or not self._sharing.take():
            return None
        plan, self._waiting = self._waiting, None
        return plan

    def server_wants(self, *, busy: bool) -> bool:
        """Whether the server waits for the memory of a worker that has nothing to do.

        Args:
            busy: It has.
        """
        if self._sharing is None or not self._sharing.held:
            return False
        if busy:
            self._sharing.take()
            return False
        self._sharing.rest()
        return self._sharing.other_wants()

    def leave(self) -> None:
        """There is no worker any more."""
        if self._sharing is not None and self._waiting is None:
            self._sharing.leave()

    def forget(self) -> None:
        """No worker is wanted any more."""
        self._waiting = None

    def server_bytes(self) -> int:
        """What of the budget the server uses without its worker."""
        return 0 if self._sharing is None else server_bytes(self._folder)
