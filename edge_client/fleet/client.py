# SPDX-License-Identifier: Apache-2.0
"""A fleet's node at work: it waits for a run, takes part as any node does, and waits again."""

from __future__ import annotations

import os
import queue
import random
import secrets
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edge_client.agent.agent import Agent
from edge_client.agent.lines import Callbacks
from edge_client.agent.making import keys_of, make_agent
from edge_client.agent.resting import Surroundings
from edge_client.fleet.linking import Linked
from edge_client.fleet.machine import Action, FleetNode, Heard, Leave, Left, LookAt, Looked, TakePart, Tell
from edge_client.fleet.speaking import Speaking
from edge_client.memory.limits import budget_bytes
from edge_client.node import Node
from edge_client.owner.accepting import Offering
from edge_client.owner.serving import ServeSection
from edge_client.process.packages import require_training_packages
from edge_client.process.supervisor import Supervisor
from fedcore.config.broker import mqtt_settings
from fedcore.config.models import find_model
from fedcore.config.sections import TaskSection
from fedcore.errors import ConfigError, FedkrsoError, TransportError, WireError
from fedcore.system.locks import owned
from fedcore.system.logs import Line
from fedcore.transport.address import is_encrypted
from fedcore.transport.base import CONNECT_SECONDS, Connected, Denied, Disconnected, Received, TransportEvent
from fedcore.transport.client import client_id
from fedcore.transport.mqtt import MqttTransport
from fedcore.wire.fleet import FleetRun
from fedcore.wire.identity import security
from fedcore.wire.messages import Topics
from fedcore.worker.looking import Look, look_at

__all__ = ["FleetClient", "Parts"]

_LOOK_SECONDS = 2.0


@dataclass(frozen=True)
class Parts:
    """What a simulation of many nodes puts in place of a node's own.

    Attributes:
        supervisor: Starts and watches the worker.
        look: Looks at data in a process of its own.
        surroundings: The machine and its clock.
    """

    supervisor: Callable[..., Supervisor] = Supervisor
    look: Callable[[Look], tuple[str, ...]] = lambda look: look_at(look, os.environ)
    surroundings: Surroundings | None = None


class FleetClient:
    """Takes part in the runs of a fleet, one at a time, for as long as it runs.

    Args:
        node: Its file, which names a fleet and no run.
        on_event: Called with each thing that happens, as the log would print it.
        heartbeat: Called at every turn of a loop, with what the node is doing: for a watchdog.
        place: The node file, for errors.
        parts: Of a simulation; a node's own by default.

    Raises:
        ConfigError: The file names no fleet, or asks for what a fleet's node has not.
    """

    def __init__(
        self,
        node: Node,
        *,
        on_event: Callable[[Line], None] = lambda line: None,
        heartbeat: Callable[[str], None] = lambda state: None,
        place: str = "node",
        parts: Parts | None = None,
    ) -> None:
        _require_fleets(node, place)
        self.node, self._on_event, self._heartbeat, self._place = node, on_event, heartbeat, place
        self._parts, self._topics = parts or Parts(), Topics(node.fleet)
        self._folder = Path(node.folder)
        # One that a signal handler may put something into, whatever it has interrupted.
        self._queue: queue.SimpleQueue[TransportEvent | Looked | None] = queue.SimpleQueue()
        # Spreads reconnects of many nodes; decides nothing in the model.
        self._jitter = random.Random(secrets.randbits(64))  # noqa: S311
        self._agent: Agent | None = None
        signed = node.trust.signing_key is not None and node.trust.coordinator_key is not None
        self._security = security(tls=is_encrypted(node.broker.url), signed=signed)
        self._stopping, self._lock, self._refused = False, threading.Lock(), ""
        self._wanted = ""

    def check(self) -> int:
        """Look at what the node names on this machine; its memory budget in bytes.

        Raises:
            FedkrsoError: A model is not there, the budget cannot be, or the broker's settings cannot be used.
        """
        for name, folder in self.node.models.items():
            find_model(folder, place=f"{self._place}: models.{name}")
        mqtt_settings(self.node.broker, "check")
        keys_of(self.node.trust)
        return budget_bytes(self.node.memory_budget, place=f"{self._place}: memory_budget")

    def examine(self) -> tuple[str, ...]:
        """Look at all that the node names, its data too; a line for each thing.

        Raises:
            FedkrsoError: As of `check`, or a row that training would refuse whatever the task.
        """
        budget = self.check()
        return (*self._parts.look(Look(rows=self.node.rows)), f"memory budget: {budget / 2**20:.0f} MiB")

    def run(self) -> None:
        """Wait for runs and take part in them until `leave` is called.

        Raises:
            FedkrsoError: The node file is wrong, or the broker refuses the node: nothing that waiting would mend. What
                is wrong with one run ends that run for this node, and no other.
        """
        require_training_packages()
        self.check()
        remedy = "stop that one first, or give this node another folder"
        with owned(self._folder, f"node {self.node.node} of fleet {self.node.fleet}", remedy=remedy):
            self._speaking = Speaking(self.node, keys_of(self.node.trust))
            self._machine = FleetNode(self.node.node, _offering(self.node), self._speaking.number)
            first = True
            while not self._stopping:
                run = self._wait(first=first)
                first = False
                if run is not None:
                    self._take_part(run)

    def leave(self) -> None:
        """Have `run` return soon; from any thread, or from a signal handler."""
        self._stopping = True
        if (agent := self._agent) is not None:
            agent.stop()
        self._queue.put(None)

    def obey(self, node: Node) -> None:
        """Take another memory budget, policy and other rules of what is accepted, while it runs.

        Raises:
            BudgetError: The budget cannot be.
        """
        budget = budget_bytes(node.memory_budget, place=f"{self._place}: memory_budget")
        self.node = msgspec.structs.replace(
            self.node, memory_budget=node.memory_budget, policy=node.policy, accept=node.accept, privacy=node.privacy
        )
        if (agent := self._agent) is not None:
            agent.set_budget(budget)
            agent.set_policy(node.policy)
        self._queue.put(None)

    # Waiting for a run

    def _wait(self, *, first: bool) -> FleetRun | None:
        """The run to take part in; None when it is to leave."""
        url = self.node.broker.url
        if first:
            line = f"connecting to {url}, for at most {CONNECT_SECONDS:.0f} s"
            self._say(Line(line, event="connecting"))
        settings = mqtt_settings(self.node.broker, client_id(self.node.fleet, self.node.node))
        transport = MqttTransport(settings, self._jitter)
        transport.subscribe(self._topics.plan)
        transport.start(self._queue.put, self._speaking.will())
        try:
            if first:
                transport.wait_connected(CONNECT_SECONDS)
            while not self._stopping:
                self._heartbeat("waiting for a run")
                run = self._turn(transport)
                if run is not None:
                    return run
            transport.publish(self._speaking.will())
            return None
        finally:
            transport.stop()

    def _turn(self, transport: MqttTransport) -> FleetRun | None:
        """Take one event; a run that is to be taken part in."""
        try:
            event = self._queue.get(timeout=_LOOK_SECONDS)
        except queue.Empty:
            return None
        begun: FleetRun | None = None
        for action in self._take(event):
            match action:
                case TakePart(run):
                    begun = run
                case LookAt(run):
                    threading.Thread(target=self._look_at, args=[run], daemon=True).start()
                case Leave(why):
                    self._say(Line(why, event="left"))
                    if (agent := self._agent) is not None:
                        agent.stop()
                case Tell():
                    transport.publish(self._speaking.said(self._machine.candidate()))
        return begun

    def _take(self, event: TransportEvent | Looked | None) -> list[Action]:
        match event:
            case Received(self._topics.plan, payload, _) if payload:
                try:
                    number, notice = self._speaking.notice(payload)
                except WireError as error:
                    # Once for each reason: the broker gives some again with every link.
                    if (words := error.one_line()) != self._refused:
                        self._refused = words
                        self._say(Line(f"a notice that does not count: {words}", event="message_refused"))
                    return []
                actions = self._machine.handle(Heard(number, notice))
                self._tidy()
                if self._speaking.wanted and self._speaking.wanted != self._wanted:
                    self._wanted = self._speaking.wanted
                    self._say(Line(f"the server wants version {self._wanted.split()[0]} here", event="release"))
                return actions
            case Connected(limits):
                if self._agent is None:
                    words = (
                        f"connected ({limits.protocol}; {self._security}), waits for a run of fleet {self.node.fleet}"
                    )
                    self._say(Line(words, event="connected"))
                return [Tell()]
            case Disconnected(reason) if self._agent is None:
                self._say(Line(reason, event="disconnected", level="warning"))
            case Denied(topic_filter, reason) if self._agent is None:
                words = f"the broker does not let us read {topic_filter}: {reason}"
                self._say(Line(words, event="denied", level="warning"))
            case Looked(submission, reason):
                if reason:
                    name = next((run.run for run in self._machine.notice.runs if run.submission == submission), "a run")
                    self._say(Line(f"takes no part in {name}: {reason}", event="declined"))
                return self._machine.handle(event)
            case None if self._machine.offering != (offering := _offering(self.node)):
                return self._machine.offer(offering)
        return []

    def _look_at(self, run: FleetRun) -> None:
        """In a thread of its own: the data is read by a process of its own, as for training."""
        reason = ""
        try:
            task = TaskSection(kind=run.task, labels=run.labels) if run.labels else None
            self._parts.look(Look(rows=self.node.rows, task=task))
        except FedkrsoError as error:
            reason = error.one_line()
        self._queue.put(Looked(run.submission, reason))

    # In a run

    def _take_part(self, run: FleetRun) -> None:
        node, folder = self.node, self._folder_of(run)
        node = msgspec.structs.replace(
            node, run=run.run, model_folder=node.models[run.model], folder=str(folder), models={}
        )
        self._say(Line(f"takes part in run {run.run}", event="taking_part"))
        settings = mqtt_settings(node.broker, client_id(f"{node.fleet}-{run.run}", node.node))
        transport = MqttTransport(settings, self._jitter)
        prefix, farewell = Topics(run.run, node.fleet).prefix, lambda: self._speaking.will() if self._stopping else None
        linked = Linked(transport, self._topics.plan, prefix, self._queue.put, farewell)
        ended, reason, over = threading.Event(), "", False
        listener = threading.Thread(target=self._listen, args=[transport, ended], name="fleet", daemon=True)
        try:
            budget = budget_bytes(node.memory_budget, place=f"{self._place}: memory_budget")
            callbacks = Callbacks(self._say, self._heartbeat)
            parts = self._parts
            agent = make_agent(
                node,
                linked,
                self._jitter,
                budget,
                callbacks,
                place=self._place,
                supervisor=parts.supervisor,
                surroundings=parts.surroundings,
            )
            self._agent = agent
            if self._stopping:
                agent.stop()
            listener.start()
            agent.run(leave_when_finished=True)
            over = agent.session.state == "finished"
        except TransportError as error:
            # The link is waited for as it is between runs.
            self._say(Line(error.one_line(), event="disconnected", level="warning"))
        except FedkrsoError as error:
            reason = error.one_line()
            self._say(Line(f"takes no part in {run.run} any more: {reason}", event="declined", level="warning"))
        finally:
            self._agent = None
            ended.set()
            self._queue.put(None)
            if listener.ident is not None:
                listener.join()
        self._machine.handle(Left(reason, over))
        self._say(Line(f"waits for a run; run {run.run} {'is finished' if over else 'is left'}", event="waiting"))
        self._tidy()

    def _listen(self, transport: MqttTransport, ended: threading.Event) -> None:
        """In a thread of its own while the agent has the main one: hear the fleet's notices."""
        while not ended.is_set():
            self._turn(transport)

    def _folder_of(self, run: FleetRun) -> Path:
        return self._folder / "runs" / f"{run.run}.{run.submission[:12]}"

    def _tidy(self) -> None:
        """Remove what belongs to runs that are over."""
        machine = self._machine
        kept = {self._folder_of(run) for run in machine.notice.runs if run.submission not in machine.over}
        if machine.current is not None:
            kept.add(self._folder_of(machine.current))
        for path in (self._folder / "runs").glob("*.*"):
            if path not in kept:
                shutil.rmtree(path, ignore_errors=True)

    def _say(self, line: str) -> None:
        with self._lock:
            self._on_event(line if isinstance(line, Line) else Line(line))


def _offering(node: Node) -> Offering:
    return Offering(
        accept=node.accept,
        data=node.data,
        models=node.models,
        privacy=node.privacy,
        masked=node.trust.require_secure_aggregation,
    )


def _require_fleets(node: Node, place: str) -> None:
    if not node.fleet or node.run or node.model_folder:
        key = "run" if node.run else "model_folder" if node.model_folder else "fleet"
        words = "a fleet's node names no run and no model of one" if node.fleet else "this node names no fleet"
        raise ConfigError(words, place=f"{place}: {key}", remedy='fleet = "NAME" and [models]')
    if node.serve != ServeSection():
        words = "a fleet's node does not answer: its model changes with its run"
        raise ConfigError(words, place=f"{place}: serve", remedy="leave [serve] out")
