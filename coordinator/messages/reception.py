# SPDX-License-Identifier: Apache-2.0
"""What comes in on the wire: checked, kept where it must be kept, and told as events to the round machine.

An update is flushed and in the ledger before its sender hears of it, so no acknowledged update is ever lost.
"""

from __future__ import annotations

from pathlib import Path

from coordinator.job import Job
from coordinator.messages.admission import Admission, Wanted, round_of
from coordinator.messages.inbox import Inbox
from coordinator.messages.kept import Kept, Note
from coordinator.messages.meeting import Meeting
from coordinator.messages.numbers import take_status, take_telemetry
from coordinator.messages.publisher import Publisher
from coordinator.messages.reminders import Reminders
from coordinator.messages.repairs import Repairs
from coordinator.messages.senders import Senders
from coordinator.rounds.events import Arriving, DigestReported, Event, NodeOffline, NodeOnline, Revoked, UpdateAccepted
from coordinator.rounds.events import Declined as NodeDeclined
from coordinator.rounds.machine import RoundMachine
from coordinator.rounds.policy import admit
from coordinator.store.ledger import UpdateRow
from coordinator.store.view import NodeView, RunView
from fedcore.errors import OtherVersion, UpdateRefused, WireError
from fedcore.round.measurement import Measurement, check_measurement
from fedcore.round.plan import Plan
from fedcore.system.clocks import Clocks
from fedcore.wire.messages import Chunk, Commit, Declined, Missing, Offer, Refuse, Status, Telemetry, Topics
from fedcore.wire.secure import SecureEcho, SecureKeys, SecureReveal, SecureShares

__all__ = ["Reception"]

_MOST_NAMES = 2000  # Without keys anybody can invent some.
# A node that was silent for longer is not reminded of a plan.
_REMINDED_SECONDS = 180.0
# A third of the time for which an update counts as on its way.
_WAITING_TOLD_SECONDS = 5.0


class Reception:
    """The receiving side of a run.

    Args:
        job: Names the run, and says what one update may do to a round.
        kept: Where updates go, and what is published.
        machine: The round machine, to read; events for it are returned.
        senders: Whose messages count.
        publisher: Answers.
        view: What is known of the nodes.
        note: Adds to the event log.
        clocks: For pauses, and for people.
    """

    def __init__(
        self,
        job: Job,
        kept: Kept,
        machine: RoundMachine,
        senders: Senders,
        publisher: Publisher,
        view: RunView,
        note: Note,
        clocks: Clocks,
    ) -> None:
        self._run, self._safety, self._folder, self._ledger = job.run, job.safety, kept.folder, kept.ledger
        self._machine, self._objects, self._senders, self._publisher = machine, kept.objects, senders, publisher
        self._view, self._note, self._clocks, self._secure = view, note, clocks, kept.secure
        self._topics = Topics(job.run, job.fleet)
        reply = lambda node, body: publisher.reply(node, machine.round, body)  # noqa: E731
        self._inbox = Inbox(self._accept, reply, uploads=kept.uploads)
        self._reminders, self._repairs = Reminders(), Repairs(self._send_again, clocks.steady)
        self._meeting = Meeting(publisher, senders, self._node, note, clocks.steady)
        self._last_word, self._waiting_told_at = dict[str, int](), float("-inf")
        self._heard: dict[str, tuple[str, float]] = {}
        """Key of the plan that each node has heard, and when it said so."""
        self._refused: dict[str, str] = {}
        self._declined: dict[str, tuple[int, str]] = {}
        self._events: list[Event] = []
        self._admission = Admission(machine, kept.ledger, job.staleness)
        # What an earlier life left in the store; of the open round, nodes may have put it just now.
        self._forget_before(self._admission.oldest(machine.round))
        self.uplink_bytes = 0
        """Payload bytes of updates since the round opened, with what was read of a store."""

    @property
    def plan(self) -> Plan | None:
        """The present plan."""
        return self._admission.plan

    @plan.setter
    def plan(self, plan: Plan | None) -> None:
        self._admission.announced(plan)

    def received(self, topic: str, payload: bytes) -> list[Event]:
        """Take a message; what it means for the rounds, in order."""
        node = self._topics.node_of(topic)
        if node is not None and payload:
            self._message(node, payload)
        return self._told()

    def serve(self) -> bool:
        """Send one node what it asked for again; whether nobody else waits for something."""
        self._repairs.serve()
        return not self._repairs.pending

    def idle(self, *, quiet: bool) -> list[Event]:
        """Time has passed; `quiet`: nothing is waiting to be received."""
        for node in self._senders.refresh():
            self._note("revoked", node, "its messages count no more")
            # What it has put is on its way without a further word of it.
            self._inbox.leave_store(node)
            self._events.append(Revoked(node))
        now = self._clocks.steady()
        self.uplink_bytes += self._inbox.collect(now)
        if quiet:
            self._inbox.spare(now)
        self._remind(now)
        if now >= self._waiting_told_at + _WAITING_TOLD_SECONDS:
            # They wait for us, not we for them.
            self._waiting_told_at = now
            self._events += [Arriving(node, self._machine.round) for node in self._inbox.waiting]
        return self._told()

    def round_over(self) -> None:
        """A round closes: forget the transfers that are not finished, but for those that may count in the next."""
        if self._inbox.by_store:
            self._note("objects", "", f"{self._inbox.by_store} updates came by way of the store")
        self._forget_before(self._admission.oldest(self._machine.round + 1))

    def stop(self) -> None:
        """The run has ended."""
        self._inbox.stop()

    def _forget_before(self, oldest: int) -> None:
        self._inbox.clear(lambda transfer: round_of(transfer) >= oldest)

    def _told(self) -> list[Event]:
        events, self._events = self._events, []
        return [*events, *self._secure.without(events)]

    def _message(self, node: str, payload: bytes) -> None:
        if not self._senders.signed and node not in self._view.nodes and len(self._view.nodes) >= _MOST_NAMES:
            self._note("refused", "", f"more than {_MOST_NAMES} names of nodes in a run without keys")
            return
        try:
            envelope = self._senders.open(node, payload)
        except OtherVersion as error:
            self._meeting.other_version(node, error)
            return
        except WireError as error:
            self._note("refused", node, error.one_line())
            return
        if envelope.run_id != self._senders.run_id and not self._senders.is_last_will(node, envelope):
            self._meeting.stranger(node, envelope)
            return
        self._meeting.joined(node)
        now = self._clocks.steady()
        if node in self._view.nodes:
            self._view.nodes[node].last_seen_at = self._clocks.wall()
        match envelope.body:
            case Status() if not self._meeting.agrees(node, envelope.body):
                self._events.append(NodeOffline(node, left=True))
            case Status():
                self._status(node, envelope.body)
                if envelope.body.state != "lost":
                    self._last_word[node] = max(envelope.sequence, self._last_word.get(node, 0))
            case Telemetry():
                self._telemetry(node, envelope.body)
                self._repair(node, envelope.body, envelope.sequence)
            case Offer():
                self.uplink_bytes += len(payload)
                self._offered(node, envelope.body)
            case Chunk():
                self.uplink_bytes += len(payload)
                if self._inbox.chunk(node, envelope.body, now):
                    self._events.append(Arriving(node, self._machine.round))
            case SecureKeys() | SecureShares() | SecureEcho() | SecureReveal():
                self._events += self._secure.received(node, envelope.body)
            case Missing(sha256, indices):
                self._repairs.want(node, sha256, indices)
            case Declined(reason):
                if self._declined.get(node) != (envelope.round, reason):
                    # A node that rests says so each time that it is asked; once a round is enough to know.
                    self._note("declined", node, reason)
                self._declined[node] = envelope.round, reason
                self._node(node).reason = reason
                self._events.append(NodeDeclined(node, envelope.round))

    def _send_again(self, node: str, sha256: str, indices: tuple[int, ...]) -> None:
        if not self._publisher.repair(node, sha256, indices, self._objects):
            self._note("refused", node, f"asks for an object that is not published: {sha256[:16]}")

    def _status(self, node: str, status: Status) -> None:
        seen = self._node(node)
        take_status(seen, status)
        if status.online:
            self._events.append(NodeOnline(node))
        if status.measured is not None:
            self._measured(node, status.measured)
        if status.state != "lost":
            # A node that leaves says once more what it holds.
            seen.version, seen.digest = status.version, status.digest
            self._check_digest(node, status)
        if not status.online:
            self._events.append(NodeOffline(node, left=status.state != "lost"))

    def _measured(self, node: str, measurement: Measurement) -> None:
        """A node's word on the run's last state; of every other the updates have it."""
        plan = self.plan
        if plan is None or plan.phase != "finished" or measurement.version < plan.version:
            return
        try:
            check_measurement(measurement, plan.evaluation, plan.version, node)
        except UpdateRefused as error:
            self._note("refused", node, error.one_line())
            return
        self._ledger.put_measurement(node, measurement)

    def _check_digest(self, node: str, status: Status) -> None:
        seen = self._node(node)
        expected = self._objects.get((status.version, "whole"))
        # A replica that has merged since says so by its generation, and has another digest.
        if status.version > 0 and expected is not None and expected.generation == status.generation:
            if status.digest == expected.digest:
                seen.trouble = ""
                if status.state != "measuring":
                    # Its last word is still to come.
                    self._events.append(DigestReported(node, status.version, status.digest))
            elif status.digest:
                seen.trouble = (
                    f"version {status.version} is {status.digest[:12]}, not {expected.digest[:12]}: resynchronising"
                )
                self._note("digest", node, seen.trouble)

    def _telemetry(self, node: str, numbers: Telemetry) -> None:
        take_telemetry(self._node(node), numbers)
        if numbers.state == "measuring" and self.plan is not None and self.plan.phase == "finished":
            self._events.append(Arriving(node, self._machine.round))

    def _repair(self, node: str, numbers: Telemetry, sequence: int) -> None:
        """What telemetry tells of messages that were acknowledged by a broker and lost: the node's status, or our
        plan; and of those that the node refused."""
        seen, newest = self._node(node), sequence > self._last_word.get(node, 0)
        if newest and (not seen.online or (seen.version, seen.digest) != (numbers.version, numbers.digest)):
            status = Status(
                online=True,
                state=numbers.state,
                device=seen.device,
                version=numbers.version,
                generation=numbers.generation,
                digest=numbers.digest,
                budget_bytes=numbers.budget_bytes,
                reason=seen.reason,
            )
            self._status(node, status)
        self._last_word[node] = max(sequence, self._last_word.get(node, 0))
        now = self._clocks.steady()
        self._heard[node] = numbers.plan, now
        self._remind(now, node)
        if numbers.refused and numbers.refused != self._refused.get(node):
            self._note("node_refused", node, numbers.refused)
        self._refused[node] = numbers.refused

    def _remind(self, now: float, node: str = "") -> None:
        """The present plan once more, to nodes that should have heard it by now."""
        plan = self.plan
        if plan is None:
            return
        present = plan.key
        for name, (heard, at) in {node: self._heard[node]}.items() if node else self._heard.items():
            # Who has heard it said so in its telemetry, where `node` is given.
            behind = (node or heard != present) and now - at < _REMINDED_SECONDS
            if behind and self._reminders.due(name, heard, present, now):
                self._publisher.remind(name, plan)

    def _offered(self, node: str, offer: Offer) -> None:
        # Of the round that the transfer is of: the commit of a round that has closed since may have been lost.
        trained_for = round_of(offer.transfer)
        committed = self._ledger.update(trained_for, node)
        if committed is not None and committed.transfer == offer.transfer:
            self._publisher.reply(node, self._machine.round, Commit(offer.transfer))
            # Committed before this round opened again, perhaps, with this node in the new cohort.
            self._events.append(UpdateAccepted(node, committed.counts_in))
            return
        wanted = self._admission.wanted(node, trained_for)
        if wanted is None:
            return
        if isinstance(wanted, Wanted):
            known = "" if committed is None else "this node's update for the round is already here"
            reason = known or wanted.why_not(offer.manifest)
        else:
            reason = wanted
        if reason:
            self._note("refused", node, reason, trained_for)
            self._publisher.reply(node, self._machine.round, Refuse(offer.transfer, reason))
            self._inbox.unwanted(node, offer)
            return
        self._inbox.offer(node, offer, self._folder.update(trained_for, node), self._clocks.steady())
        self._events.append(Arriving(node, self._machine.round))

    def _accept(self, node: str, offer: Offer, path: Path) -> str:
        trained_for = round_of(offer.transfer)
        try:
            # The round opened again without it while its update was on its way, or versions went on.
            wanted = self._admission.wanted(node, trained_for)
            if not isinstance(wanted, Wanted):
                raise UpdateRefused(wanted or f"late: round {trained_for} is over", place=node)
            update = admit(path, wanted.plan, self._run, node, self._safety)
        except UpdateRefused as error:
            self._note("refused", node, error.one_line())
            # The node will not offer another one for this round: do not wait for it.
            self._events.append(NodeDeclined(node, trained_for))
            return error.one_line()
        norm, clip = update.norm, update.clip
        file = str(path.relative_to(self._folder.root))
        into = wanted.into if self._machine.is_buffered else 0
        row = UpdateRow(offer.transfer, file, offer.manifest.size_bytes, update.header, norm, clip, into)
        self._ledger.put_update(row)
        if clip is not None:
            bound = self._safety.norm_bound
            self._note(
                "clipped",
                node,
                f"round {wanted.into}: norm {norm:.6g}, scaled by {clip.factor:.6g} to the bound of {bound:g}",
            )
        # Told to the round machine after the commit is out: it may close the round and with it this transfer.
        self._events.append(UpdateAccepted(node, wanted.into))
        return ""

    def _node(self, node: str) -> NodeView:
        return self._view.nodes.setdefault(node, NodeView(node))
