# SPDX-License-Identifier: Apache-2.0
"""A node in one attempt at a round with secure aggregation, as a state machine: messages in, what to say out; no I/O
and no clock. Bonawitz et al., 2017 (the variant against a coordinator that lies), on the graph of SecAgg+.

    keys ──roster──> shares ──relay──> masks known ──survivors──> echo ──agreed──> reveal

What it says it says again until the next message shows that it was heard. All of its state is `Kept`: a node that is
killed goes on from what its shell has kept, with the same words.

A coordinator that lies cannot have a single update: a node

- takes keys into account that their nodes have signed, whom the authority has enrolled (`Trust`);
- shares its secrets under a threshold above half of the holders, with enough neighbours for the number of nodes;
- signs one list of survivors in an attempt, and opens nothing unless as many holders have signed the same;
- opens at most one attempt of a round;
- opens no sum of fewer than the plan's `least`, for which its noise was sized where it has added some."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from fedcore.errors import ForgedMessage, SecureError
from fedcore.round.secure import SecureRound
from fedcore.secure.graph import degree_for, neighbours, threshold_of
from fedcore.secure.keys import Secrets, mask_seed
from fedcore.secure.shamir import SHARE_BYTES
from fedcore.wire.identity import PublicKey, SigningKey
from fedcore.wire.secure import (
    UP,
    Member,
    SecureAgreed,
    SecureEcho,
    SecureKeys,
    SecureRelay,
    SecureReveal,
    SecureRoster,
    SecureShares,
    SecureSurvivors,
    certified_bytes,
    digest_of,
    echo_bytes,
    keys_bytes,
)

__all__ = ["LEAST_NODES", "Kept", "Party", "Trust"]

LEAST_NODES = 3
"""Of two, each knows the other's update from the sum."""


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """Of an attempt, on disk while it lasts. The seed is a secret."""

    run_id: str = ""
    attempt: str = ""
    round: int = 0
    seed: bytes = b""
    roster: SecureRoster | None = None
    relay: SecureRelay | None = None
    survivors: tuple[int, ...] | None = None
    agreed: bool = False
    lanes: str = ""
    """SHA-256 of the update that was masked: masks hide one, and the difference of two would be bare."""
    opened: int = 0
    """The last round of the run of which something was revealed."""
    least: int | None = None
    """Of the run's first plan that this node masked for: noise that lies in an update was sized for it."""


@dataclass(frozen=True)
class Trust:
    """By what a node believes that keys are another node's.

    Attributes:
        key: Signs this node's own keys; None in a run without keys.
        authority: Who enrolled the nodes; None where this node was not told.
        certificate: The authority's word for this node's key.
    """

    key: SigningKey | None = None
    authority: PublicKey | None = None
    certificate: bytes = b""

    def member(self, node: str, secrets: Secrets, context: bytes) -> Member:
        """This node's keys, signed."""
        member = Member(node, secrets.seal_public, secrets.mask_public, secrets.commitment)
        if self.key is None:
            return member
        signature, identity = self.key.sign(keys_bytes(context, member)), self.key.public.hex
        return msgspec.structs.replace(member, signature=signature, identity=identity, certificate=self.certificate)

    def check(self, member: Member, context: bytes) -> None:
        """Return if a member's keys are its node's, as far as this node can tell.

        Raises:
            SecureError: They are not.
        """
        if self.key is None:
            return
        if self.authority is not None and not member.certificate:
            raise SecureError(
                "no word of the authority for this node's key",
                place=member.node,
                remedy="fedkrso provision writes trust.authority_key and trust.enrolment for its node file",
            )
        try:
            if self.authority is not None:
                self.authority.check(member.certificate, certified_bytes(member.node, member.identity))
            PublicKey(member.identity).check(member.signature, keys_bytes(context, member))
        except (ForgedMessage, ValueError):
            raise SecureError(
                "the coordinator gave keys for this node that are not its own", place=member.node
            ) from None


class Party:
    """A node's part.

    Args:
        node: Its id.
        trust: By what it signs and believes.
        settings: Of the plan.
        context: Of the attempt.
        kept: As it was left, or fresh with a seed.
    """

    def __init__(self, node: str, trust: Trust, settings: SecureRound, context: bytes, kept: Kept) -> None:
        self._node, self._trust, self._settings, self._context = node, trust, settings, context
        self.kept = kept
        self._secrets = Secrets(kept.seed, node, context)
        self._held: dict[int, bytes] = {}
        self._place, self._threshold, self._digest = -1, 0, b""
        self._near: tuple[int, ...] = ()
        if kept.roster is not None:
            self._stand(kept.roster)
        if kept.relay is not None:
            self._held = self._opened_boxes(kept.relay)

    def handle(self, body: SecureRoster | SecureRelay | SecureSurvivors | SecureAgreed) -> None:
        """Take a message of this attempt; `kept` is another one if it counts.

        Raises:
            SecureError: The coordinator, or a node by way of it, says what must not be: nothing more may be said in
                this attempt.
        """
        match body:
            case SecureRoster() if self.kept.roster is None:
                self._check(body)
                self._stand(body)
                self._keep(roster=body)
            case SecureRoster() if digest_of(body) != self._digest:
                raise SecureError("the coordinator shows a second list of keys in one attempt")
            case SecureRelay() if self.kept.roster is not None and self.kept.relay is None:
                self._held = self._opened_boxes(body)
                if len(self._held) < self._threshold:
                    raise SecureError(
                        f"{len(self._held)} shares came that this node can read, of {self._threshold} needed"
                    )
                self._keep(relay=body)
            case SecureSurvivors(_, places) if self.kept.relay is not None:
                self._take_survivors(places)
            case SecureAgreed(_, echoes) if self.kept.survivors is not None and not self.kept.agreed:
                self._take_echoes(dict(echoes))

    @property
    def saying(self) -> UP | None:
        """What to say, again and again, until it is something else."""
        kept = self.kept
        if kept.roster is None:
            return SecureKeys(kept.attempt, self._trust.member(self._node, self._secrets, self._context))
        if kept.relay is None:
            return self._shares()
        if kept.survivors is None:
            return None
        if not kept.agreed:
            return SecureEcho(kept.attempt, self._signed(kept.survivors))
        return self._reveal(kept.survivors)

    def masks(self) -> list[tuple[int, bytes]]:
        """What this node's numbers are masked with: sign and seed of each mask. Only once `kept.relay` is there."""
        assert self.kept.roster is not None and self.kept.relay is not None
        members, found = self.kept.roster.members, [(1, self._secrets.self_seed)]
        for place, _ in self.kept.relay.boxes:
            other = members[place]
            seed = mask_seed(self._secrets.mask_secret, other.mask, self._context, self._node, other.node)
            found.append((1 if self._place < place else -1, seed))
        return found

    @property
    def lanes_for(self) -> int:
        """Nodes whose sum must have room."""
        return len(self.kept.roster.members) if self.kept.roster is not None else 0

    def _check(self, roster: SecureRoster) -> None:
        names = [member.node for member in roster.members]
        if names != sorted(set(names)) or len(names) < LEAST_NODES:
            raise SecureError(f"a list of {len(names)} nodes that no sum can hide one of")
        mine = next((member for member in roster.members if member.node == self._node), None)
        if mine is None:
            raise SecureError("this node's keys came too late for this attempt")
        if (mine.seal, mine.mask) != (self._secrets.seal_public, self._secrets.mask_public):
            raise SecureError("the coordinator shows other keys for this node than it has sent")

    def _stand(self, roster: SecureRoster) -> None:
        """Find this node's place, and its neighbours, whose keys must be their own."""
        settings, count = self._settings, len(roster.members)
        self._digest = digest_of(roster)
        self._place = next(place for place, member in enumerate(roster.members) if member.node == self._node)
        degree = degree_for(count, settings.threshold)
        degree = degree and max(degree, settings.neighbours + settings.neighbours % 2)
        self._near = neighbours(count, self._digest, degree)[self._place]
        self._threshold = threshold_of(settings.threshold, len(self._near) + 1)
        for place in self._near:
            self._trust.check(roster.members[place], self._context)

    def _own_shares(self) -> dict[int, bytes]:
        places = tuple(sorted((*self._near, self._place)))
        own, mask = self._secrets.shares(self._threshold, tuple(place + 1 for place in places))
        return {place: own[place + 1] + mask[place + 1] for place in places}

    def _shares(self) -> SecureShares:
        assert self.kept.roster is not None
        members, shares = self.kept.roster.members, self._own_shares()
        boxes = []
        for place in self._near:
            other = members[place]
            boxes.append((place, self._secrets.seal(other.node, other.seal, shares[place], self._digest)))
        return SecureShares(self.kept.attempt, self._digest, tuple(boxes))

    def _opened_boxes(self, relay: SecureRelay) -> dict[int, bytes]:
        """Shares that this node holds, by whose they are: its own among them. One that cannot be read is not held: it
        must not be in one node's power to end a round for its neighbours."""
        assert self.kept.roster is not None
        places = [place for place, _ in relay.boxes]
        if len(set(places)) != len(places) or not set(places) <= set(self._near):
            raise SecureError("shares of nodes that are no neighbours of this one")
        held = {self._place: self._own_shares()[self._place]}
        for place, box in relay.boxes:
            sender = self.kept.roster.members[place]
            try:
                held[place] = self._secrets.unseal(sender.node, sender.seal, box, self._digest)
            except SecureError:
                continue
        return held

    def _take_survivors(self, places: tuple[int, ...]) -> None:
        if self.kept.survivors is not None:
            if self.kept.survivors != places:
                raise SecureError("the coordinator shows a second list of survivors in one attempt")
            return
        assert self.kept.roster is not None
        if list(places) != sorted(set(places)) or self._place not in places:
            raise SecureError("a list of survivors that this node is not on")
        holders = {*self._near, self._place} & set(places)
        least = max(LEAST_NODES, self._settings.least)
        if places[-1] >= len(self.kept.roster.members) or len(places) < least or len(holders) < self._threshold:
            raise SecureError(f"a list of {len(places)} survivors, too few to hide this node's update among")
        self._keep(survivors=places)

    def _take_echoes(self, echoes: dict[int, bytes]) -> None:
        assert self.kept.roster is not None and self.kept.survivors is not None
        survivors, members = self.kept.survivors, self.kept.roster.members
        signed = echo_bytes(self._context, self._digest, survivors)
        same = {self._place}
        for place in set(self._near) & set(survivors) & set(echoes):
            try:
                if self._trust.key is not None:
                    PublicKey(members[place].identity).check(echoes[place], signed)
            except ForgedMessage:
                raise SecureError(
                    "the coordinator showed this node another list of survivors", place=members[place].node
                ) from None
            same.add(place)
        if len(same) >= self._threshold:
            self._keep(agreed=True, opened=self.kept.round)

    def _signed(self, survivors: tuple[int, ...]) -> bytes:
        key = self._trust.key
        return b"" if key is None else key.sign(echo_bytes(self._context, self._digest, survivors))

    def _reveal(self, survivors: tuple[int, ...]) -> SecureReveal:
        alive = set(survivors)
        parts: Callable[[int], slice] = lambda place: (  # noqa: E731
            slice(SHARE_BYTES) if place in alive else slice(SHARE_BYTES, None)
        )
        shares = [(place, both[parts(place)]) for place, both in sorted(self._held.items())]
        return SecureReveal(self.kept.attempt, self._signed(survivors), tuple(shares))

    def _keep(self, **changes: object) -> None:
        self.kept = msgspec.structs.replace(self.kept, **changes)
