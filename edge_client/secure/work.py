# SPDX-License-Identifier: Apache-2.0
"""The agent's shell around its part in secure aggregation (`edge_client.secure.party`): what it says goes out until it
is heard, what it knows lies on the disk, and an update that waits is masked and sent.

Masking is the agent's, not the worker's: the worker may be gone by then, a round that opens again asks for other masks
and for no other training, and no key leaves this process. It goes chunk by chunk, a little at each turn of the agent's
loop."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from edge_client.secure.party import Kept, Party, Trust
from fedcore.errors import SecureError
from fedcore.round.masked import header_bytes
from fedcore.round.plan import Plan
from fedcore.secure.keys import SEED_BYTES
from fedcore.secure.masks import masked_chunks
from fedcore.system.durable import flush_folder, sha256_of
from fedcore.system.logs import Line
from fedcore.wire.messages import Declined
from fedcore.wire.secure import UP, SecureAgreed, SecureRelay, SecureRoster, SecureSurvivors, context_of

__all__ = ["Ways", "Work"]

_FIRST_SECONDS, _LONGEST_SECONDS = 2.0, 30.0
_UNCHECKED: Final = (
    "secure aggregation: whose keys are whose is believed of the coordinator (trust.authority_key and trust.enrolment, "
    "which fedkrso provision writes, have other nodes' keys checked)"
)
_BARE: Final = "a run without secure aggregation, and this node takes part in none (trust.require_secure_aggregation)"
_AT_ONCE: Final = 64
"""Chunks of masks at a turn: about 10 ms of a laptop's processor."""


@dataclass(frozen=True)
class Ways:
    """What the rest of the agent does for it.

    Attributes:
        up: Sends a message of a kind about a round.
        lanes: Where a round's update lies, as the worker has left it.
        send: Sends a round's masked update: the round, bytes in a chunk at most, the time, and its file.
        drop: Has what is being sent left.
        say: Gets one line for each thing that happens.
    """

    up: Callable[[str, UP | Declined, int], None]
    lanes: Callable[[int], Path]
    send: Callable[[int, int, float, Path], None]
    drop: Callable[[], None]
    say: Callable[[str], None]


class Work:
    """A node's part in the attempts of a run, one after the other; idle in runs without secure aggregation.

    Args:
        node: Its id.
        run: The run's name.
        folder: Of the node; what must survive a kill is a file in it that others cannot read.
        trust: By what it signs and believes.
        ways: What the rest of the agent does for it.
        required: The node takes part in no run without.
    """

    def __init__(self, node: str, run: str, folder: Path, trust: Trust, ways: Ways, *, required: bool = False) -> None:
        self._node, self._run, self._trust, self._ways, self._required = node, run, trust, ways, required
        self._refused = ""
        self._path = folder / f"secure-{run}.msgpack"
        self._party: Party | None = None
        self._plan: Plan | None = None
        self._wanted, self._begun = 0, False
        self._masking: Iterator[bytes] | None = None
        self._speak_at, self._pause = 0.0, _FIRST_SECONDS

    def patience_seconds(self, now: float) -> float:
        """For how long nothing is to be done without anybody's word.

        Args:
            now: Steady clock, seconds.
        """
        if self._masking is not None:
            return 0.0
        return float("inf") if self._party is None else max(0.0, self._speak_at - now)

    @property
    def masks_with(self) -> tuple[int, ...]:
        """Places of the nodes that this one masks with; none before that is known."""
        relay = None if self._party is None else self._party.kept.relay
        return () if relay is None else tuple(place for place, _ in relay.boxes)

    def takes(self, plan: Plan) -> bool:
        """Whether the node may work for a plan: a coordinator that leaves masks out must not get bare updates of a node
        that was told to send none."""
        if not self._required or plan.secure is not None or plan.phase != "train":
            return True
        if self._refused != plan.key and self._node in plan.cohort:
            self._refused = plan.key
            self._ways.say(Line(f"round {plan.round} declined: {_BARE}", event="secure", level="warning"))
            self._ways.up("declined", Declined(_BARE), plan.round)
        return False

    def plan(self, plan: Plan, now: float, *, able: bool) -> None:
        """A plan came: if it is another attempt, the node takes part in it, or declines.

        Args:
            plan: The present one.
            now: Steady clock, seconds.
            able: Whether the node would train.
        """
        if self._plan is not None and (self._plan.run_id, self._plan.key) == (plan.run_id, plan.key):
            return
        self._forget()
        kept = self._read()
        if kept.seed and (kept.run_id, kept.attempt) != (plan.run_id, plan.key):
            # What an attempt's secrets could still open ends with it.
            kept = Kept(run_id=kept.run_id, opened=kept.opened, least=kept.least)
            self._write(kept)
        if plan.secure is None or plan.phase != "train" or self._node not in plan.cohort:
            return
        least = plan.secure.least
        if kept.run_id == plan.run_id and kept.least not in (None, least):
            # An update that lies here may have noise for more nodes than are now to be in the sum.
            words = f"nodes' noise was sized for a sum of {kept.least} updates, and now one of {least} is asked for"
            self._ends(plan, SecureError(words))
            return
        if not kept.seed:
            if not able:
                return
            opened = kept.opened if kept.run_id == plan.run_id else 0
            if opened >= plan.round:
                self._ends(plan, SecureError("this round was opened once: a second time could betray an update"))
                return
            fresh = secrets.token_bytes(SEED_BYTES)
            kept = Kept(run_id=plan.run_id, attempt=plan.key, round=plan.round, seed=fresh, opened=opened, least=least)
            self._write(kept)
            if self._trust.authority is None:
                self._ways.say(Line(_UNCHECKED, event="secure", level="warning", round=plan.round))
        self._plan = plan
        try:
            context = context_of(self._run, plan.run_id, plan.key)
            self._party = Party(self._node, self._trust, plan.secure, context, kept)
        except SecureError as error:
            self._ends(plan, error)
        self._speak(now, at_once=True)

    def heard(self, body: SecureRoster | SecureRelay | SecureSurvivors | SecureAgreed, now: float) -> None:
        """Take the coordinator's word; what must not be ends the node's part in this attempt."""
        party, plan = self._party, self._plan
        if party is None or plan is None or body.attempt != party.kept.attempt:
            return
        before = party.kept
        try:
            party.handle(body)
        except SecureError as error:
            self._ends(plan, error)
            return
        if party.kept is not before:
            self._write(party.kept)
        if party.kept is not before or isinstance(body, SecureSurvivors):
            self._speak(now, at_once=True)

    def send(self, plan: Plan) -> bool:
        """Send a round's update, as soon as its masks are known; again for every attempt, until it is `gone`.

        Args:
            plan: The round's.

        Returns:
            False: it is not to be masked.
        """
        if plan.secure is None:
            return False
        self._wanted = plan.round
        self._begin_masking()
        return True

    def gone(self, server_round: int) -> None:
        """A round's update needs no more sending."""
        if self._wanted <= server_round:
            self._wanted = 0

    def tick(self, now: float) -> None:
        """Time has passed: say what is to be said again, and mask a little."""
        self._speak(now, at_once=False)
        self._begin_masking()
        if self._masking is not None and next(self._masking, None) is None:
            self._masking, plan = None, self._plan
            assert plan is not None
            self._ways.send(plan.round, plan.chunk_bytes, now, self._masked_path(plan))

    def end(self) -> None:
        """Another run begins, or the node leaves: nothing more is said."""
        self._forget()
        self._wanted = 0

    def _ends(self, plan: Plan, error: SecureError) -> None:
        self._ways.say(Line(f"secure aggregation: {error.one_line()}", event="secure", level="warning"))
        self._ways.up("declined", Declined(error.one_line()), plan.round)
        self._forget()
        # The same plan is heard again, and changes nothing.
        self._plan = plan

    def _forget(self) -> None:
        if self._begun and self._wanted:
            # What is masked for one attempt is of no use to another.
            self._ways.drop()
        self._party, self._plan, self._masking, self._begun = None, None, None, False

    def _begin_masking(self) -> None:
        party, plan = self._party, self._plan
        if party is None or plan is None or self._wanted != plan.round or party.kept.relay is None:
            return
        if self._begun:
            return
        lanes = sha256_of(self._ways.lanes(plan.round))
        if party.kept.lanes not in ("", lanes):
            self._ends(plan, SecureError("another update than the one that was masked in this attempt"))
            return
        party.kept = msgspec.structs.replace(party.kept, lanes=lanes)
        self._write(party.kept)
        self._begun, self._masking = True, self._masked(party, plan)

    def _masked_path(self, plan: Plan) -> Path:
        return self._ways.lanes(plan.round).with_suffix(".masked")

    def _masked(self, party: Party, plan: Plan) -> Iterator[bytes]:
        """Write the masked file, in small steps; it is there whole or not at all."""
        assert plan.secure is not None
        path = self._masked_path(plan)
        part, masks = path.with_name(path.name + ".part"), party.masks()
        with self._ways.lanes(plan.round).open("rb") as lanes, part.open("wb") as file:
            file.write(header_bytes(plan, self._run, self._node))
            for piece in masked_chunks(lanes, plan.secure.lane_bytes, masks, _AT_ONCE):
                file.write(piece)
                if not piece:
                    yield piece
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        flush_folder(path.parent)
        self._ways.say(
            Line(f"round {plan.round}: masked with {len(masks) - 1} nodes", event="masked", round=plan.round)
        )

    def _speak(self, now: float, *, at_once: bool) -> None:
        party = self._party
        if party is None or not (at_once or now >= self._speak_at):
            return
        body = party.saying
        if body is None:
            self._speak_at = float("inf")
            return
        self._pause = _FIRST_SECONDS if at_once else min(2 * self._pause, _LONGEST_SECONDS)
        self._speak_at = now + self._pause
        self._ways.up("secure", body, party.kept.round)

    def _read(self) -> Kept:
        try:
            return msgspec.msgpack.decode(self._path.read_bytes(), type=Kept)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            # Nothing yet, or damaged: then the keys of this attempt are lost, and the coordinator's list shows it.
            return Kept()

    def _write(self, kept: Kept) -> None:
        beside = self._path.with_name(self._path.name + ".new")
        beside.unlink(missing_ok=True)
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(msgspec.msgpack.encode(kept))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self._path)
        flush_folder(self._path.parent)
