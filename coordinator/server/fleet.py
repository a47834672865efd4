# SPDX-License-Identifier: Apache-2.0
"""The server among its nodes: it hears what each would do, chooses, and says so in one retained notice."""

from __future__ import annotations

import queue
import random
import secrets
from collections.abc import Callable
from pathlib import Path

import msgspec

from coordinator.server.assigning import Wanted, assigned
from coordinator.server.keeping import Kept
from coordinator.server.queueing import Entry
from coordinator.server.rows import NodeRow
from coordinator.server.service import Fleet
from coordinator.server.settings import ServerFiles, ServerSettings
from coordinator.store.folder import RunFolder, stored_job
from coordinator.store.places import read_ledger
from coordinator.store.viewfile import read_view
from fedcore.config.broker import mqtt_settings
from fedcore.errors import FedkrsoError, ForgedMessage, WireError
from fedcore.fields.checked import clean_text
from fedcore.round.plan import PublishedObject
from fedcore.system.logs import Line
from fedcore.transport.base import (
    CONNECT_SECONDS,
    Connected,
    Denied,
    Disconnected,
    Message,
    Received,
    Transport,
    TransportEvent,
)
from fedcore.transport.client import client_id
from fedcore.transport.mqtt import MqttTransport
from fedcore.wire.fleet import MOST_RUNS, Candidate, FleetPost, FleetRun, Notice, Release, opened, start_of_number
from fedcore.wire.identity import Enrolment, load_signing_key
from fedcore.wire.messages import Topics

__all__ = ["Candidates", "MqttFleet", "fleet_of", "noticed"]

_MOST_NODES = 10_000
_MOST_CHUNKS = 2000
# So many starts are left when a node has lied about the number of a notice.
_MOST_HEARD = 2**61


class Candidates:
    """What each node said last.

    Args:
        fleet: The fleet's name.
        enrolled: `enrolled.json`; None where nothing is signed, and every name is believed.
    """

    def __init__(self, fleet: str, enrolled: Path | None) -> None:
        self._fleet, self._enrolled = fleet, enrolled
        self._numbers: dict[str, int] = {}
        self.words: dict[str, Candidate] = {}

    def hear(self, node: str, payload: bytes) -> None:
        """Take what came on a node's topic.

        Raises:
            WireError: It does not count.
        """
        if node not in self.words and len(self.words) >= _MOST_NODES:
            raise ForgedMessage(f"more than {_MOST_NODES} names")
        key = None if self._enrolled is None else Enrolment.load(self._enrolled).key_of(node)
        envelope = opened(payload, self._fleet, key)
        body, last = envelope.body, self._numbers.get(node, 0)
        if envelope.node != node or not isinstance(body, Candidate):
            raise ForgedMessage(f"no word of {node} to fleet {self._fleet}")
        if body.heard >= _MOST_HEARD:
            raise ForgedMessage("a word of a notice whose number nobody has reached")
        # A last will was signed when the node came to wait: it is right until the node starts again.
        will = not body.online and start_of_number(envelope.number) == start_of_number(last)
        if key is not None and envelope.number < last and not will:
            raise ForgedMessage("an older word, played again")
        self._numbers[node] = max(envelope.number, last)
        self.words[node] = body

    @property
    def heard(self) -> int:
        """The highest number of a notice that a node has believed."""
        return max((word.heard for word in self.words.values()), default=0)


def noticed(entry: Entry, runs: Path) -> FleetRun:
    """What nodes are told of a run, before anybody is named.

    Args:
        entry: In the queue.
        runs: The folder of runs.

    Raises:
        RunError: Its job cannot be read.
    """
    job = stored_job(runs / entry.run)
    folder, noise = job.model.folder, job.privacy.noise
    return FleetRun(
        run=job.run,
        submission=entry.submission,
        task=job.task.kind,
        labels=job.task.labels if isinstance(job.task.labels, tuple) else (),
        method=job.method.name,
        model=folder if ":" in folder and "/" not in folder.partition(":")[0] else Path(folder).name,
        privacy="" if noise is None else job.privacy.level,
        secure=job.secure_aggregation is not None,
    )


class MqttFleet(Fleet):
    """The real one.

    Args:
        settings: The server file.
        kept: Remembers places, and the server's starts.
        transport: Not started yet.
        say: Gets a line for each thing that happens.
    """

    def __init__(self, settings: ServerSettings, kept: Kept, transport: Transport, say: Callable[[Line], None]) -> None:
        trust = settings.trust
        self._kept, self._transport, self._say = kept, transport, say
        self._fleet, self._topics = settings.fleet, Topics(settings.fleet)
        self._runs = ServerFiles(Path(settings.runs)).runs
        self._retained: list[Message] = []
        start = kept.fact("start", 0) + 1
        kept.put_fact("start", start)
        key = None if trust.signing_key is None else load_signing_key(Path(trust.signing_key))
        self._post = FleetPost(settings.fleet, "", key, start)
        self._candidates = Candidates(settings.fleet, None if trust.enrolled is None else Path(trust.enrolled))
        self._queue: queue.Queue[TransportEvent] = queue.Queue()
        self._places = kept.places()
        self._told: dict[str, FleetRun] = {}
        self._least: dict[str, int] = {}
        self._said: Notice | None = None
        self._refused = ""
        self._release = None
        if (said := settings.release) is not None:
            self._release = Release(version=said.version, sha256=said.sha256, permille=round(said.share * 1000))

    def begin(self) -> None:
        """See `Fleet`; returns when the link is up."""
        self._transport.subscribe(self._topics.status("+"))
        self._transport.start(self._queue.put)
        self._transport.wait_connected(CONNECT_SECONDS)

    def end(self) -> None:
        """See `Fleet`. The notice stays: runs go on."""
        self._transport.stop()

    def announce(self, entries: list[Entry]) -> None:
        """See `Fleet`."""
        self._hear()
        self._clear()
        runs = [self._run_of(entry) for entry in entries[:MOST_RUNS]]
        known = {run.submission: run.run for run in runs}
        away = self._away({run.run for run in runs})
        places = self._assigned([Wanted(run.run, self._least[run.run]) for run in runs], known, away)
        if places != self._places:
            self._kept.put_places(places.items())
            self._places = places
        named = {run.run: tuple(sorted(node for node, place in places.items() if place == run.run)) for run in runs}
        told = tuple(msgspec.structs.replace(run, nodes=named[run.run]) for run in runs)
        self._tell(Notice(told, self._release))

    def over(self, entry: Entry) -> None:
        """See `Fleet`: the plan and the states of the run are not to lie at the broker for ever."""
        topics = Topics(entry.run, self._fleet)
        found = [topics.plan]
        try:
            with read_ledger(RunFolder(self._runs / entry.run)) as ledger:
                objects: list[PublishedObject] = list(ledger.published_states())
                plan = ledger.plan(len(ledger.rounds()) + 1) or ledger.plan(len(ledger.rounds()))
        except FedkrsoError:
            objects, plan = [], None
        objects += [plan.artefact] if plan is not None and plan.artefact is not None else []
        for obj in objects:
            name, chunks = obj.manifest.sha256[:16], min(obj.manifest.chunks, _MOST_CHUNKS)
            found += [topics.published_state(name, index) for index in range(chunks)]
        self._retained += [Message(topic, b"", retain=True) for topic in found]
        self._told.pop(entry.run, None)

    def nodes(self) -> list[NodeRow]:
        """See `Fleet`."""
        known = {run.submission: run.run for run in self._told.values()}
        away = self._away(set(self._places.values()))
        return [
            NodeRow(
                node=node,
                online=node not in away,
                run=self._places.get(node, ""),
                able=tuple(known[one] for one in word.able if one in known),
                declined=word.declined,
                software=word.software,
                release=self._release.version if self._release is not None and self._release.names(node) else "",
            )
            for node, word in sorted(self._candidates.words.items())
        ]

    def _assigned(self, wanted: list[Wanted], known: dict[str, str], away: set[str]) -> dict[str, str]:
        """The places as they are to be.

        Args:
            wanted: The runs, in their order.
            known: Their names by submission.
            away: Nodes that are not there.
        """
        words = self._candidates.words
        present = {node: word for node, word in words.items() if word.online}
        able = {node: {known[one] for one in word.able if one in known} for node, word in present.items()}
        for node, run in self._places.items():
            # Who has not spoken yet, or has not looked yet since it started again, keeps its place.
            if node not in present or run not in present[node].declined:
                able.setdefault(node, set()).add(run)
        return assigned(wanted, able, self._places, away | (self._places.keys() - present.keys()))

    def _clear(self) -> None:
        while self._retained and self._transport.publish(self._retained[0]):
            self._retained.pop(0)

    def _hear(self) -> None:
        while not self._queue.empty():
            match self._queue.get():
                case Received(topic, payload, _) if payload and (node := self._topics.node_of(topic)):
                    try:
                        self._candidates.hear(node, payload)
                    except (WireError, FedkrsoError) as error:
                        self._refuse(f"{node}: {error.one_line()}")
                case Connected():
                    # A broker without persistence has forgotten it.
                    self._said = None
                case Disconnected(reason):
                    self._say(Line(reason, event="link", level="warning"))
                case Denied(topic_filter, reason):
                    words = f"the broker does not let us read {topic_filter}: {reason}"
                    self._say(Line(words, event="denied", level="error"))
        # A server that has lost its disk counts on from what nodes have heard.
        if (heard := self._candidates.heard) > self._post.last:
            self._kept.put_fact("start", start_of_number(heard) + 1)
            self._post.begin(start_of_number(heard) + 1)
            self._said = None

    def _refuse(self, words: str) -> None:
        if words != self._refused:
            self._refused = words
            self._say(Line(f"refused: {clean_text(words)}", event="refused", level="warning"))

    def _run_of(self, entry: Entry) -> FleetRun:
        known = self._told.get(entry.run)
        if known is None or known.submission != entry.submission:
            known = self._told[entry.run] = noticed(entry, self._runs)
            self._least[entry.run] = stored_job(self._runs / entry.run).round.min_nodes
        return known

    def _away(self, runs: set[str]) -> set[str]:
        """Who is not there: said so itself, or by the coordinator of its run."""
        away = {node for node, word in self._candidates.words.items() if not word.online}
        for run in runs:
            seen = read_view(RunFolder(self._runs / run).view)
            if seen is None or seen.ended:
                continue
            for node, view in seen.view.nodes.items():
                word = self._candidates.words.get(node)
                if self._places.get(node) == run and word is not None and word.run == run and not view.online:
                    away.add(node)
        return away

    def _tell(self, notice: Notice) -> None:
        if notice == self._said:
            return
        payload = self._post.seal(notice)
        if self._transport.publish(Message(self._topics.plan, payload, retain=True)):
            self._said = notice


def fleet_of(settings: ServerSettings, kept: Kept, say: Callable[[Line], None]) -> Fleet:
    """The fleet of a server file.

    Raises:
        FedkrsoError: Keys or broker settings cannot be used.
    """
    # Spreads reconnects; decides nothing in a model.
    jitter = random.Random(secrets.randbits(64))  # noqa: S311
    transport = MqttTransport(mqtt_settings(settings.broker, client_id(settings.fleet, "server")), jitter)
    return MqttFleet(settings, kept, transport, say)
