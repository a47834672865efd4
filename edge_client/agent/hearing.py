# SPDX-License-Identifier: Apache-2.0
"""What a node hears: messages that count, and why others did not, told once a minute however often they come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edge_client.agent import lines
from edge_client.agent.messages import Messages
from fedcore.errors import WireError
from fedcore.round.plan import Plan
from fedcore.transport.base import Denied, Disconnected, Limits
from fedcore.wire.messages import Body

__all__ = ["Heard", "Hearing"]

_QUIET_SECONDS = 60.0
_MOST_REMEMBERED = 100
# So many other runs within so long are no accident: two coordinators lead a run of this name.
_RUNS, _RUNS_SECONDS = 3, 600.0


@dataclass(frozen=True)
class Heard:
    """A message that counts.

    Attributes:
        body: What it says.
        other_run: It brought the node to another run of the same name.
    """

    body: Body
    other_run: bool


class Hearing:
    """Opens what comes, and says why something did not count.

    Args:
        messages: Both directions of the node.
        node: Its id.
        say: Gets one line for each thing that happens.

    Attributes:
        refused: Why a message was refused last; empty for never. The coordinator is told.
    """

    def __init__(self, messages: Messages, node: str, say: Callable[[str], None]) -> None:
        self._messages, self._say = messages, say
        self._plans = (messages.topics.plan, messages.topics.down(node, "plan"))
        self._told: dict[str, float] = {}
        self._moved_at: list[float] = []
        self.refused = ""

    def linked(self, limits: Limits, waits_for: str) -> None:
        """The link to the broker is up.

        Args:
            limits: What the broker said about itself.
            waits_for: The run whose coordinator has not spoken yet; else empty.
        """
        for line in lines.connected(limits, self._messages.security, waits_for):
            self._say(line)

    def deaf(self, event: Disconnected | Denied) -> None:
        """The link is lost, or the broker does not let us hear something."""
        if isinstance(event, Denied):
            self._say(lines.denied(event.topic_filter, event.reason, lasting=event.lasting))
        else:
            self._say(lines.disconnected(event.reason))

    def take(self, topic: str, payload: bytes, now: float) -> Heard | None:
        """A message that came; None if it does not count.

        Args:
            topic: Where it came.
            payload: Its bytes; none where something retained was cleared.
            now: Steady clock, seconds.
        """
        if not payload:
            return None
        before = self._messages.membership.run_id
        try:
            body = self._messages.open(topic, payload)
        except WireError as error:
            self._refuse(topic, error, now)
            return None
        if isinstance(body, Plan) and topic not in self._plans:
            return None
        after = self._messages.membership.run_id
        if after != before:
            self._moved_at = [at for at in self._moved_at if now - at < _RUNS_SECONDS] + [now]
            self._say(lines.run_began(after, again=before != "", contested=len(self._moved_at) >= _RUNS))
        return Heard(body, after != before)

    def _refuse(self, topic: str, error: WireError, now: float) -> None:
        self.refused = error.message
        line = lines.message_refused(topic, error)
        if now - self._told.get(str(line), float("-inf")) < _QUIET_SECONDS:
            return
        if len(self._told) >= _MOST_REMEMBERED:
            self._told.clear()
        self._told[str(line)] = now
        self._say(line)
