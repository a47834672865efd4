# SPDX-License-Identifier: Apache-2.0
"""The shell around the exchange with the nodes (`coordinator.secure.exchange`): what it says goes out, what must not be
forgotten goes into the ledger, and at the end stands the sum without its masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from coordinator.job import Job
from coordinator.rounds.events import Declined, Event, NodeOffline
from coordinator.secure.exchange import Action, Exchange, Keep, KeptExchange, Leave, Tell
from coordinator.secure.opening import Opened
from coordinator.store.ledger import Ledger
from fedcore.errors import UpdateRefused
from fedcore.methods.beside.secure import SecureSection
from fedcore.model.lanes import Unmasked, sum_of_masked
from fedcore.round.plan import Plan
from fedcore.secure.keys import mask_seed
from fedcore.wire.secure import UP, SecureBody, context_of

__all__ = ["Leading", "Sum", "masks_left"]

_FACT: Final = "secure"
_AGAIN_SECONDS: Final = 1.0


class _Note(Protocol):
    """Adds to a run's event log."""

    def __call__(self, kind: str, node: str, text: str, server_round: int | None = None) -> None:
        """What happened, of which node."""
        ...


@dataclass(frozen=True)
class Sum:
    """What a round came to.

    Attributes:
        plan: The round's.
        participants: Whose updates are in it; none where the masks could not be taken off.
        unmasked: The sum.
    """

    plan: Plan
    participants: tuple[str, ...]
    unmasked: Unmasked


class Leading:
    """Leads the attempts of a run, one after the other; idle in runs without secure aggregation.

    Args:
        job: The run's.
        ledger: Keeps what nodes go by.
        reply: Sends a message to a node: its name, the round, what.
        note: Adds to the event log.
        steady: Seconds of a clock that never goes back.
    """

    def __init__(
        self,
        job: Job,
        ledger: Ledger,
        reply: Callable[[str, int, SecureBody], None],
        note: _Note,
        steady: Callable[[], float],
    ) -> None:
        self._run, self._ledger, self._reply, self._note = job.run, ledger, reply, note
        self._steady, self._section = steady, job.secure_aggregation or SecureSection()
        self._exchange: Exchange | None = None
        self._plan: Plan | None = None
        self._updates: dict[str, Path] = {}
        self._told: dict[tuple[str, type[SecureBody]], float] = {}

    def opened(self, plan: Plan) -> None:
        """A round opens, again perhaps; or an earlier life of the coordinator had it open."""
        self._plan, self._exchange, self._told = None, None, {}
        if plan.secure is None or plan.phase != "train":
            return
        kept = self._ledger.fact(_FACT, KeptExchange)
        if kept is None or kept.attempt != plan.key:
            kept = KeptExchange(attempt=plan.key)
        self._plan = plan
        self._exchange = Exchange(
            plan.secure, frozenset(plan.cohort), self._steady(), kept, wait_seconds=self._section.wait_seconds
        )

    def received(self, node: str, body: UP) -> list[Event]:
        """A node's word; what it means for the round."""
        exchange = self._exchange
        if exchange is None or body.attempt != exchange.kept.attempt:
            return []
        return self._do(exchange.handle(node, body, self._steady()))

    def without(self, events: list[Event]) -> list[Event]:
        """Who declined, or went, is not waited for before masks are known; what that means for the round."""
        found: list[Event] = []
        for event in events:
            if self._exchange is not None and isinstance(event, Declined | NodeOffline):
                found += self._do(self._exchange.left(event.node, self._steady()))
        return found

    def tick(self) -> list[Event]:
        """Time has passed."""
        return [] if self._exchange is None else self._do(self._exchange.tick(self._steady()))

    @property
    def idle(self) -> bool:
        """Whether no masks are being taken off: after a start, until the round closes again."""
        return self._exchange is None or self._exchange.stage in ("keys", "shares", "masked")

    def close(self, updates: Mapping[str, Path]) -> None:
        """The round closes: the masks are to be taken off.

        Args:
            updates: Masked ones, by participant.
        """
        assert self._exchange is not None
        self._updates = dict(updates)
        self._do(self._exchange.close(updates.keys(), self._steady()))

    def sum(self) -> Sum | None:
        """The round's sum once it can be had, and then once; None before."""
        exchange, plan = self._exchange, self._plan
        if exchange is None or plan is None or exchange.stage not in ("done", "failed"):
            return None
        self._exchange = None
        failure = exchange.failure
        if exchange.result is not None:
            assert exchange.kept.roster is not None
            masks = masks_left(exchange, plan, self._run, exchange.result)
            try:
                total = sum_of_masked([self._updates[node] for node in exchange.survivors], plan, masks)
                return Sum(plan, exchange.survivors, total)
            except UpdateRefused as error:
                failure = error.one_line()
        self._note("unopened", "", f"round {plan.round} comes to nothing, the model stays as it was: {failure}")
        return Sum(plan, (), Unmasked.nothing(plan))

    def _tell(self, node: str, body: SecureBody) -> None:
        """A node that asks and asks is not told large things each time."""
        key, now = (node, type(body)), self._steady()
        if now >= self._told.get(key, float("-inf")) + _AGAIN_SECONDS:
            self._told[key] = now
            self._reply(node, self._plan.round if self._plan else 0, body)

    def _do(self, actions: list[Action]) -> list[Event]:
        events: list[Event] = []
        for action in actions:
            match action:
                case Keep(kept):
                    self._ledger.put_fact(_FACT, kept)
                case Tell(node, body):
                    self._tell(node, body)
                case Leave(node, reason):
                    self._note("declined", node, reason)
                    events.append(Declined(node, self._plan.round if self._plan else 0))
        return events


def masks_left(exchange: Exchange, plan: Plan, run: str, found: Opened) -> list[tuple[int, bytes]]:
    """The masks that do not cancel in the sum of the survivors' updates: their own, and those that they share with the
    nodes that are lost.

    Args:
        exchange: At its end.
        plan: The round's.
        run: Its name.
        found: The secrets.
    """
    roster, masking = exchange.kept.roster, set(exchange.kept.boxes or ())
    assert roster is not None and plan.secure is not None
    left = [(1, seed) for _, seed in sorted(found.self_seeds.items())]
    context, near = context_of(run, plan.run_id, plan.key), exchange.near
    for lost, secret in sorted(found.mask_keys.items()):
        for place in near[lost]:
            if place in masking and place in found.self_seeds:
                one, other = roster.members[lost].node, roster.members[place]
                # As the survivor put it on: added towards higher places, taken away towards lower ones.
                left.append((1 if place < lost else -1, mask_seed(secret, other.mask, context, one, other.node)))
    return left
