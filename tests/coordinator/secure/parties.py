# SPDX-License-Identifier: Apache-2.0
"""A round with secure aggregation on its real parts, without a wire: a coordinator's `Leading` over a real ledger, and
each node's `Work` over a real folder. Whoever uses it says who is lost, and when somebody is killed and comes back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coordinator.job import Job, ModelSection, RoundSection, SafetySection
from coordinator.rounds.events import Declined, Event
from coordinator.secure.leading import Leading, Sum
from coordinator.store.ledger import SqliteLedger
from edge_client.secure.party import Trust
from edge_client.secure.work import Ways, Work
from fedcore.config.sections import BrokerSection, TaskSection
from fedcore.methods.beside.secure import SecureSection
from fedcore.round.plan import Plan
from fedcore.wire.codec import decode, encode
from fedcore.wire.identity import SigningKey
from fedcore.wire.messages import Body, Envelope
from fedcore.wire.secure import UP, SecureBody, certified_bytes

__all__ = ["AUTHORITY", "Member", "Rounds", "signed_trust"]

AUTHORITY = SigningKey(bytes([255]) * 32)
RUN = "r"


def signed_trust(node: str) -> Trust:
    """As an enrolled node has it."""
    key = SigningKey(node.encode().rjust(32, b"\0")[-32:])
    return Trust(key, AUTHORITY.public, AUTHORITY.sign(certified_bytes(node, key.public.hex)))


@dataclass
class Member:
    """A node: its folder outlives it."""

    name: str
    folder: Path
    trust: Trust
    rounds: Rounds
    lost: bool = False
    sent: Path | None = None
    lines: list[str] = field(default_factory=list)
    declined: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.start()

    def start(self) -> None:
        """As a process starts, for the first time or again."""
        ways = Ways(self._up, self.lanes, self._send, self._drop, self.lines.append)
        self.work = Work(self.name, RUN, self.folder, self.trust, ways)

    def again(self, plan: Plan, *, wanted: bool) -> None:
        """Killed, started, and told the plan; `wanted`: its update waits to be sent."""
        self.start()
        self.work.plan(plan, self.rounds.now, able=True)
        if wanted:
            self.work.send(plan)

    def lanes(self, server_round: int) -> Path:
        return self.folder / f"{server_round}.bin"

    def _up(self, kind: str, body: UP | object, server_round: int) -> None:
        if not self.lost:
            self.rounds.post.append((self.name, self.rounds.carried(self.name, body)))

    def _send(self, server_round: int, chunk_bytes: int, now: float, path: Path) -> None:
        self.sent = path

    def _drop(self) -> None:
        self.sent = None


class Rounds:
    """A coordinator and its nodes.

    Args:
        folder: Of all of them.
        names: The nodes.
        section: Of the job.
        trust: Of each node.
    """

    def __init__(
        self,
        folder: Path,
        names: Iterable[str],
        section: SecureSection,
        trust: Callable[[str], Trust] = signed_trust,
    ) -> None:
        self.folder, self.now, self.section = folder, 0.0, section
        folder.mkdir(parents=True, exist_ok=True)
        self.post: list[tuple[str, Body]] = []
        self.down: list[tuple[str, SecureBody]] = []
        self.notes: list[tuple[str, str, str]] = []
        self.left: list[str] = []
        self.bytes_up = self.bytes_down = 0
        self.disturb: Callable[[list[Any]], list[Any]] = lambda messages: messages
        self.change: Callable[[str, SecureBody], SecureBody] = lambda node, body: body
        self.members = {name: Member(name, folder / name, trust(name), self) for name in names}
        self.job = Job(
            run=RUN,
            model=ModelSection(folder="nowhere"),
            task=TaskSection(kind="regression"),
            broker=BrokerSection(url="mqtts://x"),
            round=RoundSection(quorum=3, min_nodes=3),
            safety=SafetySection(norm_ratio=0, max_share_ratio=0),
            secure_aggregation=section,
        )
        self.start()

    def start(self) -> None:
        """The coordinator starts, for the first time or again."""
        self.ledger = SqliteLedger(self.folder / "ledger")
        tell: Callable[[str, int, SecureBody], None] = lambda node, _, body: self.down.append((node, body))  # noqa: E731
        self.leading = Leading(self.job, self.ledger, tell, self._note, lambda: self.now)

    def again(self, plan: Plan) -> None:
        """Killed, and started."""
        self.ledger.close()
        self.post, self.down = [], []
        self.start()
        self.leading.opened(plan)

    def open(self, plan: Plan, able: Collection[str] | None = None) -> None:
        """A round opens, and nodes hear of it."""
        self.leading.opened(plan)
        for name, member in self.members.items():
            if not member.lost:
                member.work.plan(plan, self.now, able=able is None or name in able)

    def settle(self) -> None:
        """Deliver what waits, until nobody has anything to say at once."""
        while self.post or self.down:
            post, self.post = self.disturb(self.post), []
            for node, body in post:
                assert not isinstance(body, Envelope)
                if isinstance(body, UP):
                    self._take(self.leading.received(node, body))
            down, self.down = self.disturb(self.down), []
            for node, body in down:
                member = self.members[node]
                if not member.lost:
                    self.bytes_down += len(self._packed("", body))
                    member.work.heard(self.change(node, body), self.now)  # type: ignore[arg-type]

    def wait(self, seconds: float) -> None:
        """Time passes: nodes say again what was not heard, the coordinator gives up on who is silent."""
        self.now += seconds
        for member in self.members.values():
            if not member.lost:
                member.work.tick(self.now)
        self._take(self.leading.tick())
        self.settle()

    def masked(self, plan: Plan, names: Iterable[str]) -> dict[str, Path]:
        """Updates that wait, masked and sent."""
        found = {}
        for name in names:
            member = self.members[name]
            member.work.send(plan)
            while member.sent is None:
                member.work.tick(self.now)
            found[name] = member.sent
        return found

    def close(self, updates: dict[str, Path], *, most_waits: int = 100) -> Sum:
        """The round closes; what it comes to."""
        self.leading.close(updates)
        self.settle()
        for _ in range(most_waits):
            if (found := self.leading.sum()) is not None:
                return found
            self.wait(5.0)
        raise AssertionError("the round does not end")

    def carried(self, node: str, body: object) -> Body:
        """As it arrives."""
        packed = self._packed(node, body)
        self.bytes_up += len(packed)
        return decode(packed).body

    @staticmethod
    def _packed(node: str, body: object) -> bytes:
        return encode(Envelope(run=RUN, round=1, node=node, body=body))  # type: ignore[arg-type]

    def _take(self, events: Iterable[Event]) -> None:
        self.left += [event.node for event in events if isinstance(event, Declined)]

    def _note(self, kind: str, node: str, text: str, server_round: int | None = None) -> None:
        self.notes.append((kind, node, text))
