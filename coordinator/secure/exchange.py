# SPDX-License-Identifier: Apache-2.0
"""One attempt at a round with secure aggregation, as the coordinator leads it: a state machine without I/O and clock.

    keys ──all, or time──> shares ──all, or time──> masked ──close──> opening ──enough shares──> done
                                                              └─ too few, in time ──> failed

Nodes say a thing again until they have heard what follows from it, so what answers them is repeated whenever they do;
the list of survivors, for which they do not ask, is repeated by time. What other nodes will go by is kept before it is
told (`Keep`): a coordinator that is killed shows nobody a second roster or list."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from coordinator.secure.opening import Opened, Secret, opened
from fedcore.round.secure import SecureRound
from fedcore.secure.graph import degree_for, neighbours, threshold_of
from fedcore.wire.secure import (
    UP,
    Member,
    SecureAgreed,
    SecureBody,
    SecureEcho,
    SecureKeys,
    SecureRelay,
    SecureReveal,
    SecureRoster,
    SecureShares,
    SecureSurvivors,
    digest_of,
)

__all__ = ["Action", "Exchange", "Keep", "KeptExchange", "Leave", "Stage", "Tell"]

Stage = Literal["keys", "shares", "masked", "opening", "done", "failed"]
_AGAIN_SECONDS = 5.0
_LEAST_NODES = 3


class KeptExchange(msgspec.Struct, frozen=True, kw_only=True):
    """Of an attempt, in the ledger."""

    attempt: str
    roster: SecureRoster | None = None
    boxes: dict[int, tuple[tuple[int, bytes], ...]] | None = None
    """By who sealed them: for whom, and the box."""
    survivors: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Tell:
    """Say something to a node."""

    node: str
    body: SecureBody


@dataclass(frozen=True)
class Keep:
    """Write down, before anything that follows is told."""

    kept: KeptExchange


@dataclass(frozen=True)
class Leave:
    """A node has no part in this attempt any more, and why."""

    node: str
    reason: str


Action = Tell | Keep | Leave


@dataclass
class Exchange:
    """Leads an attempt.

    Args:
        settings: Of the plan.
        cohort: Who is invited.
        began_at: Now, in seconds of a clock that never goes back.
        kept: As an earlier life left it; fresh with the attempt's name.
        wait_seconds: For how long nodes that do not answer are waited for, in each stage.

    Attributes:
        result: The secrets that take the masks off, once the stage is `done`.
        failure: Why there are none, once it is `failed`.
    """

    settings: SecureRound
    cohort: Collection[str]
    began_at: float
    kept: KeptExchange
    wait_seconds: float = 60.0
    stage: Stage = "keys"
    result: Opened | None = None
    failure: str = ""
    _gone: set[str] = field(default_factory=set)
    _keys: dict[str, Member] = field(default_factory=dict)
    _boxes: dict[int, tuple[tuple[int, bytes], ...]] = field(default_factory=dict)
    _echoes: dict[int, bytes] = field(default_factory=dict)
    _agreed: set[int] = field(default_factory=set)
    _shares: dict[int, dict[int, bytes]] = field(default_factory=dict)
    _said: set[int] = field(default_factory=set)
    _again_at: float = 0.0

    def __post_init__(self) -> None:
        if self.kept.roster is not None:
            self._stand(self.kept.roster)
            self.stage = "shares" if self.kept.boxes is None else "masked"

    def handle(self, node: str, body: UP, now: float) -> list[Action]:
        """Take a node's word of this attempt.

        Args:
            node: Who, as its signature says.
            body: What.
            now: Seconds.
        """
        match body:
            case SecureKeys(_, member) if member.node == node and node in self.cohort:
                return self._take_keys(node, member, now)
            case SecureShares() if (place := self._places.get(node, -1)) >= 0:
                return self._take_shares(place, node, body, now)
            case SecureEcho(_, signature) if self._survives(node):
                return self._take_echo(self._places[node], signature, asks=True)
            case SecureReveal(_, signature, shares) if self._survives(node):
                place = self._places[node]
                self._agreed.add(place)
                return [*self._take_echo(place, signature, asks=False), *self._take_reveal(place, shares)]
        return []

    def left(self, node: str, now: float) -> list[Action]:
        """A node declined, or went: nobody waits for it before masks are known."""
        self._gone.add(node)
        return self.tick(now)

    def tick(self, now: float) -> list[Action]:
        """Time has passed."""
        late = now >= self.began_at + self.wait_seconds
        match self.stage:
            case "keys":
                if len(self._keys) >= _LEAST_NODES and (late or self._keys.keys() >= set(self.cohort) - self._gone):
                    return self._list_keys(now)
            case "shares":
                if len(self._boxes) >= _LEAST_NODES and (late or len(self._boxes) == self._expected):
                    return self._relay(now)
            case "opening":
                if now >= self.began_at + 2 * self.wait_seconds:
                    self._fail(self._lacking())
                elif now >= self._again_at:
                    self._again_at = now + _AGAIN_SECONDS
                    return self._tell_survivors(place for place in self._survivors if place not in self._said)
        return []

    def close(self, participants: Collection[str], now: float) -> list[Action]:
        """The updates are in that make the sum; or an earlier life's list of them counts.

        Args:
            participants: Whose updates are in.
            now: Seconds.
        """
        self.began_at, self._again_at = now, now + _AGAIN_SECONDS
        if self.kept.boxes is None:
            self._fail("no masks were agreed on")
            return []
        masked = self.kept.boxes
        survivors = self.kept.survivors
        if survivors is None:
            survivors = tuple(
                sorted(place for node, place in self._places.items() if node in participants and place in masked)
            )
        few = min((len(self._holders(place) & set(survivors)) for place in masked), default=0)
        least = max(self._threshold, _LEAST_NODES, self.settings.least)
        if len(survivors) < max(_LEAST_NODES, self.settings.least) or few < self._threshold:
            words = f"{len(survivors)} of {len(masked)} masked updates are in"
            self._fail(f"{words}, and the masks of those that are lost take {least} nodes to be taken off")
            return []
        self.stage = "opening"
        self.kept = msgspec.structs.replace(self.kept, survivors=survivors)
        self._survivors = frozenset(survivors)
        return [Keep(self.kept), *self._tell_survivors(survivors)]

    @property
    def survivors(self) -> tuple[str, ...]:
        """Whose updates make the sum, by name."""
        return tuple(self._members[place].node for place in sorted(self._survivors))

    @property
    def masking(self) -> tuple[str, ...]:
        """Who masks, by name: who has relayed shares to the others."""
        return tuple(self._members[place].node for place in sorted(self.kept.boxes or ()))

    @property
    def near(self) -> list[tuple[int, ...]]:
        """Each member's neighbours, by place."""
        return self._near

    # Standing

    _members: tuple[Member, ...] = ()
    _places: dict[str, int] = field(default_factory=dict)
    _near: list[tuple[int, ...]] = field(default_factory=list)
    _threshold: int = 0
    _survivors: frozenset[int] = frozenset()

    def _stand(self, roster: SecureRoster) -> None:
        self._members, count = roster.members, len(roster.members)
        self._places = {member.node: place for place, member in enumerate(roster.members)}
        degree = degree_for(count, self.settings.threshold)
        degree = degree and max(degree, self.settings.neighbours + self.settings.neighbours % 2)
        self._near = neighbours(count, digest_of(roster), degree)
        self._threshold = threshold_of(self.settings.threshold, len(self._near[0]) + 1)

    def _holders(self, place: int) -> set[int]:
        return {place, *self._near[place]}

    def _survives(self, node: str) -> bool:
        return self.stage == "opening" and self._places.get(node, -1) in self._survivors

    @property
    def _expected(self) -> int:
        return sum(member.node not in self._gone for member in self._members)

    # Keys and shares

    def _take_keys(self, node: str, member: Member, now: float) -> list[Action]:
        if self.stage == "keys":
            self._gone.discard(node)
            self._keys[node] = member
            return self.tick(now)
        assert self.kept.roster is not None
        # It has not heard it; or it is not on it, and sees so.
        return [Tell(node, self.kept.roster)]

    def _list_keys(self, now: float) -> list[Action]:
        roster = SecureRoster(self.kept.attempt, tuple(self._keys[node] for node in sorted(self._keys)))
        self.kept = msgspec.structs.replace(self.kept, roster=roster)
        self.stage, self.began_at = "shares", now
        self._stand(roster)
        missing = sorted(set(self.cohort) - self._keys.keys() - self._gone)
        return [
            Keep(self.kept),
            *(Tell(member.node, roster) for member in roster.members),
            *(Leave(node, "no keys came from it in time") for node in missing),
        ]

    def _take_shares(self, place: int, node: str, body: SecureShares, now: float) -> list[Action]:
        assert self.kept.roster is not None
        if self.stage == "shares":
            if body.roster != digest_of(self.kept.roster) or [to for to, _ in body.boxes] != list(self._near[place]):
                self._gone.add(node)
                return [Leave(node, "its shares are not for its neighbours"), *self.tick(now)]
            self._gone.discard(node)
            self._boxes[place] = body.boxes
            return self.tick(now)
        return [Tell(node, self._relayed(place))] if place in (self.kept.boxes or ()) else []

    def _relay(self, now: float) -> list[Action]:
        self.kept = msgspec.structs.replace(self.kept, boxes=dict(self._boxes))
        self.stage, self.began_at = "masked", now
        missing = [member.node for place, member in enumerate(self._members) if place not in self._boxes]
        return [
            Keep(self.kept),
            *(Tell(self._members[place].node, self._relayed(place)) for place in sorted(self._boxes)),
            *(Leave(node, "no shares came from it in time") for node in missing if node not in self._gone),
        ]

    def _relayed(self, place: int) -> SecureRelay:
        """What others have sealed for a node."""
        boxes = self.kept.boxes or {}
        mine = tuple((sender, dict(boxes[sender])[place]) for sender in self._near[place] if sender in boxes)
        return SecureRelay(self.kept.attempt, mine)

    # Taking the masks off

    def _tell_survivors(self, places: Iterable[int]) -> list[Action]:
        assert self.kept.survivors is not None
        body = SecureSurvivors(self.kept.attempt, self.kept.survivors)
        return [Tell(self._members[place].node, body) for place in places]

    def _take_echo(self, place: int, signature: bytes, *, asks: bool) -> list[Action]:
        """As soon as enough of a node's holders have said that they see the same list, it hears so."""
        fresh = place not in self._echoes
        self._echoes[place] = signature
        self._said.add(place)
        others = [near for near in self._near[place] if fresh and near not in self._agreed]
        return [action for near in ([place] if asks else []) + others for action in self._agree(near)]

    def _agree(self, place: int) -> list[Action]:
        same = {near: self._echoes[near] for near in sorted(self._holders(place)) if near in self._echoes}
        if place not in self._echoes or len(same) < self._threshold:
            return []
        self._agreed.add(place)
        return [Tell(self._members[place].node, SecureAgreed(self.kept.attempt, tuple(same.items())))]

    def _take_reveal(self, place: int, shares: tuple[tuple[int, bytes], ...]) -> list[Action]:
        self._said.add(place)
        for whose, share in shares:
            if whose < len(self._members) and place in self._holders(whose):
                self._shares.setdefault(whose, {})[place + 1] = share
        if not self._short():
            found = opened(self._secrets(), self._shares, self._threshold)
            if isinstance(found, Opened):
                self.stage, self.result = "done", found
        return []

    def _secrets(self) -> list[Secret]:
        return [
            Secret(place, self._members[place].node, alive=place in self._survivors, member=self._members[place])
            for place in sorted(self.kept.boxes or ())
        ]

    def _short(self) -> list[int]:
        return [place for place in self.kept.boxes or () if len(self._shares.get(place, ())) < self._threshold]

    def _lacking(self) -> str:
        short = self._short()
        if len(self._said) < self._threshold:
            return f"{len(self._said)} nodes answered of {self._threshold} that it takes to take the masks off"
        if not short:
            found = opened(self._secrets(), self._shares, self._threshold)
            return found if isinstance(found, str) else "no reason"
        have = len(self._shares.get(short[0], ()))
        whose = self._members[short[0]].node
        return f"{have} of {self._threshold} shares came that take off the mask of {whose}"

    def _fail(self, reason: str) -> None:
        self.stage, self.failure = "failed", reason
